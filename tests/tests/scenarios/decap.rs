//! `sluice decap`: every kind of tunnel packet taken apart, frame by frame and on a cable; nothing else touched.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::programs::{TestRun, TestRunOptions, Xdp};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use sluice::{config::XdpMode, decap::Decap};
use sluice_tests::{DNS_V4, DNS_V6, Lab, RawSocket, within};

const DROP: u32 = 1;
const PASS: u32 = 2;
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
const V4: [&str; 2] = ["10.0.0.2", "10.0.0.11"];
const V6: [&str; 2] = ["fd00::2", "fd00::11"];

/// How the inner packet is carried.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Carrier {
    Ipip,
    Gue,
}

#[test]
fn each_tunnel_of_each_family_is_taken_off_under_any_vlan_tags() {
    let mut decap = load(&[]);
    let mut expected = 0;
    for [source, destination] in [V4, V6] {
        for inner in [inner(DNS_V4.ip()), inner(DNS_V6.ip())] {
            for carrier in [Carrier::Ipip, Carrier::Gue] {
                for tags in 0..=2 {
                    for options in [0, 40] {
                        let outer = outer(source, destination, carrier, &inner, options);
                        let frame = ethernet(tags, &outer);
                        let (action, output) = run(decap.program(), &frame);
                        let what = format!("{carrier:?} to {destination}, {tags} tags");
                        assert_eq!(action, PASS, "{what}");
                        assert_eq!(output, ethernet(tags, &inner), "{what}");
                        let sliced = SlicedPacket::from_ethernet(&output).unwrap();
                        assert!(
                            matches!(sliced.transport, Some(TransportSlice::Udp(udp)) if udp.destination_port() == 53)
                        );
                        expected += 1;
                    }
                }
            }
        }
    }
    let stats = decap.stats().unwrap();
    assert_eq!(
        (stats.decapsulated, stats.passed, stats.malformed),
        (expected, 0, 0)
    );
}

/// As a switch does that has ECN: only the outer header is marked.
#[test]
fn congestion_on_the_way_is_told_to_the_inner_packet() {
    const DSCP: u8 = 46 << 2;
    let (ect, ce) = (DSCP | 2, DSCP | 3);
    let mut decap = load(&[]);
    for [source, destination] in [V4, V6] {
        for to in [DNS_V4.ip(), DNS_V6.ip()] {
            let with_class = |class| inner_of_class(to, class);
            for (class, outer_class, told) in
                [(ect, ect, Some(ect)), (ect, ce, Some(ce)), (DSCP, ce, None)]
            {
                let mut outer = outer(source, destination, Carrier::Ipip, &with_class(class), 0);
                set_class(&mut outer, outer_class);
                let (action, output) = run(decap.program(), &ethernet(1, &outer));
                match told {
                    Some(told) => {
                        assert_eq!(action, PASS);
                        assert_eq!(
                            output,
                            ethernet(1, &with_class(told)),
                            "{class} under {outer_class}"
                        );
                    }
                    None => assert_eq!(action, DROP, "it says that nobody marks it"),
                }
            }
        }
    }
}

#[test]
fn a_frame_that_ends_early_is_never_taken_apart() {
    let mut decap = load(&[]);
    for [source, destination] in [V4, V6] {
        for inner in [inner(DNS_V4.ip()), inner(DNS_V6.ip())] {
            for carrier in [Carrier::Ipip, Carrier::Gue] {
                for tags in 0..=2 {
                    let whole = ethernet(tags, &outer(source, destination, carrier, &inner, 0));
                    for length in 14..whole.len() {
                        let (action, output) = run(decap.program(), &whole[..length]);
                        assert!(action == DROP || action == PASS, "{action}");
                        assert_eq!(output, whole[..length], "touched, cut to {length}");
                    }
                }
            }
        }
    }
    let stats = decap.stats().unwrap();
    assert_eq!(stats.decapsulated, 0);
    assert!(stats.malformed > 0 && stats.passed > 0, "{stats:?}");
}

