//! `GET /v1/events`: what changes, as server-sent events, with a past that a client which was away can catch up with.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response, sse},
};
use futures_util::stream::{self, Stream};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        broadcast::{self, error::RecvError},
        watch,
    },
    time::sleep,
};

use super::{
    Api, Problem,
    access::Client,
    model::{EventItem, Told},
    render::rfc3339,
};
use crate::control::{self, Heart};

/// The last events, and those to come.
#[derive(Clone, Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Of this daemon: numbers of another mean nothing here.
    start: String,
    past: Mutex<Past>,
    news: broadcast::Sender<Arc<Numbered>>,
    readers: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Past {
    events: VecDeque<Arc<Numbered>>,
    last: u64,
}

#[derive(Debug)]
struct Numbered {
    number: u64,
    told: Told,
}

/// Events that are kept for clients that come back.
const KEPT: usize = 1024;
/// A reader that is so many events behind is dropped.
const BEHIND: usize = 256;
/// Readers at a time.
const READERS: usize = 64;
/// A sign of life when nothing happens for so long.
const QUIET: Duration = Duration::from_secs(15);

impl EventLog {
    /// An empty log. [`EventLog::follow`] fills it.
    pub fn new() -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH);
        let start = start.unwrap_or_default().as_micros();
        Self {
            shared: Arc::new(Shared {
                start: format!("{start:x}"),
                past: Mutex::default(),
                news: broadcast::Sender::new(BEHIND),
                readers: Arc::new(Semaphore::new(READERS)),
            }),
        }
    }

    /// Writes down what the control loop tells, until it ends.
    pub async fn follow(self, mut events: broadcast::Receiver<control::Event>, heart: Heart) {
        let mut beat = heart.interval();
        loop {
            heart.beat();
            let event = tokio::select! {
                event = events.recv() => event,
                _ = beat.tick() => continue,
            };
            match event {
                Ok(event) => self.add(EventItem::from(event)),
                Err(RecvError::Lagged(events)) => self.add(EventItem::Lost {
                    events: Some(events),
                }),
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub(super) fn add(&self, what: EventItem) {
        let mut past = self.past();
        past.last += 1;
        let event = Arc::new(Numbered {
            number: past.last,
            told: Told {
                at: rfc3339(SystemTime::now()),
                what,
            },
        });
        if past.events.len() == KEPT {
            past.events.pop_front();
        }
        past.events.push_back(event.clone());
        // Under the lock, so that a reader which begins now sees each event once. That nobody reads is no error.
        _ = self.shared.news.send(event);
    }

    /// What came after the event of this id as far as it is kept, and what comes from now on.
    fn read_from(&self, last_id: Option<&str>) -> (Vec<Arc<Numbered>>, Missed, News) {
        let past = self.past();
        let news = self.shared.news.subscribe();
        let Some(id) = last_id else {
            return (Vec::new(), Missed::Nothing, news);
        };
        let oldest = past
            .events
            .front()
            .map_or(past.last + 1, |event| event.number);
        let number = id
            .split_once('-')
            .filter(|(start, _)| *start == self.shared.start)
            .and_then(|(_, number)| number.parse::<u64>().ok())
            .filter(|number| *number <= past.last);
        let missed = match number {
            Some(number) if number + 1 >= oldest => Missed::Nothing,
            Some(number) => Missed::Some(Some(oldest - 1 - number)),
            // Of an earlier daemon, or of none: nobody knows what came between.
            None => Missed::Some(None),
        };
        let after = number.unwrap_or_default();
        let replayed = past.events.iter().filter(|event| event.number > after);
        (replayed.cloned().collect(), missed, news)
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.shared.start)
    }

    fn past(&self) -> MutexGuard<'_, Past> {
        // Nothing that panics is done under it.
        let past = self.shared.past.lock();
        past.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for EventLog {
    fn default() -> Self {
        Self::new()
    }
}

type News = broadcast::Receiver<Arc<Numbered>>;

/// Events that a client asks for, and that are not kept any more.
enum Missed {
    Nothing,
    /// How many, if that can be told.
    Some(Option<u64>),
}

/// What changes, as it happens
///
/// A stream of server-sent events that does not end by itself. The `event` is the word that `data` has as `event`;
/// the `id` can be given back as `Last-Event-ID` to get what was missed meanwhile: the last 1,024 events are kept.
/// `lost` says that more was missed than is kept, and `closed` is the last word of the daemon: why it ends the stream.
#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen")),
    responses(
        (status = 200, description = "The events; each `data` is one of these in JSON", body = Told, content_type = "text/event-stream"),
        (status = 503, description = "64 others read events already"),
    )
)]
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Extension(client): Extension<Client>,
    headers: HeaderMap,
) -> Response {
    let log = api.events.clone();
    let Ok(place) = log.shared.readers.clone().try_acquire_owned() else {
        let why = format!("{READERS} others read events already; close one of them");
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    let last_id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let (replayed, missed, news) = log.read_from(last_id);
    let mut waiting: VecDeque<sse::Event> = VecDeque::new();
    // The head goes out at once, and with it the time after which to come back.
    waiting.push_back(sse::Event::default().retry(RETRY).comment("sluice"));
    if let Missed::Some(events) = missed {
        waiting.push_back(last_word(EventItem::Lost { events }));
    }
    waiting.extend(replayed.iter().map(|event| log.render(event)));
    let reader = Reader {
        tokens: api.access.replaced(),
        log,
        client,
        news,
        waiting,
        is_done: false,
        _place: place,
    };
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        // After the last word there is nothing more to say.
        (header::CONNECTION, "close"),
    ];
    (headers, sse::Sse::new(reader.stream())).into_response()
}

