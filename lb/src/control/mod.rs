//! The control loop: one task owns the state; others send it commands and read an immutable view.

mod changes;
mod config_file;
mod control_loop;
mod daemon;
mod detection;

mod dataplane;
mod drains;
mod events;
mod held;
mod keep;
mod kernel;
mod limits;
mod measures;
mod page;
mod plan;
mod reload;
mod request;
mod rules;
mod scrape;
mod sets;
mod sources;
mod stuck;
mod supervise;
mod tasks;
mod view;
mod webhook;

#[cfg(test)]
pub(crate) mod fake;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use sluice_ebpf::abi::RuleCounts;
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::{JoinError, spawn_blocking},
};

use crate::{
    book::{Precondition, SpecError, Unmet},
    config::{ConfigError, ConfigErrors},
    desired::Tightened,
    detect::{
        mitigation::Mitigation,
        shared::{Shared, mitigation_key},
    },
    drains::Drain,
    limits::{LimitQuery, LimitSpec},
    rules::{Origin, RuleChange, RuleSpec},
    service::Manager,
    sources::{Kind, SourceChange, SourceSpec},
};

use config_file::{ConfigFile, Reading};
use plan::Draft;
use request::Request;

pub(crate) use control_loop::chain;
pub use control_loop::{Control, Ended, Start};
pub use daemon::{DaemonError, run};
pub(crate) use limits::now_ms;
pub use request::LimitsSet;

pub use dataplane::{Attachment, Dataplane, DropFigure, Failure, Figures, FlowFigures, Measured};
pub use events::{Event, HealthChange};
pub use limits::{LimitInForce, Novelty};
pub use page::Page;
pub use plan::{Plan, VipPlan};
pub use rules::{RuleInForce, RuleQuery};
pub use scrape::{LimitCounts, LimitLabel, MOST_LIMIT_SERIES, Scrape};
pub use sets::{SetFigures, SourceInForce, SourceQuery};
pub use sources::Sources;
pub use supervise::{Heart, Supervisor, TaskStatus};
pub use view::{Reload, View};

/// Speaks to the control loop.
#[derive(Clone, Debug)]
pub struct Handle {
    config_file: ConfigFile,
    /// Of the loop that runs now: one that ended is replaced.
    commands: Arc<ArcSwap<mpsc::Sender<Command>>>,
    view: Arc<ArcSwap<View>>,
    /// What detection wants beside policies. It outlives a control loop.
    tightened: Arc<ArcSwap<Tightened>>,
    events: events::Events,
    supervisor: Supervisor,
    detection: Shared,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{message}")]
    Invalid {
        field: Option<String>,
        message: String,
    },
    /// The config file has errors: all of them in words, and each with its place as far as it has one.
    #[error("{message}")]
    Config {
        message: String,
        errors: Vec<ConfigError>,
    },
    #[error("{0}")]
    Failed(String),
    /// The limit is not what this header of the request says that it must be.
    #[error("{message}")]
    Precondition {
        header: &'static str,
        message: String,
    },
    /// The disk does not take it.
    #[error("{0}")]
    Disk(String),
    #[error("{0}")]
    Busy(String),
    #[error("the daemon is about to end")]
    Ended,
}

/// Whether something shall be drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    Begin,
    End,
}

impl From<Unmet> for Refused {
    fn from(unmet: Unmet) -> Self {
        Self::Precondition {
            header: unmet.header(),
            message: unmet.to_string(),
        }
    }
}

impl From<SpecError> for Refused {
    fn from(error: SpecError) -> Self {
        let column = error.column.map(|column| format!("column {column}: "));
        Self::Invalid {
            message: format!("{}{}", column.unwrap_or_default(), error.message),
            field: Some(error.field).filter(|field| !field.is_empty()),
        }
    }
}

fn unknown_mitigation(id: u64) -> Refused {
    Refused::NotFound(format!(
        "there is no mitigation {id}; `sluice mitigations` lists them"
    ))
}

impl From<JoinError> for Refused {
    fn from(error: JoinError) -> Self {
        Self::Failed(supervise::why(error))
    }
}

impl From<ConfigErrors> for Refused {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config {
            message: chain(&errors),
            errors: errors.errors().to_vec(),
        }
    }
}

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

#[derive(Debug)]
enum Command {
    Change(Request),
    Reload(Reading, Reply<()>),
    Plan(Reading, Reply<Draft>),
    Figures(Reply<Arc<Figures>>),
    Scrape(Reply<Scrape>),
    LimitPage(LimitQuery, Reply<Page<LimitInForce>>),
    Limit(u64, Reply<LimitInForce>),
    RulePage(RuleQuery, Reply<Page<RuleInForce>>),
    Rule(u64, Reply<RuleInForce>),
    SourcePage(SourceQuery, Reply<Page<SourceInForce>>),
    Source(Kind, String, Reply<SourceInForce>),
    RuleCounts(Reply<BTreeMap<u64, RuleCounts>>),
    /// What detection wants is other than it was.
    Tighten(Reply<()>),
    /// Nothing: whoever asks wants to know whether anybody is there.
    Answer(Reply<()>),
}

