//! When traffic of a class is an attack: above the floor and three times what peace had, in two of three ticks; and when
//! it is none any more.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::baseline::{Baseline, SURE};

/// What is counted in a tick, as rates a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rates {
    pub pps: u64,
    pub bps: u64,
}

/// From where on traffic is an attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Less is never an attack.
    pub floor: Rates,
    /// So many times the 99th percentile of peace.
    pub factor: f64,
    /// Ticks that must be learned before anything is an attack.
    pub learn_ticks: u64,
    /// How long traffic stays below half of the trigger before an attack is over.
    pub quiet_ms: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            floor: Rates {
                pps: 10_000,
                bps: 100_000_000,
            },
            factor: 3.0,
            learn_ticks: SURE,
            quiet_ms: 60_000,
        }
    }
}

/// The trigger of one class of one VIP, with the baselines that it learned.
#[derive(Clone, Debug, Default)]
pub struct Trigger {
    pub packets: Baseline,
    pub bits: Baseline,
    /// Whether each of the last ticks was above, the newest in bit 0.
    above: u8,
    attack: Option<Attack>,
    /// Whether it was told that traffic above the floor could not be judged.
    told_unjudged: bool,
}

/// An attack that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// The tick that was the first above the trigger.
    pub since_ms: u64,
    /// Since when traffic is below half of the trigger.
    quiet_since_ms: Option<u64>,
    /// The most that was seen.
    pub peak: Rates,
}

/// Whether a tick's rates are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    Learn,
    /// The VIP is attacked, if by another class.
    Skip,
}

/// What a tick changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Peace,
    /// Above the floor while too little is known to tell an attack: it is learned. Only the first such tick.
    Unjudged,
    Begins,
    GoesOn,
    Ends,
}

impl Trigger {
    /// `lesson` tells whether these rates may be those of peace.
    pub fn tick(
        &mut self,
        now_ms: u64,
        rates: Rates,
        lesson: Lesson,
        thresholds: &Thresholds,
    ) -> Turn {
        let trigger = self.level(thresholds);
        let above = trigger.is_some_and(|trigger| rates.exceeds(trigger));
        self.above = (self.above << 1 | u8::from(above)) & 7;
        let Some(attack) = &mut self.attack else {
            if self.above.count_ones() < 2 {
                if lesson == Lesson::Learn {
                    self.packets.push(rates.pps);
                    self.bits.push(rates.bps);
                }
                let unjudged = trigger.is_none() && rates.exceeds(thresholds.floor);
                if unjudged && !self.told_unjudged {
                    self.told_unjudged = true;
                    return Turn::Unjudged;
                }
                return Turn::Peace;
            }
            // One or two ticks ago, by which of the three were above.
            let first = u64::from(7 - self.above.leading_zeros());
            self.attack = Some(Attack {
                since_ms: now_ms.saturating_sub(first * TICK_MS),
                quiet_since_ms: None,
                peak: rates,
            });
            self.forget_lately();
            return Turn::Begins;
        };
        attack.peak = attack.peak.most(rates);
        if trigger.is_some_and(|trigger| rates.exceeds(trigger.half())) {
            attack.quiet_since_ms = None;
            return Turn::GoesOn;
        }
        let quiet_since = *attack.quiet_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(quiet_since) < thresholds.quiet_ms {
            return Turn::GoesOn;
        }
        self.attack = None;
        self.above = 0;
        Turn::Ends
    }

    /// What came lately was an attack, if on another class.
    pub fn forget_lately(&mut self) {
        self.packets.attacked();
        self.bits.attacked();
    }

    pub const fn attack(&self) -> Option<&Attack> {
        self.attack.as_ref()
    }

    /// From where on traffic is an attack; `None` while too little is known.
    pub fn level(&self, thresholds: &Thresholds) -> Option<Rates> {
        if self.packets.ticks() < thresholds.learn_ticks {
            return None;
        }
        Some(Rates {
            pps: times(self.packets.high(), thresholds.factor).max(thresholds.floor.pps),
            bps: times(self.bits.high(), thresholds.factor).max(thresholds.floor.bps),
        })
    }
}

impl Rates {
    /// In packets or in bits.
    pub const fn exceeds(self, other: Self) -> bool {
        self.pps > other.pps || self.bps > other.bps
    }

