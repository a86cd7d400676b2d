//! Detection: finds attacks by itself, says what tells them from innocent packets, and what is to be done.
//!
//! Everything in here is pure: it is told the time, counters and samples, and knows no kernel.

pub mod as_rule;
pub mod baseline;
mod candidates;
pub mod detector;
pub mod header;
mod ladder;
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
