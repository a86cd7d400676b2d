//! Taking a tunnel's outer headers off: what is a tunnel packet, and where its inner packet starts.

use bytemuck::{Pod, Zeroable};

use crate::{
    encap::GUE_PORT,
    packet::{self, FirstEight, Frame, IPIP, IPV4_BE, IPV6, IPV6_BE, Ip, UDP},
};

/// Tunnel endpoints, and prefixes of tunnel sources, that one `sluice decap` can have.
pub const MAX_ADDRESSES: u32 = 64;

/// Addresses whose first bits are these. Value of `ADDRESSES` and `SOURCES`; IPv4 mapped, words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Prefix {
    pub bits: [u64; 2],
    pub mask: [u64; 2],
}

impl Prefix {
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, address: [u64; 2]) -> bool {
        (address[0] & self.mask[0]) ^ self.bits[0] | (address[1] & self.mask[1]) ^ self.bits[1] == 0
    }
}

/// What became of the packets. The only element of `STATS`, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Stats {
    pub decapsulated: u64,
    /// No tunnel packet for us: handed to the host as they came.
    pub passed: u64,
    /// Tunnel packets for us whose inner packet is cut off or none, or of another transport than its mark of congestion says:
    /// dropped.
    pub malformed: u64,
}

/// A packet that may be a tunnel's, by its outer headers.
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    pub outer: Ip,
    /// Offset of the inner packet in the frame.
    inner_offset: usize,
    /// 4 or 6 where the outer protocol tells the inner family, 0 where the inner packet does.
    family: u8,
}

impl Tunnel {
    /// `ipip` of any two families, or UDP to GUE's port; `None` for all else, fragments and IPv6 extension headers too.
    #[inline(always)]
    #[must_use]
    pub fn find(frame: &Frame) -> Option<Self> {
        let (ethertype, offset) = packet::ethernet(frame)?;
        let outer = packet::ip(frame, ethertype, offset)?;
        if !outer.is_whole() || outer.header_length < 20 {
            return None;
        }
        let payload = outer.offset + outer.header_length as usize;
        let (family, carrier_bytes) = match outer.protocol {
            IPIP => (4, 0),
            IPV6 => (6, 0),
            UDP => {
                let ports = frame.read::<FirstEight>(payload)?.ports;
                if ports >> 16 != u32::from(GUE_PORT.to_be()) {
                    return None;
                }
                (0, 8)
            }
            _ => return None,
        };
        Some(Self {
            outer,
            inner_offset: payload + carrier_bytes,
            family,
        })
    }

    /// Bytes between the outer and the inner IP header: 20 to 68.
    #[inline(always)]
    #[must_use]
    pub const fn overhead(&self) -> usize {
        self.inner_offset - self.outer.offset
    }

    /// The innermost IP header, as far as it can be read.
    #[inline(always)]
    #[must_use]
    pub fn inner_ip(&self, frame: &Frame) -> Option<Ip> {
        let [version_and_length, _] = frame.read::<u16>(self.inner_offset)?.to_ne_bytes();
        match version_and_length >> 4 {
            4 => packet::ipv4(frame, self.inner_offset),
            6 => packet::ipv6(frame, self.inner_offset),
            _ => None,
        }
    }

    /// What the inner packet is. Its family by its first four bits; its length must fit the outer packet, and that the frame.
    #[inline(always)]
    #[must_use]
    pub fn inner(&self, frame: &Frame) -> Inner {
        let Some(first) = frame.read::<u16>(self.inner_offset) else {
            return Inner::Malformed;
        };
        let [version_and_length, _] = first.to_ne_bytes();
        let version = version_and_length >> 4;
        if self.family == 0 && version != 4 && version != 6 {
            return Inner::NotIp;
        }
        if self.family != 0 && self.family != version {
            return Inner::Malformed;
        }
        let ip = if version == 4 {
            packet::ipv4(frame, self.inner_offset)
        } else {
            packet::ipv6(frame, self.inner_offset)
        };
        let Some(ip) = ip else {
            return Inner::Malformed;
        };
        if ip.header_length < 20
            || ip.length < ip.header_length
            || self.overhead() + ip.length as usize > self.outer.length as usize
            || self.outer.offset + self.outer.length as usize > frame.len()
        {
            return Inner::Malformed;
        }
        match ecn(self.outer.class, ip.class) {
            Some(ecn) => Inner::Packet {
                ethertype_be: if ip.v6 { IPV6_BE } else { IPV4_BE },
                class: ip.class,
                remarked: ip.class & !ECN | ecn,
            },
            None => Inner::Malformed,
        }
    }
}

/// Bits of a class (IPv4: type of service) that are for congestion notification (RFC 3168).
const ECN: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// What becomes of an inner packet's ECN field when an outer header of this class is taken off (RFC 6040, 4.2): what a switch
/// between load balancer and backend has said of congestion. `None`: the packet is to be dropped.
#[inline(always)]
#[must_use]
const fn ecn(outer: u8, inner: u8) -> Option<u8> {
    match (outer & ECN, inner & ECN) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        (_, inner) => Some(inner),
    }
}

/// The first half word of an IP header, as in memory, with another class in the place of `class`.
#[inline(always)]
#[must_use]
pub const fn with_class(first: u16, class: u8, v6: bool) -> u16 {
    let [version, next] = first.to_ne_bytes();
    if v6 {
        u16::from_ne_bytes([version & 0xf0 | class >> 4, next & 0x0f | class << 4])
    } else {
        u16::from_ne_bytes([version, class])
    }
}

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    Packet {
        ethertype_be: u16,
        class: u8,
        /// Its class with what the outer header says of congestion.
        remarked: u8,
    },
    /// GUE of another variant, or another protocol that uses its port: not ours to take apart.
    NotIp,
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 4 of RFC 6040.
    #[test]
    fn congestion_on_the_way_is_told_to_the_inner_packet() {
        let table = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, told) in table {
            for (outer, told) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(told) {
                let dscp = 46 << 2;
                assert_eq!(ecn(dscp | outer, inner), told, "{outer} over {inner}");
            }
        }
    }

    #[test]
    fn a_class_stands_across_bytes_in_ipv6() {
        let first = u16::from_ne_bytes([0x6a, 0xb7]);
        assert_eq!(with_class(first, 0xcd, true).to_ne_bytes(), [0x6c, 0xd7]);
        let first = u16::from_ne_bytes([0x45, 0x12]);
        assert_eq!(with_class(first, 0xcd, false).to_ne_bytes(), [0x45, 0xcd]);
    }
}
