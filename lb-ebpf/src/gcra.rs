//! The token bucket of all limits: GCRA (ITU-T I.371, "virtual scheduling"), whose whole state is one u64.
//!
//! The state is the theoretical arrival time (TAT): how far the source has used up the future. Times are in units of
//! 2^-28 jiffies; the clock ticks once a jiffy, so an allowance holds at least two jiffies' worth of traffic.

use crate::abi::{JIFFY_BITS, Limiter};

/// No arrival time is this far ahead: it is in the past, of a clock that wraps.
pub const FAR: u64 = 1 << 60;

/// The limiter's time for a reading of the kernel's jiffies.
#[inline(always)]
#[must_use]
pub const fn time(jiffies: u64) -> u64 {
    jiffies << JIFFY_BITS
}

/// The TAT after `amount` more (packets or bytes), or `None` if that is over the limit: then nothing changes.
#[inline(always)]
#[must_use]
pub fn admit(tat: u64, now: u64, limiter: &Limiter, amount: u64) -> Option<u64> {
    let ahead = tat.wrapping_sub(now);
    // A TAT in the past, or one of a clock that began anew, owes nothing.
    let start = if ahead > u64::MAX / 2 || ahead > limiter.allowance.saturating_mul(2) {
        now
    } else {
        tat
    };
    let after = start.wrapping_add(limiter.cost.wrapping_mul(amount));
    if after.wrapping_sub(now) > limiter.allowance {
        None
    } else {
        Some(after)
    }
}

/// The constants for `rate` a second, with `burst` at once, under a clock of `hz`.
#[must_use]
#[cfg(not(target_arch = "bpf"))]
pub fn limiter(rate_per_second: u64, burst: u64, hz: u32) -> Limiter {
    let second = u64::from(hz) << JIFFY_BITS;
    let cost = (second / rate_per_second.max(1)).max(1);
    let two_jiffies = 2 << JIFFY_BITS;
    Limiter {
        cost,
        allowance: cost.saturating_mul(burst.max(1)).max(two_jiffies).max(cost),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_then_the_rate() {
        let limiter = limiter(1000, 200, 250);
        let (mut tat, mut passed) = (0, 0);
        for _ in 0..10_000 {
            if let Some(after) = admit(tat, time(5_000_000_000), &limiter, 1) {
                tat = after;
                passed += 1;
            }
        }
        assert_eq!(passed, 200);
        assert!(
            admit(tat, time(5_000_000_001), &limiter, 1).is_some(),
            "a jiffy later there is room again"
        );
    }

    proptest! {
        /// Over any run, what passes is at most the rate and one burst.
        #[test]
        fn never_more_than_rate_and_burst(
            rate in 10u64..2_000_000, burst in 1u64..10_000, hz in prop::sample::select(vec![100u32, 250, 1000]),
            gaps in prop::collection::vec(0u64..3, 1..2000),
        ) {
            let limiter = limiter(rate, burst, hz);
            let (mut jiffies, mut tat, mut passed) = (1u64 << 32, 0u64, 0u64);
            let start = jiffies;
            for gap in gaps {
                jiffies += gap;
                for _ in 0..5 {
                    if let Some(after) = admit(tat, time(jiffies), &limiter, 1) {
                        tat = after;
                        passed += 1;
                    }
                }
            }
            let allowed = limiter.allowance / limiter.cost + ((jiffies - start) << JIFFY_BITS) / limiter.cost + 1;
            prop_assert!(passed <= allowed, "{passed} > {allowed}");
        }

        #[test]
        fn a_source_below_its_rate_is_never_over(rate in 1u64..100_000, hz in prop::sample::select(vec![100u32, 250, 1000])) {
            let limiter = limiter(rate, 1, hz);
            let gap = u64::from(hz).div_ceil(rate);
            let mut tat = 0;
            for n in 0..1000u64 {
                tat = admit(tat, time((1 << 32) + n * gap), &limiter, 1).expect("below the rate");
            }
        }
    }
}
