//! What a reload would do: told beforehand, from the file as it is now and the state as it is now.

mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use super::{Control, Dataplane, Refused, config_file::Reading, control_loop::chain};
use crate::{
    config::{self, Config, Forward, SourceList},
    dataplane::{BackendKey, Moved, Preview, VipChange},
    desired::{self, Inputs, way},
    drains::{BackendName, Drains},
    health::{self, State, Status},
    net::{NextHop, Resolution, Resolutions, Station},
};

/// What a reload would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub config_hash: u64,
    /// In their order; none if the reload would change nothing.
    pub steps: Vec<String>,
    /// VIPs that would not be what they are.
    pub vips: Vec<VipPlan>,
    /// Backends that are new in the file, and taken to be up and reachable here.
    pub assumed_up: Vec<BackendName>,
}

/// What would become of a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipPlan {
    pub name: String,
    pub change: VipChange,
    pub moved: Moved,
    /// Live flows that stay at their backend, and those that cannot. They are counted by backend: with those of VIPs
    /// that have the same.
    pub flows_stay: u64,
    pub flows_lost: u64,
    pub flows_shared_with: Vec<String>,
}

/// What the control loop has to say to a plan. The rest takes longer, and is not done in its time.
#[derive(Debug)]
pub(super) struct Draft {
    before: Arc<Config>,
    after: Config,
    preview: Preview,
    flows: BTreeMap<BackendKey, u64>,
    assumed_up: Vec<BackendName>,
    /// Drains that would end.
    orphans: Drains,
}

impl<P: Dataplane> Control<P> {
    /// Changes nothing.
    pub(super) fn draft(&self, reading: Reading) -> Result<Draft, Refused> {
        if !self.settled {
            let why = "the daemon has just started, and does not know its backends yet; ask again in some seconds";
            return Err(Refused::Busy(why.into()));
        }
        let after = reading.config?;
        self.check_config(&after)?;
        let (mut health, mut resolutions) = (
            self.sources.health.borrow().clone(),
            self.sources.resolutions.borrow().clone(),
        );
        let assumed_up = assume_up(&self.config, &after, &mut health, &mut resolutions);
        let desired = desired::desired(Inputs {
            config: &after,
            health: &health,
            resolutions: &resolutions,
            drains: &self.drains,
            held: &self.held,
            tightened: &self.tightened.load(),
            now: Instant::now(),
        });
        let preview = self.plane.preview(&desired).map_err(|error| {
            Refused::Failed(format!("a reload would be refused: {}", chain(&*error)))
        })?;
        Ok(Draft {
            orphans: self.orphans_of(&after),
            before: self.config.clone(),
            after,
            preview,
            flows: self.figures()?.flows.backends,
            assumed_up,
        })
    }
}

/// Takes backends that are new for up and reachable, and names them: what they are nobody knows before they are checked,
/// and what is asked for is how things will be then.
fn assume_up(
    before: &Config,
    after: &Config,
    health: &mut health::Snapshot,
    resolutions: &mut Resolutions,
) -> Vec<BackendName> {
    let known: BTreeSet<(&str, IpAddr)> = backends(before).collect();
    let new: Vec<_> = backends(after)
        .filter(|backend| !known.contains(backend))
        .collect();
    for &(pool, address) in &new {
        let status = Status::new(State::Up, SystemTime::now());
        Arc::make_mut(health).insert((pool.to_owned(), address), status);
    }
    let wanted = desired::wanted_next_hops(before);
    for address in desired::wanted_next_hops(after).difference(&wanted) {
        let somewhere = NextHop {
            ifindex: 0,
            vlan: None,
            source_mac: [0; 6],
            destination_mac: [0; 6],
            station: Station::Backend,
            mtu_bytes: u16::MAX,
            source: *address,
        };
        Arc::make_mut(resolutions).insert(*address, Resolution::Resolved(somewhere));
    }
    let name = |(pool, address): (&str, IpAddr)| BackendName {
        pool: pool.to_owned(),
        address,
    };
    new.into_iter().map(name).collect()
}

fn backends(config: &Config) -> impl Iterator<Item = (&str, IpAddr)> {
    config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(|backend| (pool.name.as_str(), backend.address))
    })
}

impl Draft {
    pub(super) fn finish(self) -> Plan {
        let mut steps = interface_steps(&self.before, &self.after);
        steps.extend(settings::steps(&self.before, &self.after));
        steps.extend(self.preview.steps().iter().map(ToString::to_string));
        steps.extend(rule_steps(&self.before, &self.after));
        steps.extend(source_steps(&self.before, &self.after));
        let orphans = self.orphans.iter();
        steps.extend(orphans.map(|drain| format!("end drain of {drain}")));
        if steps.is_empty() && *self.before != self.after {
            steps.push("hold what differs in the file; no packet meets it now".to_owned());
        }
        let before = Vips::of(&self.before);
        let after = Vips::of(&self.after);
        let mut changes = self.preview.vips();
        // Where a backend goes that takes no new flows, no slot moves, but its flows do.
        for name in before.names() {
            if !changes.contains_key(name) && self.flows(name, &before, &after).1 > 0 {
                let nothing = Moved { slots: 0, of: 0 };
                changes.insert(name, (VipChange::Changed, nothing));
            }
        }
        let vips = changes.into_iter().map(|(name, (change, moved))| {
            let (flows_stay, flows_lost) = self.flows(name, &before, &after);
            VipPlan {
                name: name.to_owned(),
                change,
                moved,
                flows_stay,
                flows_lost,
                flows_shared_with: before.alike(name),
            }
        });
        Plan {
            config_hash: config::hash(&self.after),
            vips: vips.collect(),
            steps,
            assumed_up: self.assumed_up.clone(),
        }
    }

