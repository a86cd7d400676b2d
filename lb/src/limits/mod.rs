//! Limits for single prefixes, as the operator sets them at run time: what they may say, and how they outlive a restart.
mod journal;
mod spec;
mod store;
#[cfg(test)]
mod tests;

pub use spec::{ClassWord, LimitError, LimitSpec};
pub use store::{Corruption, LimitRecord, LimitStore, StoreError};
