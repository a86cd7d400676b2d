//! Changes of what is set at run time: thought out, written to the disk, then made. Whoever asked is answered last.
//!
//! One write is under way at a time, and has in it all that was asked for while the one before was: so a change waits
//! for two writes at most, however many come at once. The data plane follows in the same order.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::oneshot;

use super::{
    Control, Dataplane, Draining, Event, Refused, Reply, chain,
    limits::{Before, now_ms},
    request::{Answer, Planned, Request, or_refuse},
};
use crate::{
    book::SpecError,
    drains::{Drain, Drains},
    limits::{Draft, LimitSpec, Step},
    rules::RuleBook,
    sources::SourceBook,
    store::{Change, StoreError, Writer},
};

/// Requests on their way.
pub(super) struct Changes {
    writer: Writer,
    waiting: VecDeque<Request>,
    stage: Stage,
}

enum Stage {
    Idle,
    Writing(Flight),
    Making(Making),
}

/// A write under way.
struct Flight {
    planned: VecDeque<Planned>,
    /// Limits whose rows it corrects.
    corrected: Vec<u64>,
    corrected_rules: Vec<u64>,
    next_limit_id: u64,
    /// All rules as they are to be.
    rules: RuleBook,
    corrected_sources: Vec<u64>,
    /// The same of sources, if they change.
    sources: Option<SourceBook>,
    /// Drains that it takes off the disk, for nothing is left of what they were of.
    orphans: Drains,
    outcome: oneshot::Receiver<Result<(), StoreError>>,
    /// Beats of the loop since it began.
    beats: u32,
}

/// What was written is being made, a part at a time.
struct Making {
    planned: VecDeque<Planned>,
    /// Why the data plane did not take the rules, or the sources.
    rules_refused: Option<String>,
    sources_refused: Option<String>,
    /// Steps of the first that were taken.
    taken: Vec<Before>,
    /// Who waits for the tables.
    drained: Vec<(Drain, Draining, Reply<()>)>,
}

/// What the requests so far lead to.
pub(super) struct Plan<'a> {
    limits: Draft<'a>,
    rules: RuleBook,
    sources: SourceBook,
    /// What begins to drain, or ceases to.
    pub(super) drains: BTreeMap<Drain, Draining>,
}

/// So many may wait for a disk that is slow or stuck.
const WAITING: usize = 4_096;
/// So many steps are taken at once, and others get their turn in between.
const STEPS: usize = 512;
/// A write that takes longer is told of. Counted, and not measured: a process that stood still has no slow disk.
const BEATS: u32 = 10;

impl Changes {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            waiting: VecDeque::new(),
            stage: Stage::Idle,
        }
    }

    /// Waits until the stage that a write is in is over.
    pub(super) async fn next(&mut self) -> Turn {
        match &mut self.stage {
            Stage::Idle => std::future::pending().await,
            Stage::Writing(flight) => {
                let outcome = (&mut flight.outcome).await;
                Turn::Written(outcome.unwrap_or(Err(StoreError::Ended)))
            }
            Stage::Making(_) => {
                tokio::task::yield_now().await;
                Turn::Make
            }
        }
    }

    /// To be called at each beat: whether the disk has not answered for so many.
    pub(super) fn wait_for_disk(&mut self) -> bool {
        let Stage::Writing(flight) = &mut self.stage else {
            return false;
        };
        flight.beats = flight.beats.saturating_add(1);
        flight.beats > BEATS
    }

    pub(super) fn push(&mut self, request: Request) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back(request);
            return;
        }
        request.answer().refuse(Refused::Busy(format!(
            "{WAITING} changes wait for the disk already; try again"
        )));
    }
}

/// What [`Control::go_on`] is to do.
pub(super) enum Turn {
    Written(Result<(), StoreError>),
    Make,
}

