//! What left, read by an independent decoder (etherparse) and compared with what should have left, to the byte.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{
    EtherType, Ethernet2Slice, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, SingleVlanSlice,
    SlicedPacket, TcpOptionElement, TcpSlice, UdpSlice,
};
use sluice_ebpf::abi::{Backend, Forward};

use crate::{
    packet::{ACK, ECE, FIN, Family, OUR_MAC, Packet, ROUTER_MAC, RST, SYN, l4_checksum},
    world::{ANSWER, SPREAD, TUNNEL_SOURCE_V4, TUNNEL_SOURCE_V6},
};

const GUE_PORT: u16 = 6080;
/// Outer headers and answers start with this.
const TTL: u8 = 64;

pub(crate) fn same(expected: &[u8], out: &[u8]) -> Result<()> {
    let first = expected.iter().zip(out).position(|(a, b)| a != b);
    ensure!(
        expected == out,
        "{} bytes instead of {}, first difference at {first:?}\n  out  {}\n  want {}",
        out.len(),
        expected.len(),
        hex(out),
        hex(expected),
    );
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(120)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A packet on its way to a backend.
pub(crate) fn sent(packet: &Packet, backend: &Backend, out: &[u8]) -> Result<()> {
    if backend.forward == Forward::Local as u8 {
        return same(&packet.frame(), out);
    }
    SlicedPacket::from_ethernet(out).context("the decoder refuses it")?;
    let (ethertype, l3) = ethernet(backend, out)?;
    let mut inner = packet.ip_bytes();
    inner.extend(vec![0; packet.padding]);
    if backend.forward == Forward::L2 as u8 {
        ensure!(ethertype == ethertype_of(packet.family()), "{ethertype:?}");
        return same(&inner, l3);
    }
    let outer = match backend.family {
        4 => outer_v4(packet, ethertype, l3)?,
        _ => outer_v6(packet, ethertype, l3)?,
    };
    let destination = IpAddr::from(backend.outer_destination).to_canonical();
    ensure!(
        outer.to == destination,
        "to {} instead of {destination}",
        outer.to
    );
    if backend.forward == Forward::Gue as u8 {
        ensure!(outer.from == IpAddr::from(backend.outer_source).to_canonical());
        ensure!(outer.protocol == IpNumber::UDP, "{:?}", outer.protocol);
        let udp = UdpSlice::from_slice(outer.payload)?;
        ensure!(udp.destination_port() == GUE_PORT);
        ensure!(
            udp.source_port() >= 0xc000,
            "source port {}",
            udp.source_port()
        );
        ensure!(usize::from(udp.length()) == 8 + packet.ip_bytes().len());
        ensure!(udp.checksum() == 0);
        ensure!(udp.payload().len() == packet.ip_bytes().len());
        return same(&inner, &outer.payload[8..]);
    }
    ensure!(is_spread(outer.from), "tunnel source {}", outer.from);
    let expected = match packet.family() {
        Family::V4 => IpNumber::IPV4,
        Family::V6 => IpNumber::IPV6,
    };
    ensure!(outer.protocol == expected, "{:?}", outer.protocol);
    same(&inner, outer.payload)
}

/// The outer source address of a tunnelled frame, or the source port where the address is fixed.
pub(crate) fn spread_of(out: &[u8]) -> Result<(IpAddr, u16)> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(out)?;
    let l3 = ethernet.payload_slice();
    if ethernet.ether_type() == EtherType::IPV4 {
        let header = Ipv4HeaderSlice::from_slice(l3)?;
        let port = u16::from_be_bytes([l3[20], l3[21]]);
        Ok((header.source_addr().into(), port))
    } else {
        let header = Ipv6HeaderSlice::from_slice(l3)?;
        let port = u16::from_be_bytes([l3[40], l3[41]]);
        Ok((header.source_addr().into(), port))
    }
}

