//! Sets a machine up, and builds, tests, measures and shows Sluice on it: `cargo xtask --help`.

mod licences;
mod machine;
mod package;
mod reproducible;
mod setup;
mod stages;

#[path = "../../lb/build/objects.rs"]
mod objects;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::{Mode, Scope};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Sets a machine up, and builds, tests, measures and shows Sluice on it"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what building and testing need; every other task does this first
    Setup {
        /// Only say what is there and what is missing
        #[arg(long)]
        check: bool,
    },
    /// Build the daemon with the data plane in it: target/release/sluice
    Build,
    /// Build the daemon, and pack what is installed: a tarball, and a Debian package, in target/package/
    Package {
        /// Only pack what the lab runs, and look whether it is whole, and the same each time
        #[arg(long)]
        check: bool,
    },
    /// Run every check there is; needs root for the lab
    Test {
        /// Leave out the lab and the verdict table, and so the need for root
        #[arg(long, conflicts_with = "filter")]
        fast: bool,
        /// Run only the lab tests whose name contains this
        filter: Option<String>,
    },
    /// Measure the packet path; writes target/bench.json
    Bench {
        /// Handed to the bench
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Watch flows being balanced and a flood being dropped, in about a minute
    Demo {
        /// Handed to the demo
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure the daemon: reloads, requests, memory, checks, by tests on a release build
    Figures,
    /// Change everything that may change, for ten minutes under traffic, and watch for broken flows and growth
    Churn {
        /// Handed to it
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check that deny.toml allows the licence and the source of every dependency
    Licences,
    /// Check that the kernel objects are the same, byte for byte, from two folders
    Reproducible,
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup { check: true } => setup::setup(Scope::Lab, Mode::Check)?,
        Task::Setup { check: false } => setup::setup(Scope::Lab, Mode::Install)?,
        Task::Build => {
            setup::setup(Scope::Build, Mode::Install)?;
            stages::build()?;
        }
        Task::Package { check } => {
            setup::setup(Scope::Build, Mode::Install)?;
            if check {
                package::check()?;
            } else {
                package::package()?;
            }
        }
        Task::Test { fast: true, .. } => {
            setup::setup(Scope::Build, Mode::Install)?;
            return stages::test_without_lab();
        }
        Task::Test {
            fast: false,
            filter,
        } => {
            setup::setup(Scope::Lab, Mode::Install)?;
            return filter.map_or_else(stages::test, |filter| stages::test_in_lab(&filter));
        }
        Task::Bench { arguments } => {
            setup::setup(Scope::Lab, Mode::Install)?;
            return stages::run_lab_program("sluice-bench", &arguments);
        }
        Task::Demo { arguments } => {
            setup::setup(Scope::Lab, Mode::Install)?;
            return stages::run_lab_program("demo", &arguments);
        }
        Task::Figures => {
            setup::setup(Scope::Lab, Mode::Install)?;
            return stages::figures();
        }
        Task::Churn { arguments } => {
            setup::setup(Scope::Lab, Mode::Install)?;
            return stages::run_lab_program("churn", &arguments);
        }
        Task::Licences => licences::check()?,
        Task::Reproducible => {
            setup::setup(Scope::Build, Mode::Install)?;
            reproducible::check()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
