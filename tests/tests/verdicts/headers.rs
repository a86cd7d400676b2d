//! Every combination of headers that a packet for a backend may have.

use crate::{
    packet::{ACK, DOT1AD, DOT1Q, FIN, Family, PSH, Packet, RST, SYN, client, vip},
    rig::Rig,
    table::{Expect, Row, check_all},
    world::{self, backend},
};

/// Ways of forwarding that move the packet by different distances.
const WAYS: [(u8, u16); 4] = [
    (world::L2, backend::L2),
    (world::L2_VLAN, backend::L2_VLAN),
    (world::IPIP4, backend::IPIP4),
    (world::GUE6_VLAN, backend::GUE6_VLAN),
];
const AUTHENTICATION: u8 = 51;
/// Hop-by-hop, routing, destination options, mobility, HIP, shim6.
const EXTENSIONS: [u8; 6] = [0, 43, 60, 135, 139, 140];

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

#[test]
fn vlan_tags_of_both_kinds() {
    let mut rows = vec![];
    let tags: [&[(u16, u16)]; 7] = [
        &[],
        &[(DOT1Q, 100)],
        &[(DOT1AD, 100)],
        &[(DOT1Q, 0xe064)],
        &[(DOT1AD, 200), (DOT1Q, 100)],
        &[(DOT1Q, 200), (DOT1Q, 100)],
        &[(DOT1AD, 200), (DOT1AD, 0xf064)],
    ];
    for family in Family::BOTH {
        for tags in tags {
            let tagged = |host| packet(family, host).with(|p| p.vlans = tags.to_vec());
            for (host, number) in WAYS {
                let name = format!("tags {tags:x?} to {host}");
                let tcp = tagged(host).tcp((41_000, 80), ACK, b"data");
                rows.push(Row::new(&name, tcp, Expect::Sent(number)));
                let udp = tagged(host).udp((41_000, 53), b"query");
                rows.push(Row::new(
                    &name,
                    udp.with(|p| p.padding = 3),
                    Expect::Sent(number),
                ));
            }
            // A local packet keeps its tags: it is the host's to take them off.
            let local = tagged(world::LOCAL).udp((41_000, 53), b"query");
            rows.push(Row::new(
                format!("tags {tags:x?}, local"),
                local,
                Expect::Sent(backend::LOCAL),
            ));
            let echo = tagged(world::L2).echo_request(7, b"ping");
            rows.push(Row::new(
                format!("tags {tags:x?}, echo"),
                echo,
                Expect::EchoReply,
            ));
        }
        let three = packet(family, world::L2)
            .vlan(DOT1AD, 1)
            .vlan(DOT1Q, 2)
            .vlan(DOT1Q, 3)
            .udp((41_000, 53), b"query");
        // What lies behind two tags is no IP: nobody here reads it, so its bytes are counted from Ethernet on.
        let mut rig = Rig::new();
        let ran = rig.run(&three.frame());
        assert_eq!(
            (ran.action, ran.frame),
            (crate::rig::Action::Pass, three.frame())
        );
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn ipv4_options() {
    let mut rows = vec![];
    for (host, number) in WAYS {
        for words in 1..=10 {
            let options = vec![1; words * 4];
            let with_options = packet(Family::V4, host).with(|p| p.options = options);
            let name = format!("{words} words of options to {host}");
            let tcp = with_options.clone().tcp((41_100, 80), PSH | ACK, b"data");
            rows.push(Row::new(&name, tcp, Expect::Sent(number)));
            let udp = with_options
                .clone()
                .vlan(DOT1Q, 9)
                .udp((41_100, 53), b"query");
            rows.push(Row::new(&name, udp, Expect::Sent(number)));
            let echo = with_options.echo_request(3, b"ping");
            rows.push(Row::new(format!("{name}, echo"), echo, Expect::EchoReply));
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn ipv6_extension_headers() {
    let mut rows = vec![];
    for (host, number) in WAYS {
        let mut add = |name: String, extended: Packet| {
            let tcp = extended.clone().tcp((41_200, 80), ACK, b"data");
            rows.push(Row::new(
                format!("{name} to {host}, TCP"),
                tcp,
                Expect::Sent(number),
            ));
            let udp = extended.clone().udp((41_200, 53), b"query");
            rows.push(Row::new(
                format!("{name} to {host}, UDP"),
                udp,
                Expect::Sent(number),
            ));
            let echo = extended.echo_request(3, b"ping");
            rows.push(Row::new(
                format!("{name} to {host}, echo"),
                echo,
                Expect::EchoReply,
            ));
        };
        let plain = packet(Family::V6, host);
        for kind in EXTENSIONS {
            add(
                format!("extension {kind}"),
                plain.clone().extension(kind, 8),
            );
            add(
                format!("extension {kind}, long"),
                plain.clone().extension(kind, 64),
            );
        }
        for bytes in [12, 16, 24, 32] {
            let authenticated = plain.clone().extension(AUTHENTICATION, bytes);
            add(format!("{bytes} bytes of authentication"), authenticated);
        }
        add(
            "an atomic fragment".into(),
            plain.clone().piece(77, 0, false),
        );
        let mixed = plain
            .clone()
            .extension(0, 16)
            .extension(60, 8)
            .extension(43, 24)
            .piece(78, 0, false)
            .extension(AUTHENTICATION, 24)
            .extension(60, 8);
        add("six of them".into(), mixed);
        let eight = (0..8).fold(plain, |packet, _| packet.extension(60, 8));
        add("eight of them".into(), eight);
    }
    let mut rig = Rig::new();
    check_all(&mut rig, &rows);
}

#[test]
fn tcp_of_every_kind_and_udp() {
    let mut rows = vec![];
    let kinds = [
        ("SYN", SYN, ""),
        ("SYN with data", SYN, "fast open"),
        ("SYN with ECN", SYN | 0xc0, ""),
        ("SYN and ACK", SYN | ACK, ""),
        ("ACK", ACK, ""),
        ("data", PSH | ACK, "data"),
        ("FIN", FIN | ACK, ""),
        ("RST", RST, ""),
        ("RST and ACK", RST | ACK, ""),
        ("urgent", ACK | 0x20, "data"),
    ];
    for family in Family::BOTH {
        for (host, number) in WAYS {
            for ((kind, flags, data), port) in kinds.into_iter().zip(41_300..) {
                let tcp = packet(family, host).tcp((port, 80), flags, data.as_bytes());
                rows.push(Row::new(
                    format!("{kind} to {host}"),
                    tcp,
                    Expect::Sent(number),
                ));
            }
            for bytes in [0, 1, 2, 512, 1200] {
                let udp = packet(family, host).udp((41_400, 53), &vec![0xa5; bytes]);
                rows.push(Row::new(
                    format!("{bytes} by UDP to {host}"),
                    udp,
                    Expect::Sent(number),
                ));
            }
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn fragments_of_either_protocol_in_both_orders() {
    let mut rows = vec![];
    let mut id = 0;
    for family in Family::BOTH {
        for (host, number) in WAYS {
            for reversed in [false, true] {
                let tcp = packet(family, host).tcp((41_500, 80), ACK, &[7; 60]);
                let udp = packet(family, host).udp((41_500, 53), &[7; 60]);
                for whole in [tcp, udp] {
                    id += 1;
                    let mut pieces = whole.in_two(id, 24);
                    if reversed {
                        pieces.reverse();
                    }
                    for piece in pieces {
                        let name = format!("{:?} to {host}", piece.fragment);
                        rows.push(Row::new(&name, piece.clone(), Expect::Sent(number)));
                        let tagged = piece.vlan(DOT1Q, 5);
                        rows.push(Row::new(&name, tagged, Expect::Sent(number)));
                    }
                }
            }
        }
    }
    check_all(&mut Rig::new(), &rows);
}
