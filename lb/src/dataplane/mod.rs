//! The data plane as the daemon sees it: loaded, attached, and made to hold what is desired.
mod desired;
mod exact;

pub use desired::{BackendKey, BackendState, Desired, Table, TableKey, Vip};
pub use exact::{Adoption, Cells, ExactCounters, ExactError, ExactLimit, ExactLimits, ExactTables};
