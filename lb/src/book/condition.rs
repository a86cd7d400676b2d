//! Entity tags (RFC 9110), and changes that are only made if a record is what somebody saw.

use std::{fmt, str::FromStr};

/// An entity tag, as it stands in a header. Weak ones are like no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etag(String);

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Etag {
    pub(crate) fn new(id: u64, revision: u64) -> Self {
        Self(format!("\"{id}-{revision}\""))
    }
}

/// Under which condition a record may be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Precondition {
    #[default]
    None,
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// It is one of these.
    Is(Vec<Etag>),
}

/// The header that asks for [`Precondition::Exists`] or [`Precondition::Is`] (RFC 9110, 13.1.1).
pub const IF_MATCH: &str = "If-Match";
/// The header that asks for [`Precondition::Absent`] (RFC 9110, 13.1.2).
pub const IF_NONE_MATCH: &str = "If-None-Match";

/// Why a precondition does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmet {
    #[error("it was changed meanwhile: it is {0} now; read it again")]
    Stale(Etag),
    #[error("it is there already, as {0}, and `If-None-Match: *` asks for a new one")]
    Exists(Etag),
    #[error("it is not there; without If-Match it is made")]
    Missing,
}

impl Precondition {
    /// Whether it holds for what has this tag now; without one it does not exist.
    pub(crate) fn check(&self, now: Option<Etag>) -> Result<(), Unmet> {
        match (self, now) {
            (Self::None, _) | (Self::Exists, Some(_)) | (Self::Absent, None) => Ok(()),
            (Self::Is(tags), Some(etag)) if tags.contains(&etag) => Ok(()),
            (Self::Is(_), Some(etag)) => Err(Unmet::Stale(etag)),
            (Self::Absent, Some(etag)) => Err(Unmet::Exists(etag)),
            (Self::Exists | Self::Is(_), None) => Err(Unmet::Missing),
        }
    }
}

impl Unmet {
    /// The header that asked for it.
    pub fn header(&self) -> &'static str {
        match self {
            Self::Stale(_) | Self::Missing => IF_MATCH,
            Self::Exists(_) => IF_NONE_MATCH,
        }
    }
}

/// A text that is no list of entity tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give `*`, or entity tags as the daemon answers them, like \"7-1\" with its quotes")]
pub struct NoEtags;

/// The value of an `If-Match` header.
impl FromStr for Precondition {
    type Err = NoEtags;

    fn from_str(text: &str) -> Result<Self, NoEtags> {
        if text.trim() == "*" {
            return Ok(Self::Exists);
        }
        let tags = text.split(',').map(|tag| {
            let tag = tag.trim();
            let opaque = tag.strip_prefix("W/").unwrap_or(tag);
            let is_quoted = opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"');
            is_quoted.then(|| Etag(tag.to_owned())).ok_or(NoEtags)
        });
        tags.collect::<Result<_, _>>().map(Self::Is)
    }
}
