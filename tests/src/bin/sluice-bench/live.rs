//! Live frames over a veth pair: made on one CPU, balanced on the other, counted where they come back.

use std::{fs, process::Command, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, XdpMode, xdp::XdpLinkId};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    unistd::Pid,
};
use serde::Serialize;

use crate::{
    balancer::Target,
    cases::{Path, State, frame},
    measure::{Balancers, Effort},
    pin,
    report::{median, round},
    wrapper::{Answered, Frames, Wrapper},
};

/// A live row.
#[derive(Debug, Serialize)]
pub(crate) struct Live {
    pub(crate) name: &'static str,
    /// Median of millions of packets a second that came back.
    pub(crate) mpps: f64,
    pub(crate) best_mpps: f64,
    /// Of bare TX in the same run, median to median.
    pub(crate) ratio: f64,
    pub(crate) limit: Option<f64>,
}

const BARE: &str = "live_bare_tx";

struct Row {
    name: &'static str,
    state: State,
    target: Target,
    path: Path,
    flow_mask: u32,
    limit: Option<f64>,
}

const fn row(name: &'static str, target: Target, path: Path, flow_mask: u32) -> Row {
    // A million flows are more than the table of the default config is for.
    let state = match path {
        Path::Known if flow_mask > 0x1_ffff => State::Full,
        _ => State::Ordinary,
    };
    Row {
        name,
        state,
        target,
        path,
        flow_mask,
        limit: None,
    }
}

impl Row {
    const fn at_least(self, ratio: f64) -> Self {
        Self {
            limit: Some(ratio),
            ..self
        }
    }
}

const ROWS: [Row; 7] = [
    row("live_1_flow", Target::Tcp, Path::Known, 0).at_least(0.85),
    row("live_1k_flows", Target::Tcp, Path::Known, 0x3ff),
    row("live_64k_flows", Target::Tcp, Path::Known, 0xffff),
    row("live_128k_flows", Target::Tcp, Path::Known, 0x1_ffff).at_least(0.55),
    row("live_1m_flows", Target::Tcp, Path::Known, 0xf_ffff),
    row("live_syn_flood", Target::Tcp, Path::Syn, u32::MAX),
    row(
        "live_syn_flood_no_limits",
        Target::NoLimits,
        Path::Syn,
        u32::MAX,
    ),
];

/// Measures the rows that `wanted` names, beside programs that do nothing or next to nothing.
pub(crate) fn run(
    balancers: Balancers,
    effort: Effort,
    wanted: impl Fn(&str) -> bool + Sync,
) -> Result<Vec<Live>> {
    if !ROWS.iter().any(|row| wanted(row.name)) {
        return Ok(Vec::new());
    }
    // A namespace of its own, which goes with the thread.
    thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            Bench::new(balancers)?.rows(effort, &wanted)
        };
        scope.spawn(run).join().expect("it does not panic")
    })
}

struct Bench {
    balancers: Balancers,
    /// Holds the programs for the ends of the cable.
    ends: Wrapper,
    sending_ifindex: u32,
}

/// Where frames enter the cable, and where the program under test stands.
const SENDER: &str = "sender";
const TESTED: &str = "tested";
/// The other one than frames are made on.
const TESTED_CPU: usize = 1;

impl Bench {
    fn new(mut balancers: Balancers) -> Result<Self> {
        command(
            "ip",
            &[
                "link", "add", SENDER, "type", "veth", "peer", "name", TESTED,
            ],
        )?;
        for interface in [SENDER, TESTED] {
            command("ip", &["link", "set", interface, "up"])?;
        }
        for state in [State::Ordinary, State::Full] {
            let balancer = balancers.of(state);
            // What rows of the test run left on.
            balancer.set_exact(false)?;
            balancer.set_interface(if_nametoindex(TESTED)?)?;
        }
        let small = Frames {
            bytes: 0,
            v6: false,
            answered: Answered::No,
            flow_mask: 0,
        };
        let mut ends = Wrapper::load(small, 0)?;
        ends.attach("sink", SENDER)?;
        Ok(Self {
            balancers,
            ends,
            sending_ifindex: if_nametoindex(SENDER)?,
        })
    }

