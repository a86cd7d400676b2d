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
    /// Tunnel packets for us whose inner packet is cut off or none: dropped.
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
        Inner::Packet {
            ethertype_be: if ip.v6 { IPV6_BE } else { IPV4_BE },
        }
    }
}

/// What a tunnel carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    Packet {
        ethertype_be: u16,
    },
    /// GUE of another variant, or another protocol that uses its port: not ours to take apart.
    NotIp,
    Malformed,
}
