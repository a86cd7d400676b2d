//! What a daemon takes of the machine, and whether that grows.

use std::{fmt, fs};

use anyhow::{Context, Result, ensure};

/// At one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Footprint {
    /// Memory of its own, without maps that it shares with the kernel.
    kib: u64,
    files: u64,
    threads: u64,
}

/// The first third of the looks beside the last.
#[derive(Debug)]
pub(crate) struct Growth {
    early: Footprint,
    late: Footprint,
}

/// An allocator that settles is no leak: this much is what one look differs from another by.
const NOISE_KIB: u64 = 2048;
/// A connection or two may be open at one look and not at another.
const NOISE_FILES: u64 = 4;
/// The runtime starts threads for files, and ends them.
const NOISE_THREADS: u64 = 2;

impl Footprint {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .context("the daemon is not running")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| {
                    line.strip_prefix(name)?
                        .split_whitespace()
                        .next()?
                        .parse()
                        .ok()
                })
                .with_context(|| format!("no {name} in its status"))
        };
        Ok(Self {
            kib: field("RssAnon:")?,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            threads: field("Threads:")?,
        })
    }
}

impl Growth {
    pub(crate) fn of(looks: &[Footprint]) -> Result<Self> {
        let third = looks.len() / 3;
        ensure!(third > 0, "too few looks at the daemon");
        Ok(Self {
            early: median(&looks[..third]),
            late: median(&looks[looks.len() - third..]),
        })
    }

    pub(crate) fn memory_is_flat(&self) -> Result<()> {
        let (early, late) = (self.early, self.late);
        ensure!(late.kib <= early.kib + NOISE_KIB, "memory grew: {self}");
        Ok(())
    }

    pub(crate) fn files_and_threads_are_flat(&self) -> Result<()> {
        let (early, late) = (self.early, self.late);
        ensure!(
            late.files <= early.files + NOISE_FILES,
            "open files grew: {self}"
        );
        ensure!(
            late.threads <= early.threads + NOISE_THREADS,
            "threads grew: {self}"
        );
        Ok(())
    }
}

fn median(looks: &[Footprint]) -> Footprint {
    let middle = |figure: fn(&Footprint) -> u64| {
        let mut figures: Vec<u64> = looks.iter().map(figure).collect();
        figures.sort_unstable();
        figures[figures.len() / 2]
    };
    Footprint {
        kib: middle(|look| look.kib),
        files: middle(|look| look.files),
        threads: middle(|look| look.threads),
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "daemon {} KiB, {} files, {} threads",
            self.kib, self.files, self.threads
        )
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at first, {} at last", self.early, self.late)
    }
}
