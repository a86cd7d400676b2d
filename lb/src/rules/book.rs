//! The rules that were set, and how they change.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Action, Components, Origin, RuleSpec};
use crate::book::{Book, Precondition, Record, SpecError, Stamp, Step, Unmet};

/// A rule that was set. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRecord {
    pub id: u64,
    /// 1 when it is new, and one more with each change.
    pub revision: u64,
    pub spec: RuleSpec,
    pub created_ms: u64,
    /// From then on it does not hold.
    pub expires_ms: Option<u64>,
}

/// Setting a rule that means the same packets as one of the same origin replaces that, which keeps its id.
pub type RuleBook = Book<RuleRecord>;

/// A change of some rules, all or none.
#[derive(Clone, Debug)]
pub enum RuleChange {
    Set(Box<RuleSpec>, Precondition),
    SetAll(Vec<RuleSpec>),
    Replace(u64, Box<RuleSpec>, Precondition),
    /// By whom: nobody removes what another set.
    Remove(u64, Origin, Precondition),
}

/// What became of one rule.
pub type RuleStep = Step<RuleRecord>;

/// Why a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RuleRefusal {
    #[error("there is no rule {id}")]
    Unknown { id: u64 },
    #[error("rule {id} stands in the config file; change it there, and reload")]
    OfConfig { id: u64 },
    #[error(
        "rule {id} is detection's, which sets it as long as {comment} lasts; `sluice mitigation revert` ends that"
    )]
    OfDetection { id: u64, comment: String },
    #[error(transparent)]
    Unmet(#[from] Unmet),
    #[error("rule {id} means the same packets already; change or remove that one")]
    Conflict { id: u64 },
    #[error(transparent)]
    Invalid(#[from] SpecError),
}

/// Rules of the config have ids from here on.
pub const FIRST_CONFIG_ID: u64 = 1_000_000_000;

impl Record for RuleRecord {
    fn stamp(&self) -> Stamp {
        Stamp {
            id: self.id,
            revision: self.revision,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        }
    }
}

impl RuleBook {
    /// Makes a change, or nothing of it.
    pub fn change(
        &mut self,
        change: RuleChange,
        now_ms: u64,
    ) -> Result<Vec<RuleStep>, RuleRefusal> {
        let mut copy = self.clone();
        let steps = match change {
            RuleChange::Set(spec, precondition) => vec![copy.set(*spec, &precondition, now_ms)?],
            RuleChange::SetAll(specs) => copy.set_all(specs, now_ms)?,
            RuleChange::Replace(id, spec, precondition) => {
                vec![copy.replace(id, *spec, &precondition, now_ms)?]
            }
            RuleChange::Remove(id, by, precondition) => {
                vec![copy.take_out(id, by, &precondition)?]
            }
        };
        *self = copy;
        Ok(steps)
    }

    fn set(
        &mut self,
        spec: RuleSpec,
        precondition: &Precondition,
        now_ms: u64,
    ) -> Result<RuleStep, RuleRefusal> {
        spec.validate()?;
        let before = self.find(&spec).cloned();
        precondition.check(before.as_ref().map(|before| before.etag()))?;
        Ok(self.write(before, spec, now_ms))
    }

    fn set_all(&mut self, specs: Vec<RuleSpec>, now_ms: u64) -> Result<Vec<RuleStep>, RuleRefusal> {
        let mut steps = Vec::with_capacity(specs.len());
        for (at, spec) in specs.into_iter().enumerate() {
            spec.validate().map_err(|error| error.at(at))?;
            let before = self.find(&spec).cloned();
            let twice = |before: &Arc<RuleRecord>| {
                steps
                    .iter()
                    .position(|step: &RuleStep| step.id() == before.id)
            };
            if let Some(other) = before.as_ref().and_then(twice) {
                let message = format!("means the same packets as [{other}]");
                return Err(SpecError::whole(message).at(at).into());
            }
            steps.push(self.write(before, spec, now_ms));
        }
        Ok(steps)
    }

    /// What a rule is already it stays, its time included.
    fn replace(
        &mut self,
        id: u64,
        spec: RuleSpec,
        precondition: &Precondition,
        now_ms: u64,
    ) -> Result<RuleStep, RuleRefusal> {
        spec.validate()?;
        let before = self.known(id, spec.origin)?;
        precondition.check(Some(before.etag()))?;
        if before.spec == spec {
            return Ok(RuleStep::Same(before));
        }
        match self.find(&spec) {
            Some(other) if other.id != id => Err(RuleRefusal::Conflict { id: other.id }),
            _ => Ok(self.write(Some(before), spec, now_ms)),
        }
    }

    fn take_out(
        &mut self,
        id: u64,
        by: Origin,
        precondition: &Precondition,
    ) -> Result<RuleStep, RuleRefusal> {
        precondition.check(Some(self.known(id, by)?.etag()))?;
        self.remove(id).ok_or(RuleRefusal::Unknown { id })
    }

    /// The rule, if it is theirs who want to change it.
    fn known(&self, id: u64, by: Origin) -> Result<Arc<RuleRecord>, RuleRefusal> {
        let record = self.get(id).ok_or(RuleRefusal::Unknown { id })?;
        if record.spec.origin == Origin::Detection && by != Origin::Detection {
            let comment = record.spec.comment.clone();
            return Err(RuleRefusal::OfDetection { id, comment });
        }
        Ok(record.clone())
    }

    fn write(&mut self, before: Option<Arc<RuleRecord>>, spec: RuleSpec, now_ms: u64) -> RuleStep {
        let stamp = self.stamp(before.as_deref(), spec.ttl_seconds, now_ms);
        self.put(RuleRecord {
            id: stamp.id,
            revision: stamp.revision,
            spec,
            created_ms: stamp.created_ms,
            expires_ms: stamp.expires_ms,
        })
    }

    /// The rule that means the same packets, and was set by the same.
    fn find(&self, spec: &RuleSpec) -> Option<&Arc<RuleRecord>> {
        let wanted = identity(spec);
        self.iter().find(|record| identity(&record.spec) == wanted)
    }
}

impl RuleSpec {
    /// Whether one of both would take the place of the other.
    pub fn is_for_packets_of(&self, other: &Self) -> bool {
        identity(self) == identity(other)
    }
}

/// A rule that samples stands beside one that acts.
fn identity(spec: &RuleSpec) -> (&Components, Option<&str>, bool, Origin, bool) {
    let samples = spec.action == Action::Sample;
    (
        &spec.components,
        spec.vip.as_deref(),
        spec.established,
        spec.origin,
        samples,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> RuleSpec {
        text.parse().unwrap()
    }

    fn set(book: &mut RuleBook, text: &str, now_ms: u64) -> RuleStep {
        let change = RuleChange::Set(Box::new(rule(text)), Precondition::None);
        book.change(change, now_ms).unwrap().remove(0)
    }

    #[test]
    fn a_rule_for_the_same_packets_keeps_its_id_and_begins_its_time_anew() {
        let mut book = RuleBook::new([], 1);
        let first = set(&mut book, "proto udp; sport 53 -> drop; expire 10s", 0);
        assert!(matches!(&first, RuleStep::New(record) if record.id == 1));
        let again = set(
            &mut book,
            "proto udp; sport 53 -> limit 5 pps; expire 10s",
            5_000,
        );
        let RuleStep::Changed(record) = again else {
            panic!("{again:?}");
        };
        assert_eq!(
            (record.id, record.revision, record.expires_ms),
            (1, 2, Some(15_000))
        );
        assert_eq!(set(&mut book, "proto udp; sport 54 -> drop", 0).id(), 2);
        let mut detected = rule("proto udp; sport 53 -> drop");
        detected.origin = Origin::Detection;
        let change = RuleChange::Set(Box::new(detected), Precondition::None);
        assert_eq!(
            book.change(change, 0).unwrap()[0].id(),
            3,
            "what an operator set stays"
        );
        assert_eq!(book.next_expiry_ms(), Some(15_000));
        assert_eq!(book.expire(15_000), [1]);
        let remove = |by| RuleChange::Remove(3, by, Precondition::None);
        let refused = book.change(remove(Origin::Operator), 0).unwrap_err();
        assert!(matches!(refused, RuleRefusal::OfDetection { id: 3, .. }));
        book.change(remove(Origin::Detection), 0).unwrap();
        assert_eq!(
            set(&mut book, "ttl 1 -> drop", 0).id(),
            4,
            "ids are not used again"
        );
        let records: Vec<RuleRecord> = book.iter().map(|record| (**record).clone()).collect();
        assert_eq!(RuleBook::new(records, 1), book);
    }

    #[test]
    fn many_rules_are_set_or_none() {
        let mut book = RuleBook::new([], 1);
        let same = vec![rule("ttl 1 -> drop"), rule("ttl 1 -> pass")];
        let refused = book.change(RuleChange::SetAll(same), 0).unwrap_err();
        assert_eq!(refused.to_string(), "[1]: means the same packets as [0]");
        assert_eq!(book.iter().count(), 0);
        let two = vec![rule("ttl 1 -> drop"), rule("ttl 2 -> pass")];
        assert_eq!(book.change(RuleChange::SetAll(two), 0).unwrap().len(), 2);
    }

    #[test]
    fn a_stale_tag_and_a_foreign_id_are_refused() {
        let mut book = RuleBook::new([], 1);
        set(&mut book, "ttl 1 -> drop", 0);
        let old = book.get(1).unwrap().etag().to_string();
        set(&mut book, "ttl 1 -> pass", 0);
        let stale = old.parse::<Precondition>().unwrap();
        let remove = RuleChange::Remove(1, Origin::Operator, stale);
        let refused = book.change(remove, 0).unwrap_err();
        assert!(matches!(refused, RuleRefusal::Unmet(Unmet::Stale(_))));
        let replace = |id, text| RuleChange::Replace(id, Box::new(rule(text)), Precondition::None);
        set(&mut book, "ttl 2 -> drop", 0);
        let refused = book.change(replace(1, "ttl 2 -> drop"), 0).unwrap_err();
        assert!(matches!(refused, RuleRefusal::Conflict { id: 2 }));
        book.change(replace(1, "ttl 3 -> drop"), 0).unwrap();
        let refused = book.change(replace(9, "ttl 4 -> drop"), 0).unwrap_err();
        assert_eq!(refused.to_string(), "there is no rule 9");
    }
}