    /// How many of the flows of a VIP's backends stay, and how many cannot.
    fn flows(&self, vip: &str, before: &Vips<'_>, after: &Vips<'_>) -> (u64, u64) {
        let (mut stay, mut lost) = (0, 0);
        let afterwards = after.backends(vip);
        for key in before.backends(vip) {
            let flows = self.flows.get(&key).copied().unwrap_or_default();
            let is_served = |other: &BackendKey| {
                other.address == key.address && self.preview.would_forward(other)
            };
            let stays = !afterwards.is_empty()
                && (self.preview.would_forward(&key) || afterwards.iter().any(is_served));
            match (stays, self.preview.forwarded(&key)) {
                (true, _) => stay += flows,
                (false, true) => lost += flows,
                // It was down already.
                (false, false) => {}
            }
        }
        (stay, lost)
    }
}

fn interface_steps(before: &Config, after: &Config) -> Vec<String> {
    let (old, new) = (&before.dataplane.interfaces, &after.dataplane.interfaces);
    let attach = new.iter().filter(|name| !old.contains(name));
    let detach = old.iter().filter(|name| !new.contains(name));
    attach
        .map(|name| format!("attach to interface {name}"))
        .chain(detach.map(|name| format!("detach from interface {name}")))
        .collect()
}

fn source_steps(before: &Config, after: &Config) -> impl Iterator<Item = String> {
    let named = |list: &SourceList| {
        let name = list.spec.name.as_deref().unwrap_or_default();
        (list.spec.kind.word(), name.to_owned())
    };
    let put = after
        .sources
        .iter()
        .filter(|list| !before.sources.contains(list))
        .map(named);
    let stays: Vec<_> = after.sources.iter().map(named).collect();
    let remove = before
        .sources
        .iter()
        .map(named)
        .filter(move |list| !stays.contains(list));
    put.map(|(kind, name)| format!("put {kind} set {name}"))
        .chain(remove.map(|(kind, name)| format!("remove {kind} set {name}")))
}

fn rule_steps(before: &Config, after: &Config) -> impl Iterator<Item = String> {
    let put = after
        .rules
        .iter()
        .filter(|rule| !before.rules.contains(rule));
    let remove = before
        .rules
        .iter()
        .filter(|rule| !after.rules.contains(rule));
    put.map(|rule| format!("put rule {rule}"))
        .chain(remove.map(|rule| format!("remove rule {rule}")))
}

/// VIPs of a config, and who serves them.
struct Vips<'a> {
    pools: BTreeMap<&'a str, &'a config::Pool>,
    vips: BTreeMap<&'a str, &'a config::Vip>,
}

impl<'a> Vips<'a> {
    fn of(config: &'a Config) -> Self {
        let pools = config.pools.iter();
        let vips = config.vips.iter();
        Self {
            pools: pools.map(|pool| (pool.name.as_str(), pool)).collect(),
            vips: vips.map(|vip| (vip.name.as_str(), vip)).collect(),
        }
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.vips.keys().copied()
    }

    /// Backends of a VIP, by the ways that its packets take.
    fn backends(&self, vip: &str) -> Vec<BackendKey> {
        let Some(vip) = self.vips.get(vip) else {
            return Vec::new();
        };
        let pool = self.pools.get(vip.pool.as_str());
        let backends = pool.into_iter().flat_map(|pool| &pool.backends);
        backends
            .map(|backend| BackendKey {
                pool: vip.pool.clone(),
                address: backend.address,
                forward: way(backend, vip.forward),
            })
            .collect()
    }

    /// Others whose flows are counted with a VIP's.
    fn alike(&self, name: &str) -> Vec<String> {
        let Some(vip) = self.vips.get(name) else {
            return Vec::new();
        };
        let ways = |forward: Forward| -> BTreeSet<(IpAddr, Forward)> {
            let pool = self.pools.get(vip.pool.as_str()).into_iter();
            let backends = pool.flat_map(|pool| &pool.backends);
            backends
                .map(|backend| (backend.address, way(backend, forward)))
                .collect()
        };
        let own = ways(vip.forward);
        let others = self.vips.values().filter(|other| {
            other.name != name
                && other.pool == vip.pool
                && (other.forward == vip.forward || !ways(other.forward).is_disjoint(&own))
        });
        others.map(|other| other.name.clone()).collect()
    }
}