impl Handle {
    /// How the daemon's tasks are.
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// What is known of attacks.
    pub fn detection(&self) -> &Shared {
        &self.detection
    }

    /// Ends a mitigation for good: none like it is raised until [`Handle::allow`] is called with its id. It is on the disk
    /// when this returns.
    pub async fn revert(&self, id: u64) -> Result<Mitigation, Refused> {
        let (before, mitigation) = {
            let detector = &mut self.detection.lock().detector;
            let before = detector.mitigation(id).cloned();
            let reverted = detector.revert(id, now_ms()).cloned();
            before.zip(reverted).ok_or_else(|| unknown_mitigation(id))?
        };
        // Detection writes rows as well: what it writes of this one after this shall be the reversal.
        let kept = match serde_json::to_vec(&mitigation) {
            Ok(value) => self.keep(vec![(mitigation_key(id), Some(value))]).await,
            Err(error) => Err(Refused::Failed(error.to_string())),
        };
        if let Err(refused) = kept {
            self.detection.lock().detector.put_back(before);
            return Err(refused);
        }
        self.tell(Event::MitigationReverted(id));
        tracing::info!(
            mitigation = id,
            "reverted: none like it is raised until it is allowed"
        );
        Ok(mitigation)
    }

    /// Takes a reversal back.
    pub async fn allow(&self, id: u64) -> Result<(), Refused> {
        let reverted = self.detection.lock().detector.mitigation(id).cloned();
        let reverted = reverted.ok_or_else(|| unknown_mitigation(id))?;
        if !reverted.is_reverted() {
            let why = format!("mitigation {id} is not reverted");
            return Err(Refused::Conflict(why));
        }
        self.keep(vec![(mitigation_key(id), None)]).await?;
        self.detection.lock().detector.allow(id);
        self.tell(Event::MitigationAllowed(id));
        tracing::info!(mitigation = id, "allowed: one like it may be raised again");
        Ok(())
    }

    /// Writes rows of detection to the disk.
    async fn keep(&self, rows: Vec<(String, Option<Vec<u8>>)>) -> Result<(), Refused> {
        self.change(|reply| Request::Keep(rows, reply)).await
    }

    /// Sets what detection wants beside policies, in place of what was set so before. It is so even if this fails: then
    /// packets meet it later.
    async fn tighten(&self, tightened: Tightened) -> Result<(), Refused> {
        self.tightened.store(Arc::new(tightened));
        self.ask(Command::Tighten).await
    }

    fn tightened(&self) -> Arc<Tightened> {
        self.tightened.load_full()
    }

    fn tell(&self, event: Event) {
        self.events.tell(event);
    }

