//! The data plane as the daemon sees it: loaded, attached, and made to hold what is desired.
mod desired;
pub mod maglev;

pub use desired::{BackendKey, BackendState, Desired, Table, TableKey, Vip};
