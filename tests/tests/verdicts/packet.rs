//! Packets as they arrive: built layer by layer, so that a row can say just what is special about it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;

pub(crate) const DOT1Q: u16 = 0x8100;
pub(crate) const DOT1AD: u16 = 0x88a8;
/// MAC addresses that frames arrive with.
pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const ECE: u8 = 64;

const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// ICMP's protocol number.
    pub(crate) const fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }

    pub(crate) const fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// A VIP address of the test's world.
pub(crate) fn vip(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 0, 2, host).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host.into()).into(),
    }
}

/// Somebody outside, in a network of many.
pub(crate) fn client(family: Family, network: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 51, network, host).into(),
        Family::V6 => Ipv6Addr::new(
            0x2001,
            0xdb8,
            0xc00 | u16::from(network),
            host.into(),
            0,
            0,
            0,
            7,
        )
        .into(),
    }
}

/// A packet and the Ethernet frame around it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// TPID and tag, outermost first.
    pub(crate) vlans: Vec<(u16, u16)>,
    /// Type of service, traffic class.
    pub(crate) class: u8,
    pub(crate) ttl: u8,
    pub(crate) flow_label: u32,
    /// IPv4 options: a multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
    /// IPv6 extension headers: protocol and size in bytes; fragment headers take their fields from `fragment`.
    pub(crate) extensions: Vec<(u8, usize)>,
    pub(crate) fragment: Piece,
    pub(crate) dont_fragment: bool,
    pub(crate) protocol: u8,
    /// The transport header and what follows.
    pub(crate) payload: Vec<u8>,
    /// Ethernet padding behind the packet.
    pub(crate) padding: usize,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    /// In bytes, a multiple of 8.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

impl Packet {
    pub(crate) fn new(from: IpAddr, to: IpAddr) -> Self {
        Self {
            from,
            to,
            vlans: vec![],
            class: 0,
            ttl: 61,
            flow_label: 0x1_2345,
            options: vec![],
            extensions: vec![],
            fragment: Piece::default(),
            dont_fragment: true,
            protocol: 59,
            payload: vec![],
            padding: 0,
        }
    }

