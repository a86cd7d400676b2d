//! The task that owns the state: it takes events one by one, and makes the data plane hold what follows from them.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    config::{self, Config},
    control::{
        Command, Dataplane, Draining, Event, Figures, Handle, HealthChange, Refused, Reload,
        Sources, View, events::Events, limits::Limits,
    },
    dataplane::Desired,
    desired::{self, Inputs},
    drains::{BackendName, DrainStore},
    health::{self, State},
    limits::{LimitSpec, LimitStore},
    net::{Reason, Resolution},
};

/// Everything that the loop starts from.
pub struct Start<P> {
    pub plane: P,
    pub config: Config,
    pub config_file: PathBuf,
    pub drains: DrainStore,
    pub limits: LimitStore,
    /// Whether the plane holds what an earlier daemon put there.
    pub adopted: bool,
    pub warnings: Vec<String>,
}

/// The loop's state.
pub struct Control<P> {
    plane: P,
    config: Arc<Config>,
    config_file: PathBuf,
    drains: DrainStore,
    limits: Limits,
    sources: Sources,
    commands: mpsc::Receiver<Command>,
    view: Arc<ArcSwap<View>>,
    events: Events,
    /// What was told at the start; it stays true.
    start_warnings: Vec<String>,
    /// Why the plane does not hold what is desired.
    apply_error: Option<String>,
    settled: bool,
}

/// The plane is compared with what is desired at least this often.
const RECONCILE: Duration = Duration::from_secs(5);
/// How long the first tables wait for health and next hops. Until then, an adopted plane forwards as it did.
const SETTLE: Duration = Duration::from_secs(3);
/// Events that come within this time are applied together: a switch that reboots brings many.
const GATHER: Duration = Duration::from_millis(5);
const COMMANDS: usize = 64;

impl<P: Dataplane> Control<P> {
    /// Asks for health and next hops of what the config names; nothing is applied before [`Control::run`].
    pub fn new(mut start: Start<P>, sources: Sources) -> (Self, Handle) {
        let events = Events::new();
        let (limits, warnings) = Limits::adopt(start.limits, &mut start.plane, events.clone());
        start.warnings.extend(warnings);
        let config = Arc::new(start.config);
        let (sender, commands) = mpsc::channel(COMMANDS);
        let view = Arc::new(ArcSwap::from_pointee(View {
            config_hash: config::hash(&config),
            config: config.clone(),
            desired: Arc::default(),
            health: sources.health.borrow().clone(),
            resolutions: sources.resolutions.borrow().clone(),
            drains: Arc::new(start.drains.drains().clone()),
            last_reload: Reload {
                at: SystemTime::now(),
                error: None,
            },
            ready: false,
            adopted: start.adopted,
            attachments: start.plane.attachments(),
            program_id: start.plane.program_id(),
            started: Instant::now(),
            warnings: start.warnings.clone(),
        }));
        let handle = Handle {
            commands: sender,
            view: view.clone(),
            events: events.clone(),
        };
        let control = Self {
            plane: start.plane,
            config,
            config_file: start.config_file,
            drains: start.drains,
            limits,
            sources,
            commands,
            view,
            events,
            start_warnings: start.warnings,
            apply_error: None,
            settled: false,
        };
        control.watch();
        (control, handle)
    }

