//! What the data plane shall hold, as a pure function of config, health, next hops, drains and time.
mod shares;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::{
    config::{self, Backend, Config, Forward, Policy, Pool, SourceLimit},
    dataplane::{BackendKey, BackendState, Desired, Ordered, Table, TableKey, Vip},
    drains::{BackendName, Drain, Drains},
    health::{self, Carrier, State, Target, Via},
    net::{NextHop, Reason, Resolution, Resolutions, Station},
};

use shares::Member;

/// All that decides what the data plane shall hold.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub config: &'a Config,
    pub health: &'a health::Snapshot,
    pub resolutions: &'a Resolutions,
    pub drains: &'a Drains,
    /// Backends that take new flows now.
    pub held: &'a BTreeSet<BackendKey>,
    pub tightened: &'a Tightened,
    pub now: Instant,
}

/// What the data plane shall hold.
///
/// A backend takes new flows if it is up, can be reached, is not draining and has a weight. It keeps those that it has
/// until it is down; a backend whose health is not known yet is not down, and takes new flows if it did before.
pub fn desired(inputs: Inputs<'_>) -> Desired {
    let config = inputs.config;
    let pools: BTreeMap<&str, &Pool> = config
        .pools
        .iter()
        .map(|pool| (pool.name.as_str(), pool))
        .collect();
    let mut desired = Desired {
        policies: config
            .policies
            .iter()
            .map(|policy| (policy.name.clone(), policy.clone()))
            .collect(),
        host: config.host.clone(),
        ..Desired::default()
    };
    for vip in &config.vips {
        let mut table = TableKey {
            pool: vip.pool.clone(),
            forward: vip.forward,
        };
        if !desired.tables.contains_key(&table)
            && let Some(pool) = pools.get(vip.pool.as_str())
        {
            let made = add_pool(&mut desired.backends, pool, vip.forward, inputs);
            desired.tables.insert(table.clone(), made);
        }
        // As if no backend took new flows.
        if vip_drains(inputs.drains, &vip.name) {
            table = TableKey::nowhere(vip.forward);
            let nobody = desired.tables.entry(table.clone());
            nobody.or_insert_with(Table::empty);
        }
        desired.vips.insert(
            vip.name.clone(),
            Vip {
                prefix: vip.prefix,
                protocol: vip.protocol,
                port: vip.port,
                table,
                mtu_bytes: vip.mtu_bytes,
                hash: vip.hash,
                all_down: pools
                    .get(vip.pool.as_str())
                    .map_or(config::AllDown::Drop, |pool| pool.all_down),
                policy: tightened(&mut desired.policies, vip, inputs.tightened),
                ordered: ordered(vip, inputs.tightened),
            },
        );
    }
    desired
}

/// Whether a VIP gets no new flows, for its own sake or its PoP's.
pub fn vip_drains(drains: &Drains, vip: &str) -> bool {
    !drains.is_empty() && (pop_drains(drains) || drains.contains(&Drain::Vip(vip.to_owned())))
}

/// Whether no VIP gets new flows.
pub fn pop_drains(drains: &Drains) -> bool {
    drains.contains(&Drain::Pop)
}

/// Whether a backend gets no new flows, because an operator wants that.
pub fn backend_drains(drains: &Drains, pool: &str, address: IpAddr) -> bool {
    !drains.is_empty()
        && drains.contains(&Drain::Backend(BackendName {
            pool: pool.to_owned(),
            address,
        }))
}

/// What detection wants beside policies, by VIP.
pub type Tightened = BTreeMap<String, Tightening>;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tightening {
    pub limits: Vec<SourceLimit>,
    /// Every SYN is to be challenged.
    pub challenge: bool,
}

fn ordered(vip: &config::Vip, tightened: &Tightened) -> Ordered {
    match tightened.get(&vip.name) {
        Some(tightening) if tightening.challenge => Ordered::Challenge,
        _ => Ordered::Nothing,
    }
}

