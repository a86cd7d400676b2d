//! What the API answers, as the daemon writes and the command line reads it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    config::Mode,
    detect::{mitigation::PhaseWord, signature::Evidence, trigger::Rates},
    drains::DrainKind,
    limits::ClassWord,
    rules::{Action, Components, Origin},
    sources::Kind,
};

/// A part of a list, or all of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Give it as `after` for what comes next; null if this is the end.
    pub next: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub pop: String,
    /// No VIP of this PoP gets new flows.
    pub draining: bool,
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
    /// Parts of the daemon, each of which is started again if it ends.
    pub tasks: Vec<TaskItem>,
    pub warnings: Vec<String>,
}

/// A part of the daemon. One that panics or hangs is started again, later each time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TaskItem {
    pub name: String,
    /// False: it waits to be started again.
    pub running: bool,
    /// How often it ended.
    pub restarts: u64,
    /// Why it ended the last time.
    pub error: Option<String>,
    /// When it was started the last time, or ended. RFC 3339.
    pub since: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LastReload {
    pub ok: bool,
    pub error: Option<String>,
    /// RFC 3339.
    pub at: String,
}

/// What a reload would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReloadPlan {
    pub config_file: String,
    /// Of the file, hexadecimal.
    pub config_hash: String,
    pub steps: Vec<String>,
    /// Only VIPs that would not be what they are.
    pub vips: Vec<PlanVip>,
    /// Backends that are new in the file, and taken to be up and reachable here, as `POOL/ADDRESS`.
    pub assumed_up: Vec<String>,
}

/// What would become of a VIP.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlanVip {
    pub name: String,
    pub change: PlanChange,
    /// Of its lookup table.
    pub slots: u32,
    /// Those that would lead to another backend: this share of new flows.
    pub slots_moved: u32,
    /// Live flows that stay at their backend, about.
    pub flows_stay: u64,
    /// Live flows that cannot stay, because their backend goes.
    pub flows_lost: u64,
    /// VIPs whose flows are among these: flows are counted by backend.
    pub flows_shared_with: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlanChange {
    Added,
    Removed,
    Changed,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InterfaceItem {
    pub name: String,
    pub mode: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VipItem {
    pub name: String,
    pub prefix: String,
    pub protocol: String,
    pub port: Option<u16>,
    pub pool: String,
    pub forward: String,
    pub policy: Option<String>,
    /// It gets no new flows, for its own sake or its PoP's.
    pub draining: bool,
    /// Sent to backends, answered, or passed to the host.
    pub packets: u64,
    pub bytes: u64,
    pub dropped_packets: u64,
    pub verdicts: Verdicts,
    /// SYNs that were answered with a challenge.
    pub challenged_packets: u64,
    pub backends_up: usize,
}

/// Packets by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verdicts {
    /// To the host.
    pub pass: Counted,
    /// Out where they came in: most that go to backends, and answers.
    pub tx: Counted,
    /// To backends by another interface.
    pub redirect: Counted,
    pub drop: Counted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counted {
    pub packets: u64,
    /// From the IP header on.
    pub bytes: u64,
}

/// One for each pool and address, in however many ways packets reach it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BackendItem {
    pub pool: String,
    pub address: String,
    pub state: StateWord,
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

/// How a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StateWord {
    /// Not checked yet.
    Unknown,
    Up,
    Down,
    Draining,
    /// It drains, and has no live flows left.
    Drained,
}

impl StateWord {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FlowItem {
    pub pool: String,
    pub address: String,
    pub forward: String,
    pub flows: u64,
}

/// Live flows by backend, and all of them by state.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Flows {
    pub items: Vec<FlowItem>,
    pub next: Option<String>,
    pub proven: u64,
    pub unproven: u64,
    pub capacity: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DropItem {
    /// Absent: of packets that were for no VIP.
    pub vip: Option<String>,
    pub reason: String,
    /// `enforce`, or `monitor` for what would have been dropped.
    pub mode: String,
    pub packets: u64,
    pub bytes: u64,
}

/// A router that VIPs are announced to by BGP. This version speaks none, and so has no peers.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PeerItem {
    #[schema(value_type = String, example = "192.0.2.254")]
    pub address: IpAddr,
    /// The session is established.
    pub up: bool,
}

/// A limit as it was asked for, and what it counted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LimitItem {
    pub id: u64,
    #[schema(value_type = String, example = "198.51.100.0/24")]
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

/// A rule as it was asked for, and what it counted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleItem {
    pub id: u64,
    /// The whole rule as text.
    #[schema(example = "proto 17; sport 53 -> drop")]
    pub rule: String,
    #[serde(rename = "match")]
    pub components: Components,
    /// Absent: any VIP.
    pub vip: Option<String>,
    pub action: Action,
    pub mode: Mode,
    /// The lowest first.
    pub priority: u16,
    pub established: bool,
    pub ttl_seconds: Option<u64>,
    pub comment: String,
    pub origin: Origin,
    /// Changes with each change of the rule; `If-Match` takes it.
    pub etag: String,
    /// RFC 3339 with milliseconds, as `expires`; absent for rules of the config.
    pub created: Option<String>,
    /// Absent: it stays until it is removed.
    pub expires: Option<String>,
    pub matched_packets: u64,
    pub matched_bytes: u64,
    /// With mode `monitor` they were not dropped.
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
}

