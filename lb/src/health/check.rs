//! One health check: connect, or ask by HTTP, within a time.
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::config::{Check, Health};

/// Why a check failed, for an operator.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("connect: {}", plain(.0))]
    Connect(#[source] io::Error),
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
    Status { got: u16, expected: u16 },
    #[error("timed out after {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}

/// Makes one check of a backend, from this host to the backend's own address.
pub async fn check(address: IpAddr, health: &Health) -> Result<(), CheckError> {
    let attempt = async {
        match &health.check {
            Check::None => Ok(()),
            Check::Tcp { port } => connect(SocketAddr::new(address, *port)).await.map(drop),
            Check::Http {
                port,
                path,
                host,
                status,
            } => {
                let peer = SocketAddr::new(address, *port);
                let host = host.clone().unwrap_or_else(|| host_of(peer));
                let got = get(peer, path, &host).await?;
                if got == *status {
                    Ok(())
                } else {
                    Err(CheckError::Status {
                        got,
                        expected: *status,
                    })
                }
            }
        }
    };
    match timeout(health.timeout, attempt).await {
        Ok(result) => result,
        Err(_elapsed) => Err(CheckError::Timeout(health.timeout)),
    }
}

const HEADER_LIMIT_BYTES: usize = 64 * 1024;

async fn connect(peer: SocketAddr) -> Result<TcpStream, CheckError> {
    let stream = TcpStream::connect(peer)
        .await
        .map_err(CheckError::Connect)?;
    // We close first, and thousands of checks a second would leave a heap of sockets in TIME_WAIT.
    stream.set_zero_linger().map_err(CheckError::Connect)?;
    Ok(stream)
}

/// Asks for `path` and returns the answer's status.
async fn get(peer: SocketAddr, path: &str, host: &str) -> Result<u16, CheckError> {
    let mut stream = connect(peer).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream
        .write_all(request.as_bytes())
        .await
        .map_err(CheckError::Send)?;
    let mut header = Vec::with_capacity(1024);
    loop {
        if let Some(status) = final_status(&header)? {
            return Ok(status);
        }
        if header.len() >= HEADER_LIMIT_BYTES {
            return Err(CheckError::HeaderTooLong);
        }
        if stream
            .read_buf(&mut header)
            .await
            .map_err(CheckError::Read)?
            == 0
        {
            return Err(CheckError::Closed);
        }
    }
}

/// The status once the whole header is there. Interim answers (100 to 199, but not 101) are skipped.
fn final_status(mut received: &[u8]) -> Result<Option<u16>, CheckError> {
    const PREFIX: &[u8] = b"HTTP/1.";
    loop {
        let known = received.len().min(PREFIX.len());
        if received[..known] != PREFIX[..known] {
            return Err(CheckError::NotHttp);
        }
        let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return Ok(None);
        };
        // "HTTP/1.1 200 OK": the status is at 9 to 12.
        let status = received[..end]
            .get(9..12)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let status: u16 = status
            .and_then(|digits| digits.parse().ok())
            .ok_or(CheckError::NotHttp)?;
        if !(100..200).contains(&status) || status == 101 {
            return Ok(Some(status));
        }
        received = &received[end + 4..];
    }
}

/// What a client would put into `Host` for this address.
fn host_of(peer: SocketAddr) -> String {
    match (peer.port(), peer.ip()) {
        (80, IpAddr::V4(address)) => address.to_string(),
        (80, IpAddr::V6(address)) => format!("[{address}]"),
        _ => peer.to_string(),
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
        | io::ErrorKind::BrokenPipe => error.kind().to_string(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn health(check: Check) -> Health {
        let (interval, timeout) = (Duration::from_secs(1), Duration::from_millis(500));
        Health {
            check,
            interval,
            timeout,
            rise: 1,
            fall: 1,
        }
    }

    fn http(port: u16) -> Health {
        health(Check::Http {
            port,
            path: "/health".into(),
            host: None,
            status: 200,
        })
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

    async fn error(health: &Health) -> String {
        check(LOCALHOST, health).await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn tcp_succeeds_when_somebody_listens() {
        let listener = TcpListener::bind((LOCALHOST, 0)).await.unwrap();
        let health = health(Check::Tcp {
            port: listener.local_addr().unwrap().port(),
        });
        check(LOCALHOST, &health).await.unwrap();
        drop(listener);
        assert_eq!(error(&health).await, "connect: connection refused");
    }

    #[tokio::test]
    async fn http_compares_the_status() {
        let (port, request) =
            server(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\nhello")
                .await;
        check(LOCALHOST, &http(port)).await.unwrap();
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
        endless.resize(HEADER_LIMIT_BYTES + 4096, b'x');
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

    #[test]
    fn the_host_header_is_written_as_a_client_would() {
        assert_eq!(host_of("192.0.2.1:80".parse().unwrap()), "192.0.2.1");
        assert_eq!(
            host_of("[2001:db8::1]:80".parse().unwrap()),
            "[2001:db8::1]"
        );
        assert_eq!(
            host_of("[2001:db8::1]:8080".parse().unwrap()),
            "[2001:db8::1]:8080"
        );
    }
}
