//! Frames as a client might send them, or must not.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, PacketBuilderStep,
    ip_number,
};
use ipnet::IpNet;

use crate::{DNS_V4, DNS_V6, WEB_V4, WEB_V6, addresses::nth};

const ETHERNET_BYTES: usize = 14;

pub type Mac = [u8; 6];

/// Builds frames from one MAC address to another.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    pub from: Mac,
    pub to: Mac,
}

impl Frames {
    pub fn udp(self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip(from.ip(), to.ip())
            .udp(from.port(), to.port())
            .write(&mut frame, payload)
            .expect("a vector takes it");
        frame
    }

    pub fn syn(self, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip(from.ip(), to.ip())
            .tcp(from.port(), to.port(), 1, 64240)
            .syn()
            .write(&mut frame, &[])
            .expect("a vector takes it");
        frame
    }

    /// TCP of no connection, with these flags: bits as in the header.
    pub fn tcp(self, from: SocketAddr, to: SocketAddr, flags: u8) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut tcp = self
            .ip(from.ip(), to.ip())
            .tcp(from.port(), to.port(), 1, 64240);
        for (bit, set) in [
            (1, PacketBuilderStep::fin as fn(_) -> _),
            (2, PacketBuilderStep::syn),
            (4, PacketBuilderStep::rst),
            (8, PacketBuilderStep::psh),
        ] {
            if flags & bit != 0 {
                tcp = set(tcp);
            }
        }
        if flags & 16 != 0 {
            tcp = tcp.ack(1);
        }
        tcp.write(&mut frame, &[]).expect("a vector takes it");
        frame
    }

    pub fn echo_request(
        self,
        from: IpAddr,
        to: IpAddr,
        id: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        let ip = self.ip(from, to);
        match from {
            IpAddr::V4(_) => ip
                .icmpv4_echo_request(id, sequence)
                .write(&mut frame, payload),
            IpAddr::V6(_) => ip
                .icmpv6_echo_request(id, sequence)
                .write(&mut frame, payload),
        }
        .expect("a vector takes it");
        frame
    }

    /// Fragmentation Needed or Packet Too Big: `quoted` begins with the IP header of the packet that was too big.
    pub fn too_big(self, from: IpAddr, to: IpAddr, mtu_bytes: u16, quoted: &[u8]) -> Vec<u8> {
        let [high, low] = mtu_bytes.to_be_bytes();
        let mut frame = Vec::new();
        let ip = self.ip(from, to);
        match from {
            IpAddr::V4(_) => ip
                .icmpv4_raw(3, 4, [0, 0, high, low])
                .write(&mut frame, quoted),
            IpAddr::V6(_) => ip
                .icmpv6_raw(2, 0, [0, 0, high, low])
                .write(&mut frame, quoted),
        }
        .expect("a vector takes it");
        frame
    }

    /// `count` datagrams to the DNS VIP and as many SYNs to the web VIP; the sources walk through `prefix`, in an order that looks random.
    pub fn flood(self, prefix: IpNet, count: u32) -> Vec<Vec<u8>> {
        let (web, dns) = if prefix.addr().is_ipv4() {
            (WEB_V4, DNS_V4)
        } else {
            (WEB_V6, DNS_V6)
        };
        let sources = spoofed(prefix, count);
        sources
            .flat_map(|from| [self.udp(from, dns, b"flood"), self.syn(from, web)])
            .collect()
    }

    /// `count` source addresses and ports that walk through `prefix`, in an order that looks random.
    pub fn sources(prefix: IpNet, count: u32) -> impl Iterator<Item = SocketAddr> {
        spoofed(prefix, count)
    }

    /// `count` SYNs to the web VIP, from such sources.
    pub fn syn_flood(self, prefix: IpNet, count: u32) -> Vec<Vec<u8>> {
        let web = if prefix.addr().is_ipv4() {
            WEB_V4
        } else {
            WEB_V6
        };
        spoofed(prefix, count)
            .map(|from| self.syn(from, web))
            .collect()
    }

    /// `count` datagrams to the DNS VIP, each a flow of its own.
    pub fn udp_flood(self, prefix: IpNet, count: u32) -> Vec<Vec<u8>> {
        let dns = if prefix.addr().is_ipv4() {
            DNS_V4
        } else {
            DNS_V6
        };
        spoofed(prefix, count)
            .map(|from| self.udp(from, dns, b"flood"))
            .collect()
    }

    /// Cuts a frame without IP options or extension headers into two fragments; the first takes `first_bytes` of the IP payload, a multiple of 8.
    pub fn fragments(self, frame: &[u8], first_bytes: usize) -> [Vec<u8>; 2] {
        let (ethernet, packet) = frame.split_at(ETHERNET_BYTES);
        let (headers, payload) = if packet[0] >> 4 == 4 {
            packet.split_at(20)
        } else {
            packet.split_at(40)
        };
        // Its source port tells a datagram from the others of its sender, as its id must.
        let id = u16::from_be_bytes([payload[0], payload[1]]);
        let (first, second) = payload.split_at(first_bytes);
        [(first, 0, true), (second, first_bytes, false)].map(|(part, offset, more)| {
            let units = u16::try_from(offset / 8).expect("within a datagram");
            let offset = units.try_into().expect("thirteen bits");
            let mut fragment = ethernet.to_vec();
            if headers.len() == 20 {
                let (mut ip, _) = Ipv4Header::from_slice(headers).expect("a header that we built");
                ip.identification = id;
                (ip.dont_fragment, ip.more_fragments, ip.fragment_offset) = (false, more, offset);
                ip.set_payload_len(part.len()).expect("a small part");
                ip.header_checksum = ip.calc_header_checksum();
                ip.write(&mut fragment).expect("a vector takes it");
            } else {
                let (mut ip, _) = Ipv6Header::from_slice(headers).expect("a header that we built");
                let header = Ipv6FragmentHeader::new(ip.next_header, offset, more, id.into());
                ip.next_header = ip_number::IPV6_FRAG;
                ip.set_payload_length(header.header_len() + part.len())
                    .expect("a small part");
                ip.write(&mut fragment).expect("a vector takes it");
                header.write(&mut fragment).expect("a vector takes it");
            }
            fragment.extend(part);
            fragment
        })
    }

    fn ip(self, from: IpAddr, to: IpAddr) -> PacketBuilderStep<IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.from, self.to);
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("{from} and {to} are of two families"),
        }
    }
}

/// Source addresses and ports.
fn spoofed(prefix: IpNet, count: u32) -> impl Iterator<Item = SocketAddr> {
    let host_bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len()).min(31);
    (0..count).map(move |number| {
        let mixed = number.wrapping_mul(0x9e37_79b1).rotate_left(15);
        let [high, low, ..] = mixed.to_be_bytes();
        SocketAddr::new(
            nth(prefix, mixed & ((1 << host_bits) - 1)),
            u16::from_be_bytes([high, low]) | 1024,
        )
    })
}
