//! Samples of packets, for `sluice capture` and for the daemon: taken where a packet ends, with what became of it.

use core::hint::cold_path;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::RingBuf,
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_load_bytes},
};

use super::{
    again, jiffies,
    maps::{SAMPLE_STATS, SAMPLES, SAMPLING, WATCH_STATS, WATCHED, WATCHING, explaining, settings},
};
use crate::{
    abi::{ANY_VIP, NO_BACKEND, SAMPLE_BYTES, Sample, SampleStats, Sampling, Settings},
    context::frame,
    decap::Tunnel,
    gcra, hide,
    packet::{self, Frame, Ip},
};

/// How a packet ended.
pub struct End {
    pub vip: u16,
    pub backend: u16,
    /// What the program returns.
    pub action: u32,
    /// A drop reason plus one, or zero.
    pub reason: u32,
}

impl End {
    /// Of a packet that no backend got.
    #[inline(always)]
    #[must_use]
    pub fn without_backend(vip: u16, action: u32, reason: u32) -> Self {
        Self {
            vip,
            backend: NO_BACKEND,
            action,
            reason,
        }
    }

    /// All of it in one number.
    #[inline(always)]
    fn words(&self) -> u64 {
        u64::from(self.vip)
            | u64::from(self.backend) << 16
            | u64::from(self.action) << 32
            | u64::from(self.reason) << 40
    }
}

/// Samples a packet if anybody wants samples. If nobody does, this is a load and a branch.
#[inline(always)]
pub fn sample(context: *mut xdp_md, settings: &Settings, end: &End) {
    if explaining() || again(settings).sampling_until == 0 {
        return;
    }
    cold_path();
    sluice_sample(context, end.words());
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_sample(context: *mut xdp_md, what: u64) -> u32 {
    let (Some(settings), Some(sampling), Some(stats)) = (
        settings(),
        SAMPLING.get_ptr_mut(0),
        SAMPLE_STATS.get_ptr_mut(0),
    ) else {
        return 0;
    };
    // SAFETY: a map value; only `rate_tat` is written by packets, as a word.
    let sampling = unsafe { &mut *sampling };
    // SAFETY: a value of a per-CPU map.
    let stats = unsafe { &mut *stats };
    let now = jiffies();
    if settings.sampling_until.wrapping_sub(now) as i64 <= 0 || !wanted(sampling, what) {
        return 0;
    }
    let frame = frame(context);
    if sampling.prefix.mask[0] | sampling.prefix.mask[1] != 0
        && !innermost(&frame, what).is_some_and(|ip| {
            sampling.prefix.holds(ip.source) || sampling.prefix.holds(ip.destination)
        })
    {
        return 0;
    }
    stats.matched += 1;
    if stats.matched.checked_rem(u64::from(sampling.every)) != Some(0) {
        return 0;
    }
    let Some(tat) = gcra::admit(sampling.rate_tat, gcra::time(now), &sampling.rate, 1) else {
        stats.capped += 1;
        return 0;
    };
    sampling.rate_tat = tat;
    take(&SAMPLES, context, &frame, what, stats);
    0
}

/// Samples one of many packets for the daemon. `nth` counts the packets that ended like this one, from 1.
///
/// Numbers that follow each other, times the golden ratio, are spread evenly: so no period of a flood's packets makes
/// one kind of them be taken more often than others.
#[inline(always)]
pub fn watch(context: *mut xdp_md, settings: &Settings, end: &End, nth: u64) {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    if explaining() || nth.wrapping_mul(GOLDEN) >= again(settings).watching {
        return;
    }
    cold_path();
    sluice_watch(context, end.words());
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_watch(context: *mut xdp_md, what: u64) -> u32 {
    let (Some(watching), Some(stats)) = (WATCHING.get_ptr_mut(0), WATCH_STATS.get_ptr_mut(0))
    else {
        return 0;
    };
    // SAFETY: a map value; only `rate_tat` is written by packets, as a word.
    let watching = unsafe { &mut *watching };
    // SAFETY: a value of a per-CPU map.
    let stats = unsafe { &mut *stats };
    stats.matched += 1;
    let now = gcra::time(jiffies());
    let Some(tat) = gcra::admit(watching.rate_tat, now, &watching.rate, 1) else {
        stats.capped += 1;
        return 0;
    };
    watching.rate_tat = tat;
    take(&WATCHED, context, &frame(context), what, stats);
    0
}

#[inline(always)]
fn wanted(sampling: &Sampling, what: u64) -> bool {
    let action = (what >> 32) as u32 & 31;
    let reason = (what >> 40) as u32;
    // The reason has one more than its bit.
    let bit = reason.wrapping_sub(1) & 63;
    (sampling.vip == ANY_VIP || sampling.vip == what as u16)
        && sampling.actions >> action & 1 != 0
        && (reason == 0 || sampling.reasons >> bit & 1 != 0)
}

/// The header by which a client knows the packet: what was sent to a backend may be in a tunnel.
#[inline(always)]
fn innermost(frame: &Frame, what: u64) -> Option<Ip> {
    let action = (what >> 32) as u32 & 31;
    if (action == xdp_action::XDP_TX || action == xdp_action::XDP_REDIRECT)
        && let Some(tunnel) = Tunnel::find(frame)
    {
        return tunnel.inner_ip(frame);
    }
    let (ethertype, offset) = packet::ethernet(frame)?;
    packet::ip(frame, ethertype, offset)
}

#[inline(always)]
fn take<const BYTES: usize>(
    ring: &RingBuf<Sample, BYTES>,
    context: *mut xdp_md,
    frame: &Frame,
    what: u64,
    stats: &mut SampleStats,
) {
    /// `BPF_RB_NO_WAKEUP`: the reader looks by itself. Waking it would cost more than the sample.
    const NO_WAKEUP: u64 = 1;
    let Some(mut entry) = ring.reserve(0) else {
        stats.lost += 1;
        return;
    };
    let sample: *mut Sample = entry.as_mut_ptr();
    let frame_bytes = frame.len();
    // From 1 to `SAMPLE_BYTES`, in a way that the verifier can follow.
    let most = if frame_bytes < SAMPLE_BYTES {
        frame_bytes
    } else {
        SAMPLE_BYTES
    };
    let bytes = (hide(most.wrapping_sub(1)) & (SAMPLE_BYTES - 1)) + 1;
    // SAFETY: the entry is ours until it is submitted.
    let to = unsafe { &raw mut (*sample).frame };
    // SAFETY: the kernel writes no more than `bytes`, which the entry has.
    let failed = unsafe { bpf_xdp_load_bytes(context, 0, to.cast(), bytes as u32) } != 0;
    // SAFETY: takes nothing.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (*context).ingress_ifindex };
    // SAFETY: the entry is ours until it is submitted.
    let sample = unsafe { &mut *sample };
    sample.time_ns = time_ns;
    sample.frame_bytes = frame_bytes as u32;
    sample.sampled_bytes = if failed { 0 } else { bytes as u32 };
    sample.ifindex = ifindex;
    sample.vip = what as u16;
    sample.backend = (what >> 16) as u16;
    sample.action = (what >> 32) as u8;
    sample.reason = (what >> 40) as u8;
    entry.submit(NO_WAKEUP);
    stats.taken += 1;
}
