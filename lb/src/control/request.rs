//! What somebody wants to be changed, and how they are answered.

use std::sync::Arc;

use super::{
    Draining, LimitInForce, Novelty, Refused, Reply, RuleInForce, SourceInForce, held::written,
};
use crate::{
    book::Precondition,
    drains::Drain,
    limits::{LimitRecord, LimitSpec, Step},
    rules::{RuleChange, RuleStep},
    sources::{SourceChange, SourceStep},
    store::Change,
};

/// What somebody wants to be changed.
#[derive(Debug)]
pub(super) enum Request {
    SetLimit(LimitSpec, Precondition, Reply<(LimitInForce, Novelty)>),
    SetLimits(Vec<LimitSpec>, Reply<LimitsSet>),
    ReplaceLimit(u64, LimitSpec, Precondition, Reply<(LimitInForce, Novelty)>),
    RemoveLimit(u64, Precondition, Reply<()>),
    Rules(RuleChange, Reply<Vec<(RuleInForce, Novelty)>>),
    Source(SourceChange, Reply<Option<(SourceInForce, Novelty)>>),
    Drain(Drain, Draining, Reply<()>),
    /// Rows of detection; without a value: to be removed.
    Keep(Vec<(String, Option<Vec<u8>>)>, Reply<()>),
}

/// What became of many limits, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsSet {
    pub ids: Vec<u64>,
    /// How many of them are new; the others took the place of limits for the same packets.
    pub created: usize,
}

/// A request that can be carried out.
pub(super) struct Planned {
    pub(super) steps: Vec<Step>,
    pub(super) rules: Vec<RuleStep>,
    pub(super) source: Option<SourceStep>,
    pub(super) drain: Option<(Drain, Draining)>,
    pub(super) kept: Vec<Change>,
    pub(super) answer: Answer,
}

pub(super) enum Answer {
    Limit(Reply<(LimitInForce, Novelty)>),
    Limits(Reply<LimitsSet>),
    Rules(Reply<Vec<(RuleInForce, Novelty)>>),
    Source(Reply<Option<(SourceInForce, Novelty)>>),
    Done(Reply<()>),
}

impl Request {
    pub(super) fn answer(self) -> Answer {
        match self {
            Self::SetLimit(_, _, reply) | Self::ReplaceLimit(_, _, _, reply) => {
                Answer::Limit(reply)
            }
            Self::SetLimits(_, reply) => Answer::Limits(reply),
            Self::Rules(_, reply) => Answer::Rules(reply),
            Self::Source(_, reply) => Answer::Source(reply),
            Self::RemoveLimit(_, _, reply) | Self::Drain(_, _, reply) | Self::Keep(_, reply) => {
                Answer::Done(reply)
            }
        }
    }
}

impl Planned {
    pub(super) fn new(steps: Vec<Step>, answer: Answer) -> Self {
        Self {
            steps,
            rules: Vec::new(),
            source: None,
            drain: None,
            kept: Vec::new(),
            answer,
        }
    }

    pub(super) fn limit(
        step: Result<Step, Refused>,
        reply: Reply<(LimitInForce, Novelty)>,
    ) -> Option<Self> {
        let (step, reply) = or_refuse(step, reply)?;
        Some(Self::new(vec![step], Answer::Limit(reply)))
    }

    pub(super) fn write(&self, changes: &mut Vec<Change>) {
        changes.extend(self.steps.iter().filter_map(|step| match step {
            Step::New(record) | Step::Changed(record) => Some(Change::SetLimit(record.clone())),
            Step::Removed(id) => Some(Change::RemoveLimit(*id)),
            Step::Same(_) => None,
        }));
        changes.extend(self.rules.iter().filter_map(written));
        changes.extend(self.source.iter().filter_map(written));
        changes.extend(self.kept.iter().cloned());
        changes.extend(self.drain.iter().map(|(drain, draining)| match draining {
            Draining::Begin => Change::Drain(drain.clone()),
            Draining::End => Change::Undrain(drain.clone()),
        }));
    }
}

impl Answer {
    // Who asked may be gone; what was asked for is done all the same.
    pub(super) fn refuse(self, refused: Refused) {
        match self {
            Self::Limit(reply) => drop(reply.send(Err(refused))),
            Self::Limits(reply) => drop(reply.send(Err(refused))),
            Self::Rules(reply) => drop(reply.send(Err(refused))),
            Self::Source(reply) => drop(reply.send(Err(refused))),
            Self::Done(reply) => drop(reply.send(Err(refused))),
        }
    }

    pub(super) fn give(self, steps: &[Step], in_force: impl Fn(&Arc<LimitRecord>) -> LimitInForce) {
        match (self, steps) {
            (Self::Limit(reply), [Step::New(record)]) => {
                drop(reply.send(Ok((in_force(record), Novelty::New))));
            }
            (Self::Limit(reply), [Step::Changed(record) | Step::Same(record)]) => {
                drop(reply.send(Ok((in_force(record), Novelty::Replaced))));
            }
            // No other step sets one limit, and dropping the reply says so.
            (Self::Limit(_) | Self::Rules(_) | Self::Source(_), _) => {}
            (Self::Limits(reply), steps) => {
                let set = LimitsSet {
                    ids: steps.iter().map(Step::id).collect(),
                    created: steps
                        .iter()
                        .filter(|step| matches!(step, Step::New(_)))
                        .count(),
                };
                drop(reply.send(Ok(set)));
            }
            (Self::Done(reply), _) => drop(reply.send(Ok(()))),
        }
    }
}

/// Answers at once if there is nothing to be done.
pub(super) fn or_refuse<T, R>(
    result: Result<T, Refused>,
    reply: Reply<R>,
) -> Option<(T, Reply<R>)> {
    match result {
        Ok(value) => Some((value, reply)),
        Err(refused) => {
            drop(reply.send(Err(refused)));
            None
        }
    }
}
