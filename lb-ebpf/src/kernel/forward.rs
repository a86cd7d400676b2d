//! Sending a packet to its backend: new MAC addresses, and the outer headers of a tunnel.

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head},
};

use super::{
    Verdict,
    count::{self, Exit},
    maps::explaining,
    too_big,
};
use crate::{
    abi::{BACKEND_RESOLVED, Backend, DropReason, Forward, Settings, Step, Vip},
    encap::{Carrier, UdpHeader, gue, outer_v4, outer_v6, spread_v4},
    packet::{
        ETHERNET_BYTES, Frame, IPV4_BE, IPV6_BE, Ip, Ipv4Header, Ipv6Header, VLAN_BE, VLAN_BYTES,
    },
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

/// Forwards a packet as its backend wants it; the second value is what the program returns.
#[inline(always)]
pub fn forward(outgoing: &Outgoing<'_>) -> Result<(Exit, u32), Verdict> {
    let backend = outgoing.backend;
    if backend.forward == Forward::Local as u8 {
        count::note(Step::Local);
        return Ok((Exit::Pass, xdp_action::XDP_PASS));
    }
    if backend.flags & BACKEND_RESOLVED == 0 {
        return Err(Verdict::Drop(DropReason::BackendUnresolved));
    }
    let overhead = match (backend.forward, backend.family) {
        (0, _) => 0,
        (1, 4) => size_of::<Ipv4Header>(),
        (1, _) => size_of::<Ipv6Header>(),
        (_, 4) => size_of::<Ipv4Header>() + size_of::<UdpHeader>(),
        (_, _) => size_of::<Ipv6Header>() + size_of::<UdpHeader>(),
    };
    let mtu = u32::from(if outgoing.vip.mtu_bytes < backend.mtu_bytes {
        outgoing.vip.mtu_bytes
    } else {
        backend.mtu_bytes
    });
    if outgoing.ip.length + overhead as u32 > mtu {
        count::note(Step::TooBig);
        if !outgoing.answerable {
            return Err(Verdict::Drop(DropReason::TooBig));
        }
        return Err(too_big::answer(
            outgoing.context,
            outgoing.ip,
            mtu - overhead as u32,
        ));
    }
    let written = if backend.vlan == 0 {
        write::<0>(outgoing, overhead)
    } else {
        write::<VLAN_BYTES>(outgoing, overhead)
    };
    if written.is_none() {
        return Err(Verdict::Drop(DropReason::Headroom));
    }
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*outgoing.context).ingress_ifindex };
    if backend.ifindex == ingress || explaining() && ingress == 0 {
        return Ok((Exit::Tx, xdp_action::XDP_TX));
    }
    // SAFETY: takes numbers only; an interface that is gone drops the packet.
    let action = unsafe { bpf_redirect(backend.ifindex, 0) };
    Ok((Exit::Redirect, action as u32))
}

/// Makes room for `overhead` bytes of outer headers and writes all that is new. `TAG` is the bytes of the egress VLAN tag.
#[inline(always)]
fn write<const TAG: usize>(outgoing: &Outgoing<'_>, overhead: usize) -> Option<()> {
    let backend = outgoing.backend;
    let l3 = ETHERNET_BYTES + TAG;
    let delta = outgoing.ip.offset as i32 - (l3 + overhead) as i32;
    // SAFETY: the context is the program's own; pointers into the frame are taken anew below.
    if delta != 0 && unsafe { bpf_xdp_adjust_head(outgoing.context, delta) } != 0 {
        return None;
    }
    let frame = frame(outgoing.context);
    let carrier = if backend.forward == Forward::Gue as u8 {
        Carrier::Gue
    } else {
        Carrier::Ip
    };
    let inner = outgoing.ip;
    let ethertype_be = if overhead == 0 {
        count::note(Step::L2);
        if inner.v6 { IPV6_BE } else { IPV4_BE }
    } else {
        count::note(if carrier == Carrier::Gue {
            Step::Gue
        } else {
            Step::Ipip
        });
        let udp_at = if backend.family == 4 {
            let source = if carrier == Carrier::Gue {
                word(&backend.outer_source, 3)
            } else {
                spread_v4(
                    outgoing.settings.tunnel_source_v4,
                    outgoing.settings.tunnel_spread_v4,
                    outgoing.hash,
                )
            };
            let header = outer_v4(inner, carrier, source, word(&backend.outer_destination, 3));
            let at = frame.pointer::<Ipv4Header>(l3)?;
            // SAFETY: checked against the frame's end.
            unsafe { at.write(header) };
            l3 + size_of::<Ipv4Header>()
        } else {
            let mut source = words(if carrier == Carrier::Gue {
                &backend.outer_source
            } else {
                &outgoing.settings.tunnel_source_v6
            });
            if carrier == Carrier::Ip {
                source[3] |=
                    ((outgoing.hash >> 33) as u32 & outgoing.settings.tunnel_spread_v6).to_be();
            }
            let header = outer_v6(
                inner,
                carrier,
                source,
                words(&backend.outer_destination),
                outgoing.hash,
            );
            let at = frame.pointer::<Ipv6Header>(l3)?;
            // SAFETY: checked against the frame's end.
            unsafe { at.write(header) };
            l3 + size_of::<Ipv6Header>()
        };
        if carrier == Carrier::Gue {
            let at = frame.pointer_at::<UdpHeader>(udp_at)?;
            // SAFETY: checked against the frame's end.
            unsafe { at.write(gue(inner, outgoing.hash)) };
        }
        if backend.family == 4 {
            IPV4_BE
        } else {
            IPV6_BE
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

/// The frame as it is now. Pointers into what it was before an `adjust` are dead.
#[inline(always)]
#[must_use]
pub fn frame(context: *mut xdp_md) -> Frame {
    // Volatile: or LLVM would read them in the caller and pass the halves that they are declared as.
    // SAFETY: the context is the program's own.
    let start = unsafe { (&raw const (*context).data).read_volatile() } as usize;
    // SAFETY: as above.
    let end = unsafe { (&raw const (*context).data_end).read_volatile() } as usize;
    // SAFETY: the kernel says where the frame lies.
    unsafe { Frame::new(start, end) }
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
