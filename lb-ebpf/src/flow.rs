//! The flow table's bucket: eight flows of eight bytes on one cache line, as a pure function of its words.
//!
//! A flow is `tag 32 | backend 16 | state 2 | age 14`. There is no key to compare: two flows of a bucket with one tag
//! share a backend, which happens to about one new flow in 5e8 and harms nobody. The bucket cannot grow, so a flood
//! costs what one flow costs. The table of fragments uses the same buckets.

/// Flows in a bucket.
pub const WAYS: usize = 8;
/// Bits of an age. It counts jiffies shifted right by [`age_shift`].
pub const AGE_BITS: u32 = 14;
const AGE_MASK: u64 = (1 << AGE_BITS) - 1;

/// Jiffies are shifted right by this to give an age of about a second, so that 14 bits last for hours.
#[must_use]
pub const fn age_shift(hz: u32) -> u32 {
    match hz {
        0..=100 => 7,
        101..=300 => 8,
        _ => 10,
    }
}

/// A proven flow's age may be this much too high: less than what lifetimes of flows are made of.
pub const REFRESH_TICKS: u16 = 8;

/// What is known of a flow's client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// One packet came: it may be forged. The age counts from then.
    Unproven = 1,
    /// Its client showed that it gets our packets, or kept at it in peace. The age counts from when it was last seen.
    Proven = 2,
    /// Packets came in two ticks. The age counts from the second.
    Returning = 3,
}

/// One flow. Zero is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow(pub u64);

impl Flow {
    #[inline(always)]
    #[must_use]
    pub const fn new(tag: u32, backend: u16, state: State, now: u16) -> Self {
        Self(
            (tag as u64) << 32
                | (backend as u64) << 16
                | (state as u64) << AGE_BITS
                | now as u64 & AGE_MASK,
        )
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 & (3 << AGE_BITS) == 0
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_proven(self) -> bool {
        self.0 >> AGE_BITS & 3 == State::Proven as u64
    }

    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        (self.0 >> 32) as u32
    }

    #[inline(always)]
    #[must_use]
    pub const fn backend(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline(always)]
    #[must_use]
    pub const fn state(self) -> u64 {
        self.0 >> AGE_BITS & 3
    }

    /// Ticks since the moment that its state counts from.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u16) -> u16 {
        ((now as u64).wrapping_sub(self.0) & AGE_MASK) as u16
    }

    /// Whether a packet that comes now has to be written down. A proven flow's line stays clean for a while: writing it
    /// takes it away from other CPUs, and memory has to take it back.
    #[inline(always)]
    #[must_use]
    pub const fn is_due(self, now: u16) -> bool {
        let age = self.age(now);
        if self.is_proven() {
            age >= REFRESH_TICKS
        } else {
            age != 0
        }
    }

    /// The same flow in a state that begins now.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, state: State, now: u16) -> Self {
        Self::new(self.tag(), self.backend(), state, now)
    }

    /// The same flow after a packet that was let in. `peace`: nobody forges flows of this VIP just now.
    ///
    /// A TCP flow is proven when packets came in three ticks, the last `prove_after` ticks after the second, without
    /// long gaps, in peace: two forged packets prove nothing. Others only show that they live.
    #[inline(always)]
    #[must_use]
    pub const fn seen(self, now: u16, tcp: bool, peace: bool, lifetimes: &Lifetimes) -> Self {
        let age = self.age(now);
        if age == 0 {
            return self;
        }
        if self.is_proven() {
            return self.with(State::Proven, now);
        }
        if !tcp || age >= lifetimes.unproven || self.state() == State::Unproven as u64 {
            let returning = tcp && age < lifetimes.unproven;
            return self.with(
                if returning {
                    State::Returning
                } else {
                    State::Unproven
                },
                now,
            );
        }
        if age < lifetimes.prove_after {
            return self;
        }
        if peace {
            self.with(State::Proven, now)
        } else {
            // Stays as it is, but does not grow old meanwhile.
            self.with(State::Returning, now.wrapping_sub(lifetimes.prove_after))
        }
    }
}

/// The tag that a flow's hash gives. Never the bits that choose the bucket.
#[inline(always)]
#[must_use]
pub const fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// How long flows stay, in ticks of an age.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// A flow that is not proven expires after this silence.
    pub unproven: u16,
    /// Ticks between the second and the last packet that prove a flow.
    pub prove_after: u16,
    /// A proven flow expires after this silence.
    pub idle: u16,
    /// A proven flow that was silent this long may make room when nothing else can.
    pub yielding: u16,
}

/// What a flow is worth: the higher, the sooner it makes room.
#[inline(always)]
fn expendable(flow: Flow, now: u16, lifetimes: &Lifetimes) -> u32 {
    let age = flow.age(now);
    let class = if flow.is_empty() {
        4
    } else if flow.is_proven() {
        if age >= lifetimes.idle {
            3
        } else {
            u32::from(age >= lifetimes.yielding)
        }
    } else if age >= lifetimes.unproven {
        3
    } else {
        2
    };
    class << 16 | age as u32
}

