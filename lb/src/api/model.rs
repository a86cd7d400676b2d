//! What the API answers, as the daemon writes and the command line reads it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{config::Mode, limits::ClassWord};

/// A part of a list, or all of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `after` for what comes next; null if this is the end.
    pub next: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pop: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    /// The data plane holds what the config asks for.
    pub ready: bool,
    /// Maps and program were taken over from an earlier daemon.
    pub adopted: bool,
    pub config_file: String,
    /// Hexadecimal.
    pub config_hash: String,
    pub last_reload: LastReload,
    pub interfaces: Vec<InterfaceItem>,
    pub vips: usize,
    pub backends: usize,
    pub backends_up: usize,
    pub flows: u64,
    pub flow_capacity: u64,
    pub program_id: Option<u32>,
    /// Rights of root that the daemon kept.
    pub capabilities: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastReload {
    pub ok: bool,
    pub error: Option<String>,
    /// RFC 3339.
    pub at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InterfaceItem {
    pub name: String,
    pub mode: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VipItem {
    pub name: String,
    pub prefix: String,
    pub protocol: String,
    pub port: Option<u16>,
    pub pool: String,
    pub forward: String,
    pub policy: Option<String>,
    /// Sent to backends, answered, or passed to the host.
    pub packets: u64,
    pub bytes: u64,
    pub dropped_packets: u64,
    pub backends_up: usize,
}

/// One for each pool and address, in however many ways packets reach it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendItem {
    pub pool: String,
    pub address: String,
    /// `unknown`, `up`, `down`, `draining`, or `drained` when it has no live flows left.
    pub state: String,
    pub weight: u16,
    /// With commas between them if VIPs differ; absent if no VIP uses the pool.
    pub forward: Option<String>,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub resolved: bool,
    pub unresolved_reason: Option<String>,
    pub mac: Option<String>,
    pub interface: Option<String>,
    /// Of the last health check.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowItem {
    pub pool: String,
    pub address: String,
    pub forward: String,
    pub flows: u64,
}

/// Live flows by backend, and all of them by state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flows {
    pub items: Vec<FlowItem>,
    pub next: Option<String>,
    pub proven: u64,
    pub unproven: u64,
    pub capacity: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropItem {
    /// Absent: of packets that were for no VIP.
    pub vip: Option<String>,
    pub reason: String,
    /// `enforce`, or `monitor` for what would have been dropped.
    pub mode: String,
    pub packets: u64,
    pub bytes: u64,
}

/// A limit as it was asked for, and what it counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitItem {
    pub id: u64,
    pub prefix: IpNet,
    /// Absent: any VIP.
    pub vip: Option<String>,
    pub class: ClassWord,
    pub pps: Option<u64>,
    pub bps: Option<u64>,
    pub burst: u32,
    pub mode: Mode,
    pub ttl_seconds: Option<u64>,
    pub comment: String,
    /// Changes with each change of the limit; `If-Match` takes it.
    pub etag: String,
    /// RFC 3339 with milliseconds, as `expires`.
    pub created: String,
    /// Absent: it stays until it is removed.
    pub expires: Option<String>,
    pub matched_packets: u64,
    /// Over the limit; with mode `monitor` they were not dropped.
    pub dropped_packets: u64,
}

/// What became of many limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LimitsDone {
    pub created: usize,
    /// Limits for the same packets that these took the place of.
    pub replaced: usize,
    /// In the order of the request.
    pub ids: Vec<u64>,
}
