//! TCP for a VIP that nobody serves, where the pool wants its clients to know: answered with a reset, in place.
//!
//! A reset is never longer than what it answers, and is answered by nobody: nothing is amplified, and nothing goes on.

use aya_ebpf::bindings::xdp_md;

use super::{
    Verdict,
    answer::{self, Answer, Options},
    count,
};
use crate::{
    abi::{DropReason, Step, VIP_RESET, Vip},
    context::frame,
    packet::{Ip, Ipv4Header, Ipv6Header, L4},
    reset::{TcpHeader, reset},
};

/// The verdict for whole TCP that has no backend.
#[inline(always)]
pub fn reply(context: *mut xdp_md, vip: &Vip, ip: &Ip, l4: &L4) -> Verdict {
    if vip.flags & VIP_RESET == 0 {
        return Verdict::Drop(DropReason::NoBackend);
    }
    let offsets = (ip.offset as u32) << 16 | l4.offset as u32;
    let segment_bytes = ip
        .length
        .wrapping_sub((l4.offset as u32).wrapping_sub(ip.offset as u32));
    let answered = if ip.v6 {
        answer_v6(context, offsets, segment_bytes)
    } else {
        answer_v4(context, offsets, segment_bytes)
    };
    if !answered {
        return Verdict::Drop(DropReason::NoBackend);
    }
    count::note(Step::Reset);
    Verdict::Reply
}

#[inline(never)]
fn answer_v4(context: *mut xdp_md, offsets: u32, segment_bytes: u32) -> bool {
    let (ip_offset, l4_offset) = apart(offsets);
    made(context, l4_offset, segment_bytes)
        .and_then(|answer| {
            answer::cut(
                context,
                ip_offset + size_of::<Ipv4Header>() + size_of::<TcpHeader>(),
            )?;
            answer::v4(&frame(context), ip_offset, &answer)
        })
        .is_some()
}

#[inline(never)]
fn answer_v6(context: *mut xdp_md, offsets: u32, segment_bytes: u32) -> bool {
    let (ip_offset, l4_offset) = apart(offsets);
    made(context, l4_offset, segment_bytes)
        .and_then(|answer| {
            answer::cut(
                context,
                ip_offset + size_of::<Ipv6Header>() + size_of::<TcpHeader>(),
            )?;
            answer::v6(&frame(context), ip_offset, &answer)
        })
        .is_some()
}

#[inline(always)]
fn apart(offsets: u32) -> (usize, usize) {
    ((offsets >> 16) as usize & 31, offsets as usize & 0xffff)
}

/// The reset.
#[inline(always)]
fn made(context: *mut xdp_md, l4_offset: usize, segment_bytes: u32) -> Option<Answer> {
    let segment = frame(context).read::<TcpHeader>(l4_offset)?;
    Some(Answer {
        header: reset(&segment, segment_bytes)?,
        options: Options::NONE,
        fragment_be: 0,
    })
}
