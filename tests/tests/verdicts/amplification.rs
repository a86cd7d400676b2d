//! Answers that nobody asked for: each preset, its questions, what a backend asked for, and the fragments of an answer.

use sluice_ebpf::{
    abi::{DropReason, FILTER_AMPLIFICATION, Policy, Replies, maps},
    amplification::{Preset, mark},
    decap::Prefix,
};

use crate::{
    packet::{Family, Packet, client, vip},
    rig::{Action, Counted, Rig},
    table::{Expect, Row, check_all, check_once},
    vip_index::words,
    world::{self, backend},
};

/// An answer of DNS.
pub(crate) const ANSWER: [u8; 16] = [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
const QUESTION: [u8; 12] = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// Puts the VIPs of a host under a policy with these presets.
pub(crate) fn presets(rig: &mut Rig, host: u8, enforce: u64, monitor: u64) {
    let policy = Policy {
        amplification_enforce: enforce,
        amplification_monitor: monitor,
        ..Policy::default()
    };
    put(rig, host, policy);
}

fn put(rig: &mut Rig, host: u8, policy: Policy) {
    rig.put(maps::POLICIES, world::ENFORCED.into(), policy);
    for family in Family::BOTH {
        for number in rig.numbers(vip(family, host)) {
            rig.change_vip(number, |vip| {
                vip.policy = world::ENFORCED;
                vip.filter = FILTER_AMPLIFICATION;
            });
        }
    }
}

fn from_port(family: Family, port: u16, payload: &[u8]) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, world::L2)).udp((port, 53), payload)
}

/// A payload that begins as the answers of a port do.
fn answer(port: u16) -> [u8; 32] {
    let mut payload = [0; 32];
    payload[..8].copy_from_slice(&mark(port).expect("a preset").value.to_be_bytes());
    payload
}

#[test]
fn each_preset_drops_its_answers_and_no_other_does() {
    let mut rig = Rig::new();
    for preset in Preset::ALL {
        let bit = 1u64 << *preset as u32;
        for family in Family::BOTH {
            for port in preset.ports() {
                let name = format!("{} from port {port}", preset.word());
                let packet = from_port(family, *port, &answer(*port));
                presets(&mut rig, world::L2, bit, 0);
                let drop = Expect::Drop(DropReason::Amplification);
                let dropped = Row::new(&name, packet.clone(), drop);
                check_once(&mut rig, &dropped).unwrap_or_else(|error| panic!("{name}: {error:#}"));
                presets(&mut rig, world::L2, !bit, 0);
                let sent = Row::new(&name, packet, Expect::Sent(backend::L2));
                check_once(&mut rig, &sent).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            }
        }
    }
}

#[test]
fn questions_short_datagrams_tcp_and_other_vips_are_left_alone() {
    let mut rig = Rig::new();
    presets(&mut rig, world::L2, u64::MAX, 0);
    let mut rows = vec![];
    for family in Family::BOTH {
        let mut sent = |name: &str, packet: Packet| {
            rows.push(Row::new(name, packet, Expect::Sent(backend::L2)));
        };
        sent("a question", from_port(family, 53, &QUESTION));
        sent("a client of NTP", from_port(family, 123, &[0x23; 48]));
        sent("one byte", from_port(family, 53, &[0xff]));
        sent("nothing", from_port(family, 1900, &[]));
        sent("QUIC from port 1900", from_port(family, 1900, &[0xc3; 64]));
        sent("another port", from_port(family, 54, &ANSWER));
        let tcp = Packet::new(client(family, 100, 7), vip(family, world::L2));
        sent("TCP", tcp.tcp((53, 80), crate::packet::ACK, &ANSWER));
        let other = Packet::new(client(family, 100, 7), vip(family, world::IPIP4));
        let other = other.udp((53, 53), &ANSWER);
        rows.push(Row::new("another VIP", other, Expect::Sent(backend::IPIP4)));
    }
    check_all(&mut rig, &rows);
}

#[test]
fn what_a_backend_asked_for_passes() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let asked = client(family, 100, 7);
        let mut policy = Policy {
            amplification_enforce: u64::MAX,
            ..Policy::default()
        };
        policy.replies[15] = Replies {
            prefix: Prefix {
                bits: words(asked),
                mask: [u64::MAX; 2],
            },
            presets: 1 << Preset::Dns as u32,
        };
        put(&mut rig, world::L2, policy);
        let packet =
            |from, port| Packet::new(from, vip(family, world::L2)).udp((port, 53), &answer(port));
        let drop = Expect::Drop(DropReason::Amplification);
        let rows = [
            Row::new("asked", packet(asked, 53), Expect::Sent(backend::L2)),
            Row::new("another preset", packet(asked, 123), drop),
            Row::new("a stranger", packet(client(family, 101, 7), 53), drop),
        ];
        check_all(&mut rig, &rows);
    }
}

#[test]
fn later_fragments_go_with_the_first() {
    for family in Family::BOTH {
        let mut rig = Rig::new();
        let long = [&ANSWER[..], &[7; 600]].concat();
        let [first, later] = from_port(family, 53, &long).in_two(77, 200);
        let sent = |packet: &Packet| Row::new("sent", packet.clone(), Expect::Sent(backend::L2));
        let drop = Expect::Drop(DropReason::Amplification);
        let dropped = |packet: &Packet| Row::new("dropped", packet.clone(), drop);
        presets(&mut rig, world::L2, u64::MAX, 0);
        check_all(&mut rig, &[dropped(&first), dropped(&later)]);
        let [_, of_another] = from_port(family, 53, &long).in_two(78, 200);
        check_all(&mut rig, &[sent(&of_another)]);
    }
}

#[test]
fn monitor_mode_counts_and_passes() {
    let mut rig = Rig::new();
    presets(&mut rig, world::L2, 0, u64::MAX);
    for family in Family::BOTH {
        let packet = from_port(family, 53, &ANSWER);
        let before = rig.counts(packet.to);
        assert_eq!(rig.run(&packet.frame()).action, Action::Tx);
        let moved = rig.counts(packet.to) - before;
        let monitored: u64 = rig
            .numbers(packet.to)
            .into_iter()
            .map(|vip| moved.of(Counted::Monitored(vip, DropReason::Amplification)))
            .sum();
        assert_eq!(monitored, 1);
    }
}
