//! Limits per source: exact ones in both tables, the policy's for hosts and networks, and what they leave alone.

use std::net::IpAddr;

use anyhow::Result;
use ipnet::IpNet;
use sluice_ebpf::{
    abi::{
        ANY_VIP, Class, DropReason, EXACT_ESTABLISHED, EXACT_V4, EXACT_V6, JIFFY_BITS,
        LIMIT_MONITOR, Limit, Limiter, Policy, maps,
    },
    exact::{self, V6_WAYS, v4_index, v6_filter_index, v6_hash},
    flow::{State, WAYS},
    vip::masked,
};

use crate::{
    flows::{entry, write_entry},
    packet::{ACK, Family, Packet, SYN, client, vip},
    rig::{Counted, Rig},
    table::{Expect, Row, check_once},
    vip_index::words,
    world::{self, backend},
};

/// Packets that a source may send at once: so few that the first opens the gate before the sketch.
const BURST: u64 = 3;
/// Packets of an exact limit around another.
const OUTER_BURST: u64 = 5;
const ALL_CLASSES: u8 = 0b1_1111;
/// Buckets of the IPv6 table, and the block of the IPv4 table that is written.
const V6_BUCKETS: u64 = 32_768;
const BLOCK: u32 = 5;

/// A bucket of `burst` packets that refills in days.
const fn limiter(burst: u64) -> Limiter {
    let cost = 1 << (JIFFY_BITS + 24);
    Limiter {
        cost,
        allowance: cost * burst,
    }
}

/// An exact limit to be written.
#[derive(Clone, Copy)]
pub(crate) struct Exact {
    pub(crate) prefix: IpNet,
    /// Its number, and that of the one that covers it.
    number: u32,
    next: u32,
    burst: u64,
    vip: u16,
    classes: u8,
    mode: u8,
}

impl Exact {
    /// For one address, whatever it sends.
    pub(crate) fn host(address: IpAddr) -> Self {
        Self::prefix(address.into(), 1)
    }

    fn prefix(prefix: IpNet, number: u32) -> Self {
        Self {
            prefix,
            number,
            next: 0,
            burst: BURST,
            vip: ANY_VIP,
            classes: ALL_CLASSES,
            mode: 0,
        }
    }
}

pub(crate) fn limit_exactly(rig: &mut Rig, exact: Exact) {
    let length = exact.prefix.prefix_len();
    let v6 = exact.prefix.addr().is_ipv6();
    let prefix = masked(words(exact.prefix.network()), length, v6);
    let limit = Limit {
        prefix,
        packets: limiter(exact.burst),
        next: exact.next,
        vip: exact.vip,
        classes: exact.classes,
        length_and_mode: exact.mode | if v6 { length - 1 } else { length + 95 },
        ..Limit::default()
    };
    rig.put(maps::LIMITS, exact.number, limit);
    match exact.prefix.network() {
        IpAddr::V4(network) => place_v4(rig, network.into(), length, exact.number),
        IpAddr::V6(_) => place_v6(rig, prefix, length, exact.number),
    }
}

fn place_v4(rig: &mut Rig, network: u32, length: u8, number: u32) {
    rig.set_settings(|settings| settings.exact |= EXACT_V4 | EXACT_ESTABLISHED);
    let index = v4_index(network);
    let (word, bit) = exact::v4_filter(index);
    let pair: [u32; 2] = rig.get_raw(maps::EXACT_V4_FILTER, word / 2);
    put_half(
        rig,
        maps::EXACT_V4_FILTER,
        word,
        pair[word as usize & 1] | bit,
    );
    if length <= 24 {
        put_half(rig, maps::EXACT_V4, index, number);
        return;
    }
    // A block inherits the limit that covers it.
    let pair: [u32; 2] = rig.get_raw(maps::EXACT_V4, index / 2);
    let covering = pair[index as usize & 1];
    let first = BLOCK * exact::BLOCK_ENTRIES;
    if covering & exact::BLOCK == 0 {
        for at in 0..exact::BLOCK_ENTRIES {
            put_half(rig, maps::EXACT_V4_BLOCKS, first + at, covering);
        }
        put_half(rig, maps::EXACT_V4, index, exact::BLOCK | BLOCK);
    }
    for at in 0..1 << (32 - length) {
        put_half(
            rig,
            maps::EXACT_V4_BLOCKS,
            first + (network & 0xff) + at,
            number,
        );
    }
}

