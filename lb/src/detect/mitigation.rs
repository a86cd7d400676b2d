//! The life of a mitigation: in force while its packets come, then a shadow that only counts, so that it is back at once
//! when they do; longer after each return. What the data plane refuses does nothing, and is told so.

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

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A rule is in the data plane for so long after packets last fitted, even if nobody looks after it.
    pub hold_ms: u64,
    /// It becomes a shadow when so few fitted for so long; each return doubles that.
    pub quiet_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            hold_ms: 120_000,
            quiet_ms: 60_000,
        }
    }
}

/// What a tick made of a mitigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    /// Its packets are back.
    Rearmed,
    /// Few packets fit any more.
    Shadowed,
    /// It was a shadow for long enough, or refused and not wanted again.
    Gone,
}

impl Mitigation {
    /// `fitting` is the rate of packets that fit it; it stays while that is above half of the trigger.
    pub fn tick(&mut self, now_ms: u64, fitting: Rates, times: &Times) -> Change {
        match self.phase {
            Phase::Active { since_ms, seen_ms } => {
                if fitting.exceeds(self.trigger.half()) {
                    self.phase = Phase::Active {
                        since_ms,
                        seen_ms: now_ms,
                    };
                } else if now_ms.saturating_sub(seen_ms) >= self.quiet_ms(times) {
                    self.phase = Phase::Shadow { since_ms: now_ms };
                    return Change::Shadowed;
                }
                Change::None
            }
            Phase::Shadow { since_ms } => {
                // One tick suffices: what it is was found before.
                if self.measure.returns() && fitting.exceeds(self.trigger) {
                    self.returns = self.returns.saturating_add(1);
                    self.phase = Phase::Active {
                        since_ms: now_ms,
                        seen_ms: now_ms,
                    };
                    return Change::Rearmed;
                }
                if !self.measure.returns() || now_ms.saturating_sub(since_ms) >= SHADOW_MS {
                    return Change::Gone;
                }
                Change::None
            }
            // While its attack goes on, it is tried again.
            Phase::Refused { at_ms, .. } if now_ms.saturating_sub(at_ms) >= UNWANTED_MS => {
                Change::Gone
            }
            Phase::Refused { .. } | Phase::Retried { .. } | Phase::Reverted { .. } => Change::None,
        }
    }

    /// The data plane did not take it. Tells whether that is news.
    pub fn refuse(&mut self, now_ms: u64, why: String) -> bool {
        let news = self.is_in_force();
        if news || matches!(self.phase, Phase::Retried { .. }) {
            self.phase = Phase::Refused { at_ms: now_ms, why };
        }
        news
    }

