//! What an operator may ask of one rule.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Bits, Byte, Dscp, FragmentBits, Header, Length, Numbers, Payload, Port, Protocol, TcpFlags,
};
use crate::{book::SpecError, config::Mode};

/// One rule: which packets to VIPs are meant, and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// What a packet must be, all of it.
    #[serde(rename = "match", default)]
    pub components: Components,
    /// Name of the VIP that it is for. Default: all of them.
    #[serde(default)]
    pub vip: Option<String>,
    pub action: Action,
    /// `monitor` counts, and the packet goes on to the next rule.
    #[serde(default = "enforce")]
    pub mode: Mode,
    /// Rules are tried in this order, the lowest first; equal ones by their id.
    #[serde(default = "default_priority")]
    #[schema(default = 100)]
    pub priority: u16,
    /// Whether it is for packets of proven flows too.
    #[serde(default)]
    pub established: bool,
    /// Default: it stays until it is removed.
    #[serde(default)]
    pub ttl_seconds: Option<u64>,
    #[serde(default)]
    pub comment: String,
    /// Only `operator` can be asked for.
    #[serde(default)]
    pub origin: Origin,
}

/// The components of FlowSpec, and a few more. What is left out is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Components {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "192.0.2.0/24")]
    pub destination: Option<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "198.51.100.0/24")]
    pub source: Option<IpNet>,
    /// Protocol numbers, or `tcp`, `udp`, `icmp`, `icmp6`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "17")]
    pub protocol: Option<Numbers<Protocol>>,
    /// Source or destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "53,123")]
    pub port: Option<Numbers<Port>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "80,443")]
    pub destination_port: Option<Numbers<Port>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "53,123")]
    pub source_port: Option<Numbers<Port>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "8")]
    pub icmp_type: Option<Numbers<Byte>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0")]
    pub icmp_code: Option<Numbers<Byte>>,
    /// Values with their masks, or `fin`, `syn`, `rst`, `psh`, `ack`, `urg`, `ece`, `cwr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0x02/0x12")]
    pub tcp_flags: Option<Bits<TcpFlags>>,
    /// In bytes from the IP header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "> 1000")]
    pub length: Option<Numbers<Length>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "0")]
    pub dscp: Option<Numbers<Dscp>>,
    /// `dont_fragment`, `is_fragment`, `first_fragment`, `last_fragment`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "is_fragment")]
    pub fragment: Option<Bits<FragmentBits>>,
    /// Time to live, or hop limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "240..255")]
    pub ttl: Option<Numbers<Byte>>,
    /// All of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub payload: Vec<Payload>,
}

/// What becomes of a packet that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Drop,
    /// What is over the limit is dropped; the rest goes on to the next rule.
    Limit(Limit),
    /// It meets no further rule, and neither challenge nor limits.
    Pass,
    /// A SYN is answered with a challenge, whatever the VIP's policy says. Other packets go on to the next rule.
    Challenge,
    /// Its header is put among the samples, and it goes on to the next rule.
    Sample,
}

/// What all packets that a rule means may be together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Packets a second; at least one of this and `bps` is set.
    #[serde(default)]
    pub pps: Option<u64>,
    /// Bits a second, counted from the IP header on.
    #[serde(default)]
    pub bps: Option<u64>,
    /// Packets that may come at once. Default: a tenth of a second's worth, at least 10.
    #[serde(default)]
    pub burst: Option<u32>,
}

/// Who set a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    #[default]
    Operator,
    /// It stands in the config file.
    Config,
    /// The daemon itself, against an attack that it saw.
    Detection,
}

