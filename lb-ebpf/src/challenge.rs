//! The SYN challenge: an answer that a real client contradicts, and by that proves itself; as pure functions.
//!
//! A client that gets an acknowledgement of something that it never sent answers with a reset whose sequence number is that
//! acknowledgement number (RFC 9293, 3.10.7.3), and tries again. The number's lower half is a keyed hash of whom we answered, so
//! nothing is stored, and who forges a source has to guess it. It lies at or below the client's own number: what is above
//! is dropped by NAT and firewalls on the way as of no connection, and what is up to 66,000 below passes them.

use crate::{
    hash::{self, Tuple},
    packet::{TCP_ACK, TCP_SYN},
    reset::TcpHeader,
    siphash::siphash,
};

/// The part of the acknowledgement number that is hash.
const MARK: u32 = 0xffff;
/// Distance of the TTLs that a reset may have from its SYN's: routes of two packets differ little.
const TTL_SLACK: u8 = 1;

/// Hash of a tuple in an epoch: both numbers of the answer come from it.
///
/// The epoch has 23 bits: those of 64 seconds come round after 17 years. Never 0 or 1.
#[inline(always)]
#[must_use]
pub fn base(key: &[u64; 2], tuple: &Tuple, epoch: u64) -> u64 {
    let last = u64::from(tuple.ports) | (epoch & 0x7f_ffff) << 32;
    let hash = if tuple.v6 {
        let [source, destination] = [tuple.source, tuple.destination];
        let words = [source[0], source[1], destination[0], destination[1]];
        siphash(key, words, last | 39 << 56)
    } else {
        let addresses = tuple.source[1] >> 32 | tuple.destination[1] & 0xffff_ffff_0000_0000;
        siphash(key, [addresses], last | 15 << 56)
    };
    hash | 2
}

/// Whether it is before `until`, which was written `hold` jiffies ahead, maybe by another CPU after the packet's time was read.
///
/// What is much further away is of another clock.
#[inline(always)]
#[must_use]
pub const fn is_before(until: u64, hold: u64, jiffies: u64) -> bool {
    until.wrapping_sub(jiffies).wrapping_sub(1) < hold.wrapping_mul(2)
}

/// The mark for a SYN that came with this TTL: a live host resets answers that it did not ask for too, but only who knows how
/// far it is from here can make it seem to have asked.
///
/// A sum will do: who gets to see a mark learns nothing of those of other tuples, and two TTLs never have the same.
#[inline(always)]
#[must_use]
const fn mark(base: u64, ttl: u8) -> u32 {
    ((base >> 8) as u32).wrapping_add(ttl as u32) & MARK
}

/// The header that challenges a SYN, without its checksum.
#[inline(always)]
#[must_use]
pub fn answer(base: u64, syn: &TcpHeader, ttl: u8) -> TcpHeader {
    let initial = u32::from_be(syn.sequence_be);
    let below = initial.wrapping_sub(mark(base, ttl)) & MARK;
    TcpHeader {
        source: syn.destination,
        destination: syn.source,
        sequence_be: ((base >> 32) as u32).to_be(),
        acknowledgement_be: initial.wrapping_sub(below).to_be(),
        header_length: 5 << 4,
        flags: TCP_SYN | TCP_ACK,
        window: 0,
        checksum: 0,
        urgent: 0,
    }
}

/// Whether a reset with this sequence number and TTL contradicts an answer that was made from `base`.
#[inline(always)]
#[must_use]
pub const fn contradicts(base: u64, sequence: u32, ttl: u8) -> bool {
    let sequence = sequence & MARK;
    sequence == mark(base, ttl)
        || sequence == mark(base, ttl.wrapping_sub(TTL_SLACK))
        || sequence == mark(base, ttl.wrapping_add(TTL_SLACK))
}

/// The epoch at a time.
#[inline(always)]
#[must_use]
pub const fn epoch(jiffies: u64, shift: u32) -> u64 {
    jiffies >> (shift & 63)
}

