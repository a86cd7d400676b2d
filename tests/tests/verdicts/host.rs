//! What is not ours: it reaches the host untouched, and counts for no VIP.

use sluice_ebpf::abi::NO_VIP;

use crate::{
    packet::{ACK, Family, OUR_MAC, Packet, ROUTER_MAC, SYN, TCP, UDP, client, vip},
    rig::{Action, Counted, Rig},
    table::{Expect, LEAST_FRAME, Row, check_all},
    world,
};

/// GRE, ESP, SCTP, IP in IP of both families, OSPF, none.
const OTHER_PROTOCOLS: [u8; 7] = [47, 50, 132, 4, 41, 89, 59];
/// An address that no VIP has.
const NOBODY: u8 = 250;

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

#[test]
fn other_destinations_pass() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let plain = packet(family, NOBODY);
        let quote = Packet::new(plain.to, plain.from)
            .tcp((80, 9), ACK, &[])
            .ip_bytes();
        let mut add = |name: &str, packet| rows.push(Row::new(name, packet, Expect::Pass));
        add("TCP", plain.clone().tcp((42_000, 80), SYN, &[]));
        add("UDP", plain.clone().udp((42_000, 53), b"query"));
        add("echo", plain.clone().echo_request(1, b"ping"));
        add("an ICMP error", plain.clone().icmp(3, 1, [0; 4], &quote));
        for piece in plain.clone().udp((42_000, 53), &[7; 60]).in_two(9, 24) {
            add("a fragment", piece);
        }
        add(
            "tagged",
            plain.clone().vlan(0x8100, 1).udp((42_000, 53), b"query"),
        );
        for protocol in OTHER_PROTOCOLS {
            add("another protocol", plain.clone().raw(protocol, &[1; 24]));
        }
        if family == Family::V4 {
            add(
                "options",
                plain
                    .clone()
                    .with(|p| p.options = vec![1; 8])
                    .udp((42_000, 53), b"q"),
            );
            continue;
        }
        add(
            "extension headers",
            plain.clone().extension(0, 8).udp((42_000, 53), b"q"),
        );
        let many = (0..12).fold(plain, |packet, _| packet.extension(60, 8));
        add(
            "more extension headers than are followed",
            many.udp((42_000, 53), b"q"),
        );
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        let to_mapped = Packet::new(client(family, 100, 7), mapped);
        add(
            "a VIP's IPv4 address written as IPv6",
            to_mapped.udp((42_000, 53), b"q"),
        );
        let solicited = "ff02::1:ff00:1".parse().unwrap();
        let solicitation = Packet::new(client(family, 100, 7), solicited);
        add(
            "neighbour solicitation",
            solicitation.icmp(135, 0, [0; 4], &[1; 24]),
        );
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn what_a_vip_does_not_take_passes() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let ports = [
            (world::L2, TCP, 81),
            (world::L2, TCP, 53),
            (world::L2, UDP, 80),
            (world::L2, UDP, 0),
            (world::ALL_PORTS, UDP, 80),
            (world::ANY_PROTOCOL, TCP, 80),
            (world::ANY_PROTOCOL, UDP, 54),
            (world::CROWDED, TCP, 10),
            (world::CROWDED, TCP, 0),
        ];
        for (host, protocol, port) in ports {
            let plain = packet(family, host);
            let packet = match protocol {
                TCP => plain.tcp((42_100, port), SYN, &[]),
                _ => plain.udp((42_100, port), b"query"),
            };
            let name = format!("protocol {protocol} port {port} of {host}");
            rows.push(Row::new(name, packet, Expect::Pass).cut_is_dropped());
        }
        let [_, later] = packet(family, world::ALL_PORTS)
            .udp((42_100, 80), &[7; 60])
            .in_two(5, 24);
        rows.push(Row::new("a later fragment of UDP", later, Expect::Pass).cut_is_dropped());
        for protocol in OTHER_PROTOCOLS {
            let other = packet(family, world::L2).raw(protocol, &[1; 24]);
            rows.push(Row::new(
                format!("protocol {protocol}"),
                other,
                Expect::Pass,
            ));
            let [first, later] = packet(family, world::L2)
                .raw(protocol, &[1; 48])
                .in_two(6, 24);
            let behind = if family == Family::V6 { 8 } else { 0 };
            for piece in [first, later] {
                let row = Row::new(
                    format!("fragment of protocol {protocol}"),
                    piece,
                    Expect::Pass,
                );
                rows.push(row.cut_passes_behind(behind));
            }
        }
        // The other family's ICMP is just a protocol that nobody here speaks.
        let icmp = if family == Family::V4 { 58 } else { 1 };
        let strange = packet(family, world::L2).raw(icmp, &[8, 0, 0, 0, 0, 0, 0, 0]);
        rows.push(Row::new("ICMP of the other family", strange, Expect::Pass));
    }
    let behind = packet(Family::V6, world::L2)
        .extension(0, 8)
        .extension(60, 16)
        .raw(47, &[1; 24]);
    rows.push(Row::new("GRE behind extensions", behind, Expect::Pass).cut_passes_behind(16));
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn icmp_that_is_neither_error_nor_echo_request_passes() {
    let mut rows = vec![];
    // Echo reply, router advertisement and solicitation, timestamps, address masks.
    let v4 = [0, 9, 10, 13, 14, 17, 18];
    // Echo reply, multicast listeners, neighbour discovery, the second version of the former.
    let v6 = [129, 130, 131, 132, 133, 134, 135, 136, 137, 143];
    for (family, kinds) in [(Family::V4, &v4[..]), (Family::V6, &v6[..])] {
        for kind in kinds {
            for host in [world::L2, world::IPIP4, world::LOCAL] {
                let icmp = packet(family, host).icmp(*kind, 0, [0; 4], &[1; 24]);
                let row = Row::new(format!("ICMP {kind} to {host}"), icmp.clone(), Expect::Pass);
                rows.push(row.cut_is_dropped());
                let tagged = icmp.vlan(0x88a8, 1).vlan(0x8100, 2);
                let row = Row::new(
                    format!("ICMP {kind} to {host}, tagged"),
                    tagged,
                    Expect::Pass,
                );
                rows.push(row.cut_is_dropped());
            }
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn frames_that_are_not_ip_pass() {
    let mut rig = Rig::new();
    let header = [OUR_MAC, ROUTER_MAC].concat();
    let with = |ethertype: u16, rest: &[u8]| [&header[..], &ethertype.to_be_bytes(), rest].concat();
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend(
        [
            &ROUTER_MAC[..],
            &[192, 0, 2, 250],
            &[0; 6],
            &[192, 0, 2, 1],
            &[0; 18],
        ]
        .concat(),
    );
    let v4 = packet(Family::V4, world::L2)
        .udp((42_200, 53), b"query")
        .ip_bytes();
    let v6 = packet(Family::V6, world::L2)
        .udp((42_200, 53), b"query")
        .ip_bytes();
    let frames = [
        ("ARP", with(0x0806, &arp)),
        (
            "tagged ARP",
            with(0x8100, &[&[0, 9, 8, 6], &arp[..]].concat()),
        ),
        ("LLDP", with(0x88cc, &[2, 7, 4, 0, 0, 0, 0, 0, 1])),
        ("spanning tree", with(38, &[0x42; 38])),
        ("MPLS", with(0x8847, &[&[0, 1, 0x41, 64], &v4[..]].concat())),
        ("IPv6 that says it is IPv4", with(0x0800, &v6)),
        ("IPv4 that says it is IPv6", with(0x86dd, &v4)),
        (
            "an old EtherType for tags",
            with(0x9100, &[&[0, 9, 8, 0], &v4[..]].concat()),
        ),
    ];
    for (name, frame) in frames {
        for length in LEAST_FRAME..=frame.len() {
            let before = rig.counts(vip(Family::V4, world::L2));
            let ran = rig.run(&frame[..length]);
            assert_eq!(ran.action, Action::Pass, "{name} cut to {length}");
            assert_eq!(ran.frame, frame[..length], "{name} cut to {length}");
            let counted = (rig.counts(vip(Family::V4, world::L2)) - before).packets();
            assert_eq!(
                counted,
                [(Counted::Passed(NO_VIP), 1, length as u64)],
                "{name}"
            );
        }
    }
}