impl<P: Dataplane> Control<P> {
    /// Has written what waits, unless a write is under way.
    pub(super) fn begin(&mut self) {
        let in_trouble = self.trouble.borrow().is_some();
        let differ = self.limits.has_corrections()
            || self.rules.held.has_corrections()
            || self.sets.held.has_corrections()
            || !self.orphans.is_empty();
        let corrections = differ && !in_trouble;
        let idle = matches!(self.changes.stage, Stage::Idle);
        if !idle || (self.changes.waiting.is_empty() && !corrections) {
            return;
        }
        let (corrected, mut changes): (Vec<_>, Vec<_>) =
            self.limits.corrections().into_iter().unzip();
        let (corrected_rules, more): (_, Vec<_>) =
            self.rules.held.corrections().into_iter().unzip();
        changes.extend(more);
        let (corrected_sources, more): (_, Vec<_>) =
            self.sets.held.corrections().into_iter().unzip();
        changes.extend(more);
        let orphans = std::mem::take(&mut self.orphans);
        changes.extend(orphans.iter().cloned().map(Change::Undrain));
        let requests = std::mem::take(&mut self.changes.waiting);
        let mut plan = Plan {
            limits: Draft::new(self.limits.book(), now_ms()),
            rules: self.rules.held.book().clone(),
            sources: self.sets.held.book().clone(),
            drains: BTreeMap::new(),
        };
        let planned: VecDeque<Planned> = requests
            .into_iter()
            .filter_map(|request| self.plan(&mut plan, request))
            .collect();
        for planned in &planned {
            planned.write(&mut changes);
        }
        let next_limit_id = plan.limits.next_id();
        if next_limit_id > self.limits.book().next_id() {
            changes.push(Change::NextLimitId(next_limit_id));
        }
        if plan.rules.next_id() > self.rules.held.book().next_id() {
            changes.push(Change::NextRuleId(plan.rules.next_id()));
        }
        if plan.sources.next_id() > self.sets.held.book().next_id() {
            changes.push(Change::NextSourceId(plan.sources.next_id()));
        }
        let (rules, sources) = (plan.rules, plan.sources);
        let with_sources = planned.iter().any(|planned| planned.source.is_some());
        let outcome = if changes.is_empty() {
            let (done, outcome) = oneshot::channel();
            _ = done.send(Ok(()));
            outcome
        } else {
            self.changes.writer.submit(changes)
        };
        self.changes.stage = Stage::Writing(Flight {
            planned,
            corrected,
            corrected_rules,
            next_limit_id,
            rules,
            corrected_sources,
            sources: with_sources.then_some(sources),
            orphans,
            outcome,
            beats: 0,
        });
    }

    /// Takes the next turn of the write that is under way.
    pub(super) fn go_on(&mut self, turn: Turn) {
        let stage = std::mem::replace(&mut self.changes.stage, Stage::Idle);
        match (turn, stage) {
            (Turn::Written(Ok(())), Stage::Writing(flight)) => {
                self.limits.use_ids_below(flight.next_limit_id);
                let rules = Some(flight.rules).filter(|rules| rules != self.rules.held.book());
                let rules = rules.map(|book| self.rules.hold(book, &mut self.plane));
                let sources = flight.sources;
                let sources = sources.map(|book| self.sets.hold(book, &mut self.plane));
                self.make(Making {
                    planned: flight.planned,
                    rules_refused: rules.and_then(Result::err),
                    sources_refused: sources.and_then(Result::err),
                    taken: Vec::new(),
                    drained: Vec::new(),
                });
            }
            (Turn::Written(Err(error)), Stage::Writing(flight)) => {
                let why = chain(&error);
                for id in flight.corrected {
                    self.limits.differs(id);
                }
                self.rules.held.differ(flight.corrected_rules);
                self.sets.held.differ(flight.corrected_sources);
                self.orphans.extend(flight.orphans);
                for planned in flight.planned {
                    planned.answer.refuse(Refused::Disk(why.clone()));
                }
            }
            (Turn::Make, Stage::Making(making)) => self.make(making),
            (_, stage) => self.changes.stage = stage,
        }
    }

    /// Whether the request can be carried out after those before it; if not, it is answered.
    fn plan(&self, plan: &mut Plan<'_>, request: Request) -> Option<Planned> {
        let limits = &mut plan.limits;
        match request {
            Request::Rules(change, reply) => {
                let mut rules = plan.rules.clone();
                let steps = self
                    .check_rules(&change)
                    .map_err(Refused::from)
                    .and_then(|()| Ok(rules.change(change, now_ms())?))
                    .and_then(|steps| self.rules.fit(&rules).map(|()| steps));
                let (steps, reply) = or_refuse(steps, reply)?;
                plan.rules = rules;
                let mut planned = Planned::new(Vec::new(), Answer::Rules(reply));
                planned.rules = steps;
                Some(planned)
            }
            Request::Source(change, reply) => {
                let step = self
                    .check_source(&change)
                    .and_then(|()| plan.sources.change(change, self.sets.taken(), now_ms()));
                let (step, reply) = or_refuse(step.map_err(Refused::from), reply)?;
                let mut planned = Planned::new(Vec::new(), Answer::Source(reply));
                planned.source = Some(step);
                Some(planned)
            }
            Request::SetLimit(spec, precondition, reply) => {
                let step = self
                    .check_limit(&spec)
                    .map_err(Refused::from)
                    .and_then(|()| Ok(limits.set(spec, &precondition)?));
                Planned::limit(step, reply)
            }
            Request::ReplaceLimit(id, spec, precondition, reply) => {
                let step = self
                    .check_limit(&spec)
                    .map_err(Refused::from)
                    .and_then(|()| Ok(limits.replace(id, spec, &precondition)?));
                Planned::limit(step, reply)
            }
            Request::SetLimits(specs, reply) => {
                let checked = specs.iter().enumerate().try_for_each(|(at, spec)| {
                    self.check_limit(spec).map_err(|error| error.at(at).into())
                });
                let steps = checked.and_then(|()| Ok(limits.set_all(specs)?));
                let (steps, reply) = or_refuse(steps, reply)?;
                Some(Planned::new(steps, Answer::Limits(reply)))
            }
            Request::RemoveLimit(id, precondition, reply) => {
                let step = limits.remove(id, &precondition).map_err(Refused::from);
                let (step, reply) = or_refuse(step, reply)?;
                Some(Planned::new(vec![step], Answer::Done(reply)))
            }
            Request::Keep(rows, reply) => {
                let rows = rows.into_iter();
                let mut planned = Planned::new(Vec::new(), Answer::Done(reply));
                planned.kept = rows
                    .map(|(key, value)| Change::Keep(key, value.map(Into::into)))
                    .collect();
                Some(planned)
            }
            Request::Drain(drain, draining, reply) => {
                let checked = self.check_drain(plan, &drain, draining);
                let (changes, reply) = or_refuse(checked, reply)?;
                let mut planned = Planned::new(Vec::new(), Answer::Done(reply));
                planned.drain = changes.then_some((drain, draining));
                Some(planned)
            }
        }
    }