/// Whether answers of the epoch before may still be on their way: in the first eighth of an epoch.
#[inline(always)]
#[must_use]
pub const fn is_young(jiffies: u64, shift: u32) -> bool {
    jiffies << (64 - (shift & 63)) >> 61 == 0
}

/// Right shift of jiffies to an epoch, of some 64 seconds, given that to a tick.
#[must_use]
pub const fn epoch_shift(age_shift: u32) -> u32 {
    age_shift + 6
}

/// A source that proved itself, in a bucket of eight: tag 32 | SYNs left 8 | flows to come 8 | tick of the proof 16. Zero is none.
///
/// A proof lets some SYNs in, and for each of them one flow of the same source enters the flow table as proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof(pub u64);

/// SYNs that one proof lets in: a source that sends more is asked again.
pub const PROOF_SYNS: u64 = 250;
/// Ticks that a proof is good for, some four minutes.
pub const PROOF_TICKS: u16 = 240;

impl Proof {
    #[inline(always)]
    #[must_use]
    pub const fn new(hash: u64, now: u16) -> Self {
        Self(hash & !0xffff_ffff | PROOF_SYNS << 24 | now as u64)
    }

    #[inline(always)]
    #[must_use]
    pub const fn is_of(self, hash: u64) -> bool {
        self.0 != 0 && (self.0 ^ hash) >> 32 == 0
    }

    /// Ticks since the proof.
    #[inline(always)]
    #[must_use]
    pub const fn age(self, now: u16) -> u16 {
        now.wrapping_sub(self.0 as u16)
    }

    /// The same after one more SYN, whose flow is to come; or `None` if it is good for none.
    #[inline(always)]
    #[must_use]
    pub const fn let_in(self, now: u16) -> Option<Self> {
        if self.age(now) >= PROOF_TICKS || self.0 >> 24 & 0xff == 0 {
            return None;
        }
        // No more flows are to come than SYNs were let in, so their number does not run over.
        Some(Self(self.0 - (1 << 24) + (1 << 16)))
    }

    /// The same after a flow that came, or `None` if none was to come.
    #[inline(always)]
    #[must_use]
    pub const fn flow_came(self, now: u16) -> Option<Self> {
        if self.age(now) >= PROOF_TICKS || self.0 >> 16 & 0xff == 0 {
            return None;
        }
        Some(Self(self.0 - (1 << 16)))
    }

    /// Of two proofs in a bucket, the one with the higher number makes room.
    #[inline(always)]
    const fn expendable(self, now: u16) -> u32 {
        if self.0 == 0 {
            1 << 16
        } else {
            self.age(now) as u32
        }
    }
}

/// Hash of a source: its lower half names the bucket, its upper half is the tag.
///
/// All addresses of an IPv6 /64, which are one host's to choose from, share a bucket, and so have eight proofs at most.
#[inline(always)]
#[must_use]
pub fn proof_hash(key: &[u64; 4], source: [u64; 2], v6: bool) -> u64 {
    if v6 {
        let tag = hash::hash2(key, source[0], source[1]);
        tag & !0xffff_ffff | hash::hash2(key, source[0], PREFIX) & 0xffff_ffff
    } else {
        hash::hash2(key, source[1] >> 32, PREFIX)
    }
}

/// Stands in place of the address's second half.
const PREFIX: u64 = 0x70_726f_6f66;

/// The way of a bucket of proofs that holds a source, in a bucket given by a function that reads one way.
#[inline(always)]
#[must_use]
pub fn find_proof(bucket: impl Fn(usize) -> u64, hash: u64) -> Option<usize> {
    macro_rules! try_ways {
        ($($way:literal)*) => {$(
            if Proof(bucket($way)).is_of(hash) {
                return Some($way);
            }
        )*};
    }
    try_ways!(0 1 2 3 4 5 6 7);
    None
}

