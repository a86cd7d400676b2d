//! From what the data plane holds to what it shall hold: the steps between, in an order that harms no packet.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use sluice_ebpf::{
    abi::{self, BACKEND_FORWARDS, BACKEND_RESOLVED},
    decap::Prefix,
};

use super::{
    BackendKey, Desired, Table, TableKey, Vip,
    encode::{self, Stages},
    error::ApplyError,
};
use crate::config::{Forward, Protocol};

/// What the maps hold, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Image {
    pub policies: BTreeMap<String, abi::Policy>,
    pub backends: BTreeMap<BackendKey, abi::Backend>,
    pub tables: BTreeMap<TableKey, Table>,
    /// `None`: it is there, but how is not known.
    pub vips: BTreeMap<String, Option<VipImage>>,
    /// Sources that the host takes whatever the filter says. `None`: not known.
    pub protected: Option<Vec<Prefix>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VipImage {
    pub place: Place,
    pub mtu_bytes: u16,
    pub flags: u32,
    pub stages: Stages,
    pub answer: abi::SynAnswer,
    /// Its constants; the times are the packets'.
    pub challenge: abi::Challenge,
    pub policy: Option<String>,
    pub table: TableKey,
}

/// Which packets are for a VIP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub prefix: IpNet,
    pub protocol: u8,
    pub port: u16,
    /// Protocols and ports that are the host's own, of all that would be the VIP's.
    pub host_ports: Vec<(u8, u16)>,
}

/// A change to the data plane. Each leaves it consistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    PutPolicy(String),
    PutBackend(BackendKey),
    PutTable(TableKey),
    /// The sources that the host takes whatever the filter says.
    PutProtected,
    PutVip(String),
    /// Packets find exactly the VIPs that are desired from here on.
    FlipIndex,
    RemoveVip(String),
    RemoveTable(TableKey),
    RemoveBackend(BackendKey),
    RemovePolicy(String),
}

impl Image {
    pub(crate) fn of(desired: &Desired, hz: u32) -> Result<Self, ApplyError> {
        let mut image = Self {
            policies: desired
                .policies
                .iter()
                .map(|(name, policy)| (name.clone(), encode::policy(policy, hz)))
                .collect(),
            backends: desired
                .backends
                .iter()
                .map(|(key, state)| (key.clone(), encode::backend(key, state)))
                .collect(),
            tables: desired.tables.clone(),
            vips: BTreeMap::new(),
            protected: Some(
                desired
                    .host
                    .sources
                    .iter()
                    .copied()
                    .map(encode::prefix)
                    .collect(),
            ),
        };
        for (name, vip) in &desired.vips {
            let dangling = || ApplyError::Dangling { vip: name.clone() };
            let policy = match &vip.policy {
                Some(policy) => Some(desired.policies.get(policy).ok_or_else(dangling)?),
                None => None,
            };
            let table = desired.tables.get(&vip.table).ok_or_else(dangling)?;
            if !table
                .weights
                .keys()
                .all(|key| desired.backends.contains_key(key))
            {
                return Err(dangling());
            }
            let place = Place {
                prefix: vip.prefix,
                protocol: encode::protocol(vip.protocol),
                port: vip.port.unwrap_or(0),
                host_ports: host_ports(desired, vip),
            };
            let mut stages = Stages::of(policy, vip.ordered);
            if vip.table.forward == Forward::Local && !desired.host.sources.is_empty() {
                stages.filter |= abi::FILTER_PROTECTED;
            }
            image.vips.insert(
                name.clone(),
                Some(VipImage {
                    place,
                    mtu_bytes: vip.mtu_bytes.unwrap_or(u16::MAX),
                    flags: encode::vip_flags(vip.hash, vip.all_down, policy),
                    stages,
                    answer: encode::answer(policy, vip),
                    challenge: encode::challenge(policy, hz),
                    policy: vip.policy.clone(),
                    table: vip.table.clone(),
                }),
            );
        }
        Ok(image)
    }

    fn place(&self, name: &str) -> Option<Place> {
        Some(self.vips.get(name)?.as_ref()?.place.clone())
    }
}

