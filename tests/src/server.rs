//! What a backend runs: HTTP and UDP servers that say who they are.
//!
//! HTTP, keep-alive: `GET /who` answers with the backend's name, `/health` with "ok", `/bytes/N` with N bytes,
//! `/slow/N/MS` with N bytes spread over MS milliseconds; `POST` of anything with the length of what came.
//! UDP: the answer to "x" is "name x".

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    HTTP_PORT, Netns, UDP_PORT,
    http::pattern,
    udp::{reply_from, want_destinations},
};

/// Running servers of one host; dropping this closes every socket of theirs.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    listeners: Vec<TcpListener>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stopped: AtomicBool,
    connections: Mutex<HashMap<u64, TcpStream>>,
    next_connection: AtomicU64,
}

impl Server {
    pub(crate) fn start(netns: &Netns, name: &str) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            stopped: AtomicBool::new(false),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
        });
        let listeners = netns.run(|| {
            [
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            ]
            .map(|any| {
                let listener: TcpListener =
                    socket(Type::STREAM, SocketAddr::new(any, HTTP_PORT)).into();
                let (accepting, accepted) = (
                    listener.try_clone().expect("a socket can be shared"),
                    shared.clone(),
                );
                thread::spawn(move || accepted.accept(&accepting));
                let (udp, answering) = (
                    socket(Type::DGRAM, SocketAddr::new(any, UDP_PORT)).into(),
                    shared.clone(),
                );
                thread::spawn(move || answering.echo(&udp));
                listener
            })
        });
        Self {
            shared,
            listeners: listeners.into(),
        }
    }
}

impl Drop for Server {
    /// As if the process had ended: listening sockets go first, so that no connection is accepted meanwhile.
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for listener in &self.listeners {
            // It wakes the thread that accepts.
            let _ = SockRef::from(listener).shutdown(Shutdown::Both);
        }
        let mut connections = self
            .shared
            .connections
            .lock()
            .expect("no server thread panics");
        for (_, connection) in connections.drain() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for connection in listener.incoming() {
            let Ok(connection) = connection else {
                if self.stopped.load(Ordering::Relaxed) {
                    return;
                }
                continue;
            };
            let server = self.clone();
            thread::spawn(move || server.serve(connection));
        }
    }

    /// A connection ends when its client wants, or when it breaks: that is the client's to notice.
    fn serve(&self, connection: TcpStream) {
        let id = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let Ok(copy) = connection.try_clone() else {
            return;
        };
        self.connections
            .lock()
            .expect("no server thread panics")
            .insert(id, copy);
        if !self.stopped.load(Ordering::Relaxed) {
            let _ = connection.set_nodelay(true);
            let mut reader = BufReader::new(&connection);
            while let Some(request) = Request::read(&mut reader) {
                if self.answer(&request, &connection).is_err() {
                    break;
                }
            }
        }
        let _ = connection.shutdown(Shutdown::Both);
        self.connections
            .lock()
            .expect("no server thread panics")
            .remove(&id);
    }

    fn answer(&self, request: &Request, mut to: &TcpStream) -> std::io::Result<()> {
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let text = match (request.method.as_str(), parts.as_slice()) {
            ("POST", _) => request.body_bytes.to_string(),
            (_, ["who"]) => self.name.clone(),
            (_, ["health"]) => "ok".to_owned(),
            (_, ["bytes", bytes]) => return stream(to, bytes.parse().unwrap_or(0), Duration::ZERO),
            (_, ["slow", bytes, ms]) => {
                let spread = Duration::from_millis(ms.parse().unwrap_or(0));
                return stream(to, bytes.parse().unwrap_or(0), spread);
            }
            _ => return to.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        };
        to.write_all(
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            )
            .as_bytes(),
        )
    }

    fn echo(&self, socket: &UdpSocket) {
        want_destinations(socket).expect("the kernel knows the option");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a time that is not zero");
        let mut buffer = vec![0; 65536];
        while !self.stopped.load(Ordering::Relaxed) {
            let answer = |asked: &[u8]| [self.name.as_bytes(), b" ", asked].concat();
            // A datagram that cannot be answered is the client's to miss.
            let _ = reply_from(socket, &mut buffer, answer);
        }
    }
}

struct Request {
    method: String,
    path: String,
    body_bytes: u64,
}

impl Request {
    /// Nothing when the client is done, or says what is not HTTP.
    fn read(reader: &mut BufReader<&TcpStream>) -> Option<Self> {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut body_bytes = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? <= 2 {
                break;
            }
            if let Some(length) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                body_bytes = length.trim().parse().ok()?;
            }
        }
        let came = std::io::copy(&mut reader.take(body_bytes), &mut std::io::sink()).ok()?;
        (came == body_bytes).then_some(Self {
            method,
            path,
            body_bytes,
        })
    }
}

/// `bytes` of a pattern that the client checks, at once or in steps.
fn stream(mut to: &TcpStream, bytes: usize, spread: Duration) -> std::io::Result<()> {
    const STEP: Duration = Duration::from_millis(50);
    to.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").as_bytes())?;
    let steps = usize::try_from(spread.as_millis() / STEP.as_millis())
        .expect("a short time")
        .max(1);
    let step_bytes = bytes.div_ceil(steps).max(1);
    for start in (0..bytes).step_by(step_bytes) {
        to.write_all(&pattern(start, step_bytes.min(bytes - start)))?;
        if !spread.is_zero() {
            thread::sleep(STEP);
        }
    }
    Ok(())
}

fn socket(kind: Type, address: SocketAddr) -> Socket {
    let socket =
        Socket::new(Domain::for_address(address), kind, None::<Protocol>).expect("a socket");
    socket
        .set_reuse_address(true)
        .expect("a new socket takes options");
    if address.is_ipv6() {
        socket
            .set_only_v6(true)
            .expect("a new socket takes options");
    }
    socket
        .bind(&address.into())
        .unwrap_or_else(|error| panic!("cannot listen at {address}: {error}"));
    if kind == Type::STREAM {
        socket.listen(4096).expect("a bound socket listens");
    }
    socket
}
