//! What an operator may ask of one limit.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sluice_ebpf::{abi::Class, gcra};
use utoipa::ToSchema;

use crate::{
    book::{BodyError, SpecError, json, take},
    config::Mode,
    dataplane::ExactLimit,
};

/// One limit: what the sources in a prefix may send together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    #[serde(deserialize_with = "prefix")]
    #[schema(value_type = String, example = "198.51.100.0/24")]
    pub prefix: IpNet,
    /// Name of the VIP that it is for. Default: all of them.
    #[serde(default)]
    pub vip: Option<String>,
    #[serde(default)]
    pub class: ClassWord,
    /// Packets a second; at least one of this and `bps` is set.
    #[serde(default)]
    pub pps: Option<u64>,
    /// Bits a second, counted from the IP header on.
    #[serde(default)]
    pub bps: Option<u64>,
    /// Packets that may come at once. Default: a tenth of a second's worth, at least 10.
    #[serde(default)]
    pub burst: Option<u32>,
    #[serde(default = "enforce")]
    pub mode: Mode,
    /// Default: it stays until it is removed.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    #[serde(default)]
    pub comment: String,
}

/// The packets that a limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassWord {
    Syn,
    Udp,
    Icmp,
    Other,
    Established,
    /// All but `established`: a limit must not break flows that are proven, unless it names them.
    #[default]
    All,
}

impl LimitSpec {
    /// Reads one from JSON, and checks it.
    pub fn from_json(json: &[u8]) -> Result<Self, BodyError> {
        json::one(json, Self::from_value)
    }

    /// Reads an array of them, and checks each.
    pub fn list_from_json(json: &[u8]) -> Result<Vec<Self>, BodyError> {
        json::list(json, Self::from_value)
    }

    fn from_value(value: Value) -> Result<Self, SpecError> {
        let Value::Object(mut fields) = value else {
            return Err(SpecError::whole("a limit is a JSON object"));
        };
        let given = fields.remove("prefix").unwrap_or_default();
        let spec = Self {
            prefix: prefix(given).map_err(|wrong| SpecError::of("prefix", wrong.to_string()))?,
            vip: take(&mut fields, "vip")?,
            class: take(&mut fields, "class")?.unwrap_or_default(),
            pps: take(&mut fields, "pps")?,
            bps: take(&mut fields, "bps")?,
            burst: take(&mut fields, "burst")?,
            mode: take(&mut fields, "mode")?.unwrap_or_else(enforce),
            ttl_seconds: take(&mut fields, "ttl_seconds")?,
            comment: take(&mut fields, "comment")?.unwrap_or_default(),
        };
        if let Some(unknown) = fields.keys().next() {
            return Err(SpecError::of(
                unknown,
                format!("no such field; there are {FIELDS}"),
            ));
        }
        spec.validate()?;
        Ok(spec)
    }

    /// Whether each field may be what it is. That the VIP exists is for the caller to check.
    pub fn validate(&self) -> Result<(), SpecError> {
        check_prefix(self.prefix).map_err(|message| SpecError::of("prefix", message))?;
        if self.vip.as_ref().is_some_and(String::is_empty) {
            return Err(SpecError::of(
                "vip",
                "give a VIP's name, or leave it out for all VIPs",
            ));
        }
        if self.pps.is_none() && self.bps.is_none() {
            return Err(SpecError::of("pps", "give `pps`, `bps` or both"));
        }
        within("pps", self.pps, PPS_MAX)?;
        within("bps", self.bps, BPS_MAX)?;
        within("burst", self.burst.map(u64::from), BURST_MAX)?;
        within("ttl_seconds", self.ttl_seconds, TTL_SECONDS_MAX)?;
        if self.comment.len() > COMMENT_BYTES_MAX {
            let message = format!("longer than {COMMENT_BYTES_MAX} bytes");
            return Err(SpecError::of("comment", message));
        }
        Ok(())
    }

