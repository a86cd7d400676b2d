//! What drains: whether it may, when that begins and ends, and what becomes of the drain of something that the config loses.

use std::sync::Arc;

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

    /// Drains that would have ended if this config were in force.
    pub(super) fn orphans_of(&self, config: &Config) -> Drains {
        let drains = self.drains.iter();
        drains
            .filter(|drain| !drain.is_of(config))
            .cloned()
            .collect()
    }

    fn tell_drain(&self, drain: &Drain, draining: Draining) {
        let (kind, name) = (drain.kind(), drain.name(&self.config.pop.name));
        self.events.tell(match draining {
            Draining::Begin => Event::DrainBegun { kind, name },
            Draining::End => Event::DrainEnded { kind, name },
        });
    }
}
