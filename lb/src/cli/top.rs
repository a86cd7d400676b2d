//! `sluice top`: what happens now, on one screen.

use std::{
    cmp::Reverse,
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use serde::Serialize;
use terminal_size::Height;

use super::{
    Failed, Watch,
    client::{Client, ClientError},
    detection::{mitigations_table, talkers_table},
    output::{Ink, Output},
    table::{or_dash, table},
};
use crate::{
    api::model::{
        BackendItem, Counted, DropItem, MitigationItem, Page, StateWord, Status, TalkerRow,
        Talkers, VipItem,
    },
    detect::{mitigation::PhaseWord, trigger::Rates},
};

/// How often, and how much of it.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Show it once, and end
    #[arg(long, conflicts_with = "watch")]
    once: bool,
    /// Rows of each list [default: what the terminal has room for; without one 10; with --json all]
    #[arg(long, value_name = "ROWS", value_parser = clap::value_parser!(u16).range(1..))]
    rows: Option<u16>,
    #[command(flatten)]
    watch: Watch,
}

pub(super) async fn top(args: &TopArgs, client: &Client, output: Output) -> Result<(), Failed> {
    let period = args.watch.period().unwrap_or(PERIOD);
    let mut before = Reading::take(client).await?;
    loop {
        tokio::time::sleep(period).await;
        let now = Reading::take(client).await?;
        let mut sample = now.since(&before);
        if let Some(rows) = args.rows {
            sample.keep([rows.into(); LISTS]);
        } else if !output.json {
            sample.keep(room(sample.lengths()));
        }
        output.clear()?;
        output.show(&sample, |sample| screen(output.ink, sample))?;
        if args.once {
            return Ok(());
        }
        before = now;
    }
}

const PERIOD: Duration = Duration::from_secs(1);

/// What happened between two readings. The busiest come first.
#[derive(Debug, Serialize)]
struct Sample {
    /// RFC 3339.
    at: String,
    /// Between the readings.
    milliseconds: u64,
    pop: String,
    flows: u64,
    flow_capacity: u64,
    vips: Vec<VipRates>,
    backends: Vec<BackendRates>,
    drops: Vec<DropRates>,
    /// In force, advised, or counting.
    mitigations: Vec<MitigationItem>,
    /// Networks, in the last ten seconds.
    talkers: Vec<TalkerRow>,
}

#[derive(Debug, Serialize)]
struct VipRates {
    name: String,
    draining: bool,
    pass: Rates,
    tx: Rates,
    redirect: Rates,
    drop: Rates,
    /// SYNs that were answered with a challenge.
    challenged_pps: u64,
}

#[derive(Debug, Serialize)]
struct BackendRates {
    pool: String,
    address: String,
    state: StateWord,
    flows: u64,
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Debug, Serialize)]
struct DropRates {
    vip: Option<String>,
    reason: String,
    mode: String,
    #[serde(flatten)]
    rates: Rates,
}

/// Counters, and what else there is, at one time.
struct Reading {
    at: Instant,
    status: Status,
    vips: Vec<VipItem>,
    backends: Vec<BackendItem>,
    drops: Vec<DropItem>,
    mitigations: Vec<MitigationItem>,
    talkers: Talkers,
}

impl Reading {
    async fn take(client: &Client) -> Result<Self, ClientError> {
        let (status, vips, backends, drops, mitigations, talkers): (
            Status,
            Page<VipItem>,
            Page<BackendItem>,
            Page<DropItem>,
            Page<MitigationItem>,
            Talkers,
        ) = tokio::try_join!(
            client.get("/v1/status"),
            client.list("/v1/vips"),
            client.list("/v1/backends"),
            client.list("/v1/drops"),
            client.list("/v1/mitigations"),
            client.get("/v1/talkers?limit=100"),
        )?;
        Ok(Self {
            at: Instant::now(),
            status,
            vips: vips.items,
            backends: backends.items,
            drops: drops.items,
            mitigations: mitigations.items,
            talkers,
        })
    }

    fn since(&self, before: &Self) -> Sample {
        let passed = self.at.saturating_duration_since(before.at).as_millis();
        let ms = u64::try_from(passed).unwrap_or(u64::MAX).max(1);
        let status = &self.status;
        let mut sample = Sample {
            at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            milliseconds: ms,
            pop: status.pop.clone(),
            flows: status.flows,
            flow_capacity: status.flow_capacity,
            vips: vip_rates(&before.vips, &self.vips, ms),
            backends: backend_rates(&before.backends, &self.backends, ms),
            drops: drop_rates(&before.drops, &self.drops, ms),
            mitigations: self.mitigations.clone(),
            talkers: self.talkers.networks.clone(),
        };
        sample
            .mitigations
            .retain(|mitigation| mitigation.state != PhaseWord::Reverted);
        sample
    }
}