    /// Packets that may come at once.
    pub fn burst_packets(&self) -> u32 {
        self.burst.unwrap_or_else(|| {
            let by_bytes = self.bps.unwrap_or(0) / (8 * PACKET_BYTES);
            let burst = (self.pps.unwrap_or(by_bytes) / 10).clamp(BURST_LEAST, BURST_MAX);
            u32::try_from(burst).unwrap_or(u32::MAX)
        })
    }

    /// The same for the data plane, where the VIP has a number (`ANY_VIP` if none is named) and the kernel's clock `hz`.
    pub fn exact(&self, vip: u16, hz: u32) -> ExactLimit {
        let burst = u64::from(self.burst_packets());
        let limiter = |rate: Option<u64>, burst| {
            rate.map(|rate| gcra::limiter(rate, burst, hz))
                .unwrap_or_default()
        };
        ExactLimit {
            prefix: self.prefix,
            vip,
            class: self.class,
            mode: self.mode,
            packets: limiter(self.pps, burst),
            bytes: limiter(self.bps.map(|bits| bits / 8), burst * PACKET_BYTES),
            ceased: false,
        }
    }
}

impl ClassWord {
    pub const ALL: [Self; 6] = [
        Self::Syn,
        Self::Udp,
        Self::Icmp,
        Self::Other,
        Self::Established,
        Self::All,
    ];

    /// A bit for each class of the data plane.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Syn => 1 << Class::Syn as u8,
            Self::Udp => 1 << Class::Udp as u8,
            Self::Icmp => 1 << Class::Icmp as u8,
            Self::Other => 1 << Class::Other as u8,
            Self::Established => 1 << Class::Established as u8,
            Self::All => {
                Self::Syn.bits() | Self::Udp.bits() | Self::Icmp.bits() | Self::Other.bits()
            }
        }
    }
}

const FIELDS: &str =
    "`prefix`, `vip`, `class`, `pps`, `bps`, `burst`, `mode`, `ttl_seconds` and `comment`";
const PPS_MAX: u64 = 100_000_000;
const BPS_MAX: u64 = 10_000_000_000_000;
const BURST_MAX: u64 = 10_000_000;
const BURST_LEAST: u64 = 10;
/// A hundred years, so that no date overflows.
const TTL_SECONDS_MAX: u64 = 100 * 365 * 86_400;
const COMMENT_BYTES_MAX: usize = 256;
/// What a burst in packets allows in bytes, for each.
const PACKET_BYTES: u64 = 1_500;

fn enforce() -> Mode {
    Mode::Enforce
}

fn within(field: &str, value: Option<u64>, most: u64) -> Result<(), SpecError> {
    match value {
        Some(value) if !(1..=most).contains(&value) => Err(SpecError::of(
            field,
            format!("{value} is not from 1 to {most}"),
        )),
        _ => Ok(()),
    }
}

/// A prefix, or one address.
fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    const EXPECTED: &str = "an IP prefix like \"192.0.2.0/24\" or \"2001:db8::/64\"";
    let text = Option::<String>::deserialize(deserializer)
        .map_err(|_wrong_type: D::Error| serde::de::Error::custom(format!("give {EXPECTED}")))?;
    let text = text.unwrap_or_default();
    let prefix = match text.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => text.parse().ok(),
    };
    prefix.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not {EXPECTED}")))
}

