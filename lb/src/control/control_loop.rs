//! The task that owns the state: it takes events one by one, and makes the data plane hold what follows from them.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, watch},
    task::yield_now,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

use crate::{
    config::{self, Config},
    control::{
        Command, Dataplane, Event, Figures, Handle, HealthChange, Heart, Refused, Reload, Sources,
        Supervisor, View,
        changes::Changes,
        config_file::ConfigFile,
        events::Events,
        limits::{Limits, now_ms},
        rules::Rules,
        scrape::LimitSeries,
        sets::Sets,
    },
    dataplane::{BackendKey, Desired},
    desired::{self, Inputs, Tightened},
    detect::shared::Shared,
    drains::Drains,
    health::{self, State},
    limits::LimitBook,
    net::{Reason, Resolution},
    rules::RuleBook,
    sources::SourceBook,
    store::{Contents, Writer},
};

/// Everything that the loop starts from.
pub struct Start<P> {
    pub plane: P,
    pub config: Config,
    pub config_file: PathBuf,
    /// What was set at run time.
    pub contents: Contents,
    pub writer: Writer,
    /// Whether the plane holds what an earlier daemon put there.
    pub adopted: bool,
    pub warnings: Vec<String>,
}

/// The loop's state.
pub struct Control<P> {
    pub(super) plane: P,
    pub(super) config: Arc<Config>,
    pub(super) drains: Drains,
    /// Those of backends that had no live flows left when [`Control::tell_drained`] looked.
    pub(super) drained: Drains,
    /// Those that have ended here, but not on the disk, for nothing is left of what they were of.
    pub(super) orphans: Drains,
    pub(super) limits: Limits,
    pub(super) limit_series: LimitSeries,
    pub(super) rules: Rules,
    pub(super) rule_series: LimitSeries,
    pub(super) sets: Sets,
    /// What detection wants beside policies.
    pub(super) tightened: Arc<ArcSwap<Tightened>>,
    pub(super) changes: Changes,
    /// Why nothing can be written to the disk.
    pub(super) trouble: watch::Receiver<Option<String>>,
    /// A write takes very long.
    waits_for_disk: bool,
    pub(super) sources: Sources,
    commands: mpsc::Receiver<Command>,
    pub(super) view: Arc<ArcSwap<View>>,
    pub(super) events: Events,
    /// What was told at the start; it stays true.
    start_warnings: Vec<String>,
    /// Why the plane does not hold what is desired.
    pub(super) apply_error: Option<String>,
    pub(super) settled: bool,
    /// The VIPs that the plane holds, as far as that is known.
    applied_vips: Option<Vec<String>>,
    /// When what changed lately is to be applied.
    gathered: Option<tokio::time::Instant>,
    /// Backends that take new flows.
    pub(super) held: BTreeSet<BackendKey>,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nobody can send commands any more.
    Unwanted,
    /// Nothing can be written to the disk any more: the thread that does is gone.
    StoreGone,
}

/// The plane is compared with what is desired at least this often.
const RECONCILE: Duration = Duration::from_secs(5);
/// How long the first tables wait for health and next hops. Until then, an adopted plane forwards as it did.
const SETTLE: Duration = Duration::from_secs(3);
/// Events that come within this time are applied together: a switch that reboots brings many.
const GATHER: Duration = Duration::from_millis(5);
const DISK_DOES_NOT_ANSWER: &str = "the disk of the state directory does not answer: what is asked for at run time waits; look at `dmesg`";
/// So many commands may wait; those that come at once are written at once.
const COMMANDS: usize = 256;

