//! Outer headers of tunnels, as values: IP in IP of any two families (RFC 2003, 2473, 4213), and GUE variant 1.

use crate::{
    checksum,
    packet::{IPIP, IPV6, Ip, Ipv6Header, UDP},
};

/// Where GUE listens (IANA).
pub const GUE_PORT: u16 = 6080;
const TTL: u8 = 64;
const DONT_FRAGMENT_BE: u16 = 0x4000u16.to_be();

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdpHeader {
    pub source_be: u16,
    pub destination_be: u16,
    pub length_be: u16,
    pub checksum: u16,
}

/// What follows an outer IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The inner packet itself.
    Ip,
    /// A UDP header, then the inner packet: its first bits tell its family (GUE variant 1).
    Gue,
}

impl Carrier {
    /// Bytes between the outer IP header and the inner one.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Ip => 0,
            Self::Gue => 8,
        }
    }

    #[inline(always)]
    const fn protocol(self, inner: &Ip) -> u8 {
        match self {
            Self::Gue => UDP,
            Self::Ip if inner.v6 => IPV6,
            Self::Ip => IPIP,
        }
    }
}

/// The outer IPv4 header for `inner`, as words in memory: whole words cost fewer stores and fewer additions than fields.
/// Addresses are in network byte order. DSCP and ECN are copied (RFC 6040).
#[inline(always)]
#[must_use]
pub fn outer_v4(inner: &Ip, carrier: Carrier, source: u32, destination: u32) -> OuterV4 {
    const { assert!(cfg!(target_endian = "little")) };
    let length_be = ((inner.length + 20 + carrier.bytes()) as u16).to_be();
    let first = 0x45 | u32::from(inner.class) << 8 | u32::from(length_be) << 16;
    // An atomic datagram needs no id (RFC 6864).
    let second = u32::from(DONT_FRAGMENT_BE) << 16;
    let third = u32::from(TTL) | u32::from(carrier.protocol(inner)) << 8;
    let constant = u64::from(second) + u64::from(third);
    let sum = constant + u64::from(first) + u64::from(source) + u64::from(destination);
    let checksum = u32::from(checksum::finish(sum));
    [first, second, third | checksum << 16, source, destination]
}

/// An IPv4 header without options.
pub type OuterV4 = [u32; 5];

/// The outer IPv6 header for `inner`. The flow label spreads flows over paths (RFC 6438).
#[inline(always)]
#[must_use]
pub fn outer_v6(
    inner: &Ip,
    carrier: Carrier,
    source: [u32; 4],
    destination: [u32; 4],
    hash: u64,
) -> Ipv6Header {
    let label = (hash >> 40) as u32 & 0xf_ffff;
    Ipv6Header {
        version_class_flow_be: (6 << 28 | u32::from(inner.class) << 20 | label).to_be(),
        payload_length_be: ((inner.length + carrier.bytes()) as u16).to_be(),
        next_header: carrier.protocol(inner),
        hop_limit: TTL,
        source,
        destination,
    }
}

/// The UDP header of GUE. The source port spreads flows; the checksum is zero, which IPv6 tunnels may (RFC 6935, 6936).
#[inline(always)]
#[must_use]
pub fn gue(inner: &Ip, hash: u64) -> UdpHeader {
    UdpHeader {
        source_be: (0xc000 | (hash >> 48) as u16 & 0x3fff).to_be(),
        destination_be: GUE_PORT.to_be(),
        length_be: ((inner.length + 8) as u16).to_be(),
        checksum: 0,
    }
}

/// The spread source of IPv4 `ipip`: prefix bits, and the flow's hash where the mask leaves room. Network byte order.
#[inline(always)]
#[must_use]
pub const fn spread_v4(prefix: u32, mask: u32, hash: u64) -> u32 {
    (prefix | (hash >> 33) as u32 & mask).to_be()
}
