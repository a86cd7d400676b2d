//! The flow table in the kernel: which backend a flow has, and that it is remembered.

use core::hint::cold_path;

use super::{
    count,
    limits::disturb,
    maps::{AGE_SHIFT, BACKENDS, FLOW_IDLE, FLOW_MASK, FLOW_STATS, FLOWS, VIPS, explaining},
};
use crate::{
    abi::{BACKEND_FORWARDS, Backend, HANDSHAKE_TICKS, NO_BACKEND, Step, Vip},
    flow::{self, Evicted, Flow, Lifetimes, State, WAYS},
};

/// What never changes of [`Lifetimes`]: an unproven flow's silence, the ticks that prove one, and the silence after
/// which a proven flow may make room when nothing else can.
const UNPROVEN: u16 = 16;
const PROVE_AFTER: u16 = 3;
const YIELDING: u16 = 60;
/// A UDP flow that was silent for this many ticks is balanced afresh.
const UDP_IDLE: u16 = 120;

/// Now, in the ticks of an age.
#[inline(always)]
#[must_use]
pub fn ticks(jiffies: u64) -> u16 {
    (jiffies >> (AGE_SHIFT.load() & 63)) as u16 & ((1 << flow::AGE_BITS) - 1)
}

#[inline(always)]
fn lifetimes() -> Lifetimes {
    Lifetimes {
        unproven: UNPROVEN,
        prove_after: PROVE_AFTER,
        idle: FLOW_IDLE.load(),
        yielding: YIELDING,
    }
}

/// A backend that was found for a packet.
#[derive(Clone, Copy)]
pub struct Picked {
    pub index: u16,
    pub backend: &'static Backend,
}

/// What the table knows of a flow. No `Option`: the verifier refuses to copy the undefined half of `None`.
#[derive(Clone, Copy)]
pub struct Known {
    /// A backend that still forwards, or `NO_BACKEND`: then the rest says nothing.
    index: u16,
    backend: *const Backend,
    flow: Flow,
    entry: *mut u64,
}

impl Known {
    pub const NOTHING: Self = Self {
        index: NO_BACKEND,
        backend: core::ptr::null(),
        flow: Flow(0),
        entry: core::ptr::null_mut(),
    };

    #[inline(always)]
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.flow.is_proven()
    }

    #[inline(always)]
    #[must_use]
    pub fn picked(&self) -> Option<Picked> {
        if self.index == NO_BACKEND {
            return None;
        }
        // SAFETY: a map value, since there is a backend.
        let backend = unsafe { &*self.backend };
        Some(Picked {
            index: self.index,
            backend,
        })
    }

    /// Keeps the flow alive after a packet that was let in: once a tick it is written anew.
    #[inline(always)]
    pub fn seen(&self, tcp: bool, vip: &Vip, jiffies: u64) {
        let now = ticks(jiffies);
        if self.index == NO_BACKEND || !self.flow.is_due(now) || explaining() {
            return;
        }
        cold_path();
        let quiet = jiffies.wrapping_sub(vip.disturbed) >> (AGE_SHIFT.load() & 63);
        let peace = quiet >= u64::from(PROVE_AFTER);
        let seen = self.flow.seen(now, tcp, peace, &lifetimes());
        if seen != self.flow {
            // SAFETY: a word of the bucket where it was found.
            unsafe { self.entry.write_volatile(seen.0) };
        }
    }
}

/// Finds a flow. One whose backend is gone is forgotten.
#[inline(always)]
#[must_use]
pub fn find(hash: u64, tcp: bool, jiffies: u64) -> Known {
    let Some(bucket) = FLOWS.get_ptr_mut(hash as u32 & FLOW_MASK.load()) else {
        return Known::NOTHING;
    };
    let bucket = bucket.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let read = |way| unsafe { bucket.add(way).read_volatile() };
    let Some((way, flow)) = flow::find(read, flow::tag(hash)) else {
        return Known::NOTHING;
    };
    if !tcp && flow.age(ticks(jiffies)) >= UDP_IDLE {
        return Known::NOTHING;
    }
    // SAFETY: as above.
    let entry = unsafe { bucket.add(crate::hide(way) & (WAYS - 1)) };
    let Some(Picked { index, backend }) = backend_that_forwards(flow.backend()) else {
        cold_path();
        count::note(Step::FlowBackendGone);
        if !explaining() {
            // SAFETY: as above.
            unsafe { entry.write_volatile(0) };
        }
        return Known::NOTHING;
    };
    count::note(if flow.is_proven() {
        Step::FlowProven
    } else {
        Step::FlowUnproven
    });
    Known {
        index,
        backend,
        flow,
        entry,
    }
}