impl<P: Dataplane> Control<P> {
    /// Asks for health and next hops of what the config names; nothing is applied before [`Control::run`].
    pub fn new(mut start: Start<P>, sources: Sources, supervisor: Supervisor) -> (Self, Handle) {
        let (detection, warnings) = Shared::new(&start.contents.kept, seed());
        start.warnings.extend(warnings);
        let config = Arc::new(start.config.clone());
        let view = View {
            config_hash: config::hash(&config),
            config,
            desired: Arc::default(),
            health: sources.health.borrow().clone(),
            resolutions: sources.resolutions.borrow().clone(),
            drains: Arc::default(),
            last_reload: Reload {
                at: SystemTime::now(),
                error: None,
            },
            ready: false,
            adopted: start.adopted,
            vip_numbers: Arc::default(),
            attachments: Vec::new(),
            program_id: None,
            started: Instant::now(),
            warnings: Vec::new(),
        };
        let handle = Handle {
            config_file: ConfigFile::new(start.config_file.clone()),
            commands: Arc::new(ArcSwap::from_pointee(mpsc::channel(1).0)),
            view: Arc::new(ArcSwap::from_pointee(view)),
            tightened: Arc::default(),
            events: Events::new(),
            supervisor,
            detection,
        };
        (Self::resume(start, sources, &handle), handle)
    }

    /// Takes the place of a loop that ended: whoever has its handle speaks to this one.
    pub(super) fn resume(mut start: Start<P>, sources: Sources, handle: &Handle) -> Self {
        let events = handle.events.clone();
        let Contents {
            limits,
            next_limit_id,
            rules,
            next_rule_id,
            sources: entries,
            next_source_id,
            drains,
            kept: _,
        } = start.contents;
        let book = LimitBook::new(limits, next_limit_id);
        let (limits, warnings) = Limits::adopt(book, &mut start.plane, events.clone());
        start.warnings.extend(warnings);
        let config = Arc::new(start.config);
        let book = RuleBook::new(rules, next_rule_id);
        let mut rules = Rules::new(book, &config, events.clone());
        rules.apply(&mut start.plane, |_| true);
        let book = SourceBook::new(entries, next_source_id);
        let mut sets = Sets::new(book, &config, events.clone());
        sets.apply(&mut start.plane, |_| true);
        let (sender, commands) = mpsc::channel(COMMANDS);
        handle.commands.store(Arc::new(sender));
        let mut control = Self {
            held: start.plane.in_tables(),
            plane: start.plane,
            config,
            drains,
            drained: Drains::new(),
            orphans: Drains::new(),
            limits,
            limit_series: LimitSeries::default(),
            rules,
            rule_series: LimitSeries::default(),
            sets,
            tightened: handle.tightened.clone(),
            trouble: start.writer.trouble(),
            waits_for_disk: false,
            changes: Changes::new(start.writer),
            sources,
            commands,
            view: handle.view.clone(),
            events,
            start_warnings: start.warnings,
            apply_error: None,
            settled: false,
            applied_vips: None,
            gathered: None,
        };
        control.watch();
        control.end_orphans();
        let (attachments, program_id) = (control.plane.attachments(), control.plane.program_id());
        let (drains, warnings) = (Arc::new(control.drains.clone()), control.warnings());
        control.publish(|view| {
            view.drains = drains;
            view.attachments = attachments;
            view.program_id = program_id;
            view.warnings = warnings;
        });
        control
    }

