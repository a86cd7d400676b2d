//! What the load balancer says of itself, read by its command line, and what the kernel says of its program.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde_json::Value;
use sluice_tests::Lab;

/// Reads the figures now and then.
pub(crate) struct Meter<'a> {
    lab: &'a Lab,
    /// The kernel measures while this is open. Not every kernel can.
    _stats: Option<OwnedFd>,
    program: Option<Program>,
    last: Figures,
    since: Instant,
}

/// What was read last. While no daemon answers, it stays as it was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) backends: BTreeMap<String, Backend>,
    pub(crate) pid: Option<u64>,
    pub(crate) adopted: bool,
    pub(crate) packets: Packets,
    /// Packets dropped, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
    pub(crate) dropped_pps: f64,
    pub(crate) ns_per_packet: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Backend {
    pub(crate) state: String,
    pub(crate) flows: u64,
}

/// What became of the packets to all VIPs, since the data plane was first loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Packets {
    pub(crate) dropped: u64,
    /// Good ones among them, and what a limit allows.
    pub(crate) passed: u64,
}

/// What the kernel counted of a program.
#[derive(Clone, Copy, Debug)]
struct Program {
    id: u32,
    runs: u64,
    run_time: Duration,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let mut meter = Self {
            lab,
            _stats: enable_stats(Stats::RunTime).ok(),
            program: None,
            last: Figures::default(),
            since: Instant::now(),
        };
        meter.read();
        meter
    }

    pub(crate) fn last(&self) -> &Figures {
        &self.last
    }

    pub(crate) fn read(&mut self) -> &Figures {
        let elapsed = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        if let Some(figures) = self.ask_daemon() {
            let before = std::mem::replace(&mut self.last, figures);
            let dropped = self
                .last
                .packets
                .dropped
                .saturating_sub(before.packets.dropped);
            self.last.dropped_pps = dropped as f64 / elapsed;
            self.last.ns_per_packet = before.ns_per_packet;
        } else {
            self.last.pid = None;
        }
        self.measure_program();
        &self.last
    }

    /// Nothing if it does not answer everything.
    fn ask_daemon(&self) -> Option<Figures> {
        let status = self.json("status")?;
        let mut figures = Figures {
            pid: status["pid"].as_u64(),
            adopted: status["adopted"] == true,
            ..Figures::default()
        };
        for row in self.items("backends")? {
            let address = row["address"].as_str()?.parse().ok()?;
            let name = self.lab.backend_at(address).to_owned();
            let backend = figures.backends.entry(name).or_default();
            backend.state = row["state"].as_str()?.to_owned();
            backend.flows += row["flows"].as_u64()?;
        }
        for row in self.items("drops")? {
            if row["mode"] == "enforce" {
                let packets = row["packets"].as_u64()?;
                figures.packets.dropped += packets;
                *figures
                    .drops
                    .entry(row["reason"].as_str()?.to_owned())
                    .or_default() += packets;
            }
        }
        for row in self.items("vips")? {
            figures.packets.passed += row["packets"].as_u64()?;
        }
        Some(figures)
    }

    /// The mean since the last time, as long as packets came and it is the same program.
    fn measure_program(&mut self) {
        let Some(now) = self.program_now() else {
            return;
        };
        if let Some(before) = self.program.replace(now)
            && before.id == now.id
            && now.runs > before.runs
        {
            let run_time = now.run_time.saturating_sub(before.run_time);
            self.last.ns_per_packet =
                Some(run_time.as_nanos() as f64 / (now.runs - before.runs) as f64);
        }
    }

    fn program_now(&self) -> Option<Program> {
        self._stats.as_ref()?;
        let link = self
            .lab
            .node()
            .netns()
            .command("ip", &["link", "show", "dev", "eth0"]);
        let (_, rest) = link.split_once("prog/xdp id ")?;
        let id = rest.split_whitespace().next()?.parse().ok()?;
        let info = loaded_programs().flatten().find(|info| info.id() == id)?;
        Some(Program {
            id,
            runs: info.run_count(),
            run_time: info.run_time(),
        })
    }

    fn items(&self, noun: &str) -> Option<Vec<Value>> {
        self.json(noun)?["items"].as_array().cloned()
    }

    fn json(&self, noun: &str) -> Option<Value> {
        let output = self.lab.sluice(&format!("{noun} --json"));
        (output.status == 0)
            .then(|| serde_json::from_str(&output.stdout).ok())
            .flatten()
    }
}

impl Packets {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            dropped: self.dropped.saturating_sub(before.dropped),
            passed: self.passed.saturating_sub(before.passed),
        }
    }

    /// At least this much of an attack was dropped: good packets count as if they were the attacker's.
    pub(crate) fn dropped_share(self) -> f64 {
        self.dropped as f64 / ((self.dropped + self.passed) as f64).max(1.0)
    }
}
