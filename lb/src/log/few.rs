//! Says the same message a few times, then counts: whoever can have us log something must not fill the disk, or hide
//! other messages. Backends that flap, clients with bad requests and packets can.

use std::{
    collections::HashMap,
    fmt,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// A layer that keeps from the others what is said too often. Debug and trace messages are not counted: who asks for
/// them wants all.
#[derive(Debug)]
pub(super) struct Few;

/// So many messages of one place in the code are said in a window.
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

impl<S: Subscriber> Layer<S> for Few {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        if is_exempt(event.metadata()) {
            return true;
        }
        lock().admit(event.metadata().callsite(), Instant::now(), || {
            message(event)
        })
    }
}

/// Says what was left out, soon after it was. Never ends.
pub async fn tell_what_is_left_out() {
    loop {
        tokio::time::sleep(WINDOW / 4).await;
        // Not while the lock is held: what is said here is looked at there.
        let left_out = lock().take_ended(Instant::now());
        for LeftOut { message, count } in left_out {
            tracing::warn!(
                left_out = count,
                like = message,
                "messages were left out: they came too fast; `sluice status` and the metrics know how things are now"
            );
        }
    }
}

fn is_exempt(metadata: &Metadata<'_>) -> bool {
    *metadata.level() > Level::INFO || metadata.target() == module_path!()
}

static PLACES: LazyLock<Mutex<Places>> = LazyLock::new(Mutex::default);

fn lock() -> MutexGuard<'static, Places> {
    PLACES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was said lately, by the place in the code.
#[derive(Debug, Default)]
struct Places(HashMap<Identifier, Window>);

#[derive(Debug)]
struct Window {
    began: Instant,
    said: u32,
    left_out: Option<LeftOut>,
}

/// What was not said in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
struct LeftOut {
    /// The first of them.
    message: String,
    count: u64,
}

impl Places {
    fn admit(&mut self, place: Identifier, now: Instant, message: impl FnOnce() -> String) -> bool {
        let window = self.0.entry(place).or_insert(Window {
            began: now,
            said: 0,
            left_out: None,
        });
        if now.duration_since(window.began) >= WINDOW {
            (window.began, window.said) = (now, 0);
        }
        if window.said < MOST {
            window.said += 1;
            return true;
        }
        let left_out = window.left_out.get_or_insert_with(|| LeftOut {
            message: message(),
            count: 0,
        });
        left_out.count += 1;
        false
    }

    /// What was left out in windows that are over.
    fn take_ended(&mut self, now: Instant) -> Vec<LeftOut> {
        let ended = self
            .0
            .values_mut()
            .filter(|window| now.duration_since(window.began) >= WINDOW);
        ended.filter_map(|window| window.left_out.take()).collect()
    }
}

/// The text of an event, without its fields.
fn message(event: &Event<'_>) -> String {
    struct Text(String);
    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "message" {
                self.0 = format!("{value:?}");
            }
        }
    }
    let mut text = Text(String::new());
    event.record(&mut text);
    text.0
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, mpsc},
    };

    use tracing_subscriber::{fmt::MakeWriter, layer::SubscriberExt};

    use super::*;

    #[test]
    fn a_flood_is_said_a_few_times_and_counted_and_another_place_is_heard() {
        let log = Log::default();
        let subscriber = tracing_subscriber::registry()
            .with(tracing_subscriber::fmt::layer().with_writer(log.clone()))
            .with(Few);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::warn!(number, "the flood");
            }
            tracing::warn!("something else");
            for _ in 0..30 {
                tracing::debug!("asked for");
            }
        });
        let text = log.text();
        assert_eq!(text.matches("the flood").count(), MOST as usize);
        assert_eq!(text.matches("something else").count(), 1);
        assert_eq!(text.matches("asked for").count(), 30);

        assert_eq!(lock().take_ended(Instant::now()), []);
        let later = Instant::now() + WINDOW;
        let left_out = lock().take_ended(later);
        let flood = left_out.iter().find(|left| left.message == "the flood");
        assert_eq!(flood.unwrap().count, 980);
        assert_eq!(lock().take_ended(later), []);
    }

    #[test]
    fn each_window_lets_some_through() {
        let mut places = Places::default();
        let (place, start) = (place(), Instant::now());
        let mut admit = |after| {
            let admitted =
                (0..50).filter(|_| places.admit(place.clone(), start + after, String::new));
            admitted.count()
        };
        assert_eq!(admit(Duration::ZERO), MOST as usize);
        assert_eq!(admit(WINDOW / 2), 0);
        assert_eq!(admit(WINDOW), MOST as usize);
        let left_out = places.take_ended(start + WINDOW * 2);
        // What one window left out and was not told yet is told with the next.
        assert_eq!(left_out[0].count, 30 + 50 + 30);
    }

    fn place() -> Identifier {
        let (sender, receiver) = mpsc::channel();
        struct Tell(mpsc::Sender<Identifier>);
        impl<S: Subscriber> Layer<S> for Tell {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                self.0.send(event.metadata().callsite()).unwrap();
            }
        }
        let subscriber = tracing_subscriber::registry().with(Tell(sender));
        tracing::subscriber::with_default(subscriber, || tracing::info!("here"));
        receiver.recv().unwrap()
    }

    #[derive(Clone, Debug, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Log {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Log {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }
}