/// Checks MAC addresses and the egress tag; the EtherType and what follows.
fn ethernet<'a>(backend: &Backend, out: &'a [u8]) -> Result<(EtherType, &'a [u8])> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(out)?;
    ensure!(
        ethernet.destination() == backend.macs[..6],
        "to {:x?}",
        ethernet.destination()
    );
    ensure!(
        ethernet.source() == backend.macs[6..],
        "from {:x?}",
        ethernet.source()
    );
    if backend.vlan == 0 {
        return Ok((ethernet.ether_type(), ethernet.payload_slice()));
    }
    ensure!(
        ethernet.ether_type() == EtherType::VLAN_TAGGED_FRAME,
        "no tag"
    );
    let tag = SingleVlanSlice::from_slice(ethernet.payload_slice())?;
    ensure!(tag.vlan_identifier().value() == backend.vlan);
    ensure!(tag.priority_code_point().value() == 0 && !tag.drop_eligible_indicator());
    Ok((tag.ether_type(), tag.payload_slice()))
}

fn ethertype_of(family: Family) -> EtherType {
    match family {
        Family::V4 => EtherType::IPV4,
        Family::V6 => EtherType::IPV6,
    }
}

/// What a tunnel's outer header says.
struct Outer<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: IpNumber,
    payload: &'a [u8],
}

fn outer_v4<'a>(packet: &Packet, ethertype: EtherType, l3: &'a [u8]) -> Result<Outer<'a>> {
    ensure!(ethertype == EtherType::IPV4, "{ethertype:?}");
    let header = Ipv4HeaderSlice::from_slice(l3)?;
    ensure!(header.options().is_empty());
    ensure!(
        usize::from(header.total_len()) + packet.padding == l3.len(),
        "total length"
    );
    ensure!(header.ttl() == TTL, "TTL {}", header.ttl());
    ensure!(l3[1] == packet.class, "type of service {}", l3[1]);
    ensure!(header.identification() == 0 && header.dont_fragment() && !header.more_fragments());
    ensure!(header.fragments_offset().value() == 0);
    let right = header.to_header().calc_header_checksum();
    ensure!(
        header.header_checksum() == right,
        "checksum of the outer header"
    );
    Ok(Outer {
        from: header.source_addr().into(),
        to: header.destination_addr().into(),
        protocol: header.protocol(),
        payload: &l3[20..],
    })
}

fn outer_v6<'a>(packet: &Packet, ethertype: EtherType, l3: &'a [u8]) -> Result<Outer<'a>> {
    ensure!(ethertype == EtherType::IPV6, "{ethertype:?}");
    let header = Ipv6HeaderSlice::from_slice(l3)?;
    let length = usize::from(header.payload_length());
    ensure!(
        40 + length + packet.padding == l3.len(),
        "payload length {length}"
    );
    ensure!(
        header.hop_limit() == TTL,
        "hop limit {}",
        header.hop_limit()
    );
    ensure!(
        header.traffic_class() == packet.class,
        "class {}",
        header.traffic_class()
    );
    Ok(Outer {
        from: header.source_addr().into(),
        to: header.destination_addr().into(),
        protocol: header.next_header(),
        payload: &l3[40..],
    })
}

/// Whether an address is one that tunnels may come from.
fn is_spread(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => u32::from(address) & !SPREAD == u32::from_be_bytes(TUNNEL_SOURCE_V4),
        IpAddr::V6(address) => {
            let prefix = u128::from(Ipv6Addr::from(TUNNEL_SOURCE_V6));
            u128::from(address) & !u128::from(SPREAD) == prefix
        }
    }
}

/// The answer to an echo request: the request, with addresses exchanged.
pub(crate) fn echo_reply(request: &Packet, out: &[u8]) -> Result<()> {
    let (id, data) = (&request.payload[4..8], &request.payload[8..]);
    let rest = id.try_into().expect("four bytes");
    let kind = if request.family() == Family::V4 {
        0
    } else {
        129
    };
    let reply = Packet {
        from: request.to,
        to: request.from,
        ttl: TTL,
        ..request.clone()
    };
    answered(&reply.icmp(kind, 0, rest, data), out)
}

/// The answer to a packet that is too big: the MTU, and the packet's start as far as an error may be long.
pub(crate) fn too_big(packet: &Packet, mtu: u16, out: &[u8]) -> Result<()> {
    let original = packet.ip_bytes();
    let [high, low] = mtu.to_be_bytes();
    // The whole error: 576 bytes less its own headers and room for a little (RFC 1812), or IPv6's minimum MTU.
    let (kind, code, quote_bytes) = match packet.family() {
        Family::V4 => (3, 4, 528),
        Family::V6 => (2, 0, 1280 - 40 - 8),
    };
    let error = Packet {
        vlans: packet.vlans.clone(),
        ttl: TTL,
        flow_label: 0,
        dont_fragment: false,
        ..Packet::new(packet.to, packet.from)
    };
    let quote = original
        .get(..quote_bytes)
        .context("such a packet is not too big")?;
    answered(&error.icmp(kind, code, [0, 0, high, low], quote), out)
}

