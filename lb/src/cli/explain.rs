//! `sluice explain`: captured frames through the loaded program's explaining twin.

use std::{
    fs::{self, File},
    io::BufWriter,
    path::Path,
    time::Duration,
};

use pcap_file::{
    DataLink,
    pcap::{PcapPacket, PcapReader, PcapWriter},
    pcapng::{Block, PcapNgReader},
};
use serde::Serialize;
use sluice_ebpf::abi::{DropReason, NO_BACKEND, Step, Trace};

use super::{ExplainArgs, Failed, numbers::Names, output::Output};
use crate::{
    config::{self, Config, Forward},
    dataplane::{Action, Explainer, SetNames},
    net,
};

/// What would become of one frame.
#[derive(Debug, Serialize)]
struct Explanation {
    /// `pass`, `drop`, `tx` or `redirect`; `aborted` would be an error of the program.
    verdict: &'static str,
    reason: Option<&'static str>,
    vip: Option<String>,
    backend: Option<String>,
    forward: Option<Forward>,
    /// The last rule that means it.
    rule: Option<u64>,
    /// The sets that its source is in, of those that decided.
    sets: Vec<String>,
    steps: Vec<&'static str>,
    /// Hexadecimal, of the frame that would leave.
    out: Option<String>,
}

/// Prints an explanation for each frame. The daemon need not run.
pub(super) fn explain(
    config_file: &Path,
    args: &ExplainArgs,
    output: Output,
) -> Result<(), Failed> {
    let config = config::load(config_file)?;
    let names = Names::read(&config);
    let packets = match (args.flow.frame()?, &args.pcap) {
        (Some(frame), _) => vec![(Duration::ZERO, frame)],
        (None, Some(pcap)) => read(pcap)?,
        (None, None) => {
            return Err("name a file with --pcap, or a packet with --from and --to".into());
        }
    };
    let mut explainer = Explainer::open(&config.dataplane.pin_dir, &config.dataplane)?;
    let sets = SetNames::read(&config.dataplane.state_dir);
    let ifindex = ingress(&config);
    let mut writer = match &args.out {
        Some(path) => {
            let file = File::create(path).map_err(|error| at(path, error))?;
            Some(PcapWriter::new(BufWriter::new(file))?)
        }
        None => None,
    };
    for (n, (time, frame)) in packets.iter().enumerate() {
        let explained = explainer.explain(frame, ifindex)?;
        let leaves = matches!(explained.action, Action::Tx | Action::Redirect);
        if leaves && let Some(writer) = &mut writer {
            let length = u32::try_from(explained.frame.len())?;
            writer.write_packet(&PcapPacket::new(*time, length, &explained.frame))?;
        }
        let backend = if explained.steps().any(names_backend) {
            explained.trace.backend
        } else {
            NO_BACKEND
        };
        let explanation = Explanation {
            verdict: explained.action.word(),
            reason: reason(&explained.trace),
            vip: names.vip(explained.trace.vip),
            backend: names.backend(backend),
            forward: names.forward(backend),
            rule: explained.rule,
            sets: sets.within(explained.trace.sets),
            steps: explained.steps().map(|step| step.word()).collect(),
            out: leaves.then(|| hex(&explained.frame)),
        };
        output.show(&explanation, |explanation| text(n + 1, explanation))?;
    }
    Ok(())
}

/// Whether the trace's backend means one from this step on; before, it is zero, which is a backend too.
fn names_backend(step: Step) -> bool {
    matches!(
        step,
        Step::FragmentKnown
            | Step::FlowProven
            | Step::FlowUnproven
            | Step::Chosen
            | Step::ChosenPrevious
    )
}

fn reason(trace: &Trace) -> Option<&'static str> {
    let number = usize::try_from(trace.reason).ok()?.checked_sub(1)?;
    DropReason::ALL.get(number).map(|reason| reason.word())
}

fn text(number: usize, explanation: &Explanation) -> String {
    let rule = explanation.rule.map(|id| id.to_string());
    let sets = Some(explanation.sets.join(", ")).filter(|sets| !sets.is_empty());
    let mut head = format!("{number}: {}", explanation.verdict);
    for (what, value) in [
        ("reason", explanation.reason),
        ("VIP", explanation.vip.as_deref()),
        ("backend", explanation.backend.as_deref()),
        ("rule", rule.as_deref()),
        ("source in", sets.as_deref()),
    ] {
        if let Some(value) = value {
            head.push_str(&format!(", {what} {value}"));
        }
    }
    let steps = explanation.steps.iter().map(|step| format!("    {step}"));
    std::iter::once(head)
        .chain(steps)
        .collect::<Vec<_>>()
        .join("\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first of the config's interfaces that is there; else the loopback, which is always.
fn ingress(config: &Config) -> u32 {
    const LOOPBACK: u32 = 1;
    let mut interfaces = config.dataplane.interfaces.iter();
    interfaces
        .find_map(|name| net::if_index(name).ok())
        .unwrap_or(LOOPBACK)
}

/// The Ethernet frames of a capture, with their times.
fn read(path: &Path) -> Result<Vec<(Duration, Vec<u8>)>, Failed> {
    const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
    let bytes = fs::read(path).map_err(|error| at(path, error))?;
    let frames = if bytes.starts_with(&PCAPNG) {
        read_pcapng(&bytes)
    } else {
        read_pcap(&bytes)
    };
    frames.map_err(|error| format!("{}: {error}", path.display()).into())
}

fn read_pcap(bytes: &[u8]) -> Result<Vec<(Duration, Vec<u8>)>, Failed> {
    let mut reader = PcapReader::new(bytes)?;
    check_link(reader.header().datalink)?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        frames.push((packet.timestamp, packet.data.into_owned()));
    }
    Ok(frames)
}

fn read_pcapng(bytes: &[u8]) -> Result<Vec<(Duration, Vec<u8>)>, Failed> {
    let mut reader = PcapNgReader::new(bytes)?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        match block? {
            Block::InterfaceDescription(interface) => check_link(interface.linktype)?,
            Block::EnhancedPacket(packet) => {
                frames.push((packet.timestamp, packet.data.into_owned()));
            }
            Block::SimplePacket(packet) => {
                frames.push((Duration::ZERO, packet.data.into_owned()));
            }
            _ => {}
        }
    }
    Ok(frames)
}

fn check_link(link: DataLink) -> Result<(), Failed> {
    match link {
        DataLink::ETHERNET => Ok(()),
        other => {
            Err(format!("it holds {other:?} packets; capture on an Ethernet interface").into())
        }
    }
}

fn at(path: &Path, error: std::io::Error) -> Failed {
    format!("{}: {error}", path.display()).into()
}