#[test]
fn an_inner_packet_that_is_none_is_dropped() {
    let mut decap = load(&[]);
    let inner = inner(DNS_V4.ip());
    let mut longer = inner.clone();
    longer[3] += 1;
    let mut no_header = inner.clone();
    no_header[0] = 0x44;
    let mut shorter_than_its_header = inner.clone();
    shorter_than_its_header[2..4].copy_from_slice(&[0, 19]);
    for packet in [longer, no_header, shorter_than_its_header] {
        for carrier in [Carrier::Ipip, Carrier::Gue] {
            let frame = ethernet(0, &outer(V4[0], V4[1], carrier, &packet, 0));
            assert_eq!(run(decap.program(), &frame), (DROP, frame));
        }
    }
    // Protocol 4 carries IPv4, whatever the packet says.
    let mut frame = ethernet(0, &outer(V4[0], V4[1], Carrier::Ipip, &inner, 0));
    frame[14 + 20] = 0x65;
    assert_eq!(run(decap.program(), &frame), (DROP, frame));
    assert_eq!(decap.stats().unwrap().malformed, 7);
}

#[test]
fn what_is_no_tunnel_packet_for_us_passes_untouched() {
    let mut decap = load(&["10.0.0.0/24", "fd00::/64"]);
    let inner = inner(DNS_V4.ip());
    let tunnel = |source, destination| outer(source, destination, Carrier::Gue, &inner, 0);
    let mut other_port = tunnel(V4[0], V4[1]);
    other_port[23] += 1;
    let mut gue_variant_0 = tunnel(V4[0], V4[1]);
    gue_variant_0[28] = 0;
    let mut fragment = tunnel(V4[0], V4[1]);
    fragment[6] = 0x20;
    let frames = [
        ("not to us", ethernet(0, &tunnel(V4[0], "10.0.0.12"))),
        ("not to us, IPv6", ethernet(1, &tunnel(V6[0], "fd00::12"))),
        ("from elsewhere", ethernet(0, &tunnel("10.0.1.2", V4[1]))),
        (
            "from elsewhere, IPv6",
            ethernet(2, &tunnel("fd00:0:0:1::2", V6[1])),
        ),
        ("other port", ethernet(0, &other_port)),
        ("GUE variant 0", ethernet(0, &gue_variant_0)),
        ("fragment", ethernet(0, &fragment)),
        ("no tunnel", ethernet(0, &inner)),
        ("no IP", [&MACS[..], &[0x08, 0x06], &[0; 46]].concat()),
    ];
    let count = frames.len() as u64;
    for (what, frame) in frames {
        assert_eq!(run(decap.program(), &frame), (PASS, frame), "{what}");
    }
    for [source, destination] in [V4, V6] {
        let frame = ethernet(0, &tunnel(source, destination));
        assert_eq!(run(decap.program(), &frame), (PASS, ethernet(0, &inner)));
    }
    let stats = decap.stats().unwrap();
    assert_eq!(
        (stats.decapsulated, stats.passed, stats.malformed),
        (2, count, 0)
    );
}

#[test]
fn the_inner_packet_reaches_a_server_behind_either_xdp_mode() {
    let lab = Lab::new().build();
    let backend = lab.backend("b1");
    let client = lab.client(0);
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let mut decap = Decap::load(&[backend.v4(), backend.v6()], &[]).unwrap();
        backend
            .netns()
            .run(|| decap.attach("eth0", mode))
            .expect("a veth takes both modes");
        let raw = RawSocket::sender(lab.node().netns(), "eth0");
        let macs = [backend.mac(), raw.mac()].concat();
        let mut sent = 0;
        for vip in [DNS_V4, DNS_V6] {
            let from = SocketAddr::new(client.address(vip, 9), 20_000);
            let flow = client.source_port(from).udp(vip).unwrap();
            let inner = client.frames().udp(from, vip, b"hello")[14..].to_vec();
            for [source, destination] in [
                [lab.node().v4(), backend.v4()],
                [lab.node().v6(), backend.v6()],
            ] {
                for carrier in [Carrier::Ipip, Carrier::Gue] {
                    let source = source.to_string();
                    let destination = destination.to_string();
                    let packet = outer(&source, &destination, carrier, &inner, 0);
                    let mut frame = ethernet(0, &packet);
                    frame[..12].copy_from_slice(&macs);
                    raw.send(&frame);
                    assert_eq!(
                        flow.answer_to(b"hello").unwrap(),
                        "b1",
                        "{mode:?} {carrier:?}"
                    );
                    sent += 1;
                }
            }
        }
        assert_eq!(decap.stats().unwrap().decapsulated, sent, "{mode:?}");
        drop(decap);
        within(Duration::from_secs(5), "it is detached", || {
            !backend.netns().has_xdp("eth0")
        });
    }
}

