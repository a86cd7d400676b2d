//! What the data plane shall hold: made from config, health, next hops and drains; compared with what it holds.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    config::{AllDown, Forward, HashInput, Host, Policy, Protocol},
    net::NextHop,
};

/// Everything but exact limits, which come and go one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    pub backends: BTreeMap<BackendKey, BackendState>,
    /// One lookup table for each pool and way of forwarding that some VIP uses.
    pub tables: BTreeMap<TableKey, Table>,
    /// By name.
    pub vips: BTreeMap<String, Vip>,
    /// By name.
    pub policies: BTreeMap<String, Policy>,
    /// What the host must get, whatever the filter says.
    pub host: Host,
}

/// One backend reached in one way: what has a number in the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendKey {
    pub pool: String,
    pub address: IpAddr,
    pub forward: Forward,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendState {
    /// Takes packets of flows that it has: up or draining, not down.
    pub forwards: bool,
    /// `None`: unresolved; its packets are dropped with a reason, and it takes no new flows.
    pub next_hop: Option<NextHop>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableKey {
    /// Empty, as no pool's name is: see [`TableKey::nowhere`].
    pub pool: String,
    /// The VIP's way; backends may override it.
    pub forward: Forward,
}

impl TableKey {
    /// Of the table that VIPs have which shall get no new flows.
    #[must_use]
    pub fn nowhere(forward: Forward) -> Self {
        Self {
            pool: String::new(),
            forward,
        }
    }

    #[must_use]
    pub fn is_nowhere(&self) -> bool {
        self.pool.is_empty()
    }
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_nowhere() {
            return f.write_str("lookup table without backends");
        }
        write!(f, "lookup table of pool {}", self.pool)
    }
}

/// A lookup table's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub slots: u32,
    /// Backends that take new flows, with weights above zero. Empty: packets are dropped as `no_backend`.
    pub weights: BTreeMap<BackendKey, u16>,
}

impl Table {
    /// Without backends, and without room for any.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            slots: 0,
            weights: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Vip {
    pub prefix: ipnet::IpNet,
    pub protocol: Protocol,
    pub port: Option<u16>,
    pub table: TableKey,
    pub mtu_bytes: Option<u16>,
    pub hash: HashInput,
    /// Of its pool.
    pub all_down: AllDown,
    pub policy: Option<String>,
    pub ordered: Ordered,
}

/// What was ordered for a VIP at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordered {
    /// Its policy alone says what becomes of its SYNs.
    #[default]
    Nothing,
    /// Every SYN is challenged.
    Challenge,
}
