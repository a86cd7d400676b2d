//! Health of the backends: a task per backend that checks it, and one that collects what they find.
mod check;
mod machine;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};

use crate::config::{Check, Health};

pub use check::{CheckError, check};
pub use machine::{Machine, State};

/// A backend to check, at its own address and by this host's ordinary routes.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub pool: String,
    pub address: IpAddr,
    pub health: Health,
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
    /// When `state` was entered.
    pub since: SystemTime,
}

/// Every target by pool and address.
pub type Snapshot = Arc<BTreeMap<(String, IpAddr), Status>>;

/// The tasks that check. They end when this is dropped, or when either channel is closed by the other side.
#[derive(Debug)]
pub struct Checker {
    snapshot: watch::Receiver<Snapshot>,
    task: JoinHandle<()>,
}

/// First checks are made within this time, or within an interval if that is shorter.
const START: Duration = Duration::from_secs(1);
/// Reports that are handled, and published, together.
const BATCH: usize = 1024;

impl Checker {
    /// Starts to check. The targets may change at any time: a target that is in both the old and the new list, alike,
    /// is checked on undisturbed; one whose check changed keeps its state until the new check says otherwise.
    ///
    /// Every change of a state is sent, none is dropped: who does not read `transitions` stops the reports.
    pub fn start(
        targets: watch::Receiver<Arc<Vec<Target>>>,
        transitions: mpsc::Sender<Transition>,
    ) -> Self {
        let (publish, snapshot) = watch::channel(Snapshot::default());
        let (report, reports) = mpsc::channel(BATCH);
        let collector = Collector {
            watched: HashMap::new(),
            next_id: 0,
            report,
            transitions,
            publish,
        };
        Self {
            snapshot,
            task: tokio::spawn(collector.run(targets, reports)),
        }
    }

    /// The latest statuses.
    pub fn snapshot(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.clone()
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Key = (String, IpAddr);

struct Collector {
    watched: HashMap<Key, Watched>,
    next_id: u64,
    report: mpsc::Sender<Report>,
    transitions: mpsc::Sender<Transition>,
    publish: watch::Sender<Snapshot>,
}

struct Watched {
    /// Tells reports of this task from those of its predecessor.
    id: u64,
    health: Health,
    status: Status,
    /// Absent when there is nothing to check.
    _task: Option<Task>,
}

struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a task found, sent when it differs from the last.
struct Report {
    key: Key,
    id: u64,
    state: State,
    error: Option<String>,
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
        loop {
            let result = tokio::select! {
                changed = targets.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = targets.borrow_and_update().clone();
                    self.retarget(&now).await
                }
                _ = reports.recv_many(&mut batch, BATCH) => self.collect(batch.drain(..)).await,
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

    async fn retarget(&mut self, targets: &[Target]) -> Result<(), Closed> {
        let mut old = std::mem::take(&mut self.watched);
        for target in targets {
            let key = (target.pool.clone(), target.address);
            let status = match old.remove(&key) {
                Some(watched) if watched.health == target.health => {
                    self.watched.insert(key, watched);
                    continue;
                }
                Some(watched) => watched.status,
                None => Status::unknown(),
            };
            let id = self.next_id;
            self.next_id += 1;
            let checked = !matches!(target.health.check, Check::None);
            let task = checked.then(|| {
                let report = self.report.clone();
                Task(tokio::spawn(watch_over(
                    target.clone(),
                    id,
                    status.state,
                    report,
                )))
            });
            let watched = Watched {
                id,
                health: target.health.clone(),
                status,
                _task: task,
            };
            self.watched.insert(key.clone(), watched);
            if !checked {
                self.note(Report {
                    key,
                    id,
                    state: State::Up,
                    error: None,
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn collect(&mut self, reports: impl Iterator<Item = Report>) -> Result<(), Closed> {
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
        watched.status.error.clone_from(&report.error);
        if watched.status.state == report.state {
            return Ok(());
        }
        let at = SystemTime::now();
        watched.status.state = report.state;
        watched.status.since = at;
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
        Self {
            state: State::Unknown,
            error: None,
            since: SystemTime::now(),
        }
    }
}

/// Checks one backend for ever.
async fn watch_over(target: Target, id: u64, state: State, report: mpsc::Sender<Report>) {
    let health = &target.health;
    let phase = phase(&target);
    let mut machine = Machine::resume(state, health.rise, health.fall);
    let mut last_error = None;
    let mut ticks = interval_at(
        Instant::now() + health.interval.mul_f64(1.0 + phase),
        health.interval,
    );
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // The first check comes soon, the later ones spread over the whole interval.
    sleep(START.min(health.interval).mul_f64(phase)).await;
    loop {
        let error = check(target.address, health)
            .await
            .err()
            .map(|error| error.to_string());
        let changed = machine.observe(error.is_none()).is_some();
        if changed || error != last_error {
            last_error.clone_from(&error);
            let key = (target.pool.clone(), target.address);
            if report
                .send(Report {
                    key,
                    id,
                    state: machine.state(),
                    error,
                })
                .await
                .is_err()
            {
                return;
            }
        }
        ticks.tick().await;
    }
}

/// Where in the interval a target's checks start, 0 to 1: spread evenly, and the same after a restart.
fn phase(target: &Target) -> f64 {
    let mut hasher = DefaultHasher::new();
    (&target.pool, target.address).hash(&mut hasher);
    let top = u32::try_from(hasher.finish() >> 32).unwrap_or(u32::MAX);
    f64::from(top) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests;
