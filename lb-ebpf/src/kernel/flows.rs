//! The flow table in the kernel: which backend a flow has, and that it is remembered.

use super::{
    count,
    maps::{AGE_SHIFT, BACKENDS, FLOW_IDLE, FLOW_MASK, FLOW_STATS, FLOWS, explaining},
};
use crate::{
    abi::{BACKEND_FORWARDS, Backend, NO_BACKEND, Step, Vip},
    flow::{self, Evicted, Flow, Lifetimes, State, WAYS},
};

/// Ticks of peace after which a TCP flow counts as proven: nobody forges that long unnoticed.
const PROVE_AFTER: u16 = 4;
/// An unproven flow is worth nothing this many ticks after it was last seen.
const UNPROVEN: u16 = 16;
/// A proven flow that was silent for this many ticks may make room when nothing else can.
const YIELDING: u16 = 60;
/// A UDP flow that was silent for this many ticks is balanced afresh.
const UDP_IDLE: u16 = 120;

/// Now, in the ticks of an age.
#[inline(always)]
#[must_use]
pub fn ticks(jiffies: u64) -> u16 {
    (jiffies >> (AGE_SHIFT.load() & 63)) as u16 & ((1 << flow::AGE_BITS) - 1)
}

/// What the table knows of a flow. No `Option`: the verifier refuses to copy the undefined half of `None`.
#[derive(Clone, Copy)]
pub struct Known {
    /// A backend that still forwards, or `NO_BACKEND`.
    pub backend: u16,
    pub proven: bool,
}

impl Known {
    pub const NOTHING: Self = Self {
        backend: NO_BACKEND,
        proven: false,
    };
}

/// Finds a flow, and keeps it alive: once a tick it is written anew.
#[inline(always)]
#[must_use]
pub fn find(hash: u64, tcp: bool, vip: &Vip, jiffies: u64) -> Known {
    let Some(bucket) = FLOWS.get_ptr_mut(hash as u32 & FLOW_MASK.load()) else {
        return Known::NOTHING;
    };
    let bucket = bucket.cast::<u64>();
    let tag = flow::tag(hash);
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let Some((way, found)) = flow::find(|way| unsafe { bucket.add(way).read_volatile() }, tag)
    else {
        return Known::NOTHING;
    };
    let now = ticks(jiffies);
    let age = found.age(now);
    if !tcp && age >= UDP_IDLE {
        return Known::NOTHING;
    }
    if backend_that_forwards(found.backend()).is_none() {
        count::note(Step::FlowBackendGone);
        return Known::NOTHING;
    }
    let proven = found.is_proven();
    if age != 0 && !explaining() {
        let at_peace = jiffies.wrapping_sub(vip.disturbed) >> (AGE_SHIFT.load() & 63)
            >= u64::from(PROVE_AFTER);
        let refreshed = if proven || tcp && at_peace && age >= PROVE_AFTER {
            found.proven(now)
        } else if !tcp {
            Flow::new(tag, found.backend(), State::Unproven, now)
        } else if age > PROVE_AFTER {
            Flow::new(
                tag,
                found.backend(),
                State::Unproven,
                now.wrapping_sub(PROVE_AFTER),
            )
        } else {
            found
        };
        if refreshed != found {
            // SAFETY: as above.
            unsafe { bucket.add(way).write_volatile(refreshed.0) };
        }
    }
    count::note(if proven {
        Step::FlowProven
    } else {
        Step::FlowUnproven
    });
    Known {
        backend: found.backend(),
        proven,
    }
}

/// A backend that takes packets of flows that it has.
#[inline(always)]
#[must_use]
pub fn backend_that_forwards(index: u16) -> Option<&'static Backend> {
    BACKENDS
        .get(u32::from(index))
        .filter(|backend| backend.flags & BACKEND_FORWARDS != 0)
}

/// Remembers a new flow, unless its bucket is full of live, proven ones.
#[inline(always)]
pub fn remember(hash: u64, backend: u16, vip: u16, jiffies: u64) {
    if explaining() {
        return;
    }
    let Some(bucket) = FLOWS.get_ptr_mut(hash as u32 & FLOW_MASK.load()) else {
        return;
    };
    let lifetimes = Lifetimes {
        unproven: UNPROVEN,
        idle: FLOW_IDLE.load(),
        yielding: YIELDING,
    };
    let evicted = put(bucket, hash, backend, ticks(jiffies), &lifetimes);
    if evicted == Some(Evicted::Nothing) {
        count::inserted(vip);
        return;
    }
    if let Some(stats) = FLOW_STATS.get_ptr_mut(0) {
        // SAFETY: a value of a per-CPU map.
        let stats = unsafe { &mut *stats };
        match evicted {
            Some(Evicted::Expired) => stats.evicted_expired += 1,
            Some(Evicted::Unproven) => stats.evicted_unproven += 1,
            Some(_) => stats.evicted_idle += 1,
            None => stats.refused += 1,
        }
    }
    if evicted.is_some() {
        count::inserted(vip);
    }
}

/// Writes an unproven entry into a bucket: over the one of the same tag, or where room is made.
#[inline(always)]
pub fn put(
    bucket: *mut [u64; WAYS],
    hash: u64,
    backend: u16,
    now: u16,
    lifetimes: &Lifetimes,
) -> Option<Evicted> {
    let words = bucket.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let read = |way| unsafe { words.add(way).read_volatile() };
    let (way, evicted) = match flow::find(read, flow::tag(hash)) {
        Some((way, _)) => (way, Evicted::Nothing),
        None => flow::place(read, now, lifetimes)?,
    };
    let entry = Flow::new(flow::tag(hash), backend, State::Unproven, now);
    // SAFETY: as above; the mask keeps the index in the bucket for the verifier.
    unsafe {
        words
            .add(crate::hide(way) & (WAYS - 1))
            .write_volatile(entry.0)
    };
    Some(evicted)
}
