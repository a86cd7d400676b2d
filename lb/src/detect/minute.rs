//! Headers of the last minute, so that a rule can be tried before packets meet it. Of fixed size.

use std::collections::VecDeque;

use sluice_ebpf::{
    encap::GUE_PORT,
    packet::{IPIP, IPV6, UDP},
};

use super::{header::InTunnel, recent::VipIndex};
use crate::rules::{Components, Header};

/// Some of the samples of the last minute, evenly from all of its ticks.
#[derive(Clone, Debug, Default)]
pub struct Minute {
    ring: VecDeque<Kept>,
}

/// A packet, as rules see it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub vip: VipIndex,
    pub header: Header,
    /// Something dropped it.
    pub dropped: bool,
}

#[derive(Clone, Debug)]
struct Kept {
    at_ms: u64,
    seen: Seen,
    /// Packets that it stands for.
    weight: f64,
}

/// What a rule would have meant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Replay {
    /// How far back the samples reach.
    pub ms: u64,
    pub samples: usize,
    pub matched_samples: usize,
    /// Estimates.
    pub matched_packets: f64,
    pub matched_bytes: f64,
    /// Those of them that something dropped.
    pub dropped_packets: f64,
}

/// How far back it reaches.
pub const MINUTE_MS: u64 = 60_000;
/// Samples that are kept of a tick.
pub const MOST_A_TICK: usize = 50;
/// Of 600 ticks.
const MOST: usize = 30_000;

impl Minute {
    /// Takes some of a tick's samples, which stand for all packets that came in it.
    pub fn push(&mut self, at_ms: u64, packets: u64, seen: Vec<Seen>) {
        while let Some(oldest) = self.ring.front() {
            if oldest.at_ms + MINUTE_MS > at_ms && self.ring.len() + seen.len() <= MOST {
                break;
            }
            self.ring.pop_front();
        }
        let weight = (packets as f64 / seen.len().max(1) as f64).max(1.0);
        self.ring.extend(seen.into_iter().map(|seen| Kept {
            at_ms,
            seen,
            weight,
        }));
    }

    /// What a rule with these components, for this VIP or all, would have meant.
    pub fn replay(&self, now_ms: u64, components: &Components, vip: Option<VipIndex>) -> Replay {
        let since_ms = now_ms.saturating_sub(MINUTE_MS);
        let first = self.ring.partition_point(|kept| kept.at_ms < since_ms);
        let mut replay = Replay::default();
        for kept in self.ring.range(first..) {
            replay.ms = replay.ms.max(now_ms.saturating_sub(kept.at_ms));
            replay.samples += 1;
            let seen = &kept.seen;
            let for_vip = vip.is_none_or(|vip| vip == seen.vip);
            if !for_vip || !components.match_header(&seen.header) {
                continue;
            }
            replay.matched_samples += 1;
            replay.matched_packets += kept.weight;
            replay.matched_bytes += kept.weight * f64::from(seen.header.length);
            if seen.dropped {
                replay.dropped_packets += kept.weight;
            }
        }
        replay
    }
}

/// The client's packet in a sampled frame.
pub fn read(frame: &[u8], tunnel: InTunnel) -> Option<Header> {
    let packet = network(frame)?;
    let outer = Header::decode(packet);
    if tunnel == InTunnel::No {
        return outer;
    }
    let first = *packet.first()?;
    let (protocol, header_bytes) = match first >> 4 {
        4 => (*packet.get(9)?, usize::from(first & 15) * 4),
        _ => (*packet.get(6)?, 40),
    };
    let behind = packet.get(header_bytes..)?;
    match protocol {
        IPIP | IPV6 => Header::decode(behind),
        UDP if behind.get(2..4)? == GUE_PORT.to_be_bytes() => Header::decode(behind.get(8..)?),
        _ => outer,
    }
}

/// What lies behind Ethernet and VLAN tags.
fn network(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while let [0x81, 0x00] | [0x88, 0xa8] = frame.get(at..at + 2)? {
        at += 4;
    }
    frame.get(at + 2..)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::rules::RuleSpec;

    fn frame(source: u8, source_port: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([198, 51, 100, source], [192, 0, 2, 53], 64)
            .udp(source_port, 53)
            .write(&mut frame, b"question")
            .unwrap();
        frame
    }

    fn seen(vip: VipIndex, source_port: u16) -> Seen {
        Seen {
            vip,
            header: read(&frame(1, source_port), InTunnel::No).unwrap(),
            dropped: source_port == 19,
        }
    }

    #[test]
    fn a_rule_is_tried_on_the_last_minute() {
        let mut minute = Minute::default();
        minute.push(0, 10, vec![seen(1, 19)]);
        minute.push(50_000, 1_000, vec![seen(1, 19), seen(2, 53)]);
        let rule: RuleSpec = "proto udp; sport 19 -> drop".parse().unwrap();
        let replay = minute.replay(59_000, &rule.components, None);
        assert_eq!((replay.samples, replay.matched_samples), (3, 2));
        assert_eq!(replay.matched_packets, 510.0);
        assert_eq!(replay.dropped_packets, 510.0);
        assert_eq!(replay.matched_bytes, 510.0 * 36.0);
        let replay = minute.replay(100_000, &rule.components, None);
        assert_eq!((replay.samples, replay.ms), (2, 50_000));
        let replay = minute.replay(100_000, &rule.components, Some(2));
        assert_eq!(replay.matched_samples, 0);
    }

    #[test]
    fn its_size_is_bounded() {
        let mut minute = Minute::default();
        for tick in 0..2_000 {
            minute.push(tick * 10, 50, vec![seen(1, 53); MOST_A_TICK]);
        }
        assert!(minute.ring.len() <= MOST);
    }

    #[test]
    fn the_packet_of_the_client_is_found_in_tunnels() {
        let inner = frame(7, 9);
        let expected = read(&inner, InTunnel::No);
        assert_eq!(read(&inner, InTunnel::Maybe), expected);
        let mut tunnel = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .write(&mut tunnel, etherparse::IpNumber(IPIP), &inner[14..])
            .unwrap();
        assert_eq!(read(&tunnel, InTunnel::Maybe), expected);
        let mut gue = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, GUE_PORT)
            .write(&mut gue, &inner[14..])
            .unwrap();
        assert_eq!(read(&gue, InTunnel::Maybe), expected);
    }
}
