//! What changed, told to whoever listens at the moment when it is in force.

use std::{net::IpAddr, sync::Arc};

use tokio::sync::broadcast;

use crate::{
    detect::detector::Decision, drains::DrainKind, health::State, limits::LimitRecord,
    rules::RuleRecord, sources::SourceRecord,
};

/// One change of the state.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A limit is new, or another than it was.
    LimitSet(Arc<LimitRecord>),
    /// Many limits were set in one request: their ids.
    LimitsSet(Arc<[u64]>),
    LimitRemoved(u64),
    /// A limit's time was over.
    LimitExpired(u64),
    /// The time of many limits was over: their ids. One event for each of a hundred thousand would reach nobody.
    LimitsExpired(Arc<[u64]>),
    RuleSet(Arc<RuleRecord>),
    /// Many rules were set in one request: their ids.
    RulesSet(Arc<[u64]>),
    RuleRemoved(u64),
    RuleExpired(u64),
    /// The time of many was over at once: their ids.
    RulesExpired(Arc<[u64]>),
    /// Sources are denied or allowed.
    SourceSet(Arc<SourceRecord>),
    SourceRemoved(u64),
    SourceExpired(u64),
    /// The time of many was over at once: their ids.
    SourcesExpired(Arc<[u64]>),
    DrainBegun {
        kind: DrainKind,
        name: String,
    },
    /// What drains has no live flows left.
    Drained {
        kind: DrainKind,
        name: String,
    },
    DrainEnded {
        kind: DrainKind,
        name: String,
    },
    Health(HealthChange),
    /// The config file was read again, and is in force.
    ReloadDone {
        config_hash: u64,
    },
    /// The data plane was not as it should be, and is again: what differed.
    Healed {
        what: Vec<String>,
    },
    /// What detection saw, or decided.
    Detection(Arc<Decision>),
    MitigationReverted(u64),
    MitigationAllowed(u64),
    /// The config before stays in force.
    ReloadRefused {
        error: String,
    },
}

/// A backend's health is another than before.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthChange {
    pub pool: String,
    pub address: IpAddr,
    pub before: State,
    pub state: State,
    /// Why it is down.
    pub error: Option<String>,
}

impl Event {
    /// The word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::LimitSet(_) => "limit_set",
            Self::LimitsSet(_) => "limits_set",
            Self::LimitRemoved(_) => "limit_removed",
            Self::LimitExpired(_) => "limit_expired",
            Self::LimitsExpired(_) => "limits_expired",
            Self::RuleSet(_) => "rule_set",
            Self::RulesSet(_) => "rules_set",
            Self::RuleRemoved(_) => "rule_removed",
            Self::RuleExpired(_) => "rule_expired",
            Self::RulesExpired(_) => "rules_expired",
            Self::SourceSet(_) => "source_set",
            Self::SourceRemoved(_) => "source_removed",
            Self::SourceExpired(_) => "source_expired",
            Self::SourcesExpired(_) => "sources_expired",
            Self::DrainBegun { .. } => "drain_begun",
            Self::Drained { .. } => "drained",
            Self::DrainEnded { .. } => "drain_ended",
            Self::Health(_) => "health",
            Self::ReloadDone { .. } => "reload_done",
            Self::ReloadRefused { .. } => "reload_refused",
            Self::Healed { .. } => "healed",
            Self::Detection(decision) => decision.word(),
            Self::MitigationReverted(_) => "mitigation_reverted",
            Self::MitigationAllowed(_) => "mitigation_allowed",
        }
    }
}

/// Where the control loop tells events.
#[derive(Clone, Debug)]
pub(super) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(CAPACITY))
    }

    pub(super) fn tell(&self, event: Event) {
        // That nobody listens is no error.
        _ = self.0.send(event);
    }

    pub(super) fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}

/// A listener that is so many events behind loses the oldest, and is told how many.
const CAPACITY: usize = 1024;
