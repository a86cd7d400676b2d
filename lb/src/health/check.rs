//! One health check: connect, ask or ping, within a time.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Target, Via,
    http::{self, Stream},
    icmp::Pinger,
    tls,
    tunnel::{Led, Tunnel},
};
use crate::config::{Check, HttpCheck, Statuses};

/// Why a check failed, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("connect: {}", plain(.0))]
    Connect(#[source] io::Error),
    #[error("TLS: {}", tls_error(.0))]
    Tls(#[source] io::Error),
    #[error("send the request: {}", plain(.0))]
    Send(#[source] io::Error),
    #[error("read the answer: {}", plain(.0))]
    Read(#[source] io::Error),
    #[error("the connection was closed before the end of the answer's header")]
    Closed,
    #[error("the answer is not HTTP/1")]
    NotHttp,
    #[error("the answer's header is longer than 64 KiB")]
    HeaderTooLong,
    #[error("status {got}, expected {expected}")]
    Status { got: u16, expected: Statuses },
    #[error("the body does not hold {expected:?}")]
    Body { expected: String },
    #[error("timed out after {}{}", humantime::format_duration(*.after), hint(*.via))]
    Timeout { after: Duration, via: Option<Via> },
    #[error("cannot send echo requests: {}; the daemon needs CAP_NET_RAW", plain(.0))]
    NoPinger(#[source] io::Error),
    #[error(
        "cannot check through the tunnel: {0}; the daemon needs CAP_NET_ADMIN, CAP_NET_RAW and /dev/net/tun, and a network namespace without another one that does this"
    )]
    NoTunnel(#[source] io::Error),
    #[error("cannot see who answers: {}", plain(.0))]
    Blind(#[source] io::Error),
    #[error("{0}")]
    NotMade(String),
}

impl CheckError {
    /// Whether it was this host that could not make the check: then nothing is known of the backend.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        match self {
            Self::NoPinger(_) | Self::NoTunnel(_) | Self::Blind(_) | Self::NotMade(_) => true,
            Self::Connect(error) | Self::Tls(error) | Self::Send(error) | Self::Read(error) => {
                error
                    .raw_os_error()
                    .is_some_and(|code| LACKS.contains(&code))
            }
            Self::Closed
            | Self::NotHttp
            | Self::HeaderTooLong
            | Self::Status { .. }
            | Self::Body { .. }
            | Self::Timeout { .. } => false,
        }
    }
}

/// What no backend causes: too few descriptors, memory, local ports or room in a queue.
const LACKS: [i32; 7] = [
    libc::EMFILE,
    libc::ENFILE,
    libc::ENOMEM,
    libc::ENOBUFS,
    libc::ENOSPC,
    libc::EADDRNOTAVAIL,
    libc::EAGAIN,
];

/// What checks share.
#[derive(Default)]
pub(super) struct Tools {
    tls: tls::Settings,
    /// Opened when a check needs it first; where that fails, the next one tries again.
    pinger: Arc<OnceCell<Pinger>>,
    tunnel: Arc<Tunnel>,
}

impl Tools {
    /// Forgets settings that only the targets before may have needed.
    pub(super) fn refresh(&mut self) {
        self.tls = tls::Settings::default();
    }
}

/// All that is needed to check one backend, again and again.
pub(super) struct Probe {
    address: IpAddr,
    timeout: Duration,
    way: Way,
    kind: Kind,
}

enum Way {
    Direct,
    Tunnel(Arc<Tunnel>, Via),
}

enum Kind {
    Nothing,
    /// Why no check can succeed.
    Unable(String),
    Icmp(Arc<OnceCell<Pinger>>),
    Tcp {
        port: u16,
    },
    Http {
        check: HttpCheck,
        request: Vec<u8>,
        tls: Option<(TlsConnector, ServerName<'static>)>,
    },
}

impl Probe {
    pub(super) fn new(target: &Target, tools: &mut Tools) -> Self {
        let way = match target.via {
            None => Way::Direct,
            Some(via) => Way::Tunnel(tools.tunnel.clone(), via),
        };
        let kind = match &target.health.check {
            Check::None => Kind::Nothing,
            Check::Icmp => Kind::Icmp(tools.pinger.clone()),
            Check::Tcp { port } => Kind::Tcp { port: *port },
            Check::Http(check) => http_kind(check, target, tools).unwrap_or_else(Kind::Unable),
        };
        Self {
            address: target.address,
            timeout: target.health.timeout,
            way,
            kind,
        }
    }

    /// Makes one check, from this host.
    pub(super) async fn check(&self) -> Result<(), CheckError> {
        match timeout(self.timeout, self.attempt()).await {
            Ok(result) => result,
            Err(_elapsed) => Err(CheckError::Timeout {
                after: self.timeout,
                via: match self.way {
                    Way::Direct => None,
                    Way::Tunnel(_, via) => Some(via),
                },
            }),
        }
    }

    async fn attempt(&self) -> Result<(), CheckError> {
        match &self.kind {
            Kind::Nothing => Ok(()),
            Kind::Unable(why) => Err(CheckError::NotMade(why.clone())),
            Kind::Icmp(pinger) => {
                let open = pinger.get_or_try_init(async || Pinger::open()).await;
                self.ping(open.map_err(CheckError::NoPinger)?).await
            }
            Kind::Tcp { port } => self.connect(*port).await.map(drop),
            Kind::Http {
                check,
                request,
                tls,
            } => {
                let (mut stream, _led) = self.connect(check.port).await?;
                match tls {
                    None => ask(check, request, &mut stream).await,
                    Some((connector, name)) => {
                        let mut stream = connector
                            .connect(name.clone(), stream)
                            .await
                            .map_err(CheckError::Tls)?;
                        ask(check, request, &mut stream).await
                    }
                }
            }
        }
    }

    async fn connect(&self, port: u16) -> Result<(TcpStream, Option<Led>), CheckError> {
        let (to, led, socket) = match &self.way {
            Way::Direct => {
                let socket = watched(self.address).map_err(CheckError::Connect)?;
                (self.address, None, socket)
            }
            Way::Tunnel(tunnel, via) => {
                let open = tunnel.open().await.map_err(CheckError::NoTunnel)?;
                let socket = watched(via.vip).map_err(CheckError::Connect)?;
                let led = open
                    .lead(&socket, self.address, *via)
                    .map_err(CheckError::Connect)?;
                (via.vip, Some(led), socket)
            }
        };
        let stream = socket
            .connect(SocketAddr::new(to, port))
            .await
            .map_err(CheckError::Connect)?;
        Ok((stream, led))
    }

    async fn ping(&self, pinger: &Pinger) -> Result<(), CheckError> {
        let ping = match &self.way {
            Way::Direct => {
                let ping = pinger.prepare(self.address);
                ping.send().map_err(CheckError::Send)?;
                ping
            }
            Way::Tunnel(tunnel, via) => {
                let open = tunnel.open().await.map_err(CheckError::NoTunnel)?;
                let ping = pinger.prepare(via.vip);
                open.ping(&ping, self.address, *via)
                    .map_err(CheckError::Send)?;
                ping
            }
        };
        ping.answered().await.map_err(CheckError::Read)
    }
}

fn http_kind(check: &HttpCheck, target: &Target, tools: &mut Tools) -> Result<Kind, String> {
    let asked = target.via.map_or(target.address, |via| via.vip);
    let tls = match tools.tls.get(&check.tls) {
        None => None,
        Some(settings) => {
            let settings: Arc<ClientConfig> = settings?;
            let name = tls::server_name(check.host.as_deref(), asked)?;
            Some((TlsConnector::from(settings), name))
        }
    };
    Ok(Kind::Http {
        check: check.clone(),
        request: http::request(check, SocketAddr::new(asked, check.port)),
        tls,
    })
}

/// A socket for one check of this address. No call blocks.
pub(super) fn socket(to: IpAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(SocketAddr::new(to, 0));
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = delay_ack(Socket::new(domain, kind, Some(Protocol::TCP))?)?;
    // We close first, and thousands of checks a second would leave a heap of sockets in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// The same, for who waits for what comes of it.
fn watched(to: IpAddr) -> io::Result<TcpSocket> {
    Ok(TcpSocket::from_std_stream(socket(to)?.into()))
}

/// Has the answer to the next SYN not acknowledged by itself, but with what follows: a request, or the reset that ends a
/// check by TCP. That is a third of the kernel's work for it, and the server's program never sees it.
pub(super) fn delay_ack(socket: Socket) -> io::Result<Socket> {
    socket.set_tcp_quickack(false)?;
    Ok(socket)
}

/// Sends the request, and reads until the answer is good or bad.
async fn ask(
    check: &HttpCheck,
    request: &[u8],
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<(), CheckError> {
    stream.write_all(request).await.map_err(CheckError::Send)?;
    stream.flush().await.map_err(CheckError::Send)?;
    let mut received = Vec::with_capacity(1024);
    loop {
        let read = stream.read_buf(&mut received).await;
        let state = match read {
            Ok(0) => Stream::Ended,
            // A server that closes TLS without saying so has answered all the same.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Stream::Ended,
            Ok(_) => Stream::Open,
            Err(error) => return Err(CheckError::Read(error)),
        };
        if http::judge(check, &received, state)? {
            return Ok(());
        }
    }
}

/// "connection refused", where the library would say "Connection refused (os error 111)".
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::PermissionDenied
        | io::ErrorKind::BrokenPipe => error.kind().to_string(),
        _ => error.to_string(),
    }
}

fn tls_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            "the connection was closed; is the port one for https?".into()
        }
        _ => plain(error),
    }
}