/// Sources that are denied or allowed: a prefix, or a named set of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SourceItem {
    pub id: u64,
    pub kind: Kind,
    /// Absent: it is a single prefix.
    pub name: Option<String>,
    /// Absent: it is a named set.
    #[schema(value_type = Option<String>, example = "198.51.100.0/24")]
    pub prefix: Option<IpNet>,
    /// Absent: it is for all VIPs.
    pub vip: Option<String>,
    pub mode: Mode,
    /// Ranges of IPv4 addresses that it has; neighbours are one.
    pub ranges_v4: usize,
    /// IPv6 prefixes that no other one of it covers.
    pub prefixes_v6: usize,
    pub ttl_seconds: Option<u64>,
    pub comment: String,
    /// It stands in the config file.
    pub of_config: bool,
    /// Changes with each change of the entry; `If-Match` takes it.
    pub etag: String,
    /// RFC 3339 with milliseconds, as `expires`; absent for sets of the config.
    pub created: Option<String>,
    /// Absent: it stays until it is removed.
    pub expires: Option<String>,
    /// Absent, as the next ones, for a single prefix: these are counted together.
    pub matched_packets: Option<u64>,
    pub matched_bytes: Option<u64>,
    pub dropped_packets: Option<u64>,
    pub dropped_bytes: Option<u64>,
}

/// An entry that was set and, if a list was given, what was read of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SourceDone {
    #[serde(flatten)]
    pub entry: SourceItem,
    /// Lines with prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<usize>,
    /// Lines that are no prefixes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<usize>,
    /// The first of these, with the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad: Option<Vec<String>>,
}

/// What a rule would have meant lately, by samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RulePreview {
    /// The whole rule as text.
    pub rule: String,
    /// How far back the samples reach, at most a minute.
    pub seconds: u64,
    pub samples: usize,
    pub matched_samples: usize,
    /// Estimated from the samples, among them packets of proven flows.
    pub matched_packets: u64,
    pub matched_bytes: u64,
    /// Those of them that something dropped already.
    pub dropped_packets: u64,
}

/// What became of an array of rules.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RulesDone {
    pub created: usize,
    pub replaced: usize,
    /// In the order in which they were given.
    pub ids: Vec<u64>,
}

/// What detection raised against an attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MitigationItem {
    pub id: u64,
    /// Absent: all VIPs.
    pub vip: Option<String>,
    /// Of the packets: `syn`, `udp`, `icmp`, `other` or `established`.
    pub class: String,
    /// `rule`, `prefix_limits`, `challenge`, `cap` or `upstream`.
    pub measure: String,
    /// In words; of a rule what it fits.
    pub what: String,
    pub state: PhaseWord,
    /// Why the data plane did not take it; absent unless `state` is `refused`. It is tried again while its attack goes on.
    pub refusal: Option<String>,
    /// Whether it acts; otherwise it counts. Absent in events.
    pub enforced: Option<bool>,
    /// Why it is believed to be right; absent if it is no rule.
    pub evidence: Option<Evidence>,
    /// When it was raised: what came, and from where on that is an attack.
    pub rates: Rates,
    pub trigger: Rates,
    /// RFC 3339 with milliseconds.
    pub created: String,
    /// How often its packets came back.
    pub returns: u32,
    pub matched_packets: u64,
}

/// Who sends most, scaled from samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Talkers {
    pub samples: usize,
    /// How many packets a sample stands for, on average.
    pub packets_per_sample: f64,
    /// Source networks: /24 and /48.
    pub networks: Vec<TalkerRow>,
    pub source_ports: Vec<TalkerRow>,
    pub destination_ports: Vec<TalkerRow>,
    /// Lengths of packets from their IP header on, in bytes.
    pub lengths: Vec<TalkerRow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TalkerRow {
    pub what: String,
    pub pps: u64,
    pub bps: u64,
    pub dropped_pps: u64,
    pub dropped_bps: u64,
}

/// An attack on a class of a VIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttackItem {
    /// Absent: many VIPs.
    pub vip: Option<String>,
    pub class: String,
    /// Now; of one that is over, the most that was seen.
    pub rates: Rates,
    pub trigger: Rates,
}

/// What became of many limits.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LimitsDone {
    pub created: usize,
    /// Limits for the same packets that these took the place of.
    pub replaced: usize,
    /// In the order of the request.
    pub ids: Vec<u64>,
}

/// A limit that was set, without what it counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LimitSummary {
    pub id: u64,
    #[schema(value_type = String, example = "198.51.100.0/24")]
    pub prefix: IpNet,
    pub vip: Option<String>,
    pub class: ClassWord,
    pub pps: Option<u64>,
    pub bps: Option<u64>,
    pub mode: Mode,
    pub expires: Option<String>,
    pub comment: String,
}

