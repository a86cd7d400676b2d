//! Detection: finds attacks by itself, says what tells them from innocent packets, and what is to be done.
//!
//! Everything in here is pure: it is told the time, counters and samples, and knows no kernel.
//!
//! | question | file |
//! | --- | --- |
//! | what is usual | `baseline.rs`, `recent.rs` |
//! | when does an attack begin, and when is it over | `trigger.rs`, `detector/attacks.rs` |
//! | how much of it comes through | `detector/rates.rs` |
//! | what is done next | `detector/respond.rs` |
//! | which rule fits it | `detector/search.rs`, `signature.rs` |
//! | what else can be done | `ladder.rs` |
//! | when does a mitigation end, and how do pulses find it | `life.rs` |
//! | what is raised, refused, reverted, allowed | `detector/mitigations.rs` |

pub mod as_rule;
pub mod baseline;
mod candidates;
pub mod detector;
pub mod header;
mod ladder;
pub mod life;
pub mod minute;
pub mod mitigation;
pub mod predicate;
pub mod recent;
pub mod shared;
pub mod signature;
pub mod talkers;
pub mod trigger;

#[cfg(test)]
mod tests;
