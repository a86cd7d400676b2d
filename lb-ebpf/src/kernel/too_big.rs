//! Packets that do not fit the path to the backend: their sender is told (RFC 1191, RFC 8201), so that it sends smaller ones.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
};

use super::Verdict;
use crate::{
    abi::DropReason,
    checksum,
    context::frame,
    hide,
    packet::{ETHERNET_BYTES, Frame, ICMP, ICMPV6, Ip, Ipv4Header, Ipv6Header, VLAN_BYTES, load},
};

/// Bytes of the packet that are quoted: the whole error stays within 576 bytes (RFC 1812, 4.3.2.3), or IPv6's minimum MTU of 1,280.
const QUOTE_V4: usize = 528;
const QUOTE_V6: usize = 1232;
/// No sender goes below these (RFC 791, RFC 8200): a path that is smaller is an error of the config.
const LEAST_MTU_V4: u32 = 68;
const LEAST_MTU_V6: u32 = 1280;
const TTL: u8 = 64;

/// ICMP's header as these errors have it: the MTU is in the last two (IPv4) or four (IPv6) bytes.
#[repr(C)]
struct IcmpError {
    kind_and_code: u16,
    checksum: u16,
    mtu_be: u32,
}

/// The answer to a packet that is longer than `mtu` bytes, or the reason why there is none.
///
/// IPv4 without DF is told too: we do not fragment, and its sender can.
#[inline(always)]
pub fn answer(context: *mut xdp_md, ip: &Ip, mtu: u32) -> Verdict {
    let least = if ip.v6 { LEAST_MTU_V6 } else { LEAST_MTU_V4 };
    if mtu < least || mtu > 0xffff {
        return Verdict::Drop(DropReason::TooBig);
    }
    let made = if ip.v6 {
        sluice_too_big_v6(context, ip.offset as u32, mtu)
    } else {
        sluice_too_big_v4(context, ip.offset as u32, mtu)
    };
    if !made {
        return Verdict::Drop(DropReason::TooBig);
    }
    Verdict::Reply
}

/// A global function, like the next: the verifier follows its loop once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_too_big_v4(context: *mut xdp_md, offset: u32, mtu: u32) -> bool {
    let ttl_and_protocol = u16::from_le_bytes([TTL, ICMP]);
    write::<Ipv4Header, QUOTE_V4>(context, offset as usize & 31, |frame, offset, sum| {
        let quoted = offset + size_of::<Ipv4Header>() + size_of::<IcmpError>();
        let original = frame.read::<Ipv4Header>(quoted)?;
        let length_be =
            ((size_of::<Ipv4Header>() + size_of::<IcmpError>() + QUOTE_V4) as u16).to_be();
        let at = frame.pointer_at::<Ipv4Header>(offset)?;
        let sum_of_header = u64::from(0x45u16)
            + u64::from(length_be)
            + u64::from(ttl_and_protocol)
            + u64::from(original.source)
            + u64::from(original.destination);
        // SAFETY: the pointer was checked against the frame's end.
        unsafe {
            at.write(Ipv4Header {
                version_and_length: 0x45,
                tos: 0,
                total_length_be: length_be,
                id: 0,
                fragment_be: 0,
                ttl: TTL,
                protocol: ICMP,
                checksum: checksum::finish(sum_of_header),
                source: original.destination,
                destination: original.source,
            });
        }
        let mtu_be = (mtu & 0xffff).to_be();
        let icmp = frame.pointer_at::<IcmpError>(offset + size_of::<Ipv4Header>())?;
        let kind_and_code = u16::from_le_bytes([3, 4]);
        let checksum = checksum::finish(sum + u64::from(kind_and_code) + u64::from(mtu_be));
        // SAFETY: as above.
        unsafe {
            icmp.write(IcmpError {
                kind_and_code,
                checksum,
                mtu_be,
            })
        };
        Some(())
    })
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_too_big_v6(context: *mut xdp_md, offset: u32, mtu: u32) -> bool {
    write::<Ipv6Header, QUOTE_V6>(context, offset as usize & 31, |frame, offset, sum| {
        let quoted = offset + size_of::<Ipv6Header>() + size_of::<IcmpError>();
        let original = frame.read::<Ipv6Header>(quoted)?;
        let length_be = ((size_of::<IcmpError>() + QUOTE_V6) as u16).to_be();
        let at = frame.pointer_at::<Ipv6Header>(offset)?;
        // SAFETY: the pointer was checked against the frame's end.
        unsafe {
            at.write(Ipv6Header {
                version_class_flow_be: (6u32 << 28).to_be(),
                payload_length_be: length_be,
                next_header: ICMPV6,
                hop_limit: TTL,
                source: original.destination,
                destination: original.source,
            });
        }
        let mtu_be = mtu.to_be();
        let icmp = frame.pointer_at::<IcmpError>(offset + size_of::<Ipv6Header>())?;
        let kind_and_code = u16::from_le_bytes([2, 0]);
        let [s0, s1, s2, s3] = original.source.map(u64::from);
        let [d0, d1, d2, d3] = original.destination.map(u64::from);
        // The pseudo header (RFC 8200, 8.1).
        let pseudo = s0
            + s1
            + s2
            + s3
            + d0
            + d1
            + d2
            + d3
            + u64::from(length_be)
            + u64::from(u16::from(ICMPV6).to_be());
        let checksum =
            checksum::finish(sum + pseudo + u64::from(kind_and_code) + u64::from(mtu_be));
        // SAFETY: as above.
        unsafe {
            icmp.write(IcmpError {
                kind_and_code,
                checksum,
                mtu_be,
            })
        };
        Some(())
    })
}

