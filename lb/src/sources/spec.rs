//! What an operator may ask of one entry: a prefix, or a named set of them, to be denied or allowed.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{Lines, Members, OnBad, import};
use crate::{
    book::{BodyError, SpecError, json, take},
    config::Mode,
};

/// Whether sources are denied or allowed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Deny,
    Allow,
}

impl Kind {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// One entry. It has a name, or it is a single prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceSpec {
    pub kind: Kind,
    pub name: Option<String>,
    pub prefix: Option<IpNet>,
    /// The one VIP whose packets meet it.
    pub vip: Option<String>,
    pub mode: Mode,
    pub ttl_seconds: Option<u64>,
    pub comment: String,
    #[serde(skip)]
    pub members: Arc<Members>,
}

/// The name of the set of addresses that nobody on the internet has; each policy says what becomes of it.
pub const BOGONS: &str = "bogons";

impl SourceSpec {
    /// A single prefix that is denied or allowed.
    pub fn single(kind: Kind, prefix: IpNet) -> Self {
        Self {
            kind,
            name: None,
            prefix: Some(prefix),
            vip: None,
            mode: Mode::Enforce,
            ttl_seconds: None,
            comment: String::new(),
            members: Arc::new(Members::of([prefix])),
        }
    }

    /// A named set of prefixes.
    pub fn named(kind: Kind, name: impl Into<String>, members: Arc<Members>) -> Self {
        Self {
            kind,
            name: Some(name.into()),
            prefix: None,
            vip: None,
            mode: Mode::Enforce,
            ttl_seconds: None,
            comment: String::new(),
            members,
        }
    }

    /// Reads one from JSON, and checks it. If a list stands there, the second value tells what was read of it.
    pub fn from_json(kind: Kind, json: &[u8]) -> Result<(Self, Option<Lines>), BodyError> {
        json::one(json, |value| Self::from_value(kind, value))
    }

    fn from_value(kind: Kind, value: Value) -> Result<(Self, Option<Lines>), SpecError> {
        let Value::Object(mut fields) = value else {
            return Err(SpecError::whole("an entry is a JSON object"));
        };
        let name: Option<String> = take(&mut fields, "name")?;
        let prefix: Option<String> = take(&mut fields, "prefix")?;
        let prefixes: Option<Vec<String>> = take(&mut fields, "prefixes")?;
        let list: Option<String> = take(&mut fields, "list")?;
        let skip_bad = list.is_some() && take(&mut fields, "skip_bad")?.unwrap_or(false);
        let mut lines = None;
        let mut spec = match (name, prefix, prefixes, list) {
            (None, Some(prefix), None, None) => {
                let prefix =
                    prefix_of(&prefix).map_err(|message| SpecError::of("prefix", message))?;
                Self::single(kind, prefix)
            }
            (Some(name), None, None, Some(list)) => {
                let on_bad = if skip_bad { OnBad::Skip } else { OnBad::Refuse };
                let read = import(list.as_bytes(), on_bad)
                    .map_err(|wrong| SpecError::of("list", wrong.to_string()))?;
                lines = Some(read.lines);
                Self::named(kind, name, Arc::new(read.members))
            }
            (Some(name), None, Some(prefixes), None) => {
                let prefixes: Result<Vec<IpNet>, SpecError> = (0..)
                    .zip(&prefixes)
                    .map(|(at, text): (usize, _)| {
                        prefix_of(text)
                            .map_err(|message| SpecError::of(&format!("prefixes[{at}]"), message))
                    })
                    .collect();
                Self::named(kind, name, Arc::new(Members::of(prefixes?)))
            }
            (_, _, Some(_), Some(_)) => {
                return Err(SpecError::of("prefixes", "give it or `list`"));
            }
            _ => {
                return Err(SpecError::of(
                    "prefix",
                    "give `prefix`, or both of `name` and `prefixes`, or of `name` and `list`",
                ));
            }
        };
        spec.vip = take(&mut fields, "vip")?;
        spec.mode = take(&mut fields, "mode")?.unwrap_or(Mode::Enforce);
        spec.ttl_seconds = take(&mut fields, "ttl_seconds")?;
        spec.comment = take(&mut fields, "comment")?.unwrap_or_default();
        if let Some(unknown) = fields.keys().next() {
            return Err(SpecError::of(
                unknown,
                "no such field; there are prefix, name, prefixes, list, skip_bad, vip, mode, ttl_seconds and comment",
            ));
        }
        spec.validate()?;
        Ok((spec, lines))
    }

    /// Whether each field may be what it is.
    pub fn validate(&self) -> Result<(), SpecError> {
        if let Some(name) = &self.name {
            check_name(name).map_err(|message| SpecError::of("name", message))?;
        }
        if self.mode == Mode::Monitor && (self.kind == Kind::Allow || self.is_bogons()) {
            let message = if self.kind == Kind::Allow {
                "what is allowed has no mode"
            } else {
                "the key `bogons` of a policy tells the mode of this set"
            };
            return Err(SpecError::of("mode", message));
        }
        if self.is_bogons() && self.vip.is_some() {
            let message = "the key `bogons` of a policy tells for which VIPs this set is";
            return Err(SpecError::of("vip", message));
        }
        if self
            .ttl_seconds
            .is_some_and(|ttl| !(1..=TTL_SECONDS_MAX).contains(&ttl))
        {
            return Err(SpecError::of(
                "ttl_seconds",
                format!("give 1 to {TTL_SECONDS_MAX}"),
            ));
        }
        if self.comment.len() > COMMENT_BYTES_MAX {
            return Err(SpecError::of(
                "comment",
                format!("longer than {COMMENT_BYTES_MAX} bytes"),
            ));
        }
        Ok(())
    }

