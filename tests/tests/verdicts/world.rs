//! What the program is loaded with: one address for each thing that a row may need, in both families.

use std::net::IpAddr;

use ipnet::IpNet;
use sluice_ebpf::abi::{
    ANSWER_ECN, ANSWER_SACK, ANSWER_TIMESTAMPS, BACKEND_FORWARDS, BACKEND_RESOLVED, Backend,
    Forward, NO_BACKEND, SYN_ALWAYS, SYN_COOKIE, SynAnswer, VIP_HASH_SOURCE, VIP_RESET,
};

use crate::packet::{Family, TCP, UDP, vip};

/// Hosts of the VIP prefix. Those up to `MONITORED` have TCP port 80 and UDP port 53, if nothing else is said.
pub(crate) const L2: u8 = 1;
pub(crate) const IPIP4: u8 = 2;
pub(crate) const IPIP6: u8 = 3;
pub(crate) const GUE4: u8 = 4;
pub(crate) const GUE6: u8 = 5;
pub(crate) const LOCAL: u8 = 6;
pub(crate) const REDIRECT: u8 = 7;
pub(crate) const L2_VLAN: u8 = 8;
pub(crate) const IPIP4_VLAN: u8 = 9;
pub(crate) const GUE6_VLAN: u8 = 10;
/// Its lookup table has no slots.
pub(crate) const EMPTY: u8 = 11;
pub(crate) const UNRESOLVED: u8 = 12;
/// Its slots name a backend that is down.
pub(crate) const DOWN: u8 = 13;
/// Many backends, chosen by the source address.
pub(crate) const BY_SOURCE: u8 = 14;
/// Many backends, chosen by flow.
pub(crate) const MANY: u8 = 15;
/// A path of 576 bytes (IPv4), 1,320 (IPv6).
pub(crate) const SMALL: u8 = 16;
pub(crate) const LIMITED: u8 = 17;
pub(crate) const MONITORED: u8 = 18;
/// TCP on every port; no UDP.
pub(crate) const ALL_PORTS: u8 = 19;
/// TCP and UDP on port 53, as one service.
pub(crate) const ANY_PROTOCOL: u8 = 20;
/// TCP on ports 1 to 9, UDP on all.
pub(crate) const CROWDED: u8 = 21;
/// As `EMPTY`, and its clients are told.
pub(crate) const RESET: u8 = 22;
/// TCP whose SYNs are challenged, by `l2`.
pub(crate) const CHALLENGED: u8 = 23;
/// TCP whose SYNs are answered with cookies, by `l2`.
pub(crate) const COOKIE: u8 = 24;

/// UDP on ports 53 and 443, each with backends of its own.
pub(crate) const TWO_POOLS: u8 = 25;

/// What answers with cookies say.
pub(crate) const ANSWER: SynAnswer = SynAnswer {
    mss: 1402,
    window: 50_123,
    window_scale: 9,
    options: ANSWER_SACK | ANSWER_TIMESTAMPS | ANSWER_ECN,
    pad: 0,
};

/// Inside the whole prefixes below, with a service of its own: TCP port 80 by gue.
pub(crate) const NESTED: u8 = 7;

/// A whole /24 and /48, TCP and UDP on every port.
pub(crate) const PREFIXES: [&str; 2] = ["203.0.113.0/24", "2001:db8:2::/48"];

/// Numbers of backends.
pub(crate) mod backend {
    pub(crate) const L2: u16 = 0;
    pub(crate) const IPIP4: u16 = 1;
    pub(crate) const IPIP6: u16 = 2;
    pub(crate) const GUE4: u16 = 3;
    pub(crate) const GUE6: u16 = 4;
    pub(crate) const LOCAL: u16 = 5;
    pub(crate) const REDIRECT: u16 = 6;
    pub(crate) const L2_VLAN: u16 = 7;
    pub(crate) const IPIP4_VLAN: u16 = 8;
    pub(crate) const GUE6_VLAN: u16 = 9;
    pub(crate) const UNRESOLVED: u16 = 10;
    pub(crate) const DOWN: u16 = 11;
    /// Backends of `MANY`.
    pub(crate) const MANY: [u16; 8] = [16, 17, 18, 19, 20, 21, 22, 23];
    /// How many numbers there are.
    pub(crate) const COUNT: u32 = 24;
}