pub(super) const DEFAULT_PRIORITY: u16 = 100;
pub(super) const PPS_MAX: u64 = 100_000_000;
pub(super) const BPS_MAX: u64 = 10_000_000_000_000;
pub(super) const BURST_MAX: u32 = 10_000_000;
/// A hundred years, so that no date overflows.
pub(super) const TTL_SECONDS_MAX: u64 = 100 * 365 * 86_400;
const COMMENT_BYTES_MAX: usize = 256;
const PAYLOADS_MAX: usize = 4;
const BURST_LEAST: u64 = 10;
/// What a burst in packets allows in bytes, for each.
const PACKET_BYTES: u64 = 1_500;
const TCP: u16 = 6;
const UDP: u16 = 17;
const ICMP: u16 = 1;
const ICMPV6: u16 = 58;

impl RuleSpec {
    /// With all defaults.
    pub fn new(components: Components, action: Action) -> Self {
        Self {
            components,
            vip: None,
            action,
            mode: Mode::Enforce,
            priority: DEFAULT_PRIORITY,
            established: false,
            ttl_seconds: None,
            comment: String::new(),
            origin: Origin::Operator,
        }
    }

    /// Whether a packet to this VIP is meant. Whether its flow is proven is for the caller to look at.
    pub fn matches(&self, vip: &str, header: &Header) -> bool {
        self.vip.as_deref().is_none_or(|name| name == vip) && self.components.match_header(header)
    }

    /// Whether each field may be what it is. That the VIP exists is for the caller to check.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.vip.as_ref().is_some_and(String::is_empty) {
            let message = "give a VIP's name, or leave it out for all VIPs";
            return Err(SpecError::of("vip", message));
        }
        if self.components == Components::default() && self.vip.is_none() {
            let message = "it means every packet to every VIP; name a component, or a VIP";
            return Err(SpecError::of("match", message));
        }
        self.components.validate()?;
        if let Action::Limit(limit) = &self.action {
            limit.validate()?;
        }
        match self.ttl_seconds {
            Some(ttl) if !(1..=TTL_SECONDS_MAX).contains(&ttl) => {
                let message = format!("{ttl} is not from 1 to {TTL_SECONDS_MAX}");
                return Err(SpecError::of("ttl_seconds", message));
            }
            _ => {}
        }
        if self.comment.len() > COMMENT_BYTES_MAX {
            let message = format!("longer than {COMMENT_BYTES_MAX} bytes");
            return Err(SpecError::of("comment", message));
        }
        Ok(())
    }
}

impl Components {
    /// Whether a packet is all of this. What it does not have, like the ports of a later fragment, matches nothing.
    pub fn match_header(&self, header: &Header) -> bool {
        fn number<K: super::numbers::NumberKind>(
            wanted: Option<&Numbers<K>>,
            value: Option<u16>,
        ) -> bool {
            wanted.is_none_or(|wanted| value.is_some_and(|value| wanted.contains(value)))
        }
        let source = header.ports.map(|ports| ports.0);
        let destination = header.ports.map(|ports| ports.1);
        let (kind, code) = (
            header.icmp.map(|icmp| u16::from(icmp.0)),
            header.icmp.map(|icmp| u16::from(icmp.1)),
        );
        let port = self.port.as_ref();
        self.destination
            .is_none_or(|prefix| prefix.contains(&header.destination))
            && self
                .source
                .is_none_or(|prefix| prefix.contains(&header.source))
            && number(self.protocol.as_ref(), Some(header.protocol.into()))
            && (number(port, source) || number(port, destination))
            && number(self.destination_port.as_ref(), destination)
            && number(self.source_port.as_ref(), source)
            && number(self.icmp_type.as_ref(), kind)
            && number(self.icmp_code.as_ref(), code)
            && (self.tcp_flags.as_ref())
                .is_none_or(|wanted| header.tcp_flags.is_some_and(|flags| wanted.contains(flags)))
            && number(self.length.as_ref(), Some(header.length))
            && number(self.dscp.as_ref(), Some(header.dscp.into()))
            && (self.fragment.as_ref()).is_none_or(|wanted| wanted.contains(header.fragment))
            && number(self.ttl.as_ref(), Some(header.ttl.into()))
            && (self.payload.iter()).all(|payload| payload.matches(&header.payload))
    }