/// What had to go for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    Nothing,
    Expired,
    Unproven,
    Idle,
}

/// The place that a new flow takes, in a bucket given by a function that reads one way: its index in the bucket, and what goes; `None` if every flow there is live and proven.
///
/// Empty places first, then expired flows, then unproven, then the proven one that was silent longest.
#[inline(always)]
#[must_use]
pub fn place(
    bucket: impl Fn(usize) -> u64,
    now: u16,
    lifetimes: &Lifetimes,
) -> Option<(usize, Evicted)> {
    const { assert!(WAYS == 8) };
    let mut best = 0;
    let mut best_rank = expendable(Flow(bucket(0)), now, lifetimes);
    macro_rules! consider {
        ($($way:literal)*) => {$(
            let rank = expendable(Flow(bucket($way)), now, lifetimes);
            if rank > best_rank {
                best = $way;
                best_rank = rank;
            }
        )*};
    }
    consider!(1 2 3 4 5 6 7);
    let evicted = match best_rank >> 16 {
        0 => return None,
        1 => Evicted::Idle,
        2 => Evicted::Unproven,
        3 => Evicted::Expired,
        _ => Evicted::Nothing,
    };
    Some((best, evicted))
}

/// The way that holds `tag`.
#[inline(always)]
#[must_use]
pub fn find(bucket: impl Fn(usize) -> u64, tag: u32) -> Option<(usize, Flow)> {
    macro_rules! try_ways {
        ($($way:literal)*) => {$(
            let flow = Flow(bucket($way));
            if flow.tag() == tag && !flow.is_empty() {
                return Some(($way, flow));
            }
        )*};
    }
    try_ways!(0 1 2 3 4 5 6 7);
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIVES: Lifetimes = Lifetimes {
        unproven: 16,
        prove_after: 3,
        idle: 900,
        yielding: 60,
    };

    #[test]
    fn fields_do_not_overlap() {
        let flow = Flow::new(0xdead_beef, 0xcafe, State::Proven, 0x3fff);
        assert_eq!(
            (
                flow.tag(),
                flow.backend(),
                flow.is_proven(),
                flow.age(0x3fff)
            ),
            (0xdead_beef, 0xcafe, true, 0)
        );
        assert_eq!(flow.age(0), 1, "the age wraps");
    }

    #[test]
    fn room_is_made_in_the_promised_order() {
        let now = 5000;
        let live = Flow::new(1, 1, State::Proven, now - 1).0;
        let mut bucket = [live; WAYS];
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            None,
            "eight live proven flows stay"
        );
        bucket[2] = Flow::new(2, 1, State::Proven, now - 70).0;
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            Some((2, Evicted::Idle))
        );
        bucket[3] = Flow::new(3, 1, State::Proven, now - 80).0;
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            Some((3, Evicted::Idle)),
            "the one silent longest"
        );
        bucket[4] = Flow::new(4, 1, State::Unproven, now).0;
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            Some((4, Evicted::Unproven))
        );
        bucket[5] = Flow::new(5, 1, State::Unproven, now - 20).0;
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            Some((5, Evicted::Expired))
        );
        bucket[6] = 0;
        assert_eq!(
            place(|way| bucket[way], now, &LIVES),
            Some((6, Evicted::Nothing))
        );
    }

    #[test]
    fn a_flow_is_proven_by_packets_in_three_ticks_and_peace() {
        let born = Flow::new(1, 2, State::Unproven, 100);
        let again = |flow: Flow, now| flow.seen(now, true, true, &LIVES);
        assert_eq!(again(born, 100), born);
        let returning = again(born, 109);
        assert!(
            !returning.is_proven(),
            "two packets prove nothing, however far apart"
        );
        assert!(!again(returning, 110).is_proven());
        assert!(again(returning, 112).is_proven());
        assert!(
            !again(returning, 109 + 16).is_proven(),
            "a long gap begins anew"
        );
        assert!(
            !returning.seen(112, true, false, &LIVES).is_proven(),
            "not while under attack"
        );
        let waiting = returning.seen(120, true, false, &LIVES);
        assert!(
            again(waiting, 120).is_proven(),
            "at once when peace is back"
        );
        let udp = (101..200).fold(born, |flow, now| flow.seen(now, false, true, &LIVES));
        assert!(!udp.is_proven(), "UDP shows no handshake");
    }

    proptest! {
        /// Whatever an attacker inserts, a live proven flow is still found.
        #[test]
        fn unproven_flows_never_displace_a_live_proven_one(tags in prop::collection::vec(1u32.., 1..200), at in 0usize..WAYS) {
            let now = 100;
            let mut bucket = [0; WAYS];
            bucket[at] = Flow::new(0, 7, State::Proven, now).0;
            for tag in tags {
                if let Some((way, _)) = place(|way| bucket[way], now, &LIVES) {
                    bucket[way] = Flow::new(tag, 9, State::Unproven, now).0;
                }
            }
            prop_assert_eq!(find(|way| bucket[way], 0).unwrap().1.backend(), 7);
        }
    }
}
