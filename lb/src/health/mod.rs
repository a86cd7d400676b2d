//! Health of the backends: a thread of its own that checks them all, and tells what it finds.
//!
//! Checks by TCP are made together; of the others each has a task there. One core is enough for thousands, and neither the
//! API nor the control loop waits for them.
mod check;
mod course;
mod http;
mod icmp;
mod knock;
mod machine;
mod schedule;
mod tls;
mod tunnel;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::sleep_until,
};

use crate::config::{Check, Health};

pub use check::CheckError;
pub use machine::{Machine, Pace, State};
pub use schedule::Schedule;
pub use tunnel::{Carrier, Via};

use check::{Probe, Tools};
use course::Course;
use knock::Knocks;

/// A backend to check.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub pool: String,
    pub address: IpAddr,
    pub health: Health,
    /// `None`: at its own address, by this host's ordinary routes.
    pub via: Option<Via>,
}

impl Target {
    fn key(&self) -> Key {
        (self.pool.clone(), self.address)
    }
}

/// A backend whose state changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub pool: String,
    pub address: IpAddr,
    pub state: State,
    /// Of the check that brought it down.
    pub error: Option<String>,
    pub at: SystemTime,
}

/// What is known of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub state: State,
    /// Of the last check, if that failed; a backend that is up may have one.
    pub error: Option<String>,
    /// This host could not make the last check, and `error` says why: all else is what was known before.
    pub is_unmade: bool,
    /// When `state` was entered.
    pub since: SystemTime,
    /// When it last came up after it was down.
    pub returned: Option<Instant>,
    /// When it last went down after it was up.
    pub lost: Option<Instant>,
}

/// Every target by pool and address.
pub type Snapshot = Arc<BTreeMap<(String, IpAddr), Status>>;

/// The thread that checks. It ends when this is dropped, or when either channel is closed by the other side.
#[derive(Debug)]
pub struct Checker {
    snapshot: watch::Receiver<Snapshot>,
    load: Arc<Load>,
    _ends: oneshot::Sender<()>,
}

/// How the checks keep up.
#[derive(Debug, Default)]
pub struct Load {
    /// How often the thread's loop came round.
    turns: AtomicU64,
    checks: AtomicU64,
    latest_ns: AtomicU64,
}

impl Load {
    /// Grows all the time, unless the thread hangs.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Checks that have begun.
    pub fn checks(&self) -> u64 {
        self.checks.load(Ordering::Relaxed)
    }

    /// How much later than it was due the latest check began, since this was asked last.
    pub fn take_lateness(&self) -> Duration {
        Duration::from_nanos(self.latest_ns.swap(0, Ordering::Relaxed))
    }