/// The way that a source's new proof takes: its own, or else the oldest.
#[inline(always)]
#[must_use]
pub fn place_proof(bucket: impl Fn(usize) -> u64, hash: u64, now: u16) -> usize {
    if let Some(way) = find_proof(&bucket, hash) {
        return way;
    }
    let ranked = |way: usize| Proof(bucket(way)).expendable(now) << 3 | way as u32;
    let mut best = ranked(0);
    macro_rules! consider {
        ($($way:literal)*) => {$(
            let other = ranked($way);
            best = if other > best { other } else { best };
        )*};
    }
    consider!(1 2 3 4 5 6 7);
    best as usize & 7
}

/// Time of a seen SYN counts jiffies shifted by this much less than ticks: it is in sixteenths of them.
pub const SEEN_SHIFT: u32 = 4;
const SEEN_TIME: u32 = 0x3ff;
/// In this time a retransmitted SYN comes (RFC 6298: after a second; some systems wait for three), in sixteenths of a tick:
/// about 0.8 to 3.5 seconds.
const AGAIN_FIRST: u32 = 12;
const AGAIN_LAST: u32 = 54;

/// What a SYN has to do with the two that its place remembers, each by a tag of 22 bits and a time of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is one of them, when a client would send it again.
    Again,
    /// It is one of them, too soon.
    Lately,
    /// It is none; this is to be remembered, without the older of the two.
    New(u64),
}

/// Looks for a SYN in the word that remembers it, if anything does.
#[inline(always)]
#[must_use]
pub const fn seen(word: u64, hash: u64, now: u32) -> Seen {
    let tag = (hash >> 32) as u32 & !SEEN_TIME;
    let (low, high) = (word as u32, (word >> 32) as u32);
    let (low_age, high_age) = (seen_age(low, now), seen_age(high, now));
    let age = if low & !SEEN_TIME == tag {
        low_age
    } else if high & !SEEN_TIME == tag {
        high_age
    } else {
        SEEN_TIME
    };
    if age < AGAIN_FIRST {
        return Seen::Lately;
    }
    if age <= AGAIN_LAST {
        return Seen::Again;
    }
    let entry = (tag | now & SEEN_TIME) as u64;
    Seen::New(if low_age >= high_age {
        word & 0xffff_ffff_0000_0000 | entry
    } else {
        word & 0xffff_ffff | entry << 32
    })
}

