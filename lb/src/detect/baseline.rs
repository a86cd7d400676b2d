//! What a VIP's traffic of a class is in peace: how often which rate was seen, newer ticks counting for more.
//!
//! A histogram of rates on a logarithmic scale, four steps an octave: some hundred numbers hold years. What belongs to an
//! attack is never learned, nor are the seconds before one was found; and what is far above the usual is learned slowly,
//! so that a ramp does not make itself usual.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Rates of one kind, a value a tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    /// Weights by step of the scale.
    weights: Vec<f32>,
    /// Values that are not learned yet: an attack may be found to have begun with them.
    pending: VecDeque<u64>,
    /// Learned in all, without what faded.
    ticks: u64,
    /// The quantiles below, as they were when last asked of the weights.
    known: Known,
    /// What is above this is unusual. It follows slowly, so that a ramp does not raise it on its way.
    unusual_above: u64,
    bounded_at_tick: u64,
    faded_at_tick: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Known {
    at_tick: u64,
    usual: u64,
    high: u64,
}

/// A baseline as it is kept on the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub ticks: u64,
    /// Steps of the scale that were seen, and how much each weighs.
    pub weights: Vec<(u16, f32)>,
}

impl Baseline {
    /// Takes a tick's rate. It is learned some ticks later (`PENDING`), unless an attack is found meanwhile.
    pub fn push(&mut self, rate: u64) {
        self.pending.push_back(rate);
        if self.pending.len() > PENDING {
            let rate = self.pending.pop_front().unwrap_or_default();
            self.learn(rate);
        }
    }

    /// Forgets what was not learned yet: it belongs to an attack.
    pub fn attacked(&mut self) {
        self.pending.clear();
    }

    /// Ticks that were learned.
    pub const fn ticks(&self) -> u64 {
        self.ticks
    }

    /// The 99th percentile.
    pub const fn high(&self) -> u64 {
        self.known.high
    }

    /// The median.
    pub const fn usual(&self) -> u64 {
        self.known.usual
    }

    pub fn keep(&self) -> Kept {
        let weights = self.weights.iter().enumerate();
        let seen = weights.filter(|(_, weight)| **weight > 0.0);
        Kept {
            ticks: self.ticks,
            weights: seen
                .map(|(step, weight)| (u16::try_from(step).unwrap_or(u16::MAX), *weight))
                .collect(),
        }
    }

    /// What makes no sense in it is left out.
    pub fn of(kept: &Kept) -> Self {
        let mut baseline = Self {
            ticks: kept.ticks,
            faded_at_tick: kept.ticks,
            bounded_at_tick: kept.ticks,
            ..Self::default()
        };
        for &(step, weight) in &kept.weights {
            if step < STEPS && weight > 0.0 && weight <= MOST_WEIGHT {
                *baseline.at(step) = weight;
            }
        }
        baseline.look();
        let high = baseline.high();
        baseline.unusual_above = high.saturating_add(high / 2);
        baseline
    }

    fn learn(&mut self, rate: u64) {
        let unusual = self.ticks >= SURE && rate > self.unusual_above;
        *self.at(step(rate)) += if unusual { UNUSUAL_WEIGHT } else { 1.0 };
        self.ticks += 1;
        if self.ticks - self.faded_at_tick >= FADE_EVERY {
            self.faded_at_tick = self.ticks;
            for weight in &mut self.weights {
                *weight *= FADE;
            }
        }
        // While little is known each tick matters; later it does not.
        if self.ticks < SURE || self.ticks - self.known.at_tick >= LOOK_EVERY {
            self.look();
        }
    }

    fn look(&mut self) {
        let high = self.quantile(0.99);
        if self.ticks < SURE || self.ticks - self.bounded_at_tick >= BOUND_EVERY {
            self.bounded_at_tick = self.ticks;
            self.unusual_above = high.saturating_add(high / 2);
        }
        self.known = Known {
            at_tick: self.ticks,
            usual: self.quantile(0.5),
            high,
        };
    }

    /// The upper end of the step in which the quantile lies.
    fn quantile(&self, quantile: f32) -> u64 {
        let total: f32 = self.weights.iter().sum();
        let mut left = total * quantile;
        for (at, weight) in self.weights.iter().enumerate() {
            left -= weight;
            if left <= 0.0 && *weight > 0.0 {
                return upper_end(u16::try_from(at).unwrap_or(STEPS));
            }
        }
        0
    }

    fn at(&mut self, step: u16) -> &mut f32 {
        let at = usize::from(step);
        if self.weights.len() <= at {
            self.weights.resize(at + 1, 0.0);
        }
        &mut self.weights[at]
    }
}

