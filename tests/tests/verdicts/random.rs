//! Random packets, to VIPs and others, against a model of what must become of them.

use std::{cell::RefCell, net::IpAddr};

use proptest::{
    prelude::{Just, Strategy, any, prop},
    prop_assert, prop_assert_eq, prop_oneof,
    test_runner::{Config, TestRunner},
};
use sluice_ebpf::abi::{BACKEND_FORWARDS, BACKEND_RESOLVED, Backend, DropReason, VIP_RESET, maps};

use crate::{
    packet::{ACK, DOT1AD, DOT1Q, Family, Packet, SYN, TCP, UDP, client, vip},
    rig::{Action, Rig},
    table::{Expect, Row, check, check_cuts},
    world::{self, Service},
};

const CASES: u32 = 1500;
/// Each random change of bytes is one packet; nothing is expected but that it is safe.
const CHANGED: u32 = 4000;
/// Packets that are cut at every byte.
const CUT: u32 = 50;
const ECHO: u8 = 1;
/// What depends on more than the headers of one packet: their rows are in `flows`, `limits`, `too_big`, `challenge` and
/// `cookie`.
const SPECIAL: [u8; 7] = [
    world::MANY,
    world::BY_SOURCE,
    world::SMALL,
    world::LIMITED,
    world::MONITORED,
    world::CHALLENGED,
    world::COOKIE,
];

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config {
        cases,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..Config::default()
    })
}

/// What the packet should meet, by a plain walk through all services.
fn model(rig: &Rig, packet: &Packet, protocol: u8, port: u16) -> Expect {
    let from_port = u16::from_be_bytes([packet.payload[0], packet.payload[1]]);
    let here = rig
        .services
        .iter()
        .filter(|service| service.prefix.contains(&packet.to));
    let Some(length) = here
        .clone()
        .map(|service| service.prefix.prefix_len())
        .max()
    else {
        return Expect::Pass;
    };
    if protocol == ECHO {
        return Expect::EchoReply;
    }
    let takes = |service: &&Service| {
        service.prefix.prefix_len() == length
            && (service.protocol == 0 || service.protocol == protocol)
            && (service.port == 0 || service.port == port)
    };
    let Some(service) = here
        .filter(takes)
        .max_by_key(|service| (service.port, service.protocol))
    else {
        return Expect::Pass;
    };
    if port == 0 || from_port == 0 {
        return Expect::Drop(DropReason::PortZero);
    }
    let [number] = service.backends[..] else {
        if protocol == TCP && service.flags & VIP_RESET != 0 {
            return Expect::Reset;
        }
        return Expect::Drop(DropReason::NoBackend);
    };
    let backend: Backend = rig.get(maps::BACKENDS, number.into());
    if backend.flags & BACKEND_FORWARDS == 0 {
        Expect::Drop(DropReason::NoBackend)
    } else if backend.flags & BACKEND_RESOLVED == 0 {
        Expect::Drop(DropReason::BackendUnresolved)
    } else {
        Expect::Sent(number)
    }
}

