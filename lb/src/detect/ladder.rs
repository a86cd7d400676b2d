//! What is done when nothing tells an attack from innocent packets: measures that harm the innocent little, one after
//! the other while too much still comes through.

use std::collections::BTreeMap;

use super::{
    header::Header,
    mitigation::Measure,
    trigger::{Rates, times},
};
use crate::config::Class;

/// What is known when a step is to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation<'a> {
    pub(super) class: Class,
    /// What comes through now.
    pub(super) rates: Rates,
    /// The 99th percentile of peace, and the floor of triggers.
    pub(super) high_pps: u64,
    pub(super) floor_pps: u64,
    /// The cap's factor over the 99th percentile.
    pub(super) cap_factor: f64,
    pub(super) attack: &'a [Header],
    pub(super) peace: &'a [Header],
}

/// The next measure that would help, after those that are `taken` (or not wanted).
pub(super) fn next(situation: &Situation<'_>, taken: impl Fn(&Measure) -> bool) -> Option<Measure> {
    let steps = [
        prefix_limits(situation),
        (situation.class == Class::Syn).then_some(Measure::Challenge),
        cap(situation),
        Some(Measure::Upstream),
    ];
    steps.into_iter().flatten().find(|measure| !taken(measure))
}

/// Limits for each source network, if the attack comes from networks that send much more than any does in peace.
fn prefix_limits(situation: &Situation<'_>) -> Option<Measure> {
    let part = |samples: f64, of: &[Header]| samples / of.len().max(1) as f64;
    let heaviest = networks(situation.peace).into_values().max();
    let heaviest = part(f64::from(heaviest.unwrap_or_default()), situation.peace);
    let usual = times(situation.high_pps, heaviest * HEADROOM);
    let pps = usual.max(least_pps(situation.class));
    let limit = pps as f64;
    let rate = situation.rates.pps as f64;
    // Of many sources that send little, samples meet few, each once: that does not make them heavy.
    let surely = |samples: u32| f64::from(samples) - f64::from(samples).sqrt();
    let over = |samples| (part(surely(samples), situation.attack) * rate - limit).max(0.0);
    let stopped: f64 = networks(situation.attack).into_values().map(over).sum();
    let excess = rate - situation.high_pps as f64;
    (stopped >= excess * WORTH_IT).then_some(Measure::PrefixLimits { pps })
}

/// A cap far above peace, if more than that comes.
fn cap(situation: &Situation<'_>) -> Option<Measure> {
    let pps = times(situation.high_pps, situation.cap_factor).max(situation.floor_pps);
    // No cap holds proven flows.
    let holds = situation.class != Class::Established;
    (holds && situation.rates.pps > pps).then_some(Measure::Cap { pps })
}

/// How many of the packets each source network sent.
fn networks(headers: &[Header]) -> BTreeMap<u128, u32> {
    let mut networks = BTreeMap::new();
    for header in headers {
        let host_bits = if header.v6 { 128 - 48 } else { 32 - 24 };
        *networks
            .entry(header.source >> host_bits << host_bits)
            .or_default() += 1;
    }
    networks
}

/// What a network may send at least; a limit above it follows from what networks send in peace.
const fn least_pps(class: Class) -> u64 {
    match class {
        Class::Syn => 500,
        Class::Udp | Class::Other => 1_000,
        Class::Icmp => 100,
        Class::Established => 20_000,
    }
}

/// So many times what the heaviest network sends in peace.
const HEADROOM: f64 = 3.0;
/// Limits are a step only if they stop so much of what is too much.
const WORTH_IT: f64 = 0.5;
