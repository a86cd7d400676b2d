//! Every reason for a drop has its row.

use sluice::dataplane::Purpose;
use sluice_ebpf::abi::{DropReason, FILTER_BOGONS, FILTER_FRAGMENTS, SET_BOGONS};

use crate::{
    amplification::{self, ANSWER},
    challenge, cookie, fragments,
    limits::{Exact, exhaust, limit_exactly, limit_sources},
    out_of_state,
    packet::{ACK, FIN, Family, Packet, RST, client, vip},
    rig::{Action, Counted, Rig},
    sanity, sources,
    table::{Expect, Row, check_all},
    world,
};

/// Metadata that leaves no room for an outer header: of 256 bytes before a frame the kernel keeps some 40.
const METADATA_BYTES: u32 = 216;

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

#[test]
fn each_reason_drops() {
    let mut rig = Rig::new();
    for reason in DropReason::ALL {
        for family in Family::BOTH {
            let rows = rows(&mut rig, *reason, family);
            if !rows.is_empty() {
                check_all(&mut rig, &rows);
            }
        }
    }
}

/// Rows for a reason; what must be written or sent before them is. None if the family cannot have it.
fn rows(rig: &mut Rig, reason: DropReason, family: Family) -> Vec<Row> {
    let packets = match reason {
        DropReason::Truncated => return truncated(family),
        DropReason::MalformedHeader => return malformed(family),
        DropReason::Headroom => {
            no_headroom(rig, family);
            return vec![];
        }
        DropReason::Ipv6Extensions if family == Family::V4 => return vec![],
        DropReason::Ipv6Extensions => {
            let plain = packet(family, world::L2);
            let nine = (0..9).fold(plain.clone(), |packet, _| packet.extension(60, 8));
            let long = plain.extension(0, 1024);
            vec![
                nine.clone().tcp((45_000, 80), ACK, &[]),
                nine.raw(47, &[0; 24]),
                long.clone().udp((45_000, 53), b"query"),
                long.echo_request(1, b"ping"),
            ]
        }
        DropReason::FragmentProtocol => {
            let echo = packet(family, world::L2).echo_request(1, &[7; 60]);
            let kind = if family == Family::V4 { 3 } else { 1 };
            let error = packet(family, world::L2).icmp(kind, 1, [0; 4], &[7; 60]);
            [echo.in_two(1, 24), error.in_two(2, 24)].concat()
        }
        DropReason::IcmpQuote => {
            let kind = if family == Family::V4 { 3 } else { 1 };
            vec![packet(family, world::L2).icmp(kind, 1, [0; 4], &[7; 60])]
        }
        DropReason::TcpFlags
        | DropReason::Land
        | DropReason::SourceInvalid
        | DropReason::SourceVip
        | DropReason::PortZero
        | DropReason::SynData
        | DropReason::FragmentTiny
        | DropReason::FragmentOverlap
        | DropReason::FragmentLength => sanity::packets(rig, reason, family),
        DropReason::Fragment => {
            sources::with_filter(rig, family, FILTER_FRAGMENTS);
            fragments::pieces(family)
        }
        DropReason::Amplification => {
            amplification::presets(rig, world::L2, u64::MAX, 0);
            vec![packet(family, world::L2).udp((53, 53), &ANSWER)]
        }
        DropReason::OutOfState => {
            out_of_state::budget(rig, world::MANY, 0);
            out_of_state::spend(rig, family, world::MANY);
            [ACK, RST, FIN | ACK]
                .into_iter()
                .map(|flags| packet(family, world::MANY).tcp((45_950, 80), flags, b""))
                .collect()
        }
        DropReason::ChallengeAnswer => vec![challenge::reset(rig, family)],
        DropReason::SynChecksum => return challenge::wrong_checksums(family),
        DropReason::LimitExact => {
            // Somebody who sends nothing else.
            let plain = Packet::new(client(family, 150, 7), vip(family, world::L2));
            limit_exactly(rig, Exact::host(plain.from));
            vec![plain.udp((45_100, 53), b"query")]
        }
        DropReason::LimitHost | DropReason::LimitNetwork => {
            limit_sources(rig, reason);
            vec![packet(family, world::LIMITED).udp((45_100, 53), b"query")]
        }
        DropReason::Rule => {
            crate::rules::drop_by_rule(rig, "sport 45600 -> drop");
            let plain = packet(family, world::L2);
            vec![
                plain.clone().tcp((45_600, 80), ACK, b"data"),
                plain.udp((45_600, 53), b"query"),
            ]
        }
        DropReason::Deny => {
            let plain = Packet::new(client(family, 151, 7), vip(family, world::L2));
            let prefix = sources::around(plain.from);
            rig.set_sources(&[sources::set(4, Purpose::Deny, &[prefix])]);
            vec![
                plain.clone().tcp((45_700, 80), ACK, b"data"),
                plain.udp((45_700, 53), b"query"),
            ]
        }
        DropReason::Bogon => {
            let plain = Packet::new(client(family, 152, 7), vip(family, world::L2));
            let prefix = sources::around(plain.from);
            rig.set_sources(&[sources::set(SET_BOGONS, Purpose::Bogons, &[prefix])]);
            sources::with_filter(rig, family, FILTER_BOGONS);
            vec![
                plain.clone().tcp((45_800, 80), ACK, b"data"),
                plain.udp((45_800, 53), b"query"),
            ]
        }
        DropReason::Cookie => cookie::bad(rig, family),
        DropReason::NoBackend => [world::EMPTY, world::DOWN]
            .into_iter()
            .flat_map(|host| to_both(family, host))
            .collect(),
        DropReason::BackendUnresolved => to_both(family, world::UNRESOLVED),
        DropReason::TooBig => {
            let answer = Packet::new(vip(family, world::GUE6), client(family, 100, 7));
            let quoted = answer.tcp((80, 45_200), ACK, &[7; 1430]).ip_bytes();
            let kind = if family == Family::V4 { 3 } else { 1 };
            vec![packet(family, world::GUE6).icmp(kind, 1, [0; 4], &quoted)]
        }
    };
    if reason.word().starts_with("limit_") {
        exhaust(rig, &packets[0]);
    }
    packets
        .into_iter()
        .map(|packet| Row::new(reason.word(), packet, Expect::Drop(reason)))
        .collect()
}

