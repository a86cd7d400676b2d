//! Metrics for Prometheus, made from the maps' figures when they are asked for.

pub mod names;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use prometheus::{
    TextEncoder,
    proto::{Counter, Gauge, LabelPair, MetricFamily},
};
use sluice_ebpf::abi::Count;

use names::{Kind, Metric};

use crate::{
    api::{is_up, state},
    config::{self, Mode},
    control::{Figures, LimitLabel, Scrape, View},
    detect::detector::Detector,
};

/// Of [`text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics, as text.
pub fn text(
    view: &View,
    scrape: &Scrape,
    detector: &Detector,
) -> Result<String, prometheus::Error> {
    let mut page = Page::default();
    vips(&mut page, &scrape.figures);
    backends(&mut page, view, &scrape.figures);
    flows(&mut page, &scrape.figures);
    limits(&mut page, scrape);
    detection(&mut page, detector);
    daemon(&mut page, view, scrape);
    TextEncoder::new().encode_to_string(&page.families)
}

/// Metric families so far, in the order in which they were begun.
#[derive(Default)]
struct Page {
    families: Vec<MetricFamily>,
    positions: BTreeMap<&'static str, usize>,
}

impl Page {
    /// Prometheus knows only floats; they are exact up to 2^53.
    fn add(&mut self, metric: Metric, labels: &[&str], value: u64) {
        self.add_float(metric, labels, value as f64);
    }

    fn add_float(&mut self, metric: Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(labels.len(), metric.labels.len());
        let position = *self.positions.entry(metric.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(metric.name.into());
            family.set_help(metric.help.into());
            family.set_field_type(metric.kind.of_prometheus());
            self.families.push(family);
            self.families.len() - 1
        });
        let pairs = metric.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).into());
            pair.set_value((*value).into());
            pair
        });
        let mut sample = prometheus::proto::Metric::from_label(pairs.collect());
        match metric.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                sample.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                sample.set_gauge(gauge);
            }
        }
        self.families[position].mut_metric().push(sample);
    }
}

fn vips(page: &mut Page, figures: &Figures) {
    for (vip, stats) in &figures.vips {
        for (verdict, count) in [
            ("pass", stats.pass),
            ("tx", stats.tx),
            ("redirect", stats.redirect),
        ] {
            page.add(names::PACKETS, &[vip, verdict], count.packets);
            page.add(names::BYTES, &[vip, verdict], count.bytes);
        }
        page.add(names::FLOW_OUT_OF_STATE, &[vip], stats.out_of_state);
    }
    for drop in &figures.drops {
        let labels = [drop.vip.as_deref().unwrap_or_default(), drop.reason.word()];
        match drop.mode {
            Mode::Enforce => {
                page.add(names::DROPPED_PACKETS, &labels, drop.count.packets);
                page.add(names::DROPPED_BYTES, &labels, drop.count.bytes);
            }
            Mode::Monitor => page.add(names::MONITORED_PACKETS, &labels, drop.count.packets),
        }
    }
    for (preset, mode, count) in &figures.amplified {
        let mode = match mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        };
        page.add(
            names::AMPLIFIED_PACKETS,
            &[preset.word(), mode],
            count.packets,
        );
    }
    for (vip, checksum) in &figures.checksums {
        page.add(names::TABLE_CHECKSUM, &[vip], exact(*checksum));
    }
}

fn backends(page: &mut Page, view: &View, figures: &Figures) {
    let sums = sums(figures);
    for pool in &view.config.pools {
        for backend in &pool.backends {
            let address = backend.address.to_string();
            let labels = [pool.name.as_str(), &address];
            let (count, flows) = sums
                .get(&(pool.name.as_str(), backend.address))
                .copied()
                .unwrap_or_default();
            page.add(names::BACKEND_PACKETS, &labels, count.packets);
            page.add(names::BACKEND_BYTES, &labels, count.bytes);
            page.add(names::BACKEND_FLOWS, &labels, flows);
            let up = is_up(view, &pool.name, backend.address);
            page.add(names::BACKEND_UP, &labels, up.into());
            let state = state(view, pool, backend, flows);
            page.add(names::BACKEND_STATE, &[&pool.name, &address, state], 1);
            page.add(names::BACKEND_WEIGHT, &labels, backend.weight.into());
        }
    }
}

