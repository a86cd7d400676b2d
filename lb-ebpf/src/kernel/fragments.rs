//! Fragments: those that a policy wants are let in, and all of one datagram go to one backend, without queueing any.
//!
//! The first fragment that is seen, whichever it is, decides; a small table of buckets remembers it for the others.

use core::hint::cold_path;

use super::{
    Verdict, count,
    flows::{Pressure, put, ticks},
    maps::{FRAGMENTS, explaining},
};
use crate::{
    abi::{DropReason, FILTER_FRAGMENTS, FILTER_FRAGMENTS_MONITOR, NO_BACKEND, Step, Vip},
    flow::{self, Flow, Lifetimes, State},
    hash::{self, Tuple},
    packet::{Fragment, Ip},
};

const BUCKET_MASK: u32 = 2047;
/// Ticks that the first fragment may come after a later one.
const REORDERED: u16 = 1;
/// Fragments of a datagram come within moments, and a busy sender uses an id again within seconds; the oldest makes room.
const LIFETIMES: Lifetimes = Lifetimes {
    unproven: 4,
    prove_after: 0,
    idle: 4,
    yielding: 0,
};

/// Ends a fragment to a VIP whose policy wants none. For a whole packet no word of the VIP is read.
#[inline(always)]
pub fn check(fragment: Fragment, ip: &Ip, vip: &Vip, vip_index: u16) -> Result<(), Verdict> {
    if matches!(fragment, Fragment::Whole) {
        return Ok(());
    }
    cold_path();
    if vip.filter & FILTER_FRAGMENTS != 0 {
        count::note(Step::Fragment);
        return Err(Verdict::Drop(DropReason::Fragment));
    }
    if vip.filter & FILTER_FRAGMENTS_MONITOR != 0 {
        count::note(Step::Fragment);
        count::monitored(vip_index, DropReason::Fragment, ip.length);
    }
    Ok(())
}

/// Hash of the datagram that a fragment is of.
#[inline(always)]
#[must_use]
pub fn hash(key: &[u64; 4], tuple: &Tuple, id: u32) -> u64 {
    // IPv6 knows a datagram without its protocol, which later fragments may not tell (RFC 8200, 4.5).
    let protocol = if tuple.v6 { 0 } else { tuple.protocol };
    hash::hash4(
        key,
        [
            tuple.source[0],
            tuple.source[1],
            hash::fold(key, tuple.destination),
            u64::from(id) | u64::from(protocol) << 32,
        ],
    )
}

/// Who decided where a datagram goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// Its first fragment, by the flow.
    First,
    /// A later one that was seen before, without knowing the flow.
    Later,
}

/// The backend that another fragment of the datagram went to, or `NO_BACKEND`.
///
/// A first fragment (`by` says who asks) follows only a later one of its own datagram that came just before it: ids
/// come round, and a forged fragment must not lead others astray for long.
#[inline(always)]
#[must_use]
pub fn find(hash: u64, jiffies: u64, by: Decided) -> u16 {
    let Some(bucket) = FRAGMENTS.get_ptr(hash as u32 & BUCKET_MASK) else {
        return NO_BACKEND;
    };
    let bucket = bucket.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let read = |way| unsafe { bucket.add(way).read_volatile() };
    let Some((_, found)) = flow::find(read, flow::tag(hash)) else {
        return NO_BACKEND;
    };
    let age = found.age(ticks(jiffies));
    let follows = if by == Decided::First {
        !found.is_proven() && age <= REORDERED
    } else {
        age <= LIFETIMES.idle
    };
    if follows { found.backend() } else { NO_BACKEND }
}

/// Remembers where a fragment goes.
#[inline(always)]
pub fn remember(hash: u64, backend: u16, jiffies: u64, by: Decided) {
    if !explaining() {
        sluice_remember_fragment(hash, backend, jiffies, by == Decided::First);
    }
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_remember_fragment(
    hash: u64,
    backend: u16,
    jiffies: u64,
    first: bool,
) -> u32 {
    let state = if first {
        State::Proven
    } else {
        State::Unproven
    };
    if let Some(bucket) = FRAGMENTS.get_ptr_mut(hash as u32 & BUCKET_MASK) {
        let entry = Flow::new(flow::tag(hash), backend, state, ticks(jiffies));
        put(bucket, entry, ticks(jiffies), &LIFETIMES, Pressure::Full);
    }
    0
}