fn vip_rates(before: &[VipItem], now: &[VipItem], ms: u64) -> Vec<VipRates> {
    let before = index(before, |vip| &vip.name);
    let of = |vip: &VipItem| {
        let (verdicts, challenged) = before
            .get(&vip.name)
            .map(|old| (old.verdicts, old.challenged_packets))
            .unwrap_or_default();
        VipRates {
            name: vip.name.clone(),
            draining: vip.draining,
            pass: rates(verdicts.pass, vip.verdicts.pass, ms),
            tx: rates(verdicts.tx, vip.verdicts.tx, ms),
            redirect: rates(verdicts.redirect, vip.verdicts.redirect, ms),
            drop: rates(verdicts.drop, vip.verdicts.drop, ms),
            challenged_pps: per_second(challenged, vip.challenged_packets, ms),
        }
    };
    let mut vips: Vec<_> = now.iter().map(of).collect();
    let all = |vip: &VipRates| vip.pass.pps + vip.tx.pps + vip.redirect.pps + vip.drop.pps;
    vips.sort_by_key(|vip| Reverse(all(vip)));
    vips
}

fn backend_rates(before: &[BackendItem], now: &[BackendItem], ms: u64) -> Vec<BackendRates> {
    let count = |backend: &BackendItem| Counted {
        packets: backend.packets,
        bytes: backend.bytes,
    };
    let before = index(before, |backend| (&backend.pool, &backend.address));
    let of = |backend: &BackendItem| {
        let old = before.get(&(&backend.pool, &backend.address));
        let old = old.map_or_else(Counted::default, |old| count(old));
        BackendRates {
            pool: backend.pool.clone(),
            address: backend.address.clone(),
            state: backend.state,
            flows: backend.flows,
            rates: rates(old, count(backend), ms),
        }
    };
    let mut backends: Vec<_> = now.iter().map(of).collect();
    backends.sort_by_key(|backend| Reverse((backend.rates.pps, backend.flows)));
    backends
}

/// Only what was dropped in this time.
fn drop_rates(before: &[DropItem], now: &[DropItem], ms: u64) -> Vec<DropRates> {
    let count = |drop: &DropItem| Counted {
        packets: drop.packets,
        bytes: drop.bytes,
    };
    let before = index(before, |drop| (&drop.vip, &drop.reason, &drop.mode));
    let of = |drop: &DropItem| {
        let old = before.get(&(&drop.vip, &drop.reason, &drop.mode));
        let old = old.map_or_else(Counted::default, |old| count(old));
        let rates = rates(old, count(drop), ms);
        (rates != Rates::default()).then(|| DropRates {
            vip: drop.vip.clone(),
            reason: drop.reason.clone(),
            mode: drop.mode.clone(),
            rates,
        })
    };
    let mut drops: Vec<_> = now.iter().filter_map(of).collect();
    drops.sort_by_key(|drop| Reverse(drop.rates.pps));
    drops
}

