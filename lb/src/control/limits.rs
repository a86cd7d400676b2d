//! Limits set at run time: written to the store first, then put into the data plane.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Dataplane, Event, Failure, Refused, chain, events::Events};
use crate::{
    dataplane::ExactCounters,
    limits::{LimitRecord, LimitSpec, LimitStore, StoreError},
};

/// A limit, and what it counted.
#[derive(Clone, Debug)]
pub struct LimitInForce {
    pub record: LimitRecord,
    pub counters: ExactCounters,
}

/// Whether a limit is new, or took the place of one for the same packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    New,
    Replaced,
}

/// The store, and where each of its limits is in the data plane.
pub(super) struct Limits {
    store: LimitStore,
    /// Numbers in the data plane by id. Limits of a VIP that is not there are not in it.
    numbers: BTreeMap<u64, u32>,
    events: Events,
}

impl Limits {
    /// Makes the data plane hold those that the store holds. Returns what an operator should know.
    pub(super) fn adopt(
        store: LimitStore,
        plane: &mut impl Dataplane,
        events: Events,
    ) -> (Self, Vec<String>) {
        let mut limits = Self {
            store,
            numbers: BTreeMap::new(),
            events,
        };
        limits.expire(plane);
        let records: Vec<&LimitRecord> = limits
            .store
            .iter()
            .filter(|record| has_vip(plane, &record.spec))
            .collect();
        let ids: Vec<u64> = records.iter().map(|record| record.id).collect();
        let specs: Vec<LimitSpec> = records.iter().map(|record| record.spec.clone()).collect();
        let mut warnings = Vec::new();
        for (id, result) in ids.into_iter().zip(plane.adopt_limits(&specs)) {
            match result {
                Ok(number) => drop(limits.numbers.insert(id, number)),
                Err(error) => warnings.push(not_in_force(id, &error)),
            }
        }
        (limits, warnings)
    }

    pub(super) fn all(&self, plane: &impl Dataplane) -> Vec<LimitInForce> {
        let records = self.store.iter().cloned();
        records.map(|record| self.in_force(record, plane)).collect()
    }

    /// Takes those out of the plane whose VIP is about to go: its number may become another's.
    pub(super) fn before_vips_change(
        &mut self,
        plane: &mut impl Dataplane,
        stays: impl Fn(&str) -> bool,
    ) {
        let goes = |vip: &Option<String>| vip.as_deref().is_some_and(|vip| !stays(vip));
        let going: Vec<u64> = self
            .store
            .iter()
            .filter(|record| goes(&record.spec.vip))
            .map(|record| record.id)
            .collect();
        for id in going {
            self.take_out(id, plane);
        }
    }

    /// Puts those in whose VIP has come.
    pub(super) fn after_vips_change(&mut self, plane: &mut impl Dataplane) {
        for record in self.store.iter() {
            if self.numbers.contains_key(&record.id) || !has_vip(plane, &record.spec) {
                continue;
            }
            match plane.insert_limit(&record.spec) {
                Ok(number) => drop(self.numbers.insert(record.id, number)),
                Err(error) => tracing::warn!("{}", not_in_force(record.id, &error)),
            }
        }
    }

    /// Sets a limit; one for the same prefix, VIP and class is replaced.
    pub(super) fn set(
        &mut self,
        spec: LimitSpec,
        plane: &mut impl Dataplane,
    ) -> Result<(LimitInForce, Novelty), Refused> {
        let before = self.store.find(&spec).cloned();
        let record = self.store.set(spec, now()).map_err(refused)?;
        let novelty = match before {
            Some(_) => Novelty::Replaced,
            None => Novelty::New,
        };
        Ok((self.put_in(record, before, plane)?, novelty))
    }

    /// Makes a limit be another; it keeps its id.
    pub(super) fn replace(
        &mut self,
        id: u64,
        spec: LimitSpec,
        plane: &mut impl Dataplane,
    ) -> Result<LimitInForce, Refused> {
        let before = self.store.get(id).cloned();
        let record = self.store.replace(id, spec, now()).map_err(refused)?;
        self.put_in(record, before, plane)
    }

