//! What rules look at of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{FragmentBits, Payload};

/// A packet's header, and how its payload begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// Behind IPv6 extension headers.
    pub protocol: u8,
    /// Source and destination; of TCP and UDP, but for later fragments.
    pub ports: Option<(u16, u16)>,
    pub tcp_flags: Option<u8>,
    /// Type and code.
    pub icmp: Option<(u8, u8)>,
    /// From the IP header on.
    pub length: u16,
    pub dscp: u8,
    /// [`FragmentBits`].
    pub fragment: u8,
    pub ttl: u8,
    /// At most [`Payload::END`] bytes, and none of a later fragment.
    pub payload: Vec<u8>,
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const MAX_EXTENSIONS: usize = 8;

/// Where the transport header is.
struct Transport {
    offset: usize,
    protocol: u8,
    fragment: u8,
}

impl Header {
    /// Reads a packet from its IP header on, of which the end may be missing. `None` if that is no packet, or if its
    /// headers end early.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (mut header, transport, length) = match packet.first()? >> 4 {
            4 => Self::ipv4(packet)?,
            6 => Self::ipv6(packet)?,
            _ => return None,
        };
        header.protocol = transport.protocol;
        header.fragment |= transport.fragment;
        if header.fragment & FragmentBits::IS != 0 {
            return Some(header);
        }
        let end = length.min(packet.len());
        let l4 = packet.get(transport.offset..end)?;
        // What each of them has at least.
        l4.get(..8)?;
        let payload = match transport.protocol {
            TCP => {
                let flags = *l4.get(13)?;
                header.tcp_flags = Some(flags);
                header.ports = Some((be16(l4, 0)?, be16(l4, 2)?));
                usize::from(l4[12] >> 4) * 4
            }
            UDP => {
                header.ports = Some((be16(l4, 0)?, be16(l4, 2)?));
                8
            }
            ICMP | ICMPV6 => {
                header.icmp = Some((l4[0], l4[1]));
                8
            }
            _ => return Some(header),
        };
        let payload = l4.get(payload..).unwrap_or_default();
        header.payload = payload[..payload.len().min(Payload::END)].to_vec();
        Some(header)
    }

    fn ipv4(packet: &[u8]) -> Option<(Self, Transport, usize)> {
        let fixed: &[u8; 20] = packet.first_chunk()?;
        let [_, tos, _, _, _, _, flags, _, ttl, protocol, ..] = *fixed;
        let length = be16(packet, 2)?;
        let offset = be16(packet, 6)? & 0x1fff;
        let more = flags & 0x20 != 0;
        let dont = if flags & 0x40 != 0 {
            FragmentBits::DONT
        } else {
            0
        };
        let address = |at: usize| -> Option<Ipv4Addr> {
            let bytes: [u8; 4] = *packet.get(at..)?.first_chunk()?;
            Some(bytes.into())
        };
        let header = Self {
            dscp: tos >> 2,
            length,
            ttl,
            fragment: dont,
            ..Self::empty(address(12)?.into(), address(16)?.into())
        };
        let transport = Transport {
            offset: usize::from(packet[0] & 15) * 4,
            protocol,
            fragment: fragment_bits(offset, more),
        };
        Some((header, transport, length.into()))
    }

    fn ipv6(packet: &[u8]) -> Option<(Self, Transport, usize)> {
        let fixed: &[u8; 40] = packet.first_chunk()?;
        let payload = be16(packet, 4)?;
        let class = be16(packet, 0)? >> 4 & 0xff;
        let address = |at: usize| -> Option<Ipv6Addr> {
            let bytes: [u8; 16] = *packet.get(at..)?.first_chunk()?;
            Some(bytes.into())
        };
        let header = Self {
            dscp: u8::try_from(class >> 2).ok()?,
            // As long as a number of 16 bits can say.
            length: payload.saturating_add(40),
            ttl: fixed[7],
            ..Self::empty(address(8)?.into(), address(24)?.into())
        };
        let mut transport = Transport {
            offset: 40,
            protocol: fixed[6],
            fragment: 0,
        };
        for _ in 0..MAX_EXTENSIONS {
            if !sluice_ebpf::packet::is_extension(transport.protocol) {
                break;
            }
            let extension = packet.get(transport.offset..)?;
            let units = usize::from(*extension.get(1)?);
            match transport.protocol {
                FRAGMENT => {
                    let word = be16(extension, 2)?;
                    transport.fragment = fragment_bits(word >> 3, word & 1 != 0);
                    transport.offset += 8;
                }
                AUTHENTICATION => transport.offset += (units + 2) * 4,
                _ => transport.offset += (units + 1) * 8,
            }
            transport.protocol = extension[0];
            if transport.fragment & FragmentBits::IS != 0 {
                break;
            }
        }
        Some((header, transport, usize::from(payload) + 40))
    }

    fn empty(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            protocol: 0,
            ports: None,
            tcp_flags: None,
            icmp: None,
            length: 0,
            dscp: 0,
            fragment: 0,
            ttl: 0,
            payload: Vec::new(),
        }
    }
}

/// The bits for an offset (in units of eight bytes) and whether more fragments follow.
const fn fragment_bits(offset: u16, more: bool) -> u8 {
    match (offset, more) {
        (0, false) => 0,
        (0, true) => FragmentBits::FIRST,
        (_, true) => FragmentBits::IS,
        (_, false) => FragmentBits::IS | FragmentBits::LAST,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let word: [u8; 2] = *bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(word))
}
