//! Ends the daemon when its main thread is stuck, which nothing on that thread can notice, supervision neither. Whoever
//! started it starts it again; what is forwarded meanwhile does not notice.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{task::JoinHandle, time::interval};

/// So many beats that are left out, one after another, mean that it is stuck.
const BEATS: u32 = 30;
const BEAT: Duration = Duration::from_secs(1);

/// The thread of the runtime is watched until this is dropped.
pub(super) struct Watched(JoinHandle<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches the thread of the runtime in which this is called.
pub(super) fn watch() -> io::Result<Watched> {
    // Nothing is logged: the thread may be stuck because nobody reads the log.
    watch_at(BEAT, || std::process::abort())
}

fn watch_at(beat: Duration, end: impl FnOnce() + Send + 'static) -> io::Result<Watched> {
    let beats = Arc::new(AtomicU64::new(0));
    let seen = Arc::downgrade(&beats);
    let heart = tokio::spawn(async move {
        let mut ticks = interval(beat);
        loop {
            ticks.tick().await;
            beats.fetch_add(1, Ordering::Relaxed);
        }
    });
    thread::Builder::new()
        .name("stuck?".into())
        .spawn(move || {
            let mut last = 0;
            let mut left_out = 0;
            // Counted by its own sleeps: both threads of a process that was stopped go on together.
            while left_out < BEATS {
                thread::sleep(beat);
                let Some(now) = seen.upgrade().map(|beats| beats.load(Ordering::Relaxed)) else {
                    return;
                };
                left_out = if now == last { left_out + 1 } else { 0 };
                last = now;
            }
            end();
        })?;
    Ok(Watched(heart))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const FAST: Duration = Duration::from_millis(5);

    #[tokio::test]
    async fn a_thread_that_is_stuck_ends_the_daemon() {
        let (ended, end) = mpsc::channel();
        let _watched = watch_at(FAST, move || ended.send(()).unwrap()).unwrap();
        tokio::time::sleep(FAST * 10).await;
        assert!(end.try_recv().is_err(), "it waits, and is not stuck");
        end.recv_timeout(FAST * BEATS * 100)
            .expect("this blocks it");
    }

    #[tokio::test]
    async fn what_is_not_watched_any_more_may_be_as_slow_as_it_likes() {
        let (ended, end) = mpsc::channel::<()>();
        drop(watch_at(FAST, move || ended.send(()).unwrap()).unwrap());
        tokio::time::sleep(FAST).await;
        assert_eq!(
            end.recv_timeout(FAST * BEATS * 100),
            Err(mpsc::RecvTimeoutError::Disconnected)
        );
    }
}
