//! When the checks of one backend begin, as a pure function of the time.

use std::time::{Duration, Instant};

use super::machine::Pace;
use crate::config::Health;

/// The times at which checks are due: in steps of an interval, so that checks of many backends stay spread as they began.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval: Duration,
    fast_interval: Duration,
    jitter: Duration,
    due: Instant,
}

impl Schedule {
    /// The first check is due at `first`.
    #[must_use]
    pub fn new(health: &Health, first: Instant) -> Self {
        Self {
            interval: health.interval,
            fast_interval: health.fast_interval,
            jitter: health.jitter,
            due: first,
        }
    }

    /// When the check begins that is due next. `random` (0 to 1) is its share of the jitter.
    #[must_use]
    pub fn begins(&self, pace: Pace, random: f64) -> Instant {
        let jitter = match pace {
            Pace::Ordinary => self.jitter,
            // In the same proportion.
            Pace::Fast => self.jitter.min(
                self.jitter
                    .mul_f64(self.fast_interval.as_secs_f64() / self.interval.as_secs_f64()),
            ),
        };
        self.due + jitter.mul_f64(random)
    }

    /// The next of the times at which checks of this pace begin, of all backends together.
    ///
    /// A machine that sleeps takes about as long to wake up as a check takes: those that are due within some milliseconds
    /// share that.
    #[must_use]
    pub fn together(&self, at: Instant, pace: Pace, epoch: Instant) -> Instant {
        let grid = grid(self.step(pace)).as_nanos();
        let since = at.saturating_duration_since(epoch).as_nanos();
        let wait = since.next_multiple_of(grid);
        epoch + Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// A check has ended. One that took too long makes the next late, but only what is a whole step behind is left out.
    pub fn advance(&mut self, pace: Pace, now: Instant) {
        let step = self.step(pace);
        self.due += step;
        let behind = now.saturating_duration_since(self.due);
        if behind >= step {
            let steps = behind.as_nanos() / step.as_nanos().max(1);
            self.due += step * u32::try_from(steps).unwrap_or(u32::MAX);
        }
    }

    fn step(&self, pace: Pace) -> Duration {
        match pace {
            Pace::Ordinary => self.interval,
            Pace::Fast => self.fast_interval,
        }
    }
}

/// What part of an interval a check may begin late, at most [`MOST_GRID_MS`].
const GRID_PART: u32 = 25;
const MOST_GRID_MS: u128 = 32;

/// A power of two of milliseconds, so that the times of all intervals meet.
fn grid(step: Duration) -> Duration {
    let most_ms = (step / GRID_PART).as_millis().clamp(1, MOST_GRID_MS);
    Duration::from_millis(1 << most_ms.ilog2())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, prop, prop_assert, prop_oneof, proptest};

    use super::*;
    use crate::config::Check;

    fn health() -> Health {
        Health {
            check: Check::Icmp,
            interval: Duration::from_secs(1),
            fast_interval: Duration::from_millis(200),
            jitter: Duration::from_millis(100),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            via_tunnel: false,
        }
    }

    #[test]
    fn checks_keep_their_place_whatever_the_jitter() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&health(), start);
        for n in 0..100 {
            let at = |share| schedule.begins(Pace::Ordinary, share) - start;
            assert_eq!(at(0.0), Duration::from_secs(n));
            assert_eq!(at(1.0), Duration::from_millis(n * 1000 + 100));
            let ended = schedule.begins(Pace::Ordinary, 1.0) + Duration::from_millis(500);
            schedule.advance(Pace::Ordinary, ended);
        }
    }

    #[test]
    fn a_degraded_backend_is_checked_sooner() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&health(), start);
        schedule.advance(Pace::Fast, start);
        assert_eq!(
            schedule.begins(Pace::Fast, 1.0) - start,
            Duration::from_millis(220)
        );
        schedule.advance(Pace::Ordinary, start);
        assert_eq!(
            schedule.begins(Pace::Ordinary, 0.0) - start,
            Duration::from_millis(1200)
        );
    }

    #[test]
    fn after_a_long_stop_checks_are_not_made_up_for() {
        let start = Instant::now();
        let mut schedule = Schedule::new(&health(), start);
        schedule.advance(Pace::Ordinary, start + Duration::from_millis(1_900));
        let due = schedule.begins(Pace::Ordinary, 0.0);
        assert_eq!(due - start, Duration::from_secs(1), "late, but made");
        schedule.advance(Pace::Ordinary, start + Duration::from_millis(99_500));
        let due = schedule.begins(Pace::Ordinary, 0.0);
        assert_eq!(due - start, Duration::from_secs(99));
    }

    #[test]
    fn checks_begin_together_and_hardly_later() {
        let epoch = Instant::now();
        let schedule = Schedule::new(&health(), epoch);
        let begins = |pace, after_us| {
            let at = epoch + Duration::from_micros(after_us);
            schedule.together(at, pace, epoch) - epoch
        };
        assert_eq!(begins(Pace::Ordinary, 0), Duration::ZERO);
        assert_eq!(begins(Pace::Ordinary, 1), Duration::from_millis(32));
        assert_eq!(begins(Pace::Ordinary, 32_000), Duration::from_millis(32));
        assert_eq!(begins(Pace::Fast, 32_001), Duration::from_millis(40));
        assert_eq!(grid(Duration::from_millis(5)), Duration::from_millis(1));
        assert_eq!(grid(Duration::from_secs(60)), Duration::from_millis(32));
    }

    proptest! {
        /// No more than one check for each step that has passed, and never a long silence.
        #[test]
        fn the_next_check_is_neither_early_nor_forgotten(
            checks in prop::collection::vec((0..3_000_u64, 0.0..1.0_f64, prop_oneof![Just(Pace::Ordinary), Just(Pace::Fast)]), 1..100)
        ) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new(&health(), now);
            let mut last_due = now;
            for (took, random, pace) in checks {
                now = now.max(schedule.begins(pace, random)) + Duration::from_millis(took);
                schedule.advance(pace, now);
                let step = if pace == Pace::Fast { 200 } else { 1000 };
                let due = schedule.begins(pace, 0.0);
                prop_assert!(due >= last_due + Duration::from_millis(step));
                prop_assert!(due <= now + Duration::from_millis(step));
                last_due = due;
            }
        }
    }
}
