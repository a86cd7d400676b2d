//! Random rules and packets, from few values, so that they meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::{option::weighted, prelude::*, sample::select};

use super::*;
use crate::config::Mode;

/// Valid rules; of VIPs `a`, `b` or any.
pub(crate) fn rule() -> impl Strategy<Value = RuleSpec> {
    let options = (
        select(vec![Mode::Enforce, Mode::Enforce, Mode::Monitor]),
        0..4u16,
        any::<bool>(),
        weighted(0.2, 1..10_000u64),
        select(vec!["", "plain", "with \"quotes\", \\ and\nlines"]),
    );
    let vip = weighted(0.3, select(vec!["a".to_owned(), "b".to_owned()]));
    let rule = (components(), vip, action(), options).prop_map(
        |(components, vip, action, (mode, priority, established, ttl_seconds, comment))| RuleSpec {
            vip,
            mode,
            priority,
            established,
            ttl_seconds,
            comment: comment.to_owned(),
            ..RuleSpec::new(components, action)
        },
    );
    rule.prop_filter("valid", |rule| rule.validate().is_ok())
}

fn components() -> impl Strategy<Value = Components> {
    let p = 0.3;
    let addresses = (weighted(p, prefix()), weighted(p, prefix()));
    let ports = || numbers::<Port>(vec![0, 1, 53, 80, 123, 1024, 65_535]);
    let ports = (
        weighted(0.15, ports()),
        weighted(p, ports()),
        weighted(p, ports()),
    );
    let icmp = (
        weighted(0.1, numbers::<Byte>(vec![0, 3, 8, 128, 255])),
        weighted(0.1, numbers::<Byte>(vec![0, 1, 255])),
    );
    let rest = (
        weighted(p, numbers::<Protocol>(vec![1, 6, 17, 58])),
        weighted(0.15, bits::<TcpFlags>(0xff)),
        weighted(p, numbers::<Length>(vec![28, 40, 60, 61, 1000, 65_535])),
        weighted(0.1, numbers::<Dscp>(vec![0, 46, 63])),
        weighted(0.15, bits::<FragmentBits>(0x0f)),
        weighted(0.1, numbers::<Byte>(vec![1, 64, 128, 255])),
        prop::collection::vec(payload(), 0..2),
    );
    (addresses, ports, icmp, rest).prop_map(|(addresses, ports, icmp, rest)| {
        let (protocol, tcp_flags, length, dscp, fragment, ttl, payload) = rest;
        Components {
            destination: addresses.0,
            source: addresses.1,
            protocol,
            port: ports.0,
            destination_port: ports.1,
            source_port: ports.2,
            icmp_type: icmp.0,
            icmp_code: icmp.1,
            tcp_flags,
            length,
            dscp,
            fragment,
            ttl,
            payload,
        }
    })
}

fn action() -> impl Strategy<Value = Action> {
    let limit = (
        weighted(0.7, 1..1000u64),
        weighted(0.5, 1..9_000_000u64),
        weighted(0.5, 1..99u32),
    );
    prop_oneof![
        4 => Just(Action::Drop),
        1 => limit.prop_map(|(pps, bps, burst)| Action::Limit(Limit { pps, bps, burst })),
        1 => Just(Action::Pass),
        1 => Just(Action::Challenge),
        1 => Just(Action::Sample),
    ]
}

fn prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (address(true), select(vec![0u8, 8, 16, 17, 24, 25, 31, 32]));
    let v6 = (
        address(false),
        select(vec![0u8, 32, 48, 64, 65, 96, 127, 128]),
    );
    prop_oneof![v4, v6].prop_map(|(address, length)| IpNet::new(address, length).unwrap().trunc())
}

/// From neighbouring networks.
pub(crate) fn address(v4: bool) -> impl Strategy<Value = IpAddr> {
    (0..3u8, 0..3u8, select(vec![0u8, 1, 127, 128, 255])).prop_map(move |(a, b, c)| {
        if v4 {
            Ipv4Addr::new(10, a, b, c).into()
        } else {
            let (a, b) = (u16::from(a), u16::from(b) << 15);
            Ipv6Addr::new(0x2001, 0xdb8, a, b, b, 0, 0, c.into()).into()
        }
    })
}

fn numbers<K: NumberKind>(ends: Vec<u16>) -> impl Strategy<Value = Numbers<K>> {
    let range = (select(ends.clone()), select(ends)).prop_map(|(a, b)| a.min(b)..=a.max(b));
    prop::collection::vec(range, 1..3).prop_map(|ranges| Numbers::new(ranges).unwrap())
}

fn bits<K: BitKind>(all: u8) -> impl Strategy<Value = Bits<K>> {
    let term = (
        any::<u8>(),
        select(vec![1u8, 2, 4, 8, 0x12, 0xff]),
        any::<bool>(),
    );
    let term = term.prop_map(move |(value, mask, negated)| Term {
        value: value & mask & all,
        mask: mask & all,
        negated,
    });
    let terms = prop::collection::vec(prop::collection::vec(term, 1..3), 1..3);
    terms
        .prop_map(|terms| Bits::new(terms).unwrap())
        .prop_filter("something matches", move |bits| {
            (0..=all).any(|byte| bits.contains(byte))
        })
}

fn payload() -> impl Strategy<Value = Payload> {
    let bytes = prop::collection::vec((0..3u8, select(vec![0xffu8, 0x01, 0x0f])), 1..12);
    (0..4u8, bytes).prop_map(|(offset, bytes)| {
        let (value, mask) = bytes
            .into_iter()
            .map(|(byte, mask)| (byte & mask, mask))
            .unzip();
        Payload {
            offset,
            value: Hex(value),
            mask: Hex(mask),
        }
    })
}

/// Headers of packets, as they could be.
pub(crate) fn header() -> impl Strategy<Value = Header> {
    let ports = || select(vec![0u16, 1, 53, 80, 123, 1024, 5000, 65_535]);
    let fields = (
        select(vec![1u8, 6, 17]),
        (ports(), ports()),
        any::<u8>(),
        (select(vec![0u8, 3, 8, 128]), 0..3u8),
        select(vec![28u16, 40, 60, 61, 1000, 1500]),
        select(vec![0u8, 46, 63]),
        select(vec![0u8, 1, 4, 2, 10]),
        select(vec![1u8, 64, 128, 255]),
        prop::collection::vec(0..3u8, 0..20),
    );
    let addresses = any::<bool>().prop_flat_map(|v4| (address(v4), address(v4)));
    (addresses, fields).prop_map(|((source, destination), fields)| {
        let (protocol, ports, flags, icmp, length, dscp, fragment, ttl, payload) = fields;
        let later = fragment & FragmentBits::IS != 0;
        Header {
            source,
            destination,
            protocol: if protocol == 1 && source.is_ipv6() {
                58
            } else {
                protocol
            },
            ports: (protocol != 1 && !later).then_some(ports),
            tcp_flags: (protocol == 6 && !later).then_some(flags),
            icmp: (protocol == 1 && !later).then_some(icmp),
            length,
            dscp,
            fragment,
            ttl,
            payload: if later { Vec::new() } else { payload },
        }
    })
}
