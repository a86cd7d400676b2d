//! Tells a URL of decisions: one POST each, again after a wait until it is taken, and in order.

use std::{collections::VecDeque, io, path::Path, sync::Arc, time::Duration};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use crate::api;

/// A message, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) url: String,
    pub(super) body: String,
}

/// Sends what comes, until nobody can send any more. Each message is tried for ten minutes or so; of those that wait, the
/// oldest makes room.
pub(super) async fn deliver(mut messages: mpsc::Receiver<Message>) {
    let mut waiting: VecDeque<Message> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match messages.recv().await {
                Some(message) => waiting.push_back(message),
                None => return,
            }
        }
        let mut wait = FIRST_WAIT;
        for attempt in 1..=ATTEMPTS {
            let Some(message) = waiting.front() else {
                break;
            };
            let Err(error) = post(message).await else {
                break;
            };
            tracing::warn!(url = message.url, %error, attempt, "the webhook does not take a decision");
            if attempt < ATTEMPTS {
                sleep(wait).await;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
        waiting.pop_front();
        while let Ok(message) = messages.try_recv() {
            if waiting.len() >= MOST_WAITING {
                waiting.pop_front();
            }
            waiting.push_back(message);
        }
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 15;
const MOST_WAITING: usize = 256;
const ANSWER_TIME: Duration = Duration::from_secs(10);
const MOST_ANSWER_BYTES: usize = 64 << 10;
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

async fn post(message: &Message) -> Result<(), String> {
    match timeout(ANSWER_TIME, exchange(message)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIME.as_secs())),
    }
}

async fn exchange(message: &Message) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let url: Uri = message.url.parse().map_err(|error| said(&error))?;
    let host = url.host().ok_or("the URL has no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port));
    let stream = stream.await.map_err(|error| said(&error))?;
    if !tls {
        return send(stream, &url, message).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| said(&error))?;
    let stream = TlsConnector::from(client_config()?).connect(name, stream);
    let stream = stream.await.map_err(|error: io::Error| said(&error))?;
    send(stream, &url, message).await
}

fn client_config() -> Result<Arc<ClientConfig>, String> {
    let roots = api::roots(Path::new(SYSTEM_ROOTS))?;
    let config = ClientConfig::builder_with_provider(api::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Uri,
    message: &Message,
) -> Result<(), String> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(message.body.clone())))
        .map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await;
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    // Read, so that the other side is not cut off.
    let _read = Limited::new(answer.into_body(), MOST_ANSWER_BYTES)
        .collect()
        .await;
    connection.abort();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("it answers {status}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::{Router, extract::State, http::StatusCode, routing::post};
    use tokio::net::TcpListener;

    use super::*;

    /// Refuses the first, and keeps what it takes.
    async fn take(
        State((seen, taken)): State<(Arc<AtomicU32>, mpsc::Sender<String>)>,
        body: String,
    ) -> StatusCode {
        if seen.fetch_add(1, Ordering::Relaxed) == 0 {
            return StatusCode::BAD_GATEWAY;
        }
        taken.send(body).await.unwrap();
        StatusCode::NO_CONTENT
    }

    #[tokio::test]
    async fn what_is_refused_comes_again_and_in_order() {
        let (taken, mut bodies) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let state = (Arc::new(AtomicU32::new(0)), taken);
        let router = Router::new().route("/hook", post(take)).with_state(state);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let (send, messages) = mpsc::channel(8);
        tokio::spawn(deliver(messages));
        for body in ["first", "second"] {
            let message = Message {
                url: url.clone(),
                body: body.into(),
            };
            send.send(message).await.unwrap();
        }
        assert_eq!(bodies.recv().await.unwrap(), "first");
        assert_eq!(bodies.recv().await.unwrap(), "second");
    }
}
