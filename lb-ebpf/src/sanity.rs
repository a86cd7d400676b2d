//! Sanity: what is wrong with a packet whose headers can all be read. A bit for each [`Check`].
//!
//! Pure logic, a few comparisons of what the packet's parsing left in registers.

use crate::{
    abi::Check,
    packet::{
        Fragment, Ip, L4, MAPPED, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TCP_URG, Transport,
    },
};

/// Whether anything may be wrong with a packet, or it is a fragment: then it is worth to look closer.
///
/// One question after the other, and all lead to the same place: a mask made here would multiply the ways that the
/// kernel's verifier has to follow.
#[inline(always)]
#[must_use]
pub fn is_suspicious(ip: &Ip, l4: &L4, transport: &Transport) -> bool {
    if !matches!(l4.fragment, Fragment::Whole)
        || ip.source[1] == ip.destination[1] && ip.source[0] == ip.destination[0]
        || may_be_no_source(ip)
    {
        return true;
    }
    match *transport {
        Transport::Tcp {
            ports,
            flags,
            header_bytes,
        } => {
            VALID_FLAGS >> (flags & 0x3f) & 1 == 0
                || has_port_zero(ports)
                || flags & TCP_SYN != 0 && payload_bytes(ip, l4) > u32::from(header_bytes)
        }
        Transport::Udp { ports } => has_port_zero(ports),
        Transport::Icmp { .. } | Transport::NoPorts | Transport::Other => false,
    }
}

/// What is wrong with a packet, but for what [`of_fragment`] looks at.
#[inline(always)]
#[must_use]
pub fn of_packet(ip: &Ip, l4: &L4, transport: &Transport) -> u32 {
    let mut found = 0;
    if cannot_be_source(ip) {
        found |= Check::SourceInvalid.bit();
    }
    if ip.source[1] == ip.destination[1] && ip.source[0] == ip.destination[0] {
        found |= Check::Land.bit();
    }
    match *transport {
        Transport::Tcp {
            ports,
            flags,
            header_bytes,
        } => {
            if VALID_FLAGS >> (flags & 0x3f) & 1 == 0 {
                found |= Check::TcpFlags.bit();
            }
            if has_port_zero(ports) {
                found |= Check::PortZero.bit();
            }
            if flags & TCP_SYN != 0 && payload_bytes(ip, l4) > u32::from(header_bytes) {
                found |= Check::SynData.bit();
            }
        }
        Transport::Udp { ports } => {
            if has_port_zero(ports) {
                found |= Check::PortZero.bit();
            }
        }
        Transport::Icmp { .. } | Transport::NoPorts | Transport::Other => {}
    }
    found
}

/// What is wrong with a fragment; `field` is the half word of its header that tells its place, in host byte order.
///
/// RFC 1858 and 3128: a first fragment that does not hold the whole transport header hides it, and one at offset 8
/// overwrites TCP's flags. A datagram has no more than 65,535 bytes, and only its last fragment ends between units of 8.
#[inline(always)]
#[must_use]
pub fn of_fragment(ip: &Ip, l4: &L4, transport: &Transport, field: u16) -> u32 {
    let first = matches!(l4.fragment, Fragment::First(_));
    let (offset_bytes, more) = match (ip.v6, first) {
        // Headers may stand between its fragment header and what it carries: the half word is another.
        (true, true) => (0, true),
        (true, false) => (u32::from(field & 0xfff8), field & 1 != 0),
        (false, _) => (u32::from(field & 0x1fff) << 3, field & 0x2000 != 0),
    };
    let bytes = payload_bytes(ip, l4);
    let mut found = 0;
    match *transport {
        Transport::Tcp { header_bytes, .. } if first && bytes < u32::from(header_bytes) => {
            found |= Check::FragmentTiny.bit();
        }
        _ if !first && l4.protocol == TCP && offset_bytes == 8 => {
            found |= Check::FragmentOverlap.bit();
        }
        _ => {}
    }
    // What stands before the payload of IPv4 counts in the length of the whole.
    let before_bytes = if ip.v6 { 0 } else { ip.header_length };
    if more && bytes & 7 != 0 || bytes == 0 || before_bytes + offset_bytes + bytes > 0xffff {
        found |= Check::FragmentLength.bit();
    }
    found
}

/// Offset in the frame of the half word that [`of_fragment`] takes.
#[inline(always)]
#[must_use]
pub const fn fragment_field(ip: &Ip, l4: &L4) -> usize {
    // A later fragment's header is the last before what it carries.
    if ip.v6 { l4.offset - 6 } else { ip.offset + 6 }
}

