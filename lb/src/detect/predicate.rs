//! What one field of a packet must be. A signature is some of these, all of which hold.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::header::{Fragment, Header, PAYLOAD_BYTES};
use sluice_ebpf::packet::{ICMP, ICMPV6, TCP, UDP};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predicate {
    Protocol(u8),
    SourcePort(u16),
    DestinationPort(u16),
    /// Of the packet from its IP header on.
    Length {
        least: u16,
        most: u16,
    },
    Ttl {
        least: u8,
        most: u8,
    },
    /// All of them, as they stand in the header.
    TcpFlags(u8),
    IcmpType(u8),
    Fragment(FragmentWord),
    /// The first bytes behind the transport header, where `mask` has ones.
    Payload {
        value: [u8; PAYLOAD_BYTES],
        mask: [u8; PAYLOAD_BYTES],
    },
    Source(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FragmentWord {
    First,
    Later,
}

/// The fields, in the order in which one is preferred to another that does as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    Protocol,
    Fragment,
    IcmpType,
    SourcePort,
    TcpFlags,
    Payload,
    Length,
    DestinationPort,
    Ttl,
    Source,
}

impl Field {
    pub const ALL: [Self; 10] = [
        Self::Protocol,
        Self::Fragment,
        Self::IcmpType,
        Self::SourcePort,
        Self::TcpFlags,
        Self::Payload,
        Self::Length,
        Self::DestinationPort,
        Self::Ttl,
        Self::Source,
    ];
}

impl Predicate {
    pub fn holds(&self, header: &Header) -> bool {
        let whole_header = header.fragment != Fragment::Later;
        let ports = whole_header && matches!(header.protocol, TCP | UDP);
        let tcp = whole_header && header.protocol == TCP;
        match *self {
            Self::Protocol(protocol) => header.protocol == protocol,
            Self::SourcePort(port) => ports && header.source_port == port,
            Self::DestinationPort(port) => ports && header.destination_port == port,
            Self::Length { least, most } => (least..=most).contains(&header.length),
            Self::Ttl { least, most } => (least..=most).contains(&header.ttl),
            Self::TcpFlags(flags) => tcp && header.tcp_flags == flags,
            Self::IcmpType(kind) => {
                whole_header && matches!(header.protocol, ICMP | ICMPV6) && header.icmp_type == kind
            }
            Self::Fragment(word) => FragmentWord::of(header.fragment) == Some(word),
            Self::Payload { value, mask } => {
                let bytes = header.payload.iter().zip(value).zip(mask);
                whole_header
                    && usize::from(header.payload_bytes) >= reach(mask)
                    && bytes
                        .into_iter()
                        .all(|((byte, value), mask)| (byte ^ value) & mask == 0)
            }
            Self::Source(prefix) => header.source_prefix(prefix.prefix_len()) == Some(prefix),
        }
    }

    pub const fn field(&self) -> Field {
        match self {
            Self::Protocol(_) => Field::Protocol,
            Self::SourcePort(_) => Field::SourcePort,
            Self::DestinationPort(_) => Field::DestinationPort,
            Self::Length { .. } => Field::Length,
            Self::Ttl { .. } => Field::Ttl,
            Self::TcpFlags(_) => Field::TcpFlags,
            Self::IcmpType(_) => Field::IcmpType,
            Self::Fragment(_) => Field::Fragment,
            Self::Payload { .. } => Field::Payload,
            Self::Source(_) => Field::Source,
        }
    }

    /// Whether every packet that fits `other` fits this.
    pub fn covers(&self, other: &Self) -> bool {
        match (*self, *other) {
            (Self::Length { least, most }, Self::Length { least: l, most: m }) => {
                least <= l && m <= most
            }
            (Self::Ttl { least, most }, Self::Ttl { least: l, most: m }) => least <= l && m <= most,
            (Self::Source(wide), Self::Source(narrow)) => wide.contains(&narrow),
            (Self::Payload { value, mask }, Self::Payload { value: v, mask: m }) => {
                let bytes = value.iter().zip(mask).zip(v.iter().zip(m));
                bytes
                    .into_iter()
                    .all(|((value, mask), (v, m))| mask & !m == 0 && (value ^ v) & mask == 0)
            }
            (one, other) => one == other,
        }
    }
}

/// Bytes that a payload must have for its mask to hold.
fn reach(mask: [u8; PAYLOAD_BYTES]) -> usize {
    mask.iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1)
}

impl FragmentWord {
    /// `None` for what is no fragment.
    pub const fn of(fragment: Fragment) -> Option<Self> {
        match fragment {
            Fragment::Whole => None,
            Fragment::First => Some(Self::First),
            Fragment::Later => Some(Self::Later),
        }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => match *protocol {
                TCP => f.write_str("tcp"),
                UDP => f.write_str("udp"),
                ICMP => f.write_str("icmp"),
                ICMPV6 => f.write_str("icmpv6"),
                other => write!(f, "protocol {other}"),
            },
            Self::SourcePort(port) => write!(f, "source port {port}"),
            Self::DestinationPort(port) => write!(f, "destination port {port}"),
            Self::Length { least, most } => range(f, "length", *least, *most),
            Self::Ttl { least, most } => range(f, "TTL", u16::from(*least), u16::from(*most)),
            Self::TcpFlags(flags) => {
                f.write_str("flags ")?;
                if *flags == 0 {
                    return f.write_str("none");
                }
                for (bit, letter) in "FSRPAUEC".chars().enumerate() {
                    if flags >> bit & 1 != 0 {
                        write!(f, "{letter}")?;
                    }
                }
                Ok(())
            }
            Self::IcmpType(kind) => write!(f, "ICMP type {kind}"),
            Self::Fragment(FragmentWord::First) => f.write_str("first fragment"),
            Self::Fragment(FragmentWord::Later) => f.write_str("later fragment"),
            Self::Payload { value, mask } => {
                f.write_str("payload ")?;
                for at in 0..reach(*mask) {
                    match mask[at] {
                        0 => f.write_str("..")?,
                        _ => write!(f, "{:02x}", value[at])?,
                    }
                }
                Ok(())
            }
            Self::Source(prefix) => write!(f, "from {prefix}"),
        }
    }
}

fn range(f: &mut fmt::Formatter<'_>, what: &str, least: u16, most: u16) -> fmt::Result {
    if least == most {
        write!(f, "{what} {least}")
    } else {
        write!(f, "{what} {least} to {most}")
    }
}