fn load(from: &[&str]) -> Decap {
    let addresses = [V4[1], V6[1]].map(|address| address.parse().unwrap());
    let from: Vec<_> = from.iter().map(|prefix| prefix.parse().unwrap()).collect();
    Decap::load(&addresses, &from).unwrap()
}

/// What the program returns, and the frame as it leaves it.
fn run(program: &Xdp, frame: &[u8]) -> (u32, Vec<u8>) {
    let mut output = vec![0; frame.len() + 64];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ..TestRunOptions::default()
        })
        .unwrap();
    output.truncate(result.data_size_out as usize);
    (result.return_value, output)
}

/// A datagram to a VIP.
fn inner(to: IpAddr) -> Vec<u8> {
    let mut packet = Vec::new();
    match to {
        IpAddr::V4(to) => PacketBuilder::ipv4([198, 51, 100, 7], to.octets(), 64),
        IpAddr::V6(to) => PacketBuilder::ipv6([7; 16], to.octets(), 64),
    }
    .udp(20_000, 53)
    .write(&mut packet, b"hello")
    .unwrap();
    packet
}

/// The same with another class.
fn inner_of_class(to: IpAddr, class: u8) -> Vec<u8> {
    let mut packet = inner(to);
    set_class(&mut packet, class);
    packet
}

fn set_class(packet: &mut [u8], class: u8) {
    if packet[0] >> 4 == 4 {
        packet[1] = class;
        let (mut header, _) = etherparse::Ipv4Header::from_slice(packet).unwrap();
        header.header_checksum = header.calc_header_checksum();
        packet[..header.header_len()].copy_from_slice(&header.to_bytes());
    } else {
        packet[0] = 0x60 | class >> 4;
        packet[1] = packet[1] & 0x0f | class << 4;
    }
}

/// The outer packet; IPv4 with so many bytes of options.
fn outer(
    source: &str,
    destination: &str,
    carrier: Carrier,
    inner: &[u8],
    options: usize,
) -> Vec<u8> {
    let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let inner_v4 = inner[0] >> 4 == 4;
    let (protocol, udp) = match carrier {
        Carrier::Ipip => (if inner_v4 { 4 } else { 41 }, vec![]),
        Carrier::Gue => (
            17,
            [
                &[0xc0, 0, 0x17, 0xc0][..],
                &length(inner.len() + 8),
                &[0, 0],
            ]
            .concat(),
        ),
    };
    let payload = [&udp[..], inner].concat();
    match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header_bytes = 20 + options;
            let mut header = etherparse::Ipv4Header::new(
                u16::try_from(payload.len()).unwrap(),
                64,
                protocol.into(),
                source.octets(),
                destination.octets(),
            )
            .unwrap();
            header.options = etherparse::Ipv4Options::try_from(&vec![1; options][..]).unwrap();
            header.set_payload_len(payload.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            let packet = [&header.to_bytes()[..], &payload].concat();
            assert_eq!(packet.len(), header_bytes + payload.len());
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => [
            &[0x60, 0, 0, 0][..],
            &length(payload.len()),
            &[protocol, 64],
            &source.octets(),
            &destination.octets(),
            &payload,
        ]
        .concat(),
        _ => panic!("two families"),
    }
}

fn ethernet(tags: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = MACS.to_vec();
    for tag in 0..tags {
        let tpid: [u8; 2] = if tag + 1 < tags {
            [0x88, 0xa8]
        } else {
            [0x81, 0]
        };
        frame.extend(tpid);
        frame.extend((100 + tag).to_be_bytes());
    }
    frame.extend(if packet[0] >> 4 == 6 {
        [0x86, 0xdd]
    } else {
        [0x08, 0]
    });
    frame.extend(packet);
    frame
}
