//! Who sends most: counts of prefixes, ports and lengths among the samples of the last seconds, scaled to all packets.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv6Addr,
};

use ipnet::IpNet;
use serde::Deserialize;
use sluice_ebpf::packet::{TCP, UDP};
use utoipa::ToSchema;

use super::{
    header::{Fragment, Header},
    recent::VipIndex,
};

/// Samples of the last seconds.
#[derive(Clone, Debug, Default)]
pub struct Talkers {
    ring: VecDeque<Talk>,
}

/// One sample, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    pub at_ms: u64,
    pub vip: VipIndex,
    pub header: Header,
    pub dropped: bool,
    /// Packets that it stands for.
    pub weight: f32,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub vip: Option<VipIndex>,
    pub window_ms: u64,
    pub order: Order,
    /// Rows of each list.
    pub most: usize,
}

/// What makes the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    #[default]
    Packets,
    Bytes,
    Dropped,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Top {
    pub samples: usize,
    /// Packets that a sample stands for, on average.
    pub packets_per_sample: f64,
    pub networks: Vec<Row>,
    pub source_ports: Vec<Row>,
    pub destination_ports: Vec<Row>,
    pub lengths: Vec<Row>,
}

/// Rates of one prefix, port or length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub what: String,
    pub seen: Rate,
    pub dropped: Rate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    pub pps: f64,
    pub bps: f64,
}

impl Talkers {
    pub fn push(&mut self, talk: Talk) {
        if self.ring.len() >= MOST {
            self.ring.pop_front();
        }
        self.ring.push_back(talk);
    }

    pub fn top(&self, now_ms: u64, ask: &Ask) -> Top {
        let since_ms = now_ms.saturating_sub(ask.window_ms);
        let first = self.ring.partition_point(|talk| talk.at_ms < since_ms);
        let talks: Vec<&Talk> = self
            .ring
            .range(first..)
            .filter(|talk| ask.vip.is_none_or(|vip| vip == talk.vip))
            .collect();
        let Some(oldest) = talks.first() else {
            return Top::default();
        };
        // The ring may not reach back so far.
        let seconds = (now_ms.saturating_sub(oldest.at_ms).max(100)) as f64 / 1_000.0;
        let weights: f64 = talks.iter().map(|talk| f64::from(talk.weight)).sum();
        let rows = |key: &dyn Fn(&Header) -> Option<Key>| rows(&talks, seconds, ask, key);
        Top {
            samples: talks.len(),
            packets_per_sample: weights / talks.len() as f64,
            networks: rows(&|header| network(header).map(Key::Network)),
            source_ports: rows(&|header| {
                has_ports(header).then_some(Key::Port(header.protocol, header.source_port))
            }),
            destination_ports: rows(&|header| {
                has_ports(header).then_some(Key::Port(header.protocol, header.destination_port))
            }),
            lengths: rows(&|header| Some(Key::Length(header.length))),
        }
    }
}

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Network(IpNet),
    Port(u8, u16),
    Length(u16),
}

impl Key {
    fn word(self) -> String {
        match self {
            Self::Network(network) => network.to_string(),
            Self::Port(TCP, port) => format!("tcp {port}"),
            Self::Port(_, port) => format!("udp {port}"),
            Self::Length(length) => length.to_string(),
        }
    }
}

fn rows(
    talks: &[&Talk],
    seconds: f64,
    ask: &Ask,
    key: &dyn Fn(&Header) -> Option<Key>,
) -> Vec<Row> {
    let mut sums: BTreeMap<Key, (Rate, Rate)> = BTreeMap::new();
    for talk in talks {
        let Some(key) = key(&talk.header) else {
            continue;
        };
        let pps = f64::from(talk.weight) / seconds;
        let bps = pps * f64::from(talk.header.length) * 8.0;
        let (seen, dropped) = sums.entry(key).or_default();
        (seen.pps, seen.bps) = (seen.pps + pps, seen.bps + bps);
        if talk.dropped {
            (dropped.pps, dropped.bps) = (dropped.pps + pps, dropped.bps + bps);
        }
    }
    let measure = |(seen, dropped): &(Rate, Rate)| match ask.order {
        Order::Packets => seen.pps,
        Order::Bytes => seen.bps,
        Order::Dropped => dropped.pps,
    };
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|(_, a), (_, b)| measure(b).total_cmp(&measure(a)));
    sums.truncate(ask.most);
    let row = |(key, (seen, dropped)): (Key, (Rate, Rate))| Row {
        what: key.word(),
        seen,
        dropped,
    };
    sums.into_iter().map(row).collect()
}

fn has_ports(header: &Header) -> bool {
    header.fragment != Fragment::Later && matches!(header.protocol, TCP | UDP)
}

/// The source's /24, or /48.
fn network(header: &Header) -> Option<IpNet> {
    let length = if header.v6 { 48 } else { 24 };
    let address = Ipv6Addr::from(header.source).to_canonical();
    Some(IpNet::new(address, length).ok()?.trunc())
}

/// Ten seconds of 10,000 a second.
const MOST: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn talk(at_ms: u64, last: u8, dropped: bool) -> Talk {
        let source = u128::from(std::net::Ipv4Addr::new(198, 51, last, 7).to_ipv6_mapped());
        Talk {
            at_ms,
            vip: 1,
            header: Header {
                source,
                protocol: UDP,
                source_port: 53,
                destination_port: 443,
                length: 1_000,
                ..Header::default()
            },
            dropped,
            weight: 10.0,
        }
    }

    const ASK: Ask = Ask {
        vip: None,
        window_ms: 10_000,
        order: Order::Packets,
        most: 2,
    };

    #[test]
    fn the_loudest_network_comes_first_with_what_was_dropped_of_it() {
        let mut talkers = Talkers::default();
        for n in 0..100 {
            talkers.push(talk(n * 10, if n % 4 == 0 { 1 } else { 2 }, n % 4 != 0));
        }
        let top = talkers.top(1_000, &ASK);
        assert_eq!((top.samples, top.packets_per_sample), (100, 10.0));
        let first = &top.networks[0];
        assert_eq!(first.what, "198.51.2.0/24");
        assert_eq!((first.seen.pps, first.dropped.pps), (750.0, 750.0));
        assert_eq!(first.seen.bps, 750.0 * 8_000.0);
        assert_eq!(top.networks[1].dropped.pps, 0.0);
        assert_eq!(top.source_ports[0].what, "udp 53");
        assert_eq!(top.lengths[0].what, "1000");
    }

    #[test]
    fn only_the_vip_and_the_window_that_are_asked_for_count() {
        let mut talkers = Talkers::default();
        for n in 0..100 {
            talkers.push(talk(n * 10, 1, false));
        }
        let other = Ask {
            vip: Some(2),
            ..ASK
        };
        assert_eq!(talkers.top(1_000, &other), Top::default());
        let short = Ask {
            window_ms: 500,
            ..ASK
        };
        assert_eq!(talkers.top(1_000, &short).samples, 50);
    }

    #[test]
    fn memory_is_bounded() {
        let mut talkers = Talkers::default();
        for n in 0..250_000 {
            talkers.push(talk(n, 1, false));
        }
        assert_eq!(talkers.ring.len(), MOST);
    }
}
