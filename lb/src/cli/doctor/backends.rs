//! The way to the backends, and what they do with what arrives.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};

use super::{Report, State as Gravity};
use crate::{
    api::model::{BackendItem, Page, StateWord, Status},
    cli::client::Client,
    config::{Backend, Check, Config, Forward, Pool, Vip, XdpMode},
    control::chain,
    dataplane::{self, Attached, Mode},
    desired,
    health::{Checker, Snapshot, State, Target},
    net::{self, Resolution, Resolutions, Resolver, XdpFeatures},
};

/// What a tunnel adds, by the family of its outer addresses: the IP header, and UDP's.
const OUTER_V4_BYTES: u16 = 20;
const OUTER_V6_BYTES: u16 = 40;
const UDP_BYTES: u16 = 8;
/// How long neighbours, and then checks, may take.
const PATIENCE: Duration = Duration::from_secs(4);
const PROBE_INTERVAL: Duration = Duration::from_millis(200);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn check(
    config: &Config,
    client: &Client,
    status: Option<&Status>,
    report: &mut Report,
) {
    let resolutions = match resolve(config).await {
        Ok(resolutions) => resolutions,
        Err(error) => {
            report.fail("neighbours", None, error, "is netlink forbidden here?");
            return;
        }
    };
    for (pool, backend) in backends(config) {
        check_neighbour(config, pool, backend, &resolutions, report);
    }
    if status.is_none() {
        check_egress(config, &resolutions, report);
    }
    check_mtu(config, &resolutions, report).await;
    check_tunnels(config, client, status, report).await;
}

/// Whether packets go to any backend by a tunnel.
pub(super) fn uses_tunnels(config: &Config) -> bool {
    ways(config).any(|(_, _, forward)| overhead(forward, true) > 0)
}

/// Every backend of every pool.
fn backends(config: &Config) -> impl Iterator<Item = (&Pool, &Backend)> {
    let pools = config.pools.iter();
    pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
}

/// Every way by which packets reach a backend.
fn ways(config: &Config) -> impl Iterator<Item = (&Vip, &Backend, Forward)> {
    config.vips.iter().flat_map(|vip| {
        let pool = config.pools.iter().find(|pool| pool.name == vip.pool);
        let backends = pool.into_iter().flat_map(|pool| &pool.backends);
        backends.map(move |backend| (vip, backend, desired::way(backend, vip.forward)))
    })
}

fn overhead(forward: Forward, v4: bool) -> u16 {
    let ip = if v4 { OUTER_V4_BYTES } else { OUTER_V6_BYTES };
    match forward {
        Forward::L2 | Forward::Local => 0,
        Forward::Ipip => ip,
        Forward::Gue => ip + UDP_BYTES,
    }
}

/// The next hops of all backends, as soon as all are known, or as they are when patience ends.
async fn resolve(config: &Config) -> Result<Resolutions, String> {
    let wanted = Arc::new(desired::wanted_next_hops(config));
    let (_keep, receiver) = watch::channel(wanted.clone());
    let resolver = Resolver::start(receiver).map_err(|error| error.to_string())?;
    let mut resolutions = resolver.resolutions();
    let known = |resolutions: &Resolutions| {
        let settled = |resolution: &Resolution| {
            !matches!(
                resolution,
                Resolution::Unresolved(net::Reason::NeighbourIncomplete)
            )
        };
        resolutions.len() == wanted.len() && resolutions.values().all(settled)
    };
    let end = Instant::now() + PATIENCE;
    // At the end of patience, what is known by then counts.
    drop(timeout_at(end, resolutions.wait_for(known)).await);
    let resolutions = resolutions.borrow().clone();
    Ok(resolutions)
}

fn check_neighbour(
    config: &Config,
    pool: &Pool,
    backend: &Backend,
    resolutions: &Resolutions,
    report: &mut Report,
) {
    // By `local` there is none to resolve, and a pool without VIPs needs none.
    let Some(resolution) = resolutions.get(&backend.address) else {
        return;
    };
    let name = format!("{}/{}", pool.name, backend.address);
    let ways = desired::ways(config, &pool.name, backend);
    match desired::next_hop(&ways, resolution) {
        Ok(_) => report.ok("neighbours", Some(&name), "its next hop is known"),
        Err(reason) => report.fail_for("neighbours", Some(&name), &reason.to_string()),
    }
}

