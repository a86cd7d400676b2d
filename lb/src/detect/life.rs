//! The life of a mitigation: in force while its packets come and some time longer, then a shadow that only counts, so that
//! a pulse finds it at once; longer after each return. What the data plane refuses waits, and is tried again.

use super::{
    mitigation::{Mitigation, Phase},
    trigger::Rates,
};

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
        let news = self.is_held();
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

    /// Whether it was refused so lately that nothing like it is worth a try.
    pub fn waits(&self, now_ms: u64) -> bool {
        matches!(self.phase, Phase::Refused { at_ms, .. } if now_ms < at_ms + RETRY_MS)
    }

    fn quiet_ms(&self, times: &Times) -> u64 {
        let doubled = times.quiet_ms.saturating_mul(1 << self.returns.min(16));
        doubled.min(LONGEST_MS.max(times.quiet_ms))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Class,
        detect::{mitigation::Measure, signature::Signature},
    };

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
        assert_eq!(it.phase, Phase::Reverted { at_ms: 0 });
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
}
