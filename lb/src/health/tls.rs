//! TLS for https checks. Sessions are not resumed: each check shows that the backend can begin one.

use std::{net::IpAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::config::{Ca, Tls};

/// Settings that checks share, made when one needs them first. There are as many as files of certificates, which are few.
#[derive(Default)]
pub(super) struct Settings(Vec<(Tls, Result<Arc<ClientConfig>, String>)>);

impl Settings {
    /// `None` for what is no TLS.
    pub(super) fn get(&mut self, tls: &Tls) -> Option<Result<Arc<ClientConfig>, String>> {
        let ca = match tls {
            Tls::Off => return None,
            Tls::Unverified => None,
            Tls::Verified(ca) => Some(ca),
        };
        if let Some((_, made)) = self.0.iter().find(|(known, _)| known == tls) {
            return Some(made.clone());
        }
        let made = settings(ca);
        self.0.push((tls.clone(), made.clone()));
        Some(made)
    }
}

/// Whom the certificate must be for: the host, without its port.
pub(super) fn server_name(
    host: Option<&str>,
    address: IpAddr,
) -> Result<ServerName<'static>, String> {
    let Some(host) = host else {
        return Ok(address.into());
    };
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _port)) => v6,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    ServerName::try_from(name.to_owned())
        .map_err(|_invalid| format!("`{host}` is no name that a certificate can be for"))
}

fn settings(ca: Option<&Ca>) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = match ca {
        Some(ca) => builder
            .with_root_certificates(ca.roots())
            .with_no_client_auth(),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// Takes every certificate: a check asks whether the backend serves, not who it is.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_the_host_without_its_port() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let name = |host| server_name(host, address).map(|name| name.to_str().into_owned());
        assert_eq!(name(None).unwrap(), "192.0.2.1");
        assert_eq!(name(Some("www.example.com")).unwrap(), "www.example.com");
        assert_eq!(
            name(Some("www.example.com:8443")).unwrap(),
            "www.example.com"
        );
        assert_eq!(name(Some("[2001:db8::1]:8443")).unwrap(), "2001:db8::1");
        name(Some("a..b")).unwrap_err();
    }
}
