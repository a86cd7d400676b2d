//! Sending a packet to its backend: new MAC addresses, and the outer headers of a tunnel.

use core::hint::cold_path;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head},
};

use super::{Verdict, count, maps::explaining, too_big};
use crate::{
    abi::{BACKEND_RESOLVED, Backend, DropReason, Forward, Settings, Step, Vip},
    context::frame,
    encap::{Carrier, OuterV4, UdpHeader, gue, outer_v4, outer_v6, spread_v4},
    packet::{ETHERNET_BYTES, Frame, IPV4_BE, IPV6_BE, Ip, Ipv6Header, VLAN_BE, VLAN_BYTES},
};

/// A packet that has a backend.
pub struct Outgoing<'a> {
    pub context: *mut xdp_md,
    pub ip: &'a Ip,
    pub settings: &'a Settings,
    pub vip: &'a Vip,
    pub backend: &'a Backend,
    /// The flow's hash: it spreads the outer source.
    pub hash: u64,
    /// Whether an ICMP error may be sent about it: never about an ICMP error or a later fragment (RFC 1122, 3.2.2;
    /// RFC 4443, 2.4).
    pub answerable: bool,
}

/// Ethernet's header, as it is written.
#[repr(C)]
struct Ethernet {
    macs: [u32; 3],
    ethertype_be: u16,
}

/// Forwards a packet as its backend wants it, and tells what the program returns.
///
/// Each way is compiled for itself.
#[inline(always)]
pub fn forward(outgoing: &Outgoing<'_>) -> Result<u32, Verdict> {
    const L2: u8 = Forward::L2 as u8;
    const IPIP: u8 = Forward::Ipip as u8;
    const LOCAL: u8 = Forward::Local as u8;
    let backend = outgoing.backend;
    if backend.forward == LOCAL {
        cold_path();
        count::note(Step::Local);
        return Ok(xdp_action::XDP_PASS);
    }
    if backend.flags & BACKEND_RESOLVED == 0 {
        cold_path();
        return Err(Verdict::Drop(DropReason::BackendUnresolved));
    }
    match (backend.forward, backend.family) {
        (L2, _) => {
            count::note(Step::L2);
            send(outgoing, None)
        }
        (IPIP, family) => {
            count::note(Step::Ipip);
            send_in_tunnel(outgoing, Carrier::Ip, family)
        }
        (_, family) => {
            count::note(Step::Gue);
            send_in_tunnel(outgoing, Carrier::Gue, family)
        }
    }
}

#[inline(always)]
fn send_in_tunnel(outgoing: &Outgoing<'_>, carrier: Carrier, family: u8) -> Result<u32, Verdict> {
    if family == 4 {
        send(outgoing, Some((carrier, Family::V4)))
    } else {
        send(outgoing, Some((carrier, Family::V6)))
    }
}

/// Family of an outer header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

type Tunnel = Option<(Carrier, Family)>;

/// Bytes before the inner packet, behind Ethernet.
#[inline(always)]
const fn overhead(tunnel: Tunnel) -> usize {
    match tunnel {
        None => 0,
        Some((carrier, Family::V4)) => size_of::<OuterV4>() + carrier.bytes() as usize,
        Some((carrier, Family::V6)) => size_of::<Ipv6Header>() + carrier.bytes() as usize,
    }
}

#[inline(always)]
fn send(outgoing: &Outgoing<'_>, tunnel: Tunnel) -> Result<u32, Verdict> {
    let backend = outgoing.backend;
    let mtu = u32::from(if outgoing.vip.mtu_bytes < backend.mtu_bytes {
        outgoing.vip.mtu_bytes
    } else {
        backend.mtu_bytes
    });
    let overhead = overhead(tunnel) as u32;
    if outgoing.ip.length + overhead > mtu {
        cold_path();
        count::note(Step::TooBig);
        if !outgoing.answerable {
            return Err(Verdict::Drop(DropReason::TooBig));
        }
        return Err(too_big::answer(
            outgoing.context,
            outgoing.ip,
            mtu - overhead,
        ));
    }
    let written = if backend.vlan == 0 {
        write::<0>(outgoing, tunnel)
    } else {
        cold_path();
        write::<VLAN_BYTES>(outgoing, tunnel)
    };
    if written.is_none() {
        cold_path();
        return Err(Verdict::Drop(DropReason::Headroom));
    }
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*outgoing.context).ingress_ifindex };
    if backend.ifindex == ingress || explaining() && ingress == 0 {
        return Ok(xdp_action::XDP_TX);
    }
    // SAFETY: takes numbers only; an interface that is gone drops the packet.
    Ok(unsafe { bpf_redirect(backend.ifindex, 0) } as u32)
}

