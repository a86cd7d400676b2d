//! What a signature can be made of: the fields of a packet's headers, read from a sample of its frame.

use etherparse::{
    Ipv6ExtensionSlice, LaxIpv6Slice, LaxNetSlice, LaxSlicedPacket, TcpSlice, UdpHeaderSlice,
};
use ipnet::IpNet;
use sluice_ebpf::packet::{ICMP, ICMPV6, IPIP, IPV6, TCP, TCP_ACK, TCP_SYN, UDP};

use crate::config::Class;

/// The first bytes behind the transport header that are looked at.
pub const PAYLOAD_BYTES: usize = 8;

/// The headers of one packet. IPv4 addresses are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub source: u128,
    pub destination: u128,
    /// Zero where the packet has no ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// From the IP header on.
    pub length: u16,
    pub payload: [u8; PAYLOAD_BYTES],
    /// How many of `payload` are the packet's.
    pub payload_bytes: u8,
    pub v6: bool,
    pub protocol: u8,
    /// Zero where it is not known.
    pub ttl: u8,
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub fragment: Fragment,
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Fragment {
    #[default]
    Whole,
    First,
    /// It has no ports, flags or payload that could be told apart.
    Later,
}

const ECHO_REPLY_V4: u8 = 0;
const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

impl Header {
    /// Reads an Ethernet frame, or the first bytes of one. With `tunnel`, the client's packet may be in a tunnel that was
    /// put around it here.
    pub fn read(frame: &[u8], tunnel: InTunnel) -> Option<Self> {
        let outer = LaxSlicedPacket::from_ethernet(frame).ok()?;
        if tunnel == InTunnel::Maybe
            && let Some(inner) = inner(&outer)
        {
            return Self::of(&LaxSlicedPacket::from_ip(inner).ok()?);
        }
        Self::of(&outer)
    }

    /// What this answer of ours answers, as far as it tells: its TTL, which it does not, is zero.
    #[must_use]
    pub fn question(self) -> Self {
        let icmp_type = match (self.protocol, self.icmp_type) {
            (ICMP, ECHO_REPLY_V4) => ECHO_REQUEST_V4,
            (ICMPV6, ECHO_REPLY_V6) => ECHO_REQUEST_V6,
            (_, other) => other,
        };
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ttl: 0,
            icmp_type,
            ..self
        }
    }

    pub fn is_echo_request(&self) -> bool {
        matches!(
            (self.protocol, self.icmp_type),
            (ICMP, ECHO_REQUEST_V4) | (ICMPV6, ECHO_REQUEST_V6)
        )
    }

    /// What the data plane would count it as, as far as the packet itself tells: TCP without a SYN may be of an
    /// established flow, or of none.
    pub fn is_of(&self, class: Class) -> bool {
        let has_ports = self.fragment != Fragment::Later;
        let syn =
            self.protocol == TCP && has_ports && self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        match class {
            Class::Syn => syn,
            Class::Udp => self.protocol == UDP && has_ports,
            Class::Icmp => self.protocol == if self.v6 { ICMPV6 } else { ICMP },
            Class::Other => (self.protocol == TCP && !syn) || !has_ports,
            Class::Established => self.protocol == TCP && !syn && has_ports,
        }
    }

    /// The source's prefix of this length (of its family).
    pub fn source_prefix(&self, length: u8) -> Option<IpNet> {
        let address = std::net::Ipv6Addr::from(self.source).to_canonical();
        Some(IpNet::new(address, length).ok()?.trunc())
    }

    fn of(packet: &LaxSlicedPacket<'_>) -> Option<Self> {
        let mut header = Self::default();
        let (payload, length) = match packet.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => {
                let fixed = ip.header();
                header.source = u128::from(fixed.source_addr().to_ipv6_mapped());
                header.destination = u128::from(fixed.destination_addr().to_ipv6_mapped());
                header.ttl = fixed.ttl();
                header.fragment = fragment(
                    fixed.fragments_offset().value() != 0,
                    fixed.more_fragments(),
                );
                (ip.payload(), u32::from(fixed.total_len()))
            }
            LaxNetSlice::Ipv6(ip) => {
                let fixed = ip.header();
                header.v6 = true;
                header.source = u128::from(fixed.source_addr());
                header.destination = u128::from(fixed.destination_addr());
                header.ttl = fixed.hop_limit();
                if ip.payload().fragmented {
                    header.fragment = fragment_v6(ip);
                }
                (ip.payload(), 40 + u32::from(fixed.payload_length()))
            }
            LaxNetSlice::Arp(_) => return None,
        };
        header.length = u16::try_from(length).unwrap_or(u16::MAX);
        header.protocol = payload.ip_number.0;
        if header.fragment == Fragment::Later {
            return Some(header);
        }
        let payload = header.transport(payload.payload);
        let bytes = payload.len().min(PAYLOAD_BYTES);
        header.payload[..bytes].copy_from_slice(&payload[..bytes]);
        header.payload_bytes = u8::try_from(bytes).unwrap_or_default();
        Some(header)
    }

    /// Takes the transport header's fields, and gives what lies behind it.
    fn transport<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self.protocol {
            TCP => {
                let Ok(tcp) = TcpSlice::from_slice(bytes) else {
                    return &[];
                };
                self.source_port = tcp.source_port();
                self.destination_port = tcp.destination_port();
                self.tcp_flags = bytes.get(13).copied().unwrap_or_default();
                bytes.get(tcp.header_len()..).unwrap_or_default()
            }
            UDP => {
                let Ok(udp) = UdpHeaderSlice::from_slice(bytes) else {
                    return &[];
                };
                self.source_port = udp.source_port();
                self.destination_port = udp.destination_port();
                bytes.get(8..).unwrap_or_default()
            }
            ICMP | ICMPV6 => {
                self.icmp_type = bytes.first().copied().unwrap_or_default();
                bytes.get(8..).unwrap_or_default()
            }
            _ => bytes,
        }
    }
}