    /// The state as it was last published.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Every change from now on. Who is too slow is told how many events were lost.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.listen()
    }

    /// Drains something, or ends that. The data plane has it when this returns.
    pub async fn drain(&self, drain: Drain, draining: Draining) -> Result<(), Refused> {
        self.change(|reply| Request::Drain(drain, draining, reply))
            .await
    }

    /// Reads the config file again. Refused whole if anything in it is wrong.
    pub async fn reload(&self) -> Result<(), Refused> {
        let turn = self.config_file.turn().await;
        // Who is not ready yet must not be taken for ready when this ends.
        let manager = self.view().ready.then(Manager::from_environment);
        let _reloading = manager.map(Manager::reloading);
        let reading = turn.read().await;
        self.ask(|reply| Command::Reload(reading, reply)).await
    }

    /// What [`Handle::reload`] would do now.
    pub async fn plan(&self) -> Result<Plan, Refused> {
        let reading = self.config_file.turn().await.read().await;
        let draft = self.ask(|reply| Command::Plan(reading, reply)).await?;
        off_thread(move || draft.finish()).await
    }

    /// Returns when the control loop gets round to it.
    pub async fn answers(&self) -> Result<(), Refused> {
        self.ask(Command::Answer).await
    }

    /// All figures, read from the maps now.
    pub async fn figures(&self) -> Result<Arc<Figures>, Refused> {
        self.ask(Command::Figures).await
    }

    /// All that metrics show, read from the maps now.
    pub async fn scrape(&self) -> Result<Scrape, Refused> {
        self.ask(Command::Scrape).await
    }

    /// Some of them, by id.
    pub async fn limit_page(&self, query: LimitQuery) -> Result<Page<LimitInForce>, Refused> {
        self.ask(|reply| Command::LimitPage(query, reply)).await
    }

    pub async fn limit(&self, id: u64) -> Result<LimitInForce, Refused> {
        self.ask(|reply| Command::Limit(id, reply)).await
    }

    /// Sets a limit; one for the same prefix, VIP and class is replaced. Packets meet it when this returns.
    pub async fn set_limit(
        &self,
        spec: LimitSpec,
        precondition: Precondition,
    ) -> Result<(LimitInForce, Novelty), Refused> {
        self.change(|reply| Request::SetLimit(spec, precondition, reply))
            .await
    }

    /// Sets many limits, or none of them.
    pub async fn set_limits(&self, specs: Vec<LimitSpec>) -> Result<LimitsSet, Refused> {
        self.change(|reply| Request::SetLimits(specs, reply)).await
    }

    /// Makes a limit be another; it keeps its id.
    pub async fn replace_limit(
        &self,
        id: u64,
        spec: LimitSpec,
        precondition: Precondition,
    ) -> Result<LimitInForce, Refused> {
        self.change(|reply| Request::ReplaceLimit(id, spec, precondition, reply))
            .await
            .map(|(limit, _)| limit)
    }

    /// No packet meets it any more when this returns.
    pub async fn remove_limit(&self, id: u64, precondition: Precondition) -> Result<(), Refused> {
        self.change(|reply| Request::RemoveLimit(id, precondition, reply))
            .await
    }

    /// Some of them, by id.
    pub async fn rule_page(&self, query: RuleQuery) -> Result<Page<RuleInForce>, Refused> {
        self.ask(|reply| Command::RulePage(query, reply)).await
    }

    pub async fn rule(&self, id: u64) -> Result<RuleInForce, Refused> {
        self.ask(|reply| Command::Rule(id, reply)).await
    }

    /// What each rule counted, by id.
    async fn rule_counts(&self) -> Result<BTreeMap<u64, RuleCounts>, Refused> {
        self.ask(Command::RuleCounts).await
    }

    /// Sets a rule; one that means the same packets, and was set by the same, is replaced. Packets meet it when this
    /// returns.
    pub async fn set_rule(
        &self,
        spec: RuleSpec,
        precondition: Precondition,
    ) -> Result<(RuleInForce, Novelty), Refused> {
        let change = RuleChange::Set(Box::new(spec), precondition);
        self.one_rule(change).await
    }

    /// Sets many rules, or none of them.
    pub async fn set_rules(
        &self,
        specs: Vec<RuleSpec>,
    ) -> Result<Vec<(RuleInForce, Novelty)>, Refused> {
        self.change(|reply| Request::Rules(RuleChange::SetAll(specs), reply))
            .await
    }

    /// Makes a rule be another; it keeps its id.
    pub async fn replace_rule(
        &self,
        id: u64,
        spec: RuleSpec,
        precondition: Precondition,
    ) -> Result<RuleInForce, Refused> {
        let change = RuleChange::Replace(id, Box::new(spec), precondition);
        self.one_rule(change).await.map(|(rule, _)| rule)
    }

    /// No packet meets it any more when this returns. Nobody removes what another set.
    pub async fn remove_rule(
        &self,
        id: u64,
        by: Origin,
        precondition: Precondition,
    ) -> Result<(), Refused> {
        let change = RuleChange::Remove(id, by, precondition);
        self.change(|reply| Request::Rules(change, reply))
            .await
            .map(drop)
    }

    /// Some sources that are denied or allowed, by id.
    pub async fn source_page(&self, query: SourceQuery) -> Result<Page<SourceInForce>, Refused> {
        self.ask(|reply| Command::SourcePage(query, reply)).await
    }

    /// The entry with this id, name or prefix.
    pub async fn source(&self, kind: Kind, key: String) -> Result<SourceInForce, Refused> {
        self.ask(|reply| Command::Source(kind, key, reply)).await
    }

    /// Denies or allows sources; an entry with the same name or prefix is replaced. Packets meet it when this returns.
    pub async fn set_source(
        &self,
        spec: SourceSpec,
        precondition: Precondition,
    ) -> Result<(SourceInForce, Novelty), Refused> {
        self.one_source(SourceChange::Set(spec, precondition)).await
    }

    /// Makes an entry be another; it keeps its id.
    pub async fn replace_source(
        &self,
        id: u64,
        spec: SourceSpec,
        precondition: Precondition,
    ) -> Result<SourceInForce, Refused> {
        let change = SourceChange::Replace(id, spec, precondition);
        self.one_source(change).await.map(|(entry, _)| entry)
    }

    /// No packet meets it any more when this returns.
    pub async fn remove_source(
        &self,
        kind: Kind,
        id: u64,
        precondition: Precondition,
    ) -> Result<(), Refused> {
        let change = SourceChange::Remove(kind, id, precondition);
        self.change(|reply| Request::Source(change, reply))
            .await
            .map(drop)
    }

    async fn one_source(&self, change: SourceChange) -> Result<(SourceInForce, Novelty), Refused> {
        let changed = self.change(|reply| Request::Source(change, reply)).await?;
        changed.ok_or(Refused::Ended)
    }

    async fn one_rule(&self, change: RuleChange) -> Result<(RuleInForce, Novelty), Refused> {
        let mut changed = self.change(|reply| Request::Rules(change, reply)).await?;
        changed.pop().ok_or(Refused::Ended)
    }

    async fn change<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refused> {
        self.ask(|reply| Command::Change(request(reply))).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        let commands = self.commands.load_full();
        commands
            .send(command(reply))
            .await
            .map_err(|_closed| Refused::Ended)?;
        answer.await.map_err(|_closed| Refused::Ended)?
    }
}

/// What takes long, or waits for files, is done on another thread: nobody else waits for it.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    Ok(spawn_blocking(work).await?)
}
