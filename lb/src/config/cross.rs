//! What no table can say about itself: names that must exist, VIPs that collide, backends that their VIPs cannot reach.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use sluice_ebpf::abi::{HOST_VIP, NO_BACKEND};

use super::{
    addresses::{LINK_LOCAL, LOOPBACK, Unfit, unfit_range},
    error::{Errors, Lines, grouped, quoted, suggestion},
    model::{Forward, Protocol},
    read_pool::PlacedPool,
    read_vip::PlacedVip,
    section::Section,
};

/// The names of all `tables`, also of those that are wrong elsewhere. A name given twice is an error.
pub(super) fn names<'a>(tables: &[Section<'a>], what: &str, lines: &Lines<'_>) -> HashSet<&'a str> {
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(tables.len());
    for field in tables.iter().filter_map(|table| table.get("name")) {
        let Some(name) = field.text() else { continue };
        if let Some(first) = seen.get(name) {
            field.error(|| {
                let line = lines.position(*first).line;
                format!(
                    "{what} {} is already in line {line}; give it a name of its own",
                    quoted(name)
                )
            });
        } else {
            seen.insert(name, field.at);
        }
    }
    seen.into_keys().collect()
}

/// More tables than the data plane can number.
pub(super) fn count(tables: &[Section<'_>], what: &str, most: usize) {
    if let Some(first_too_many) = tables.get(most) {
        first_too_many.error(|| {
            format!(
                "{} {what} are too many; {} is the most",
                grouped(tables.len() as u64),
                grouped(most as u64)
            )
        });
    }
}

/// What the data plane has numbers for, besides the one for "none".
pub(super) const VIPS: usize = HOST_VIP as usize - 1;
pub(super) const POLICIES: usize = u8::MAX as usize;
const BACKENDS: usize = NO_BACKEND as usize;

/// Names of pools, policies and VIPs that do not exist, also where a table is wrong elsewhere.
pub(super) fn references(tables: &[Section<'_>], key: &'static str, names: &HashSet<&str>) {
    for field in tables.iter().filter_map(|table| table.get(key)) {
        if let Some(name) = field.text()
            && !names.contains(name)
        {
            field.error(|| {
                let near = suggestion(name, names.iter().copied());
                format!("there is no {key} {}{near}", quoted(name))
            });
        }
    }
}

/// VIPs that would both take the same packet. A longer prefix inside another VIP's is none of these: it goes first.
pub(super) fn duplicate_vips(vips: &[PlacedVip], lines: &Lines<'_>, errors: &Errors) {
    // By prefix and protocol: the first VIP at all, and the first on every port. By port too: the first on that port.
    let mut at_all: HashMap<(IpNet, bool), usize> = HashMap::with_capacity(vips.len());
    let mut every_port: HashMap<(IpNet, bool), usize> = HashMap::new();
    let mut one_port: HashMap<(IpNet, bool, u16), usize> = HashMap::with_capacity(vips.len());
    for (
        index,
        PlacedVip {
            vip, address_at, ..
        },
    ) in vips.iter().enumerate()
    {
        let is_tcp: &[bool] = match vip.protocol {
            Protocol::Tcp => &[true],
            Protocol::Udp => &[false],
            Protocol::Any => &[true, false],
        };
        let earlier = is_tcp.iter().find_map(|tcp| match vip.port {
            Some(port) => every_port
                .get(&(vip.prefix, *tcp))
                .or_else(|| one_port.get(&(vip.prefix, *tcp, port))),
            None => at_all.get(&(vip.prefix, *tcp)),
        });
        if let Some(earlier) = earlier {
            errors.add(*address_at, || {
                let line = lines.position(vips[*earlier].address_at).line;
                let name = quoted(&vips[*earlier].vip.name);
                format!("VIP {name} in line {line} already takes this address, protocol and port; change one of the three")
            });
            continue;
        }
        for tcp in is_tcp {
            at_all.entry((vip.prefix, *tcp)).or_insert(index);
            match vip.port {
                Some(port) => one_port.insert((vip.prefix, *tcp, port), index),
                None => every_port.insert((vip.prefix, *tcp), index),
            };
        }
    }
}

/// Backends at addresses that their VIPs' forwarding cannot reach.
pub(super) fn reachability(vips: &[PlacedVip], pools: &[PlacedPool], errors: &Errors) {
    let by_name: HashMap<&str, usize> = pools
        .iter()
        .enumerate()
        .map(|(index, pool)| (pool.pool.name.as_str(), index))
        .collect();
    let kinds: Vec<Vec<Kind>> = pools.iter().map(kinds).collect();
    let mut uses = vec![Uses::default(); pools.len()];
    for vip in vips {
        let Some(pool) = by_name.get(vip.vip.pool.as_str()) else {
            continue;
        };
        uses[*pool].forwards.insert(vip.vip.forward);
        for kind in &kinds[*pool] {
            pair(vip, kind, errors);
            let forward = kind.forward.unwrap_or(vip.vip.forward);
            uses[*pool].by_tunnel |= matches!(forward, Forward::Ipip | Forward::Gue);
        }
    }
    for (pool, uses) in pools.iter().zip(&uses) {
        if pool.pool.health.via_tunnel && !uses.forwards.is_empty() && !uses.by_tunnel {
            errors.add(pool.health_at, || {
                "`via_tunnel` is set, but no VIP sends to this pool by `ipip` or `gue`; remove it".into()
            });
        }
    }
    addresses(vips, pools, &uses, errors);
}

/// How the VIPs of a pool forward.
#[derive(Clone, Default)]
struct Uses {
    forwards: BTreeSet<Forward>,
    /// Also where backends forward otherwise than the VIPs.
    by_tunnel: bool,
}

/// All backends of a pool that are alike to a VIP, so that a VIP need not look at each.
struct Kind {
    forward: Option<Forward>,
    /// The first of them.
    address: IpAddr,
}

fn kinds(pool: &PlacedPool) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for backend in &pool.pool.backends {
        let alike = |kind: &Kind| {
            kind.forward == backend.forward && kind.address.is_ipv4() == backend.address.is_ipv4()
        };
        if !kinds.iter().any(alike) {
            kinds.push(Kind {
                forward: backend.forward,
                address: backend.address,
            });
        }
    }
    kinds
}

fn pair(
    PlacedVip {
        vip,
        pool_at,
        mtu_at,
        ..
    }: &PlacedVip,
    kind: &Kind,
    errors: &Errors,
) {
    let forward = kind.forward.unwrap_or(vip.forward);
    let outer_bytes: u16 = match (forward, kind.address) {
        (Forward::L2 | Forward::Local, _) => 0,
        (Forward::Ipip, IpAddr::V4(_)) => 20,
        (Forward::Ipip, IpAddr::V6(_)) => 40,
        (Forward::Gue, IpAddr::V4(_)) => 28,
        (Forward::Gue, IpAddr::V6(_)) => 48,
    };
    let is_v4 = matches!(vip.prefix, IpNet::V4(_));
    if forward == Forward::L2 && kind.address.is_ipv4() != is_v4 {
        let (vip_family, other) = if is_v4 {
            ("IPv4", "IPv6")
        } else {
            ("IPv6", "IPv4")
        };
        errors.add(*pool_at, || {
            format!(
                "`l2` cannot send {vip_family} to backend `{}` of pool {}, which is {other}; use `ipip` or `gue`",
                kind.address,
                quoted(&vip.pool)
            )
        });
    }
    let least = IPV6_LEAST_MTU + outer_bytes;
    if let Some(mtu) = vip.mtu_bytes
        && !is_v4
        && mtu < least
    {
        errors.add(*mtu_at, || {
            format!(
                "`mtu` is {mtu}, too small for IPv6 (1280) and the {outer_bytes} bytes of outer headers to backend `{}`; write {least} or more",
                kind.address
            )
        });
    }
}

/// What every IPv6 link must carry (RFC 8200).
const IPV6_LEAST_MTU: u16 = 1_280;

fn addresses(vips: &[PlacedVip], pools: &[PlacedPool], uses: &[Uses], errors: &Errors) {
    let mut vip_prefixes: HashMap<IpNet, &str> = HashMap::with_capacity(vips.len());
    for PlacedVip { vip, .. } in vips {
        vip_prefixes.entry(vip.prefix).or_insert(&vip.name);
    }
    let lengths: HashSet<(bool, u8)> = vip_prefixes
        .keys()
        .map(|prefix| (is_v4(prefix), prefix.prefix_len()))
        .collect();
    let vip_of = |address: IpAddr| {
        let mut prefixes = lengths.iter().filter(|(v4, _)| *v4 == address.is_ipv4());
        prefixes
            .find_map(|(_, length)| vip_prefixes.get(&IpNet::new(address, *length).ok()?.trunc()))
    };

    let mut numbers = 0;
    for (pool, uses) in pools.iter().zip(uses) {
        for (backend, at) in pool.pool.backends.iter().zip(&pool.backends_at) {
            let address = backend.address;
            // One for each way by which packets reach it in this pool, as `desired` has it.
            let ways = match backend.forward {
                Some(_) => uses.forwards.len().min(1),
                None => uses.forwards.len(),
            };
            if (numbers + 1..=numbers + ways).contains(&(BACKENDS + 1)) {
                errors.add(*at, || {
                    format!(
                        "more than {} backends are too many; one counts for each of its pools, and for each `forward` of the VIPs there",
                        grouped(BACKENDS as u64)
                    )
                });
            }
            numbers += ways;
            let by_local_vips = uses.forwards.iter().eq([&Forward::Local]);
            let is_local = backend
                .forward
                .map_or(by_local_vips, |forward| forward == Forward::Local);
            match unfit_range(&address.into()) {
                Some(Unfit { what: LOOPBACK | LINK_LOCAL, .. }) if is_local => {}
                Some(Unfit { what: LOOPBACK, .. }) => errors.add(*at, || {
                    format!("backend `{address}` is a loopback address, which only `forward = \"local\"` can reach")
                }),
                Some(Unfit { what, range }) => errors.add(*at, || {
                    format!("backend `{address}` is an address of kind {what} ({range}); write the backend's own unicast address")
                }),
                None if is_local => {}
                None => {
                    if let Some(vip) = vip_of(address) {
                        errors.add(*at, || {
                            let vip = quoted(vip);
                            format!("backend `{address}` is an address of VIP {vip}, so packets would come back; write the backend's own address")
                        });
                    }
                }
            }
        }
    }
}

fn is_v4(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}