/// A backend that takes packets of flows that it has.
#[inline(always)]
#[must_use]
pub fn backend_that_forwards(index: u16) -> Option<Picked> {
    let backend = BACKENDS.get(u32::from(index))?;
    (backend.flags & BACKEND_FORWARDS != 0).then_some(Picked { index, backend })
}

/// What a new flow may displace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Whatever is worth less than a live, proven flow.
    Full,
    /// An unproven flow that is older than a switch which handshakes are under way of: without its entry it follows the old
    /// table, where it is. Nothing else that lives, for a SYN proves less than any other packet.
    Gentle,
}

/// A flow that the table does not know yet.
pub struct NewFlow {
    pub backend: u16,
    pub vip: u16,
    pub state: State,
    pub pressure: Pressure,
}

/// Remembers a new flow, unless its bucket is full of what it may not displace. Returns whether it did.
#[inline(always)]
pub fn remember(hash: u64, flow: &NewFlow, jiffies: u64) -> bool {
    let gently = u64::from(flow.pressure == Pressure::Gentle);
    let proven = u64::from(flow.state == State::Proven);
    sluice_remember(
        hash,
        proven << 33 | gently << 32 | u64::from(flow.vip) << 16 | u64::from(flow.backend),
        jiffies,
    )
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_remember(hash: u64, what: u64, jiffies: u64) -> bool {
    let (backend, vip) = (what as u16, (what >> 16) as u16);
    let pressure = if what >> 32 & 1 != 0 {
        Pressure::Gentle
    } else {
        Pressure::Full
    };
    let state = if what >> 33 & 1 != 0 {
        State::Proven
    } else {
        State::Unproven
    };
    let Some(bucket) = FLOWS.get_ptr_mut(hash as u32 & FLOW_MASK.load()) else {
        return false;
    };
    let now = ticks(jiffies);
    let entry = Flow::new(flow::tag(hash), backend, state, now);
    let evicted = put(bucket, entry, now, &lifetimes(), pressure);
    if explaining() {
        return evicted.is_some();
    }
    if evicted == Some(Evicted::Nothing) {
        count::inserted(vip);
        return true;
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
    // Live flows give way to forged ones: nothing that comes now proves itself by coming again.
    if matches!(evicted, Some(Evicted::Unproven | Evicted::Idle) | None)
        && let Some(vip) = VIPS.get_ptr_mut(u32::from(vip))
    {
        disturb(vip, jiffies);
    }
    evicted.is_some()
}

/// Writes an entry into a bucket: over the one of the same tag, or where room is made.
#[inline(always)]
pub fn put(
    bucket: *mut [u64; WAYS],
    entry: Flow,
    now: u16,
    lifetimes: &Lifetimes,
    pressure: Pressure,
) -> Option<Evicted> {
    let words = bucket.cast::<u64>();
    // SAFETY: the pointer is to a bucket of `WAYS` words; `way` is below that.
    let read = |way| unsafe { words.add(way).read_volatile() };
    let (way, evicted) = match flow::find(read, entry.tag()) {
        Some((way, _)) => (way, Evicted::Nothing),
        None => flow::place(read, now, lifetimes)?,
    };
    // SAFETY: as above; the mask keeps the index in the bucket for the verifier.
    let place = unsafe { words.add(crate::hide(way) & (WAYS - 1)) };
    // SAFETY: a word of the bucket.
    let displaced = Flow(unsafe { place.read_volatile() });
    let spared = match evicted {
        Evicted::Idle => true,
        Evicted::Unproven => u32::from(displaced.age(now)) <= HANDSHAKE_TICKS,
        Evicted::Nothing | Evicted::Expired => false,
    };
    if pressure == Pressure::Gentle && spared {
        return None;
    }
    if !explaining() {
        // SAFETY: as above.
        unsafe { place.write_volatile(entry.0) };
    }
    Some(evicted)
}
