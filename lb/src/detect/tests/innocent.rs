//! What innocent clients send.

use sluice_ebpf::packet::{ICMP, TCP, UDP};

use super::world::Random;
use crate::detect::header::{Fragment, Header};

/// What a VIP is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// TCP and QUIC on port 443, and some ICMP.
    Web,
    /// UDP on port 53.
    Dns,
}

impl Service {
    pub(super) fn packet(self, random: &mut Random, destination: u128) -> Header {
        let mut header = Header {
            source: client(random),
            destination,
            ttl: ttl(random),
            ..Header::default()
        };
        match (self, random.below(1_000)) {
            (Self::Web, 0..5) => {
                header.protocol = ICMP;
                header.icmp_type = if random.below(2) == 0 { 8 } else { 3 };
                header.length = 84;
                header.payload_bytes = 8;
            }
            (Self::Web, 5..60) => syn(&mut header, random),
            (Self::Web, 60..650) => data(&mut header, random),
            (Self::Web, _) => quic(&mut header, random),
            (Self::Dns, _) => query(&mut header, random),
        }
        header
    }
}

/// 20,000 networks, some of them much larger than others.
fn client(random: &mut Random) -> u128 {
    let network = random.below(20_000).min(random.below(20_000));
    let address = 0x5000_0000 + network * 0x1357 * 256 + random.below(200);
    v4(address)
}

pub(super) fn v4(address: u64) -> u128 {
    0xffff_0000_0000 | u128::from(address & 0xffff_ffff)
}

/// Of Linux and macOS, or of Windows, some hops away.
fn ttl(random: &mut Random) -> u8 {
    let start = if random.below(5) < 3 { 64 } else { 128 };
    let hops = 4 + random.below(8) + random.below(8);
    start - u8::try_from(hops).unwrap()
}

fn syn(header: &mut Header, random: &mut Random) {
    tcp(header, random);
    header.tcp_flags = 2;
    header.length = [60, 64, 52, 52][usize::try_from(random.below(4)).unwrap()];
}

fn data(header: &mut Header, random: &mut Random) {
    tcp(header, random);
    header.tcp_flags = [16, 16, 16, 24, 17][usize::try_from(random.below(5)).unwrap()];
    if header.tcp_flags == 24 {
        header.length = u16::try_from(100 + random.below(1_400)).unwrap();
        header.payload = [
            0x17,
            3,
            3,
            random.byte(),
            random.byte(),
            random.byte(),
            random.byte(),
            random.byte(),
        ];
        header.payload_bytes = 8;
    } else {
        header.length = 52;
    }
}

fn tcp(header: &mut Header, random: &mut Random) {
    header.protocol = TCP;
    header.source_port = port(random);
    header.destination_port = 443;
}

fn quic(header: &mut Header, random: &mut Random) {
    header.protocol = UDP;
    header.source_port = port(random);
    header.destination_port = 443;
    header.payload_bytes = 8;
    header.payload = random.bytes();
    if random.below(50) == 0 {
        header.length = [1_228, 1_278, 1_280][usize::try_from(random.below(3)).unwrap()];
        header.payload[..5].copy_from_slice(&[0xc0 | random.byte() & 3, 0, 0, 0, 1]);
    } else {
        header.length = u16::try_from(60 + random.below(100)).unwrap();
        header.payload[0] = 0x40 | random.byte() & 0x3f;
    }
}

fn query(header: &mut Header, random: &mut Random) {
    header.protocol = UDP;
    header.source_port = port(random);
    header.destination_port = 53;
    header.length = u16::try_from(56 + random.below(60)).unwrap();
    header.payload_bytes = 8;
    header.payload = [
        random.byte(),
        random.byte(),
        random.byte() & 1,
        0x20,
        0,
        1,
        0,
        0,
    ];
}

fn port(random: &mut Random) -> u16 {
    u16::try_from(1_024 + random.below(64_000)).unwrap()
}

/// A fragment's part of a header.
pub(super) fn later_fragment(header: &mut Header) {
    header.fragment = Fragment::Later;
    header.source_port = 0;
    header.destination_port = 0;
    header.payload_bytes = 0;
}