/// Entries of the IPv4 table lie in pairs.
fn put_half(rig: &mut Rig, map: &str, index: u32, entry: u32) {
    let mut pair: [u32; 2] = rig.get_raw(map, index / 2);
    pair[index as usize & 1] = entry;
    rig.put_raw(map, index / 2, pair);
}

fn place_v6(rig: &mut Rig, prefix: [u64; 2], length: u8, number: u32) {
    rig.set_settings(|settings| {
        settings.exact |= EXACT_V6 | EXACT_ESTABLISHED;
        let lengths = &mut settings.exact_v6_lengths;
        // Longest first: the most specific limit is met first.
        if !lengths.contains(&length) {
            lengths[lengths.len() - 1] = length;
            lengths.sort_by_key(|length| std::cmp::Reverse(*length));
        }
    });
    let hash = v6_hash(&rig.settings, prefix, length);
    let bucket = u32::try_from(hash & (V6_BUCKETS - 1)).expect("a small table");
    let mut entries: [u64; V6_WAYS] = rig.get_raw(maps::EXACT_V6, bucket);
    let free = entries
        .iter_mut()
        .find(|entry| **entry == 0)
        .expect("room in the bucket");
    *free = hash >> 32 << 32 | u64::from(number);
    rig.put_raw(maps::EXACT_V6, bucket, entries);
    let filter = v6_filter_index(&rig.settings, prefix);
    rig.put_raw(maps::EXACT_V6_LENGTHS, filter, u32::from(u16::MAX));
}

/// Writes both policies so that a source is soon over the limit that gives this reason.
pub(crate) fn limit_sources(rig: &mut Rig, reason: DropReason) {
    let mut policy = Policy {
        host_mask_v6: [u64::MAX, 0],
        network_mask_v6: [0xffff_ffff_ffff_0000u64.to_be(), 0],
        host_mask_v4: u32::MAX,
        network_mask_v4: 0xffff_ff00u32.to_be(),
        ..Policy::default()
    };
    for limiters in &mut policy.limiters {
        match reason {
            DropReason::LimitHost => limiters[0] = limiter(BURST),
            _ => limiters[2] = limiter(BURST),
        }
    }
    let policy = policy.with_gates();
    rig.put(maps::POLICIES, world::ENFORCED.into(), policy);
    let monitor = 1;
    rig.put(
        maps::POLICIES,
        world::COUNTED.into(),
        Policy { monitor, ..policy },
    );
}

/// Sends more than any limit here lets pass.
pub(crate) fn exhaust(rig: &mut Rig, packet: &Packet) {
    for _ in 0..3 * OUTER_BURST {
        rig.run(&packet.frame());
    }
}

/// Sends `passes` packets that are let through, then one that is dropped for `reason`.
#[track_caller]
fn passes_then_drops(rig: &mut Rig, packet: &Packet, number: u16, passes: u64, reason: DropReason) {
    let sent = Row::new("within the limit", packet.clone(), Expect::Sent(number));
    let dropped = Row::new("over the limit", packet.clone(), Expect::Drop(reason));
    let run = |rig: &mut Rig| -> Result<()> {
        for _ in 0..passes {
            check_once(rig, &sent)?;
        }
        check_once(rig, &dropped)?;
        check_once(rig, &dropped)?;
        Ok(())
    };
    run(rig).unwrap_or_else(|error| panic!("{passes} then {reason:?}: {error:#}"));
}

