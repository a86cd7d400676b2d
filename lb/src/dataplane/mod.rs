//! The data plane as the daemon sees it: loaded, attached, and made to hold what is desired.
mod desired;
mod encode;
mod error;
mod exact;
mod explain;
mod index;
mod load;
pub mod maglev;
mod pins;
mod plan;
mod plane;
mod registry;
mod sketch;
mod slots;
mod stats;
mod steps;
mod sweep;

pub use desired::{BackendKey, BackendState, Desired, Table, TableKey, Vip};
pub use error::{ApplyError, LoadError, MapKind, ReadError, Shape};
pub use exact::{Adoption, Cells, ExactCounters, ExactError, ExactLimit, ExactLimits, ExactTables};
pub use explain::{Action, ExplainError, Explained, Explainer};
pub use load::Need;
pub use pins::{Attached, Mode, unload};
pub use plan::Step;
pub use plane::{Opened, Plane};
pub use sketch::{Crowding, CrowdingByClass};
pub use stats::{Census, Drops, RunStats};