    fn begins(&self, due: Instant) {
        let late = due.elapsed().as_nanos();
        self.checks.fetch_add(1, Ordering::Relaxed);
        self.latest_ns
            .fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Reports that are handled, and published, together.
const BATCH: usize = 1024;
/// How often the loop comes round at least.
const TURN: Duration = Duration::from_millis(500);
/// How often it is looked whether the checks keep up.
const LOOK: Duration = Duration::from_secs(10);
/// Checks that begin later than this are said.
const LATE: Duration = Duration::from_millis(250);

impl Checker {
    /// Starts to check. The targets may change at any time: a target that is in both the old and the new list, alike,
    /// is checked on undisturbed; one whose check changed keeps its state until the new check says otherwise.
    /// `known` is what an earlier checker knew: its states hold until a check says otherwise.
    ///
    /// Every change of a state is sent, none is dropped: who does not read `transitions` stops the reports.
    ///
    /// Sockets belong to the network namespace of the calling thread.
    pub fn start(
        targets: watch::Receiver<Arc<Vec<Target>>>,
        transitions: mpsc::Sender<Transition>,
        known: Snapshot,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (publish, snapshot) = watch::channel(known.clone());
        let (report, reports) = mpsc::channel(BATCH);
        let (ends, ended) = oneshot::channel::<()>();
        let load = Arc::new(Load::default());
        let collector = Collector {
            watched: HashMap::new(),
            known,
            tools: Tools::default(),
            knocks: Knocks::new(load.clone()),
            next_id: 0,
            report,
            epoch: Instant::now(),
            broken: Arc::default(),
            load: load.clone(),
            transitions,
            publish,
        };
        thread::Builder::new()
            .name("health".into())
            .spawn(move || {
                runtime.block_on(async {
                    // As a task: what the runtime itself waits for, it wakes by a system call.
                    let collecting = tokio::spawn(collector.run(targets, reports));
                    tokio::select! {
                        _ = ended => {}
                        _ = collecting => {}
                    }
                });
                // Checks that are under way are not waited for.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            snapshot,
            load,
            _ends: ends,
        })
    }

    /// The latest statuses.
    pub fn snapshot(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }

    pub fn load(&self) -> &Load {
        &self.load
    }
}

type Key = (String, IpAddr);

struct Collector {
    watched: HashMap<Key, Watched>,
    /// Of targets that are not watched yet.
    known: Snapshot,
    tools: Tools,
    knocks: Knocks,
    next_id: u64,
    report: mpsc::Sender<Report>,
    /// Since when the times are counted at which checks begin together.
    epoch: Instant,
    /// A task panicked: better all are started again than one backend is never checked.
    broken: Arc<Notify>,
    load: Arc<Load>,
    transitions: mpsc::Sender<Transition>,
    publish: watch::Sender<Snapshot>,
}

struct Watched {
    /// Tells reports of this task from those of its predecessor.
    id: u64,
    target: Target,
    status: Status,
    /// Absent when it is checked together with others, or not at all.
    _task: Option<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a check found, told when it differs from the last.
struct Report {
    key: Key,
    id: u64,
    state: State,
    error: Option<String>,
    is_unmade: bool,
}

/// The other side of `transitions` is gone.
struct Closed;

impl Collector {
    async fn run(
        mut self,
        mut targets: watch::Receiver<Arc<Vec<Target>>>,
        mut reports: mpsc::Receiver<Report>,
    ) {
        targets.mark_changed();
        let mut batch = Vec::with_capacity(BATCH);
        let mut look = tokio::time::interval(LOOK);
        let mut turn = tokio::time::interval(TURN);
        let broken = self.broken.clone();
        loop {
            self.load.turns.fetch_add(1, Ordering::Relaxed);
            let result = tokio::select! {
                _ = turn.tick() => continue,
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = targets.borrow_and_update().clone();
                    self.retarget(&now).await
                }
                _ = reports.recv_many(&mut batch, BATCH) => self.collect(batch.drain(..)).await,
                reports = self.knocks.next() => self.collect(reports).await,
                _ = look.tick() => {
                    self.say_if_late();
                    continue;
                }
                () = broken.notified() => return,
            };
            let all = self
                .watched
                .iter()
                .map(|(key, watched)| (key.clone(), watched.status.clone()));
            self.publish.send_replace(Arc::new(all.collect()));
            if let Err(Closed) = result {
                return;
            }
        }
    }

    fn say_if_late(&self) {
        let late = self.load.take_lateness();
        if late >= LATE {
            tracing::warn!(
                late = %humantime::format_duration(Duration::from_millis(u64::try_from(late.as_millis()).unwrap_or(u64::MAX))),
                backends = self.watched.len(),
                "health checks begin late: this machine has too little time for so many; make `interval` longer"
            );
        }
    }

    async fn retarget(&mut self, targets: &[Target]) -> Result<(), Closed> {
        let mut old = std::mem::take(&mut self.watched);
        self.tools.refresh();
        for target in targets {
            let key = target.key();
            let status = match old.remove(&key) {
                Some(watched) if watched.target == *target => {
                    self.watched.insert(key, watched);
                    continue;
                }
                Some(watched) => {
                    self.knocks.remove(watched.id);
                    watched.status
                }
                None => self
                    .known
                    .get(&key)
                    .cloned()
                    .unwrap_or_else(Status::unknown),
            };
            let id = self.next_id;
            self.next_id += 1;
            let task = self.begin(target, id, status.state);
            let watched = Watched {
                id,
                target: target.clone(),
                status,
                _task: task,
            };
            self.watched.insert(key.clone(), watched);
            if target.health.check == Check::None {
                self.note(Report {
                    key,
                    id,
                    state: State::Up,
                    error: None,
                    is_unmade: false,
                })
                .await?;
            }
        }
        for gone in old.into_values() {
            self.knocks.remove(gone.id);
        }
        self.known = Snapshot::default();
        Ok(())
    }

    /// Begins to check a backend; in a task of its own, unless it is one of many that are checked together.
    fn begin(&mut self, target: &Target, id: u64, state: State) -> Option<Task> {
        let course = Course::new(target, id, state, self.epoch);
        match (&target.health.check, target.via) {
            (Check::None, _) => None,
            (Check::Tcp { port }, None) => {
                let at = SocketAddr::new(target.address, *port);
                self.knocks.add(course, at, target.health.timeout);
                None
            }
            _ => Some(self.spawn(course, target)),
        }
    }

    fn spawn(&mut self, course: Course, target: &Target) -> Task {
        let probe = Probe::new(target, &mut self.tools);
        let watch = watch_over(course, probe, self.load.clone(), self.report.clone());
        let broken = self.broken.clone();
        Task(tokio::spawn(async move {
            if AssertUnwindSafe(watch).catch_unwind().await.is_err() {
                broken.notify_one();
            }
        }))
    }

    async fn collect(&mut self, reports: impl IntoIterator<Item = Report>) -> Result<(), Closed> {
        for report in reports {
            self.note(report).await?;
        }
        Ok(())
    }

    async fn note(&mut self, report: Report) -> Result<(), Closed> {
        let Some(watched) = self
            .watched
            .get_mut(&report.key)
            .filter(|watched| watched.id == report.id)
        else {
            return Ok(());
        };
        if report.is_unmade && !watched.status.is_unmade {
            let (pool, address) = &report.key;
            let error = report.error.as_deref().unwrap_or_default();
            tracing::warn!(%pool, backend = %address, error, "a backend is not checked; it stays what it was");
        }
        watched.status.is_unmade = report.is_unmade;
        watched.status.error.clone_from(&report.error);
        if watched.status.state == report.state {
            return Ok(());
        }
        let at = SystemTime::now();
        watched.status.enter(report.state, at, Instant::now());
        let (pool, address) = report.key;
        let transition = Transition {
            pool,
            address,
            state: report.state,
            error: report.error,
            at,
        };
        self.transitions
            .send(transition)
            .await
            .map_err(|_returned| Closed)
    }
}

impl Status {
    fn unknown() -> Self {
        Self::new(State::Unknown, SystemTime::now())
    }

    /// Of a backend that was never in another state.
    #[must_use]
    pub fn new(state: State, since: SystemTime) -> Self {
        Self {
            state,
            error: None,
            is_unmade: false,
            since,
            returned: None,
            lost: None,
        }
    }

    fn enter(&mut self, state: State, at: SystemTime, now: Instant) {
        match (self.state, state) {
            (State::Down, State::Up) => self.returned = Some(now),
            (State::Up, State::Down) => self.lost = Some(now),
            _ => {}
        }
        self.state = state;
        self.since = at;
    }
}

/// Checks one backend for ever.
async fn watch_over(
    mut course: Course,
    probe: Probe,
    load: Arc<Load>,
    reports: mpsc::Sender<Report>,
) {
    loop {
        let due = course.next();
        sleep_until(due.into()).await;
        load.begins(due);
        if let Some(report) = course.ended(probe.check().await.err())
            && reports.send(report).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