/// Before a start: interfaces that are named get their program by then, and what their drivers can do is known after that,
/// when the daemon tells.
fn check_egress(config: &Config, resolutions: &Resolutions, report: &mut Report) {
    let mode = config.dataplane.mode;
    let attached = config.dataplane.interfaces.iter().filter_map(|name| {
        let index = net::if_index(name).ok()?;
        let features = net::xdp_features(index).ok()?;
        let is_native = mode != XdpMode::Generic && features.contains(XdpFeatures::NATIVE);
        Some(Attached {
            name: name.clone(),
            index,
            mode: if is_native {
                Mode::Native
            } else {
                Mode::Generic
            },
        })
    });
    let attached: Vec<Attached> = attached.collect();
    let is_named = |index| attached.iter().any(|attached| attached.index == index);
    let egresses = resolutions
        .values()
        .filter_map(|resolution| match resolution {
            Resolution::Resolved(next_hop) if !is_named(next_hop.ifindex) => Some(next_hop.ifindex),
            _ => None,
        });
    for lost in dataplane::lost_redirects(&attached, &egresses.collect()) {
        report.fail_for("egress", None, &lost);
    }
}

async fn check_mtu(config: &Config, resolutions: &Resolutions, report: &mut Report) {
    let Ok(interfaces) = net::interfaces().await else {
        return;
    };
    let ingress = interfaces
        .iter()
        .filter(|interface| config.dataplane.interfaces.contains(&interface.name))
        .map(|interface| interface.mtu_bytes)
        .max()
        .unwrap_or(1500);
    let mut seen = BTreeSet::new();
    for (vip, backend, forward) in ways(config) {
        let adds = overhead(forward, backend.address.is_ipv4());
        let Some(Resolution::Resolved(hop)) = resolutions.get(&backend.address) else {
            continue;
        };
        let path = hop.mtu_bytes.min(vip.mtu_bytes.unwrap_or(u16::MAX));
        if adds == 0 || !seen.insert((&vip.pool, backend.address, forward, path)) {
            continue;
        }
        let name = format!("{}/{}", vip.pool, backend.address);
        let needed = ingress + u32::from(adds);
        if u32::from(path) >= needed {
            report.ok(
                "mtu",
                Some(&name),
                format!(
                    "the path takes {path} bytes, enough for packets of {ingress} in the tunnel"
                ),
            );
        } else {
            let fits = path.saturating_sub(adds);
            report.warn(
                "mtu",
                Some(&name),
                format!(
                    "the path takes {path} bytes, and the tunnel adds {adds}: packets over {fits} are answered with \"too big\""
                ),
                format!("let the path take {needed}, or have backends announce a smaller segment size (`advmss`)"),
            );
        }
    }
}

/// Sends checks through the tunnels, as data goes, and beside them to see whose fault it is.
async fn check_tunnels(
    config: &Config,
    client: &Client,
    status: Option<&Status>,
    report: &mut Report,
) {
    let probes = probes(config);
    let (tunnelled, direct): (Vec<Target>, Vec<Target>) = probes
        .into_iter()
        .filter(|target| target.via.is_some())
        .map(|target| {
            let direct = Target {
                via: None,
                ..target.clone()
            };
            (target, direct)
        })
        .unzip();
    if tunnelled.is_empty() {
        return;
    }
    // The daemon's checks have the device that ours would need: what it found is as good.
    if status.is_some() && config.pools.iter().any(|pool| pool.health.via_tunnel) {
        ask_daemon(config, client, &tunnelled, report).await;
        return;
    }
    let (tunnelled, direct) = tokio::join!(probe(tunnelled), probe(direct));
    let (tunnelled, direct) = match (tunnelled, direct) {
        (Ok(tunnelled), Ok(direct)) => (tunnelled, direct),
        (Err(error), _) | (_, Err(error)) => {
            report.fail("tunnel", None, error, "run as root");
            return;
        }
    };
    for ((pool, address), found) in &tunnelled {
        let name = format!("{pool}/{address}");
        let beside = direct.get(&(pool.clone(), *address));
        let error = found.error.clone().unwrap_or_else(|| "no answer".into());
        match (found.state, beside.map(|beside| beside.state)) {
            (State::Up, _) => report.ok("tunnel", Some(&name), "it takes the tunnel off and answers"),
            (_, Some(State::Up)) => report.fail(
                "tunnel",
                Some(&name),
                format!("it answers directly, and not through the tunnel ({error})"),
                "there: run `sluice decap` or a tunnel device, put the VIP on lo, and turn rp_filter off",
            ),
            _ => report.fail(
                "tunnel",
                Some(&name),
                format!("it answers neither directly nor through the tunnel ({error})"),
                "start its server; then ask again",
            ),
        }
    }
}

