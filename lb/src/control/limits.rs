//! Limits set at run time, in memory and in the data plane. What is changed here is on the disk already.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Dataplane, Event, Failure, LimitCounts, Page, Refused, chain, events::Events};
use crate::{
    dataplane::ExactCounters,
    limits::{LimitBook, LimitQuery, LimitRecord, LimitRefusal, LimitSpec, Step},
    store::Change,
};

/// A limit, and what it counted.
#[derive(Clone, Debug)]
pub struct LimitInForce {
    pub record: Arc<LimitRecord>,
    pub counters: ExactCounters,
}

/// Whether a limit is new, or took the place of one for the same packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    New,
    Replaced,
}

/// The limits, and where each of them is in the data plane.
pub(super) struct Limits {
    book: LimitBook,
    /// Numbers in the data plane by id.
    numbers: BTreeMap<u64, u32>,
    /// Those that are not in it: their VIP is not there, or there is no room.
    waiting: BTreeSet<u64>,
    /// Those that stand on the disk otherwise than here: expired, or refused by the data plane after they were written.
    differing: BTreeSet<u64>,
    events: Events,
}

/// What a limit was before a step.
pub(super) struct Before {
    id: u64,
    record: Option<Arc<LimitRecord>>,
}

impl Limits {
    /// Makes the data plane hold these. Returns what an operator should know.
    pub(super) fn adopt(
        book: LimitBook,
        plane: &mut impl Dataplane,
        events: Events,
    ) -> (Self, Vec<String>) {
        let mut limits = Self {
            book,
            numbers: BTreeMap::new(),
            waiting: BTreeSet::new(),
            differing: BTreeSet::new(),
            events,
        };
        while limits.expire(plane) {}
        let all: Vec<&Arc<LimitRecord>> = limits.book.iter().collect();
        let (here, waiting): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|record| has_vip(plane, &record.spec));
        limits.waiting = waiting.into_iter().map(|record| record.id).collect();
        let specs: Vec<LimitSpec> = here.iter().map(|record| record.spec.clone()).collect();
        let mut warnings = Vec::new();
        for (record, result) in here.into_iter().zip(plane.adopt_limits(&specs)) {
            match result {
                Ok(number) => drop(limits.numbers.insert(record.id, number)),
                Err(error) => {
                    warnings.push(not_in_force(record.id, &error));
                    limits.waiting.insert(record.id);
                }
            }
        }
        (limits, warnings)
    }

    pub(super) fn book(&self) -> &LimitBook {
        &self.book
    }

    /// What each limit counted, by id.
    pub(super) fn counts(&self, plane: &impl Dataplane) -> Vec<(u64, LimitCounts)> {
        let counts = |record: &Arc<LimitRecord>| {
            let number = self.numbers.get(&record.id);
            let counters = number.and_then(|number| plane.limit_counters(*number));
            let counters = counters.unwrap_or_default();
            let counts = LimitCounts {
                matched_packets: counters.passed_packets + counters.dropped_packets,
                dropped_packets: counters.dropped_packets,
            };
            (record.id, counts)
        };
        self.book.iter().map(counts).collect()
    }

    pub(super) fn page(&self, query: &LimitQuery, plane: &impl Dataplane) -> Page<LimitInForce> {
        let found = self
            .book
            .after(query.after)
            .filter(|record| query.matches(record))
            .map(|record| (record.id, self.in_force(record.clone(), plane)));
        Page::of(found, query.most)
    }

    pub(super) fn get(&self, id: u64, plane: &impl Dataplane) -> Result<LimitInForce, Refused> {
        match self.book.get(id) {
            Some(record) => Ok(self.in_force(record.clone(), plane)),
            None => Err(LimitRefusal::Unknown { id }.into()),
        }
    }

    /// Takes those out of the plane whose VIP is about to go: its number may become another's.
    pub(super) fn before_vips_change(
        &mut self,
        plane: &mut impl Dataplane,
        stays: impl Fn(&str) -> bool,
    ) {
        let goes = |vip: &Option<String>| vip.as_deref().is_some_and(|vip| !stays(vip));
        let going: Vec<u64> = self
            .book
            .iter()
            .filter(|record| goes(&record.spec.vip))
            .map(|record| record.id)
            .collect();
        for id in going {
            self.take_out(id, plane);
            self.waiting.insert(id);
        }
    }

    /// Puts those in whose VIP has come, or for which there is room now.
    pub(super) fn after_vips_change(&mut self, plane: &mut impl Dataplane) {
        for id in std::mem::take(&mut self.waiting) {
            let Some(record) = self.book.get(id).cloned() else {
                continue;
            };
            if !has_vip(plane, &record.spec) {
                self.waiting.insert(id);
                continue;
            }
            match self.place(id, &record.spec, plane) {
                Ok(number) => drop(self.numbers.insert(id, number)),
                Err(error) => {
                    tracing::warn!("{}", not_in_force(id, &error));
                    self.waiting.insert(id);
                }
            }
        }
    }

    /// Makes one limit be what it is to become; or the data plane refuses, and nothing changed.
    pub(super) fn take(
        &mut self,
        step: &Step,
        plane: &mut impl Dataplane,
    ) -> Result<Before, Refused> {
        match step {
            Step::New(record) | Step::Changed(record) => {
                let before = Before {
                    id: record.id,
                    record: self.book.get(record.id).cloned(),
                };
                self.put_in(record, plane)?;
                Ok(before)
            }
            Step::Same(record) => Ok(Before {
                id: record.id,
                record: Some(record.clone()),
            }),
            Step::Removed(id) => {
                let record = self.book.remove(*id);
                self.take_out(*id, plane);
                Ok(Before { id: *id, record })
            }
        }
    }

    /// Undoes a step that is on the disk.
    pub(super) fn take_back(&mut self, before: Before, plane: &mut impl Dataplane) {
        let Before { id, record } = before;
        self.differing.insert(id);
        let Some(record) = record else {
            self.book.remove(id);
            self.take_out(id, plane);
            return;
        };
        if let Err(error) = self.put_in(&record, plane) {
            tracing::error!(
                limit = id,
                error = chain(&error),
                "a limit is not in force; it is tried again when VIPs change, or remove it and set it again"
            );
            self.take_out(id, plane);
            self.waiting.insert(id);
            self.book.put(record);
        }
    }

    /// The disk holds this limit otherwise than it is here.
    pub(super) fn differs(&mut self, id: u64) {
        self.differing.insert(id);
    }

    /// No id below this is given again.
    pub(super) fn use_ids_below(&mut self, next_id: u64) {
        self.book.use_ids_below(next_id);
    }

    /// What makes the disk hold what is here, as far as it is known to differ; not all of it at once.
    pub(super) fn corrections(&mut self) -> Vec<(u64, Change)> {
        let ids: Vec<u64> = self.differing.iter().take(CORRECTIONS).copied().collect();
        let correct = |id| {
            self.differing.remove(&id);
            let change = match self.book.get(id) {
                Some(record) => Change::SetLimit(record.clone()),
                None => Change::RemoveLimit(id),
            };
            (id, change)
        };
        ids.into_iter().map(correct).collect()
    }

    pub(super) fn has_corrections(&self) -> bool {
        !self.differing.is_empty()
    }

    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.book.next_expiry_ms()
    }

    /// Ends what does not hold any more, and takes some of it out; true if there is more of that. The disk follows.
    ///
    /// Many may expire at once: all cease to act before the first is taken out, which takes far longer.
    pub(super) fn expire(&mut self, plane: &mut impl Dataplane) -> bool {
        let expired = self.book.expire(now_ms(), CEASING);
        for id in &expired {
            if let Some(number) = self.numbers.get(id) {
                plane.cease_limit(*number);
            }
        }
        if expired.len() < CEASING {
            self.take_expired(plane);
        }
        match expired.as_slice() {
            [] => {}
            [id] => {
                tracing::info!(limit = id, "expired");
                self.events.tell(Event::LimitExpired(*id));
            }
            [first, .., last] => {
                tracing::info!(limits = expired.len(), first, last, "expired");
                self.events.tell(Event::LimitsExpired(expired.into()));
            }
        }
        self.book.has_expired()
    }

    /// Takes out some that expired; false if there are none.
    fn take_expired(&mut self, plane: &mut impl Dataplane) -> bool {
        let expired = self.book.take_expired(EXPIRIES);
        for id in &expired {
            self.take_out(*id, plane);
        }
        self.differing.extend(&expired);
        !expired.is_empty()
    }

    fn put_in(
        &mut self,
        record: &Arc<LimitRecord>,
        plane: &mut impl Dataplane,
    ) -> Result<(), Refused> {
        let id = record.id;
        if let Some(other) = self.book.holder(&record.spec, id) {
            if self.book.get(other).is_some() {
                return Err(LimitRefusal::Conflict { id: other }.into());
            }
            self.book.remove(other);
            self.take_out(other, plane);
            self.differing.insert(other);
        }
        if !self.numbers.contains_key(&id) && !has_vip(plane, &record.spec) {
            // It comes with the VIP's tables.
            self.waiting.insert(id);
            self.book.put(record.clone());
            return Ok(());
        }
        let number = self.place(id, &record.spec, plane);
        let number = number.map_err(|error| Refused::Conflict(chain(&*error)))?;
        self.numbers.insert(id, number);
        self.waiting.remove(&id);
        self.book.put(record.clone());
        Ok(())
    }

    /// Puts a limit into the data plane. What expired makes room for it.
    fn place(
        &mut self,
        id: u64,
        spec: &LimitSpec,
        plane: &mut impl Dataplane,
    ) -> Result<u32, Failure> {
        loop {
            let placed = match self.numbers.get(&id) {
                Some(number) => plane.replace_limit(*number, spec),
                None => plane.insert_limit(spec),
            };
            if placed.is_ok() || !self.take_expired(plane) {
                return placed;
            }
        }
    }

    fn take_out(&mut self, id: u64, plane: &mut impl Dataplane) {
        self.waiting.remove(&id);
        if let Some(number) = self.numbers.remove(&id)
            && let Err(error) = plane.remove_limit(number)
        {
            tracing::error!(
                limit = id,
                error = chain(&*error),
                "cannot take a limit out of the data plane; a restart of the daemon makes the limits anew"
            );
        }
    }

    pub(super) fn in_force(
        &self,
        record: Arc<LimitRecord>,
        plane: &impl Dataplane,
    ) -> LimitInForce {
        let number = self.numbers.get(&record.id);
        let counters = number.and_then(|number| plane.limit_counters(*number));
        LimitInForce {
            record,
            counters: counters.unwrap_or_default(),
        }
    }
}

/// So many limits cease to act at once, and others get their turn in between.
const CEASING: usize = 16_384;
/// So many that expired are taken out at once, likewise.
const EXPIRIES: usize = 512;
/// So many rows are corrected with one write, so that no change waits long for them.
const CORRECTIONS: usize = 2_000;

fn has_vip(plane: &impl Dataplane, spec: &LimitSpec) -> bool {
    spec.vip.as_deref().is_none_or(|vip| plane.has_vip(vip))
}

fn not_in_force(id: u64, error: &Failure) -> String {
    format!("limit {id} is not in force: {}", chain(&**error))
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

impl From<LimitRefusal> for Refused {
    fn from(refusal: LimitRefusal) -> Self {
        match refusal {
            LimitRefusal::Unknown { .. } => Self::NotFound(refusal.to_string()),
            LimitRefusal::Conflict { .. } => Self::Conflict(refusal.to_string()),
            LimitRefusal::Unmet(unmet) => unmet.into(),
            LimitRefusal::Invalid(invalid) => invalid.into(),
        }
    }
}

#[cfg(test)]
mod tests;
