//! What attackers send. Rates and what is random in a packet come from a seed.

use sluice_ebpf::packet::{ICMP, TCP, UDP};

use super::{
    innocent::{Service, later_fragment, v4},
    world::{CARPET, DNS, Random, VIPS, WEB},
};
use crate::detect::{
    header::{Fragment, Header},
    recent::VipIndex,
    trigger::times,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Forged sources, random ports, one length.
    Udp,
    /// The same, and length and payload are random too.
    UdpRandom,
    /// Replies of resolvers, with their fragments.
    DnsReplies,
    NtpReplies,
    SsdpReplies,
    MemcachedReplies,
    CldapReplies,
    /// Queries like those of clients, but all for the same kind of name, from a tool.
    DnsQueries,
    Syn,
    /// As much as possible is random; its length and flags cannot be.
    SynRandom,
    Ack,
    Rst,
    Icmp,
    Fragments,
    /// Replies spread over many VIPs.
    Carpet,
    /// 0.4 s on, 2 s off.
    Pulse,
    /// From nothing to all within 20 s.
    Ramp,
    /// Hosts of one /16 that make real connections.
    BotnetOfOneNetwork,
    /// Hosts everywhere, with the stacks of clients: nothing tells them from innocent ones but their number.
    BotnetEverywhere,
    /// QUIC that never goes on.
    QuicInitial,
}

impl Kind {
    pub(super) const ALL: [Self; 20] = [
        Self::Udp,
        Self::UdpRandom,
        Self::DnsReplies,
        Self::NtpReplies,
        Self::SsdpReplies,
        Self::MemcachedReplies,
        Self::CldapReplies,
        Self::DnsQueries,
        Self::Syn,
        Self::SynRandom,
        Self::Ack,
        Self::Rst,
        Self::Icmp,
        Self::Fragments,
        Self::Carpet,
        Self::Pulse,
        Self::Ramp,
        Self::BotnetOfOneNetwork,
        Self::BotnetEverywhere,
        Self::QuicInitial,
    ];
}

/// One attack.
#[derive(Clone, Debug)]
pub(super) struct Attack {
    pub(super) kind: Kind,
    pub(super) pps: u64,
    /// It begins with little, and doubles in this time until it is all there.
    pub(super) doubles_in_ms: Option<u64>,
    /// What the attacker's tool always sends.
    ttl: u8,
    length: u16,
    port: u16,
    magic: u8,
}

impl Attack {
    pub(super) fn new(kind: Kind, random: &mut Random) -> Self {
        let pps = 60_000 + random.below(1_000_000);
        Self {
            kind,
            pps: if kind == Kind::BotnetEverywhere {
                pps / 4
            } else {
                pps
            },
            doubles_in_ms: None,
            ttl: u8::try_from(40 + random.below(200)).unwrap(),
            length: u16::try_from(60 + random.below(1_200)).unwrap(),
            port: u16::try_from(1_024 + random.below(60_000)).unwrap(),
            magic: random.byte(),
        }
    }

    /// Packets a second, so long after it began.
    pub(super) fn pps(&self, since_ms: u64) -> u64 {
        if let Some(doubles_in_ms) = self.doubles_in_ms {
            let doubled = (since_ms as f64 / doubles_in_ms as f64).exp2();
            return self.pps.min(times(FIRST_PPS, doubled));
        }
        match self.kind {
            Kind::Pulse if since_ms % 2_400 >= 400 => 0,
            Kind::Ramp => self.pps * since_ms.min(20_000) / 20_000,
            _ => self.pps,
        }
    }

