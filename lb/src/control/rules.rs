//! Rules, of the config and set at run time, in memory and in the data plane. What is changed here is on the disk already.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use sluice_ebpf::abi::RuleCounts;

use super::{
    Control, Dataplane, Event, LimitCounts, Novelty, Page, Refused, chain,
    events::Events,
    held::{Held, Kept},
};
use crate::{
    book::SpecError,
    config::Config,
    rules::{
        self, FIRST_CONFIG_ID, Origin, RuleBook, RuleChange, RuleRecord, RuleRefusal, RuleSpec,
        RuleStep,
    },
    store::Change,
};

/// A rule, and what it counted.
#[derive(Clone, Debug)]
pub struct RuleInForce {
    pub record: Arc<RuleRecord>,
    pub counts: RuleCounts,
}

/// Which rules somebody asks for: a page by id, of those that match all of this.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleQuery {
    /// Only higher ids.
    pub after: u64,
    /// No more than so many.
    pub most: usize,
    pub vip: Option<String>,
    pub origin: Option<Origin>,
    /// The comment has this in it.
    pub comment: Option<String>,
}

/// All rules that hold.
pub(super) struct Rules {
    pub(super) held: Held<RuleRecord>,
    /// Those of the config.
    config: Vec<Arc<RuleRecord>>,
}

impl Rules {
    pub(super) fn new(book: RuleBook, config: &Config, events: Events) -> Self {
        Self {
            held: Held::new(book, events),
            config: of_config(config),
        }
    }

    /// Takes the rules of another config.
    pub(super) fn follow(&mut self, config: &Config) {
        self.config = of_config(config);
    }

    /// Whether all rules fit the data plane, with these of the config.
    pub(super) fn fit_with(&self, config: &Config) -> Result<(), Refused> {
        fit(&of_config(config), self.held.book())
    }

    /// Whether all rules fit the data plane, with these set at run time.
    pub(super) fn fit(&self, book: &RuleBook) -> Result<(), Refused> {
        fit(&self.config, book)
    }

    /// Holds what is on the disk now, and makes packets meet it; or everything stays as it was, and the disk follows.
    pub(super) fn hold(
        &mut self,
        book: RuleBook,
        plane: &mut impl Dataplane,
    ) -> Result<(), String> {
        let before = self.held.turn_to(book);
        let put = self.put(plane, |_| true);
        self.held.settle(put, before)
    }

    /// Makes packets meet all rules whose VIPs stay there.
    pub(super) fn apply(&mut self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) {
        let put = self.put(plane, stays);
        self.held.note(put);
    }

    fn put(&self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) -> Result<(), String> {
        let all = ordered(&self.config, self.held.book());
        let here: Vec<(u64, &RuleSpec)> = all
            .iter()
            .map(|record| (record.id, &record.spec))
            .filter(|(_, spec)| {
                spec.vip
                    .as_deref()
                    .is_none_or(|vip| stays(vip) && plane.has_vip(vip))
            })
            .collect();
        plane.set_rules(&here).map_err(|error| chain(&*error))
    }

    pub(super) fn page(&self, query: &RuleQuery, plane: &impl Dataplane) -> Page<RuleInForce> {
        let counts = plane.rule_counts();
        let config = self.config.iter();
        let mut all: Vec<&Arc<RuleRecord>> = self.held.book().iter().chain(config).collect();
        all.sort_by_key(|record| record.id);
        let found = all
            .into_iter()
            .filter(|record| record.id > query.after && query.matches(&record.spec))
            .map(|record| (record.id, in_force(record, &counts)));
        Page::of(found, query.most)
    }

    pub(super) fn get(&self, id: u64, plane: &impl Dataplane) -> Result<RuleInForce, Refused> {
        let of_config = || self.config.iter().find(|record| record.id == id);
        match self.held.book().get(id).or_else(of_config) {
            Some(record) => Ok(in_force(record, &plane.rule_counts())),
            None => Err(RuleRefusal::Unknown { id }.into()),
        }
    }

    fn is_not_of_config(&self, id: u64) -> Result<(), RuleRefusal> {
        if self.config.iter().any(|record| record.id == id) {
            return Err(RuleRefusal::OfConfig { id });
        }
        Ok(())
    }

    /// What each rule counted, by id.
    pub(super) fn counts(plane: &impl Dataplane) -> Vec<(u64, LimitCounts)> {
        let counts = plane.rule_counts().into_iter();
        counts
            .map(|(id, counts)| {
                let counts = LimitCounts {
                    matched_packets: counts.passed.packets + counts.dropped.packets,
                    dropped_packets: counts.dropped.packets,
                };
                (id, counts)
            })
            .collect()
    }

    /// Takes out what does not hold any more. The disk follows.
    pub(super) fn expire(&mut self, plane: &mut impl Dataplane) {
        if self.held.expire() {
            self.apply(plane, |_| true);
        }
    }
}

impl Kept for RuleRecord {
    const UNMET: &str = "packets do not meet the rules";

