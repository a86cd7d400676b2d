//! The packet reader against an independent one (etherparse), over generated frames, cut and changed at will.

#![allow(
    clippy::cast_possible_truncation,
    reason = "halves of a word are what is wanted"
)]

use etherparse::{
    EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Extensions, Ipv6FlowLabel,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice, UdpHeader,
};
use proptest::prelude::*;
use sluice_ebpf::packet::{self, Fragment, Frame, L4, Transport};

/// What both readers must agree on.
#[derive(Debug, PartialEq)]
struct Seen {
    v6: bool,
    source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    ports: Option<(u16, u16)>,
}

fn ours(bytes: &[u8]) -> Option<Seen> {
    let start = bytes.as_ptr() as usize;
    // SAFETY: the slice outlives the frame.
    let frame = unsafe { Frame::new(start, start + bytes.len()) };
    let (ethertype, offset) = packet::ethernet(&frame)?;
    let ip = packet::ip(&frame, ethertype, offset)?;
    let l4: L4 = if ip.v6 && packet::is_extension(ip.protocol) {
        packet::unpack(packet::extensions(&frame, ip.offset + 40, ip.protocol)).ok()?
    } else {
        packet::skip_options(&ip).ok()?
    };
    let ports = match packet::transport(&frame, &ip, &l4).ok()? {
        Transport::Tcp { ports, .. } | Transport::Udp { ports } => Some((
            u16::from_be(ports as u16),
            u16::from_be((ports >> 16) as u16),
        )),
        _ => None,
    };
    Some(Seen {
        v6: ip.v6,
        source: bytes_of(ip.source),
        destination: bytes_of(ip.destination),
        protocol: l4.protocol,
        ports,
    })
}

fn bytes_of(words: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
    bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
    bytes
}

fn theirs(bytes: &[u8]) -> Option<Seen> {
    let sliced = SlicedPacket::from_ethernet(bytes).ok()?;
    let (v6, source, destination, protocol) = match sliced.net? {
        NetSlice::Ipv4(ip) => (
            false,
            ip.header().source_addr().to_ipv6_mapped().octets(),
            ip.header().destination_addr().to_ipv6_mapped().octets(),
            ip.payload().ip_number,
        ),
        NetSlice::Ipv6(ip) => (
            true,
            ip.header().source_addr().octets(),
            ip.header().destination_addr().octets(),
            ip.payload().ip_number,
        ),
        _ => return None,
    };
    let ports = match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    };
    Some(Seen {
        v6,
        source,
        destination,
        protocol: protocol.0,
        ports,
    })
}

#[derive(Clone, Debug)]
struct Spec {
    vlans: usize,
    v6: bool,
    tcp: bool,
    options: usize,
    extensions: usize,
    fragment: Option<(u16, bool)>,
    payload: usize,
    ports: (u16, u16),
}

fn spec() -> impl Strategy<Value = Spec> {
    (
        0usize..3,
        any::<bool>(),
        any::<bool>(),
        0usize..=10,
        0usize..4,
        prop::option::of((0u16..100, any::<bool>())),
        0usize..64,
        any::<(u16, u16)>(),
    )
        .prop_map(
            |(vlans, v6, tcp, options, extensions, fragment, payload, ports)| Spec {
                vlans,
                v6,
                tcp,
                options,
                extensions,
                fragment,
                payload,
                ports,
            },
        )
}

