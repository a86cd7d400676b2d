//! Which VIP a packet is for: prefixes, ports, protocols, and addresses with many services.

use crate::{
    packet::{ACK, Family, Packet, client, vip},
    rig::Rig,
    table::{Expect, Row, check_all},
    world::{self, backend},
};

#[test]
fn ports_and_protocols() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let to = |host| Packet::new(client(family, 100, 7), vip(family, host));
        let mut add = |name: String, packet, number| {
            rows.push(Row::new(name, packet, Expect::Sent(number)));
        };
        for port in [1, 80, 443, u16::MAX] {
            let packet = to(world::ALL_PORTS).tcp((48_000, port), ACK, b"data");
            add(format!("every port: {port}"), packet, backend::IPIP4);
            let packet = to(world::CROWDED).udp((48_000, port), b"query");
            add(
                format!("every port beside others: {port}"),
                packet,
                backend::GUE6,
            );
        }
        for port in 1..10 {
            let packet = to(world::CROWDED).tcp((48_000, port), ACK, b"data");
            add(
                format!("one of many services: {port}"),
                packet,
                backend::GUE4,
            );
        }
        let either = to(world::ANY_PROTOCOL);
        let tcp = either.clone().tcp((48_000, 53), ACK, b"query");
        add("any protocol by TCP".into(), tcp, backend::IPIP4);
        add(
            "any protocol by UDP".into(),
            either.udp((48_000, 53), b"query"),
            backend::IPIP4,
        );
        let [_, later] = to(world::ALL_PORTS)
            .tcp((48_000, 80), ACK, &[7; 60])
            .in_two(5, 24);
        add(
            "a later fragment to every port".into(),
            later,
            backend::IPIP4,
        );
        let [_, later] = to(world::CROWDED).udp((48_000, 80), &[7; 60]).in_two(5, 24);
        add(
            "a later fragment to many services".into(),
            later,
            backend::GUE6,
        );
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn whole_prefixes_and_what_is_nested_in_them() {
    let mut rows = vec![];
    for prefix in world::PREFIXES {
        let prefix = prefix.parse().unwrap();
        for host in [0, 1, 100, 255] {
            let to = world::in_prefix(prefix, host);
            let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
            let packet = Packet::new(client(family, 100, 7), to);
            for port in [1, 80, 53] {
                let tcp = packet.clone().tcp((48_100, port), ACK, b"data");
                let expect = Expect::Sent(backend::IPIP6);
                rows.push(Row::new(format!("{to} TCP {port}"), tcp, expect));
                let udp = packet.clone().udp((48_100, port), b"query");
                rows.push(Row::new(format!("{to} UDP {port}"), udp, expect));
            }
        }
        // The longest prefix alone decides.
        let to = world::in_prefix(prefix, world::NESTED);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let packet = Packet::new(client(family, 100, 7), to);
        let nested = packet.clone().tcp((48_100, 80), ACK, b"data");
        rows.push(Row::new("nested", nested, Expect::Sent(backend::GUE4)));
        let other = packet.tcp((48_100, 81), ACK, b"data");
        rows.push(Row::new("another port of it", other, Expect::Pass).cut_is_dropped());
    }
    check_all(&mut Rig::new(), &rows);
}
