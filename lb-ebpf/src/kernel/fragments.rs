//! Fragments: all of one datagram go to one backend, without queueing any.
//!
//! The first fragment that is seen, whichever it is, decides; a small table of buckets remembers it for the others.

use super::{
    flows::{put, ticks},
    maps::{FRAGMENTS, explaining},
};
use crate::{
    flow::{self, Lifetimes},
    hash::{self, Tuple},
};

const BUCKET_MASK: u32 = 2047;
/// Ticks that the fragments of a datagram may be apart; receivers give up after 30 s too (RFC 1122, 3.3.2).
const LIFETIME: u16 = 30;

/// Hash of the datagram that a fragment is of.
#[inline(always)]
#[must_use]
pub fn hash(key: &[u64; 4], tuple: &Tuple, id: u32) -> u64 {
    let destination = tuple.destination[0] ^ tuple.destination[1].rotate_left(29);
    hash::hash4(
        key,
        [
            tuple.source[0],
            tuple.source[1],
            destination,
            u64::from(id) | u64::from(tuple.protocol) << 32,
        ],
    )
}

/// The backend that another fragment of the datagram went to.
#[inline(always)]
#[must_use]
pub fn find(hash: u64, jiffies: u64) -> Option<u16> {
    let bucket = FRAGMENTS.get_ptr(hash as u32 & BUCKET_MASK)?.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let (_, found) = flow::find(
        |way| unsafe { bucket.add(way).read_volatile() },
        flow::tag(hash),
    )?;
    (found.age(ticks(jiffies)) <= LIFETIME).then_some(found.backend())
}

/// Remembers where a fragment goes.
#[inline(always)]
pub fn remember(hash: u64, backend: u16, jiffies: u64) {
    if explaining() {
        return;
    }
    let lifetimes = Lifetimes {
        unproven: LIFETIME,
        idle: LIFETIME,
        yielding: LIFETIME,
    };
    if let Some(bucket) = FRAGMENTS.get_ptr_mut(hash as u32 & BUCKET_MASK) {
        put(bucket, hash, backend, ticks(jiffies), &lifetimes);
    }
}
