//! SYNs that were let in lately, four in a word, as pure functions: what follows one within some seconds is of a handshake,
//! and not out of state.
//!
//! Of each there is a tag of the flow's hash. Without it a flood of SYNs, which needs no flow, would fill the table, and
//! then all that is out of state would seem to follow one.

use crate::abi::{HANDSHAKE_MEMORY_TICKS, HANDSHAKE_WORDS};

/// In 16 bits: there is one | tag 10 | ticks 5.
const SEEN: u16 = 1 << 15;
const TICKS: u16 = 31;

/// The word that remembers a flow: by other bits of its hash than those that name a bucket of the flow table.
#[inline(always)]
#[must_use]
pub const fn index(flow: u64) -> u32 {
    (flow >> 40) as u32 & (HANDSHAKE_WORDS - 1)
}

#[inline(always)]
const fn tag(flow: u64) -> u16 {
    SEEN | ((flow >> 30) as u16 & 0x3ff) << 5
}

/// Ticks since a SYN; one that another CPU, whose clock is ahead, noted in the next tick is the youngest.
#[inline(always)]
const fn age(seen: u16, now: u16) -> u16 {
    now.wrapping_sub(seen).wrapping_add(1) & TICKS
}

#[inline(always)]
const fn at(word: u64, place: u32) -> u16 {
    (word >> (place * 16)) as u16
}

/// Whether a SYN of this flow was noted a short while ago.
#[inline(always)]
#[must_use]
pub const fn is_in(word: u64, flow: u64, now: u16) -> bool {
    macro_rules! any {
        ($($place:literal)*) => {
            $((at(word, $place) & !TICKS == tag(flow)
                && age(at(word, $place), now) <= HANDSHAKE_MEMORY_TICKS + 1))||*
        };
    }
    any!(0 1 2 3)
}

/// The word with a SYN of this flow, in the place of an earlier one of it, or of the oldest.
#[inline(always)]
#[must_use]
pub const fn with(word: u64, flow: u64, now: u16) -> u64 {
    let new = tag(flow) | now & TICKS;
    // Higher is rather to be given up: its own, then none, then by age.
    macro_rules! rank {
        ($place:literal) => {{
            let there = at(word, $place);
            let rank = if there & !TICKS == tag(flow) {
                2 * TICKS
            } else if there & SEEN == 0 {
                TICKS + 1
            } else {
                age(there, now)
            };
            (rank as u32) << 2 | $place
        }};
    }
    let mut first = rank!(0);
    macro_rules! consider {
        ($($place:literal)*) => {$(
            first = if rank!($place) > first { rank!($place) } else { first };
        )*};
    }
    consider!(1 2 3);
    let place = first & 3;
    let shift = place * 16;
    word & !(0xffff << shift) | (new as u64) << shift
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flow(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    proptest! {
        #[test]
        fn a_syn_is_known_for_some_seconds_and_no_other(word: u64, flow: u64, other: u64, now in 0u16..1 << 14) {
            let word = with(word, flow, now);
            prop_assert!(is_in(word, flow, now));
            prop_assert!(is_in(word, flow, now.wrapping_sub(1)), "the clock of another CPU");
            prop_assert!(is_in(word, flow, now.wrapping_add(HANDSHAKE_MEMORY_TICKS)));
            prop_assert!(!is_in(word, flow, now.wrapping_add(HANDSHAKE_MEMORY_TICKS + 1)));
            let only = with(0, flow, now);
            prop_assert!(tag(other) == tag(flow) || !is_in(only, other, now));
        }

        #[test]
        fn four_are_known_and_the_oldest_makes_room(first: u64, now in 0u16..1 << 14) {
            let flows: Vec<u64> = (0..5).map(|n| first.wrapping_add(n << 30)).collect();
            let mut word = 0;
            for (tick, &flow) in (now..).zip(&flows) {
                word = with(word, flow, tick);
                word = with(word, flow, tick);
            }
            let known: Vec<bool> = flows.iter().map(|&flow| is_in(word, flow, now + 4)).collect();
            prop_assert_eq!(known, [false, true, true, true, true]);
        }
    }

    /// A flood of SYNs fills the table; of what follows none, no more than tags that happen to be alike seem to.
    #[test]
    fn a_flood_of_syns_lets_nothing_else_in() {
        let mut words = vec![0u64; HANDSHAKE_WORDS as usize];
        let mut place = |flow: u64| {
            let word = &mut words[index(flow) as usize];
            *word = with(*word, flow, 7);
        };
        (0..2_000_000).map(flow).for_each(&mut place);
        let strays = (3_000_000..3_100_000).map(flow);
        let free = strays.filter(|&flow| is_in(words[index(flow) as usize], flow, 7));
        let free = free.count();
        assert!(free < 1_000, "{free} of 100,000; chance makes 390");
    }
}
