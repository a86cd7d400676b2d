//! TCP for a VIP that nobody serves, where the pool wants its clients to know: answered with a reset, in place.
//!
//! A reset is never longer than what it answers, and is answered by nobody: nothing is amplified, and nothing goes on.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_adjust_tail};

use super::{Verdict, count, echo::swap_macs};
use crate::{
    abi::{DropReason, Step, VIP_RESET, Vip},
    checksum,
    context::frame,
    packet::{Frame, Ip, Ipv4Header, Ipv6Header, L4, TCP},
    reset::{TcpHeader, reset},
};

const TTL: u8 = 64;
const TCP_BYTES: usize = size_of::<TcpHeader>();
/// Ethernet's shortest frame, which is not made shorter.
const LEAST_FRAME_BYTES: usize = 60;

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
    let Some((header, reset)) = made::<Ipv4Header>(context, ip_offset, l4_offset, segment_bytes)
    else {
        return false;
    };
    let frame = frame(context);
    let length_be = ((size_of::<Ipv4Header>() + TCP_BYTES) as u16).to_be();
    let addresses = u64::from(header.source) + u64::from(header.destination);
    let ttl_and_protocol = u16::from_le_bytes([TTL, TCP]);
    let sum = u64::from(0x45u16) + u64::from(length_be) + u64::from(ttl_and_protocol) + addresses;
    let ip = Ipv4Header {
        version_and_length: 0x45,
        tos: 0,
        total_length_be: length_be,
        id: 0,
        fragment_be: 0,
        ttl: TTL,
        protocol: TCP,
        checksum: checksum::finish(sum),
        source: header.destination,
        destination: header.source,
    };
    write(&frame, ip_offset, ip, reset, addresses).is_some()
}

#[inline(never)]
fn answer_v6(context: *mut xdp_md, offsets: u32, segment_bytes: u32) -> bool {
    let (ip_offset, l4_offset) = apart(offsets);
    let Some((header, reset)) = made::<Ipv6Header>(context, ip_offset, l4_offset, segment_bytes)
    else {
        return false;
    };
    let frame = frame(context);
    let [s0, s1, s2, s3] = header.source.map(u64::from);
    let [d0, d1, d2, d3] = header.destination.map(u64::from);
    let addresses = s0 + s1 + s2 + s3 + d0 + d1 + d2 + d3;
    let ip = Ipv6Header {
        version_class_flow_be: (6u32 << 28).to_be(),
        payload_length_be: (TCP_BYTES as u16).to_be(),
        next_header: TCP,
        hop_limit: TTL,
        source: header.destination,
        destination: header.source,
    };
    write(&frame, ip_offset, ip, reset, addresses).is_some()
}

#[inline(always)]
fn apart(offsets: u32) -> (usize, usize) {
    ((offsets >> 16) as usize & 31, offsets as usize & 0xffff)
}

/// The IP header that was there and the reset, after the frame was cut to what the answer needs.
#[inline(always)]
fn made<H: Copy>(
    context: *mut xdp_md,
    ip_offset: usize,
    l4_offset: usize,
    segment_bytes: u32,
) -> Option<(H, TcpHeader)> {
    let frame = frame(context);
    let header = frame.read::<H>(ip_offset)?;
    let segment = frame.read::<TcpHeader>(l4_offset)?;
    let reset = reset(&segment, segment_bytes)?;
    let needed = (ip_offset + size_of::<H>() + TCP_BYTES).max(LEAST_FRAME_BYTES);
    let length = frame.len() as usize;
    if length > needed {
        // SAFETY: the context is the program's own; pointers into the frame are taken anew after this.
        let cut = unsafe { bpf_xdp_adjust_tail(context, needed as i32 - length as i32) };
        if cut != 0 {
            return None;
        }
    }
    Some((header, reset))
}

/// Writes the answer over the packet. `addresses` is the sum of both.
#[inline(always)]
fn write<H>(
    frame: &Frame,
    ip_offset: usize,
    header: H,
    reset: TcpHeader,
    addresses: u64,
) -> Option<()> {
    let pseudo =
        addresses + u64::from((TCP_BYTES as u16).to_be()) + u64::from(u16::from(TCP).to_be());
    let reset = TcpHeader {
        checksum: checksum::finish(pseudo + reset.sum()),
        ..reset
    };
    let ip = frame.pointer_at::<H>(ip_offset)?;
    let tcp = frame.pointer_at::<TcpHeader>(ip_offset + size_of::<H>())?;
    // SAFETY: the pointer was checked against the frame's end.
    unsafe { ip.write(header) };
    // SAFETY: as above.
    unsafe { tcp.write(reset) };
    swap_macs(frame)
}