/// Where frames come in, and another interface.
pub(crate) const INGRESS: u32 = 1;
pub(crate) const OTHER_INTERFACE: u32 = 2;

/// The network of tunnel sources, and the bits of it that flows spread over; the last 16 in IPv6.
pub(crate) const TUNNEL_SOURCE_V4: [u8; 4] = [100, 65, 0, 0];
pub(crate) const TUNNEL_SOURCE_V6: [u16; 8] = [0xfd00, 0x64, 0, 0, 0, 0, 0, 0];
pub(crate) const SPREAD: u32 = 0xffff;

/// Policies by number.
pub(crate) const ENFORCED: u16 = 1;
pub(crate) const COUNTED: u16 = 2;

/// One VIP. Its number is its place in [`services`], from 1.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub(crate) prefix: IpNet,
    /// Zero: TCP and UDP.
    pub(crate) protocol: u8,
    /// Zero: all.
    pub(crate) port: u16,
    /// What its slots name, in turn.
    pub(crate) backends: Vec<u16>,
    pub(crate) mtu_bytes: u16,
    pub(crate) flags: u32,
    pub(crate) policy: u16,
    pub(crate) syn: u32,
}

pub(crate) fn services() -> Vec<Service> {
    let simple: &[(u8, &[u16])] = &[
        (L2, &[backend::L2]),
        (IPIP4, &[backend::IPIP4]),
        (IPIP6, &[backend::IPIP6]),
        (GUE4, &[backend::GUE4]),
        (GUE6, &[backend::GUE6]),
        (LOCAL, &[backend::LOCAL]),
        (REDIRECT, &[backend::REDIRECT]),
        (L2_VLAN, &[backend::L2_VLAN]),
        (IPIP4_VLAN, &[backend::IPIP4_VLAN]),
        (GUE6_VLAN, &[backend::GUE6_VLAN]),
        (EMPTY, &[]),
        (UNRESOLVED, &[backend::UNRESOLVED]),
        (DOWN, &[backend::DOWN]),
        (BY_SOURCE, &backend::MANY),
        (MANY, &backend::MANY),
        (SMALL, &[backend::IPIP4]),
        (LIMITED, &[backend::IPIP4]),
        (MONITORED, &[backend::IPIP4]),
        (RESET, &[]),
        (CHALLENGED, &[backend::L2]),
        (COOKIE, &[backend::L2]),
    ];
    let mut services = vec![];
    for family in Family::BOTH {
        for (host, backends) in simple {
            for (protocol, port) in [(TCP, 80), (UDP, 53)] {
                let mut service = Service::new(vip(family, *host).into(), protocol, port, backends);
                match *host {
                    BY_SOURCE => service.flags = VIP_HASH_SOURCE,
                    SMALL => service.mtu_bytes = if family == Family::V4 { 576 } else { 1320 },
                    RESET => service.flags = VIP_RESET,
                    CHALLENGED => service.syn = SYN_ALWAYS,
                    COOKIE => service.syn = SYN_ALWAYS | SYN_COOKIE,
                    LIMITED => service.limit(ENFORCED),
                    MONITORED => service.limit(COUNTED),
                    _ => {}
                }
                services.push(service);
            }
        }
        let at = |host, protocol, port, number| {
            Service::new(vip(family, host).into(), protocol, port, &[number])
        };
        services.push(at(ALL_PORTS, TCP, 0, backend::IPIP4));
        services.push(at(ANY_PROTOCOL, 0, 53, backend::IPIP4));
        services.extend((1..10).map(|port| at(CROWDED, TCP, port, backend::GUE4)));
        services.push(at(CROWDED, UDP, 0, backend::GUE6));
        services.push(at(TWO_POOLS, UDP, 53, backend::IPIP4));
        services.push(at(TWO_POOLS, UDP, 443, backend::GUE4));
    }
    for prefix in PREFIXES {
        let prefix: IpNet = prefix.parse().expect("a prefix");
        services.push(Service::new(prefix, 0, 0, &[backend::IPIP6]));
        let nested = in_prefix(prefix, NESTED);
        services.push(Service::new(nested.into(), TCP, 80, &[backend::GUE4]));
    }
    services
}

