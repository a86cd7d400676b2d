//! Tells a URL of decisions: one POST each, again after a wait until it is taken, and in order.

use std::{io, path::Path, sync::Arc, time::Duration};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{supervise::Supervisor, tasks::beside};
use crate::{api, detect::shared::Shared};

/// Tells the URL of the config.
pub(super) struct Webhook {
    url: watch::Sender<Option<String>>,
    messages: mpsc::Sender<Message>,
    shared: Shared,
    watched: JoinHandle<()>,
}

/// What waits is still sent; but nobody starts the task again that sent all of it.
impl Drop for Webhook {
    fn drop(&mut self) {
        self.watched.abort();
    }
}

/// What outlives a task that had to be started again.
struct Waiting {
    messages: mpsc::Receiver<Message>,
    /// One is being sent.
    sends: bool,
}

#[derive(Debug)]
struct Message {
    body: String,
    decided: Instant,
}

impl Webhook {
    /// What waits is still sent when the task that sends it had to be started again.
    pub(super) fn start(shared: Shared, supervisor: &Supervisor) -> Self {
        let (messages, waiting) = mpsc::channel(MOST_WAITING);
        let (url, current_url) = watch::channel(None);
        let waiting = Waiting {
            messages: waiting,
            sends: false,
        };
        let (waiting, told) = (Arc::new(Mutex::new(waiting)), shared.clone());
        let watched = supervisor.run("webhook", move |heart| {
            let (waiting, url, shared) = (waiting.clone(), current_url.clone(), told.clone());
            beside(heart, async move {
                deliver(&mut *waiting.lock().await, url, shared).await;
            })
        });
        Self {
            url,
            messages,
            shared,
            watched,
        }
    }

    /// What waits already goes there too.
    pub(super) fn set_url(&self, url: Option<&String>) {
        self.url.send_if_modified(|known| {
            let differs = known.as_ref() != url;
            *known = url.cloned();
            differs
        });
    }

    pub(super) fn tell(&self, body: impl FnOnce() -> String) {
        if self.url.borrow().is_none() {
            return;
        }
        let message = Message {
            body: body(),
            decided: Instant::now(),
        };
        if self.messages.try_send(message).is_err() {
            tracing::error!("so many decisions wait for the webhook that one is not sent");
            self.shared.lock().webhook_lost += 1;
        }
    }
}

/// Sends what comes, until nobody can send any more. By its age each is given up, so that those behind it are not held up by
/// a time when nobody listened.
async fn deliver(waiting: &mut Waiting, mut url: watch::Receiver<Option<String>>, shared: Shared) {
    if waiting.sends {
        tracing::error!("the webhook failed while it sent a decision, which may be lost");
        shared.lock().webhook_lost += 1;
    }
    while let Some(message) = waiting.messages.recv().await {
        waiting.sends = true;
        let taken = until_taken(&message.body, &mut url);
        if timeout_at(message.decided + GIVE_UP, taken).await.is_err() {
            tracing::error!(
                decision = message.body,
                "the webhook has not taken a decision for ten minutes; it is given up"
            );
            shared.lock().webhook_lost += 1;
        }
        waiting.sends = false;
    }
}

