//! What a config says of health checks.

use std::{fmt, ops::RangeInclusive, time::Duration};

use serde::Serialize;

use super::Ca;

/// `[pool.health]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    pub check: Check,
    /// From the begin of one check to that of the next.
    pub interval: Duration,
    /// The same while the checks do not agree with the state, and while that is not known. At most `interval`.
    pub fast_interval: Duration,
    /// Each check begins later by a random time up to this. At most `interval`.
    pub jitter: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that bring it down.
    pub fall: u32,
    /// Where data goes by `ipip` or `gue`, checks do too.
    pub via_tunnel: bool,
}

impl Health {
    /// The longest time from when a backend fails to when it is down.
    #[must_use]
    pub fn detection_time(&self) -> Duration {
        self.interval * (self.fall + 1) + self.timeout + self.jitter
    }
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Check {
    /// Always up.
    None,
    /// An echo request is answered.
    Icmp,
    /// A connection to the port succeeds.
    Tcp { port: u16 },
    /// `GET path` is answered as expected.
    Http(HttpCheck),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpCheck {
    pub tls: Tls,
    pub port: u16,
    pub path: String,
    pub host: Option<String>,
    pub status: Statuses,
    /// What the answer's body must hold.
    pub body: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Tls {
    Off,
    /// Whatever certificate the backend has.
    Unverified,
    /// The certificate must be signed by one of these, and for the host.
    Verified(Ca),
}

/// HTTP statuses that count as good: single ones and ranges. Never empty.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statuses(Vec<RangeInclusive<u16>>);

impl Statuses {
    /// # Panics
    /// If there are none.
    #[must_use]
    pub fn new(ranges: Vec<RangeInclusive<u16>>) -> Self {
        assert!(!ranges.is_empty(), "no status would be good");
        Self(ranges)
    }

    #[must_use]
    pub fn contain(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            match (range.start(), range.end()) {
                (low, high) if low == high => write!(f, "{comma}{low}")?,
                (low, high) => write!(f, "{comma}{low}-{high}")?,
            }
        }
        Ok(())
    }
}