fn to_both(family: Family, host: u8) -> Vec<Packet> {
    let plain = packet(family, host);
    vec![
        plain.clone().tcp((45_300, 80), ACK, b"data"),
        plain.udp((45_300, 53), b"query"),
    ]
}

/// Frames that end before the length in their IP header. Every other row is cut too.
fn truncated(family: Family) -> Vec<Row> {
    let lengths = |ip: &mut [u8], more: u16| {
        let at = if ip[0] >> 4 == 4 { 2 } else { 4 };
        let length = u16::from_be_bytes([ip[at], ip[at + 1]]).saturating_add(more);
        ip[at..at + 2].copy_from_slice(&length.to_be_bytes());
    };
    let mut rows = vec![];
    for more in [1, 100, u16::MAX] {
        for whole in to_both(family, world::L2) {
            let row = Row::new("truncated", whole, Expect::Drop(DropReason::Truncated));
            rows.push(row.patch(|ip| lengths(ip, more)));
        }
        let echo = packet(family, world::L2).echo_request(1, b"ping");
        let row = Row::new("truncated echo", echo, Expect::Drop(DropReason::Truncated));
        rows.push(row.patch(|ip| lengths(ip, more)));
    }
    rows
}

/// Lengths that cannot be.
fn malformed(family: Family) -> Vec<Row> {
    let drop = Expect::Drop(DropReason::MalformedHeader);
    let plain = packet(family, world::L2);
    let tcp = plain.clone().tcp((45_400, 80), ACK, b"data");
    let cut = |whole: Packet, bytes: usize| whole.with(|p| p.payload.truncate(bytes));
    let transport = family.header_bytes();
    let mut rows = vec![
        Row::new("a short TCP header", cut(tcp.clone(), 19), drop),
        Row::new("no TCP header", cut(tcp.clone(), 0), drop),
        Row::new("TCP's offset of 4", tcp.clone(), drop).patch(|ip| ip[transport + 12] = 0x40),
        Row::new("TCP's offset of 0", tcp.clone(), drop).patch(|ip| ip[transport + 12] = 0),
        Row::new(
            "a short UDP header",
            cut(plain.clone().udp((45_400, 53), b""), 7),
            drop,
        ),
        Row::new(
            "UDP's length of 7",
            plain.clone().udp((45_400, 53), b"query"),
            drop,
        )
        .patch(|ip| ip[transport + 5] = 7),
        Row::new(
            "UDP's length past the packet",
            plain.clone().udp((45_400, 53), b"query"),
            drop,
        )
        .patch(|ip| ip[transport + 5] = 14),
        Row::new("TCP's options past the packet", tcp.clone(), drop)
            .patch(|ip| ip[transport + 12] = 0x70),
        Row::new(
            "a short ICMP header",
            cut(plain.clone().echo_request(1, b""), 7),
            drop,
        ),
        // Padding is not read as a header.
        Row::new(
            "TCP in the padding",
            cut(tcp.clone(), 4).with(|p| p.padding = 60),
            drop,
        ),
    ];
    if family == Family::V4 {
        rows.push(Row::new("a header of 16 bytes", tcp.clone(), drop).patch(|ip| ip[0] = 0x44));
        rows.push(Row::new("a header of no bytes", tcp.clone(), drop).patch(|ip| ip[0] = 0x40));
        let longer_than_packet = plain.with(|p| p.options = vec![1; 40]).udp((1, 53), b"");
        let row = Row::new("a length below the header's", longer_than_packet, drop);
        rows.push(row.patch(|ip| ip[2..4].copy_from_slice(&[0, 40])));
        let row = Row::new("a header past the packet", tcp, drop);
        rows.push(row.patch(|ip| ip[0] = 0x4f));
    } else {
        let udp = plain.udp((45_400, 53), b"");
        let behind = udp.clone().extension(60, 16);
        for (whole, before_bytes) in [(udp, 0), (behind, 16)] {
            let [_, later] = whole.in_two(7, 8);
            for bytes in 0..before_bytes + 8 {
                let what = format!("a fragment that ends {bytes} bytes behind the IP header");
                let row = Row::new(what, later.clone(), drop);
                rows.push(row.patch(|ip| ip[4..6].copy_from_slice(&[0, bytes])));
            }
        }
    }
    rows
}

/// The kernel refuses to move the frame's start into what is left of its headroom.
fn no_headroom(rig: &mut Rig, family: Family) {
    for host in [world::IPIP4, world::IPIP6, world::GUE4, world::GUE6] {
        for whole in to_both(family, host) {
            let before = rig.counts(whole.to);
            let ran = rig.run_behind(METADATA_BYTES, &whole.frame());
            let counted = (rig.counts(whole.to) - before).packets();
            assert_eq!(ran.action, Action::Drop, "{family:?} {host}");
            let [(Counted::Dropped(_, DropReason::Headroom), 1, bytes)] = counted[..] else {
                panic!("{family:?} {host}: counted {counted:?}");
            };
            assert_eq!(bytes, whole.ip_bytes().len() as u64);
        }
    }
}