#[inline(always)]
const fn seen_age(entry: u32, now: u32) -> u32 {
    now.wrapping_sub(entry) & SEEN_TIME
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::TCP_RST;

    const KEY: [u64; 2] = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];

    fn tuple(source: u32, ports: u32) -> Tuple {
        Tuple {
            source: crate::packet::mapped(source),
            destination: crate::packet::mapped(0x0a02_00c0),
            ports,
            protocol: 6,
            v6: false,
        }
    }

    fn syn(sequence: u32) -> TcpHeader {
        TcpHeader {
            source: 1,
            destination: 2,
            sequence_be: sequence.to_be(),
            acknowledgement_be: 0,
            header_length: 10 << 4,
            flags: TCP_SYN,
            window: 9,
            checksum: 9,
            urgent: 0,
        }
    }

    /// What a client in SYN-SENT does with a segment that acknowledges (RFC 9293, 3.10.7.3): a reset's sequence number, if the
    /// number is one that it never sent.
    fn client(initial: u32, answer: &TcpHeader) -> Option<u32> {
        assert_eq!(answer.flags & (TCP_ACK | TCP_RST), TCP_ACK);
        let acknowledged = u32::from_be(answer.acknowledgement_be);
        let next = initial.wrapping_add(1);
        let at_or_below = acknowledged.wrapping_sub(initial).wrapping_sub(1) > u32::MAX / 2;
        let above = acknowledged.wrapping_sub(next).wrapping_sub(1) < u32::MAX / 2;
        (at_or_below || above).then_some(acknowledged)
    }

    fn any_tuple() -> impl Strategy<Value = Tuple> {
        let words = any::<([u64; 2], [u64; 2], u32, bool)>();
        words.prop_map(|(source, destination, ports, v6)| Tuple {
            source: if v6 {
                source
            } else {
                crate::packet::mapped(source[0] as u32)
            },
            destination: if v6 {
                destination
            } else {
                crate::packet::mapped(destination[0] as u32)
            },
            ports,
            protocol: 6,
            v6,
        })
    }

    #[test]
    fn what_is_held_is_so_for_packets_that_began_before_it_was_written() {
        let (hold, now) = (500, u64::MAX - 100);
        let until = now.wrapping_add(hold);
        for at in [
            now.wrapping_sub(20),
            now.wrapping_sub(1),
            now,
            until.wrapping_sub(1),
        ] {
            assert!(is_before(until, hold, at), "{at}");
        }
        for at in [until, until.wrapping_add(1), now.wrapping_sub(100_000)] {
            assert!(!is_before(until, hold, at), "{at}");
        }
        assert!(!is_before(0, 0, now), "nothing was written yet");
    }

    proptest! {
        #[test]
        fn a_clients_reset_always_proves_it(tuple in any_tuple(), key: [u64; 2], initial: u32, ttl: u8, hops in -1i8..=1, epoch: u64) {
            let base = base(&key, &tuple, epoch);
            let answer = answer(base, &syn(initial), ttl);
            prop_assert_eq!((answer.source, answer.destination), (2, 1));
            let reset = client(initial, &answer).expect("the answer acknowledges what was never sent");
            prop_assert!(initial.wrapping_sub(reset) < 1 << 16, "a NAT would drop it");
            prop_assert!(contradicts(base, reset, ttl.wrapping_add_signed(hops)));
        }

        #[test]
        fn a_proof_lets_in_so_many_syns_and_as_many_flows(hash: u64, born: u16, syns in 0u64..400) {
            let mut proof = Proof::new(hash, born);
            let mut let_in = 0;
            for _ in 0..syns {
                if let Some(after) = proof.let_in(born) {
                    proof = after;
                    let_in += 1;
                }
            }
            prop_assert_eq!(let_in, syns.min(PROOF_SYNS));
            let mut flows = 0;
            while let Some(after) = proof.flow_came(born) {
                proof = after;
                flows += 1;
            }
            prop_assert_eq!(flows, let_in);
            prop_assert!(hash >> 32 == 0 || proof.is_of(hash));
            prop_assert_eq!(proof.age(born.wrapping_add(9)), 9);
        }
    }

    /// 2^24 guesses: those that hit are as many as three marks of 2^16 make, within four standard deviations.
    #[test]
    fn who_guesses_hits_three_times_in_65_536() {
        let mut hits = 0u32;
        let mut guess = 1u32;
        for source in 0..1u32 << 12 {
            let base = base(&KEY, &tuple(source, 0x5000_1234), 7);
            for _ in 0..1u32 << 12 {
                guess = guess.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
                hits += u32::from(contradicts(base, guess ^ guess >> 15, 61));
            }
        }
        let expected = 3.0 * f64::from(1 << 24) / 65_536.0;
        let off = (f64::from(hits) - expected).abs() / expected.sqrt();
        assert!(off < 4.0, "{hits} instead of {expected}");
    }

    /// A forged SYN has another TTL than the reset of the host whose address it bears.
    #[test]
    fn a_reset_from_elsewhere_proves_nothing() {
        for source in 0..1000 {
            let base = base(&KEY, &tuple(source, 9), 7);
            let answer = answer(base, &syn(5), 100);
            let acknowledged = u32::from_be(answer.acknowledgement_be);
            for ttl in 0..=u8::MAX {
                assert_eq!(
                    contradicts(base, acknowledged, ttl),
                    ttl.abs_diff(100) <= 1,
                    "{ttl}"
                );
            }
        }
    }

    #[test]
    fn a_proof_of_another_epoch_tuple_or_key_is_none() {
        let whole = base(&KEY, &tuple(1, 2), 3);
        assert_ne!(whole, base(&KEY, &tuple(1, 2), 4));
        assert_ne!(whole, base(&KEY, &tuple(2, 2), 3));
        assert_ne!(whole, base(&KEY, &tuple(1, 3), 3));
        assert_ne!(whole, base(&[KEY[0], KEY[1] ^ 1], &tuple(1, 2), 3));
        let v6 = Tuple {
            v6: true,
            ..tuple(1, 2)
        };
        assert_ne!(whole, base(&KEY, &v6, 3));
    }

    #[test]
    fn an_epoch_is_young_in_its_first_eighth() {
        let shift = epoch_shift(8);
        let start = 5u64 << shift;
        assert_eq!((epoch(start - 1, shift), epoch(start, shift)), (4, 5));
        assert!(is_young(start, shift) && is_young(start + (1 << shift) / 8 - 1, shift));
        assert!(!is_young(start + (1 << shift) / 8, shift) && !is_young(start - 1, shift));
    }

    #[test]
    fn the_oldest_proof_makes_room() {
        let now = 5u16;
        let hash = |n: u64| n << 32 | 7;
        let mut bucket: Vec<u64> = (1..=8)
            .map(|n| Proof::new(hash(n), now.wrapping_sub(n as u16 * 3)).0)
            .collect();
        assert_eq!(place_proof(|way| bucket[way], hash(3), now), 2, "its own");
        assert_eq!(
            place_proof(|way| bucket[way], hash(9), now),
            7,
            "the oldest"
        );
        bucket[4] = 0;
        assert_eq!(place_proof(|way| bucket[way], hash(9), now), 4, "none");
        assert_eq!(find_proof(|way| bucket[way], hash(5)), None);
        assert_eq!(find_proof(|way| bucket[way], hash(6)), Some(5));
        let old = Proof(bucket[5]);
        assert_eq!(old.let_in(now.wrapping_add(PROOF_TICKS)), None);
    }

    #[test]
    fn a_syn_that_comes_again_is_known_by_its_time() {
        let (hash, other) = (0xdead_beef_0000_0001, 0x1234_beef_0000_0001);
        let born = 1020;
        let Seen::New(word) = seen(0, hash, born) else {
            panic!("nothing was seen yet");
        };
        let Seen::New(word) = seen(word, other, born + 2) else {
            panic!("the other was not seen yet");
        };
        let after = |age: u32| seen(word, hash, born + age);
        assert_eq!((after(0), after(11)), (Seen::Lately, Seen::Lately));
        assert_eq!((after(12), after(54)), (Seen::Again, Seen::Again));
        assert!(matches!(after(55), Seen::New(_)));
        assert_eq!(seen(word, other, born + 14), Seen::Again);
        let Seen::New(third) = seen(word, hash ^ 1 << 42, born + 20) else {
            panic!("it differs");
        };
        assert_eq!(
            seen(third, other, born + 20),
            Seen::Again,
            "the younger stays"
        );
    }

    /// Half as many SYNs a second as there is room for: nine in ten are known when they come again after that.
    #[test]
    fn a_flood_crowds_out_few_of_those_that_come_again() {
        const WORDS: u64 = 1 << 12;
        let mut table = vec![0u64; WORDS as usize];
        let hash_of = |n: u64| hash::hash2(&[1, 3, 5, 7], n, n);
        let mut known = 0;
        let a_second = WORDS / 2;
        for n in 0..a_second * 20 {
            let now = (n * 16 / a_second) as u32;
            for of in [n.checked_sub(a_second), Some(n)].into_iter().flatten() {
                let hash = hash_of(of);
                let word = &mut table[(hash % WORDS) as usize];
                match seen(*word, hash, now) {
                    Seen::New(after) => *word = after,
                    Seen::Again => known += 1,
                    Seen::Lately => {}
                }
            }
        }
        let came_again = a_second * 19;
        assert!(known > came_again * 9 / 10, "{known} of {came_again}");
    }
}