/// The reset that a host would answer a TCP packet with. Behind it there may be what fills the shortest frame.
pub(crate) fn reset(packet: &Packet, out: &[u8]) -> Result<()> {
    let ports = |at: usize| u16::from_be_bytes([packet.payload[at], packet.payload[at + 1]]);
    let number = |at: usize| &packet.payload[at..at + 4];
    let (flags, header_bytes) = (packet.payload[13], usize::from(packet.payload[12] >> 4) * 4);
    let signs = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
    let data = u32::try_from(packet.payload.len() - header_bytes)?;
    let (sequence, acknowledgement, answer) = if flags & ACK != 0 {
        (number(8).to_vec(), 0, RST)
    } else {
        let sequence = u32::from_be_bytes(number(4).try_into()?);
        (vec![0; 4], sequence.wrapping_add(data + signs), RST | ACK)
    };
    let mut expected = Packet {
        vlans: packet.vlans.clone(),
        ttl: TTL,
        flow_label: 0,
        dont_fragment: false,
        ..Packet::new(packet.to, packet.from)
    }
    .tcp((ports(2), ports(0)), answer, &[]);
    expected.payload[4..8].copy_from_slice(&sequence);
    expected.payload[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    // No window, and the sum anew.
    expected.payload[14..18].fill(0);
    let checksum = l4_checksum(
        expected.from,
        expected.to,
        expected.protocol,
        &expected.payload,
    );
    expected.payload[16..18].copy_from_slice(&checksum.to_be_bytes());

    let length = expected.frame().len();
    ensure!(out.len() <= length.max(60), "{} bytes", out.len());
    let out = out.get(..length).context("too short")?;
    answered(&expected, out)
}

/// The answer to a SYN that acknowledges what its sender never sent: the number is at most 65,535 below the SYN's own. Behind it
/// there may be what fills the shortest frame.
pub(crate) fn challenge(syn: &Packet, out: &[u8]) -> Result<()> {
    let port = |at: usize| u16::from_be_bytes([syn.payload[at], syn.payload[at + 1]]);
    let tcp = syn.ip_offset() + syn.family().header_bytes();
    let [sequence, acknowledgement] = numbers(out, tcp)?;
    let initial = u32::from_be_bytes(syn.payload[4..8].try_into()?);
    let below = initial.wrapping_sub(acknowledgement);
    ensure!(
        below <= 0xffff,
        "acknowledges {below} below the SYN's number"
    );

    let mss: &[u8] = match (syn.payload.len(), syn.family()) {
        (..24, _) => &[],
        (_, Family::V4) => &[2, 4, 0x05, 0xb4],
        (_, Family::V6) => &[2, 4, 0x05, 0xa0],
    };
    let mut expected = Packet {
        vlans: syn.vlans.clone(),
        ttl: TTL,
        flow_label: 0,
        dont_fragment: true,
        ..Packet::new(syn.to, syn.from)
    }
    .tcp((port(2), port(0)), SYN | ACK, mss);
    expected.payload[4..8].copy_from_slice(&sequence.to_be_bytes());
    expected.payload[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    expected.payload[12] = if mss.is_empty() { 0x50 } else { 0x60 };
    expected.payload[14..16].fill(0);
    answers(syn, expected, out)
}

/// The answer to a SYN that a backend would send, which is to say what [`ANSWER`] does, as far as the client offers it. Behind it
/// there may be what fills the shortest frame.
pub(crate) fn cookie(syn: &Packet, out: &[u8]) -> Result<()> {
    let offered = TcpSlice::from_slice(&syn.payload)?;
    let tcp = syn.ip_offset() + syn.family().header_bytes();
    let answer = TcpSlice::from_slice(out.get(tcp..).context("too short")?)?;
    let (wanted, said) = (Options::of(&offered)?, Options::of(&answer)?);
    let expected = Options {
        mss: wanted.mss.map(|_| ANSWER.mss),
        scale: wanted.scale.map(|_| ANSWER.window_scale),
        sack: wanted.sack,
        stamps: wanted.stamps.map(|(value, _)| {
            let ours = said.stamps.map_or(0, |(ours, _)| ours);
            (ours, value)
        }),
    };
    // Who names no segment size is offered nothing.
    let expected = if wanted.mss.is_some() {
        expected
    } else {
        Options::default()
    };
    ensure!(said == expected, "{said:?} instead of {expected:?}");
    ensure!(answer.window_size() == ANSWER.window, "window");
    let ecn = if offered.ece() && offered.cwr() {
        ECE
    } else {
        0
    };
    let mut expected = Packet {
        vlans: syn.vlans.clone(),
        ttl: TTL,
        flow_label: 0,
        ..Packet::new(syn.to, syn.from)
    }
    .tcp(
        (offered.destination_port(), offered.source_port()),
        SYN | ACK | ecn,
        answer.options(),
    );
    let next = offered.sequence_number().wrapping_add(1);
    expected.payload[4..8].copy_from_slice(&answer.sequence_number().to_be_bytes());
    expected.payload[8..12].copy_from_slice(&next.to_be_bytes());
    expected.payload[12] = answer.data_offset() << 4;
    expected.payload[14..16].copy_from_slice(&ANSWER.window.to_be_bytes());
    answers(syn, expected, out)
}

/// The answer to a SYN, whose checksum is still to be made: no longer than that, and behind it at most what fills the
/// shortest frame.
fn answers(syn: &Packet, mut expected: Packet, out: &[u8]) -> Result<()> {
    expected.payload[16..18].fill(0);
    let (from, to, protocol) = (expected.from, expected.to, expected.protocol);
    let checksum = l4_checksum(from, to, protocol, &expected.payload);
    expected.payload[16..18].copy_from_slice(&checksum.to_be_bytes());

    let length = expected.frame().len();
    ensure!(out.len() <= syn.frame().len(), "longer than the SYN");
    ensure!(out.len() <= length.max(60), "{} bytes", out.len());
    answered(&expected, out.get(..length).context("too short")?)
}

/// The options of a TCP header that are about the handshake.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    mss: Option<u16>,
    scale: Option<u8>,
    sack: bool,
    stamps: Option<(u32, u32)>,
}

impl Options {
    fn of(tcp: &TcpSlice<'_>) -> Result<Self> {
        let mut options = Self::default();
        for option in tcp.options_iterator() {
            match option? {
                TcpOptionElement::MaximumSegmentSize(mss) => options.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => options.scale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => options.sack = true,
                TcpOptionElement::Timestamp(value, echo) => options.stamps = Some((value, echo)),
                TcpOptionElement::Noop | TcpOptionElement::SelectiveAcknowledgement(..) => {}
            }
        }
        Ok(options)
    }
}

/// Sequence and acknowledgement number of the TCP header at an offset.
pub(crate) fn numbers(frame: &[u8], tcp: usize) -> Result<[u32; 2]> {
    let bytes = frame.get(tcp + 4..tcp + 12).context("no TCP header")?;
    let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
    Ok([number(0), number(4)])
}

/// An answer goes back to where the packet came from, with right lengths and checksums.
fn answered(expected: &Packet, out: &[u8]) -> Result<()> {
    let mut frame = expected.frame();
    frame[..6].copy_from_slice(&ROUTER_MAC);
    frame[6..12].copy_from_slice(&OUR_MAC);
    same(&frame, out)?;
    let sliced = SlicedPacket::from_ethernet(out).context("the decoder refuses it")?;
    // The decoder does not know mobility, HIP and shim6.
    let known = |(kind, _): &(u8, usize)| [0, 43, 44, 51, 60].contains(kind);
    let readable = expected.extensions.iter().all(known);
    ensure!(
        sliced.transport.is_some() || !readable,
        "the decoder finds no ICMP"
    );
    let l4 = &out[expected.ip_offset() + expected.ip_bytes().len() - expected.payload.len()..];
    let l4 = &l4[..expected.payload.len()];
    let sum = l4_checksum(expected.from, expected.to, expected.protocol, l4);
    ensure!(sum == 0, "checksum of the answer");
    Ok(())
}
