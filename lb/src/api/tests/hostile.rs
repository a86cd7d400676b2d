//! Clients that mean harm, or do it: too many, too slow, too much, or nonsense. Others are answered all the while.

use std::{convert::Infallible, time::Instant};

use futures_util::{future::select_all, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    remote::{Mutual, Remote, request},
    *,
};

/// The answer to a request whose body never comes.
pub(super) async fn unfinished<S>(stream: S, request: request::Builder) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let request = request.header(header::HOST, "sluice").body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let headers = response.headers().clone();
    Answer {
        status: response.status().as_u16(),
        kind: headers[header::CONTENT_TYPE].to_str().unwrap().to_owned(),
        etag: String::new(),
        headers,
        body: response.into_body().collect().await.unwrap().to_bytes(),
    }
}

fn caps() -> Caps {
    Caps {
        connections: 32,
        header_time: Duration::from_secs(1),
        idle_time: Duration::from_secs(1),
        stall_time: Duration::from_secs(1),
    }
}

async fn start() -> Remote {
    Remote::start(Mutual::No, caps(), BODY_TIME).await
}

async fn assert_answers(remote: &Remote) {
    let start = Instant::now();
    let answer = remote
        .send(&remote.read, Method::GET, "/v1/status", "")
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(remote.world.get("/v1/status").await.status, 200);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

/// Everything until the daemon closes the connection.
async fn rest(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // A reset ends it too.
    let _end = timeout(Duration::from_secs(8), stream.read_to_end(&mut text))
        .await
        .expect("the daemon closes the connection");
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_field_that_is_given_twice_is_refused_and_named() {
    let world = World::ready().await;
    let limit = r#"{ "prefix": "192.0.2.0/24", "pps": 1 }"#;
    let twice = r#"{ "prefix": "192.0.2.0/24", "pps": 1, "pps": 1000 }"#;
    let list = format!("[{limit}, {twice}]");
    let rule = r#"{ "match": { "ttl": 1, "ttl": 2 }, "action": "drop" }"#;
    let rules = format!("[{rule}]");
    let set = r#"{ "name": "a", "name": "b", "prefixes": [] }"#;
    for (method, path, body, field) in [
        (Method::POST, "/v1/limits", twice, "pps"),
        (Method::POST, "/v1/limits", &list, "[1].pps"),
        (Method::PUT, "/v1/limits/1", twice, "pps"),
        (Method::POST, "/v1/rules", rule, "match.ttl"),
        (Method::POST, "/v1/rules", &rules, "[0].match.ttl"),
        (Method::POST, "/v1/rules/preview", rule, "match.ttl"),
        (Method::PUT, "/v1/rules/1", rule, "match.ttl"),
        (Method::POST, "/v1/deny", set, "name"),
        (Method::PUT, "/v1/deny/1", set, "name"),
        (Method::POST, "/v1/allow", set, "name"),
        (Method::PUT, "/v1/allow/1", set, "name"),
    ] {
        let answer = world.send(method.clone(), path, body.to_owned()).await;
        assert_problem(&answer, 400, "is given twice");
        assert_eq!(answer.json()["field"], field, "{method} {path}");
    }
    for list in ["/v1/limits", "/v1/rules", "/v1/deny", "/v1/allow"] {
        assert_eq!(world.get(list).await.json()["items"], json!([]), "{list}");
    }
}

#[tokio::test]
async fn who_is_slow_with_a_request_or_silent_is_closed() {
    let remote = start().await;
    // Neither a handshake, nor a request, nor its end.
    let no_handshake = TcpStream::connect(remote.address).await.unwrap();
    let silent = remote.connect().await;
    let mut slow = remote.connect().await;
    slow.write_all(b"GET /v1/status HTTP/1.1\r\n")
        .await
        .unwrap();
    let start = Instant::now();
    let dripping = async {
        while slow.write_all(b"a: b\r\n").await.is_ok() && start.elapsed() < Duration::from_secs(8)
        {
            sleep(Duration::from_millis(100)).await;
        }
        start.elapsed()
    };
    let (_, _, lasted, ()) = tokio::join!(
        rest(no_handshake),
        rest(silent),
        dripping,
        assert_answers(&remote)
    );
    assert!(lasted < Duration::from_secs(6), "{lasted:?}");
}

#[tokio::test]
async fn idle_connections_make_room_for_others() {
    let remote = start().await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(remote.address).await.unwrap());
    }
    assert_answers(&remote).await;
    let mut open = 0;
    for stream in &mut idle {
        let mut byte = [0];
        // Those that are closed say so at once.
        if timeout(Duration::from_millis(5), stream.read(&mut byte))
            .await
            .is_err()
        {
            open += 1;
        }
    }
    assert!(open <= caps().connections, "{open} are open");
}