/// Returns when the URL has taken it, or nobody wants that any more.
async fn until_taken(body: &str, url: &mut watch::Receiver<Option<String>>) {
    let mut wait = FIRST_WAIT;
    loop {
        let Some(to) = url.borrow_and_update().clone() else {
            return;
        };
        let Err(error) = post(&to, body).await else {
            return;
        };
        tracing::warn!(url = to, %error, "the webhook does not take a decision");
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = url.changed() => {}
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
const GIVE_UP: Duration = Duration::from_secs(600);
const MOST_WAITING: usize = 512;
const ANSWER_TIME: Duration = Duration::from_secs(10);
const MOST_ANSWER_BYTES: usize = 64 << 10;
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

async fn post(url: &str, body: &str) -> Result<(), String> {
    match timeout(ANSWER_TIME, exchange(url, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ANSWER_TIME.as_secs())),
    }
}

async fn exchange(url: &str, body: &str) -> Result<(), String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let url: Uri = url.parse().map_err(|error| said(&error))?;
    let host = url.host().ok_or("the URL has no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let stream = TcpStream::connect((host, port));
    let stream = stream.await.map_err(|error| said(&error))?;
    if !tls {
        return send(stream, &url, body).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| said(&error))?;
    let stream = TlsConnector::from(client_config()?).connect(name, stream);
    let stream = stream.await.map_err(|error: io::Error| said(&error))?;
    send(stream, &url, body).await
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
    body: &str,
) -> Result<(), String> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let authority = url.authority().map_or("", |authority| authority.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
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
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicU32, Ordering},
    };

    use axum::{Router, extract::State, http::StatusCode, routing::post};
    use tokio::net::TcpListener;

    use super::*;
    use crate::control::supervise::faults::Fault;

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

    /// A URL that refuses the first, and what it takes after that.
    async fn listener() -> (String, mpsc::Receiver<String>) {
        let (taken, bodies) = mpsc::channel(8);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let state = (Arc::new(AtomicU32::new(0)), taken);
        let router = Router::new().route("/hook", post(take)).with_state(state);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, bodies)
    }

    fn webhook(url: &str) -> Webhook {
        webhook_of(url, Supervisor::default())
    }

    fn webhook_of(url: &str, supervisor: Supervisor) -> Webhook {
        let (shared, _) = Shared::new(&BTreeMap::new(), 1);
        let webhook = Webhook::start(shared, &supervisor);
        webhook.set_url(Some(&url.to_owned()));
        webhook
    }

    /// Nobody listens there.
    const NOBODY: &str = "http://127.0.0.1:1/hook";

    #[tokio::test]
    async fn what_is_refused_comes_again_and_in_order() {
        let (url, mut bodies) = listener().await;
        let webhook = webhook(&url);
        for body in ["first", "second"] {
            webhook.tell(|| body.into());
        }
        assert_eq!(bodies.recv().await.unwrap(), "first");
        assert_eq!(bodies.recv().await.unwrap(), "second");
    }

    #[tokio::test]
    async fn what_waits_goes_to_the_url_that_is_set_meanwhile() {
        let (url, mut bodies) = listener().await;
        let webhook = webhook(NOBODY);
        webhook.tell(|| "first".into());
        sleep(Duration::from_millis(100)).await;
        webhook.set_url(Some(&url));
        assert_eq!(bodies.recv().await.unwrap(), "first");
        assert_eq!(webhook.shared.lock().webhook_lost, 0);
    }

    #[tokio::test]
    async fn what_waits_is_sent_though_the_task_fails() {
        let (url, mut bodies) = listener().await;
        let supervisor = Supervisor::hasty();
        let webhook = webhook_of(NOBODY, supervisor.clone());
        for body in ["lost", "lost too", "sent"] {
            webhook.tell(|| body.into());
        }
        sleep(Duration::from_millis(100)).await;
        for (fault, lost) in [(Fault::Panic, 1), (Fault::Hang, 2)] {
            supervisor.spoil("webhook", fault);
            while webhook.shared.lock().webhook_lost < lost {
                sleep(Duration::from_millis(20)).await;
            }
        }
        webhook.set_url(Some(&url));
        assert_eq!(bodies.recv().await.unwrap(), "sent");
        assert_eq!(supervisor.tasks()[0].restarts, 2);
    }

    #[tokio::test]
    async fn the_task_of_a_webhook_that_is_gone_is_not_started_again() {
        let (url, mut bodies) = listener().await;
        let supervisor = Supervisor::hasty();
        let webhook = webhook_of(&url, supervisor.clone());
        webhook.tell(|| "sent still".into());
        sleep(Duration::from_millis(50)).await;
        drop(webhook);
        assert_eq!(bodies.recv().await.unwrap(), "sent still");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(supervisor.tasks()[0].restarts, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_given_up_by_its_age_and_counted() {
        let webhook = webhook(NOBODY);
        for _ in 0..MOST_WAITING + 2 {
            webhook.tell(String::new);
        }
        assert_eq!(webhook.shared.lock().webhook_lost, 2);
        sleep(GIVE_UP - LONGEST_WAIT).await;
        assert_eq!(webhook.shared.lock().webhook_lost, 2);
        sleep(LONGEST_WAIT * 2).await;
        assert_eq!(webhook.shared.lock().webhook_lost, MOST_WAITING as u64 + 2);
    }
}
