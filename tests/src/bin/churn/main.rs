//! Endurance: everything that may change is changed, over and over, under traffic. No flow breaks, and the daemon does not
//! grow.

mod changes;
mod footprint;
mod traffic;

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use clap::{Parser, value_parser};
use nix::unistd::Uid;
use sluice_tests::Lab;

use crate::{
    changes::Changes,
    footprint::{Footprint, Growth},
    traffic::Traffic,
};

/// Reloads, drains, limits, backends that fail, scrapes and restarts of the daemon, under traffic, in a lab
#[derive(Debug, Parser)]
#[command(name = "churn")]
struct Arguments {
    /// How many minutes it lasts
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// The same in seconds
    #[arg(long, conflicts_with = "minutes", value_parser = value_parser!(u64).range(30..=600_000))]
    seconds: Option<u64>,
}

/// The part of the time in which the daemon is killed and started; later it is watched growing.
const RESTARTS: f64 = 0.35;
/// What the daemon needs at first is not counted as growth.
const WARM_UP: f64 = 0.5;
/// Samples and talkers of the last minute fill their room first.
const UNTIL_SETTLED: Duration = Duration::from_secs(80);
/// For a first and a last third that say something of memory.
const ENOUGH_LOOKS: usize = 30;
const BETWEEN_RESTARTS: Duration = Duration::from_secs(6);
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
const BETWEEN_LINES: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "churn builds network namespaces: run it as root"
    );
    let lasting = Duration::from_secs(arguments.seconds.unwrap_or(arguments.minutes * 60));
    // The lasting flows are at backends that are drained, but never fail.
    let lab = Lab::new()
        .backends(["b1", "b2", "b3", changes::FAILING])
        .clients(1)
        .config(|config| changes::quick_checks(config).without(changes::FAILING))
        .start();
    let traffic = Traffic::start(&lab)?;
    lab.reload(&changes::quick_checks(changes::all_backends(&lab)))
        .succeeds();
    let mut changes = Changes::new(&lab, &traffic);
    let start = Instant::now();
    let (mut looks, mut settled) = (Vec::new(), Vec::new());
    let (mut looked, mut said, mut restarted) = (start, start, start);
    while start.elapsed() < lasting {
        changes.make_one()?;
        let part = start.elapsed().as_secs_f64() / lasting.as_secs_f64();
        if part < RESTARTS && restarted.elapsed() >= BETWEEN_RESTARTS {
            changes.restart_daemon();
            restarted = Instant::now();
        }
        if part >= WARM_UP && looked.elapsed() >= BETWEEN_LOOKS {
            let look = Footprint::of(lab.daemon().pid())?;
            if restarted.elapsed() >= UNTIL_SETTLED {
                settled.push(look);
            }
            looks.push(look);
            looked = Instant::now();
        }
        if said.elapsed() >= BETWEEN_LINES {
            let now = Footprint::of(lab.daemon().pid())?;
            println!(
                "{:>4} s: {changes}; {traffic}; {now}",
                start.elapsed().as_secs()
            );
            said = Instant::now();
        }
        thread::sleep(Duration::from_millis(20));
    }
    println!("{:>4} s: {changes}; {traffic}", start.elapsed().as_secs());
    let growth = Growth::of(&looks)?;
    println!("without restarts: {growth}");
    let told = lab.sluice("status --json").succeeds().json();
    let warnings = told["warnings"].as_array().map_or(0, Vec::len);
    let failures = traffic.stop();
    ensure!(
        failures.is_empty(),
        "{} failures, the first: {}",
        failures.len(),
        failures[0]
    );
    ensure!(warnings == 0, "the daemon warns: {}", told["warnings"]);
    growth.files_and_threads_are_flat()?;
    println!("No flow broke, no request failed, and no file stayed open.");
    if settled.len() < ENOUGH_LOOKS {
        println!(
            "It was too short to say whether the daemon's memory grows: that takes four minutes."
        );
        return Ok(());
    }
    Growth::of(&settled)?.memory_is_flat()?;
    println!("The daemon's memory did not grow.");
    Ok(())
}
