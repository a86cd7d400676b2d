//! Events as a reader gets them.

use std::collections::BTreeMap;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};

use super::{super::model::EventItem, remote::Remote, *};

/// A reader of events over any stream.
struct Reader<S> {
    lines: BufReader<S>,
}

/// One event: its fields by name.
type Fields = BTreeMap<String, String>;

impl<S: AsyncRead + AsyncWrite + Unpin> Reader<S> {
    /// Asks, and waits for the head of the answer.
    async fn new(mut stream: S, headers: &str) -> Self {
        let head = format!("GET /v1/events HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut reader = Self {
            lines: BufReader::new(stream),
        };
        assert_eq!(reader.line().await.unwrap(), "HTTP/1.1 200 OK");
        let mut head = String::new();
        // The first chunk tells when to come back.
        while !head.contains("retry: ") {
            head += &reader.line().await.unwrap();
        }
        assert!(head.contains("text/event-stream"), "{head}");
        reader
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(20), self.lines.read_line(&mut line));
        let read = read.await.expect("something comes").ok()?;
        (read > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Fields> {
        let mut fields = Fields::new();
        loop {
            let line = self.line().await?;
            if let Some((name, value)) = line.split_once(": ") {
                fields.insert(name.to_owned(), value.to_owned());
            } else if line.is_empty() && fields.contains_key("data") {
                return Some(fields);
            }
        }
    }

    /// The next event's word and data.
    async fn told(&mut self) -> (String, Value) {
        let fields = self.next().await.expect("an event");
        let data: Value = serde_json::from_str(&fields["data"]).unwrap();
        assert_eq!(data["event"], fields["event"]);
        assert!(data["at"].is_string());
        (fields["event"].clone(), data)
    }
}

/// Runs something while nobody else can read events.
pub(super) async fn with_all_places_taken<T>(remote: &Remote, then: impl Future<Output = T>) -> T {
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(Reader::new(remote.world.connect().await, "").await);
    }
    then.await
}

/// Tells the status of the head, through TLS.
pub(super) async fn note_head(remote: &Remote, note: impl FnOnce(u16)) {
    let token = format!("Authorization: Bearer {}\r\n", remote.read);
    // The places of readers that just left are free in a moment.
    tokio::time::sleep(Duration::from_millis(300)).await;
    Reader::new(remote.connect().await, &token).await;
    note(200);
}

#[tokio::test]
async fn every_change_is_told() {
    let world = World::ready().await;
    let mut reader = Reader::new(world.connect().await, "").await;
    let mut told = async |word: &str| {
        let (event, data) = reader.told().await;
        assert_eq!(event, word, "{data}");
        data
    };
    world.send(Method::POST, "/v1/limits", LIMIT).await;
    let data = told("limit_set").await;
    assert_eq!(
        (&data["limit"]["id"], &data["limit"]["prefix"]),
        (&json!(1), &json!("198.51.100.0/24"))
    );
    world.send(Method::DELETE, "/v1/limits/1", "").await;
    assert_eq!(told("limit_removed").await["id"], 1);
    let short = LIMIT.replace("600", "1");
    world.send(Method::POST, "/v1/limits", short).await;
    told("limit_set").await;
    told("limit_expired").await;

    let drain = "/v1/drains/backend/web/10.0.0.1";
    world.send(Method::PUT, drain, "").await;
    let data = told("drain_begun").await;
    assert_eq!(
        (&data["kind"], &data["name"]),
        (&json!("backend"), &json!("web/10.0.0.1"))
    );
    world.send(Method::DELETE, drain, "").await;
    assert_eq!(told("drain_ended").await["kind"], "backend");

    world.health([State::Up, State::Down]);
    let data = told("health").await;
    assert_eq!(
        (&data["before"], &data["state"], &data["error"]),
        (&json!("up"), &json!("down"), &json!("refused"))
    );

    world.send(Method::POST, "/v1/reload", "").await;
    told("reload_done").await;
    std::fs::write(world.config_file(), "[").unwrap();
    world.send(Method::POST, "/v1/reload", "").await;
    let data = told("reload_refused").await;
    assert!(data["error"].as_str().unwrap().contains("not valid TOML"));
}

#[tokio::test]
async fn a_reader_that_comes_back_gets_what_it_missed() {
    let world = World::ready().await;
    let tell = |id| world.api.events.add(EventItem::LimitRemoved { id });
    let mut reader = Reader::new(world.connect().await, "").await;
    tell(1);
    let first = reader.next().await.unwrap()["id"].clone();
    drop(reader);
    for id in 2..=5 {
        tell(id);
    }
    let header = |id: &str| format!("Last-Event-ID: {id}\r\n");
    let mut reader = Reader::new(world.connect().await, &header(&first)).await;
    for id in 2..=5 {
        assert_eq!(reader.told().await.1["id"], id);
    }
    tell(6);
    assert_eq!(reader.told().await.1["id"], 6);

    // Of an earlier daemon: nobody knows what was missed, and all that is there is told.
    let mut reader = Reader::new(world.connect().await, &header("5f-3")).await;
    let (word, data) = reader.told().await;
    assert_eq!((word.as_str(), &data["events"]), ("lost", &json!(null)));
    while reader.told().await.1["id"] != 6 {}

    // More was told than is kept.
    for id in 7..=2_000 {
        tell(id);
    }
    let mut reader = Reader::new(world.connect().await, &header(&first)).await;
    let (word, data) = reader.told().await;
    assert_eq!(
        (word.as_str(), &data["events"]),
        ("lost", &json!(2_000 - 1_024 - 1))
    );
    assert_eq!(reader.told().await.1["id"], 2_000 - 1_024 + 1);
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_dropped_with_a_last_word() {
    let world = World::ready().await;
    let mut reader = Reader::new(world.connect().await, "").await;
    // Without a pause, so that it cannot read meanwhile.
    for id in 0..20_000 {
        world.api.events.add(EventItem::LimitRemoved { id });
    }
    let mut last = None;
    while let Some(event) = reader.next().await {
        last = Some(event);
    }
    let last = last.unwrap();
    assert_eq!(last["event"], "closed");
    assert!(last["data"].contains("too slow"), "{last:?}");
    assert_eq!(world.get("/v1/status").await.status, 200);
}

#[tokio::test]
async fn a_token_that_ends_ends_the_stream() {
    let remote = Remote::ready().await;
    let tokens = remote.world.dir.path().join("tokens");
    let end = SystemTime::now() + Duration::from_secs(2);
    let short = super::super::create(&tokens, super::super::Role::Read, Some(end), "").unwrap();
    remote.world.api.reload().await.unwrap();
    let header = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let mut expiring = Reader::new(remote.connect().await, &header(&short)).await;
    let mut revoked = Reader::new(remote.connect().await, &header(&remote.read)).await;
    let (word, data) = expiring.told().await;
    assert_eq!(
        (word.as_str(), &data["reason"]),
        ("closed", &json!("the token has expired"))
    );
    assert!(expiring.next().await.is_none());

    std::fs::write(&tokens, "").unwrap();
    remote.world.api.reload().await.unwrap();
    let (mut word, mut data) = revoked.told().await;
    if word == "reload_done" {
        (word, data) = revoked.told().await;
    }
    assert_eq!(
        (word.as_str(), &data["reason"]),
        ("closed", &json!("the token was taken back"))
    );
    let mut rest = Vec::new();
    revoked.lines.read_to_end(&mut rest).await.unwrap();
}