    fn rows(mut self, effort: Effort, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Live>> {
        let rows: Vec<_> = ROWS.iter().filter(|row| wanted(row.name)).collect();
        let mut names = vec![BARE, "live_minimal_ipip"];
        names.extend(rows.iter().map(|row| row.name));
        let mut mpps: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        // The first round warms up.
        for round in 0..=effort.rounds {
            let mut sampled = vec![
                self.sample_own("tx", effort)?,
                self.sample_own("ipip", effort)?,
            ];
            for row in &rows {
                sampled.push(self.sample_balancer(row, effort).context(row.name)?);
            }
            if round > 0 {
                for (all, sample) in mpps.iter_mut().zip(sampled) {
                    all.push(sample);
                }
            }
        }
        let bare = median(&mpps[0]);
        let limits = [None, None]
            .into_iter()
            .chain(rows.iter().map(|row| row.limit));
        Ok(names
            .into_iter()
            .zip(&mpps)
            .zip(limits)
            .map(|((name, mpps), limit)| Live {
                name,
                mpps: round(median(mpps)),
                best_mpps: round(mpps.iter().copied().fold(0.0, f64::max)),
                ratio: round(median(mpps) / bare),
                limit,
            })
            .collect())
    }

    fn sample_own(&mut self, program: &str, effort: Effort) -> Result<f64> {
        let link = self.ends.attach(program, TESTED)?;
        let sampled = self.send(Target::Tcp, Path::Known, 0, effort);
        self.ends.program(program)?.detach(link)?;
        sampled
    }

    fn sample_balancer(&mut self, row: &Row, effort: Effort) -> Result<f64> {
        let Row { target, path, .. } = *row;
        let balancer = self.balancers.of(row.state);
        let link: XdpLinkId = balancer.program().attach(TESTED, XdpMode::Driver)?;
        let before = balancer.counters(target.number())?;
        let sampled = self.send(target, path, row.flow_mask, effort);
        let balancer = self.balancers.of(row.state);
        let counted = balancer.counters(target.number())?.since(&before);
        balancer.program().detach(link)?;
        let (taken, all) = (
            path.taken(&counted),
            counted.tx + counted.dropped + counted.pass,
        );
        ensure!(
            all > 0 && taken >= all - all / 500,
            "{taken} of {all} packets went the way that this row is about: {counted:?}"
        );
        sampled
    }

    /// Millions of packets a second that came back.
    fn send(&mut self, target: Target, path: Path, flow_mask: u32, effort: Effort) -> Result<f64> {
        poll_on(TESTED, TESTED_CPU)?;
        let frame = frame(target, path)?;
        let frames = Frames {
            bytes: u32::try_from(frame.len())?,
            v6: false,
            answered: Answered::No,
            flow_mask,
        };
        let mut maker = Wrapper::load(frames, self.sending_ifindex)?;
        let maker = maker.program("send")?;
        let before = self.ends.seen()?;
        let repeats = effort.repeats * 4;
        let result = maker.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: repeats,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..TestRunOptions::default()
        })?;
        // The call by itself waits for grace periods of RCU.
        let seconds = result.duration.as_secs_f64() * f64::from(repeats);
        let seen = self.ends.seen()? - before;
        // What is still on the way belongs to nobody.
        thread::sleep(Duration::from_millis(2));
        ensure!(seen > 0, "no frame came back");
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Ok(seen as f64 / seconds / 1e6)
    }
}

/// Gives an interface's NAPI a thread, and that a CPU. A program that is attached anew may have made a new thread.
fn poll_on(interface: &str, cpu: usize) -> Result<()> {
    // The namespace has no /sys of its own.
    let script =
        format!("mount -t sysfs sysfs /sys && echo 1 > /sys/class/net/{interface}/threaded");
    command("unshare", &["--mount", "sh", "-c", &script])?;
    let wanted = format!("napi/{interface}-");
    let mut found = false;
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.starts_with(&wanted) {
            pin(Pid::from_raw(process), cpu)?;
            found = true;
        }
    }
    ensure!(found, "{interface} has no NAPI thread");
    Ok(())
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