async fn ask_daemon(config: &Config, client: &Client, targets: &[Target], report: &mut Report) {
    let rows: Page<BackendItem> = match client.list("/v1/backends").await {
        Ok(rows) => rows,
        Err(error) => {
            report.warn("tunnel", None, chain(&error), "is the daemon about to end?");
            return;
        }
    };
    for target in targets {
        let name = format!("{}/{}", target.pool, target.address);
        let through = config
            .pools
            .iter()
            .any(|pool| pool.name == target.pool && pool.health.via_tunnel);
        if !through {
            report.warn(
                "tunnel",
                Some(&name),
                "not probed: the daemon's own checks use the device that it takes",
                "set `via_tunnel = true` in its health check too",
            );
            continue;
        }
        let address = target.address.to_string();
        let row = rows
            .items
            .iter()
            .find(|row| row.pool == target.pool && row.address == address);
        match row {
            Some(row) if row.state == StateWord::Down => report.add(
                "tunnel",
                Some(&name),
                Gravity::Fail,
                format!(
                    "the daemon's checks through the tunnel fail ({})",
                    row.error.as_deref().unwrap_or("no answer")
                ),
                Some("there: is its server up, `sluice decap` running, the VIP on lo, rp_filter off?".into()),
            ),
            Some(row) if row.state == StateWord::Unknown => report.warn(
                "tunnel",
                Some(&name),
                "the daemon has not checked it yet",
                "ask again in a moment",
            ),
            _ => report.ok("tunnel", Some(&name), "the daemon's checks through the tunnel pass"),
        }
    }
}

/// A quick check for every backend, by the way that its data goes.
fn probes(config: &Config) -> Vec<Target> {
    let mut config = config.clone();
    for pool in &mut config.pools {
        let health = &mut pool.health;
        health.via_tunnel = true;
        if health.check == Check::None {
            health.check = Check::Icmp;
        }
        (health.rise, health.fall) = (1, 2);
        (health.interval, health.fast_interval) = (PROBE_INTERVAL, PROBE_INTERVAL);
        health.jitter = Duration::ZERO;
        health.timeout = health.timeout.min(PROBE_TIMEOUT);
    }
    desired::targets(&config)
}

/// Checks all targets until each is known to be up or down, or patience ends.
async fn probe(targets: Vec<Target>) -> Result<BTreeMap<(String, IpAddr), Found>, String> {
    let all = targets.len();
    let (_keep, receiver) = watch::channel(Arc::new(targets));
    let (sender, mut transitions) = mpsc::channel(64);
    let checker = Checker::start(receiver, sender, Snapshot::default())
        .map_err(|error| format!("no thread for the checks: {error}"))?;
    let mut snapshot = checker.snapshot();
    let known = |snapshot: &Snapshot| {
        snapshot.len() == all
            && snapshot
                .values()
                .all(|status| status.state != State::Unknown)
    };
    let done = async {
        tokio::select! {
            _known = snapshot.wait_for(known) => {}
            () = sleep(PATIENCE) => {}
        }
    };
    tokio::select! {
        () = done => {}
        // Each is told, and nobody stops the checks by not listening.
        () = async { while transitions.recv().await.is_some() {} } => {}
    }
    let snapshot = checker.snapshot().borrow().clone();
    let found = snapshot.iter().map(|(key, status)| {
        let found = Found {
            state: status.state,
            error: status.error.clone(),
        };
        (key.clone(), found)
    });
    Ok(found.collect())
}

struct Found {
    state: State,
    error: Option<String>,
}
