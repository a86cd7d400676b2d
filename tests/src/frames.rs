//! Frames as a client might send them, or must not.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use ipnet::IpNet;

use crate::addresses::nth;

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

    /// `count` UDP datagrams and as many SYNs to `to`; the sources walk through `prefix`, in an order that looks random.
    pub fn flood(self, prefix: IpNet, to: SocketAddr, count: u32) -> Vec<Vec<u8>> {
        let host_bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len()).min(31);
        (0..count)
            .flat_map(|number| {
                let mixed = number.wrapping_mul(0x9e37_79b1).rotate_left(15);
                let [a, b, ..] = mixed.to_be_bytes();
                let from = SocketAddr::new(
                    nth(prefix, mixed & ((1 << host_bits) - 1)),
                    u16::from_be_bytes([a, b]) | 1024,
                );
                [self.udp(from, to, b"flood"), self.syn(from, to)]
            })
            .collect()
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