/// Addresses of every kind.
fn destination(family: Family) -> impl Strategy<Value = IpAddr> {
    let hosts = (0..30u8).prop_filter("one backend", |host| !SPECIAL.contains(host));
    let prefix = world::PREFIXES[usize::from(family == Family::V6)]
        .parse()
        .unwrap();
    prop_oneof![
        4 => hosts.prop_map(move |host| vip(family, host)),
        1 => any::<u8>().prop_map(move |host| world::in_prefix(prefix, host)),
        1 => any::<(u8, u8)>().prop_map(move |(network, host)| client(family, network, host)),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop::sample::select(Family::BOTH.to_vec())
}

/// A packet with its protocol and port.
fn packet() -> impl Strategy<Value = (Packet, u8, u16)> {
    family()
        .prop_flat_map(|family| (Just(family), destination(family)))
        .prop_flat_map(|(family, to)| {
            let tags = prop::collection::vec(
                (prop::sample::select(vec![DOT1Q, DOT1AD]), any::<u16>()),
                0..3,
            );
            let port = prop_oneof![3 => prop::sample::select(vec![80u16, 53]), 1 => 0..12u16, 1 => any::<u16>()];
            let extensions = prop::collection::vec(
                (prop::sample::select(vec![0u8, 43, 60, 135]), 1..8usize),
                0..5,
            );
            (
                (any::<(u8, u8)>(), tags, any::<u8>(), any::<u8>(), 0..11usize),
                (extensions, prop::sample::select(vec![TCP, UDP, ECHO]), any::<u16>(), port),
                (any::<bool>(), prop::collection::vec(any::<u8>(), 0..600), 0..20usize),
            )
                .prop_map(move |(ip, l4, (syn, data, padding))| {
                    let ((network, host), vlans, class, ttl, option_words) = ip;
                    let (extensions, protocol, from_port, port) = l4;
                    let plain = Packet::new(client(family, network, host), to).with(|p| {
                        p.vlans = vlans;
                        (p.class, p.ttl, p.padding) = (class, ttl, padding);
                        match family {
                            Family::V4 => p.options = vec![1; option_words * 4],
                            Family::V6 => {
                                p.extensions = extensions
                                    .iter()
                                    .map(|(kind, units)| (*kind, units * 8))
                                    .collect();
                                // Hop-by-hop options stand first or nowhere (RFC 8200, 4.1).
                                for (kind, _) in p.extensions.iter_mut().skip(1) {
                                    *kind = (*kind).max(43);
                                }
                            }
                        }
                    });
                    let packet = match protocol {
                        TCP => plain.tcp((from_port, port), if syn { SYN } else { ACK }, &data),
                        UDP => plain.udp((from_port, port), &data),
                        _ => plain.echo_request(from_port, &data),
                    };
                    (packet, protocol, port)
                })
        })
}

#[test]
fn random_packets_meet_what_the_model_says() {
    let rig = RefCell::new(Rig::new());
    let mut runner = runner(CASES);
    runner
        .run(&packet(), |(packet, protocol, port)| {
            let mut rig = rig.borrow_mut();
            let expect = model(&rig, &packet, protocol, port);
            let row = Row::new(format!("{protocol} {port}"), packet, expect);
            let whole = check(&mut rig, &row);
            prop_assert!(whole.is_ok(), "{expect:?}: {:#}", whole.unwrap_err());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Whatever the bytes are: what leaves has a whole packet of a VIP in it, and nothing that is cut leaves.
#[test]
fn changed_and_cut_packets_do_no_harm() {
    let rig = RefCell::new(Rig::new());
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let cut = any::<prop::sample::Index>();
    let mut runner = runner(CHANGED);
    runner
        .run(&(packet(), changes, cut), |((packet, ..), changes, cut)| {
            let mut rig = rig.borrow_mut();
            let mut frame = packet.frame();
            for (at, to) in changes {
                // Headers are what is read: data is changed less often.
                let at = at.index(frame.len().min(120));
                frame[at] = to;
            }
            let whole = rig.run(&frame);
            let start = packet.ip_offset();
            if matches!(whole.action, Action::Tx | Action::Redirect)
                && frame[..start] == packet.frame()[..start]
            {
                let ip = &frame[start..];
                let field = |at: usize| usize::from(u16::from_be_bytes([ip[at], ip[at + 1]]));
                let length = if ip[0] >> 4 == 4 {
                    field(2)
                } else {
                    40 + field(4)
                };
                prop_assert!(length <= ip.len(), "{length} of {}", ip.len());
                let kept = 14 + cut.index(start + length - 14);
                let ran = rig.run(&frame[..kept]);
                prop_assert!(matches!(ran.action, Action::Pass | Action::Drop), "{kept}");
            }
            if whole.action == Action::Pass {
                prop_assert_eq!(whole.frame, frame);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn random_packets_are_cut_at_every_byte() {
    let rig = RefCell::new(Rig::new());
    let mut runner = runner(CUT);
    runner
        .run(&packet(), |(packet, protocol, port)| {
            let mut rig = rig.borrow_mut();
            let expect = model(&rig, &packet, protocol, port);
            let ours = rig
                .services
                .iter()
                .any(|service| service.prefix.contains(&packet.to));
            let row = Row::new(format!("{protocol} {port}"), packet, expect);
            let row = if ours { row.cut_is_dropped() } else { row };
            let cuts = check_cuts(&mut rig, &row);
            prop_assert!(cuts.is_ok(), "{:#}", cuts.unwrap_err());
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