#[tokio::test]
async fn a_body_of_a_gibibyte_is_refused_at_once() {
    let remote = start().await;
    let head = format!(
        "POST /v1/limits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        remote.operate,
        1 << 30
    );
    // Its head alone is enough.
    let mut stream = remote.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    let read = timeout(Duration::from_secs(2), stream.read_exact(&mut answer)).await;
    read.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");

    // Who sends it all the same, with or without its length, does not get far.
    for length in [true, false] {
        let head = if length {
            head.clone()
        } else {
            head.replace(
                &format!("Content-Length: {}", 1 << 30),
                "Transfer-Encoding: chunked",
            )
        };
        let (reader, mut writer) = tokio::io::split(remote.connect().await);
        let send = async {
            writer.write_all(head.as_bytes()).await?;
            let chunk = [b"10000\r\n".as_slice(), &[b' '; 1 << 16], b"\r\n"].concat();
            for _ in 0..1 << 14 {
                writer.write_all(&chunk).await?;
            }
            std::io::Result::Ok(())
        };
        let (sent, answer) = tokio::join!(send, rest(reader));
        assert!(sent.is_err(), "all was taken");
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    assert_answers(&remote).await;
}

#[tokio::test]
async fn garbage_is_refused_and_others_are_answered() {
    let remote = start().await;
    let noise: Vec<u8> = (0..20_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    let huge = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1_000));
    for (bytes, status) in [
        (noise.as_slice(), ""),
        (b"\0\0\0\0\r\n\r\n", "HTTP/1.1 400"),
        (b"GET /v1/status\r\n\r\n", "HTTP/1.1 400"),
        (b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        (huge.as_bytes(), "HTTP/1.1 431"),
        (many.as_bytes(), "HTTP/1.1 431"),
    ] {
        let local = remote.world.connect().await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(20)]);
        let answer = poke(local, bytes).await;
        assert!(answer.starts_with(status), "{shown}: {answer}");
        let answer = poke(remote.connect().await, bytes).await;
        assert!(answer.starts_with(status), "{shown}: {answer}");
        let not_tls = TcpStream::connect(remote.address).await.unwrap();
        assert!(!poke(not_tls, bytes).await.contains("HTTP"));
    }
    assert_answers(&remote).await;
}

/// What is answered to some bytes.
async fn poke(stream: impl AsyncRead + AsyncWrite, bytes: &[u8]) -> String {
    let (reader, mut writer) = tokio::io::split(stream);
    // The daemon may close before it has all.
    let send = async {
        let _refused = writer.write_all(bytes).await;
    };
    tokio::join!(send, rest(reader)).1
}

#[tokio::test]
async fn who_does_not_read_its_answers_is_closed() {
    // So long that only the time for a stall can end it.
    let caps = Caps {
        header_time: Duration::from_secs(60),
        idle_time: Duration::from_secs(60),
        ..caps()
    };
    let remote = Remote::start(Mutual::No, caps, BODY_TIME).await;
    let mut stream = remote.connect().await;
    let start = Instant::now();
    let asking = async {
        let request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        while stream.write_all(&request).await.is_ok() {}
        start.elapsed()
    };
    let (asked, ()) = tokio::join!(
        timeout(Duration::from_secs(10), asking),
        assert_answers(&remote)
    );
    asked.expect("the daemon closes the connection");
}

#[tokio::test]
async fn errors_are_problems_whoever_finds_them() {
    let world = World::ready().await;
    let answer = world.send(Method::PATCH, "/v1/limits", "").await;
    assert_problem(&answer, 405, "does not take that method");
    assert!(answer.headers.contains_key(header::ALLOW));
    assert_problem(&world.get("/v1/limits/%ff").await, 400, "UTF-8");
    let typed = Request::builder()
        .method(Method::POST)
        .uri("/v1/limits")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    let answer = exchange(world.connect().await, typed, LIMIT).await;
    assert_problem(&answer, 415, "--json");
    assert_eq!(answer.json()["field"], "Content-Type");
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "application/merge-patch+json",
    ] {
        let typed = Request::builder()
            .method(Method::POST)
            .uri("/v1/limits")
            .header(header::CONTENT_TYPE, kind);
        let answer = exchange(world.connect().await, typed, LIMIT).await;
        assert!(answer.status < 300, "{kind}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_third_large_body_is_refused_while_two_are_read() {
    let remote = Remote::ready().await;
    let endless = async |path: &str| {
        let request = request(&remote.operate, Method::POST, path);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        unfinished(remote.connect().await, request).await
    };
    let ((answer, _, others), more) = {
        let three = ["/v1/limits", "/v1/deny", "/v1/allow"].map(|path| Box::pin(endless(path)));
        let first = select_all(three).await;
        let mut more = Vec::new();
        for path in ["/v1/limits", "/v1/deny", "/v1/allow"] {
            more.push(endless(path).await);
        }
        (first, more)
    };
    for answer in more.iter().chain([&answer]) {
        assert_problem(answer, 503, "other large requests");
    }
    let small = remote.send(&remote.operate, Method::POST, "/v1/limits", LIMIT);
    assert_eq!(small.await.status, 201);
    drop(others);
}

#[tokio::test]
async fn conditions_that_contradict_each_other_are_refused() {
    let world = World::ready().await;
    for (method, path) in [
        (Method::POST, "/v1/limits"),
        (Method::PUT, "/v1/limits/1"),
        (Method::DELETE, "/v1/limits/1"),
        (Method::POST, "/v1/rules"),
        (Method::PUT, "/v1/deny/1"),
    ] {
        let both = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::IF_MATCH, "*")
            .header(header::IF_NONE_MATCH, "*");
        let answer = exchange(world.connect().await, both, LIMIT).await;
        assert_problem(&answer, 400, "not both");
        assert_eq!(answer.json()["field"], "If-None-Match", "{path}");
    }
}
