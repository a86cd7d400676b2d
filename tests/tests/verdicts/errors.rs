//! ICMP about our flows, and echo.

use sluice_ebpf::abi::DropReason;

use crate::{
    decode,
    packet::{ACK, DOT1AD, DOT1Q, Family, Packet, client, vip},
    rig::{Action, Rig},
    table::{Expect, Row, check_all},
    world::{self, backend},
};

/// Types of errors with the codes that each has.
const ERRORS_V4: [(u8, u8); 5] = [(3, 15), (4, 0), (5, 3), (11, 1), (12, 2)];
const ERRORS_V6: [(u8, u8); 4] = [(1, 6), (2, 0), (3, 1), (4, 2)];

fn kinds(family: Family) -> impl Iterator<Item = (u8, u8)> {
    let kinds = match family {
        Family::V4 => &ERRORS_V4[..],
        Family::V6 => &ERRORS_V6[..],
    };
    kinds
        .iter()
        .flat_map(|(kind, last)| (0..=*last).map(move |code| (*kind, code)))
}

/// A router on the way from a VIP to a client.
fn from_router(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 30, 1), vip(family, host))
}

/// What a VIP's backend sent to a client.
fn answer(family: Family, host: u8) -> Packet {
    Packet::new(vip(family, host), client(family, 100, 7)).with(|p| p.ttl = 1)
}

/// The first bytes of a packet: all of its headers up to the transport's, and `bytes` of that.
fn quote(packet: &Packet, bytes: usize) -> Vec<u8> {
    let mut quoted = packet.ip_bytes();
    quoted.truncate(quoted.len() - packet.payload.len() + bytes);
    quoted
}