/// An event, and when it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Told {
    /// RFC 3339.
    pub at: String,
    #[serde(flatten)]
    pub what: EventItem,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventItem {
    LimitSet {
        limit: LimitSummary,
    },
    /// Many in one request; the ids of the first 1,000.
    LimitsSet {
        count: usize,
        ids: Vec<u64>,
    },
    LimitRemoved {
        id: u64,
    },
    /// Its time was over.
    LimitExpired {
        id: u64,
    },
    /// The time of many was over; the ids of the first 1,000.
    LimitsExpired {
        count: usize,
        ids: Vec<u64>,
    },
    RuleSet {
        id: u64,
        /// The whole rule as text.
        rule: String,
    },
    /// Many in one request; the ids of the first 1,000.
    RulesSet {
        count: usize,
        ids: Vec<u64>,
    },
    RuleRemoved {
        id: u64,
    },
    /// Its time was over.
    RuleExpired {
        id: u64,
    },
    /// The time of many was over; the ids of the first 1,000.
    RulesExpired {
        count: usize,
        ids: Vec<u64>,
    },
    /// Sources are denied or allowed.
    SourceSet {
        id: u64,
        kind: Kind,
        name: Option<String>,
        #[schema(value_type = Option<String>)]
        prefix: Option<IpNet>,
        vip: Option<String>,
    },
    SourceRemoved {
        id: u64,
    },
    /// Its time was over.
    SourceExpired {
        id: u64,
    },
    /// The time of many was over; the ids of the first 1,000.
    SourcesExpired {
        count: usize,
        ids: Vec<u64>,
    },
    DrainBegun {
        kind: DrainKind,
        name: String,
    },
    /// What drains has no live flows left.
    Drained {
        kind: DrainKind,
        name: String,
    },
    DrainEnded {
        kind: DrainKind,
        name: String,
    },
    /// A health transition of a backend.
    Health {
        pool: String,
        address: String,
        /// As `state`.
        before: String,
        /// `unknown`, `up` or `down`.
        state: String,
        error: Option<String>,
    },
    ReloadDone {
        config_hash: String,
    },
    /// The config before stays in force.
    ReloadRefused {
        error: String,
    },
    /// Somebody else changed the data plane, and it is as it should be again.
    Healed {
        what: Vec<String>,
    },
    /// Above the floor, which stands as its trigger, while peace is being learned.
    Unjudged(AttackItem),
    AttackBegan(AttackItem),
    AttackEnded(AttackItem),
    /// Nothing tells the attack from innocent packets; another measure follows.
    NoRule {
        attack: AttackItem,
        why: String,
    },
    MitigationRaised {
        mitigation: MitigationItem,
    },
    /// Its packets are back.
    MitigationRearmed {
        mitigation: MitigationItem,
    },
    /// It only counts from now on.
    MitigationShadowed {
        mitigation: MitigationItem,
    },
    /// The data plane did not take it: it does nothing.
    MitigationRefused {
        mitigation: MitigationItem,
    },
    MitigationForgotten {
        id: u64,
    },
    MitigationReverted {
        id: u64,
    },
    MitigationAllowed {
        id: u64,
    },
    /// Events came here that are not known any more; how many, if that can be told.
    Lost {
        events: Option<u64>,
    },
    /// The stream ends, and why.
    Closed {
        reason: String,
    },
}

impl EventItem {
    /// The word for it, as in `event`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::LimitSet { .. } => "limit_set",
            Self::LimitsSet { .. } => "limits_set",
            Self::LimitRemoved { .. } => "limit_removed",
            Self::LimitExpired { .. } => "limit_expired",
            Self::LimitsExpired { .. } => "limits_expired",
            Self::RuleSet { .. } => "rule_set",
            Self::RulesSet { .. } => "rules_set",
            Self::RuleRemoved { .. } => "rule_removed",
            Self::RuleExpired { .. } => "rule_expired",
            Self::RulesExpired { .. } => "rules_expired",
            Self::SourceSet { .. } => "source_set",
            Self::SourceRemoved { .. } => "source_removed",
            Self::SourceExpired { .. } => "source_expired",
            Self::SourcesExpired { .. } => "sources_expired",
            Self::DrainBegun { .. } => "drain_begun",
            Self::Drained { .. } => "drained",
            Self::DrainEnded { .. } => "drain_ended",
            Self::Health { .. } => "health",
            Self::ReloadDone { .. } => "reload_done",
            Self::ReloadRefused { .. } => "reload_refused",
            Self::Healed { .. } => "healed",
            Self::Unjudged(_) => "unjudged",
            Self::AttackBegan(_) => "attack_began",
            Self::AttackEnded(_) => "attack_ended",
            Self::NoRule { .. } => "no_rule",
            Self::MitigationRaised { .. } => "mitigation_raised",
            Self::MitigationRearmed { .. } => "mitigation_rearmed",
            Self::MitigationShadowed { .. } => "mitigation_shadowed",
            Self::MitigationRefused { .. } => "mitigation_refused",
            Self::MitigationForgotten { .. } => "mitigation_forgotten",
            Self::MitigationReverted { .. } => "mitigation_reverted",
            Self::MitigationAllowed { .. } => "mitigation_allowed",
            Self::Lost { .. } => "lost",
            Self::Closed { .. } => "closed",
        }
    }
}