/// Whether a sampled frame may have been put into a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InTunnel {
    No,
    Maybe,
}

const fn fragment(later: bool, more: bool) -> Fragment {
    match (later, more) {
        (true, _) => Fragment::Later,
        (false, true) => Fragment::First,
        (false, false) => Fragment::Whole,
    }
}

fn fragment_v6(ip: &LaxIpv6Slice<'_>) -> Fragment {
    let first = ip.extensions().clone().into_iter().find_map(|extension| {
        let Ipv6ExtensionSlice::Fragment(header) = extension else {
            return None;
        };
        Some(fragment(
            header.fragment_offset().value() != 0,
            header.more_fragments(),
        ))
    });
    first.unwrap_or(Fragment::Later)
}

/// The packet inside `ipip` or `gue`.
fn inner<'a>(outer: &LaxSlicedPacket<'a>) -> Option<&'a [u8]> {
    let payload = match outer.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => ip.payload(),
        LaxNetSlice::Ipv6(ip) => ip.payload(),
        LaxNetSlice::Arp(_) => return None,
    };
    match payload.ip_number.0 {
        IPIP | IPV6 => Some(payload.payload),
        UDP if payload.payload.get(2..4)? == sluice_ebpf::encap::GUE_PORT.to_be_bytes() => {
            payload.payload.get(8..)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn an_echo_reply_tells_of_its_request() {
        let mut replies = [Vec::new(), Vec::new()];
        let ethernet = || PacketBuilder::ethernet2([0; 6], [0; 6]);
        let (vip, client) = ([192, 0, 2, 1], [198, 51, 100, 7]);
        let v4 = ethernet().ipv4(vip, client, 64).icmpv4_echo_reply(1, 2);
        v4.write(&mut replies[0], b"payload!").unwrap();
        let (vip, client) = ([1; 16], [2; 16]);
        let v6 = ethernet().ipv6(vip, client, 64).icmpv6_echo_reply(1, 2);
        v6.write(&mut replies[1], b"payload!").unwrap();
        for (reply, request) in replies.iter().zip([ECHO_REQUEST_V4, ECHO_REQUEST_V6]) {
            let answer = Header::read(reply, InTunnel::No).unwrap();
            assert!(!answer.is_echo_request());
            let question = answer.question();
            assert!(question.is_echo_request());
            assert_eq!((question.icmp_type, question.ttl), (request, 0));
            assert_eq!(
                (question.source, question.destination),
                (answer.destination, answer.source)
            );
            assert_eq!(&question.payload, b"payload!");
        }
    }
}