#[test]
fn every_error_is_steered_by_eight_bytes_of_its_quote() {
    let mut rows = vec![];
    for family in Family::BOTH {
        for (kind, code) in kinds(family) {
            for (host, number) in [(world::L2, backend::L2), (world::IPIP6, backend::IPIP6)] {
                let tcp = answer(family, host).tcp((80, 43_000), ACK, &[7; 1000]);
                let udp = answer(family, host).udp((53, 43_000), &[7; 400]);
                for (quoted, what) in [(tcp, "TCP"), (udp, "UDP")] {
                    let quoted = quote(&quoted, 8);
                    let error = from_router(family, host).icmp(kind, code, [0, 0, 5, 0], &quoted);
                    let name = format!("type {kind} code {code} about {what} to {host}");
                    rows.push(Row::new(name, error, Expect::Sent(number)));
                }
            }
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn quotes_of_every_shape() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let (kind, code) = kinds(family).next().unwrap();
        let (host, number) = (world::GUE4, backend::GUE4);
        let mut add = |name: &str, packet| rows.push(Row::new(name, packet, Expect::Sent(number)));
        let about = |quoted: &[u8]| from_router(family, host).icmp(kind, code, [0; 4], quoted);
        let plain = answer(family, host).tcp((80, 43_100), ACK, &[7; 100]);
        add("the whole packet", about(&plain.ip_bytes()));
        add("nine bytes", about(&quote(&plain, 9)));
        let [first, _] = answer(family, host)
            .udp((53, 43_100), &[7; 60])
            .in_two(8, 24);
        add("a first fragment", about(&first.ip_bytes()));
        add("tagged", about(&quote(&plain, 8)).vlan(DOT1Q, 7));
        add(
            "tagged twice",
            about(&quote(&plain, 8)).vlan(DOT1AD, 7).vlan(DOT1Q, 8),
        );
        if family == Family::V4 {
            let options = |packet: Packet| packet.with(|p| p.options = vec![1; 12]);
            add(
                "options in the quote",
                about(&quote(&options(plain.clone()), 8)),
            );
            add(
                "options in both",
                options(about(&quote(&options(plain.clone()), 8))),
            );
        } else {
            let extended = plain.clone().extension(0, 8).extension(60, 16);
            add("extensions in the quote", about(&quote(&extended, 8)));
            let both = about(&quote(&extended, 8)).extension(0, 8);
            add("extensions in both", both);
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn errors_about_nothing_of_ours_are_dropped() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let host = world::L2;
        let (kind, code) = kinds(family).next().unwrap();
        let mut add = |name: &str, quoted: &[u8]| {
            let error = from_router(family, host).icmp(kind, code, [0; 4], quoted);
            rows.push(Row::new(name, error, Expect::Drop(DropReason::IcmpQuote)));
        };
        let plain = answer(family, host).tcp((80, 43_200), ACK, &[]);
        add("no quote", &[]);
        add(
            "half an IP header",
            &plain.ip_bytes()[..family.header_bytes() / 2],
        );
        add("no transport", &quote(&plain, 0));
        add("seven bytes of transport", &quote(&plain, 7));
        let other = Packet::new(client(family, 1, 1), client(family, 2, 2));
        add(
            "a packet from elsewhere",
            &other.tcp((80, 43_200), ACK, &[]).ip_bytes(),
        );
        let neighbour = answer(family, world::IPIP4).tcp((80, 43_200), ACK, &[]);
        add("a packet of another VIP", &neighbour.ip_bytes());
        add(
            "another protocol",
            &answer(family, host).raw(47, &[0; 24]).ip_bytes(),
        );
        add(
            "an echo reply",
            &answer(family, host).echo_request(1, b"ping").ip_bytes(),
        );
        let [_, later] = answer(family, host)
            .udp((53, 43_200), &[7; 60])
            .in_two(8, 24);
        add("a later fragment", &later.ip_bytes());
        let (strange, other) = match family {
            Family::V4 => (Family::V6, 0x60),
            Family::V6 => (Family::V4, 0x45),
        };
        let strange = answer(strange, host)
            .tcp((80, 43_200), ACK, &[7; 40])
            .ip_bytes();
        assert_eq!(strange[0] & 0xf0, other & 0xf0);
        add("the other family", &strange);
        add("noise", &[0xa5; 64]);
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn errors_about_flows_of_the_host_itself_pass() {
    let mut rows = vec![];
    for family in Family::BOTH {
        let host = world::L2;
        let (kind, code) = kinds(family).next().unwrap();
        let port = answer(family, host).tcp((81, 43_200), ACK, &[]);
        let protocol = answer(family, host).udp((80, 43_200), &[]);
        for (name, quoted) in [
            ("a port that is no VIP", port),
            ("a protocol that is no VIP", protocol),
        ] {
            let error = from_router(family, host).icmp(kind, code, [0; 4], &quoted.ip_bytes());
            rows.push(Row::new(name, error, Expect::Pass).cut_is_dropped());
        }
    }
    check_all(&mut Rig::new(), &rows);
}

#[test]
fn echo_is_answered_for_every_vip() {
    let mut rows = vec![];
    for family in Family::BOTH {
        // Whatever becomes of the VIP's flows.
        for host in [
            world::L2,
            world::GUE6,
            world::LOCAL,
            world::EMPTY,
            world::UNRESOLVED,
        ] {
            for bytes in [0, 1, 2, 7, 56, 1400] {
                let data: Vec<u8> = (0..=255).cycle().take(bytes).collect();
                let echo = Packet::new(client(family, 100, 7), vip(family, host));
                let name = format!("{bytes} bytes to {host}");
                let echo = echo.with(|p| p.class = 0x2a).echo_request(77, &data);
                rows.push(Row::new(&name, echo.clone(), Expect::EchoReply));
                rows.push(Row::new(
                    &name,
                    echo.with(|p| p.padding = 5),
                    Expect::EchoReply,
                ));
            }
        }
    }
    for prefix in world::PREFIXES {
        let to = world::in_prefix(prefix.parse().unwrap(), 200);
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let echo = Packet::new(client(family, 100, 7), to).echo_request(1, b"ping");
        rows.push(Row::new(
            "to an address of a prefix",
            echo,
            Expect::EchoReply,
        ));
    }
    check_all(&mut Rig::new(), &rows);
}

/// The checksum is changed in place: every id makes it another.
#[test]
fn checksums_of_echo_replies_are_right_for_every_value() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let plain = Packet::new(client(family, 100, 7), vip(family, world::L2));
        for id in 0..=u16::MAX {
            let echo = plain
                .clone()
                .with(|p| p.ttl = id.to_le_bytes()[0])
                .echo_request(id, b"ping");
            let ran = rig.run(&echo.frame());
            assert_eq!(ran.action, Action::Tx, "{id}");
            decode::echo_reply(&echo, &ran.frame).unwrap_or_else(|error| panic!("{id}: {error:#}"));
        }
    }
}