const RETRY: Duration = Duration::from_secs(2);

/// One client that reads.
struct Reader {
    log: EventLog,
    client: Client,
    news: News,
    waiting: VecDeque<sse::Event>,
    tokens: watch::Receiver<()>,
    is_done: bool,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn stream(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        stream::unfold(self, async |mut reader| {
            let event = reader.next().await?;
            Some((Ok(event), reader))
        })
    }

    async fn next(&mut self) -> Option<sse::Event> {
        if self.is_done {
            return None;
        }
        if let Some(reason) = self.client.ended() {
            return self.close(reason);
        }
        if let Some(event) = self.waiting.pop_front() {
            return Some(event);
        }
        let news = tokio::select! {
            news = self.news.recv() => Some(news),
            () = sleep(self.client.remaining().map_or(QUIET, |left| left.min(QUIET))) => None,
            _ = self.tokens.changed() => None,
        };
        if let Some(reason) = self.client.ended() {
            return self.close(reason);
        }
        match news {
            None => Some(sse::Event::default().comment("")),
            Some(Ok(event)) => Some(self.log.render(&event)),
            Some(Err(RecvError::Lagged(_))) => self.close(
                "too slow: more events came than this reader took; come back with Last-Event-ID",
            ),
            Some(Err(RecvError::Closed)) => self.close("the daemon ends"),
        }
    }

    fn close(&mut self, reason: &str) -> Option<sse::Event> {
        self.is_done = true;
        Some(last_word(EventItem::Closed {
            reason: reason.into(),
        }))
    }
}

impl EventLog {
    fn render(&self, event: &Numbered) -> sse::Event {
        render(&event.told).id(self.id(event.number))
    }
}

/// What is told to one reader only, and so has no id.
fn last_word(what: EventItem) -> sse::Event {
    render(&Told {
        at: rfc3339(SystemTime::now()),
        what,
    })
}

fn render(told: &Told) -> sse::Event {
    let data = serde_json::to_string(told).unwrap_or_default();
    sse::Event::default().event(told.what.word()).data(data)
}