/// The name of a VIP's policy: its own, or one made from that with limits of detection.
fn tightened(
    policies: &mut BTreeMap<String, Policy>,
    vip: &config::Vip,
    tightened: &Tightened,
) -> Option<String> {
    let own = vip.policy.as_ref().and_then(|name| policies.get(name));
    let limits = tightened
        .get(&vip.name)
        .map_or(&[][..], |tightening| &tightening.limits);
    if limits.is_empty() || policies.len() >= MOST_POLICIES {
        return vip.policy.clone();
    }
    let mut policy = own.cloned().unwrap_or_else(|| Policy::without_limits(""));
    for limit in limits {
        let same = |known: &SourceLimit| known.class == limit.class && known.per == limit.per;
        match policy.limits.iter_mut().find(|known| same(known)) {
            // What is stricter stays.
            Some(known) if known.pps.is_some_and(|pps| Some(pps) <= limit.pps) => {}
            Some(known) => (known.pps, known.burst) = (limit.pps, limit.burst),
            None => policy.limits.push(*limit),
        }
    }
    policy.name = format!(
        "{}{TIGHTENED}{}",
        vip.policy.as_deref().unwrap_or_default(),
        vip.name
    );
    let name = policy.name.clone();
    policies.insert(name.clone(), policy);
    Some(name)
}

/// Whether a VIP has no limits of detection, though it may be meant to: there was no room for another policy.
pub fn is_left_out(desired: &Desired, vip: &str) -> bool {
    let is_tightened = |policy: &String| policy.contains(TIGHTENED);
    let vip = desired.vips.get(vip);
    vip.is_some_and(|vip| !vip.policy.as_ref().is_some_and(is_tightened))
}

/// Stands in the names of policies that are made here: no name in a config has one in it.
const TIGHTENED: char = '+';
/// As many as the data plane has room for.
const MOST_POLICIES: usize = 255;

/// Addresses whose next hops are needed.
pub fn wanted_next_hops(config: &Config) -> BTreeSet<IpAddr> {
    let mut wanted = BTreeSet::new();
    for vip in &config.vips {
        let Some(pool) = config.pools.iter().find(|pool| pool.name == vip.pool) else {
            continue;
        };
        let remote = pool
            .backends
            .iter()
            .filter(|backend| way(backend, vip.forward) != Forward::Local);
        wanted.extend(remote.map(|backend| backend.address));
    }
    wanted
}

/// What is to be health-checked.
pub fn targets(config: &Config) -> Vec<Target> {
    let targets = config.pools.iter().flat_map(|pool| {
        let vips = config.vips.iter().filter(|vip| vip.pool == pool.name);
        let vips: Vec<&config::Vip> = if pool.health.via_tunnel {
            vips.collect()
        } else {
            Vec::new()
        };
        pool.backends.iter().map(move |backend| Target {
            pool: pool.name.clone(),
            address: backend.address,
            health: pool.health.clone(),
            via: vips.iter().find_map(|vip| via(config, vip, backend)),
        })
    });
    targets.collect()
}

/// The tunnel by which a VIP's packets reach a backend, if they do by one.
fn via(config: &Config, vip: &config::Vip, backend: &Backend) -> Option<Via> {
    let carrier = match way(backend, vip.forward) {
        Forward::Ipip => Carrier::Ipip,
        Forward::Gue => Carrier::Gue,
        Forward::L2 | Forward::Local => return None,
    };
    let source: IpAddr = match backend.address {
        IpAddr::V4(_) => config.dataplane.tunnel_source_v4.network().into(),
        IpAddr::V6(_) => config.dataplane.tunnel_source_v6.network().into(),
    };
    Some(Via {
        vip: vip.prefix.addr(),
        carrier,
        source,
    })
}

/// When what is desired changes next though nothing happens: a backend that came back gets more.
pub fn next_change(config: &Config, health: &health::Snapshot, now: Instant) -> Option<Instant> {
    let slow = config
        .pools
        .iter()
        .filter(|pool| pool.slow_start > Duration::ZERO);
    let backends = slow.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    let steps = backends.filter_map(|(pool, backend)| {
        let status = health.get(&(pool.name.clone(), backend.address))?;
        shares::next_step(pool.slow_start, status, now)
    });
    steps.min()
}

/// How packets of a VIP reach a backend: its own way, or else the VIP's.
pub fn way(backend: &Backend, of_vip: Forward) -> Forward {
    backend.forward.unwrap_or(of_vip)
}

