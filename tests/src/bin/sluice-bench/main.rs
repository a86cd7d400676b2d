//! `cargo xtask bench`: what each path through the program costs, and how many packets a second it takes live.

mod balancer;
mod cases;
mod live;
mod measure;
mod report;
mod wrapper;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use measure::{Balancers, Effort};
use report::Report;

/// Measures the packet path: ns per packet of each path beside floors, and live packets a second.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench")]
struct Arguments {
    /// Fewer rounds and packets: to see that all paths work
    #[arg(long)]
    quick: bool,
    /// Only these rows, and their floors; separated by commas
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Only rows whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Not the live run
    #[arg(long)]
    no_live: bool,
    /// Rounds that count
    #[arg(long)]
    rounds: Option<u32>,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

/// Where frames are made.
const MAKER_CPU: usize = 0;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut effort = if arguments.quick {
        Effort {
            rounds: 3,
            repeats: 100_000,
        }
    } else {
        Effort {
            rounds: 9,
            repeats: 500_000,
        }
    };
    effort.rounds = arguments.rounds.unwrap_or(effort.rounds).max(1);
    pin(Pid::from_raw(0), MAKER_CPU)?;

    let wanted = |name: &str| {
        let (rows, filter) = (&arguments.rows, arguments.filter.as_deref());
        (rows.is_empty() || rows.iter().any(|row| row == name))
            && filter.is_none_or(|filter| name.contains(filter))
    };
    let mut cases = cases::all()?;
    cases.retain(|case| wanted(case.name));
    let mut balancers = Balancers::load()?;
    let samples = measure::run(&cases, &mut balancers, effort)?;
    let mut report = Report::new(&cases, &samples);
    if !arguments.no_live {
        report.live = live::run(balancers, effort, wanted)?;
    }
    report.print();

    let json = serde_json::to_string_pretty(&report)?;
    if let Some(dir) = arguments.output.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&arguments.output, json + "\n")
        .with_context(|| format!("cannot write {}", arguments.output.display()))
}

fn pin(process: Pid, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(process, &cpus).with_context(|| format!("cannot stay on CPU {cpu}"))
}
