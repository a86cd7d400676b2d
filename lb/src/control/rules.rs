//! Rules, of the config and set at run time, in memory and in the data plane. What is changed here is on the disk already.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use sluice_ebpf::abi::RuleCounts;

use super::{
    Control, Dataplane, Event, LimitCounts, Novelty, Refused, chain, events::Events, limits::now_ms,
};
use crate::{
    config::Config,
    rules::{
        self, FIRST_CONFIG_ID, Origin, RuleBook, RuleChange, RuleError, RuleRecord, RuleRefusal,
        RuleSpec, RuleStep,
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

/// Some rules, and whether there are more.
#[derive(Clone, Debug)]
pub struct RulePage {
    pub rules: Vec<RuleInForce>,
    /// Ask for those after this id; `None` if there are no more.
    pub next: Option<u64>,
}

/// All rules that hold.
pub(super) struct Rules {
    book: RuleBook,
    /// Those of the config.
    config: Vec<Arc<RuleRecord>>,
    /// Those that stand on the disk otherwise than here: their time is over, or the data plane refused them.
    differing: BTreeSet<u64>,
    /// Why the data plane does not hold them.
    error: Option<String>,
    events: Events,
}

impl Rules {
    pub(super) fn new(book: RuleBook, config: &Config, events: Events) -> Self {
        Self {
            book,
            config: of_config(config),
            differing: BTreeSet::new(),
            error: None,
            events,
        }
    }

    pub(super) fn book(&self) -> &RuleBook {
        &self.book
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.clone()
    }

    /// Takes the rules of another config.
    pub(super) fn follow(&mut self, config: &Config) {
        self.config = of_config(config);
    }

    /// Whether all rules fit the data plane, with these of the config.
    pub(super) fn fit_with(&self, config: &Config) -> Result<(), Refused> {
        fit(&of_config(config), &self.book)
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
        let before = std::mem::replace(&mut self.book, book);
        self.end_expired();
        let put = self.put(plane, |_| true);
        if put.is_ok() {
            self.error = None;
        } else {
            let tried = std::mem::replace(&mut self.book, before);
            let ids = self.book.iter().chain(tried.iter()).map(|record| record.id);
            let differ = ids.filter(|id| self.book.get(*id) != tried.get(*id));
            self.differing.extend(differ);
        }
        put
    }

    /// Makes packets meet all rules whose VIPs stay there.
    pub(super) fn apply(&mut self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) {
        let error = self.put(plane, stays).err();
        if let Some(error) = &error
            && self.error.as_ref() != Some(error)
        {
            tracing::error!("{error}");
        }
        self.error = error;
    }

    fn put(&self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) -> Result<(), String> {
        let all = ordered(&self.config, &self.book);
        let here: Vec<(u64, &RuleSpec)> = all
            .iter()
            .map(|record| (record.id, &record.spec))
            .filter(|(_, spec)| {
                spec.vip
                    .as_deref()
                    .is_none_or(|vip| stays(vip) && plane.has_vip(vip))
            })
            .collect();
        plane
            .set_rules(&here)
            .map_err(|error| format!("packets do not meet the rules: {}", chain(&*error)))
    }

    pub(super) fn page(&self, query: &RuleQuery, plane: &impl Dataplane) -> RulePage {
        let counts = plane.rule_counts();
        let config = self.config.iter();
        let mut all: Vec<&Arc<RuleRecord>> = self.book.iter().chain(config).collect();
        all.sort_by_key(|record| record.id);
        let mut found = all
            .into_iter()
            .filter(|record| record.id > query.after && query.matches(&record.spec));
        let rules: Vec<RuleInForce> = found
            .by_ref()
            .take(query.most)
            .map(|record| in_force(record, &counts))
            .collect();
        let last = rules.last().map(|rule| rule.record.id);
        RulePage {
            next: last.filter(|_| found.next().is_some()),
            rules,
        }
    }

    pub(super) fn get(&self, id: u64, plane: &impl Dataplane) -> Result<RuleInForce, Refused> {
        let of_config = || self.config.iter().find(|record| record.id == id);
        match self.book.get(id).or_else(of_config) {
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

    pub(super) fn next_expiry_ms(&self) -> Option<u64> {
        self.book.next_expiry_ms()
    }

    /// Takes out what does not hold any more. The disk follows.
    pub(super) fn expire(&mut self, plane: &mut impl Dataplane) {
        if self.end_expired() {
            self.apply(plane, |_| true);
        }
    }

    /// Whether there was any.
    fn end_expired(&mut self) -> bool {
        let expired = self.book.expire(now_ms());
        for id in &expired {
            // What ended before, and was held again, was told then.
            if self.differing.insert(*id) {
                tracing::info!(rule = id, "expired");
                self.events.tell(Event::RuleExpired(*id));
            }
        }
        !expired.is_empty()
    }

    /// What makes the disk hold what is here.
    pub(super) fn corrections(&mut self) -> Vec<(u64, Change)> {
        let differing = std::mem::take(&mut self.differing);
        let change = |id: u64| match self.book.get(id) {
            Some(record) => (id, Change::SetRule(record.clone())),
            None => (id, Change::RemoveRule(id)),
        };
        differing.into_iter().map(change).collect()
    }

    pub(super) fn has_corrections(&self) -> bool {
        !self.differing.is_empty()
    }

    /// The disk holds these rules otherwise than they are here.
    pub(super) fn differ(&mut self, ids: Vec<u64>) {
        self.differing.extend(ids);
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

    fn check_rule(&self, spec: &RuleSpec) -> Result<(), RuleError> {
        self.check_vip(spec.vip.as_deref())
            .map_err(|message| RuleError::of("vip", message))
    }

    pub(super) fn tell_rules(&self, steps: &[RuleStep]) {
        // What detection sets, sets again before its time is over, and removes, events of mitigations tell.
        if steps.iter().any(|step| step.origin() == Origin::Detection) {
            return;
        }
        let events = &self.events;
        match steps {
            [RuleStep::New(record) | RuleStep::Changed(record)] => {
                events.tell(Event::RuleSet(record.clone()));
            }
            [RuleStep::Removed(record)] => events.tell(Event::RuleRemoved(record.id)),
            [] => {}
            many => events.tell(Event::RulesSet(many.iter().map(RuleStep::id).collect())),
        }
    }

    /// What became of rules, for who asked for it.
    pub(super) fn rules_changed(&self, steps: &[RuleStep]) -> Vec<(RuleInForce, Novelty)> {
        let counts = self.plane.rule_counts();
        let changed = steps.iter().filter_map(|step| match step {
            RuleStep::New(record) => Some((in_force(record, &counts), Novelty::New)),
            RuleStep::Changed(record) => Some((in_force(record, &counts), Novelty::Replaced)),
            RuleStep::Removed(_) => None,
        });
        changed.collect()
    }
}

/// What a step changes on the disk.
pub(super) fn written(step: &RuleStep) -> Change {
    match step {
        RuleStep::New(record) | RuleStep::Changed(record) => Change::SetRule(record.clone()),
        RuleStep::Removed(record) => Change::RemoveRule(record.id),
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

impl From<RuleError> for Refused {
    fn from(error: RuleError) -> Self {
        let column = error.column.map(|column| format!("column {column}: "));
        Self::Invalid {
            message: format!("{}{}", column.unwrap_or_default(), error.message),
            field: Some(error.field).filter(|field| !field.is_empty()),
        }
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
