//! The data plane as the daemon sees it: loaded, attached, and made to hold what is desired.
mod desired;
mod encode;
mod error;
mod exact;
mod index;
mod load;
pub mod maglev;
mod pins;

pub use desired::{BackendKey, BackendState, Desired, Table, TableKey, Vip};
pub use error::{ApplyError, LoadError, MapKind, ReadError, Shape};
pub use exact::{Adoption, Cells, ExactCounters, ExactError, ExactLimit, ExactLimits, ExactTables};
pub use load::Need;
pub use pins::{Attached, Mode, unload};