fn check_prefix(prefix: IpNet) -> Result<(), String> {
    if prefix != prefix.trunc() {
        let (address, whole) = (prefix.addr(), prefix.trunc());
        return Err(format!(
            "{prefix} has bits beyond its length; give {whole}, or {address} for the one address"
        ));
    }
    let IpNet::V6(v6) = prefix else { return Ok(()) };
    if let Some(v4) = v6.addr().to_ipv4_mapped()
        && v6.prefix_len() >= 96
    {
        let length = v6.prefix_len() - 96;
        return Err(format!(
            "{prefix} is IPv4 written as IPv6; give {v4}/{length}"
        ));
    }
    if v6.addr().is_unspecified() && v6.prefix_len() == 128 {
        return Err("no packet comes from ::; give ::/0 for all of IPv6".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sluice_ebpf::abi::Limiter;

    use super::*;

    #[test]
    fn a_short_limit_gets_its_defaults() {
        let spec = LimitSpec::from_json(br#"{"prefix": "198.51.100.0/24", "pps": 1000}"#).unwrap();
        assert_eq!(spec.class, ClassWord::All);
        assert_eq!(spec.mode, Mode::Enforce);
        assert_eq!((spec.vip.as_ref(), spec.ttl_seconds), (None, None));
        assert_eq!(spec.burst_packets(), 100);
        let slow = LimitSpec {
            pps: Some(5),
            ..spec.clone()
        };
        assert_eq!(slow.burst_packets(), 10);
        let written = serde_json::to_vec(&spec).unwrap();
        assert_eq!(LimitSpec::from_json(&written).unwrap(), spec);
        assert_eq!(serde_json::from_slice::<LimitSpec>(&written).unwrap(), spec);
    }

    #[test]
    fn every_error_names_its_field() {
        let long = format!(
            r#"{{"prefix": "::/0", "pps": 1, "comment": "{}"}}"#,
            "x".repeat(257)
        );
        let cases = [
            ("[", ""),
            (r#"{"pps": 1}"#, "prefix"),
            (r#"{"prefix": 7, "pps": 1}"#, "prefix"),
            (r#"{"prefix": "192.0.2.1/24", "pps": 1}"#, "prefix"),
            (r#"{"prefix": "192.0.2.1/33", "pps": 1}"#, "prefix"),
            (r#"{"prefix": "::ffff:192.0.2.0/120", "pps": 1}"#, "prefix"),
            (r#"{"prefix": "::", "pps": 1}"#, "prefix"),
            (r#"{"prefix": "192.0.2.1"}"#, "pps"),
            (r#"{"prefix": "192.0.2.1", "pps": 0}"#, "pps"),
            (r#"{"prefix": "192.0.2.1", "pps": -1}"#, "pps"),
            (r#"{"prefix": "192.0.2.1", "bps": 1e99}"#, "bps"),
            (r#"{"prefix": "192.0.2.1", "bps": 99999999999999}"#, "bps"),
            (r#"{"prefix": "192.0.2.1", "pps": 1, "burst": 0}"#, "burst"),
            (
                r#"{"prefix": "192.0.2.1", "pps": 1, "class": "tcp"}"#,
                "class",
            ),
            (
                r#"{"prefix": "192.0.2.1", "pps": 1, "mode": "off"}"#,
                "mode",
            ),
            (r#"{"prefix": "192.0.2.1", "pps": 1, "vip": ""}"#, "vip"),
            (
                r#"{"prefix": "192.0.2.1", "pps": 1, "ttl_seconds": 0}"#,
                "ttl_seconds",
            ),
            (r#"{"prefix": "192.0.2.1", "pps": 1, "ttl": 9}"#, "ttl"),
            (long.as_str(), "comment"),
        ];
        for (json, field) in cases {
            let wrong = LimitSpec::from_json(json.as_bytes()).unwrap_err();
            assert!(!wrong.to_string().is_empty());
            assert_eq!(wrong.field(), field, "{json}");
        }
    }

    #[test]
    fn bits_become_bytes_and_bursts_of_full_packets() {
        let json = br#"{"prefix": "2001:db8::1", "bps": 8000000, "burst": 20, "mode": "monitor"}"#;
        let exact = LimitSpec::from_json(json).unwrap().exact(7, 250);
        assert_eq!(exact.packets, Limiter::default());
        assert_eq!(exact.bytes, gcra::limiter(1_000_000, 30_000, 250));
        assert_eq!((exact.vip, exact.mode), (7, Mode::Monitor));
    }

    #[test]
    fn all_classes_but_established_are_all() {
        assert_eq!(ClassWord::All.bits(), 0b1111);
    }
}