/// All ways by which packets reach a backend of a pool.
pub fn ways(config: &Config, pool: &str, backend: &Backend) -> BTreeSet<Forward> {
    let vips = config.vips.iter().filter(|vip| vip.pool == pool);
    vips.map(|vip| way(backend, vip.forward)).collect()
}

/// The next hop to a backend, if it is good for packets that go there in each of these ways.
pub fn next_hop<'a>(
    ways: impl IntoIterator<Item = &'a Forward>,
    resolution: &Resolution,
) -> Result<NextHop, Reason> {
    match resolution {
        Resolution::Unresolved(reason) => Err(*reason),
        Resolution::Resolved(next_hop) => {
            let as_it_is = ways.into_iter().any(|way| *way == Forward::L2);
            if as_it_is && next_hop.station == Station::Router {
                return Err(Reason::BehindRouter);
            }
            Ok(*next_hop)
        }
    }
}

fn add_pool(
    backends: &mut BTreeMap<BackendKey, BackendState>,
    pool: &Pool,
    of_vip: Forward,
    inputs: Inputs<'_>,
) -> Table {
    let mut keys = Vec::with_capacity(pool.backends.len());
    let mut members = Vec::with_capacity(pool.backends.len());
    for backend in &pool.backends {
        let key = BackendKey {
            pool: pool.name.clone(),
            address: backend.address,
            forward: way(backend, of_vip),
        };
        let is_local = key.forward == Forward::Local;
        let resolution = inputs.resolutions.get(&key.address);
        let next_hop = resolution
            .filter(|_| !is_local)
            .and_then(|resolution| next_hop([&key.forward], resolution).ok());
        let reachable = next_hop.is_some() || is_local;
        let draining = backend_drains(inputs.drains, &pool.name, backend.address);
        members.push(Member {
            status: inputs.health.get(&(pool.name.clone(), backend.address)),
            ready: reachable && !draining && backend.weight > 0,
            held: inputs.held.contains(&key),
            weight: backend.weight,
        });
        keys.push((key, next_hop));
    }
    let shares = shares::shares(pool, &members, inputs.now);
    let mut weights = BTreeMap::new();
    for (((key, next_hop), member), share) in keys.into_iter().zip(members).zip(shares) {
        if share.weight > 0 {
            weights.insert(key.clone(), share.weight);
        }
        let down = member
            .status
            .is_some_and(|status| status.state == State::Down);
        let state = BackendState {
            forwards: !down || share.last_known,
            next_hop,
        };
        backends.insert(key, state);
    }
    Table {
        slots: pool.slots,
        weights,
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::SystemTime};

    use crate::health::Status;

    use super::*;

    const CONFIG: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["eth0"]
[[pool]]
name = "web"
health = { kind = "tcp", port = 80 }
backend = [
    { address = "10.0.0.1" },
    { address = "10.0.0.2", weight = 5, forward = "gue" },
    { address = "10.0.0.3", weight = 0 },
    { address = "10.0.0.4", forward = "local" },
]
[[vip]]
name = "v4"
address = "192.0.2.10"
protocol = "tcp"
pool = "web"
forward = "ipip"
[[vip]]
name = "v6"
address = "2001:db8::10"
protocol = "tcp"
pool = "web"
forward = "ipip"
"#;

    struct World {
        config: Config,
        health: health::Snapshot,
        resolutions: Resolutions,
        drains: Drains,
        held: BTreeSet<BackendKey>,
        tightened: Tightened,
    }

    impl World {
        fn new() -> Self {
            let config = config::parse(CONFIG, "sluice.toml").unwrap();
            let mut world = Self {
                resolutions: Resolutions::default(),
                health: health::Snapshot::default(),
                drains: Drains::new(),
                held: BTreeSet::new(),
                tightened: Tightened::new(),
                config,
            };
            for n in 1..=4 {
                world.health(n, State::Up);
                world.resolution(n, Resolution::Resolved(hop()));
            }
            world
        }

        fn health(&mut self, n: u8, state: State) {
            let status = Status::new(state, SystemTime::UNIX_EPOCH);
            Arc::make_mut(&mut self.health).insert(("web".into(), address(n)), status);
        }

        fn resolution(&mut self, n: u8, resolution: Resolution) {
            Arc::make_mut(&mut self.resolutions).insert(address(n), resolution);
        }

        fn desired(&self) -> Desired {
            desired(Inputs {
                config: &self.config,
                health: &self.health,
                resolutions: &self.resolutions,
                drains: &self.drains,
                held: &self.held,
                tightened: &self.tightened,
                now: Instant::now(),
            })
        }

        fn policy_of(&self, vip: usize) -> Option<Policy> {
            let desired = self.desired();
            let name = desired.vips[&self.config.vips[vip].name].policy.clone();
            name.map(|name| desired.policies[&name].clone())
        }

        fn weights(&self) -> Vec<(u8, u16)> {
            let desired = self.desired();
            assert_eq!(
                desired.tables.len(),
                1,
                "VIPs of a pool and way share a table"
            );
            let table = desired.tables.into_values().next().unwrap();
            let mut weights: Vec<_> = table
                .weights
                .into_iter()
                .map(|(key, weight)| (last_octet(key.address), weight))
                .collect();
            weights.sort_unstable();
            weights
        }

        fn state(&self, n: u8) -> BackendState {
            let mut backends = self.desired().backends.into_iter();
            backends
                .find(|(key, _)| key.address == address(n))
                .unwrap()
                .1
        }
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn last_octet(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => 0,
        }
    }

    fn hop() -> NextHop {
        NextHop {
            ifindex: 2,
            vlan: None,
            source_mac: [2; 6],
            destination_mac: [4; 6],
            station: Station::Backend,
            mtu_bytes: 1500,
            source: IpAddr::from([10, 0, 0, 254]),
        }
    }

    #[test]
    fn what_detection_limits_stands_beside_the_policy_of_that_vip_only() {
        let mut world = World::new();
        let name = world.config.vips[0].name.clone();
        let before = (world.policy_of(0), world.policy_of(1));
        let limit = SourceLimit {
            class: config::Class::Udp,
            per: config::Scope::Network,
            pps: Some(500),
            bps: None,
            burst: 50,
        };
        let tightening = Tightening {
            limits: vec![limit],
            challenge: true,
        };
        world.tightened.insert(name, tightening);
        let ordered =
            |world: &World, vip: usize| world.desired().vips[&world.config.vips[vip].name].ordered;
        assert_eq!(ordered(&world, 0), Ordered::Challenge);
        assert_eq!(ordered(&world, 1), Ordered::Nothing);
        let tightened = world.policy_of(0).unwrap();
        assert!(tightened.limits.contains(&limit));
        assert_eq!(world.policy_of(1), before.1);

        world.tightened.clear();
        assert_eq!(world.policy_of(0), before.0);
    }

    #[test]
    fn backends_that_are_up_and_reachable_get_their_weight() {
        let world = World::new();
        assert_eq!(world.weights(), [(1, 1), (2, 5), (4, 1)]);
        let ways: Vec<_> = world
            .desired()
            .backends
            .into_iter()
            .map(|(key, state)| (last_octet(key.address), key.forward, state.next_hop))
            .collect();
        let expected = [
            (1, Forward::Ipip, Some(hop())),
            (2, Forward::Gue, Some(hop())),
            (3, Forward::Ipip, Some(hop())),
            (4, Forward::Local, None),
        ];
        assert_eq!(ways, expected);
        assert!((1..=4).all(|n| world.state(n).forwards));
    }

    #[test]
    fn a_down_backend_gets_nothing() {
        let mut world = World::new();
        world.health(1, State::Down);
        assert_eq!(world.weights(), [(2, 5), (4, 1)]);
        assert!(!world.state(1).forwards);
    }

    #[test]
    fn an_unknown_or_draining_backend_keeps_its_flows_and_gets_no_new_ones() {
        let mut world = World::new();
        world.health(1, State::Unknown);
        world.drains.insert("web/10.0.0.2".parse().unwrap());
        assert_eq!(world.weights(), [(4, 1)]);
        assert!(world.state(1).forwards && world.state(2).forwards);

        world.health(2, State::Down);
        assert!(
            !world.state(2).forwards,
            "draining does not make up for down"
        );
    }

    #[test]
    fn backends_of_a_draining_vip_keep_their_flows_and_get_no_new_ones_by_it() {
        let mut world = World::new();
        let lead = |world: &World| {
            let desired = world.desired();
            let table = |vip: &Vip| desired.tables[&vip.table].weights.len();
            desired.vips.values().map(table).collect::<Vec<_>>()
        };
        let before = world.desired().backends;
        assert_eq!(lead(&world), [3, 3]);
        world.drains.insert("vip v4".parse().unwrap());
        assert_eq!(lead(&world), [0, 3]);
        world.drains.insert("pop".parse().unwrap());
        assert_eq!(lead(&world), [0, 0]);
        assert_eq!(world.desired().backends, before);

        // Not even those that would do when all are down.
        world.config.pools[0].all_down = config::AllDown::LastKnown;
        (1..=4).for_each(|n| world.health(n, State::Down));
        assert_eq!(lead(&world), [0, 0]);
    }

    #[test]
    fn a_router_takes_tunnels_to_its_backends_and_nothing_else() {
        let mut world = World::new();
        let through = NextHop {
            station: Station::Router,
            ..hop()
        };
        world.resolution(1, Resolution::Resolved(through));
        assert_eq!(world.weights(), [(1, 1), (2, 5), (4, 1)]);
        for vip in &mut world.config.vips {
            vip.forward = Forward::L2;
        }
        assert_eq!(world.weights(), [(2, 5), (4, 1)]);
        assert_eq!(world.state(1).next_hop, None);

        let ways = ways(&world.config, "web", &world.config.pools[0].backends[0]);
        let reached = next_hop(&ways, &Resolution::Resolved(through));
        assert_eq!(reached, Err(Reason::BehindRouter));
    }

    #[test]
    fn an_unresolved_backend_gets_no_new_flows() {
        let mut world = World::new();
        world.resolution(1, Resolution::Unresolved(Reason::NoRoute));
        world.resolution(4, Resolution::Unresolved(Reason::Local));
        assert_eq!(world.weights(), [(2, 5), (4, 1)]);
        assert_eq!(world.state(1).next_hop, None);
    }

    #[test]
    fn next_hops_are_wanted_of_what_is_not_local() {
        let wanted = wanted_next_hops(&World::new().config);
        assert_eq!(wanted, BTreeSet::from([address(1), address(2), address(3)]));
    }
    #[test]
    fn an_unknown_backend_keeps_what_it_has() {
        let mut world = World::new();
        let table = world.desired().tables.into_values().next().unwrap();
        world.held = table.weights.into_keys().collect();
        world.health(1, State::Unknown);
        assert_eq!(world.weights(), [(1, 1), (2, 5), (4, 1)]);
        world.health(1, State::Down);
        assert_eq!(world.weights(), [(2, 5), (4, 1)]);
    }

    #[test]
    fn the_last_known_backends_forward_though_they_are_down() {
        let mut world = World::new();
        (1..=4).for_each(|n| world.health(n, State::Down));
        assert_eq!(world.weights(), []);
        assert!((1..=4).all(|n| !world.state(n).forwards));
        world.config.pools[0].all_down = config::AllDown::LastKnown;
        assert_eq!(world.weights(), [(1, 1), (2, 5), (4, 1)]);
        assert!([1, 2, 4].into_iter().all(|n| world.state(n).forwards));
        assert!(!world.state(3).forwards, "it has no weight");
    }

    #[test]
    fn checks_take_the_tunnel_that_data_takes() {
        let mut config = World::new().config;
        assert!(targets(&config).iter().all(|target| target.via.is_none()));
        config.pools[0].health.via_tunnel = true;
        let vias: Vec<_> = targets(&config)
            .iter()
            .map(|target| target.via.map(|via| (via.vip.to_string(), via.carrier)))
            .collect();
        let by = |carrier| Some(("192.0.2.10".to_owned(), carrier));
        assert_eq!(
            vias,
            [by(Carrier::Ipip), by(Carrier::Gue), by(Carrier::Ipip), None]
        );
    }
}