    /// Runs until nobody can send commands any more. What the plane holds stays there.
    pub async fn run(mut self, heart: Heart) -> Ended {
        let mut beat = heart.interval();
        let mut tick = interval(RECONCILE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let settle = sleep(SETTLE);
        tokio::pin!(settle);
        loop {
            heart.beat();
            // Here, not where its sleep ends: whoever asks often would put that off for ever.
            let more_expired = self.limits.expire(&mut self.plane);
            self.rules.expire(&mut self.plane);
            self.sets.expire(&mut self.plane);
            self.begin();
            let gathered = self.gathered;
            let step = self.next_step();
            let expiries = [
                self.limits.next_expiry_ms(),
                self.rules.held.book().next_expiry_ms(),
                self.sets.held.book().next_expiry_ms(),
            ];
            let expiry = expiries.into_iter().flatten().min();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey_all(command),
                    None => return Ended::Unwanted,
                },
                turn = self.changes.next() => self.go_on(turn),
                () = until_expiry(expiry), if !more_expired => {}
                () = yield_now(), if more_expired => {}
                () = &mut settle, if !self.settled => {
                    self.settled = true;
                    self.reconcile();
                }
                () = next_change(&mut self.sources), if gathered.is_none() => {
                    self.gathered = Some(tokio::time::Instant::now() + GATHER);
                }
                () = sleep_until(gathered.unwrap_or_else(tokio::time::Instant::now)), if gathered.is_some() => {
                    self.gathered = None;
                    self.settled = self.settled || self.knows_enough();
                    self.reconcile();
                }
                () = sleep_until(step.unwrap_or_else(Instant::now).into()), if step.is_some() => {
                    self.reconcile();
                }
                changed = self.trouble.changed() => match changed {
                    Ok(()) => self.publish_warnings(),
                    Err(_closed) => return Ended::StoreGone,
                },
                _ = beat.tick() => self.look_at_disk(),
                _ = tick.tick() => {
                    self.audit();
                    self.plane.sweep();
                    self.tell_drained();
                }
            }
        }
    }

    /// Makes the plane hold what is desired, also where somebody else changed it.
    fn audit(&mut self) {
        let what = if self.settled {
            self.plane.audit()
        } else {
            Vec::new()
        };
        self.reconcile();
        if !what.is_empty() || self.rules.held.error().is_some() {
            self.rules.apply(&mut self.plane, |_| true);
        }
        if self.sets.held.error().is_some() {
            self.sets.apply(&mut self.plane, |_| true);
        }
        if !what.is_empty() && self.apply_error.is_none() {
            tracing::warn!(
                what = what.join(", "),
                "somebody else changed the data plane; it is as it should be again"
            );
            self.events.tell(Event::Healed { what });
        }
    }

    /// Takes what has come so far: changes that come together are written together.
    fn obey_all(&mut self, first: Command) {
        // One reading of the maps for all who ask at the same time.
        let mut read = None;
        self.obey(first, &mut read);
        for _ in 1..COMMANDS {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command, &mut read),
                Err(_) => return,
            }
        }
    }

    fn obey(&mut self, command: Command, read: &mut Option<Arc<Figures>>) {
        if let Command::Reload(..) | Command::Tighten(_) = command {
            *read = None;
        }
        // Who asked may be gone; what was asked for is done all the same.
        match command {
            Command::Change(request) => self.changes.push(request),
            Command::Reload(reading, reply) => drop(reply.send(self.reload(reading))),
            Command::Plan(reading, reply) => drop(reply.send(self.draft(reading))),
            Command::Figures(reply) => {
                let figures = match read.take() {
                    Some(figures) => Ok(figures),
                    None => self.figures().map(Arc::new),
                };
                *read = figures.as_ref().ok().cloned();
                drop(reply.send(figures));
            }
            Command::Scrape(reply) => drop(reply.send(self.scrape())),
            Command::LimitPage(query, reply) => {
                drop(reply.send(Ok(self.limits.page(&query, &self.plane))));
            }
            Command::Limit(id, reply) => drop(reply.send(self.limits.get(id, &self.plane))),
            Command::RulePage(query, reply) => {
                drop(reply.send(Ok(self.rules.page(&query, &self.plane))));
            }
            Command::Rule(id, reply) => drop(reply.send(self.rules.get(id, &self.plane))),
            Command::SourcePage(query, reply) => {
                drop(reply.send(Ok(self.sets.page(&query, &self.plane))));
            }
            Command::Source(kind, key, reply) => {
                drop(reply.send(self.sets.get(kind, &key, &self.plane)));
            }
            Command::RuleCounts(reply) => drop(reply.send(Ok(self.plane.rule_counts()))),
            Command::Tighten(reply) => {
                self.reconcile();
                drop(reply.send(self.applied()));
            }
            Command::Answer(reply) => drop(reply.send(Ok(()))),
        }
    }

    pub(super) fn figures(&self) -> Result<Figures, Refused> {
        self.plane
            .figures()
            .map_err(|error| Refused::Failed(format!("cannot read the maps: {error}")))
    }

    /// Says what to check and to resolve.
    pub(super) fn watch(&self) {
        let targets = desired::targets(&self.config);
        self.sources.targets.send_if_modified(|now| {
            let differ = **now != targets;
            if differ {
                *now = Arc::new(targets);
            }
            differ
        });
        let wanted = desired::wanted_next_hops(&self.config);
        self.sources.wanted.send_if_modified(|now| {
            let differ = **now != wanted;
            if differ {
                *now = Arc::new(wanted);
            }
            differ
        });
    }

    /// Every backend's health and next hop is known, good or bad.
    fn knows_enough(&self) -> bool {
        let health = self.sources.health.borrow();
        let healthy = desired::targets(&self.config).into_iter().all(|target| {
            health
                .get(&(target.pool, target.address))
                .is_some_and(|status| status.state != State::Unknown)
        });
        let resolutions = self.sources.resolutions.borrow();
        healthy
            && desired::wanted_next_hops(&self.config)
                .iter()
                .all(|address| {
                    !matches!(
                        resolutions.get(address),
                        None | Some(Resolution::Unresolved(Reason::NeighbourIncomplete))
                    )
                })
    }

    /// Makes the plane hold what is desired now, and publishes the state.
    pub(super) fn reconcile(&mut self) {
        let desired = if self.settled {
            let desired = self.desired();
            self.apply(&desired);
            Some(Arc::new(desired))
        } else {
            None
        };
        let ready = self.settled && self.apply_error.is_none();
        let (health, resolutions) = (
            self.sources.health.borrow().clone(),
            self.sources.resolutions.borrow().clone(),
        );
        tell_health(&self.events, &self.view.load().health, &health);
        let config = self.config.clone();
        let drains = Arc::new(self.drains.clone());
        let (attachments, program_id) = (self.plane.attachments(), self.plane.program_id());
        let warnings = self.warnings();
        let vip_numbers = self.plane.vip_numbers();
        self.publish(|view| {
            if *view.vip_numbers != vip_numbers {
                view.vip_numbers = Arc::new(vip_numbers);
            }
            if !Arc::ptr_eq(&view.config, &config) {
                view.config_hash = config::hash(&config);
                view.config = config;
            }
            if let Some(desired) = desired {
                view.desired = desired;
            }
            view.health = health;
            view.resolutions = resolutions;
            view.drains = drains;
            view.ready |= ready;
            view.attachments = attachments;
            view.program_id = program_id;
            view.warnings = warnings;
        });
    }

    /// What an operator should know now.
    fn warnings(&self) -> Vec<String> {
        let trouble = self.trouble.borrow().clone();
        let refused = trouble.map(|why| format!("nothing can be set at run time: {why}"));
        let start = self.start_warnings.iter().cloned();
        start
            .chain(self.apply_error.clone())
            .chain(self.plane.warnings())
            .chain(self.rules.held.error())
            .chain(self.sets.held.error())
            .chain(refused)
            .chain(self.waits_for_disk.then(|| DISK_DOES_NOT_ANSWER.to_owned()))
            .chain(self.unchecked())
            .collect()
    }

    /// Tells of backends that this host cannot check.
    fn unchecked(&self) -> Option<String> {
        let health = self.sources.health.borrow();
        let mut unchecked = health.iter().filter(|(_, status)| status.is_unmade);
        let ((pool, address), status) = unchecked.next()?;
        Some(format!(
            "backends that are not checked, and stay what they were: {}; the first is {pool}/{address}: {}",
            1 + unchecked.count(),
            status.error.as_deref().unwrap_or_default()
        ))
    }

    /// Tells of a disk that does not answer: nothing fails then, and nothing is done.
    fn look_at_disk(&mut self) {
        let waits = self.changes.wait_for_disk();
        if waits == self.waits_for_disk {
            return;
        }
        self.waits_for_disk = waits;
        if waits {
            tracing::error!("{DISK_DOES_NOT_ANSWER}");
        } else {
            tracing::info!("the disk of the state directory answers again");
        }
        self.publish_warnings();
    }

    fn publish_warnings(&mut self) {
        let warnings = self.warnings();
        self.publish(|view| view.warnings = warnings);
    }

    fn desired(&self) -> Desired {
        desired::desired(Inputs {
            config: &self.config,
            health: &self.sources.health.borrow(),
            resolutions: &self.sources.resolutions.borrow(),
            drains: &self.drains,
            held: &self.held,
            tightened: &self.tightened.load(),
            now: Instant::now(),
        })
    }

    /// When weights change next though nothing happens.
    fn next_step(&self) -> Option<Instant> {
        let health = self.sources.health.borrow();
        desired::next_change(&self.config, &health, Instant::now())
    }

    fn apply(&mut self, desired: &Desired) {
        let same_vips = self
            .applied_vips
            .as_ref()
            .is_some_and(|vips| vips.iter().eq(desired.vips.keys()));
        if !same_vips {
            let stays = |vip: &str| desired.vips.contains_key(vip);
            self.limits.before_vips_change(&mut self.plane, stays);
            self.rules.apply(&mut self.plane, stays);
            if self.sets.are_of_vips() {
                self.sets.apply(&mut self.plane, stays);
            }
        }
        self.apply_tables(desired);
        if self.apply_error.is_some() {
            self.applied_vips = None;
        } else if !same_vips {
            self.applied_vips = Some(desired.vips.keys().cloned().collect());
        }
        self.limits.after_vips_change(&mut self.plane);
        if !same_vips {
            self.rules.apply(&mut self.plane, |_| true);
            if self.sets.are_of_vips() {
                self.sets.apply(&mut self.plane, |_| true);
            }
        }
    }

    fn apply_tables(&mut self, desired: &Desired) {
        match self.plane.apply(desired) {
            Ok(steps) => {
                let tables = desired.tables.values();
                self.held = tables
                    .flat_map(|table| table.weights.keys().cloned())
                    .collect();
                for step in steps {
                    tracing::debug!(step, "applied");
                }
                if self.apply_error.take().is_some() {
                    tracing::info!("the data plane holds what is desired again");
                }
            }
            Err(error) => {
                let error = format!(
                    "the data plane does not hold what is desired: {}",
                    chain(&*error)
                );
                if self.apply_error.as_ref() != Some(&error) {
                    tracing::error!("{error}");
                }
                self.apply_error = Some(error);
            }
        }
    }

    pub(super) fn applied(&self) -> Result<(), Refused> {
        match &self.apply_error {
            None => Ok(()),
            Some(error) => Err(Refused::Failed(error.clone())),
        }
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut View)) {
        let mut view = View::clone(&self.view.load());
        change(&mut view);
        self.view.store(Arc::new(view));
    }
}

