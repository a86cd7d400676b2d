//! Metrics for Prometheus, made from the maps' figures when they are asked for.

pub mod names;

use std::{
    collections::HashMap,
    net::IpAddr,
    slice,
    sync::atomic::{AtomicUsize, Ordering},
};

use ahash::RandomState;
use prometheus::{
    TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric as Sample, MetricFamily},
};
use sluice_ebpf::abi::Count;

use names::{Kind, Metric};

use crate::{
    api::{model::StateWord, up_and_state},
    config::{self, Mode},
    control::{Figures, LimitCounts, LimitLabel, Scrape, View},
    desired::pop_drains,
    detect::shared::State,
};

/// Of [`text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// All metrics, as text.
pub fn text(view: &View, scrape: &Scrape, detected: &State) -> Result<String, prometheus::Error> {
    let mut page = Page::new();
    vips(&mut page, &scrape.figures)?;
    backends(&mut page, view, &scrape.figures)?;
    flows(&mut page, &scrape.figures)?;
    limits(&mut page, scrape)?;
    detection(&mut page, detected)?;
    daemon(&mut page, view, scrape)?;
    LENGTH.store(page.text.len(), Ordering::Relaxed);
    Ok(page.text)
}

/// Bytes of the last text: the next one will be about as long.
static LENGTH: AtomicUsize = AtomicUsize::new(0);

/// The text so far. Samples are turned into it family by family: all of them at once would be more than all else that the
/// daemon has in memory.
struct Page {
    text: String,
}

/// Values of the labels.
type Labels<const L: usize> = [String; L];

impl Page {
    fn new() -> Self {
        let length = LENGTH.load(Ordering::Relaxed);
        Self {
            text: String::with_capacity(length + length / 16),
        }
    }

    /// Metrics that have the same labels, and a value each in every row.
    fn table<const L: usize, const N: usize>(
        &mut self,
        metrics: [Metric; N],
        rows: impl IntoIterator<Item = (Labels<L>, [f64; N])>,
    ) -> Result<(), prometheus::Error> {
        let first = metrics[0];
        let rows = rows.into_iter();
        let (samples, values): (Vec<Sample>, Vec<[f64; N]>) = rows
            .map(|(labels, values)| (sample(first.labels, labels), values))
            .unzip();
        if samples.is_empty() {
            return Ok(());
        }
        let mut family = MetricFamily::default();
        family.set_metric(samples);
        for (at, metric) in metrics.iter().enumerate() {
            debug_assert_eq!(metric.labels, first.labels);
            family.set_name(metric.name.into());
            family.set_help(metric.help.into());
            family.set_field_type(metric.kind.of_prometheus());
            for (sample, values) in family.mut_metric().iter_mut().zip(&values) {
                set(sample, metric.kind, values[at]);
            }
            TextEncoder.encode_utf8(slice::from_ref(&family), &mut self.text)?;
        }
        Ok(())
    }

    /// A metric without labels.
    fn one(&mut self, metric: Metric, value: f64) -> Result<(), prometheus::Error> {
        self.table([metric], [([], [value])])
    }
}

fn sample<const L: usize>(names: &[&str], values: Labels<L>) -> Sample {
    debug_assert_eq!(names.len(), L);
    let pairs = names.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).into());
        pair.set_value(value);
        pair
    });
    Sample::from_label(pairs.collect())
}

