//! Rules: which packets to VIPs are meant, by the components of FlowSpec (RFC 8955, 8956), and what becomes of them.
//!
//! A rule is written as JSON ([`RuleSpec::from_json`]) or on one line (`"dst 192.0.2.0/24; proto 17; sport 53 -> drop"`,
//! its `FromStr` and `Display`). [`RuleSpec::matches`] tells of one [`Header`] whether it is meant: slow, plain, and what
//! everything faster is compared with.

mod bits;
mod book;
mod compile;
mod header;
mod json;
mod numbers;
mod payload;
mod scanner;
mod spec;
mod text;

#[cfg(test)]
pub(crate) mod arbitrary;
#[cfg(test)]
mod tests;

pub use bits::{BitKind, Bits, FragmentBits, TcpFlags, Term};
pub use book::{FIRST_CONFIG_ID, RuleBook, RuleChange, RuleRecord, RuleRefusal, RuleStep};
pub use compile::{Compiled, Placed, TooMany, compile, fit};
pub use header::Header;
pub use numbers::{Byte, Dscp, Length, NumberKind, Numbers, Port, Protocol};
pub use payload::{Hex, Payload};
pub use spec::{Action, Components, Limit, Origin, RuleSpec};
