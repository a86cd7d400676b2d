//! The data plane as the daemon sees it: loaded, attached, and made to hold what is desired.
mod audit;
mod desired;
mod egress;
mod encode;
mod error;
mod exact;
mod explain;
mod index;
mod inspect;
mod load;
pub mod maglev;
mod pins;
mod plan;
mod plane;
mod prefix;
mod preview;
mod registry;
mod rules;
mod sampler;
#[cfg(test)]
mod shared;
mod sketch;
mod slots;
mod sources;
mod stats;
mod steps;
mod sweep;
mod watch;

pub use desired::{BackendKey, BackendState, Desired, Ordered, Table, TableKey, Vip};
pub use egress::lost_redirects;
pub use error::{ApplyError, LoadError, MapKind, ReadError, Shape};
pub(crate) use exact::SettingsWords;
pub use exact::{Adoption, Cells, ExactCounters, ExactError, ExactLimit, ExactLimits, ExactTables};
pub use explain::{Action, ExplainError, Explained, Explainer};
pub use inspect::{Inspection, PinnedProgram, inspect};
pub use load::{Need, rehearse};
pub(crate) use load::{hz, jiffies_now};
pub use pins::{Attached, DEFAULT_PINS, Mode, check_bpffs, unload};
pub use plan::Step;
pub use plane::{Opened, Plane};
pub(crate) use prefix::Key;
pub use preview::{Moved, Preview, VipChange};
pub use rules::{RuleInForce, RuleMaps, RulesError};
pub use sampler::{SampleError, Sampled, Sampler, Wanted};
pub use sketch::{Crowding, CrowdingByClass};
pub use sources::{
    Masks, Purpose, SetNames, SourceCounts, SourceError, SourceMaps, SourceSet, SourceTables,
    Sources,
};
pub use stats::{Census, Drops, RunStats};
pub use watch::{Counted, Watch, Watched};