/// So many ticks wait: 5 seconds of 100 ms.
const PENDING: usize = 50;
/// From so many ticks on, a minute of them, the unusual is told from the usual.
pub const SURE: u64 = 600;
const UNUSUAL_WEIGHT: f32 = 0.1;
/// A minute's ticks fade by this, so that a day halves a weight.
const FADE: f32 = 0.999_518_8;
const FADE_EVERY: u64 = 600;
const LOOK_EVERY: u64 = 10;
/// Ten minutes.
const BOUND_EVERY: u64 = 6_000;
/// More than any step can have gathered.
const MOST_WEIGHT: f32 = 1e7;

/// Steps of the scale: exact below four, then four an octave.
const STEPS: u16 = 4 + 62 * 4;

fn step(rate: u64) -> u16 {
    if rate < 4 {
        return u16::try_from(rate).unwrap_or_default();
    }
    let octave = rate.ilog2();
    let quarter = rate >> (octave - 2) & 3;
    u16::try_from((octave - 1) * 4).unwrap_or(STEPS) + u16::try_from(quarter).unwrap_or_default()
}

fn upper_end(step: u16) -> u64 {
    if step < 4 {
        return step.into();
    }
    let (octave, quarter) = (step / 4 + 1, step % 4);
    let width = 1u64 << (octave - 2);
    (4 + u64::from(quarter))
        .saturating_mul(width)
        .saturating_add(width - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(rates: impl IntoIterator<Item = u64>) -> Baseline {
        let mut baseline = Baseline::default();
        for rate in rates {
            baseline.push(rate);
        }
        for _ in 0..PENDING {
            baseline.push(0);
        }
        baseline.look();
        baseline
    }

    #[test]
    fn the_99th_percentile_forgives_a_hundredth() {
        let calm = of((0..10_000).map(|n| if n % 200 == 0 { 50_000 } else { 1_000 }));
        assert!((1_000..1_300).contains(&calm.high()), "{}", calm.high());
        let busy = of((0..10_000).map(|n| if n % 20 == 0 { 50_000 } else { 1_000 }));
        assert!(busy.high() >= 1_000, "{}", busy.high());
    }

    #[test]
    fn what_an_attack_began_with_is_not_learned() {
        let mut baseline = of(std::iter::repeat_n(1_000, 1_000));
        let (before, ticks) = (baseline.high(), baseline.ticks());
        for _ in 0..PENDING {
            baseline.push(1_000_000);
        }
        baseline.attacked();
        for _ in 0..PENDING {
            baseline.push(1_000);
        }
        baseline.look();
        assert!(baseline.high() <= before);
        assert!(baseline.ticks() - ticks <= PENDING as u64);
    }

    #[test]
    fn a_ramp_does_not_make_itself_usual() {
        let mut baseline = of(std::iter::repeat_n(1_000, 6_000));
        let before = baseline.high();
        // From the usual to 2.8 times of it, within 60 seconds.
        for tick in 0..600 {
            baseline.push(1_000 + tick * 3);
        }
        assert!(baseline.high() <= before * 2, "{}", baseline.high());
    }

    #[test]
    fn a_day_without_it_halves_what_weighed() {
        let day = 24 * 60 * 60 * 10 / FADE_EVERY;
        let left = FADE.powi(i32::try_from(day).unwrap());
        assert!((left - 0.5).abs() < 0.01, "{left}");
    }

    proptest! {
        #[test]
        fn a_rate_lies_within_its_step(rate in any::<u64>()) {
            let rate = rate >> 2;
            let step = step(rate);
            prop_assert!(step < STEPS);
            prop_assert!(upper_end(step) >= rate);
            prop_assert!(step == 0 || upper_end(step - 1) < rate);
            prop_assert!(upper_end(step) - rate <= rate / 4 + 1);
        }

        #[test]
        fn it_is_the_same_after_it_was_kept(rates in prop::collection::vec(0u64..10_000_000, 60..300)) {
            let mut before = Baseline::default();
            for rate in rates {
                before.push(rate);
            }
            before.look();
            let after = Baseline::of(&before.keep());
            prop_assert_eq!((after.high(), after.usual(), after.ticks()), (before.high(), before.usual(), before.ticks()));
        }

        #[test]
        fn nonsense_on_the_disk_does_no_harm(ticks: u64, weights in prop::collection::vec((any::<u16>(), any::<f32>()), 0..20)) {
            let mut baseline = Baseline::of(&Kept { ticks: ticks >> 1, weights });
            baseline.push(1);
            prop_assert!(baseline.usual() <= baseline.high());
        }
    }
}