/// The bit of [`crate::abi::Settings::vip_networks`] for an address: of its /24, or /48.
#[inline(always)]
#[must_use]
pub const fn network_bit(v6: bool, address: [u64; 2]) -> u32 {
    let network = if v6 {
        address[0] & 0xffff_ffff_ffff
    } else {
        address[1] >> 32 & 0xff_ffff
    };
    (network.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as u32
}

/// The bits for all addresses of a prefix.
#[must_use]
#[cfg(not(target_arch = "bpf"))]
pub const fn network_bits(v6: bool, prefix: [u64; 2], length: u8) -> u64 {
    if length < if v6 { 48 } else { 24 } {
        u64::MAX
    } else {
        1 << network_bit(v6, prefix)
    }
}

/// The checks that drop unless a policy says otherwise: what no stack sends, and no network makes of what one sends.
pub const ENFORCED_BY_DEFAULT: u32 = ((1 << Check::ALL.len()) - 1) & !Check::SynData.bit();

/// Bytes from the transport header on.
#[inline(always)]
fn payload_bytes(ip: &Ip, l4: &L4) -> u32 {
    (ip.offset as u32 + ip.length).wrapping_sub(l4.offset as u32)
}

/// Unspecified, loopback, multicast, broadcast (RFC 1122, 3.2.1.3); all of ::/64 (RFC 4291, 2.5), where IPv4-mapped addresses
/// are too, which belong on no wire.
#[inline(always)]
fn cannot_be_source(ip: &Ip) -> bool {
    if ip.v6 {
        return ip.source[0] == 0 || ip.source[0] & 0xff == 0xff;
    }
    debug_assert!(ip.source[0] == MAPPED[0]);
    let address = (ip.source[1] >> 32) as u32;
    let first = address & 0xff;
    first == 0 || first == 127 || first & 0xf0 == 0xe0 || address == u32::MAX
}

/// The same with fewer comparisons: true for some addresses more, that few packets come from (240.0.0.0/4).
#[inline(always)]
fn may_be_no_source(ip: &Ip) -> bool {
    if ip.v6 {
        return cannot_be_source(ip);
    }
    let first = (ip.source[1] >> 32) as u8;
    first.wrapping_sub(1) >= 0xdf || first == 127
}

#[inline(always)]
const fn has_port_zero(ports: u32) -> bool {
    ports & 0xffff == 0 || ports >> 16 == 0
}

/// Combinations of FIN, SYN, RST, PSH, ACK and URG that stacks send, a bit each: those of Linux' connection tracking.
const VALID_FLAGS: u64 = valid_flags();

const fn valid_flags() -> u64 {
    let valid = [
        TCP_SYN,
        TCP_SYN | TCP_URG,
        TCP_SYN | TCP_ACK,
        TCP_RST,
        TCP_RST | TCP_ACK,
        TCP_FIN | TCP_ACK,
        TCP_FIN | TCP_ACK | TCP_URG,
        TCP_ACK,
        TCP_ACK | TCP_URG,
    ];
    let mut bits = 0;
    let mut at = 0;
    while at < valid.len() {
        bits |= 1 << valid[at] | 1 << (valid[at] | crate::packet::TCP_PSH);
        at += 1;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{UDP, mapped};

    const WHOLE: L4 = L4 {
        offset: 34,
        protocol: TCP,
        fragment: Fragment::Whole,
    };

    fn ip(source: [u8; 4]) -> Ip {
        Ip {
            v6: false,
            offset: 14,
            source: mapped(u32::from_ne_bytes(source)),
            destination: mapped(u32::from_ne_bytes([192, 0, 2, 1])),
            length: 40,
            header_length: 20,
            protocol: TCP,
            class: 0,
            fragment_bits: 0,
            id: 0,
        }
    }

    fn ip6(source: &str) -> Ip {
        let source: std::net::Ipv6Addr = source.parse().unwrap();
        let [high, low] =
            [0, 8].map(|at| u64::from_ne_bytes(source.octets()[at..at + 8].try_into().unwrap()));
        Ip {
            v6: true,
            source: [high, low],
            destination: [0x20, 1],
            length: 60,
            header_length: 40,
            ..ip([0; 4])
        }
    }

    fn tcp(flags: u8) -> Transport {
        Transport::Tcp {
            ports: 80 << 16 | 7,
            flags,
            header_bytes: 20,
        }
    }

    /// What is wrong, by both ways to ask.
    fn looked(ip: &Ip, transport: &Transport) -> u32 {
        let found = of_packet(ip, &WHOLE, transport);
        assert!(found == 0 || is_suspicious(ip, &WHOLE, transport));
        found
    }

    fn good() -> Ip {
        ip([198, 51, 100, 7])
    }

    #[test]
    fn flags_are_those_that_stacks_send() {
        for flags in 0..=u8::MAX {
            let (syn, ack) = (flags & TCP_SYN != 0, flags & TCP_ACK != 0);
            let (fin, rst) = (flags & TCP_FIN != 0, flags & TCP_RST != 0);
            let urgent = flags & TCP_URG != 0;
            let one_kind = u8::from(syn) + u8::from(fin) + u8::from(rst) <= 1;
            let acknowledged = ack || syn || rst;
            let not_urgent = !urgent || !(rst || syn && ack);
            let expected = one_kind && acknowledged && not_urgent;
            let found = looked(&good(), &tcp(flags));
            assert_eq!(found == 0, expected, "{flags:#x}");
            assert_eq!(found & !Check::TcpFlags.bit(), 0);
        }
    }

    #[test]
    fn sources_that_nobody_can_have() {
        for (source, expected) in [
            ([0, 1, 2, 3], true),
            ([127, 0, 0, 1], true),
            ([224, 0, 0, 1], true),
            ([239, 255, 255, 255], true),
            ([255, 255, 255, 255], true),
            ([1, 0, 0, 0], false),
            ([126, 255, 255, 255], false),
            ([128, 0, 0, 1], false),
            ([223, 255, 255, 255], false),
            ([10, 0, 0, 1], false),
        ] {
            let found = looked(&ip(source), &tcp(TCP_ACK));
            assert_eq!(found == Check::SourceInvalid.bit(), expected, "{source:?}");
        }
        for (source, expected) in [
            ("::", true),
            ("::1", true),
            ("::ffff:192.0.2.1", true),
            ("ff02::1", true),
            ("2001:db8::1", false),
            ("64:ff9b::1", false),
            ("fe80::1", false),
        ] {
            let found = looked(&ip6(source), &tcp(TCP_ACK));
            assert_eq!(found == Check::SourceInvalid.bit(), expected, "{source}");
        }
    }

    #[test]
    fn land_port_zero_and_data_in_a_syn() {
        let land = looked(&ip([192, 0, 2, 1]), &tcp(TCP_SYN));
        assert_eq!(land, Check::Land.bit());
        for ports in [0, 80, 80 << 16] {
            let udp = looked(&good(), &Transport::Udp { ports });
            assert_eq!(udp, Check::PortZero.bit(), "{ports:#x}");
        }
        let with_data = Ip {
            length: 41,
            ..good()
        };
        let syn = looked(&with_data, &tcp(TCP_SYN));
        assert_eq!(syn, Check::SynData.bit());
        assert_eq!(looked(&with_data, &tcp(TCP_ACK)), 0);
        assert_eq!(syn & ENFORCED_BY_DEFAULT, 0, "TCP Fast Open is allowed");
    }

    /// A fragment of `bytes` at `offset`, of IPv4 and IPv6 alike.
    fn fragment(protocol: u8, offset: u16, more: bool, bytes: u32) -> [u32; 2] {
        let fragment = if offset == 0 {
            Fragment::First(1)
        } else {
            Fragment::Later(1)
        };
        let transport = match fragment {
            Fragment::First(_) if protocol == TCP => tcp(TCP_ACK),
            Fragment::First(_) => Transport::Udp {
                ports: 53 << 16 | 7,
            },
            _ => Transport::NoPorts,
        };
        let at = |offset| L4 {
            offset,
            protocol,
            fragment,
        };
        let v4 = Ip {
            length: 20 + bytes,
            ..good()
        };
        let v6 = Ip {
            length: 48 + bytes,
            ..ip6("2001:db8::1")
        };
        let of = |ip: &Ip, offset, field| of_fragment(ip, &at(offset), &transport, field);
        [
            of(&v4, 34, (offset / 8) | (u16::from(more) << 13)),
            of(&v6, 62, offset | u16::from(more)),
        ]
    }

    #[test]
    fn fragments_that_hide_or_overwrite_a_header() {
        let tiny = Check::FragmentTiny.bit();
        assert_eq!(fragment(TCP, 0, true, 8), [tiny; 2]);
        assert_eq!(fragment(TCP, 0, true, 16), [tiny; 2]);
        assert_eq!(fragment(TCP, 0, true, 24), [0; 2]);
        assert_eq!(fragment(UDP, 0, true, 8), [0; 2]);
        let overlap = Check::FragmentOverlap.bit();
        assert_eq!(fragment(TCP, 8, true, 24), [overlap; 2]);
        assert_eq!(fragment(TCP, 16, true, 24), [0; 2]);
        assert_eq!(fragment(UDP, 8, true, 24), [0; 2]);
    }

    #[test]
    fn fragments_of_lengths_that_cannot_be() {
        let length = Check::FragmentLength.bit();
        assert_eq!(fragment(UDP, 1480, true, 1479), [length; 2]);
        assert_eq!(fragment(UDP, 1480, false, 1479), [0; 2]);
        assert_eq!(fragment(UDP, 1480, false, 0), [length; 2]);
        assert_eq!(fragment(UDP, 65_528, false, 8), [length; 2]);
        assert_eq!(fragment(UDP, 64_000, false, 1000), [0; 2]);
    }
}