    fn set(record: &Arc<Self>) -> Change {
        Change::SetRule(record.clone())
    }

    fn remove(id: u64) -> Change {
        Change::RemoveRule(id)
    }

    fn expired(id: u64) -> Event {
        Event::RuleExpired(id)
    }

    fn many_expired(ids: Arc<[u64]>) -> Event {
        Event::RulesExpired(ids)
    }
}

impl RuleQuery {
    fn matches(&self, spec: &RuleSpec) -> bool {
        self.vip
            .as_ref()
            .is_none_or(|vip| spec.vip.as_ref() == Some(vip))
            && self.origin.is_none_or(|origin| spec.origin == origin)
            && (self.comment.as_ref()).is_none_or(|part| spec.comment.contains(&**part))
    }
}

impl<P: Dataplane> Control<P> {
    /// Whether the rules of a change may be asked for now.
    pub(super) fn check_rules(&self, change: &RuleChange) -> Result<(), RuleRefusal> {
        match change {
            RuleChange::Set(spec, _) => self.check_rule(spec)?,
            RuleChange::SetAll(specs) => specs
                .iter()
                .enumerate()
                .try_for_each(|(at, spec)| self.check_rule(spec).map_err(|error| error.at(at)))?,
            RuleChange::Replace(id, spec, _) => {
                self.rules.is_not_of_config(*id)?;
                self.check_rule(spec)?;
            }
            RuleChange::Remove(id, ..) => self.rules.is_not_of_config(*id)?,
        }
        Ok(())
    }

    fn check_rule(&self, spec: &RuleSpec) -> Result<(), SpecError> {
        self.check_vip(spec.vip.as_deref())
            .map_err(|message| SpecError::of("vip", message))
    }

    pub(super) fn tell_rules(&self, steps: &[RuleStep]) {
        // What detection sets, sets again before its time is over, and removes, events of mitigations tell.
        if steps
            .iter()
            .any(|step| step.record().spec.origin == Origin::Detection)
        {
            return;
        }
        let events = &self.events;
        match steps {
            [RuleStep::New(record) | RuleStep::Changed(record)] => {
                events.tell(Event::RuleSet(record.clone()));
            }
            [RuleStep::Removed(record)] => events.tell(Event::RuleRemoved(record.id)),
            [] | [RuleStep::Same(_)] => {}
            many => events.tell(Event::RulesSet(many.iter().map(RuleStep::id).collect())),
        }
    }

    /// What became of rules, for who asked for it.
    pub(super) fn rules_changed(&self, steps: &[RuleStep]) -> Vec<(RuleInForce, Novelty)> {
        let counts = self.plane.rule_counts();
        let changed = steps.iter().filter_map(|step| match step {
            RuleStep::New(record) => Some((in_force(record, &counts), Novelty::New)),
            RuleStep::Changed(record) | RuleStep::Same(record) => {
                Some((in_force(record, &counts), Novelty::Replaced))
            }
            RuleStep::Removed(_) => None,
        });
        changed.collect()
    }
}

/// Their ids come from their text, so that they keep their counters over reloads.
fn of_config(config: &Config) -> Vec<Arc<RuleRecord>> {
    let mut taken = HashSet::new();
    let rules = config.rules.iter();
    rules
        .map(|spec| {
            let mut id = FIRST_CONFIG_ID + fnv(&spec.to_string()) % FIRST_CONFIG_ID;
            while !taken.insert(id) {
                id += 1;
            }
            Arc::new(RuleRecord {
                id,
                revision: 1,
                spec: spec.clone(),
                created_ms: 0,
                expires_ms: None,
            })
        })
        .collect()
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// In the order in which packets meet them.
fn ordered(config: &[Arc<RuleRecord>], book: &RuleBook) -> Vec<Arc<RuleRecord>> {
    let mut all: Vec<Arc<RuleRecord>> = config.iter().chain(book.iter()).cloned().collect();
    all.sort_by_key(|record| (record.spec.priority, record.id));
    all
}

fn fit(config: &[Arc<RuleRecord>], book: &RuleBook) -> Result<(), Refused> {
    let all = ordered(config, book);
    rules::fit(all.iter().map(|record| &record.spec))
        .map_err(|error| Refused::Conflict(error.to_string()))
}

fn in_force(record: &Arc<RuleRecord>, counts: &BTreeMap<u64, RuleCounts>) -> RuleInForce {
    RuleInForce {
        record: record.clone(),
        counts: counts.get(&record.id).copied().unwrap_or_default(),
    }
}

impl From<RuleRefusal> for Refused {
    fn from(refusal: RuleRefusal) -> Self {
        match refusal {
            RuleRefusal::Unknown { .. } => Self::NotFound(refusal.to_string()),
            RuleRefusal::Conflict { .. }
            | RuleRefusal::OfConfig { .. }
            | RuleRefusal::OfDetection { .. } => Self::Conflict(refusal.to_string()),
            RuleRefusal::Unmet(unmet) => unmet.into(),
            RuleRefusal::Invalid(invalid) => invalid.into(),
        }
    }
}