/// Puts room for an IP header `H` and ICMP's before the packet, moves Ethernet there, cuts the quote, sums it up, and
/// lets `headers` write the rest.
#[inline(always)]
fn write<H, const QUOTE: usize>(
    context: *mut xdp_md,
    offset: usize,
    headers: impl Fn(&Frame, usize, u64) -> Option<()>,
) -> bool {
    let room = size_of::<H>() + size_of::<IcmpError>();
    let length = frame(context).len();
    // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
    if unsafe { bpf_xdp_adjust_tail(context, (offset + QUOTE) as i32 - length as i32) } != 0 {
        return false;
    }
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_head(context, -(room as i32)) } != 0 {
        return false;
    }
    let frame = frame(context);
    let moved = match offset {
        ETHERNET_BYTES => move_ethernet::<14>(&frame, room),
        18 => move_ethernet::<18>(&frame, room),
        _ => move_ethernet::<{ ETHERNET_BYTES + 2 * VLAN_BYTES }>(&frame, room),
    };
    moved.is_some()
        && sum_words::<QUOTE>(&frame, offset + room)
            .is_some_and(|sum| headers(&frame, offset, sum).is_some())
}

/// Moves the Ethernet header with its tags to the front, with its addresses swapped.
#[inline(always)]
fn move_ethernet<const BYTES: usize>(frame: &Frame, room: usize) -> Option<()> {
    let from = frame.pointer::<[u16; 11]>(room)?;
    // SAFETY: the pointer was checked against the frame's end; a frame that is too big is longer than 22 bytes.
    let [a, b, c, d, e, f, t0, t1, t2, t3, t4] = unsafe { load(from) };
    let macs = frame.pointer::<[u16; 7]>(0)?;
    // SAFETY: as above.
    unsafe { macs.write([d, e, f, a, b, c, t0]) };
    if BYTES > 14 {
        let tag = frame.pointer::<[u16; 2]>(14)?;
        // SAFETY: as above.
        unsafe { tag.write([t1, t2]) };
    }
    if BYTES > 18 {
        let tag = frame.pointer::<[u16; 2]>(18)?;
        // SAFETY: as above.
        unsafe { tag.write([t3, t4]) };
    }
    Some(())
}

/// The sum of `BYTES` bytes from `offset` on.
#[inline(always)]
fn sum_words<const BYTES: usize>(frame: &Frame, offset: usize) -> Option<u64> {
    const { assert!(BYTES % 8 == 0) };
    let words = frame.pointer_at::<[u64; 0]>(offset)? as usize;
    let end = frame.pointer_at::<[u8; BYTES]>(offset)? as usize;
    let mut sum = 0;
    if end != words {
        return None;
    }
    for at in 0..BYTES / 8 {
        // SAFETY: the frame holds `BYTES` bytes from `offset` on, as was just checked.
        sum += checksum::sum64(unsafe { load((hide(end) as *const u64).add(at)) });
    }
    Some(sum)
}
