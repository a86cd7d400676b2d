//! What an operator has drained.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// A backend as operators name it: `POOL/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BackendName {
    pub pool: String,
    pub address: IpAddr,
}

/// Backends that get no new flows.
pub type Drains = BTreeSet<BackendName>;

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.address)
    }
}

/// A text that names no backend.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a backend is named POOL/ADDRESS, like web/10.0.0.11")]
pub struct NotABackend;

impl FromStr for BackendName {
    type Err = NotABackend;

    fn from_str(text: &str) -> Result<Self, NotABackend> {
        let (pool, address) = text.split_once('/').ok_or(NotABackend)?;
        if pool.is_empty() {
            return Err(NotABackend);
        }
        Ok(Self {
            pool: pool.to_owned(),
            address: address.parse().map_err(|_not_an_address| NotABackend)?,
        })
    }
}

impl From<BackendName> for String {
    fn from(name: BackendName) -> Self {
        name.to_string()
    }
}

impl TryFrom<String> for BackendName {
    type Error = NotABackend;

    fn try_from(text: String) -> Result<Self, NotABackend> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pool_and_address_name_a_backend() {
        for text in ["web", "web/", "/10.0.0.1", "web/x", "web/10.0.0.1/24"] {
            assert_eq!(text.parse::<BackendName>(), Err(NotABackend), "{text}");
        }
    }
}
