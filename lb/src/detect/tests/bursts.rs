//! Innocent traffic as it comes in life: in bursts of heavy tails, on top of a rhythm.
//!
//! Downloads begin at random; how long they last and how much each fetches follows Pareto, so that the sum is alike on all
//! scales of time (Cox, 1984; Leland et al., 1994), and few clients send a good part of all packets.

use std::{collections::BTreeMap, f64::consts::TAU};

use super::{innocent::v4, world::Random};
use crate::detect::{header::Header, recent::VipIndex, trigger::times};

#[derive(Clone, Debug)]
pub(super) struct Bursts {
    random: Random,
    vips: BTreeMap<VipIndex, Downloads>,
}

/// Of a VIP.
#[derive(Clone, Debug, Default)]
struct Downloads {
    next_ms: u64,
    under_way: Vec<Download>,
}

#[derive(Clone, Debug)]
struct Download {
    until_ms: u64,
    /// So many times what all other clients send together.
    share: f64,
    client: u128,
    port: u16,
}

const BETWEEN_MS: f64 = 1_000.0;
const LEAST_MS: f64 = 300.0;
const MOST_MS: f64 = 60_000.0;
const LEAST_SHARE: f64 = 0.05;
/// What a line takes beside the others.
const MOST_SHARE: f64 = 2.0;
/// A day in an hour.
const RHYTHM_MS: f64 = 3_600_000.0;

impl Bursts {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            random: Random(seed),
            vips: BTreeMap::new(),
        }
    }

    /// How many times the mean comes now.
    pub(super) fn factor(&mut self, vip: VipIndex, now_ms: u64) -> f64 {
        let random = &mut self.random;
        let downloads = self.vips.entry(vip).or_default();
        if now_ms >= downloads.next_ms {
            let wait = -random.part().ln() * BETWEEN_MS;
            downloads.next_ms = now_ms + times(1, wait);
            let lasts = pareto(random, LEAST_MS, 1.4).min(MOST_MS);
            downloads.under_way.push(Download {
                until_ms: now_ms + times(1, lasts),
                share: pareto(random, LEAST_SHARE, 1.3).min(MOST_SHARE),
                client: v4(0x5000_0000 + random.below(0x1000_0000)),
                port: u16::try_from(1_024 + random.below(64_000)).unwrap(),
            });
        }
        downloads.under_way.retain(|one| one.until_ms > now_ms);
        let rhythm = 1.0 - 0.5 * (TAU * now_ms as f64 / RHYTHM_MS).cos();
        rhythm * (1.0 + downloads.share())
    }

    /// Makes a client's packet one of a download, as often as that has a part in all.
    pub(super) fn sign(&mut self, vip: VipIndex, header: &mut Header) {
        let Some(downloads) = self.vips.get(&vip) else {
            return;
        };
        let all = 1.0 + downloads.sum();
        let mut at = self.random.part() * all;
        let found = downloads.under_way.iter().find(|one| {
            at -= one.share;
            at < 0.0
        });
        if let Some(one) = found {
            header.source = one.client;
            if header.source_port != 0 {
                header.source_port = one.port;
            }
        }
    }
}

impl Downloads {
    fn sum(&self) -> f64 {
        self.under_way.iter().map(|one| one.share).sum()
    }

    fn share(&self) -> f64 {
        self.sum().min(MOST_SHARE)
    }
}

fn pareto(random: &mut Random, least: f64, alpha: f64) -> f64 {
    least * random.part().powf(-1.0 / alpha)
}