#[track_caller]
fn passes(rig: &mut Rig, packet: &Packet, number: u16) {
    let row = Row::new("not limited", packet.clone(), Expect::Sent(number));
    for _ in 0..2 * OUTER_BURST {
        check_once(rig, &row).unwrap();
    }
}

fn udp(from: IpAddr, host: u8) -> Packet {
    let family = if from.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    Packet::new(from, vip(family, host)).udp((46_000, 53), b"query")
}

#[test]
fn exact_limits_of_hosts_networks_and_both() {
    let cases: [(&str, &str, &str, &str); 2] = [
        (
            "198.51.100.9/32",
            "198.51.100.0/24",
            "198.51.100.10",
            "198.51.101.9",
        ),
        (
            "2001:db8:c64:9::/64",
            "2001:db8:c64::/48",
            "2001:db8:c64:a::1",
            "2001:db8:c65:9::1",
        ),
    ];
    for (host, network, neighbour, stranger) in cases {
        let mut rig = Rig::new();
        let (host, network): (IpNet, IpNet) = (host.parse().unwrap(), network.parse().unwrap());
        let mut both = Exact::prefix(network, 1);
        both.burst = OUTER_BURST;
        limit_exactly(&mut rig, both);
        let mut inner = Exact::prefix(host, 2);
        inner.next = 1;
        limit_exactly(&mut rig, inner);

        let reason = DropReason::LimitExact;
        let number = backend::IPIP4;
        let inside = udp(host.network(), world::IPIP4);
        passes_then_drops(&mut rig, &inside, number, BURST, reason);
        let neighbour = udp(neighbour.parse().unwrap(), world::IPIP4);
        passes_then_drops(&mut rig, &neighbour, number, OUTER_BURST, reason);
        passes(
            &mut rig,
            &udp(stranger.parse().unwrap(), world::IPIP4),
            number,
        );

        let met: Limit = rig.get(maps::LIMITS, 2);
        assert_eq!((met.passed_packets, met.dropped_packets), (BURST, 2));
    }
}

#[test]
fn an_exact_limit_is_for_its_vip_and_class_only() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let plain = udp(client(family, 100, 7), world::IPIP4);
        let number_of = |rig: &Rig, packet: &Packet, protocol| {
            let at = rig.services.iter().position(|service| {
                service.prefix.contains(&packet.to) && service.protocol == protocol
            });
            u16::try_from(at.unwrap() + 1).unwrap()
        };
        let mut exact = Exact::host(plain.from);
        exact.vip = number_of(&rig, &plain, crate::packet::UDP);
        exact.classes = 1 << Class::Udp as u8;
        limit_exactly(&mut rig, exact);
        passes_then_drops(
            &mut rig,
            &plain,
            backend::IPIP4,
            BURST,
            DropReason::LimitExact,
        );
        passes(&mut rig, &udp(plain.from, world::GUE4), backend::GUE4);
        let syn = Packet::new(plain.from, plain.to).tcp((46_100, 80), SYN, &[]);
        passes(&mut rig, &syn, backend::IPIP4);
    }
}

#[test]
fn the_policy_limits_hosts_and_networks() {
    for family in Family::BOTH {
        for reason in [DropReason::LimitHost, DropReason::LimitNetwork] {
            let mut rig = Rig::new();
            limit_sources(&mut rig, reason);
            let number = backend::IPIP4;
            let from = client(family, 100, 7);
            let plain = Packet::new(from, vip(family, world::LIMITED));
            passes_then_drops(&mut rig, &udp(from, world::LIMITED), number, BURST, reason);
            // Classes are apart.
            let syn = plain.clone().tcp((46_200, 80), SYN, &[]);
            passes_then_drops(&mut rig, &syn, number, BURST, reason);
            // A limit is for a host of any port, and for a network of any host.
            let other_port = Packet::new(from, plain.to).udp((46_201, 53), b"query");
            let row = Row::new("another port", other_port, Expect::Drop(reason));
            check_once(&mut rig, &row).unwrap();
            let neighbour = udp(client(family, 100, 8), world::LIMITED);
            if reason == DropReason::LimitHost {
                passes_then_drops(&mut rig, &neighbour, number, BURST, reason);
            } else {
                let row = Row::new("a neighbour", neighbour, Expect::Drop(reason));
                check_once(&mut rig, &row).unwrap();
            }
            let stranger = udp(client(family, 101, 7), world::LIMITED);
            passes_then_drops(&mut rig, &stranger, number, BURST, reason);
            passes(&mut rig, &udp(from, world::IPIP4), number);
        }
    }
}

