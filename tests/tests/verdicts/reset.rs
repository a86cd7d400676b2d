//! TCP for a VIP whose pool has no backend, and wants its clients to know.

use sluice_ebpf::abi::DropReason;

use crate::{
    packet::{ACK, DOT1AD, DOT1Q, FIN, Family, PSH, Packet, RST, SYN, client, vip},
    rig::Rig,
    table::{Expect, Row, check_all},
    world,
};

fn packet(family: Family) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, world::RESET))
}

#[test]
fn tcp_that_nobody_takes_is_reset() {
    let mut rig = Rig::new();
    let mut rows = vec![];
    for family in Family::BOTH {
        for flags in [SYN, ACK, ACK | PSH, ACK | FIN, SYN | ACK] {
            for bytes in [0, 1, 7, 64, 1400] {
                let data = vec![7; bytes];
                let plain = packet(family);
                let name = format!("flags {flags:#x}, {bytes} bytes");
                for (how, packet) in [
                    ("", plain.clone()),
                    (", tagged", plain.clone().vlan(DOT1Q, 0x6005)),
                    (", twice", plain.clone().vlan(DOT1AD, 3).vlan(DOT1Q, 5)),
                    (", padded", plain.with(|p| p.padding = 9)),
                ] {
                    let packet = packet.tcp((44_000, 80), flags, &data);
                    rows.push(Row::new(format!("{name}{how}"), packet, Expect::Reset));
                }
            }
        }
    }
    check_all(&mut rig, &rows);
}

#[test]
fn what_is_no_tcp_or_a_reset_itself_or_a_fragment_is_dropped() {
    let mut rig = Rig::new();
    let mut rows = vec![];
    for family in Family::BOTH {
        let mut packets = vec![
            packet(family).tcp((44_000, 80), RST, &[]),
            packet(family).tcp((44_000, 80), RST | ACK, &[]),
            packet(family).udp((44_000, 53), b"query"),
        ];
        packets.extend(
            packet(family)
                .tcp((44_000, 80), ACK, &[7; 60])
                .in_two(1, 24),
        );
        let drop = Expect::Drop(DropReason::NoBackend);
        rows.extend(
            packets
                .into_iter()
                .map(|packet| Row::new("not to be answered", packet, drop)),
        );
    }
    check_all(&mut rig, &rows);
}
