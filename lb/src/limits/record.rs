//! A limit that was set.

use serde::{Deserialize, Serialize};

use super::spec::LimitSpec;
use crate::book::{Record, Stamp};

/// A limit that was set. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitRecord {
    pub id: u64,
    /// 1 when it is new, and one more with each change.
    pub revision: u64,
    pub spec: LimitSpec,
    pub created_ms: u64,
    /// From then on it does not hold.
    pub expires_ms: Option<u64>,
}

impl Record for LimitRecord {
    fn stamp(&self) -> Stamp {
        Stamp {
            id: self.id,
            revision: self.revision,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        }
    }
}