/// What was sent to each backend in whatever way, and its flows.
fn sums(figures: &Figures) -> HashMap<(&str, IpAddr), (Count, u64)> {
    let mut sums: HashMap<_, (Count, u64)> = HashMap::new();
    for (key, count) in &figures.backends {
        let (sum, _) = sums.entry((key.pool.as_str(), key.address)).or_default();
        sum.packets += count.packets;
        sum.bytes += count.bytes;
    }
    for (key, flows) in &figures.flows.backends {
        sums.entry((key.pool.as_str(), key.address)).or_default().1 += flows;
    }
    sums
}

fn flows(page: &mut Page, figures: &Figures) {
    let stats = figures.flow_stats;
    page.add(names::FLOW_TABLE_CAPACITY, &[], figures.flows.capacity);
    page.add(names::FLOW_TABLE_ENTRIES, &["proven"], figures.flows.proven);
    page.add(
        names::FLOW_TABLE_ENTRIES,
        &["unproven"],
        figures.flows.unproven,
    );
    let inserts = figures.vips.values().map(|stats| stats.inserts).sum();
    page.add(names::FLOW_INSERTS, &[], inserts);
    for (state, evicted) in [
        ("expired", stats.evicted_expired),
        ("unproven", stats.evicted_unproven),
        ("idle", stats.evicted_idle),
    ] {
        page.add(names::FLOW_EVICTIONS, &[state], evicted);
    }
}

fn limits(page: &mut Page, scrape: &Scrape) {
    for (class, crowding) in config::class_words().zip(&scrape.crowding) {
        page.add_float(names::LIMITER_FILL_RATIO, &[class], crowding.fill_ratio);
        page.add_float(
            names::LIMITER_COLLATERAL_PROBABILITY,
            &[class],
            crowding.collateral_probability,
        );
    }
    for (label, counts) in &scrape.rules {
        let rule = match label {
            LimitLabel::Id(id) => id.to_string(),
            LimitLabel::Other => "other".to_owned(),
        };
        page.add(
            names::RULE_MATCHED_PACKETS,
            &[&rule],
            counts.matched_packets,
        );
        page.add(
            names::RULE_DROPPED_PACKETS,
            &[&rule],
            counts.dropped_packets,
        );
    }
    for (label, counts) in &scrape.limits {
        let limit = match label {
            LimitLabel::Id(id) => id.to_string(),
            LimitLabel::Other => "other".to_owned(),
        };
        page.add(
            names::LIMIT_MATCHED_PACKETS,
            &[&limit],
            counts.matched_packets,
        );
        page.add(
            names::LIMIT_DROPPED_PACKETS,
            &[&limit],
            counts.dropped_packets,
        );
    }
}

fn detection(page: &mut Page, detector: &Detector) {
    for mitigation in detector.mitigations() {
        let id = mitigation.id.to_string();
        let labels = [mitigation.vip.as_deref().unwrap_or_default(), &id];
        let acts = detector.enforces(mitigation);
        page.add(names::MITIGATION_ACTIVE, &labels, acts.into());
        page.add(
            names::MITIGATION_MATCHED_PACKETS,
            &labels,
            mitigation.matched_packets,
        );
    }
    let words: Vec<&str> = config::class_words().collect();
    for seen in detector.watched() {
        let class = words.get(seen.class as usize).copied().unwrap_or_default();
        let labels = [seen.vip.unwrap_or_default(), class];
        let attacked = seen.trigger.attack().is_some();
        page.add(names::ATTACK_ACTIVE, &labels, attacked.into());
    }
}

fn daemon(page: &mut Page, view: &View, scrape: &Scrape) {
    let ok = view.last_reload.error.is_none();
    page.add(names::CONFIG_LAST_RELOAD_SUCCESS, &[], ok.into());
    page.add(names::CONFIG_HASH, &[], exact(view.config_hash));
    page.add(names::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1);
    for attachment in &view.attachments {
        let labels = [attachment.interface.as_str(), attachment.mode];
        page.add(names::DATAPLANE_INFO, &labels, 1);
    }
    if let Some(ns) = scrape.xdp_ns_per_packet {
        page.add_float(names::XDP_NS_PER_PACKET, &[], ns);
    }
    // Nothing is announced in this version, so there is nothing to drain.
    page.add(names::POP_DRAINING, &[], 0);
}

/// As much of a checksum as a float holds exactly.
fn exact(checksum: u64) -> u64 {
    checksum >> 16
}
