//! `sluice explain`: captured frames through the loaded program's explaining twin.

use std::{
    collections::BTreeMap,
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
use serde::{Deserialize, Serialize};
use sluice_ebpf::abi::{DropReason, NO_BACKEND, NO_VIP, Step, Trace};

use super::{Failed, output::Output};
use crate::{
    config::{self, Config, Forward},
    dataplane::{Action, BackendKey, Explainer},
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
    steps: Vec<&'static str>,
    /// Hexadecimal, of the frame that would leave.
    out: Option<String>,
}

/// Prints an explanation for each frame of a capture. The daemon need not run.
pub(super) fn explain(
    config_file: &Path,
    pcap: &Path,
    out: Option<&Path>,
    output: Output,
) -> Result<(), Failed> {
    let config = config::load(config_file)?;
    let names = Names::read(&config);
    let packets = read(pcap)?;
    let mut explainer = Explainer::open(&config.dataplane.pin_dir, &config.dataplane)?;
    let ifindex = ingress(&config);
    let mut writer = match out {
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
            verdict: verdict(explained.action),
            reason: reason(&explained.trace),
            vip: names.vip(explained.trace.vip),
            backend: names.backend(backend),
            forward: names.backends.get(&backend).map(|key| key.forward),
            steps: explained.steps().map(|step| step.word()).collect(),
            out: leaves.then(|| hex(&explained.frame)),
        };
        output.show(&explanation, |explanation| text(n + 1, explanation))?;
    }
    Ok(())
}

fn verdict(action: Action) -> &'static str {
    match action {
        Action::Pass => "pass",
        Action::Drop => "drop",
        Action::Tx => "tx",
        Action::Redirect => "redirect",
        Action::Aborted | Action::Unknown(_) => "aborted",
    }
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
    let mut head = format!("{number}: {}", explanation.verdict);
    for (what, value) in [
        ("reason", explanation.reason),
        ("VIP", explanation.vip.as_deref()),
        ("backend", explanation.backend.as_deref()),
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

/// Names by the numbers that the data plane knows, as the daemon keeps them in its state directory.
#[derive(Default)]
struct Names {
    vips: BTreeMap<u16, String>,
    backends: BTreeMap<u16, BackendKey>,
}

#[derive(Deserialize)]
struct Numbers {
    vips: BTreeMap<String, u16>,
    backends: Vec<(BackendKey, u16)>,
}

impl Names {
    /// Without that file numbers are shown.
    fn read(config: &Config) -> Self {
        let file = config.dataplane.state_dir.join("numbers.json");
        let numbers: Option<Numbers> = fs::read(file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(Numbers { vips, backends }) = numbers else {
            return Self::default();
        };
        Self {
            vips: vips
                .into_iter()
                .map(|(name, number)| (number, name))
                .collect(),
            backends: backends
                .into_iter()
                .map(|(key, number)| (number, key))
                .collect(),
        }
    }

    fn vip(&self, number: u16) -> Option<String> {
        let name = || self.vips.get(&number).cloned();
        (number != NO_VIP).then(|| name().unwrap_or_else(|| format!("number {number}")))
    }

    fn backend(&self, number: u16) -> Option<String> {
        let name = || {
            let key = self.backends.get(&number)?;
            Some(format!("{}/{}", key.pool, key.address))
        };
        (number != NO_BACKEND).then(|| name().unwrap_or_else(|| format!("number {number}")))
    }
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