    pub fn is_bogons(&self) -> bool {
        self.kind == Kind::Deny && self.name.as_deref() == Some(BOGONS)
    }
}

/// Whether a set may have this name.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_word = name.bytes().all(is_fit) && name.bytes().any(|byte| byte.is_ascii_alphabetic());
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_word {
        return Err(format!(
            "{name:?} is no name; give letters, digits, `.`, `_` and `-`, at most {NAME_BYTES_MAX}, a letter among them"
        ));
    }
    Ok(())
}

/// A prefix, or an address as the prefix of it alone.
pub(crate) fn prefix_of(text: &str) -> Result<IpNet, String> {
    let prefix = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse::<IpNet>().ok(),
    };
    let prefix = prefix.ok_or_else(|| {
        let shown: String = text.chars().take(60).collect();
        format!("{shown:?} is no IP prefix like 192.0.2.0/24 or 2001:db8::/64")
    })?;
    if prefix != prefix.trunc() {
        let (address, whole) = (prefix.addr(), prefix.trunc());
        return Err(format!(
            "{prefix} has bits beyond its length; give {whole}, or {address} for the one address"
        ));
    }
    if let IpNet::V6(v6) = prefix
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        let length = v6.prefix_len() - 96;
        return Err(format!(
            "{prefix} is IPv4 written as IPv6; give {v4}/{length}"
        ));
    }
    Ok(prefix)
}

/// Sources that nobody on the internet has: RFC 6890 and the registries that it began, multicast, and IPv6 that is not
/// given out (all but 2000::/3).
pub fn bogons() -> Members {
    const BOGONS: &[&str] = &[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "::/3",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "4000::/2",
        "8000::/1",
    ];
    Members::of(BOGONS.iter().map(|prefix| {
        prefix
            .parse::<IpNet>()
            .expect("each of them is a prefix, as a test says")
    }))
}

const NAME_BYTES_MAX: usize = 64;
const COMMENT_BYTES_MAX: usize = 1_024;
/// Ten years.
const TTL_SECONDS_MAX: u64 = 10 * 366 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(json: &str) -> String {
        SourceSpec::from_json(Kind::Deny, json.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_entry_is_a_prefix_or_a_named_set() {
        let json = br#"{"prefix": "192.0.2.0/24", "ttl_seconds": 60, "mode": "monitor"}"#;
        let (spec, _) = SourceSpec::from_json(Kind::Deny, json).unwrap();
        assert_eq!(spec.prefix, Some("192.0.2.0/24".parse().unwrap()));
        assert_eq!((spec.ttl_seconds, spec.mode), (Some(60), Mode::Monitor));
        let json = br#"{"name": "two", "prefixes": ["192.0.2.1", "2001:db8::/32"]}"#;
        let (spec, _) = SourceSpec::from_json(Kind::Allow, json).unwrap();
        assert_eq!(spec.members.v4().len() + spec.members.v6().len(), 2);
        for (json, part) in [
            ("[]", "is a JSON object"),
            ("{}", "give `prefix`, or both"),
            (r#"{"prefix": "192.0.2.1/24"}"#, "bits beyond"),
            (r#"{"prefix": "::ffff:192.0.2.0/120"}"#, "192.0.2.0/24"),
            (r#"{"name": "7", "prefixes": []}"#, "is no name"),
            (r#"{"name": "a/b", "prefixes": []}"#, "is no name"),
            (r#"{"name": "a", "prefixes": ["x"]}"#, "prefixes[0]"),
            (
                r#"{"prefix": "::1", "ttl_seconds": 0}"#,
                "ttl_seconds: give 1 to",
            ),
            (r#"{"prefix": "::1", "vips": "a"}"#, "no such field"),
            (r#"{"prefix": "::1", "skip_bad": true}"#, "no such field"),
            (
                r#"{"name": "bogons", "prefixes": [], "vip": "a"}"#,
                "policy tells for which VIPs",
            ),
            (
                r#"{"name": "bogons", "prefixes": [], "mode": "monitor"}"#,
                "mode of this set",
            ),
        ] {
            assert!(wrong(json).contains(part), "{json}: {}", wrong(json));
        }
    }

    #[test]
    fn bogons_are_what_nobody_has() {
        let bogons = bogons();
        for (address, is_one) in [
            ("10.1.2.3", true),
            ("240.0.0.1", true),
            ("fe80::1", true),
            ("2001:db8::1", true),
            ("8.8.8.8", false),
            ("100.128.0.1", false),
            ("2606:4700::1", false),
            ("2001:200::1", false),
        ] {
            assert_eq!(
                bogons.contains(address.parse().unwrap()),
                is_one,
                "{address}"
            );
        }
    }
}