fn index<'a, T, K: Hash + Eq>(items: &'a [T], key: impl Fn(&'a T) -> K) -> HashMap<K, &'a T> {
    items.iter().map(|item| (key(item), item)).collect()
}

fn rates(before: Counted, now: Counted, ms: u64) -> Rates {
    Rates {
        pps: per_second(before.packets, now.packets, ms),
        bps: per_second(before.bytes, now.bytes, ms).saturating_mul(8),
    }
}

/// What a counter grew by. One that is new was zero, and one that fell began anew.
fn per_second(before: u64, now: u64, ms: u64) -> u64 {
    now.saturating_sub(before).saturating_mul(1_000) / ms
}

const LISTS: usize = 5;

impl Sample {
    fn lengths(&self) -> [usize; LISTS] {
        [
            self.vips.len(),
            self.backends.len(),
            self.drops.len(),
            self.mitigations.len(),
            self.talkers.len(),
        ]
    }

    /// Leaves so many rows of each list.
    fn keep(&mut self, rows: [usize; LISTS]) {
        let [vips, backends, drops, mitigations, talkers] = rows;
        self.vips.truncate(vips);
        self.backends.truncate(backends);
        self.drops.truncate(drops);
        self.mitigations.truncate(mitigations);
        self.talkers.truncate(talkers);
    }
}

/// The rows of each list that the terminal has room for.
fn room(lengths: [usize; LISTS]) -> [usize; LISTS] {
    match terminal_size::terminal_size() {
        // The cursor stands on the last line.
        Some((_, Height(lines))) => fitting(lengths, usize::from(lines).saturating_sub(2)),
        None => [10; LISTS],
    }
}

/// All lists get the same number of rows, but what one does not need the others get. Each has a header, and a blank line before it.
fn fitting(lengths: [usize; LISTS], lines: usize) -> [usize; LISTS] {
    let shown = lengths.iter().filter(|length| **length > 0).count();
    let mut left = lines.saturating_sub(2 * shown);
    let mut rows = [0; LISTS];
    loop {
        let wanting = rows.iter_mut().zip(lengths);
        let wanting: Vec<_> = wanting.filter(|(row, length)| **row < *length).collect();
        if wanting.is_empty() || left == 0 {
            return rows;
        }
        for (row, _) in wanting.into_iter().take(left) {
            *row += 1;
            left -= 1;
        }
    }
}

fn screen(ink: Ink, sample: &Sample) -> String {
    let Sample {
        at,
        pop,
        flows,
        flow_capacity,
        ..
    } = sample;
    let mut text = format!("{pop} {at}  {flows} of {flow_capacity} flows\n");
    let tables = [
        vips_table(ink, &sample.vips),
        backends_table(ink, &sample.backends),
        drops_table(ink, &sample.drops),
        mitigations_table(ink, &sample.mitigations),
        talkers_table(ink, "NETWORK", &sample.talkers),
    ];
    for (table, length) in tables.iter().zip(sample.lengths()) {
        if length > 0 {
            text.push('\n');
            text.push_str(table);
        }
    }
    text
}

fn vips_table(ink: Ink, vips: &[VipRates]) -> String {
    let row = |vip: &VipRates| {
        let bps = vip.pass.bps + vip.tx.bps + vip.redirect.bps;
        [
            vip.name.clone(),
            vip.tx.pps.to_string(),
            vip.redirect.pps.to_string(),
            vip.pass.pps.to_string(),
            bps.to_string(),
            vip.drop.pps.to_string(),
            vip.drop.bps.to_string(),
            vip.challenged_pps.to_string(),
            String::from(if vip.draining { "draining" } else { "" }),
        ]
    };
    let header = [
        "VIP",
        "TX PPS",
        "REDIRECT PPS",
        "PASS PPS",
        "BPS",
        "DROP PPS",
        "DROP BPS",
        "CHALLENGED PPS",
        "NOTE",
    ];
    table(ink, header, &vips.iter().map(row).collect::<Vec<_>>())
}

fn backends_table(ink: Ink, backends: &[BackendRates]) -> String {
    let row = |backend: &BackendRates| {
        [
            format!("{}/{}", backend.pool, backend.address),
            backend.state.word().to_owned(),
            backend.flows.to_string(),
            backend.rates.pps.to_string(),
            backend.rates.bps.to_string(),
        ]
    };
    let header = ["BACKEND", "STATE", "FLOWS", "PPS", "BPS"];
    table(ink, header, &backends.iter().map(row).collect::<Vec<_>>())
}

fn drops_table(ink: Ink, drops: &[DropRates]) -> String {
    let row = |drop: &DropRates| {
        [
            or_dash(drop.vip.as_ref()),
            drop.reason.clone(),
            drop.mode.clone(),
            drop.rates.pps.to_string(),
            drop.rates.bps.to_string(),
        ]
    };
    let header = ["VIP", "DROP REASON", "MODE", "PPS", "BPS"];
    table(ink, header, &drops.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_shared_by_what_has_rows() {
        assert_eq!(fitting([100, 100, 0, 0, 0], 24), [10, 10, 0, 0, 0]);
        assert_eq!(fitting([2, 100, 0, 1, 0], 24), [2, 15, 0, 1, 0]);
        assert_eq!(fitting([1, 2, 3, 0, 0], 24), [1, 2, 3, 0, 0]);
        assert_eq!(fitting([9; LISTS], 3), [0; LISTS]);
        assert_eq!(fitting([9; LISTS], 12), [1, 1, 0, 0, 0]);
    }

    #[test]
    fn rates_are_what_counters_grew_by_in_a_second() {
        let count = |packets| Counted {
            packets,
            bytes: packets * 100,
        };
        let grown = |before, now, ms| {
            let Rates { pps, bps } = rates(count(before), count(now), ms);
            (pps, bps)
        };
        assert_eq!(grown(10, 30, 1_000), (20, 16_000));
        assert_eq!(grown(10, 30, 500), (40, 32_000));
        assert_eq!(grown(30, 10, 1_000), (0, 0));
    }

    #[test]
    fn the_busiest_come_first_and_only_what_is_dropped_now_is_listed() {
        let drop = |reason: &str, packets| DropItem {
            vip: Some("web".into()),
            reason: reason.into(),
            mode: "enforce".into(),
            packets,
            bytes: packets * 64,
        };
        let before = [drop("deny", 100), drop("rule", 5)];
        let now = [drop("deny", 100), drop("rule", 8), drop("sanity", 50)];
        let drops = drop_rates(&before, &now, 1_000);
        let listed: Vec<_> = drops
            .iter()
            .map(|drop| (drop.reason.as_str(), drop.rates.pps))
            .collect();
        assert_eq!(listed, [("sanity", 50), ("rule", 3)]);
    }
}
