//! Packets at the edge of what fits the path to a backend.

use sluice_ebpf::abi::DropReason;

use crate::{
    packet::{ACK, DOT1AD, DOT1Q, Family, Packet, client, vip},
    rig::Rig,
    table::{Expect, Row, check_all},
    world::{self, backend},
};

/// Backend of a host, the MTU of its path, and the bytes of its outer headers.
const PATHS: [(u8, u16, u16, u16); 7] = [
    (world::L2, backend::L2, 1500, 0),
    (world::L2_VLAN, backend::L2_VLAN, 1500, 0),
    (world::IPIP4, backend::IPIP4, 1500, 20),
    (world::IPIP6, backend::IPIP6, 1500, 40),
    (world::GUE4, backend::GUE4, 1500, 28),
    (world::GUE6, backend::GUE6, 1500, 48),
    (world::SMALL, backend::IPIP4, 0, 20),
];

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

/// Largest packet that fits.
fn largest(family: Family, mtu: u16, outer: u16) -> u16 {
    let mtu = match (mtu, family) {
        (0, Family::V4) => 576,
        (0, Family::V6) => 1320,
        (mtu, _) => mtu,
    };
    mtu - outer
}

/// Data that makes a TCP packet without options of this size.
fn tcp_of(plain: Packet, bytes: u16) -> Packet {
    let headers = plain.family().header_bytes() + 20 + plain.options.len();
    let data = (0..=255)
        .cycle()
        .take(usize::from(bytes) - headers)
        .collect::<Vec<u8>>();
    plain.tcp((44_000, 80), ACK, &data)
}

#[test]
fn what_just_fits_is_sent_and_a_byte_more_is_told() {
    let mut rows = vec![];
    for family in Family::BOTH {
        for (host, number, mtu, outer) in PATHS {
            let mtu = largest(family, mtu, outer);
            let plain = packet(family, host);
            rows.push(Row::new(
                format!("{mtu} to {host}"),
                tcp_of(plain.clone(), mtu),
                Expect::Sent(number),
            ));
            for bytes in [mtu + 1, mtu + 2, mtu + 7, 1700] {
                for dont_fragment in [true, false] {
                    let big =
                        tcp_of(plain.clone(), bytes).with(|p| p.dont_fragment = dont_fragment);
                    let name = format!("{bytes} to {host}, DF {dont_fragment}");
                    rows.push(Row::new(&name, big.clone(), Expect::TooBig(mtu)));
                    let tagged = big.clone().vlan(DOT1Q, 0x6005);
                    rows.push(Row::new(
                        format!("{name}, tagged"),
                        tagged,
                        Expect::TooBig(mtu),
                    ));
                    let twice = big
                        .vlan(DOT1AD, 3)
                        .vlan(DOT1Q, 0x6005)
                        .with(|p| p.padding = 3);
                    rows.push(Row::new(
                        format!("{name}, twice"),
                        twice,
                        Expect::TooBig(mtu),
                    ));
                }
            }
        }
    }
    // Each is also cut at every byte, which takes long: those of one size are enough.
    let (cut, whole): (Vec<Row>, Vec<Row>) = rows
        .into_iter()
        .partition(|row| row.name.contains(&format!("to {}", world::GUE6)));
    let mut rig = Rig::new();
    check_all(&mut rig, &cut);
    for row in whole {
        crate::table::check(&mut rig, &row).unwrap_or_else(|e| panic!("{}: {e:#}", row.name));
    }
}

#[test]
fn datagrams_options_extensions_and_fragments() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let mtu = largest(family, 1500, 20);
        let plain = packet(family, world::IPIP4);
        let mut add = |name: &str, packet| {
            rows.push(Row::new(name, packet, Expect::TooBig(mtu)));
        };
        add("a datagram", plain.clone().udp((44_100, 53), &[0x5a; 1480]));
        let [first, _] = plain.clone().udp((44_100, 53), &[7; 1600]).in_two(3, 1504);
        add("a first fragment", first);
        if family == Family::V4 {
            let options = plain.clone().with(|p| p.options = vec![1; 40]);
            add("options", options.udp((44_100, 53), &[0x5a; 1480]));
        } else {
            add(
                "extensions",
                plain
                    .clone()
                    .extension(60, 32)
                    .udp((44_100, 53), &[9; 1480]),
            );
            add(
                "an atomic fragment",
                plain
                    .clone()
                    .piece(1, 0, false)
                    .udp((44_100, 53), &[9; 1480]),
            );
        }
        let big = Packet {
            payload: vec![7; 1600],
            ..plain.udp((44_100, 53), &[]).piece(4, 800, true)
        };
        // Its sender knows what was too big by the first one (RFC 1122, 3.2.2).
        let expect = Expect::Drop(DropReason::TooBig);
        rows.push(Row::new("a later fragment", big, expect));
    }
    check_all(&mut Rig::new(), &rows);
}

/// An error about an error could go on for ever.
#[test]
fn an_icmp_error_that_is_too_big_is_dropped() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let kinds: &[u8] = match family {
            Family::V4 => &[3, 4, 5, 11, 12],
            Family::V6 => &[1, 2, 3, 4],
        };
        let quoted = Packet::new(vip(family, world::IPIP4), client(family, 100, 7));
        let quoted = quoted.tcp((80, 44_200), ACK, &[7; 1460]).ip_bytes();
        for kind in kinds {
            let error = packet(family, world::IPIP4).icmp(*kind, 0, [0; 4], &quoted);
            let expect = Expect::Drop(DropReason::TooBig);
            rows.push(Row::new(format!("type {kind}"), error.clone(), expect));
            let behind = match family {
                Family::V4 => error.with(|p| p.options = vec![1; 8]),
                Family::V6 => error.extension(60, 8),
            };
            rows.push(Row::new(
                format!("type {kind} behind options"),
                behind,
                expect,
            ));
        }
    }
    check_all(&mut Rig::new(), &rows);
}
