//! What drains: whether it may, when that begins and ends, and what becomes of the drain of something that the config loses.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{Control, Dataplane, Draining, Event, Refused, Reply, changes::Plan};
use crate::{
    config::Config,
    drains::{Drain, Drains},
};

impl<P: Dataplane> Control<P> {
    /// Whether this changes anything.
    pub(super) fn check_drain(
        &self,
        plan: &mut Plan<'_>,
        drain: &Drain,
        draining: Draining,
    ) -> Result<bool, Refused> {
        let now = match plan.drains.get(drain) {
            Some(draining) => *draining,
            None if self.drains.contains(drain) => Draining::Begin,
            None => Draining::End,
        };
        if draining == Draining::Begin {
            self.find(drain)?;
        }
        if draining == now {
            return match draining {
                Draining::Begin => Ok(false),
                Draining::End => Err(Refused::NotFound(format!("{drain} is not draining"))),
            };
        }
        plan.drains.insert(drain.clone(), draining);
        Ok(true)
    }

    /// Whether the config has what is to be drained; if not, what to do.
    fn find(&self, drain: &Drain) -> Result<(), Refused> {
        let found = match drain {
            Drain::Vip(name) => self.check_vip(Some(name)),
            Drain::Backend(name) if !drain.is_of(&self.config) => Err(format!(
                "the config has no backend {name}; `sluice backends` lists them"
            )),
            Drain::Backend(_) | Drain::Pop => Ok(()),
        };
        found.map_err(Refused::NotFound)
    }

    /// Applies drains that are on the disk, and answers those who asked for them.
    pub(super) fn apply_drains(&mut self, drained: Vec<(Drain, Draining, Reply<()>)>) {
        if drained.is_empty() {
            return;
        }
        self.reconcile();
        for (drain, draining, reply) in drained {
            match draining {
                Draining::Begin => tracing::info!(what = %drain, "draining: it gets no new flows"),
                Draining::End => tracing::info!(what = %drain, "not draining any more"),
            }
            self.tell_drain(&drain, draining);
            drop(reply.send(self.applied()));
        }
        // A reload may have come between the question and now.
        self.end_orphans();
    }

    /// Ends the drains of what the config does not have any more: whatever comes under such a name later is another, which
    /// nobody drained. The disk follows.
    pub(super) fn end_orphans(&mut self) {
        let orphans = self.orphans_of(&self.config);
        if orphans.is_empty() {
            return;
        }
        for drain in &orphans {
            tracing::info!(what = %drain, "its drain has ended: the config does not have it any more");
            self.tell_drain(drain, Draining::End);
            self.drains.remove(drain);
        }
        self.orphans.extend(orphans);
        let drains = Arc::new(self.drains.clone());
        self.publish(|view| view.drains = drains);
    }

    /// Tells of drained backends whose last live flow ended since this was called last.
    pub(super) fn tell_drained(&mut self) {
        let any = self
            .drains
            .iter()
            .any(|drain| matches!(drain, Drain::Backend(_)));
        if !any || !self.settled || self.apply_error.is_some() {
            return;
        }
        let flows = self.plane.flows().backends;
        let busy: BTreeSet<(&str, IpAddr)> = flows
            .iter()
            .filter(|(_, flows)| **flows > 0)
            .map(|(key, _)| (key.pool.as_str(), key.address))
            .collect();
        let is_idle = |drain: &&Drain| match drain {
            Drain::Backend(name) => !busy.contains(&(name.pool.as_str(), name.address)),
            Drain::Vip(_) | Drain::Pop => false,
        };
        let drained: Drains = self.drains.iter().filter(is_idle).cloned().collect();
        for drain in drained.difference(&self.drained) {
            tracing::info!(what = %drain, "drained: its last live flow has ended");
            let (kind, name) = (drain.kind(), drain.name(&self.config.pop.name));
            self.events.tell(Event::Drained { kind, name });
        }
        self.drained = drained;
    }

    /// Drains that would have ended if this config were in force.
    pub(super) fn orphans_of(&self, config: &Config) -> Drains {
        let drains = self.drains.iter();
        drains
            .filter(|drain| !drain.is_of(config))
            .cloned()
            .collect()
    }

    fn tell_drain(&mut self, drain: &Drain, draining: Draining) {
        self.drained.remove(drain);
        let (kind, name) = (drain.kind(), drain.name(&self.config.pop.name));
        self.events.tell(match draining {
            Draining::Begin => Event::DrainBegun { kind, name },
            Draining::End => Event::DrainEnded { kind, name },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config,
        control::{
            Start, Supervisor,
            fake::{self, CONFIG, Fake},
        },
        drains::BackendName,
        store::{Directory, Store, Writer},
    };

    #[tokio::test]
    async fn that_the_last_flow_has_ended_is_told_once_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let config_file = dir.path().join("sluice.toml");
        std::fs::write(&config_file, CONFIG).unwrap();
        let (store, contents, _) = Store::open(Directory::new(dir.path())).unwrap();
        let plane = Fake::default();
        let start = Start {
            plane: plane.clone(),
            config: config::load(&config_file).unwrap(),
            config_file,
            contents,
            writer: Writer::start(store).unwrap(),
            adopted: false,
            warnings: Vec::new(),
        };
        let (sources, ..) = fake::sources();
        let (mut control, handle) = Control::new(start, sources, Supervisor::default());
        let backend = &control.config.pools[0].backends[0];
        let drain = Drain::Backend(BackendName {
            pool: "web".into(),
            address: backend.address,
        });
        control.drains = [drain.clone(), Drain::Pop].into();
        control.settled = true;
        control.reconcile();
        assert!(!plane.flows().backends.is_empty());

        let mut events = handle.events();
        let mut told = |control: &mut Control<Fake>| {
            control.tell_drained();
            let events = std::iter::from_fn(|| events.try_recv().ok());
            let events = events.filter(|event| matches!(event, Event::Drained { .. }));
            events.collect::<Vec<Event>>()
        };
        let drained = [Event::Drained {
            kind: drain.kind(),
            name: drain.to_string(),
        }];
        assert_eq!(told(&mut control), []);
        for _ in 0..2 {
            plane.set_idle(true);
            assert_eq!(told(&mut control), drained);
            assert_eq!(told(&mut control), []);
            plane.set_idle(false);
            assert_eq!(told(&mut control), []);
        }
        plane.set_idle(true);
        assert_eq!(told(&mut control), drained);
        for draining in [Draining::End, Draining::Begin] {
            control.tell_drain(&drain, draining);
        }
        assert_eq!(told(&mut control), drained);
    }
}
