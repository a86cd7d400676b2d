//! Tasks that shall never end: one that panics, ends or hangs is said, shown in the status, and started again.

use std::{
    any::Any,
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, sleep},
};

/// How a task is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStatus {
    pub name: &'static str,
    /// `false`: it waits to be started again.
    pub running: bool,
    pub restarts: u64,
    /// Why it was started again the last time.
    pub error: Option<String>,
    /// When it was started the last time, or ended.
    pub since: SystemTime,
}

/// Starts tasks again, and knows how all of them are.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Arc<Mutex<BTreeMap<&'static str, TaskStatus>>>);

/// The heart of a task, which is thought to hang when it does not beat.
#[derive(Clone, Debug)]
pub struct Heart {
    born: Instant,
    beat_ms: Arc<AtomicU64>,
}

impl Heart {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            beat_ms: Arc::default(),
        }
    }

    pub fn beat(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(now, Ordering::Relaxed);
    }

    /// Beats for as long as this is waited for, beside what blocks nobody.
    pub async fn beats(&self) -> Infallible {
        loop {
            self.beat();
            sleep(BEAT).await;
        }
    }

    fn silent(&self) -> Duration {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        self.born.elapsed().saturating_sub(beat)
    }
}

/// How often tasks beat, at least.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// A task whose heart is silent for so long hangs.
const HANGS: Duration = Duration::from_secs(10);

/// Waits between restarts: longer each time, until a task lasted for a while.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
    started: Instant,
}

impl BackOff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);

    pub(super) fn new() -> Self {
        Self {
            next: Self::FIRST,
            started: Instant::now(),
        }
    }

    /// To be called when the task ended: how long to wait before it is started again.
    pub(super) fn after_end(&mut self) -> Duration {
        if self.started.elapsed() >= Self::LONGEST {
            self.next = Self::FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(Self::LONGEST);
        self.started = Instant::now() + wait;
        wait
    }
}

impl Supervisor {
    /// Runs what `start` makes, again and again. Its heart must beat every second or so.
    pub fn run<F>(
        &self,
        name: &'static str,
        start: impl Fn(Heart) -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = Result<Infallible, String>> + Send + 'static,
    {
        let supervisor = self.clone();
        tokio::spawn(async move {
            let mut back_off = BackOff::new();
            loop {
                supervisor.started(name);
                let heart = Heart::new();
                let error = watch(tokio::spawn(start(heart.clone())), &heart).await;
                let wait = back_off.after_end();
                supervisor.ended(name, &error, wait);
                sleep(wait).await;
            }
        })
    }

    /// All tasks, by name.
    pub fn tasks(&self) -> Vec<TaskStatus> {
        let tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.values().cloned().collect()
    }

    pub(super) fn started(&self, name: &'static str) {
        self.change(name, |task| {
            task.running = true;
        });
    }

    pub(super) fn ended(&self, name: &'static str, error: &str, wait: Duration) {
        tracing::error!(
            task = name,
            error,
            "a task ended; it is started again in {} s",
            wait.as_secs()
        );
        self.change(name, |task| {
            task.running = false;
            task.restarts += 1;
            task.error = Some(error.to_owned());
        });
    }

    fn change(&self, name: &'static str, change: impl FnOnce(&mut TaskStatus)) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let task = tasks.entry(name).or_insert_with(|| TaskStatus {
            name,
            running: false,
            restarts: 0,
            error: None,
            since: SystemTime::now(),
        });
        change(task);
        task.since = SystemTime::now();
    }
}

/// Waits until a task ends, or ends it because it hangs. Says why.
async fn watch(mut task: JoinHandle<Result<Infallible, String>>, heart: &Heart) -> String {
    loop {
        tokio::select! {
            ended = &mut task => return match ended {
                Ok(Err(error)) => error,
                Err(error) => why(error),
            },
            () = sleep(BEAT) => {
                if heart.silent() >= HANGS {
                    task.abort();
                    return format!("it hung for {} s", heart.silent().as_secs());
                }
            }
        }
    }
}

/// What a task that did not end by itself says.
pub(super) fn why(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("it panicked: {}", message(&*panic)),
        Err(error) => error.to_string(),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a word".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    async fn beats_forever(heart: Heart) -> Result<Infallible, String> {
        Ok(heart.beats().await)
    }

    fn only(supervisor: &Supervisor) -> TaskStatus {
        supervisor.tasks().pop().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_ever_later() {
        let supervisor = Supervisor::default();
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = starts.clone();
        supervisor.run("unlucky", move |heart| {
            let n = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                assert!(n >= 3, "number {n}");
                beats_forever(heart).await
            }
        });
        sleep(Duration::from_millis(900)).await;
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        assert!(!only(&supervisor).running);
        assert_eq!(
            only(&supervisor).error.as_deref(),
            Some("it panicked: number 0")
        );
        sleep(Duration::from_secs(2)).await;
        assert_eq!(starts.load(Ordering::Relaxed), 2, "after 1 s");
        sleep(Duration::from_secs(5)).await;
        assert_eq!(starts.load(Ordering::Relaxed), 4, "after 2 s and 4 s");
        let task = only(&supervisor);
        assert!(task.running);
        assert_eq!(task.restarts, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_hangs_is_started_again() {
        let supervisor = Supervisor::default();
        let starts = Arc::new(AtomicUsize::new(0));
        let counted = starts.clone();
        supervisor.run("stuck", move |heart| {
            let n = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                if n == 0 {
                    heart.beat();
                    std::future::pending::<()>().await;
                }
                beats_forever(heart).await
            }
        });
        sleep(HANGS - BEAT).await;
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        sleep(BEAT * 4).await;
        assert_eq!(starts.load(Ordering::Relaxed), 2);
        let error = only(&supervisor).error.unwrap();
        assert!(error.starts_with("it hung for"), "{error}");
        sleep(HANGS * 10).await;
        assert_eq!(starts.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lasts_is_started_again_soon() {
        let mut back_off = BackOff::new();
        assert_eq!(back_off.after_end(), Duration::from_secs(1));
        assert_eq!(back_off.after_end(), Duration::from_secs(2));
        for _ in 0..10 {
            back_off.after_end();
        }
        assert_eq!(back_off.after_end(), Duration::from_secs(60));
        sleep(Duration::from_secs(121)).await;
        assert_eq!(back_off.after_end(), Duration::from_secs(1));
    }
}
