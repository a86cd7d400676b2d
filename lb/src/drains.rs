//! What an operator has drained.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Config;

/// What gets no new flows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum Drain {
    Backend(BackendName),
    /// By its name.
    Vip(String),
    /// All VIPs of this PoP, whatever it is called.
    Pop,
}

pub type Drains = BTreeSet<Drain>;

/// A backend as operators name it: `POOL/ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendName {
    pub pool: String,
    pub address: IpAddr,
}

/// Kinds of things that can be drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DrainKind {
    Backend,
    Vip,
    Pop,
}

impl DrainKind {
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Vip => "vip",
            Self::Pop => "pop",
        }
    }
}

impl Drain {
    #[must_use]
    pub fn kind(&self) -> DrainKind {
        match self {
            Self::Backend(_) => DrainKind::Backend,
            Self::Vip(_) => DrainKind::Vip,
            Self::Pop => DrainKind::Pop,
        }
    }

    /// What operators call it, at the PoP of this name.
    #[must_use]
    pub fn name(&self, pop: &str) -> String {
        match self {
            Self::Backend(name) => name.to_string(),
            Self::Vip(name) => name.clone(),
            Self::Pop => pop.to_owned(),
        }
    }

    /// Whether a config has what drains.
    #[must_use]
    pub fn is_of(&self, config: &Config) -> bool {
        match self {
            Self::Backend(name) => {
                let pool = config.pools.iter().find(|pool| pool.name == name.pool);
                let mut backends = pool.into_iter().flat_map(|pool| &pool.backends);
                backends.any(|backend| backend.address == name.address)
            }
            Self::Vip(name) => config.vips.iter().any(|vip| vip.name == *name),
            Self::Pop => true,
        }
    }
}

/// As the store has it: no name of a VIP has a slash in it, and every backend's has one.
impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backend(name) => write!(f, "{name}"),
            Self::Vip(name) => write!(f, "{VIP}{name}"),
            Self::Pop => f.write_str(POP),
        }
    }
}

const VIP: &str = "vip ";
const POP: &str = "pop";

impl FromStr for Drain {
    type Err = NotABackend;

    fn from_str(text: &str) -> Result<Self, NotABackend> {
        if let Some(name) = text.strip_prefix(VIP) {
            return Ok(Self::Vip(name.to_owned()));
        }
        if text == POP {
            return Ok(Self::Pop);
        }
        text.parse().map(Self::Backend)
    }
}

impl TryFrom<String> for Drain {
    type Error = NotABackend;

    fn try_from(text: String) -> Result<Self, NotABackend> {
        text.parse()
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pool_and_address_name_a_backend() {
        for text in ["web", "web/", "/10.0.0.1", "web/x", "web/10.0.0.1/24"] {
            assert_eq!(text.parse::<BackendName>(), Err(NotABackend), "{text}");
        }
    }

    #[test]
    fn what_is_drained_is_read_as_it_was_written() {
        let backend = BackendName {
            pool: "vip".into(),
            address: [10, 0, 0, 1].into(),
        };
        for drain in [
            Drain::Backend(backend),
            Drain::Vip("10.0.0.1".into()),
            Drain::Pop,
        ] {
            assert_eq!(drain.to_string().parse(), Ok(drain));
        }
    }
}
