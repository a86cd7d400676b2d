//! Echo requests to a VIP: answered here, so that a VIP can be pinged and no backend is bothered.

use aya_ebpf::bindings::xdp_md;

use super::{Verdict, forward::frame};
use crate::{
    abi::DropReason,
    checksum,
    packet::{Frame, Ip, Ipv4Header, Ipv6Header, L4, load},
};

const TTL: u8 = 64;

/// Type, code and checksum.
#[repr(C)]
struct IcmpHeader {
    kind_and_code: u16,
    checksum: u16,
}

/// Turns the request into its reply, in place.
#[inline(never)]
pub fn answer(context: *mut xdp_md, v6: bool, ip_offset: usize, l4_offset: usize) -> bool {
    let frame = frame(context);
    turn(&frame, v6, ip_offset, l4_offset).is_some()
}

/// The verdict for an echo request.
#[inline(always)]
pub fn reply(context: *mut xdp_md, ip: &Ip, l4: &L4) -> Verdict {
    if answer(context, ip.v6, ip.offset, l4.offset) {
        Verdict::Reply
    } else {
        Verdict::Drop(DropReason::Truncated)
    }
}

#[inline(always)]
fn turn(frame: &Frame, v6: bool, ip_offset: usize, l4_offset: usize) -> Option<()> {
    let icmp = frame.pointer_at::<IcmpHeader>(l4_offset)?;
    let reply = if v6 { 129 } else { 0 };
    // SAFETY: the pointer was checked against the frame's end.
    unsafe {
        let old = (*icmp).kind_and_code;
        let new = old & 0xff00 | reply;
        (*icmp).kind_and_code = new;
        (*icmp).checksum = checksum::replace((*icmp).checksum, old, new);
    }
    if v6 {
        let header = frame.pointer_at::<Ipv6Header>(ip_offset)?;
        // SAFETY: as above. The sum over both addresses stays.
        unsafe {
            let source = (*header).source;
            (*header).source = (*header).destination;
            (*header).destination = source;
            (*header).hop_limit = TTL;
        }
    } else {
        let header = frame.pointer_at::<Ipv4Header>(ip_offset)?;
        // SAFETY: as above.
        unsafe {
            let source = (*header).source;
            (*header).source = (*header).destination;
            (*header).destination = source;
            let old = u16::from_le_bytes([(*header).ttl, (*header).protocol]);
            (*header).ttl = TTL;
            let new = u16::from_le_bytes([TTL, (*header).protocol]);
            (*header).checksum = checksum::replace((*header).checksum, old, new);
        }
    }
    swap_macs(frame)
}

/// Exchanges the MAC addresses.
#[inline(always)]
pub fn swap_macs(frame: &Frame) -> Option<()> {
    let macs = frame.pointer::<[u16; 6]>(0)?;
    // SAFETY: the pointer was checked against the frame's end.
    let [a, b, c, d, e, f] = unsafe { load(macs) };
    // SAFETY: as above.
    unsafe { macs.write([d, e, f, a, b, c]) };
    Some(())
}