    pub(super) fn packet(&self, random: &mut Random) -> (VipIndex, Header) {
        let vip = match self.kind {
            Kind::Carpet => CARPET + u16::try_from(random.below(u64::from(VIPS - CARPET))).unwrap(),
            Kind::DnsQueries => DNS,
            _ => WEB,
        };
        let mut header = Header {
            source: v4(random.next()),
            destination: v4(0xc000_0200 + u64::from(vip)),
            ttl: self.ttl - u8::try_from(random.below(20)).unwrap(),
            protocol: UDP,
            source_port: u16::try_from(random.below(65_536)).unwrap(),
            destination_port: 443,
            payload: random.bytes(),
            payload_bytes: 8,
            length: self.length,
            ..Header::default()
        };
        self.form(&mut header, random);
        (vip, header)
    }

    fn form(&self, header: &mut Header, random: &mut Random) {
        match self.kind {
            Kind::Udp | Kind::Pulse => header.payload = [self.magic; 8],
            Kind::Ramp => {}
            Kind::UdpRandom => header.length = u16::try_from(40 + random.below(1_400)).unwrap(),
            Kind::DnsReplies | Kind::Carpet => {
                reflected(header, random, 53, 3_000);
                header.destination_port = self.port;
                header.payload[2..4].copy_from_slice(&[0x81, 0x80]);
                header.length = 1_500;
                match random.below(3) {
                    0 => header.fragment = Fragment::First,
                    1 => {
                        header.length = u16::try_from(600 + random.below(800)).unwrap();
                        later_fragment(header);
                    }
                    _ => header.length = u16::try_from(1_000 + random.below(400)).unwrap(),
                }
            }
            Kind::NtpReplies => {
                reflected(header, random, 123, 2_000);
                (header.length, header.payload) = (468, [0xd7, 0, 3, 0x2a, 0, 6, 0, 72]);
            }
            Kind::SsdpReplies => {
                reflected(header, random, 1_900, 30_000);
                header.payload = *b"HTTP/1.1";
                header.length = u16::try_from(270 + random.below(80)).unwrap();
            }
            Kind::MemcachedReplies => {
                reflected(header, random, 11_211, 500);
                header.length = 1_428;
            }
            Kind::CldapReplies => {
                reflected(header, random, 389, 4_000);
                header.length = u16::try_from(1_400 + random.below(100)).unwrap();
            }
            Kind::DnsQueries => {
                header.destination_port = 53;
                header.payload[2..].copy_from_slice(&[1, 0, 0, 1, 0, 0]);
                header.length = 72;
            }
            Kind::Syn => {
                tcp(header, 2);
                (header.length, header.payload_bytes) = (44, 0);
            }
            Kind::SynRandom => {
                tcp(header, 2);
                header.ttl = random.byte() | 32;
                (header.length, header.payload_bytes) = (40, 0);
            }
            Kind::Ack => {
                tcp(header, 16);
                (header.length, header.payload_bytes) = (40, 0);
            }
            Kind::Rst => {
                tcp(header, 4);
                (header.length, header.payload_bytes) = (40, 0);
            }
            Kind::Icmp => {
                header.protocol = ICMP;
                header.icmp_type = 8;
                (header.source_port, header.destination_port) = (0, 0);
            }
            Kind::Fragments => {
                later_fragment(header);
                header.length = 1_500;
            }
            Kind::BotnetOfOneNetwork => {
                let host = random.below(8_000);
                *header = Service::Web.packet(random, header.destination);
                header.source = v4(0xc612_0000 + host);
                header.protocol = TCP;
            }
            Kind::BotnetEverywhere => {
                while header.protocol != TCP || header.tcp_flags != 2 {
                    *header = Service::Web.packet(random, header.destination);
                }
            }
            Kind::QuicInitial => {
                header.length = 1_228;
                header.payload[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
            }
        }
    }
}

/// What a ramp begins with.
const FIRST_PPS: u64 = 500;

fn reflected(header: &mut Header, random: &mut Random, port: u16, reflectors: u64) {
    header.source = v4(0x1700_0000 + random.below(reflectors) * 0x2345);
    header.source_port = port;
}

fn tcp(header: &mut Header, flags: u8) {
    header.protocol = TCP;
    header.tcp_flags = flags;
}
