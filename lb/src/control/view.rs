//! What readers see of the control loop: a snapshot that never changes, replaced as a whole.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use crate::{
    config::Config, control::dataplane::Attachment, dataplane::Desired, drains::Drains, health,
    net::Resolutions,
};

/// The state at one moment.
#[derive(Clone, Debug)]
pub struct View {
    pub config: Arc<Config>,
    pub config_hash: u64,
    pub desired: Arc<Desired>,
    pub health: health::Snapshot,
    pub resolutions: Resolutions,
    pub drains: Arc<Drains>,
    pub last_reload: Reload,
    /// The data plane holds what is desired, for the first time since the start.
    pub ready: bool,
    /// Maps and program were those of an earlier daemon.
    pub adopted: bool,
    /// Numbers that VIPs have in the data plane.
    pub vip_numbers: Arc<BTreeMap<String, u16>>,
    pub attachments: Vec<Attachment>,
    pub program_id: Option<u32>,
    pub started: Instant,
    /// What an operator should know: modes that are weaker than asked for, and what failed.
    pub warnings: Vec<String>,
}

/// How the last try to load a config ended; the start counts.
#[derive(Clone, Debug)]
pub struct Reload {
    pub at: SystemTime,
    /// `None`: it was taken.
    pub error: Option<String>,
}
