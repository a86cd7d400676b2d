//! What the control loop asks of a data plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use sluice_ebpf::{
    abi::{ChallengeStats, Count, DropReason, FlowStats, RuleCounts, VipStats},
    amplification::Preset,
};

use crate::{
    config::Mode,
    dataplane::{
        BackendKey, CrowdingByClass, Desired, ExactCounters, Preview, SourceCounts, SourceSet,
    },
    limits::LimitSpec,
    rules::RuleSpec,
};

/// Why the data plane did not do what it was asked for.
pub type Failure = Box<dyn Error + Send + Sync>;

/// The data plane in the kernel; in tests, one in memory.
pub trait Dataplane {
    /// Makes it hold `desired`, whatever it held before. Returns what this took, a line for each step.
    fn apply(&mut self, desired: &Desired) -> Result<Vec<String>, Failure>;

    /// What [`Dataplane::apply`] would take and move, or why it would be refused.
    fn preview(&self, desired: &Desired) -> Result<Preview, Failure>;

    /// Clears away what flows left behind. Called every few seconds.
    fn sweep(&mut self) {}

    /// Compares what the kernel holds with what was put there, and tells in words what somebody else changed. The next
    /// [`Dataplane::apply`] puts right what is not yet. Called every few seconds.
    fn audit(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Backends that take new flows, also where an earlier daemon put them.
    fn in_tables(&self) -> BTreeSet<BackendKey>;

    /// All figures, read from the maps now.
    fn figures(&self) -> Result<Figures, Failure>;

    /// Live flows alone, which cost less.
    fn flows(&self) -> FlowFigures;

    /// The figures, and what only metrics show.
    fn measure(&mut self) -> Result<Measured, Failure>;

    /// Where it is attached now.
    fn attachments(&self) -> Vec<Attachment>;

    /// What an operator should know of how it works now, a sentence each.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Attaches to exactly these interfaces; those that stay are not touched.
    fn set_interfaces(&mut self, names: &[String]) -> Result<(), Failure>;

    /// Of the program that is attached.
    fn program_id(&self) -> Option<u32>;

    /// The number of each VIP.
    fn vip_numbers(&self) -> BTreeMap<String, u16>;

    /// Whether limits for this VIP can be set.
    fn has_vip(&self, name: &str) -> bool;

    /// Makes it hold exactly these limits, and tells the number of each. Called once, before any other change of limits.
    fn adopt_limits(&mut self, specs: &[LimitSpec]) -> Vec<Result<u32, Failure>>;

    /// Adds a limit, and tells its number. It acts on the next packet.
    fn insert_limit(&mut self, spec: &LimitSpec) -> Result<u32, Failure>;

    /// Makes a limit be another, and tells its number then.
    fn replace_limit(&mut self, number: u32, spec: &LimitSpec) -> Result<u32, Failure>;

    /// Makes a limit act on no packet any more, more quickly than it is removed. That is still to be done.
    fn cease_limit(&mut self, number: u32);

    fn remove_limit(&mut self, number: u32) -> Result<(), Failure>;

    fn limit_counters(&self, number: u32) -> Option<ExactCounters>;

    /// Makes packets meet exactly these rules, in this order, each with its id. On an error they meet those from before.
    fn set_rules(&mut self, rules: &[(u64, &RuleSpec)]) -> Result<(), Failure>;

    /// What each rule counted, by id.
    fn rule_counts(&self) -> BTreeMap<u64, RuleCounts>;

    /// Makes packets meet exactly these sets of sources. On an error they meet those from before; at the first call, those
    /// that there is room for.
    fn set_sources(&mut self, sets: &[SourceSet]) -> Result<(), Failure>;

    /// What each set counted, by number.
    fn source_counts(&self) -> BTreeMap<u8, SourceCounts>;
}

/// An interface whose packets the program sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    /// `native` or `generic`.
    pub mode: &'static str,
}

/// What the maps count. Everything is by name; what has no name any more is left out.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub vips: BTreeMap<String, VipStats>,
    /// Only those that are not zero.
    pub drops: Vec<DropFigure>,
    /// Answers that nobody asked for, of services that are abused to amplify.
    pub amplified: Vec<(Preset, Mode, Count)>,
    /// Of VIPs whose SYNs were looked at.
    pub challenges: BTreeMap<String, ChallengeStats>,
    pub backends: BTreeMap<BackendKey, Count>,
    pub flow_stats: FlowStats,
    pub flows: FlowFigures,
    /// By VIP: equal on load balancers that choose alike.
    pub checksums: BTreeMap<String, u64>,
}

/// What metrics show.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub figures: Figures,
    pub crowding: CrowdingByClass,
    /// Mean time of the program for a packet; `None` while nothing is known.
    pub xdp_ns_per_packet: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropFigure {
    /// `None`: of packets that were for no VIP.
    pub vip: Option<String>,
    pub reason: DropReason,
    /// `Monitor`: what would have been dropped.
    pub mode: Mode,
    pub count: Count,
}

/// Live entries of the flow table.
#[derive(Clone, Debug, Default)]
pub struct FlowFigures {
    pub backends: BTreeMap<BackendKey, u64>,
    pub proven: u64,
    pub unproven: u64,
    pub capacity: u64,
}