/// What samples are chosen by: nothing that anybody outside knows.
fn seed() -> u64 {
    let mut seed = [0; 8];
    // Any number will do.
    _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed);
    u64::from_ne_bytes(seed)
}

/// An error and its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Tells what differs between two snapshots of health.
fn tell_health(events: &Events, before: &health::Snapshot, now: &health::Snapshot) {
    for ((pool, address), status) in now.iter() {
        let before = before
            .get(&(pool.clone(), *address))
            .map_or(State::Unknown, |status| status.state);
        if before != status.state {
            events.tell(Event::Health(HealthChange {
                pool: pool.clone(),
                address: *address,
                before,
                state: status.state,
                error: status.error.clone(),
            }));
        }
    }
}

/// Waits until this time, in milliseconds since 1970; for ever if there is none.
async fn until_expiry(expiry_ms: Option<u64>) {
    match expiry_ms {
        // A clock that is set while this sleeps is noticed at the next reconciliation.
        Some(expiry) => {
            let left_ms = expiry.saturating_sub(now_ms()).max(1);
            sleep(Duration::from_millis(left_ms)).await;
        }
        None => std::future::pending().await,
    }
}

async fn next_change(sources: &mut Sources) {
    async fn changed<T>(receiver: &mut watch::Receiver<T>) {
        if receiver.changed().await.is_err() {
            // The other side is gone for good: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
    tokio::select! {
        () = changed(&mut sources.health) => {}
        () = changed(&mut sources.resolutions) => {}
    }
}
