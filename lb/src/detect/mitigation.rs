//! What is done about an attack, or would be: a measure, why, and where it is in its [life](super::life).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    signature::{Evidence, Signature},
    trigger::Rates,
};
use crate::config::Class;

/// What is done about an attack, or would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mitigation {
    pub id: u64,
    /// `None`: all VIPs, where an attack is spread over many.
    pub vip: Option<String>,
    pub class: Class,
    pub measure: Measure,
    pub evidence: Option<Evidence>,
    /// What the attack was, and from where on it was one, when this was raised.
    pub rates: Rates,
    pub trigger: Rates,
    pub created_ms: u64,
    pub phase: Phase,
    /// How often its packets came back after it was over.
    pub returns: u32,
    /// Packets that fitted it so far.
    pub matched_packets: u64,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// What fits is dropped.
    Rule(Signature),
    /// Each source network may send so much of the class, a second.
    PrefixLimits { pps: u64 },
    /// Clients must show that they get our packets.
    Challenge,
    /// All of the VIP's packets of the class but those of proven flows, a second.
    Cap { pps: u64 },
    /// Nothing more can be done here: who brings the traffic must be asked.
    Upstream,
}

/// Where a mitigation is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// In force; `seen_ms` is when so many packets last fitted that it stays.
    Active { since_ms: u64, seen_ms: u64 },
    /// Counts only.
    Shadow { since_ms: u64 },
    /// Does nothing: the data plane did not take it, the last time then.
    Refused { at_ms: u64, why: String },
    /// Does nothing yet: it was refused, and the data plane is asked again.
    Retried { why: String },
    /// The operator does not want it.
    Reverted { at_ms: u64 },
}

/// The word for a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PhaseWord {
    Active,
    Shadow,
    Refused,
    Reverted,
}

impl PhaseWord {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Shadow => "shadow",
            Self::Refused => "refused",
            Self::Reverted => "reverted",
        }
    }
}

impl Mitigation {
    pub const fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active { .. })
    }

    pub const fn is_reverted(&self) -> bool {
        matches!(self.phase, Phase::Reverted { .. })
    }

    /// The data plane has it: it is active, or a shadow.
    pub const fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Active { .. } | Phase::Shadow { .. })
    }

    pub const fn phase_word(&self) -> PhaseWord {
        match self.phase {
            Phase::Active { .. } => PhaseWord::Active,
            Phase::Shadow { .. } => PhaseWord::Shadow,
            Phase::Refused { .. } | Phase::Retried { .. } => PhaseWord::Refused,
            Phase::Reverted { .. } => PhaseWord::Reverted,
        }
    }

    /// Why the data plane does not have it.
    pub fn refusal(&self) -> Option<&str> {
        match &self.phase {
            Phase::Refused { why, .. } | Phase::Retried { why } => Some(why),
            _ => None,
        }
    }

    /// Whether it is against an attack on this class of this VIP.
    pub fn is_of(&self, vip: Option<&str>, class: Class) -> bool {
        self.vip.as_deref() == vip && self.class == class
    }

    /// Whether `other` would do the same or less, to the same packets.
    pub fn covers(&self, vip: Option<&str>, class: Class, measure: &Measure) -> bool {
        let scope = self.vip.is_none() || self.vip.as_deref() == vip;
        scope
            && match (&self.measure, measure) {
                (Measure::Rule(mine), Measure::Rule(theirs)) => {
                    mine.covers(theirs) || theirs.covers(mine)
                }
                (Measure::Rule(_), _) | (_, Measure::Rule(_)) => false,
                (mine, theirs) => self.class == class && mine.word() == theirs.word(),
            }
    }
}

impl Measure {
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Rule(_) => "rule",
            Self::PrefixLimits { .. } => "prefix_limits",
            Self::Challenge => "challenge",
            Self::Cap { .. } => "cap",
            Self::Upstream => "upstream",
        }
    }

    /// Whether a shadow of it can tell that its packets are back.
    pub(super) const fn returns(&self) -> bool {
        matches!(self, Self::Rule(_))
    }
}

impl std::fmt::Display for Measure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule(signature) => write!(f, "drop {signature}"),
            Self::PrefixLimits { pps } => write!(f, "{pps} packets a second for a source network"),
            Self::Challenge => f.write_str("challenge of SYNs"),
            Self::Cap { pps } => {
                write!(f, "{pps} packets a second in all, but for proven flows")
            }
            Self::Upstream => f.write_str("ask upstream for help"),
        }
    }
}