    pub(crate) fn family(&self) -> Family {
        if self.from.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        }
    }

    pub(crate) fn tcp(mut self, ports: (u16, u16), flags: u8, data: &[u8]) -> Self {
        let mut l4 = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        l4.extend([0, 0, 0, 1, 0, 0, 0, 9, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
        l4.extend(data);
        self.protocol = TCP;
        self.set_checksum(&mut l4, 16);
        self.payload = l4;
        self
    }

    pub(crate) fn udp(mut self, ports: (u16, u16), data: &[u8]) -> Self {
        let length = u16::try_from(8 + data.len()).expect("fits a datagram");
        let mut l4 = [ports.0, ports.1, length, 0].map(u16::to_be_bytes).concat();
        l4.extend(data);
        self.protocol = UDP;
        self.set_checksum(&mut l4, 6);
        self.payload = l4;
        self
    }

    /// ICMP of this family: `rest` is bytes 4 to 7 of its header.
    pub(crate) fn icmp(mut self, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Self {
        let mut l4 = vec![kind, code, 0, 0];
        l4.extend(rest);
        l4.extend(data);
        self.protocol = self.family().icmp();
        self.set_checksum(&mut l4, 2);
        self.payload = l4;
        self
    }

    pub(crate) fn echo_request(self, id: u16, data: &[u8]) -> Self {
        let [high, low] = id.to_be_bytes();
        let kind = if self.family() == Family::V4 { 8 } else { 128 };
        self.icmp(kind, 0, [high, low, 0, 1], data)
    }

    /// Any protocol.
    pub(crate) fn raw(mut self, protocol: u8, payload: &[u8]) -> Self {
        self.protocol = protocol;
        self.payload = payload.to_vec();
        self
    }

    pub(crate) fn vlan(mut self, tpid: u16, tag: u16) -> Self {
        self.vlans.push((tpid, tag));
        self
    }

    pub(crate) fn extension(mut self, protocol: u8, bytes: usize) -> Self {
        self.extensions.push((protocol, bytes));
        self
    }

    /// Makes it a fragment, whatever its payload.
    pub(crate) fn piece(mut self, id: u32, offset: u16, more: bool) -> Self {
        self.fragment = Piece { id, offset, more };
        self.dont_fragment = false;
        if self.family() == Family::V6 {
            self.extensions.push((FRAGMENT, 8));
        }
        self
    }

    /// The datagram cut in two: the first takes `first_bytes` of the IP payload.
    pub(crate) fn in_two(self, id: u32, first_bytes: u16) -> [Self; 2] {
        let (first, second) = self.payload.split_at(first_bytes.into());
        let with = |payload: &[u8]| Self {
            payload: payload.to_vec(),
            ..self.clone()
        };
        [
            with(first).piece(id, 0, true),
            with(second).piece(id, first_bytes, false),
        ]
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// From the IP header on.
    pub(crate) fn ip_bytes(&self) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.ipv4(from, to),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.ipv6(from, to),
            _ => panic!("{} and {} are of two families", self.from, self.to),
        }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let ethertype: u16 = match self.family() {
            Family::V4 => 0x0800,
            Family::V6 => 0x86dd,
        };
        let mut frame = [OUR_MAC, ROUTER_MAC].concat();
        for (tpid, tag) in &self.vlans {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(self.ip_bytes());
        frame.extend(vec![0; self.padding]);
        frame
    }

    /// Where the IP header is in the frame.
    pub(crate) fn ip_offset(&self) -> usize {
        14 + 4 * self.vlans.len()
    }

    fn ipv4(&self, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
        let header_bytes = 20 + self.options.len();
        let words = u8::try_from(header_bytes / 4).expect("at most 60 bytes");
        let length = u16::try_from(header_bytes + self.payload.len()).expect("fits a packet");
        let id = u16::try_from(self.fragment.id).expect("16 bits in IPv4");
        let bits = u16::from(self.fragment.more) << 13 | u16::from(self.dont_fragment) << 14;
        let fragment = self.fragment.offset / 8 + bits;
        let mut packet = vec![0x40 | words, self.class];
        packet.extend([length, id, fragment].map(u16::to_be_bytes).concat());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(&self.options);
        let sum = Sum16BitWords::new().add_slice(&packet).ones_complement();
        packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        packet.extend(&self.payload);
        packet
    }

    fn ipv6(&self, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
        let nexts = self.extensions.iter().map(|(protocol, _)| *protocol);
        let nexts: Vec<u8> = nexts.chain([self.protocol]).collect();
        let mut body = vec![];
        for ((protocol, bytes), next) in self.extensions.iter().zip(&nexts[1..]) {
            body.extend(self.extension_bytes(*protocol, *bytes, *next));
        }
        body.extend(&self.payload);
        let length = u16::try_from(body.len()).expect("fits a packet");
        let mut packet = (6u32 << 28 | u32::from(self.class) << 20 | self.flow_label)
            .to_be_bytes()
            .to_vec();
        packet.extend(length.to_be_bytes());
        packet.extend([nexts[0], self.ttl]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend(body);
        packet
    }

    fn extension_bytes(&self, protocol: u8, bytes: usize, next: u8) -> Vec<u8> {
        let small = |number: usize| u8::try_from(number).expect("a short header");
        if protocol == FRAGMENT {
            let offset_and_more = self.fragment.offset | u16::from(self.fragment.more);
            let mut header = vec![next, 0];
            header.extend(offset_and_more.to_be_bytes());
            header.extend(self.fragment.id.to_be_bytes());
            return header;
        }
        let units = match protocol {
            AUTHENTICATION => small(bytes / 4 - 2),
            _ => small(bytes / 8 - 1),
        };
        let mut header = vec![0; bytes];
        header[..2].copy_from_slice(&[next, units]);
        // Options to be skipped: one PadN over the rest.
        header[2..4].copy_from_slice(&[1, small(bytes.min(255) - 4)]);
        header
    }

    /// Writes the checksum of a transport header at `at`, over the pseudo header where there is one.
    fn set_checksum(&self, l4: &mut [u8], at: usize) {
        let sum = l4_checksum(self.from, self.to, self.protocol, l4);
        // UDP writes a sum of zero as all ones (RFC 768).
        let sum = if sum == 0 && self.protocol == UDP {
            u16::MAX
        } else {
            sum
        };
        l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The checksum of a transport header and its data: zero if they hold the right one already.
pub(crate) fn l4_checksum(from: IpAddr, to: IpAddr, protocol: u8, l4: &[u8]) -> u16 {
    let length = u16::try_from(l4.len()).expect("fits a packet");
    let mut sum = Sum16BitWords::new().add_slice(l4);
    let sum = match (from, to) {
        // ICMP of IPv4 has no pseudo header.
        (IpAddr::V4(_), IpAddr::V4(_)) if protocol == Family::V4.icmp() => sum,
        (IpAddr::V4(from), IpAddr::V4(to)) => sum
            .add_4bytes(from.octets())
            .add_4bytes(to.octets())
            .add_2bytes([0, protocol])
            .add_2bytes(length.to_be_bytes()),
        (IpAddr::V6(from), IpAddr::V6(to)) => sum
            .add_16bytes(from.octets())
            .add_16bytes(to.octets())
            .add_2bytes([0, protocol])
            .add_2bytes(length.to_be_bytes()),
        _ => panic!("{from} and {to} are of two families"),
    };
    u16::from_be(sum.ones_complement())
}
