//! The daemon's side of TLS: its certificate, its key, and whose clients it takes.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::WebPkiClientVerifier,
};

use crate::config::ApiTls;

/// What connections are accepted with.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(super) Arc<ServerConfig>);

/// What is wrong with a file that `[api.tls]` names.
#[derive(Debug)]
pub struct TlsError {
    key: &'static str,
    path: PathBuf,
    message: String,
}

impl ServerTls {
    /// Reads the files, and sees that they fit together.
    pub fn load(tls: &ApiTls) -> Result<Self, TlsError> {
        let wrong = |key, path: &Path, message: String| TlsError {
            key,
            path: path.to_owned(),
            message,
        };
        let cert = certificates(&tls.cert).map_err(|message| wrong("cert", &tls.cert, message))?;
        let key = PrivateKeyDer::from_pem_file(&tls.key)
            .map_err(|error| wrong("key", &tls.key, said(&error, "private key")))?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("cert", &tls.cert, error.to_string()))?;
        let builder = match &tls.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let wrong = |message| wrong("client_ca", path, message);
                let roots = roots(path).map_err(wrong)?;
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                        .build()
                        .map_err(|error| wrong(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(cert, key)
            .map_err(|error| wrong("key", &tls.key, format!("does not go with `cert`: {error}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

impl TlsError {
    /// The key in `[api.tls]` that names the file.
    pub fn key(&self) -> &'static str {
        self.key
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, path) = (self.key, self.path.display());
        write!(f, "`{key}`: {path}: {}", self.message)
    }
}

impl std::error::Error for TlsError {}

/// The cryptography of both sides.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// All certificates in a PEM file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(|certificates| certificates.collect());
    match all {
        Ok(certificates) if certificates.is_empty() => {
            Err(said(&pem::Error::NoItemsFound, "certificate"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(said(&error, "certificate")),
    }
}

/// The same, as those whose signatures count.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(roots)
}

pub(crate) fn said(error: &pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("there is no {wanted} in PEM in it"),
        _ => "this is not PEM, or not whole".into(),
    }
}
