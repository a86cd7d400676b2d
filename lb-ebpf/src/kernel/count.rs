//! Counters, and the trace of the explaining twin.

use core::ptr::null_mut;

use aya_ebpf::bindings::xdp_action;

use super::{
    Verdict,
    maps::{BACKEND_STATS, CLASS_STATS, DROPS, SOURCE_STATS, TRACE, VIP_STATS, explaining},
};
use crate::abi::{CLASS_COUNTERS_SHIFT, Class, ClassStats, Count, DROP_REASONS, DropReason, Step};

/// Adds one packet, and returns how many there are. Per-CPU values need no atomics.
///
/// # Safety
/// `count` must point into a per-CPU map value.
#[inline(always)]
pub unsafe fn add(count: *mut Count, bytes: u32) -> u64 {
    // SAFETY: the caller's promise; nothing else on this CPU writes meanwhile.
    let count = unsafe { &mut *count };
    count.packets += 1;
    count.bytes += u64::from(bytes);
    count.packets
}

/// Counts what was dropped of a VIP, and returns how many were for this reason, on this CPU.
#[inline(always)]
pub fn dropped(vip: u16, reason: DropReason, bytes: u32) -> u64 {
    note_reason(reason);
    count_drop(vip, reason, 0, bytes)
}

/// Counts what would have been dropped.
#[inline(always)]
pub fn monitored(vip: u16, reason: DropReason, bytes: u32) {
    count_drop(vip, reason, 1, bytes);
    note(Step::Monitored);
}

#[inline(always)]
fn count_drop(vip: u16, reason: DropReason, mode: u32, bytes: u32) -> u64 {
    if explaining() {
        return 0;
    }
    let index = (u32::from(vip) * DROP_REASONS + reason as u32) * 2 + mode;
    match DROPS.get_ptr_mut(index) {
        // SAFETY: a value of a per-CPU map.
        Some(count) => unsafe { add(count, bytes) },
        None => 0,
    }
}

/// Counts what was sent to a backend, by what the program returns.
#[inline(always)]
pub fn sent(backend: u16, bytes: u32) {
    if explaining() {
        return;
    }
    if let Some(count) = BACKEND_STATS.get_ptr_mut(u32::from(backend)) {
        // SAFETY: a value of a per-CPU map.
        unsafe { add(count, bytes) };
    }
}

/// Counts a packet that was not dropped, by the `action` that the program returns for it. Returns how many left like this,
/// on this CPU.
#[inline(always)]
pub fn left(vip: u16, action: u32, bytes: u32) -> u64 {
    if explaining() {
        return 0;
    }
    let Some(stats) = VIP_STATS.get_ptr_mut(u32::from(vip)) else {
        return 0;
    };
    let count = match action {
        // SAFETY: a field of a per-CPU map value.
        xdp_action::XDP_TX => unsafe { &raw mut (*stats).tx },
        // SAFETY: as above.
        xdp_action::XDP_PASS => unsafe { &raw mut (*stats).pass },
        // SAFETY: as above.
        _ => unsafe { &raw mut (*stats).redirect },
    };
    // SAFETY: a value of a per-CPU map.
    unsafe { add(count, bytes) }
}

/// Counts a packet by its class, and returns where that is counted; null if nowhere.
#[inline(always)]
pub fn class(vip: u16, class: Class, bytes: u32) -> *mut ClassStats {
    let index = u32::from(vip) << CLASS_COUNTERS_SHIFT | class as u32;
    let Some(stats) = CLASS_STATS.get_ptr_mut(index) else {
        return null_mut();
    };
    if !explaining() {
        // SAFETY: a field of a per-CPU map value.
        let count = unsafe { &raw mut (*stats).count };
        // SAFETY: as above.
        unsafe { add(count, bytes) };
    }
    stats
}

/// Counts what came from sources of a class, by whether it was dropped for that.
#[inline(always)]
pub fn from_class(class: u32, dropped: bool, bytes: u32) {
    if explaining() {
        return;
    }
    if let Some(count) = SOURCE_STATS.get_ptr_mut(class << 1 | u32::from(dropped)) {
        // SAFETY: a value of a per-CPU map.
        unsafe { add(count, bytes) };
    }
}

/// Counts the end of a packet that no backend got, and returns how many ended like this, on this CPU.
#[inline(always)]
pub fn ended(vip: u16, verdict: Verdict, bytes: u32) -> u64 {
    match verdict {
        Verdict::Pass => left(vip, xdp_action::XDP_PASS, bytes),
        Verdict::Reply => left(vip, xdp_action::XDP_TX, bytes),
        Verdict::Drop(reason) => dropped(vip, reason, bytes),
    }
}

/// Counts a flow that entered the flow table.
#[inline(always)]
pub fn inserted(vip: u16) {
    if let Some(stats) = VIP_STATS.get_ptr_mut(u32::from(vip)) {
        // SAFETY: a field of a per-CPU map value.
        unsafe { (*stats).inserts += 1 };
    }
}

/// Counts TCP that was neither SYN nor of a known flow.
#[inline(always)]
pub fn out_of_state(vip: u16) {
    if explaining() {
        return;
    }
    if let Some(stats) = VIP_STATS.get_ptr_mut(u32::from(vip)) {
        // SAFETY: a field of a per-CPU map value.
        unsafe { (*stats).out_of_state += 1 };
    }
}

/// Tells a step to who asked for an explanation.
#[inline(always)]
pub fn note(step: Step) {
    if !explaining() {
        return;
    }
    if let Some(trace) = TRACE.get_ptr_mut(0) {
        // SAFETY: the only element of the map, which only this run writes.
        let trace = unsafe { &mut *trace };
        let at = crate::hide(trace.count as usize) & 31;
        // SAFETY: `at` is below 32.
        unsafe { *trace.steps.as_mut_ptr().add(at) = step as u8 };
        trace.count += 1;
    }
}

/// Tells the VIP.
#[inline(always)]
pub fn note_vip(vip: u16) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).vip = vip };
    }
}

/// Tells the backend.
#[inline(always)]
pub fn note_backend(backend: u16) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).backend = backend };
    }
}

/// Tells the exact limit that the packet met.
#[inline(always)]
pub fn note_limit(limit: u32) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).limit = limit };
    }
}

/// Tells a rule that means the packet.
#[inline(always)]
pub fn note_rule(number: u32) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).rule = number + 1 };
    }
}

/// Tells the sets that decided.
#[inline(always)]
pub fn note_sets(sets: u64) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).sets = sets };
    }
}

#[inline(always)]
fn note_reason(reason: DropReason) {
    if explaining()
        && let Some(trace) = TRACE.get_ptr_mut(0)
    {
        // SAFETY: the only element of the map, which only this run writes.
        unsafe { (*trace).reason = reason as u32 + 1 };
    }
}
