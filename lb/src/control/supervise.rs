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

#[cfg(test)]
use std::sync::atomic::AtomicBool;

use tokio::{
    task::{JoinError, JoinHandle},
    time::{Instant, Interval, interval, sleep},
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
pub struct Supervisor {
    pace: Pace,
    tasks: Arc<Mutex<BTreeMap<&'static str, TaskStatus>>>,
    #[cfg(test)]
    faults: faults::Faults,
}

/// How soon what is noticed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How often tasks beat, at least.
    pub(super) beat: Duration,
    /// The first wait before a restart, and the longest: longer each time, until a task lasted for a while.
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(1),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
        }
    }
}

/// A task that left out so many beats hangs.
const BEATS: u32 = 10;

/// The heart of a task, which is thought to hang when it does not beat.
#[derive(Clone, Debug)]
pub struct Heart {
    beat: Duration,
    beats: Arc<AtomicU64>,
    #[cfg(test)]
    is_stopped: Arc<AtomicBool>,
}

impl Default for Heart {
    fn default() -> Self {
        Self {
            beat: Pace::default().beat,
            beats: Arc::default(),
            #[cfg(test)]
            is_stopped: Arc::default(),
        }
    }
}

impl Heart {
    pub fn beat(&self) {
        #[cfg(test)]
        if self.is_stopped.load(Ordering::Relaxed) {
            return;
        }
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Beats for as long as this is waited for, beside what blocks nobody.
    pub async fn beats(&self) -> Infallible {
        loop {
            self.beat();
            sleep(self.beat).await;
        }
    }

    /// Ticks as often as it should beat.
    pub fn interval(&self) -> Interval {
        interval(self.beat)
    }
}

/// Waits between restarts.
#[derive(Debug)]
pub(super) struct BackOff {
    pace: Pace,
    next: Duration,
    started: Instant,
}

impl BackOff {
    fn new(pace: Pace) -> Self {
        Self {
            pace,
            next: pace.first,
            started: Instant::now(),
        }
    }

    /// To be called when the task ended: how long to wait before it is started again.
    pub(super) fn after_end(&mut self) -> Duration {
        if self.started.elapsed() >= self.pace.longest {
            self.next = self.pace.first;
        }
        let wait = self.next;
        self.next = (wait * 2).min(self.pace.longest);
        self.started = Instant::now() + wait;
        wait
    }
}

impl Supervisor {
    /// Runs what `start` makes, again and again. Its heart must beat every second or so.
    pub fn run<F>(
        &self,
        name: &'static str,
        start: impl Fn(Heart) -> F + Send + Sync + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = Result<Infallible, String>> + Send + 'static,
    {
        let (supervisor, start) = (self.clone(), Arc::new(start));
        tokio::spawn(async move {
            let mut back_off = supervisor.back_off();
            loop {
                let heart = supervisor.heart();
                let (start, its_heart) = (start.clone(), heart.clone());
                // Made inside, so that its making may fail as well.
                let task = async move { start(its_heart).await };
                let error = match supervisor.watch(name, heart, task).await {
                    Ok(Err(error)) | Err(error) => error,
                };
                let wait = back_off.after_end();
                supervisor.ended(name, &error, wait);
                sleep(wait).await;
            }
        })
    }

    /// For a task that is to be watched.
    pub(super) fn heart(&self) -> Heart {
        Heart {
            beat: self.pace.beat,
            ..Heart::default()
        }
    }

    /// Runs a task until it ends, or is ended because it hangs. An error says why it did not end by itself.
    pub(super) async fn watch<T: Send + 'static>(
        &self,
        name: &'static str,
        heart: Heart,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        self.change(name, |task| {
            task.running = true;
        });
        #[cfg(test)]
        let task = self.faults.put_into(name, heart.clone(), task);
        let mut task = tokio::spawn(task);
        // Counted, and not measured: when the whole process stood still, nobody in it hangs.
        let (mut missed, mut seen) = (0, 0);
        loop {
            tokio::select! {
                ended = &mut task => return ended.map_err(why),
                () = sleep(self.pace.beat) => {
                    let beats = heart.beats.load(Ordering::Relaxed);
                    missed = if beats == seen { missed + 1 } else { 0 };
                    seen = beats;
                    if missed >= BEATS {
                        task.abort();
                        return Err(format!("it hung for {:?}", self.pace.beat * BEATS));
                    }
                }
            }
        }
    }

    /// All tasks, by name.
    pub fn tasks(&self) -> Vec<TaskStatus> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.values().cloned().collect()
    }

    pub(super) fn back_off(&self) -> BackOff {
        BackOff::new(self.pace)
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
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
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
pub(super) mod faults;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const BEAT: Duration = Duration::from_secs(1);
    const HANGS: Duration = Duration::from_secs(10);

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
        sleep(BEAT * 5).await;
        assert_eq!(starts.load(Ordering::Relaxed), 2);
        let error = only(&supervisor).error.unwrap();
        assert!(error.starts_with("it hung for"), "{error}");
        sleep(HANGS * 10).await;
        assert_eq!(starts.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lasts_is_started_again_soon() {
        let mut back_off = BackOff::new(Pace::default());
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