    pub(super) fn remove(&mut self, id: u64, plane: &mut impl Dataplane) -> Result<(), Refused> {
        self.store.remove(&[id]).map_err(refused)?;
        self.take_out(id, plane);
        self.events.tell(Event::LimitRemoved(id));
        Ok(())
    }

    /// Seconds until the next limit expires.
    pub(super) fn next_expiry_seconds(&self) -> Option<u64> {
        let expiry = self.store.next_expiry()?;
        // A limit that could not be removed from the disk is tried again, not at once.
        Some(expiry.saturating_sub(now()).max(1))
    }

    /// Takes out what does not hold any more.
    pub(super) fn expire(&mut self, plane: &mut impl Dataplane) {
        let expired = self.store.expired(now());
        if expired.is_empty() {
            return;
        }
        for id in &expired {
            self.take_out(*id, plane);
            tracing::info!(limit = id, "expired");
            self.events.tell(Event::LimitExpired(*id));
        }
        if let Err(error) = self.store.remove(&expired) {
            tracing::error!(error = chain(&error), "expired limits stay in the store");
        }
    }

    /// Undoes the change of the store if the plane refuses it.
    fn put_in(
        &mut self,
        record: LimitRecord,
        before: Option<LimitRecord>,
        plane: &mut impl Dataplane,
    ) -> Result<LimitInForce, Refused> {
        let id = record.id;
        let result = match self.numbers.get(&id) {
            Some(number) => plane.replace_limit(*number, &record.spec),
            // It comes with the VIP's tables.
            None if !has_vip(plane, &record.spec) => return Ok(self.is_set(record, plane)),
            None => plane.insert_limit(&record.spec),
        };
        match result {
            Ok(number) => {
                self.numbers.insert(id, number);
                Ok(self.is_set(record, plane))
            }
            Err(error) => {
                let undone = match before {
                    Some(before) => self.store.restore(vec![before]),
                    None => self.store.remove(&[id]),
                };
                if let Err(error) = undone {
                    tracing::error!(
                        limit = id,
                        error = chain(&error),
                        "cannot undo a limit in the store"
                    );
                }
                Err(Refused::Conflict(chain(&*error)))
            }
        }
    }

    fn take_out(&mut self, id: u64, plane: &mut impl Dataplane) {
        if let Some(number) = self.numbers.remove(&id)
            && let Err(error) = plane.remove_limit(number)
        {
            tracing::error!(
                limit = id,
                error = chain(&*error),
                "cannot take a limit out of the data plane"
            );
        }
    }

    fn is_set(&self, record: LimitRecord, plane: &impl Dataplane) -> LimitInForce {
        self.events.tell(Event::LimitSet(Arc::new(record.clone())));
        self.in_force(record, plane)
    }

    fn in_force(&self, record: LimitRecord, plane: &impl Dataplane) -> LimitInForce {
        let number = self.numbers.get(&record.id);
        let counters = number.and_then(|number| plane.limit_counters(*number));
        LimitInForce {
            record,
            counters: counters.unwrap_or_default(),
        }
    }
}

fn has_vip(plane: &impl Dataplane, spec: &LimitSpec) -> bool {
    spec.vip.as_deref().is_none_or(|vip| plane.has_vip(vip))
}

fn not_in_force(id: u64, error: &Failure) -> String {
    format!("limit {id} is not in force: {}", chain(&**error))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn refused(error: StoreError) -> Refused {
    match error {
        StoreError::Unknown { .. } => Refused::NotFound(error.to_string()),
        StoreError::Conflict { .. } => Refused::Conflict(error.to_string()),
        StoreError::Invalid(invalid) => invalid.into(),
        StoreError::Disk { .. } => Refused::Failed(chain(&error)),
    }
}