/// An address in one of [`PREFIXES`].
pub(crate) fn in_prefix(prefix: IpNet, host: u8) -> IpAddr {
    match prefix.network() {
        IpAddr::V4(network) => (u32::from(network) | u32::from(host)).to_be_bytes().into(),
        // Far from the network's start.
        IpAddr::V6(network) => (u128::from(network) | u128::from(host) << 64 | 0x77)
            .to_be_bytes()
            .into(),
    }
}

impl Service {
    fn new(prefix: IpNet, protocol: u8, port: u16, backends: &[u16]) -> Self {
        Self {
            prefix,
            protocol,
            port,
            backends: backends.to_vec(),
            mtu_bytes: 1500,
            flags: 0,
            policy: 0,
            syn: 0,
        }
    }

    /// Limits every class.
    fn limit(&mut self, policy: u16) {
        self.policy = policy;
        self.flags |= 0b1_1111 << sluice_ebpf::abi::VIP_CLASSES_SHIFT;
    }
}

/// All backends by number; those that are not used are zero.
pub(crate) fn backends() -> Vec<Backend> {
    let mut all = vec![Backend::default(); backend::COUNT as usize];
    let mut set = |number: u16, forward, family, change: fn(&mut Backend)| {
        let backend = &mut all[usize::from(number)];
        *backend = reached(number, forward, family);
        change(backend);
    };
    set(backend::L2, Forward::L2, 4, |_| {});
    set(backend::IPIP4, Forward::Ipip, 4, |_| {});
    set(backend::IPIP6, Forward::Ipip, 6, |_| {});
    set(backend::GUE4, Forward::Gue, 4, |_| {});
    set(backend::GUE6, Forward::Gue, 6, |_| {});
    set(backend::LOCAL, Forward::Local, 4, |_| {});
    set(backend::REDIRECT, Forward::L2, 4, |b| {
        b.ifindex = OTHER_INTERFACE;
    });
    set(backend::L2_VLAN, Forward::L2, 4, |b| b.vlan = 42);
    set(backend::IPIP4_VLAN, Forward::Ipip, 4, |b| b.vlan = 4094);
    set(backend::GUE6_VLAN, Forward::Gue, 6, |b| {
        b.vlan = 7;
        b.ifindex = OTHER_INTERFACE;
    });
    set(backend::UNRESOLVED, Forward::Ipip, 4, |b| {
        b.flags = BACKEND_FORWARDS;
    });
    set(backend::DOWN, Forward::Ipip, 4, |b| {
        b.flags = BACKEND_RESOLVED;
    });
    for number in backend::MANY {
        set(number, Forward::Ipip, 4, |_| {});
    }
    all
}

/// A backend that is up; its number stands in its addresses.
fn reached(number: u16, forward: Forward, family: u8) -> Backend {
    assert_ne!(number, NO_BACKEND);
    let host = u8::try_from(number).expect("a few backends");
    let address = |v4: [u8; 3], v6: u8| -> [u8; 16] {
        let mut address = [0; 16];
        if family == 4 {
            address[10..12].fill(0xff);
            address[12..15].copy_from_slice(&v4);
            address[15] = host;
        } else {
            address[..2].copy_from_slice(&[0xfd, v6]);
            address[15] = host;
        }
        address
    };
    Backend {
        macs: [2, 1, 0, 0, 0, host, 2, 2, 0, 0, 0, host],
        forward: forward as u8,
        flags: BACKEND_FORWARDS | BACKEND_RESOLVED,
        mtu_bytes: 1500,
        outer_destination: address([10, 0, 9], 9),
        outer_source: address([10, 0, 8], 8),
        ifindex: INGRESS,
        vlan: 0,
        family,
        pad: [0; 9],
    }
}