/// Makes room for the outer headers and writes all that is new. `TAG` is the bytes of the egress VLAN tag.
#[inline(always)]
fn write<const TAG: usize>(outgoing: &Outgoing<'_>, tunnel: Tunnel) -> Option<()> {
    let (backend, inner) = (outgoing.backend, outgoing.ip);
    let l3 = ETHERNET_BYTES + TAG;
    let delta = inner.offset as i32 - (l3 + overhead(tunnel)) as i32;
    // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(outgoing.context, delta) } != 0 {
        cold_path();
        return None;
    }
    let frame = frame(outgoing.context);
    let ethertype_be = match tunnel {
        None if inner.v6 => IPV6_BE,
        None => IPV4_BE,
        Some((carrier, family)) => {
            let udp_at = match family {
                Family::V4 => write_outer_v4(outgoing, &frame, l3, carrier)?,
                Family::V6 => write_outer_v6(outgoing, &frame, l3, carrier)?,
            };
            if carrier == Carrier::Gue {
                let at = frame.pointer_at::<UdpHeader>(udp_at)?;
                // SAFETY: checked against the frame's end.
                unsafe { at.write(gue(inner, outgoing.hash)) };
            }
            if family == Family::V4 {
                IPV4_BE
            } else {
                IPV6_BE
            }
        }
    };
    let ethernet = frame.pointer::<Ethernet>(0)?;
    let macs = backend.macs.as_ptr().cast::<u32>();
    // SAFETY: `macs` are three words at the start of a map value; the frame was checked.
    unsafe {
        (*ethernet).macs = [macs.read(), macs.add(1).read(), macs.add(2).read()];
        (*ethernet).ethertype_be = if TAG == 0 { ethertype_be } else { VLAN_BE };
    }
    if TAG != 0 {
        let tag = frame.pointer::<[u16; 2]>(ETHERNET_BYTES)?;
        // SAFETY: checked against the frame's end.
        unsafe { tag.write([backend.vlan.to_be(), ethertype_be]) };
    }
    Some(())
}

/// Returns where it ends.
#[inline(always)]
fn write_outer_v4(
    outgoing: &Outgoing<'_>,
    frame: &Frame,
    l3: usize,
    carrier: Carrier,
) -> Option<usize> {
    let backend = outgoing.backend;
    let source = match carrier {
        Carrier::Gue => word(&backend.outer_source, 3),
        Carrier::Ip => spread_v4(
            outgoing.settings.tunnel_source_v4,
            outgoing.settings.tunnel_spread_v4,
            outgoing.hash,
        ),
    };
    let destination = word(&backend.outer_destination, 3);
    let at = frame.pointer::<OuterV4>(l3)?;
    // SAFETY: checked against the frame's end.
    unsafe { at.write(outer_v4(outgoing.ip, carrier, source, destination)) };
    Some(l3 + size_of::<OuterV4>())
}

/// Returns where it ends.
#[inline(always)]
fn write_outer_v6(
    outgoing: &Outgoing<'_>,
    frame: &Frame,
    l3: usize,
    carrier: Carrier,
) -> Option<usize> {
    let (backend, settings) = (outgoing.backend, outgoing.settings);
    let mut source = words(match carrier {
        Carrier::Gue => &backend.outer_source,
        Carrier::Ip => &settings.tunnel_source_v6,
    });
    if carrier == Carrier::Ip {
        source[3] |= ((outgoing.hash >> 33) as u32 & settings.tunnel_spread_v6).to_be();
    }
    let destination = words(&backend.outer_destination);
    let at = frame.pointer::<Ipv6Header>(l3)?;
    // SAFETY: checked against the frame's end.
    unsafe {
        at.write(outer_v6(
            outgoing.ip,
            carrier,
            source,
            destination,
            outgoing.hash,
        ))
    };
    Some(l3 + size_of::<Ipv6Header>())
}

#[inline(always)]
fn word(address: &[u8; 16], at: usize) -> u32 {
    // SAFETY: `at` is below 4, and addresses in map values are aligned to words.
    unsafe { address.as_ptr().cast::<u32>().add(at).read() }
}

#[inline(always)]
fn words(address: &[u8; 16]) -> [u32; 4] {
    [
        word(address, 0),
        word(address, 1),
        word(address, 2),
        word(address, 3),
    ]
}
