//! The table for people and the JSON for machines.

use std::{collections::BTreeMap, fs};

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::{
    cases::{Case, Limit},
    live::Live,
    measure::Samples,
};

/// What is written to `target/bench.json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rows: Vec<Row>,
    pub(crate) live: Vec<Live>,
}

/// One path through the program.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Median.
    pub(crate) ns: f64,
    pub(crate) above_floor_ns: f64,
    /// Name of the row with the floor; none for a floor.
    pub(crate) floor: Option<String>,
    pub(crate) min_ns: f64,
    /// Least of this row, less the least of the floor.
    pub(crate) min_above_floor_ns: f64,
    pub(crate) runs: usize,
    /// What `above_floor_ns` may be.
    pub(crate) limit: Option<f64>,
    pub(crate) note: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    pub(crate) virtual_machine: bool,
}

impl Report {
    pub(crate) fn new(cases: &[Case], samples: &[Samples]) -> Self {
        let mut rows: Vec<Row> = samples.iter().map(|row| self::row(row, samples)).collect();
        let above: BTreeMap<String, f64> = rows
            .iter()
            .map(|row| (row.name.clone(), row.above_floor_ns))
            .collect();
        for case in cases {
            if let Some(row) = rows.iter_mut().find(|row| row.name == case.name) {
                row.note = case.note.trim_end_matches("; ").to_owned();
                row.limit = match case.limit {
                    Some(Limit::Ns(ns)) => Some(ns),
                    Some(Limit::Above(name, ns)) => above.get(name).map(|other| round(other + ns)),
                    None => None,
                };
            }
        }
        Self {
            machine: Machine::here(),
            rows,
            live: Vec::new(),
        }
    }

    pub(crate) fn print(&self) {
        let Machine {
            cpu,
            cpus,
            kernel,
            virtual_machine,
        } = &self.machine;
        let kind = if *virtual_machine {
            "virtual machine"
        } else {
            "bare metal"
        };
        println!("{cpu}, {cpus} CPUs, {kind}, Linux {kernel}\n");
        println!(
            "{:<44} {:>8} {:>8} {:>12} {:>12} {:>8}",
            "ns per packet", "median", "least", "above floor", "least above", "limit"
        );
        for row in &self.rows {
            let limit = row
                .limit
                .map_or_else(String::new, |limit| format!("{limit:.0}"));
            let verdict = match row.limit {
                Some(limit) if row.above_floor_ns > limit => "  over",
                Some(_) => "  ok",
                None => "",
            };
            let [above, least_above] = if row.floor.is_some() {
                [row.above_floor_ns, row.min_above_floor_ns].map(|ns| format!("{ns:.1}"))
            } else {
                [String::new(), String::new()]
            };
            println!(
                "{:<44} {:>8.1} {:>8.1} {above:>12} {least_above:>12} {limit:>8}{verdict}",
                row.name, row.ns, row.min_ns
            );
        }
        if !self.live.is_empty() {
            println!(
                "\n{:<44} {:>8} {:>12} {:>12} {:>8}",
                "live over veth, one CPU", "Mpps", "best", "of bare TX", "limit"
            );
        }
        for row in &self.live {
            let limit = row
                .limit
                .map_or_else(String::new, |limit| format!("{limit:.2}"));
            let verdict = match row.limit {
                Some(limit) if row.ratio < limit => "  under",
                Some(_) => "  ok",
                None => "",
            };
            println!(
                "{:<44} {:>8.2} {:>12.2} {:>12.2} {limit:>8}{verdict}",
                row.name, row.mpps, row.best_mpps, row.ratio
            );
        }
    }
}

impl Machine {
    fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = |key: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(key)?.split_once(": "))
                .map(|(_, value)| value.to_owned())
        };
        let kernel = uname().map(|uname| uname.release().to_string_lossy().into_owned());
        Self {
            cpu: line("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: info
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: kernel.unwrap_or_default(),
            virtual_machine: line("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
        }
    }
}

fn row(row: &Samples, all: &[Samples]) -> Row {
    let floor = row.floor.map(|index| &all[index]);
    let above = |of: fn(&[f64]) -> f64| floor.map_or(0.0, |floor| of(&row.ns) - of(&floor.ns));
    Row {
        name: row.name.clone(),
        ns: round(median(&row.ns)),
        above_floor_ns: round(above(median)),
        floor: floor.map(|floor| floor.name.clone()),
        min_ns: round(least(&row.ns)),
        min_above_floor_ns: round(above(least)),
        runs: row.ns.len(),
        limit: None,
        note: String::new(),
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// To hundredths: more is noise.
pub(crate) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
