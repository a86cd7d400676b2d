//! Speaks HTTP with the daemon: over its Unix socket, or by TCP with one that is elsewhere.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1, header, http::request};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};

use super::remote::{Remote, Stream};
use crate::api::{Problem, model::Page};

/// Where the daemon listens unless a config or a flag says otherwise.
const DEFAULT_SOCKET: &str = "/run/sluice/sluice.sock";

/// A daemon that may run.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Local { socket: PathBuf },
    Remote(Remote),
}

/// Why a request brought no answer that is of use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error(
        "the daemon is not running: nobody listens on {}; start it with `sluice run`, or name its socket with --socket",
        socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("no permission to use {}; try as root, or as a member of its group", socket.display())]
    Denied { socket: PathBuf },
    #[error("cannot connect to {}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("cannot reach the daemon at {address}")]
    Unreachable { address: String, source: io::Error },
    #[error("the daemon did not answer")]
    NoAnswer(#[from] hyper::Error),
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    #[error("the answer makes no sense; is the daemon of another version?")]
    Answer(#[from] serde_json::Error),
}

impl Client {
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// All items of a list, however many pages that takes. `path` may have filters behind a `?`.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<Page<T>, ClientError> {
        let with = |name: &str, value: &str| {
            let joint = if path.contains('?') { '&' } else { '?' };
            format!("{path}{joint}limit={ITEMS}{name}{value}")
        };
        let mut all: Page<T> = self.get(&with("", "")).await?;
        while let Some(after) = all.next.take() {
            let more: Page<T> = self.get(&with("&after=", &encoded(&after))).await?;
            all.items.extend(more.items);
            all.next = more.next;
        }
        Ok(all)
    }

    /// For what is answered without a body.
    pub(super) async fn tell(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.send(method, path, Bytes::new()).await.map(drop)
    }

    pub(super) async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body)?;
        let answer = self.send(method, path, body.into()).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        match self {
            Self::Local { socket } => {
                let request = request.header(header::HOST, "sluice");
                exchange(connect(socket).await?, request, body).await
            }
            Self::Remote(remote) => {
                let unreachable = |source| ClientError::Unreachable {
                    address: remote.authority(),
                    source,
                };
                let request = request
                    .header(header::HOST, remote.authority())
                    .header(header::AUTHORIZATION, &remote.authorization);
                match remote.connect().await.map_err(unreachable)? {
                    Stream::Plain(stream) => exchange(stream, request, body).await,
                    Stream::Tls(stream) => exchange(stream, request, body).await,
                }
            }
        }
    }
}

/// So many items are asked for at once.
const ITEMS: usize = 10_000;

/// One request and its answer.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: request::Builder,
    body: Bytes,
) -> Result<Bytes, ClientError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = request
        .body(Full::new(body))
        .expect("paths are encoded, headers are checked");
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    driver.abort();
    if status.is_success() {
        return Ok(body);
    }
    Err(ClientError::Refused(serde_json::from_slice(&body)?))
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let path = || socket.to_owned();
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(stream),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket: path() }
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket: path() },
            _ => ClientError::Connect {
                socket: path(),
                source: error,
            },
        }),
    }
}

/// The flag, or what the config file says, or the default.
///
/// Only this one key is looked at: the daemon may run with an older config while the file has errors.
pub(super) fn socket(flag: Option<PathBuf>, config_file: &Path) -> PathBuf {
    flag.or_else(|| path_in(config_file, "api", "socket"))
        .unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// A path in a config file that may be wrong otherwise.
pub(super) fn path_in(config_file: &Path, table: &str, key: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(config_file).ok()?;
    let (file, _errors) = toml::de::DeTable::parse_recoverable(&text);
    let path = file.get_ref().get(table)?.get_ref().get(key)?;
    Some(path.get_ref().as_str()?.into())
}

/// A part of a path, so that it cannot be taken for more than one.
pub(super) fn encoded(part: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b':' | b'/' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    part.bytes().map(encode).collect()
}