    fn validate(&self) -> Result<(), SpecError> {
        for (field, prefix) in [
            ("match.destination", self.destination),
            ("match.source", self.source),
        ] {
            if let Some(prefix) = prefix
                && prefix != prefix.trunc()
            {
                let (address, whole) = (prefix.addr(), prefix.trunc());
                let message = format!(
                    "{prefix} has bits beyond its length; give {whole}, or {address} for the one address"
                );
                return Err(SpecError::of(field, message));
            }
        }
        if let (Some(destination), Some(source)) = (self.destination, self.source)
            && destination.addr().is_ipv4() != source.addr().is_ipv4()
        {
            let message = "no packet has a source and a destination of different families";
            return Err(SpecError::of("match.source", message));
        }
        let has_ports =
            self.port.is_some() || self.source_port.is_some() || self.destination_port.is_some();
        let has_icmp = self.icmp_type.is_some() || self.icmp_code.is_some();
        for (field, present, protocols) in [
            ("match.tcp_flags", self.tcp_flags.is_some(), &[TCP][..]),
            ("match.source_port", has_ports, &[TCP, UDP]),
            ("match.icmp_type", has_icmp, &[ICMP, ICMPV6]),
        ] {
            if present
                && let Some(wanted) = &self.protocol
                && !protocols.iter().any(|protocol| wanted.contains(*protocol))
            {
                let message = format!("no packet of protocol {wanted} has that");
                return Err(SpecError::of(field, message));
            }
        }
        if has_icmp && (has_ports || self.tcp_flags.is_some()) {
            let message = "no packet of ICMP has ports or flags of TCP";
            return Err(SpecError::of("match.icmp_type", message));
        }
        if self.payload.len() > PAYLOADS_MAX {
            let message = format!("more than {PAYLOADS_MAX} pieces of payload");
            return Err(SpecError::of("match.payload", message));
        }
        for payload in &self.payload {
            let completed = payload.clone().complete();
            match completed {
                Ok(completed) if completed == *payload => {}
                Ok(_) => {
                    let message = "the mask is as long as the value";
                    return Err(SpecError::of("match.payload", message));
                }
                Err(message) => return Err(SpecError::of("match.payload", message)),
            }
        }
        Ok(())
    }
}

impl Limit {
    /// Packets that may come at once.
    pub fn burst_packets(&self) -> u32 {
        self.burst.unwrap_or_else(|| {
            let by_bytes = self.bps.unwrap_or(0) / (8 * PACKET_BYTES);
            let burst = self.pps.unwrap_or(by_bytes) / 10;
            u32::try_from(burst.clamp(BURST_LEAST, BURST_MAX.into())).unwrap_or(BURST_MAX)
        })
    }

    fn validate(&self) -> Result<(), SpecError> {
        let within = |field: &str, value: Option<u64>, most: u64| match value {
            Some(value) if !(1..=most).contains(&value) => {
                let message = format!("{value} is not from 1 to {most}");
                Err(SpecError::of(field, message))
            }
            _ => Ok(()),
        };
        if self.pps.is_none() && self.bps.is_none() {
            let message = "give `pps`, `bps` or both";
            return Err(SpecError::of("action.limit", message));
        }
        within("action.limit.pps", self.pps, PPS_MAX)?;
        within("action.limit.bps", self.bps, BPS_MAX)?;
        let burst = self.burst.map(u64::from);
        within("action.limit.burst", burst, BURST_MAX.into())
    }
}

impl Action {
    /// The word for it in the CLI and the reference.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Limit(_) => "limit",
            Self::Pass => "pass",
            Self::Challenge => "challenge",
            Self::Sample => "sample",
        }
    }
}

fn enforce() -> Mode {
    Mode::Enforce
}

const fn default_priority() -> u16 {
    DEFAULT_PRIORITY
}