fn hint(via: Option<Via>) -> String {
    via.map_or_else(String::new, |via| {
        format!(
            "; does the backend take the tunnel off, and answer from {}?",
            via.vip
        )
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::config::{Ca, Health, Tls};

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn health(check: Check) -> Health {
        let (interval, timeout) = (Duration::from_secs(1), Duration::from_millis(500));
        Health {
            check,
            interval,
            fast_interval: interval,
            jitter: Duration::ZERO,
            timeout,
            rise: 1,
            fall: 1,
            via_tunnel: false,
        }
    }

    fn http(port: u16) -> Health {
        health(Check::Http(HttpCheck {
            tls: Tls::Off,
            port,
            path: "/health".into(),
            host: None,
            status: Statuses::new(vec![200..=200]),
            body: None,
        }))
    }

    /// A server that answers one connection with these bytes, and hands back what it was asked.
    async fn server(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(
                    stream.read_buf(&mut request).await.unwrap(),
                    0,
                    "closed in the middle of the request"
                );
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(request).unwrap()
        });
        (port, task)
    }

    async fn check(health: &Health) -> Result<(), CheckError> {
        let target = Target {
            pool: "web".into(),
            address: LOCALHOST,
            health: health.clone(),
            via: None,
        };
        Probe::new(&target, &mut Tools::default()).check().await
    }

    async fn error(health: &Health) -> String {
        check(health).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn tcp_succeeds_when_somebody_listens() {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let health = health(Check::Tcp {
            port: listener.local_addr().unwrap().port(),
        });
        check(&health).await.unwrap();
        drop(listener);
        assert_eq!(error(&health).await, "connect: connection refused");
    }

    #[tokio::test]
    async fn http_compares_the_status() {
        let (port, request) =
            server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello")
                .await;
        check(&http(port)).await.unwrap();
        let expected = format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n");
        let request = request.await.unwrap();
        assert!(request.starts_with(&expected), "{request}");
        assert!(request.contains("\r\nConnection: close\r\n"), "{request}");

        let (port, _) = server(b"HTTP/1.0 503 Service Unavailable\r\n\r\n").await;
        assert_eq!(error(&http(port)).await, "status 503, expected 200");
    }

    #[tokio::test]
    async fn what_is_no_http_is_named() {
        let (port, _) = server(b"220 mail.example ESMTP\r\n").await;
        assert_eq!(error(&http(port)).await, "the answer is not HTTP/1");
        let (port, _) = server(b"HTTP/1.1 2OO OK\r\n\r\n").await;
        assert_eq!(error(&http(port)).await, "the answer is not HTTP/1");
        let (port, _) = server(b"HTTP/1.1 200 OK\r\nContent-").await;
        assert_eq!(
            error(&http(port)).await,
            "the connection was closed before the end of the answer's header"
        );
        let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
        endless.resize(http::LIMIT_BYTES + 4096, b'x');
        let (port, _) = server(endless.leak()).await;
        assert_eq!(
            error(&http(port)).await,
            "the answer's header is longer than 64 KiB"
        );
    }

    #[tokio::test]
    async fn the_timeout_covers_all_of_it() {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        // The kernel accepts, nobody answers.
        let port = listener.local_addr().unwrap().port();
        let health = Health {
            timeout: Duration::from_millis(50),
            ..http(port)
        };
        assert_eq!(error(&health).await, "timed out after 50ms");
    }

    #[tokio::test]
    async fn an_icmp_check_asks_the_host() {
        let result = check(&health(Check::Icmp)).await;
        if let Err(error) = result {
            let text = error.to_string();
            assert!(text.contains("CAP_NET_RAW"), "only without rights: {text}");
        }
    }

    /// A certificate for "www.example.com", and a server that has it and answers every connection with 200.
    async fn tls_server(dir: &std::path::Path) -> (u16, std::path::PathBuf) {
        let made = rcgen::generate_simple_self_signed(["www.example.com".to_owned()]).unwrap();
        let ca_file = dir.join("ca.pem");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                made.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    // Closed without a word of TLS, as many servers do.
                    let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nall good").await;
                    let _sent = stream.flush().await;
                });
            }
        });
        (port, ca_file)
    }

    fn https(port: u16, tls: Tls, host: &str) -> Health {
        let Check::Http(http) = http(port).check else {
            unreachable!()
        };
        health(Check::Http(HttpCheck {
            tls,
            host: Some(host.into()),
            body: Some("good".into()),
            ..http
        }))
    }

    #[tokio::test]
    async fn https_takes_any_certificate_unless_told_whose() {
        let dir = tempfile::tempdir().unwrap();
        let (port, ca_file) = tls_server(dir.path()).await;
        let verified = |host| {
            let ca = Ca::read(&ca_file).unwrap();
            https(port, Tls::Verified(ca), host)
        };
        check(&https(port, Tls::Unverified, "other.example"))
            .await
            .unwrap();
        check(&verified("www.example.com")).await.unwrap();
        let error = error(&verified("other.example")).await;
        assert!(
            error.starts_with("TLS: invalid peer certificate"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_port_without_tls_fails_an_https_check() {
        let (port, _server) = server(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        drop(_server);
        let error = error(&https(port, Tls::Unverified, "www.example.com")).await;
        assert!(
            error.contains("TLS") || error.starts_with("timed out"),
            "{error}"
        );
    }
}