/// A VIP that takes every port by `local` shares its address with the host: these ports are not the VIP's, unless another
/// VIP of the address has them.
fn host_ports(desired: &Desired, vip: &Vip) -> Vec<(u8, u16)> {
    if vip.port.is_some() || vip.table.forward != Forward::Local {
        return Vec::new();
    }
    let taken = |protocol: Protocol, port: u16| {
        desired.vips.values().any(|other| {
            other.prefix == vip.prefix
                && other.port == Some(port)
                && (other.protocol == protocol || other.protocol == Protocol::Any)
        })
    };
    let ports = desired.host.ports.iter().filter(|(protocol, port)| {
        (vip.protocol == *protocol || vip.protocol == Protocol::Any) && !taken(*protocol, *port)
    });
    ports
        .map(|(protocol, port)| (encode::protocol(*protocol), *port))
        .collect()
}

/// The steps from `actual` to `wanted`; none if they are equal.
pub(crate) fn plan(actual: &Image, wanted: &Image) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(changed(&actual.policies, &wanted.policies).map(Step::PutPolicy));
    if actual.protected != wanted.protected {
        steps.push(Step::PutProtected);
    }
    // One that takes packets no more does so when no table leads there.
    let (lesser, better): (Vec<BackendKey>, Vec<_>) = changed(&actual.backends, &wanted.backends)
        .partition(|key| {
            actual.backends.get(key).is_some_and(|was| {
                was.flags & !wanted.backends[key].flags & (BACKEND_FORWARDS | BACKEND_RESOLVED) != 0
            })
        });
    steps.extend(better.into_iter().map(Step::PutBackend));
    let tables: Vec<TableKey> = changed(&actual.tables, &wanted.tables).collect();
    let vips = wanted.vips.iter().filter(|&(name, vip)| {
        actual.vips.get(name) != Some(vip)
            || vip.as_ref().is_some_and(|vip| tables.contains(&vip.table))
    });
    let put_vips: Vec<Step> = vips.map(|(name, _)| Step::PutVip(name.clone())).collect();
    steps.extend(tables.into_iter().map(Step::PutTable));
    steps.extend(put_vips);
    steps.extend(lesser.into_iter().map(Step::PutBackend));
    let mut names = actual.vips.keys().chain(wanted.vips.keys());
    if names.any(|name| actual.place(name) != wanted.place(name) || actual.place(name).is_none()) {
        steps.push(Step::FlipIndex);
    }
    steps.extend(gone(&actual.vips, &wanted.vips).map(Step::RemoveVip));
    steps.extend(gone(&actual.tables, &wanted.tables).map(Step::RemoveTable));
    steps.extend(gone(&actual.backends, &wanted.backends).map(Step::RemoveBackend));
    steps.extend(gone(&actual.policies, &wanted.policies).map(Step::RemovePolicy));
    steps
}

fn changed<K: Ord + Clone, V: PartialEq>(
    actual: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> impl Iterator<Item = K> {
    wanted
        .iter()
        .filter(|&(key, value)| actual.get(key) != Some(value))
        .map(|(key, _)| key.clone())
}

fn gone<K: Ord + Clone, V>(
    actual: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> impl Iterator<Item = K> {
    actual
        .keys()
        .filter(|key| !wanted.contains_key(key))
        .cloned()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PutPolicy(name) => write!(f, "put policy {name}"),
            Self::PutBackend(key) => write!(f, "put backend {} of pool {}", key.address, key.pool),
            Self::PutTable(key) => write!(f, "put {key}"),
            Self::PutProtected => f.write_str("put protected sources"),
            Self::PutVip(name) => write!(f, "put VIP {name}"),
            Self::FlipIndex => f.write_str("switch the VIP index"),
            Self::RemoveVip(name) => write!(f, "remove VIP {name}"),
            Self::RemoveTable(key) => write!(f, "remove {key}"),
            Self::RemoveBackend(key) => {
                write!(f, "remove backend {} of pool {}", key.address, key.pool)
            }
            Self::RemovePolicy(name) => write!(f, "remove policy {name}"),
        }
    }
}

#[cfg(test)]
mod tests;
