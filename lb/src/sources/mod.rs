//! Sets of source prefixes that an operator denies or allows: how they are read, kept and named.

mod book;
mod geo;
mod import;
mod members;
mod spec;

pub use book::{
    FIRST_CONFIG_ID, MOST_SETS, MOST_SINGLE, SourceBook, SourceChange, SourceRecord, SourceRefusal,
    SourceStep,
};
pub(crate) use book::{fixed_set, last_free_set};
pub(crate) use geo::asn_of;
#[cfg(test)]
pub(crate) use geo::writer;
pub use geo::{Country, Damage, DatabaseError, NotTold, Places, networks};
pub use import::{BadLine, ImportError, Imported, Lines, OnBad, import};
pub use members::Members;
pub use spec::{BOGONS, Kind, SourceSpec, bogons};
pub(crate) use spec::{check_name, prefix_of};