    fn check_limit(&self, spec: &LimitSpec) -> Result<(), SpecError> {
        self.check_vip(spec.vip.as_deref())
            .map_err(|message| SpecError::of("vip", message))
    }

    /// Whether the one VIP that something is for is there; if not, what to do.
    pub(super) fn check_vip(&self, name: Option<&str>) -> Result<(), String> {
        let is_there = |name| self.config.vips.iter().any(|vip| vip.name == name);
        match name.filter(|name| !is_there(*name)) {
            Some(name) => Err(format!(
                "the config has no VIP `{name}`; `sluice vips` lists them"
            )),
            None => Ok(()),
        }
    }

    /// Makes some of what was written, and keeps the rest for the next turn.
    fn make(&mut self, mut making: Making) {
        let mut left = STEPS;
        while let Some(planned) = making.planned.front() {
            let steps = planned.steps.iter().skip(making.taken.len()).take(left);
            left -= steps.len();
            let refused = steps
                .map(|step| self.limits.take(step, &mut self.plane))
                .try_for_each(|taken| {
                    making.taken.push(taken?);
                    Ok::<(), Refused>(())
                });
            if refused.is_ok() && making.taken.len() < planned.steps.len() {
                self.changes.stage = Stage::Making(making);
                return;
            }
            let Some(planned) = making.planned.pop_front() else {
                break;
            };
            let taken = std::mem::take(&mut making.taken);
            match refused {
                Ok(()) if matches!(planned.answer, Answer::Rules(_)) => {
                    self.rules_made(planned, making.rules_refused.as_deref());
                }
                Ok(()) if planned.source.is_some() => {
                    self.source_made(planned, making.sources_refused.as_deref());
                }
                Ok(()) => self.made(planned, &mut making.drained),
                Err(refused) => self.unmake(planned, taken, refused),
            }
        }
        self.apply_drains(making.drained);
    }

    fn made(&mut self, planned: Planned, drained: &mut Vec<(Drain, Draining, Reply<()>)>) {
        if let Some((drain, draining)) = planned.drain {
            match draining {
                Draining::Begin => drop(self.drains.insert(drain.clone())),
                Draining::End => drop(self.drains.remove(&drain)),
            }
            let Answer::Done(reply) = planned.answer else {
                return;
            };
            drained.push((drain, draining, reply));
            return;
        }
        self.tell_limits(&planned.steps);
        planned.answer.give(&planned.steps, |record| {
            self.limits.in_force(record.clone(), &self.plane)
        });
    }

    fn rules_made(&self, planned: Planned, refused: Option<&str>) {
        let Answer::Rules(reply) = planned.answer else {
            return;
        };
        if let Some(why) = refused {
            drop(reply.send(Err(Refused::Conflict(why.to_owned()))));
            return;
        }
        self.tell_rules(&planned.rules);
        drop(reply.send(Ok(self.rules_changed(&planned.rules))));
    }

    fn source_made(&self, planned: Planned, refused: Option<&str>) {
        let (Some(step), Answer::Source(reply)) = (&planned.source, planned.answer) else {
            return;
        };
        if let Some(why) = refused {
            drop(reply.send(Err(Refused::Conflict(why.to_owned()))));
            return;
        }
        self.tell_source(step);
        drop(reply.send(Ok(self.source_changed(step))));
    }

    /// The data plane refused a step: those before it are taken back.
    fn unmake(&mut self, planned: Planned, taken: Vec<Before>, refused: Refused) {
        for step in planned.steps.iter().skip(taken.len()) {
            self.limits.differs(step.id());
        }
        for before in taken.into_iter().rev() {
            self.limits.take_back(before, &mut self.plane);
        }
        planned.answer.refuse(refused);
    }

    fn tell_limits(&self, steps: &[Step]) {
        let events = &self.events;
        match steps {
            [Step::New(record) | Step::Changed(record)] => {
                events.tell(Event::LimitSet(record.clone()));
            }
            [Step::Removed(id)] => events.tell(Event::LimitRemoved(*id)),
            [] | [Step::Same(_)] => {}
            many => events.tell(Event::LimitsSet(many.iter().map(Step::id).collect())),
        }
    }
}
