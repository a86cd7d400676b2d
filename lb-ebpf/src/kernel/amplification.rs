//! Answers that nobody asked for, of services that are abused to amplify.

use aya_ebpf::bindings::xdp_md;

use super::{
    Verdict, again, count,
    maps::{AMPLIFIED, POLICIES, explaining},
    pipeline::skip_options,
};
use crate::{
    abi::{Count, DropReason, FILTER_AMPLIFICATION, MAX_REPLIES, Policy, Step, Vip},
    amplification::{Mark, mark},
    context::frame,
    forget, hide,
    packet::{self, Ip},
};

/// In place of a backend in `FRAGMENTS`: the datagram was dropped. The lower bits are the preset.
const DROPPED: u16 = 0xff00;
const ENFORCED: u32 = 1 << 8;
const MONITORED: u32 = 1 << 9;
const UDP_BYTES: usize = 8;

/// What the fragments of a dropped datagram are remembered by.
#[derive(Clone, Copy)]
pub struct Dropped(pub u16);

impl Dropped {
    #[inline(always)]
    pub const fn is(backend: u16) -> bool {
        backend >= DROPPED
    }
}

/// Whether the VIP's policy names presets.
#[inline(always)]
pub const fn is_on(vip: &Vip) -> bool {
    vip.filter & FILTER_AMPLIFICATION != 0
}

/// Looks at UDP to such a VIP.
///
/// An answer that is dropped comes back as `Some`, so that the other fragments of its datagram can be dropped with it.
#[inline(always)]
pub fn check(
    context: *mut xdp_md,
    ip: &Ip,
    (vip, vip_index): (&Vip, u16),
    source_port: u16,
) -> Option<Dropped> {
    let what = u64::from(vip.policy) << 32 | u64::from(source_port) << 16 | ip.offset as u64 & 0xff;
    let found = sluice_amplification(context, what, ip.v6);
    if found == 0 {
        return None;
    }
    count::note(Step::Amplification);
    if found & MONITORED != 0 {
        count::monitored(vip_index, DropReason::Amplification, ip.length);
        return None;
    }
    Some(Dropped(DROPPED | (found & 63) as u16))
}

/// The verdict for a later fragment of a datagram that was dropped.
#[inline(always)]
pub fn drop_fragment(backend: u16, bytes: u32) -> Verdict {
    count::note(Step::AmplifiedFragment);
    count_preset(u32::from(backend) & 63, 0, bytes);
    Verdict::Drop(DropReason::Amplification)
}

/// The preset with `ENFORCED` or `MONITORED`, or zero.
///
/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_amplification(context: *mut xdp_md, what: u64, v6: bool) -> u32 {
    let (Some(mark), Some(policy)) = (
        mark((what >> 16) as u16),
        POLICIES.get((what >> 32) as u16 as u32),
    ) else {
        return 0;
    };
    // Not once for each preset.
    let preset = forget(mark.preset as usize, what as usize) & 63;
    let bit = 1u64 << preset;
    let enforce = policy.amplification_enforce & bit != 0;
    if !enforce && policy.amplification_monitor & bit == 0 {
        return 0;
    }
    let frame = frame(context);
    let offset = what as usize & 31;
    let ip = if v6 {
        packet::ipv6(&frame, offset)
    } else {
        packet::ipv4(&frame, offset)
    };
    let Some(ip) = ip else {
        return 0;
    };
    if !begins_like(context, &ip, &mark) || was_asked_for(policy, bit, ip.source) {
        return 0;
    }
    count_preset(preset as u32, u32::from(!enforce), ip.length);
    preset as u32 | if enforce { ENFORCED } else { MONITORED }
}

/// Whether the payload begins like an answer. What a short payload lacks is taken for zeros.
#[inline(always)]
fn begins_like(context: *mut xdp_md, ip: &Ip, mark: &Mark) -> bool {
    if mark.mask == 0 {
        return true;
    }
    let Ok(l4) = skip_options(context, ip) else {
        return false;
    };
    let (frame, payload) = (frame(context), l4.offset + UDP_BYTES);
    let room = (ip.offset + ip.length as usize).wrapping_sub(payload);
    let first = if room >= 8 {
        frame.read::<u64>(payload).map(u64::from_be)
    } else if room >= 4 {
        let half = frame.read::<u32>(payload);
        half.map(|half| u64::from(u32::from_be(half)) << 32)
    } else {
        None
    };
    first.is_some_and(|first| mark.is_of(first))
}

#[inline(always)]
fn was_asked_for(policy: &Policy, bit: u64, source: [u64; 2]) -> bool {
    let replies = policy.replies.as_ptr();
    for at in 0..MAX_REPLIES {
        let at = hide(at) & (MAX_REPLIES - 1);
        // SAFETY: `at` is below the length of the list.
        let replies = again(unsafe { &*replies.add(at) });
        if replies.presets & bit != 0 && replies.prefix.holds(source) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn count_preset(preset: u32, mode: u32, bytes: u32) {
    if explaining() {
        return;
    }
    if let Some(counted) = AMPLIFIED.get_ptr_mut((preset & 63) * 2 + mode) {
        // SAFETY: a value of a per-CPU map.
        let counted: &mut Count = unsafe { &mut *counted };
        counted.packets += 1;
        counted.bytes += u64::from(bytes);
    }
}
