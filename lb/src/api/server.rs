//! Accepts connections, on the Unix socket and by TCP, and answers what comes over them.

use std::{
    convert::Infallible,
    future::Future,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    access::{Access, Peer},
    connections::{Caps, Connection, Connections, Open},
    guard::MAX_BODY_BYTES,
    stream::Watched,
};
use crate::control::Heart;

/// Answers on the Unix socket, for ever.
pub async fn serve_local(
    listener: &UnixListener,
    router: Router,
    caps: Caps,
    heart: &Heart,
) -> Infallible {
    let accept = Accept {
        name: "socket",
        heart,
        connections: Connections::new(caps),
    };
    let begin = |stream: UnixStream, _, open: Open| {
        open.connection.idle();
        let router = router.clone();
        tokio::spawn(open.while_open(move |connection| async move {
            answer(stream, connection, caps, router, Peer::Local).await;
        }));
    };
    accept.all(listener, begin).await
}

/// Answers clients by TCP, for ever; over TLS if `access` says so at the moment when they connect.
pub async fn serve_remote(
    listener: &TcpListener,
    router: Router,
    access: Arc<Access>,
    caps: Caps,
    heart: &Heart,
) -> Infallible {
    let accept = Accept {
        name: "listen",
        heart,
        connections: Connections::new(caps),
    };
    let begin = |stream: TcpStream, peer, open: Open| {
        let (router, tls) = (router.clone(), access.tls());
        // Answers are small, and written whole.
        _ = stream.set_nodelay(true);
        tokio::spawn(open.while_open(move |connection| async move {
            let Some(tls) = tls else {
                return answer(stream, connection, caps, router, peer).await;
            };
            match TlsAcceptor::from(tls.0.clone()).accept(stream).await {
                Ok(stream) => answer(stream, connection, caps, router, peer).await,
                Err(error) => tracing::debug!(?peer, %error, "no TLS with this client"),
            }
        }));
    };
    accept.all(listener, begin).await
}

/// Takes connections in.
struct Accept<'a> {
    /// The key of the config that names the listener.
    name: &'static str,
    heart: &'a Heart,
    connections: Arc<Connections>,
}

trait Listener {
    type Stream;

    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _unnamed) = self.accept().await?;
        Ok((stream, Peer::Local))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer::Remote(address)))
    }
}

impl Accept<'_> {
    async fn all<L: Listener>(
        &self,
        listener: &L,
        begin: impl Fn(L::Stream, Peer, Open),
    ) -> Infallible {
        let mut sweep = interval(SWEEP);
        let mut complaint = Complaint::default();
        loop {
            self.heart.beat();
            let accepted = tokio::select! {
                accepted = listener.next() => accepted,
                _ = sweep.tick() => {
                    self.connections.close_overdue(Instant::now());
                    continue;
                }
            };
            match accepted {
                Ok((stream, peer)) => match self.connections.open(Instant::now()) {
                    Some(open) => begin(stream, peer, open),
                    None => {
                        complaint.say(
                            self.name,
                            "every connection is busy; one more was closed",
                            "`ss -xtp` shows which clients keep theirs",
                        );
                    }
                },
                // The client may be gone already, which is nobody's fault.
                Err(error) if is_of_client(&error) => {}
                Err(error) => {
                    complaint.say(self.name, &error.to_string(), "raise LimitNOFILE of the service if it has too few descriptors, or see what takes this machine's memory");
                    sleep(NO_ROOM).await;
                }
            }
        }
    }
}

/// How often overdue connections are looked for, and the heart beats at least.
const SWEEP: Duration = Duration::from_secs(1);
/// Before the next try, when the kernel has no room for one more connection.
const NO_ROOM: Duration = Duration::from_millis(100);
/// Between two lines in the log about the same listener.
const COMPLAIN: Duration = Duration::from_secs(10);
/// How long what a client still sends is read and thrown away, so that it gets to see its answer.
const LINGER: Duration = Duration::from_secs(2);
/// Largest head of a request.
const HEAD_BYTES: usize = 64 << 10;
const HEADERS: usize = 64;

fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Says what goes wrong, but not for every packet of an attack.
#[derive(Default)]
struct Complaint(Option<Instant>);

impl Complaint {
    fn say(&mut self, listener: &str, error: &str, advice: &str) {
        if self.0.is_none_or(|last| last.elapsed() >= COMPLAIN) {
            self.0 = Some(Instant::now());
            tracing::warn!(
                listener,
                error,
                "the API cannot take a connection; {advice}"
            );
        }
    }
}

impl Open {
    /// Runs a conversation until it ends, or must end.
    async fn while_open<F: Future<Output = ()>>(
        self,
        conversation: impl FnOnce(Arc<Connection>) -> F,
    ) {
        tokio::select! {
            () = self.connection.closed() => {}
            () = conversation(self.connection.clone()) => {}
        }
    }
}

/// Answers all requests of one connection.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    connection: Arc<Connection>,
    caps: Caps,
    router: Router,
    peer: Peer,
) {
    connection.idle();
    let stream = Watched::new(stream, connection.clone(), caps.stall_time);
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let answering = connection.answering();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let response = routes.call(request);
        async move {
            let response: Response<Body> = response.await?;
            // The connection is busy until the last byte of the answer is made.
            let held = |body: Body| {
                body.map_frame(move |frame| {
                    let _busy = &answering;
                    frame
                })
            };
            Ok::<_, Infallible>(response.map(held))
        }
    });
    let served = http1::Builder::new()
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service)
        .without_shutdown()
        .await;
    match served {
        Ok(parts) => linger(parts.io.into_inner()).await,
        Err(error) => tracing::debug!(?peer, %error, "a connection broke"),
    }
}

/// Ends a connection so that the last answer arrives, also at a client that is still sending.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    // However this goes, the connection ends.
    _ = timeout(LINGER, async {
        stream.shutdown().await?;
        let mut rest = stream.take(MAX_BODY_BYTES as u64);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn a_long_answer_is_whole_however_slowly_it_is_read() {
        const LENGTH: usize = 1 << 16;
        let idle_time = Duration::from_millis(100);
        let caps = Caps {
            idle_time,
            ..Caps::default()
        };
        let connections = Connections::new(caps);
        let open = connections.open(Instant::now()).unwrap();
        let router = Router::new().route("/", get(|| async { "x".repeat(LENGTH) }));
        let (mut client, stream) = tokio::io::duplex(2048);
        tokio::spawn(open.while_open(move |connection| async move {
            answer(stream, connection, caps, router, Peer::Local).await;
        }));
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        let (start, mut read) = (Instant::now(), 0);
        while read < LENGTH {
            sleep(Duration::from_millis(10)).await;
            connections.close_overdue(Instant::now());
            let bytes = client.read(&mut [0; 2048]).await.unwrap();
            assert!(bytes > 0, "closed after {read} bytes");
            read += bytes;
        }
        assert!(start.elapsed() > idle_time * 2);

        sleep(idle_time).await;
        connections.close_overdue(Instant::now());
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.len() < 1024, "the end of it, and then it was idle");
    }
}