    /// The data plane has what is wanted of it. Tells whether that is news: it did not before.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let news = matches!(self.phase, Phase::Retried { .. });
        if news {
            self.phase = Phase::Active {
                since_ms: now_ms,
                seen_ms: now_ms,
            };
        }
        news
    }

    /// Why the data plane does not have it.
    pub fn refusal(&self) -> Option<&str> {
        match &self.phase {
            Phase::Refused { why, .. } | Phase::Retried { why } => Some(why),
            _ => None,
        }
    }

    /// Whether it was refused so lately that nothing like it is worth a try.
    pub fn waits(&self, now_ms: u64) -> bool {
        matches!(self.phase, Phase::Refused { at_ms, .. } if now_ms < at_ms + RETRY_MS)
    }

    /// When it ends if nothing fits any more and nobody looks after it.
    pub fn expires_ms(&self, times: &Times) -> Option<u64> {
        let Phase::Active { seen_ms, .. } = self.phase else {
            return None;
        };
        Some(seen_ms + times.hold_ms.max(self.quiet_ms(times)) + GRACE_MS)
    }

    pub const fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active { .. })
    }

    /// Active, or a shadow.
    pub const fn is_in_force(&self) -> bool {
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

    fn quiet_ms(&self, times: &Times) -> u64 {
        let doubled = times.quiet_ms.saturating_mul(1 << self.returns.min(16));
        doubled.min(LONGEST_MS.max(times.quiet_ms))
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
    const fn returns(&self) -> bool {
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

/// The longest that a mitigation waits for its packets.
const LONGEST_MS: u64 = 30 * 60_000;
/// What the data plane refused is not tried again before.
const RETRY_MS: u64 = 5_000;
/// How long it waits to be tried again.
const UNWANTED_MS: u64 = 60_000;
/// How long a shadow counts.
const SHADOW_MS: u64 = 60 * 60_000;
/// The data plane's copy outlives the decision to end it, and is renewed well before.
const GRACE_MS: u64 = 30_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn mitigation() -> Mitigation {
        Mitigation {
            id: 1,
            vip: Some("web".into()),
            class: Class::Udp,
            measure: Measure::Rule(Signature(Vec::new())),
            evidence: None,
            rates: rates(100_000),
            trigger: rates(10_000),
            created_ms: 0,
            phase: Phase::Active {
                since_ms: 0,
                seen_ms: 0,
            },
            returns: 0,
            matched_packets: 0,
        }
    }

    fn rates(pps: u64) -> Rates {
        Rates { pps, bps: 0 }
    }

    /// The changes of so many ticks, and when each was.
    fn run(mitigation: &mut Mitigation, now: &mut u64, ticks: u64, pps: u64) -> Vec<(u64, Change)> {
        let mut changes = Vec::new();
        for _ in 0..ticks {
            *now += 100;
            let change = mitigation.tick(*now, rates(pps), &Times::default());
            if change != Change::None {
                changes.push((*now, change));
            }
        }
        changes
    }

    #[test]
    fn it_stays_while_packets_come_and_a_minute_longer() {
        let (mut it, mut now) = (mitigation(), 0);
        assert_eq!(run(&mut it, &mut now, 10_000, 5_001), []);
        let last = now;
        assert_eq!(
            run(&mut it, &mut now, 700, 4_999),
            [(last + 60_000, Change::Shadowed)]
        );
    }

    #[test]
    fn a_pulse_finds_it_within_a_tick_and_each_return_doubles_the_wait() {
        let (mut it, mut now) = (mitigation(), 0);
        for wait in [
            60_000, 120_000, 240_000, 480_000, 960_000, 1_800_000, 1_800_000,
        ] {
            let Phase::Active { seen_ms: last, .. } = it.phase else {
                panic!("it is back");
            };
            assert_eq!(
                run(&mut it, &mut now, 18_100, 0).first(),
                Some(&(last + wait, Change::Shadowed))
            );
            assert_eq!(run(&mut it, &mut now, 1, 50_000), [(now, Change::Rearmed)]);
        }
        assert_eq!(it.returns, 7);
    }

    #[test]
    fn a_shadow_is_forgotten_after_an_hour() {
        let (mut it, mut now) = (mitigation(), 0);
        let changes = run(&mut it, &mut now, 40_000, 0);
        assert_eq!(changes[0], (60_000, Change::Shadowed));
        assert_eq!(changes[1], (60_000 + SHADOW_MS, Change::Gone));
    }

    #[test]
    fn what_was_reverted_stays_so() {
        let (mut it, mut now) = (mitigation(), 0);
        it.phase = Phase::Reverted { at_ms: 0 };
        assert_eq!(run(&mut it, &mut now, 100, 1_000_000), []);
        assert_eq!(it.expires_ms(&Times::default()), None);
    }

    #[test]
    fn what_is_refused_waits_and_is_news_only_once() {
        let (mut it, mut now) = (mitigation(), 0);
        assert!(it.refuse(now, "full".into()));
        assert_eq!((it.is_active(), it.refusal()), (false, Some("full")));
        assert!(it.waits(now + RETRY_MS - 1) && !it.waits(now + RETRY_MS));
        it.phase = Phase::Retried { why: "full".into() };
        now = 50_000;
        assert!(!it.refuse(now, "still full".into()));
        assert_eq!(it.refusal(), Some("still full"));
        let changes = run(&mut it, &mut now, 700, 1_000_000);
        assert_eq!(changes.first(), Some(&(110_000, Change::Gone)));
        it.phase = Phase::Retried { why: "full".into() };
        assert!(it.take(now) && it.is_active());
        assert!(!it.take(now));
    }

    #[test]
    fn the_rule_ends_by_itself_only_after_it_would_have_been_ended() {
        let (mut it, mut now) = (mitigation(), 0);
        run(&mut it, &mut now, 10, 50_000);
        let times = Times::default();
        assert_eq!(it.expires_ms(&times), Some(now + 120_000 + GRACE_MS));
        it.returns = 20;
        assert!(it.expires_ms(&times).unwrap() >= now + LONGEST_MS);
    }
}