#[test]
fn echo_and_icmp_errors_are_limited_as_icmp() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        limit_sources(&mut rig, DropReason::LimitHost);
        let echo = Packet::new(client(family, 100, 7), vip(family, world::LIMITED));
        let echo = echo.echo_request(5, b"ping");
        for _ in 0..BURST {
            check_once(&mut rig, &Row::new("echo", echo.clone(), Expect::EchoReply)).unwrap();
        }
        let dropped = Row::new("echo", echo, Expect::Drop(DropReason::LimitHost));
        check_once(&mut rig, &dropped).unwrap();
    }
}

#[test]
fn monitor_mode_counts_and_passes() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        limit_sources(&mut rig, DropReason::LimitHost);
        let by_policy = udp(client(family, 100, 7), world::MONITORED);
        let mut exact = Exact::host(client(family, 101, 7));
        exact.mode = LIMIT_MONITOR;
        limit_exactly(&mut rig, exact);
        let exactly = udp(client(family, 101, 7), world::IPIP4);
        for (packet, reason) in [
            (by_policy, DropReason::LimitHost),
            (exactly, DropReason::LimitExact),
        ] {
            let before = rig.counts(packet.to);
            for _ in 0..BURST + 4 {
                let ran = rig.run(&packet.frame());
                assert_eq!(ran.action, crate::rig::Action::Tx);
            }
            let counted = (rig.counts(packet.to) - before).packets();
            let bytes = packet.ip_bytes().len() as u64;
            let (monitored, others): (Vec<_>, Vec<_>) = counted
                .into_iter()
                .partition(|(what, ..)| matches!(what, Counted::Monitored(..)));
            let [(Counted::Monitored(_, why), 4, over)] = monitored[..] else {
                panic!("{reason:?}: {monitored:?}");
            };
            assert_eq!((why, over), (reason, 4 * bytes));
            assert!(
                others.iter().all(|(_, packets, _)| *packets == BURST + 4),
                "{others:?}"
            );
        }
    }
}

/// The promise to established flows: a flood from the same source does not hurt them.
#[test]
fn proven_flows_are_exempt() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        limit_sources(&mut rig, DropReason::LimitHost);
        // The class of proven flows is not limited.
        let mut policy: Policy = rig.get(maps::POLICIES, world::ENFORCED.into());
        policy.limiters[Class::Established as usize] = Default::default();
        rig.put(maps::POLICIES, world::ENFORCED.into(), policy);
        let plain = Packet::new(client(family, 100, 7), vip(family, world::LIMITED));
        let data = plain.clone().tcp((46_300, 80), ACK, b"data");
        rig.run(&data.frame());
        let (bucket, way, flow) = entry(&rig, &data);
        assert!(way < WAYS && !flow.is_proven());
        write_entry(
            &mut rig,
            bucket,
            way,
            sluice_ebpf::flow::Flow(
                flow.0
                    ^ (State::Unproven as u64 ^ State::Proven as u64)
                        << sluice_ebpf::flow::AGE_BITS,
            ),
        );
        let other = plain.tcp((46_301, 80), ACK, b"data");
        exhaust(&mut rig, &other);
        let dropped = Row::new("unproven", other, Expect::Drop(DropReason::LimitHost));
        check_once(&mut rig, &dropped).unwrap();
        passes(&mut rig, &data, backend::IPIP4);
    }
}
