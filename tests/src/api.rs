//! The daemon's API over its socket: one connection that is kept, and many at a steady pace.

use std::{
    io::{self, BufRead, BufReader, Error, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// A connection to a daemon.
#[derive(Debug)]
pub struct ApiConn {
    stream: BufReader<UnixStream>,
}

#[derive(Debug)]
pub struct ApiAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl ApiAnswer {
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl ApiConn {
    pub fn open(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request, and waits for its answer.
    pub fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<ApiAnswer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: sluice\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| Error::new(ErrorKind::InvalidData, "not HTTP"))?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(ApiAnswer { status, body })
    }
}

/// Clients that each send requests at a steady pace, whether or not the daemon keeps up.
#[derive(Clone, Debug)]
pub struct ApiLoad {
    pub socket: PathBuf,
    pub clients: u32,
    /// Of all together.
    pub requests_per_second: u32,
    pub seconds: u32,
}

/// How long answers took, from the moment at which the request was due.
#[derive(Clone, Debug)]
pub struct ApiFigures {
    pub answers: usize,
    pub refused: usize,
    pub per_second: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub longest: Duration,
}

impl ApiLoad {
    /// Runs it in a thread of this process. `request` makes the `n`th request of a client: method, path and body.
    ///
    /// # Panics
    /// If the daemon does not answer.
    pub fn run(
        &self,
        request: impl Fn(u32, u32) -> (&'static str, String, String) + Copy + 'static,
    ) -> ApiFigures {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let tasks = tokio::task::LocalSet::new();
        let start = Instant::now();
        let mut all = tasks.block_on(&runtime, async {
            let clients: Vec<_> = (0..self.clients)
                .map(|client| tokio::task::spawn_local(drive(self.clone(), client, request)))
                .collect();
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.await.expect("no client fails"));
            }
            all
        });
        let took = start.elapsed();
        let refused = all.iter().filter(|(_, good)| !good).count();
        all.sort_by_key(|(latency, _)| *latency);
        let at = |percent: usize| all[(all.len() - 1) * percent / 100].0;
        ApiFigures {
            answers: all.len(),
            refused,
            per_second: all.len() as f64 / took.as_secs_f64(),
            p50: at(50),
            p99: at(99),
            longest: at(100),
        }
    }
}

/// One client: for each request, how long it took, and whether it was done.
async fn drive(
    load: ApiLoad,
    client: u32,
    request: impl Fn(u32, u32) -> (&'static str, String, String),
) -> Vec<(Duration, bool)> {
    let stream = tokio::net::UnixStream::connect(&load.socket)
        .await
        .expect("the daemon listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("the daemon speaks HTTP");
    tokio::task::spawn_local(connection);
    let pace = Duration::from_secs(1) * load.clients / load.requests_per_second;
    let number = load.requests_per_second / load.clients * load.seconds;
    // They do not begin together.
    let begin = tokio::time::Instant::now() + pace * client / load.clients;
    let mut answers = Vec::with_capacity(number as usize);
    for n in 0..number {
        let due = begin + pace * n;
        tokio::time::sleep_until(due).await;
        let (method, path, body) = request(client, n);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "sluice")
            .body(Full::new(Bytes::from(body)))
            .expect("a request that can be sent");
        let answer = sender.send_request(request).await.expect("an answer");
        let good = answer.status().is_success();
        answer.into_body().collect().await.expect("its body");
        answers.push((due.elapsed(), good));
    }
    answers
}