    pub const fn half(self) -> Self {
        Self {
            pps: self.pps / 2,
            bps: self.bps / 2,
        }
    }

    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            pps: self.pps.max(other.pps),
            bps: self.bps.max(other.bps),
        }
    }

    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            pps: self.pps.saturating_add(other.pps),
            bps: self.bps.saturating_add(other.bps),
        }
    }

    /// A part of it.
    #[must_use]
    pub fn part(self, part: f64) -> Self {
        Self {
            pps: times(self.pps, part),
            bps: times(self.bps, part),
        }
    }

    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self {
            pps: self.pps.saturating_sub(other.pps),
            bps: self.bps.saturating_sub(other.bps),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets and {} bits a second", self.pps, self.bps)
    }
}

/// How often counters are looked at.
pub const TICK_MS: u64 = 100;

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate times a small positive number; casts saturate"
)]
pub(super) fn times(rate: u64, factor: f64) -> u64 {
    (rate as f64 * factor) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learned(pps: u64) -> (Trigger, u64) {
        let mut trigger = Trigger::default();
        let mut now = 0;
        for _ in 0..700 {
            now += TICK_MS;
            assert_eq!(
                trigger.tick(now, rates(pps), Lesson::Learn, &Thresholds::default()),
                Turn::Peace
            );
        }
        (trigger, now)
    }

    fn rates(pps: u64) -> Rates {
        Rates {
            pps,
            bps: pps * 800,
        }
    }

    /// The turns that these rates lead to, a tick each.
    fn turns(trigger: &mut Trigger, now: &mut u64, pps: &[u64]) -> Vec<Turn> {
        let one = |pps: &u64| {
            *now += TICK_MS;
            trigger.tick(*now, rates(*pps), Lesson::Learn, &Thresholds::default())
        };
        pps.iter().map(one).collect()
    }

    #[test]
    fn two_ticks_of_three_above_the_trigger_are_an_attack() {
        let (mut trigger, mut now) = learned(5_000);
        let peace = turns(
            &mut trigger,
            &mut now,
            &[90_000, 5_000, 5_000, 90_000, 5_000],
        );
        assert_eq!(peace, [Turn::Peace; 5], "single ticks are none");
        turns(&mut trigger, &mut now, &[5_000; 3]);
        let found = turns(&mut trigger, &mut now, &[90_000, 5_000, 90_000]);
        assert_eq!(found.last(), Some(&Turn::Begins));
        assert_eq!(trigger.attack().unwrap().since_ms, now - 200);
    }

    #[test]
    fn what_is_below_the_floor_is_none() {
        let (mut trigger, mut now) = learned(10);
        assert_eq!(turns(&mut trigger, &mut now, &[9_000; 3]), [Turn::Peace; 3]);
        assert_eq!(turns(&mut trigger, &mut now, &[11_000; 2])[1], Turn::Begins);
    }

    #[test]
    fn while_little_is_known_nothing_is_an_attack_but_the_floor_is_told_of_once() {
        let mut trigger = Trigger::default();
        let mut now = 0;
        assert_eq!(turns(&mut trigger, &mut now, &[9_000; 3]), [Turn::Peace; 3]);
        let found = turns(&mut trigger, &mut now, &[1_000_000; 100]);
        assert_eq!(found[0], Turn::Unjudged);
        assert_eq!(found[1..], [Turn::Peace; 99]);
    }

    #[test]
    fn it_ends_after_a_minute_below_half_of_the_trigger() {
        let (mut trigger, mut now) = learned(5_000);
        let level = trigger.level(&Thresholds::default()).unwrap().pps;
        turns(&mut trigger, &mut now, &[90_000; 3]);
        assert!(!turns(&mut trigger, &mut now, &[level - 1; 1_000]).contains(&Turn::Ends));
        assert!(!turns(&mut trigger, &mut now, &[level / 3; 590]).contains(&Turn::Ends));
        assert!(!turns(&mut trigger, &mut now, &[level - 1; 1]).contains(&Turn::Ends));
        assert!(turns(&mut trigger, &mut now, &[level / 3; 602]).contains(&Turn::Ends));
    }

    #[test]
    fn an_attack_leaves_the_baseline_as_it_was() {
        let (mut trigger, mut now) = learned(5_000);
        let before = trigger.level(&Thresholds::default());
        turns(&mut trigger, &mut now, &[500_000; 6_000]);
        assert_eq!(trigger.level(&Thresholds::default()), before);
    }
}
