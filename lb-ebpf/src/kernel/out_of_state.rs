//! TCP out of state, neither a SYN nor of a known flow, has a budget for each VIP.
//!
//! A budget, and not none: routes shift, and bring flows that another load balancer knows. What follows a SYN that was let
//! in is not charged, so that a flood of ACKs costs new clients nothing: they sent one, the flood did not.

use super::{
    Verdict,
    cookie::Shown,
    count, element,
    flows::ticks,
    limits::disturb,
    maps::{BUDGETS, CHALLENGES, HANDSHAKES, POLICIES, VIPS, explaining, settings},
    pipeline::Packet,
};
use crate::{
    abi::{
        DropReason, FILTER_OUT_OF_STATE, HANDSHAKE_MEMORY_TICKS, HANDSHAKE_WORDS, Limiter,
        SLOTS_PER_WORD, Step, Vip,
    },
    flow::AGE_BITS,
    gcra, hide,
};

/// In a cell of `HANDSHAKES`, beside the ticks: that there was a SYN at all.
const SEEN: u16 = 1 << 15;
const TICKS: u16 = (1 << AGE_BITS) - 1;

/// Remembers a SYN that was let in.
#[inline(always)]
pub fn note_syn(vip: &Vip, flow: u64, jiffies: u64) {
    if vip.filter & FILTER_OUT_OF_STATE == 0 || explaining() {
        return;
    }
    let cell = cell(flow);
    if let Some(word) = HANDSHAKES.get_ptr_mut(cell / SLOTS_PER_WORD as u32) {
        let at = hide(cell as usize) & (SLOTS_PER_WORD - 1);
        // SAFETY: `at` is below the number of cells of a value.
        let cell = unsafe { word.cast::<u16>().add(at) };
        // SAFETY: a cell of the map's value.
        unsafe { cell.write_volatile(ticks(jiffies) | SEEN) };
    }
}

/// Charges a packet out of state to the VIP's budget.
///
/// One without a cookie may be of a flow that another load balancer had. Nothing tells it from a forged one, so it is charged
/// like any other; only that a VIP has a budget then in any case.
#[inline(always)]
pub fn check(packet: &Packet<'_>, flow: u64, shown: Shown) -> Result<(), Verdict> {
    let (vip, vip_index) = (packet.vip, packet.vip_index);
    if vip.filter & FILTER_OUT_OF_STATE == 0 {
        return Ok(());
    }
    let (reason, defended) = match shown {
        Shown::NoCookie => (DropReason::Cookie, DEFENDED),
        Shown::Cookie | Shown::Nothing => (DropReason::OutOfState, 0),
    };
    let what = u64::from(vip_index) | u64::from(vip.policy) << 16 | defended;
    match sluice_out_of_state(flow, what, packet.jiffies) {
        FITS => Ok(()),
        OVER => {
            count::note(Step::OverBudget);
            Err(Verdict::Drop(reason))
        }
        _ => {
            count::note(Step::OverBudget);
            count::monitored(vip_index, reason, packet.ip.length);
            Ok(())
        }
    }
}

/// Beside VIP and policy: its SYNs are answered with cookies.
const DEFENDED: u64 = 1 << 32;

const FITS: u32 = 0;
const OVER: u32 = 1;
const OVER_MONITORED: u32 = 2;

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_out_of_state(flow: u64, what: u64, jiffies: u64) -> u32 {
    let (vip, policy) = (what as u16, (what >> 16) as u16);
    let (Some(settings), Some(policy), Some(challenge), Some(budget)) = (
        settings(),
        POLICIES.get(u32::from(policy)),
        CHALLENGES.get_ptr(u32::from(vip)),
        BUDGETS.get_ptr_mut(u32::from(vip)),
    ) else {
        return FITS;
    };
    let Limiter { cost, allowance } = if policy.out_of_state.cost == 0 && what & DEFENDED != 0 {
        // SAFETY: a field of a map value.
        unsafe { (*challenge).again }
    } else {
        policy.out_of_state
    };
    if cost == 0 || follows_syn(flow, jiffies) {
        return FITS;
    }
    // Each CPU has its share, and may let one packet pass at least.
    let cost = cost.wrapping_mul(u64::from(settings.cpus));
    let limiter = Limiter {
        cost,
        allowance: if allowance < cost { cost } else { allowance },
    };
    let now = gcra::time(jiffies);
    // SAFETY: a word of a per-CPU map value.
    let tat = unsafe { budget.read_volatile() };
    if let Some(after) = gcra::admit(tat, now, &limiter, 1) {
        if !explaining() {
            // SAFETY: as above.
            unsafe { budget.write_volatile(after) };
        }
        return FITS;
    }
    if policy.out_of_state_monitor != 0 {
        return OVER_MONITORED;
    }
    // What could enter the flow table came in excess: nothing that comes now proves itself by coming again.
    if let Some(vip) = VIPS.get_ptr_mut(u32::from(vip)) {
        disturb(vip, jiffies);
    }
    OVER
}

#[inline(always)]
fn follows_syn(flow: u64, jiffies: u64) -> bool {
    let cell = cell(flow);
    let Some(word) = HANDSHAKES.get(cell / SLOTS_PER_WORD as u32) else {
        return false;
    };
    let seen = element(word, cell);
    let age = ticks(jiffies).wrapping_sub(seen) & TICKS;
    // The clock of another CPU may be a tick ahead.
    seen & SEEN != 0 && (age <= HANDSHAKE_MEMORY_TICKS || age == TICKS)
}

/// Other bits of the hash than those that name a bucket of the flow table.
#[inline(always)]
fn cell(flow: u64) -> u32 {
    (flow >> 40) as u32 & (HANDSHAKE_WORDS * SLOTS_PER_WORD as u32 - 1)
}