fn set(sample: &mut Sample, kind: Kind, value: f64) {
    match kind {
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
}

/// Prometheus knows only floats; they are exact up to 2^53.
fn float(value: u64) -> f64 {
    value as f64
}

fn vips(page: &mut Page, figures: &Figures) -> Result<(), prometheus::Error> {
    let verdicts = figures.vips.iter().flat_map(|(vip, stats)| {
        [
            ("pass", stats.pass),
            ("tx", stats.tx),
            ("redirect", stats.redirect),
        ]
        .map(|(verdict, count)| ([vip.clone(), verdict.into()], packets_and_bytes(count)))
    });
    page.table([names::PACKETS, names::BYTES], verdicts)?;
    let out_of_state = figures
        .vips
        .iter()
        .map(|(vip, stats)| ([vip.clone()], [float(stats.out_of_state)]));
    page.table([names::FLOW_OUT_OF_STATE], out_of_state)?;
    let drops = |mode| {
        let drops = figures.drops.iter().filter(move |drop| drop.mode == mode);
        drops.map(|drop| {
            let vip = drop.vip.clone().unwrap_or_default();
            ([vip, drop.reason.word().into()], drop.count)
        })
    };
    page.table(
        [names::DROPPED_PACKETS, names::DROPPED_BYTES],
        drops(Mode::Enforce).map(|(labels, count)| (labels, packets_and_bytes(count))),
    )?;
    page.table(
        [names::MONITORED_PACKETS],
        drops(Mode::Monitor).map(|(labels, count)| (labels, [float(count.packets)])),
    )?;
    let amplified = figures.amplified.iter().map(|(preset, mode, count)| {
        let mode = match mode {
            Mode::Enforce => "enforce",
            Mode::Monitor => "monitor",
        };
        ([preset.word().into(), mode.into()], [float(count.packets)])
    });
    page.table([names::AMPLIFIED_PACKETS], amplified)?;
    let challenges = figures.challenges.iter().flat_map(|(vip, stats)| {
        let events = [
            ("sent", stats.sent.packets),
            ("monitored", stats.monitored.packets),
            ("let_in", stats.let_in),
            ("again", stats.again),
            ("proved", stats.proved),
            ("failed", stats.failed),
            ("capped", stats.capped),
        ];
        events.map(|(event, packets)| ([vip.clone(), event.into()], [float(packets)]))
    });
    page.table([names::CHALLENGES], challenges)?;
    let cookies = figures.challenges.iter().flat_map(|(vip, stats)| {
        let events = [
            ("sent", stats.cookies.packets),
            ("taken", stats.taken),
            ("refused", stats.refused),
        ];
        events.map(|(event, packets)| ([vip.clone(), event.into()], [float(packets)]))
    });
    page.table([names::COOKIES], cookies)?;
    let checksums = figures
        .checksums
        .iter()
        .map(|(vip, checksum)| ([vip.clone()], [exact(*checksum)]));
    page.table([names::TABLE_CHECKSUM], checksums)
}

fn packets_and_bytes(count: Count) -> [f64; 2] {
    [float(count.packets), float(count.bytes)]
}

fn backends(page: &mut Page, view: &View, figures: &Figures) -> Result<(), prometheus::Error> {
    let sums = sums(figures);
    let all = || {
        let pools = view.config.pools.iter();
        pools.flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
    };
    let states: Vec<Seen> = all()
        .map(|(pool, backend)| {
            let sum = sums.get(&(pool.name.as_str(), backend.address));
            let (count, flows) = sum.copied().unwrap_or_default();
            let (up, state) = up_and_state(view, pool, backend, flows);
            let health = view.health.get(&(pool.name.clone(), backend.address));
            Seen {
                count,
                flows,
                up,
                unchecked: health.is_some_and(|status| status.is_unmade),
                state,
            }
        })
        .collect();
    let rows = all().zip(&states).map(|((pool, backend), seen)| {
        let values = [
            float(seen.count.packets),
            float(seen.count.bytes),
            float(seen.flows),
            float(seen.up.into()),
            float(seen.unchecked.into()),
            float(backend.weight.into()),
        ];
        ([pool.name.clone(), backend.address.to_string()], values)
    });
    let metrics = [
        names::BACKEND_PACKETS,
        names::BACKEND_BYTES,
        names::BACKEND_FLOWS,
        names::BACKEND_UP,
        names::BACKEND_UNCHECKED,
        names::BACKEND_WEIGHT,
    ];
    page.table(metrics, rows)?;
    let words = all().zip(&states).map(|((pool, backend), seen)| {
        let (pool, address) = (pool.name.clone(), backend.address.to_string());
        ([pool, address, seen.state.word().into()], [1.0])
    });
    page.table([names::BACKEND_STATE], words)
}

/// What metrics tell of a backend.
struct Seen {
    count: Count,
    flows: u64,
    up: bool,
    unchecked: bool,
    state: StateWord,
}

/// What was sent to each backend in whatever way, and its flows.
fn sums(figures: &Figures) -> HashMap<(&str, IpAddr), (Count, u64), RandomState> {
    let mut sums: HashMap<_, (Count, u64), _> =
        HashMap::with_capacity_and_hasher(figures.backends.len(), RandomState::new());
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

fn flows(page: &mut Page, figures: &Figures) -> Result<(), prometheus::Error> {
    let stats = figures.flow_stats;
    page.one(names::FLOW_TABLE_CAPACITY, float(figures.flows.capacity))?;
    let entries = [
        ("proven", figures.flows.proven),
        ("unproven", figures.flows.unproven),
    ];
    page.table([names::FLOW_TABLE_ENTRIES], entries.map(worded))?;
    let inserts = figures.vips.values().map(|stats| stats.inserts).sum();
    page.one(names::FLOW_INSERTS, float(inserts))?;
    let evictions = [
        ("expired", stats.evicted_expired),
        ("unproven", stats.evicted_unproven),
        ("idle", stats.evicted_idle),
    ];
    page.table([names::FLOW_EVICTIONS], evictions.map(worded))
}

/// A row with one label.
fn worded((word, value): (&str, u64)) -> (Labels<1>, [f64; 1]) {
    ([word.into()], [float(value)])
}

fn limits(page: &mut Page, scrape: &Scrape) -> Result<(), prometheus::Error> {
    let classes = config::class_words().zip(&scrape.crowding);
    let crowding = classes.map(|(class, crowding)| {
        let values = [crowding.fill_ratio, crowding.collateral_probability];
        ([class.into()], values)
    });
    page.table(
        [
            names::LIMITER_FILL_RATIO,
            names::LIMITER_COLLATERAL_PROBABILITY,
        ],
        crowding,
    )?;
    page.table(
        [names::RULE_MATCHED_PACKETS, names::RULE_DROPPED_PACKETS],
        scrape.rules.iter().map(limited),
    )?;
    let sets = scrape.sets.iter().map(|(kind, name, counts)| {
        let (passed, dropped) = (counts.passed.packets, counts.dropped.packets);
        let labels = [kind.word().into(), name.clone()];
        (labels, [float(passed + dropped), float(dropped)])
    });
    page.table(
        [names::SET_MATCHED_PACKETS, names::SET_DROPPED_PACKETS],
        sets,
    )?;
    page.table(
        [names::LIMIT_MATCHED_PACKETS, names::LIMIT_DROPPED_PACKETS],
        scrape.limits.iter().map(limited),
    )
}

fn limited((label, counts): &(LimitLabel, LimitCounts)) -> (Labels<1>, [f64; 2]) {
    let label = match label {
        LimitLabel::Id(id) => id.to_string(),
        LimitLabel::Other => "other".to_owned(),
    };
    let values = [counts.matched_packets, counts.dropped_packets];
    ([label], values.map(float))
}

fn detection(page: &mut Page, detected: &State) -> Result<(), prometheus::Error> {
    let detector = &detected.detector;
    let mitigations = detector.mitigations().map(|mitigation| {
        let labels = [
            mitigation.vip.clone().unwrap_or_default(),
            mitigation.id.to_string(),
        ];
        let acts = detector.enforces(mitigation);
        (
            labels,
            [float(acts.into()), float(mitigation.matched_packets)],
        )
    });
    page.table(
        [names::MITIGATION_ACTIVE, names::MITIGATION_MATCHED_PACKETS],
        mitigations,
    )?;
    let words: Vec<&str> = config::class_words().collect();
    let attacks = detector.watched().map(|seen| {
        let class = words.get(seen.class as usize).copied().unwrap_or_default();
        let attacked = seen.trigger.attack().is_some();
        (
            [seen.vip.unwrap_or_default().into(), class.into()],
            [float(attacked.into())],
        )
    });
    page.table([names::ATTACK_ACTIVE], attacks)?;
    page.one(names::WEBHOOK_LOST, float(detected.webhook_lost))
}

fn daemon(page: &mut Page, view: &View, scrape: &Scrape) -> Result<(), prometheus::Error> {
    let ok = view.last_reload.error.is_none();
    page.one(names::CONFIG_LAST_RELOAD_SUCCESS, float(ok.into()))?;
    page.one(names::CONFIG_HASH, exact(view.config_hash))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    page.table([names::BUILD_INFO], [([version], [1.0])])?;
    let attachments = view.attachments.iter().map(|attachment| {
        let labels = [attachment.interface.clone(), attachment.mode.into()];
        (labels, [1.0])
    });
    page.table([names::DATAPLANE_INFO], attachments)?;
    if let Some(ns) = scrape.xdp_ns_per_packet {
        page.one(names::XDP_NS_PER_PACKET, ns)?;
    }
    let draining = pop_drains(&view.drains);
    page.one(names::POP_DRAINING, float(draining.into()))
}

/// As much of a checksum as a float holds exactly.
fn exact(checksum: u64) -> f64 {
    float(checksum >> 16)
}
