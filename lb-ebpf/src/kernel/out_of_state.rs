//! TCP out of state, neither a SYN nor of a known flow nor of a known datagram, has a budget for each VIP.
//!
//! A budget, and not none: routes shift, and bring flows that another load balancer knows. What follows a SYN that was let
//! in is not charged, so that a flood of ACKs costs new clients nothing: they sent one, the flood did not.

use super::{
    Verdict,
    cookie::Shown,
    count,
    flows::ticks,
    limits::disturb,
    maps::{BUDGETS, CHALLENGES, HANDSHAKES, POLICIES, VIPS, explaining, settings},
    pipeline::Packet,
};
use crate::{
    abi::{DropReason, FILTER_OUT_OF_STATE, Limiter, Step, Vip},
    gcra, handshake,
};

/// Remembers a SYN that was let in.
#[inline(always)]
pub fn note_syn(vip: &Vip, flow: u64, jiffies: u64) {
    if vip.filter & FILTER_OUT_OF_STATE != 0 && !explaining() {
        sluice_note_syn(flow, jiffies);
    }
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_note_syn(flow: u64, jiffies: u64) -> u32 {
    if let Some(word) = HANDSHAKES.get_ptr_mut(handshake::index(flow)) {
        // SAFETY: a map value.
        let old = unsafe { word.read_volatile() };
        let new = handshake::with(old, flow, ticks(jiffies));
        // SAFETY: as above. What another CPU wrote meanwhile is forgotten.
        unsafe { word.write_volatile(new) };
    }
    0
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
    HANDSHAKES
        .get(handshake::index(flow))
        .is_some_and(|&word| handshake::is_in(word, flow, ticks(jiffies)))
}
