//! Every way of forwarding, for both families.

use crate::{
    decode::spread_of,
    packet::{ACK, Family, Packet, SYN, client, vip},
    rig::Rig,
    table::{Expect, Row, check_all},
    world::{self, backend},
};

/// Hosts and the backends that they have, one for each way.
const WAYS: [(&str, u8, u16); 10] = [
    ("l2", world::L2, backend::L2),
    ("ipip to IPv4", world::IPIP4, backend::IPIP4),
    ("ipip to IPv6", world::IPIP6, backend::IPIP6),
    ("gue to IPv4", world::GUE4, backend::GUE4),
    ("gue to IPv6", world::GUE6, backend::GUE6),
    ("local", world::LOCAL, backend::LOCAL),
    (
        "l2 to another interface",
        world::REDIRECT,
        backend::REDIRECT,
    ),
    ("l2 with a tag", world::L2_VLAN, backend::L2_VLAN),
    ("ipip with a tag", world::IPIP4_VLAN, backend::IPIP4_VLAN),
    (
        "gue with a tag to another interface",
        world::GUE6_VLAN,
        backend::GUE6_VLAN,
    ),
];

#[test]
fn each_way_of_forwarding() {
    let mut rows = vec![];
    for family in Family::BOTH {
        for (way, host, number) in WAYS {
            let packet = Packet::new(client(family, 100, 7), vip(family, host));
            let expect = Expect::Sent(number);
            let mut add = |what: &str, packet| {
                rows.push(Row::new(format!("{way}, {what}"), packet, expect));
            };
            add("SYN", packet.clone().tcp((40_001, 80), SYN, &[]));
            add(
                "data",
                packet.clone().tcp((40_002, 80), ACK, b"GET / HTTP/1.1\r\n"),
            );
            add("UDP", packet.clone().udp((40_003, 53), b"query"));
            add("an empty datagram", packet.clone().udp((40_004, 53), b""));
            let marked = packet.with(|p| p.class = 0b1011_1010);
            add(
                "with DSCP and ECN",
                marked.clone().udp((40_005, 53), b"query"),
            );
            let padded = marked.with(|p| p.padding = 9);
            add("with padding", padded.udp((40_006, 53), b"query"));
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn flows_spread_over_tunnel_sources() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        for host in [world::IPIP4, world::IPIP6, world::GUE4, world::GUE6] {
            let mut sources: Vec<_> = (1000..1100)
                .map(|port| {
                    let packet = Packet::new(client(family, 100, 7), vip(family, host));
                    let ran = rig.run(&packet.udp((port, 53), b"").frame());
                    spread_of(&ran.frame).unwrap()
                })
                .collect();
            sources.sort();
            // Ports of the inner packet are no spread: where there is no outer port, addresses alone must differ.
            if [world::IPIP4, world::IPIP6].contains(&host) {
                sources.dedup_by_key(|(address, _)| *address);
            } else {
                sources.dedup_by_key(|(_, port)| *port);
            }
            assert!(
                sources.len() > 90,
                "{family:?} {host}: {} sources of 100 flows",
                sources.len()
            );
        }
    }
}
