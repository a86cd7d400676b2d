//! What makes no sense: each check by itself, off, counting and dropping, and what it leaves alone.

use std::net::IpAddr;

use sluice_ebpf::{
    abi::{Check, DropReason},
    sanity::ENFORCED_BY_DEFAULT,
};

use crate::{
    packet::{ACK, FIN, Family, PSH, Packet, RST, SYN, TCP, UDP, client, vip},
    rig::{Action, Counted, Rig},
    table::{Expect, Row, check_all},
    world::{self, backend},
};

const URG: u8 = 32;
const ALL_CHECKS: u32 = u32::MAX;

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

/// Packets for which a check drops; those that no check drops by default are made to be.
pub(crate) fn packets(rig: &mut Rig, reason: DropReason, family: Family) -> Vec<Packet> {
    let plain = packet(family, world::L2);
    let from = |address: &str| Packet {
        from: address.parse().expect("an address"),
        ..plain.clone()
    };
    let of_each_kind = |plain: Packet| {
        [
            plain.clone().tcp((45_600, 80), SYN, b""),
            plain.clone().tcp((45_600, 80), ACK, b"data"),
            plain.clone().udp((45_600, 53), b"query"),
            plain.echo_request(1, b"ping"),
        ]
    };
    match reason {
        DropReason::TcpFlags => [
            0,
            0xc0,
            FIN,
            PSH,
            URG,
            FIN | PSH | URG,
            SYN | FIN,
            SYN | RST,
            SYN | FIN | ACK,
            FIN | RST | ACK,
            0x3f,
        ]
        .into_iter()
        .map(|flags| plain.clone().tcp((45_500, 80), flags, b""))
        .collect(),
        DropReason::Land => of_each_kind(Packet::new(plain.to, plain.to)).into(),
        DropReason::SourceInvalid => {
            let sources: &[&str] = match family {
                Family::V4 => &[
                    "0.0.0.0",
                    "127.0.0.1",
                    "224.0.0.1",
                    "239.1.2.3",
                    "255.255.255.255",
                ],
                Family::V6 => &["::", "::1", "::ffff:198.51.100.7", "ff02::1"],
            };
            sources
                .iter()
                .flat_map(|source| of_each_kind(from(source)))
                .collect()
        }
        DropReason::SourceVip => {
            let other = vip(family, world::GUE4).to_string();
            let in_prefix: IpAddr = match family {
                Family::V4 => [203, 0, 113, 200].into(),
                Family::V6 => [0x2001, 0xdb8, 2, 9, 0, 0, 0, 1].into(),
            };
            [other, in_prefix.to_string()]
                .iter()
                .flat_map(|source| of_each_kind(from(source)))
                .collect()
        }
        DropReason::PortZero => vec![
            plain.clone().tcp((0, 80), SYN, b""),
            plain.udp((0, 53), b"query"),
            packet(family, world::ALL_PORTS).tcp((45_700, 0), ACK, b""),
            packet(family, world::CROWDED).udp((45_700, 0), b"query"),
        ],
        DropReason::SynData => {
            set_checks(rig, &plain, ALL_CHECKS, 0);
            vec![plain.tcp((45_800, 80), SYN, b"fast open")]
        }
        DropReason::FragmentTiny => [8, 16]
            .into_iter()
            .map(|bytes| {
                let tcp = plain.clone().tcp((45_900, 80), SYN, b"");
                tcp.with(|p| p.payload.truncate(bytes)).piece(1, 0, true)
            })
            .collect(),
        DropReason::FragmentOverlap => [true, false]
            .into_iter()
            .map(|more| plain.clone().raw(TCP, &[7; 24]).piece(2, 8, more))
            .collect(),
        DropReason::FragmentLength => vec![
            plain.clone().raw(UDP, &[7; 13]).piece(3, 24, true),
            plain.clone().raw(UDP, &[]).piece(4, 24, false),
            plain.clone().raw(UDP, &[7; 100]).piece(5, 65_504, false),
            plain.udp((46_000, 53), &[7; 5]).piece(6, 0, true),
        ],
        other => panic!("{other:?} is no check's"),
    }
}

/// What the VIPs of a packet's address do about each check.
fn set_checks(rig: &mut Rig, packet: &Packet, enforce: u32, monitor: u32) {
    for (number, service) in (1..).zip(rig.services.clone()) {
        if service.prefix.contains(&packet.to) {
            rig.change_vip(number, |vip| {
                (vip.sanity_enforce, vip.sanity_monitor) = (enforce, monitor);
            });
        }
    }
}

#[test]
fn a_check_that_is_off_or_only_counts_drops_nothing() {
    let mut rig = Rig::new();
    for check in Check::ALL {
        for family in Family::BOTH {
            let reason = Check::reason(check.bit());
            for packet in packets(&mut rig, reason, family) {
                for (monitor, counted) in [(0, 0), (check.bit(), 1)] {
                    set_checks(&mut rig, &packet, 0, monitor);
                    let before = rig.counts(packet.to);
                    let ran = rig.run(&packet.frame());
                    assert_eq!(ran.action, Action::Tx, "{check:?}: {packet:?}");
                    let moved = rig.counts(packet.to) - before;
                    let monitored: u64 = (1..200)
                        .map(|vip| moved.of(Counted::Monitored(vip, reason)))
                        .sum();
                    assert_eq!(monitored, counted, "{check:?}: {packet:?}");
                }
            }
        }
    }
}

#[test]
fn other_checks_do_not_drop_what_one_is_for() {
    let mut rig = Rig::new();
    for check in Check::ALL {
        for family in Family::BOTH {
            for packet in packets(&mut rig, Check::reason(check.bit()), family) {
                // Of a VIP as a source both `land` and this are true.
                let others = ALL_CHECKS & !check.bit() & !Check::SourceVip.bit();
                set_checks(&mut rig, &packet, others, 0);
                let ran = rig.run(&packet.frame());
                assert_eq!(ran.action, Action::Tx, "{check:?}: {packet:?}");
            }
        }
    }
}

#[test]
fn what_is_strange_but_honest_passes() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let plain = packet(family, world::L2);
        let mut sent = |name: &str, packet: Packet| {
            rows.push(Row::new(name, packet, Expect::Sent(backend::L2)));
        };
        sent(
            "TCP Fast Open",
            plain.clone().tcp((46_100, 80), SYN, b"GET /"),
        );
        sent(
            "a SYN with urgent data",
            plain.clone().tcp((46_101, 80), SYN | URG, b""),
        );
        let whole_header = plain.clone().tcp((46_102, 80), ACK, &[7; 60]);
        for piece in whole_header.in_two(7, 24) {
            sent("a first fragment with a whole header", piece);
        }
        for piece in plain.udp((46_103, 53), &[7; 60]).in_two(8, 8) {
            sent("a first fragment with a UDP header alone", piece);
        }
    }
    assert_eq!(ENFORCED_BY_DEFAULT & Check::SynData.bit(), 0);
    check_all(&mut Rig::new(), &rows);
}
