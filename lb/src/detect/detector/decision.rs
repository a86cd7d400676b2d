//! What the detector decides, in words.

use std::fmt;

use crate::{
    config::{self, Class},
    detect::{mitigation::Mitigation, signature::NoSignature, trigger::Rates},
};

/// Something that somebody should hear of.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Above the floor while peace is being learned, which this becomes part of; told once. The trigger is the floor.
    Unjudged(AttackSeen),
    AttackBegan(AttackSeen),
    AttackEnded(AttackSeen),
    Raised(Mitigation),
    Rearmed(Mitigation),
    Shadowed(Mitigation),
    /// The data plane did not take it: it does nothing, and the next measure follows.
    Refused(Mitigation),
    /// A shadow saw nothing for long or made room, what was refused is not wanted any more, or its VIP is gone.
    Forgotten(Mitigation),
    /// No rule: why, and the next measure follows.
    NoRule {
        seen: AttackSeen,
        why: NoSignature,
    },
}

/// An attack on a class of a VIP, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttackSeen {
    pub vip: Option<String>,
    pub class: Class,
    /// Now; at the end, the most that was seen.
    pub rates: Rates,
    pub trigger: Rates,
}

impl Decision {
    /// The word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Unjudged(_) => "unjudged",
            Self::AttackBegan(_) => "attack_began",
            Self::AttackEnded(_) => "attack_ended",
            Self::Raised(_) => "mitigation_raised",
            Self::Rearmed(_) => "mitigation_rearmed",
            Self::Shadowed(_) => "mitigation_shadowed",
            Self::Refused(_) => "mitigation_refused",
            Self::Forgotten(_) => "mitigation_forgotten",
            Self::NoRule { .. } => "no_rule",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unjudged(seen) => write!(
                f,
                "{seen} has {} while its peace is being learned: whether that is an attack is not known, and it becomes usual",
                seen.rates
            ),
            Self::AttackBegan(seen) => write!(
                f,
                "attack on {seen}: {}, where {} is the trigger",
                seen.rates, seen.trigger
            ),
            Self::AttackEnded(seen) => {
                write!(f, "the attack on {seen} is over; at most {}", seen.rates)
            }
            Self::Raised(mitigation) => {
                write!(f, "mitigation {}: {}", mitigation.id, mitigation.measure)
            }
            Self::Rearmed(mitigation) => write!(
                f,
                "mitigation {} again: its packets are back",
                mitigation.id
            ),
            Self::Shadowed(mitigation) => write!(
                f,
                "mitigation {} only counts: few packets fit it any more",
                mitigation.id
            ),
            Self::Refused(mitigation) => write!(
                f,
                "mitigation {} ({}) is refused and does nothing: {}",
                mitigation.id,
                mitigation.measure,
                mitigation.refusal().unwrap_or_default()
            ),
            Self::Forgotten(mitigation) => write!(f, "mitigation {} is forgotten", mitigation.id),
            Self::NoRule { seen, why } => write!(f, "no rule against the attack on {seen}: {why}"),
        }
    }
}

impl fmt::Display for AttackSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = config::class_words().nth(self.class as usize);
        match &self.vip {
            Some(vip) => write!(f, "{vip} ({})", class.unwrap_or_default()),
            None => write!(f, "many VIPs ({})", class.unwrap_or_default()),
        }
    }
}
