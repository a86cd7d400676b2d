//! Limits that an operator sets for prefixes at run time: what one may be, and all that hold.

mod book;
mod draft;
mod query;
mod record;
mod spec;
#[cfg(test)]
mod tests;

pub use book::LimitBook;
pub use draft::{Draft, LimitRefusal, Step};
pub use query::LimitQuery;
pub use record::LimitRecord;
pub use spec::{ClassWord, LimitSpec};