fn build(spec: &Spec) -> Vec<u8> {
    let mut transport = Vec::new();
    if spec.tcp {
        let mut tcp = TcpHeader::new(spec.ports.0, spec.ports.1, 1, 1000);
        tcp.ack = true;
        tcp.write(&mut transport).unwrap();
    } else {
        UdpHeader {
            source_port: spec.ports.0,
            destination_port: spec.ports.1,
            length: u16::try_from(8 + spec.payload).unwrap(),
            checksum: 0,
        }
        .write(&mut transport)
        .unwrap();
    }
    transport.extend(std::iter::repeat_n(0x5a, spec.payload));
    let protocol = if spec.tcp {
        IpNumber::TCP
    } else {
        IpNumber::UDP
    };
    let (offset, more) = spec.fragment.unwrap_or((0, false));

    let mut packet = Vec::new();
    if spec.v6 {
        let raw = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[0; 6]).unwrap();
        let mut extensions = Ipv6Extensions::default();
        if spec.extensions > 0 {
            extensions.hop_by_hop_options = Some(raw.clone());
        }
        if spec.extensions > 1 {
            extensions.destination_options = Some(raw);
        }
        if spec.fragment.is_some() {
            extensions.fragment = Some(Ipv6FragmentHeader::new(
                IpNumber::TCP,
                IpFragOffset::try_new(offset).unwrap(),
                more,
                77,
            ));
        }
        let first = extensions.set_next_headers(protocol);
        let header = Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(extensions.header_len() + transport.len()).unwrap(),
            next_header: first,
            hop_limit: 9,
            source: [0x20; 16],
            destination: [0x21; 16],
        };
        header.write(&mut packet).unwrap();
        extensions.write(&mut packet, first).unwrap();
    } else {
        let options = vec![1; spec.options * 4];
        let mut header =
            Ipv4Header::new(0, 9, protocol, [192, 0, 2, 1], [198, 51, 100, 7]).unwrap();
        header.options = Ipv4Options::try_from(&options[..]).unwrap();
        header.set_payload_len(transport.len()).unwrap();
        header.fragment_offset = IpFragOffset::try_new(offset).unwrap();
        header.more_fragments = more;
        header.write(&mut packet).unwrap();
    }
    packet.extend(transport);

    let ip_type = if spec.v6 {
        EtherType::IPV6
    } else {
        EtherType::IPV4
    };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..spec.vlans {
        frame.extend([0x81, 0x00, 0x00, 0x64]);
    }
    frame.extend(ip_type.0.to_be_bytes());
    frame.extend(packet);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_an_independent_reader(spec in spec()) {
        let frame = build(&spec);
        let (ours, mut theirs) = (ours(&frame), theirs(&frame));
        prop_assert!(ours.is_some());
        // The other reader gives no ports for a first fragment.
        if let (Some((0, true)), Some(seen)) = (spec.fragment, &mut theirs) {
            seen.ports = Some(spec.ports);
        }
        prop_assert_eq!(ours, theirs);
    }

    /// Ports are read only from what the packet says it holds: never from padding, never past the end.
    #[test]
    fn a_cut_frame_gives_no_ports(spec in spec(), cut in 1usize..200) {
        let frame = build(&spec);
        let kept = frame.len().saturating_sub(cut);
        if let Some(seen) = ours(&frame[..kept]) {
            prop_assert_eq!(seen.ports, None, "kept {} of {}", kept, frame.len());
        }
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ours(&bytes);
    }

    #[test]
    fn changed_bytes_are_read_without_harm(spec in spec(), at in any::<prop::sample::Index>(), to: u8) {
        let mut frame = build(&spec);
        let at = at.index(frame.len());
        frame[at] = to;
        let _ = ours(&frame);
    }
}

#[test]
fn fragments_are_told_apart() {
    let base = Spec {
        vlans: 0,
        v6: false,
        tcp: false,
        options: 0,
        extensions: 0,
        fragment: None,
        payload: 8,
        ports: (1, 2),
    };
    for v6 in [false, true] {
        for (fragment, expected) in [
            (None, 0),
            (Some((0, false)), 0),
            (Some((0, true)), 1),
            (Some((1, true)), 2),
            (Some((9, false)), 2),
        ] {
            let bytes = build(&Spec {
                v6,
                fragment,
                ..base.clone()
            });
            let start = bytes.as_ptr() as usize;
            // SAFETY: the slice outlives the frame.
            let frame = unsafe { Frame::new(start, start + bytes.len()) };
            let (ethertype, offset) = packet::ethernet(&frame).unwrap();
            let ip = packet::ip(&frame, ethertype, offset).unwrap();
            let l4 = if v6 && packet::is_extension(ip.protocol) {
                packet::unpack(packet::extensions(&frame, ip.offset + 40, ip.protocol)).unwrap()
            } else {
                packet::skip_options(&ip).unwrap()
            };
            let found = match l4.fragment {
                Fragment::Whole => 0,
                Fragment::First(_) => 1,
                Fragment::Later(_) => 2,
            };
            assert_eq!(found, expected, "v6 {v6}, {fragment:?}");
        }
    }
}
