//! Where the daemon is when it is not on this machine, and how to speak to it there.

use std::{fs, io, net::IpAddr, path::PathBuf, sync::Arc};

use clap::Args;
use hyper::Uri;
use rustls::{
    ClientConfig,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::api;

/// Where the daemon is, if not behind the socket.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct RemoteArgs {
    /// Speak to a daemon by TCP: https://HOST:PORT, or http:// on this machine
    #[arg(long, global = true, value_name = "URL", env = "SLUICE_API")]
    pub(super) api: Option<Uri>,
    /// File that holds the token for it
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Who signed its certificate, in PEM
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CA", default_value = SYSTEM_ROOTS)]
    ca: PathBuf,
    /// This client's own certificate, in PEM, if the daemon asks for one
    #[arg(long, global = true, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A daemon that answers by TCP.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    host: String,
    port: u16,
    pub(super) authorization: String,
    tls: Option<Arc<ClientConfig>>,
}

/// Why a remote daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("--api: {url} is not https://HOST:PORT")]
    Url { url: Uri },
    #[error(
        "--api: {url} would carry the token in the clear; use https://, which `tls` in [api] of the daemon's config gives"
    )]
    Clear { url: Uri },
    #[error("--api needs --token-file; `sluice token new` on the daemon's machine makes a token")]
    NoToken,
    #[error("--{option}: cannot use {}: {message}", path.display())]
    File {
        option: &'static str,
        path: PathBuf,
        message: String,
    },
}

/// What a connection is made of.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl RemoteArgs {
    /// The daemon that is meant, if it is a remote one.
    pub(super) fn remote(&self) -> Result<Option<Remote>, RemoteError> {
        let Some(url) = &self.api else {
            return Ok(None);
        };
        let wrong = || RemoteError::Url { url: url.clone() };
        let host = url.host().ok_or_else(wrong)?;
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        if !matches!(url.path(), "" | "/") || url.query().is_some() {
            return Err(wrong());
        }
        let (port, tls) = match url.scheme_str() {
            Some("https") => (443, Some(self.tls()?)),
            Some("http") if is_here(&host) => (80, None),
            Some("http") => return Err(RemoteError::Clear { url: url.clone() }),
            _ => return Err(wrong()),
        };
        Ok(Some(Remote {
            port: url.port_u16().unwrap_or(port),
            host,
            authorization: self.authorization()?,
            tls,
        }))
    }

    fn authorization(&self) -> Result<String, RemoteError> {
        let path = self.token_file.clone().ok_or(RemoteError::NoToken)?;
        let wrong = |message| RemoteError::File {
            option: "token-file",
            path: path.clone(),
            message,
        };
        let token = fs::read_to_string(&path).map_err(|error| wrong(error.to_string()))?;
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("it holds no token".into()));
        }
        Ok(format!("Bearer {token}"))
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, RemoteError> {
        let wrong = |option, path: &PathBuf, message| RemoteError::File {
            option,
            path: path.clone(),
            message,
        };
        let roots = api::roots(&self.ca).map_err(|message| wrong("ca", &self.ca, message))?;
        let builder = ClientConfig::builder_with_provider(api::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("ca", &self.ca, error.to_string()))?
            .with_root_certificates(roots);
        let config = match (&self.cert, &self.key) {
            (Some(cert_path), Some(key_path)) => {
                let cert = api::certificates(cert_path)
                    .map_err(|message| wrong("cert", cert_path, message))?;
                let key = PrivateKeyDer::from_pem_file(key_path)
                    .map_err(|error| wrong("key", key_path, api::said(&error, "private key")))?;
                builder
                    .with_client_auth_cert(cert, key)
                    .map_err(|error| wrong("key", key_path, error.to_string()))?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }
}

impl Remote {
    /// `HOST:PORT`, as a URL has it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub(super) async fn connect(&self) -> io::Result<Stream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Stream::Plain(stream));
        };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(tls.clone())
            .connect(name, stream)
            .await?;
        Ok(Stream::Tls(Box::new(stream)))
    }
}

/// Whether what is sent there stays on this machine.
fn is_here(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback())
}