    /// Runs until nobody can send commands any more. What the plane holds stays there.
    pub async fn run(mut self) {
        let mut tick = interval(RECONCILE);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let settle = sleep(SETTLE);
        tokio::pin!(settle);
        loop {
            // Here, not where its sleep ends: whoever asks often would put that off for ever.
            self.limits.expire(&mut self.plane);
            let expiry = self.limits.next_expiry_seconds();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = &mut settle, if !self.settled => {
                    self.settled = true;
                    self.reconcile();
                }
                () = next_change(&mut self.sources) => {
                    sleep(GATHER).await;
                    self.settled = self.settled || self.knows_enough();
                    self.reconcile();
                }
                () = sleep(Duration::from_secs(expiry.unwrap_or_default())), if expiry.is_some() => {}
                _ = tick.tick() => self.reconcile(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        // Who asked may be gone; what was asked for is done all the same.
        match command {
            Command::Drain(name, draining, reply) => drop(reply.send(self.drain(name, draining))),
            Command::Reload(reply) => drop(reply.send(self.reload())),
            Command::Figures(reply) => drop(reply.send(self.figures())),
            Command::Limits(reply) => drop(reply.send(Ok(self.limits.all(&self.plane)))),
            Command::SetLimit(spec, reply) => {
                let result = self
                    .check_vip(&spec)
                    .and_then(|()| self.limits.set(spec, &mut self.plane));
                drop(reply.send(result));
            }
            Command::ReplaceLimit(id, spec, reply) => {
                let result = self
                    .check_vip(&spec)
                    .and_then(|()| self.limits.replace(id, spec, &mut self.plane));
                drop(reply.send(result));
            }
            Command::RemoveLimit(id, reply) => {
                drop(reply.send(self.limits.remove(id, &mut self.plane)));
            }
        }
    }

    fn figures(&self) -> Result<Figures, Refused> {
        self.plane
            .figures()
            .map_err(|error| Refused::Failed(format!("cannot read the maps: {error}")))
    }

    fn check_vip(&self, spec: &LimitSpec) -> Result<(), Refused> {
        match &spec.vip {
            Some(name) if !self.config.vips.iter().any(|vip| vip.name == *name) => {
                Err(Refused::Invalid {
                    field: Some("vip".into()),
                    message: format!("the config has no VIP `{name}`; `sluice vips` lists them"),
                })
            }
            _ => Ok(()),
        }
    }

    fn drain(&mut self, name: BackendName, draining: Draining) -> Result<(), Refused> {
        let known = self.config.pools.iter().any(|pool| {
            pool.name == name.pool
                && pool
                    .backends
                    .iter()
                    .any(|backend| backend.address == name.address)
        });
        let changed = match draining {
            Draining::Begin if !known => {
                return Err(Refused::NotFound(format!(
                    "the config has no backend {name}; `sluice backends` lists them"
                )));
            }
            Draining::Begin => self.drains.drain(name.clone()),
            Draining::End => self.drains.undrain(&name),
        };
        let changed = changed.map_err(|error| {
            Refused::Failed(format!(
                "cannot write the drains to the state directory: {error}"
            ))
        })?;
        if !changed {
            return match draining {
                Draining::Begin => Ok(()),
                Draining::End => Err(Refused::NotFound(format!("{name} is not draining"))),
            };
        }
        match draining {
            Draining::Begin => tracing::info!(backend = %name, "draining: it gets no new flows"),
            Draining::End => tracing::info!(backend = %name, "not draining any more"),
        }
        self.reconcile();
        self.events.tell(match draining {
            Draining::Begin => Event::DrainBegun(name),
            Draining::End => Event::DrainEnded(name),
        });
        self.applied()
    }

    fn reload(&mut self) -> Result<(), Refused> {
        let result = self.try_reload();
        let error = result.as_ref().err().map(ToString::to_string);
        match &error {
            None => tracing::info!(file = %self.config_file.display(), "config reloaded"),
            Some(error) => {
                tracing::error!(%error, "config refused; the one before stays in force");
            }
        }
        self.events.tell(match &error {
            None => Event::ReloadDone {
                config_hash: config::hash(&self.config),
            },
            Some(error) => Event::ReloadRefused {
                error: error.clone(),
            },
        });
        let reload = Reload {
            at: SystemTime::now(),
            error,
        };
        self.publish(|view| view.last_reload = reload);
        result
    }

    fn try_reload(&mut self) -> Result<(), Refused> {
        let invalid = |message| Refused::Invalid {
            field: None,
            message,
        };
        let new = config::load(&self.config_file).map_err(|errors| invalid(chain(&errors)))?;
        config::check_interfaces(&new, |name| crate::net::if_index(name).is_ok())
            .map_err(|errors| invalid(chain(&errors)))?;
        if let Some(message) = needs_restart(&self.config, &new) {
            return Err(invalid(message));
        }
        let old = std::mem::replace(&mut self.config, Arc::new(new));
        let attached = self.attach_as(&old);
        self.watch();
        self.reconcile();
        let result = attached.and_then(|()| self.applied());
        if result.is_err() {
            let refused = std::mem::replace(&mut self.config, old);
            if let Err(error) = self.attach_as(&refused) {
                tracing::error!(%error, "cannot go back to the interfaces of the config before");
            }
            self.watch();
            self.reconcile();
        }
        result
    }

    /// Attaches to the interfaces of the config, if they are others than before.
    fn attach_as(&mut self, before: &Config) -> Result<(), Refused> {
        let interfaces = &self.config.dataplane.interfaces;
        if *interfaces == before.dataplane.interfaces {
            return Ok(());
        }
        self.plane
            .set_interfaces(interfaces)
            .map_err(|error| Refused::Failed(chain(&*error)))
    }

    /// Says what to check and to resolve.
    fn watch(&self) {
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
    fn reconcile(&mut self) {
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
        let drains = Arc::new(self.drains.drains().clone());
        let (attachments, program_id) = (self.plane.attachments(), self.plane.program_id());
        let mut warnings = self.start_warnings.clone();
        warnings.extend(self.apply_error.clone());
        self.publish(|view| {
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

    fn desired(&self) -> Desired {
        desired::desired(Inputs {
            config: &self.config,
            health: &self.sources.health.borrow(),
            resolutions: &self.sources.resolutions.borrow(),
            drains: self.drains.drains(),
        })
    }

    fn apply(&mut self, desired: &Desired) {
        self.limits
            .before_vips_change(&mut self.plane, |vip| desired.vips.contains_key(vip));
        self.apply_tables(desired);
        self.limits.after_vips_change(&mut self.plane);
    }

    fn apply_tables(&mut self, desired: &Desired) {
        match self.plane.apply(desired) {
            Ok(steps) => {
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

    fn applied(&self) -> Result<(), Refused> {
        match &self.apply_error {
            None => Ok(()),
            Some(error) => Err(Refused::Failed(error.clone())),
        }
    }

    fn publish(&self, change: impl FnOnce(&mut View)) {
        let mut view = View::clone(&self.view.load());
        change(&mut view);
        self.view.store(Arc::new(view));
    }
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

/// What a reload cannot change, and what to do instead.
fn needs_restart(old: &Config, new: &Config) -> Option<String> {
    let with_interfaces = config::Dataplane {
        interfaces: new.dataplane.interfaces.clone(),
        ..old.dataplane.clone()
    };
    if with_interfaces != new.dataplane {
        return Some(
            "[dataplane] is set when the program is loaded, and only `interfaces` can change at a reload; \
             to change the rest, stop the daemon, run `sluice unload`, and start it again"
                .into(),
        );
    }
    if old.api != new.api {
        return Some(
            "[api] is set at start, but for what the files in it hold; to change it, restart the daemon (packets are forwarded meanwhile)"
                .into(),
        );
    }
    if old.pop.secret_file != new.pop.secret_file {
        return Some(
            "`secret_file` is read at start; to change it, restart the daemon (packets are forwarded meanwhile)"
                .into(),
        );
    }
    None
}
