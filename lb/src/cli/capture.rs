//! `sluice capture`: samples of packets with what became of them, in a pcapng file.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum, builder::PossibleValuesParser};
use ipnet::IpNet;
use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};
use serde::Serialize;
use sluice_ebpf::abi::{DropReason, SAMPLE_BYTES};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{Failed, numbers::Names, output::Output};
use crate::{
    config,
    dataplane::{Action, Sampled, Sampler, Wanted},
};

#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// Where to write, as pcapng; `-` for standard output
    file: PathBuf,
    /// Take one packet of so many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    every: u32,
    /// Take no more than so many a second, whatever comes
    #[arg(long, value_name = "PACKETS", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Only of this VIP
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// Only what was dropped for this reason; may be given several times
    #[arg(long, value_parser = PossibleValuesParser::new(DropReason::ALL.iter().map(|reason| reason.word())))]
    reason: Vec<String>,
    /// Only what ended like this; may be given several times
    #[arg(long, value_enum, conflicts_with = "reason")]
    verdict: Vec<VerdictArg>,
    /// Only with a source or destination in this prefix
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<IpNet>,
    /// End after so many packets [default: when interrupted]
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, like 30s [default: when interrupted]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VerdictArg {
    Pass,
    Drop,
    Tx,
    Redirect,
}

/// What was done.
#[derive(Serialize)]
struct Summary {
    captured: u64,
    matched: u64,
    /// Not taken because of `--rate`.
    over_rate: u64,
    /// Not taken because the file could not be written as fast.
    lost: u64,
}

/// How often it is looked for samples, and how often more are asked for.
const LOOK: Duration = Duration::from_millis(10);
const RENEW: Duration = Duration::from_secs(1);

/// Captures until told otherwise. The daemon need not run.
pub(super) async fn capture(
    config_file: &Path,
    args: &CaptureArgs,
    output: Output,
) -> Result<(), Failed> {
    let config = config::load(config_file)?;
    let names = Names::read(&config);
    // First, so that a file is made only if there is something to capture.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let wanted = args.wanted(&names)?;
    let mut sampler = Sampler::open(&config.dataplane.pin_dir, &wanted)?;
    let mut file = Pcapng::create(&args.file)?;

    let end = args.duration.map(|duration| Instant::now() + duration);
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut renewed = Instant::now();
    let most = args.count.unwrap_or(u64::MAX);
    while file.packets < most {
        tokio::select! {
            _ = look.tick() => {}
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = sleep_until(end.unwrap_or_else(Instant::now)), if end.is_some() => break,
        }
        if renewed.elapsed() > RENEW {
            sampler.renew();
            renewed = Instant::now();
        }
        if !file.take(&mut sampler, most, &names)? {
            break;
        }
    }
    sampler.stop();
    file.take(&mut sampler, most, &names)?;
    let stats = sampler.stats()?;
    let summary = Summary {
        captured: file.packets,
        matched: stats.matched,
        over_rate: stats.capped,
        lost: stats.lost,
    };
    let text = format!(
        "{} packets of {} captured; {} left out by --rate, {} lost",
        summary.captured, summary.matched, summary.over_rate, summary.lost
    );
    if args.file == Path::new("-") {
        // Standard output is the file.
        eprintln!("{text}");
        return Ok(());
    }
    output.show(&summary, |_| text)
}

impl CaptureArgs {
    fn wanted(&self, names: &Names) -> Result<Wanted, Failed> {
        let vip = self.vip.as_deref().map(|vip| names.vip_number(vip));
        let reasons = DropReason::ALL.iter().copied();
        Ok(Wanted {
            every: self.every,
            rate: self.rate,
            vip: vip.transpose()?,
            actions: self
                .verdict
                .iter()
                .map(|verdict| verdict.action())
                .collect(),
            reasons: reasons
                .filter(|reason| self.reason.iter().any(|word| word == reason.word()))
                .collect(),
            prefix: self.prefix,
        })
    }
}

impl VerdictArg {
    fn action(self) -> Action {
        match self {
            Self::Pass => Action::Pass,
            Self::Drop => Action::Drop,
            Self::Tx => Action::Tx,
            Self::Redirect => Action::Redirect,
        }
    }
}

/// The file as far as it is written.
struct Pcapng {
    writer: PcapNgWriter<BufWriter<Box<dyn Write>>>,
    /// By the kernel's index, in the order of their blocks.
    interfaces: HashMap<u32, u32>,
    packets: u64,
}

impl Pcapng {
    fn create(path: &Path) -> Result<Self, Failed> {
        let sink: Box<dyn Write> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = File::create(path);
            Box::new(file.map_err(|error| format!("cannot write {}: {error}", path.display()))?)
        };
        Ok(Self {
            writer: PcapNgWriter::new(BufWriter::new(sink))?,
            interfaces: HashMap::new(),
            packets: 0,
        })
    }

    /// Writes the samples that are there. False if nobody reads them any more.
    fn take(&mut self, sampler: &mut Sampler, most: u64, names: &Names) -> Result<bool, Failed> {
        let mut written = Ok(());
        while self.packets < most
            && written.is_ok()
            && let Some(sampled) = sampler.take()
        {
            written = self.write(&sampled, names);
        }
        // What was taken so far can be read, whenever this ends.
        let flush = |()| self.writer.get_mut().flush().map_err(PcapError::IoError);
        let flushed = written.and_then(flush);
        match flushed {
            Err(PcapError::IoError(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(false)
            }
            flushed => Ok(flushed.map(|()| true)?),
        }
    }

    fn write(&mut self, sampled: &Sampled, names: &Names) -> Result<(), PcapError> {
        let interface_id = self.interface(sampled.ifindex)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp: sampled.time,
            original_len: sampled.frame_bytes,
            data: Cow::Borrowed(&sampled.frame),
            options: vec![EnhancedPacketOption::Comment(
                comment(sampled, names).into(),
            )],
        };
        self.writer.write_pcapng_block(block)?;
        self.packets += 1;
        Ok(())
    }

    /// The number of the interface's block, which is written before its first packet.
    fn interface(&mut self, ifindex: u32) -> Result<u32, PcapError> {
        /// Times are in units of 10^-9 seconds.
        const NANOSECONDS: u8 = 9;
        if let Some(&id) = self.interfaces.get(&ifindex) {
            return Ok(id);
        }
        let name = nix::net::if_::if_indextoname(ifindex).ok();
        let name = name.and_then(|name| name.into_string().ok());
        let name = name.unwrap_or_else(|| format!("number {ifindex}"));
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: u32::try_from(SAMPLE_BYTES).unwrap_or(0),
            options: vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        let id = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.interfaces.insert(ifindex, id);
        Ok(id)
    }
}

/// "drop, reason limit_host, VIP web", as `sluice explain` says it.
fn comment(sampled: &Sampled, names: &Names) -> String {
    let mut text = sampled.action.word().to_owned();
    for (what, value) in [
        (
            "reason",
            sampled.reason.map(|reason| reason.word().to_owned()),
        ),
        ("VIP", names.vip(sampled.vip)),
        ("backend", names.backend(sampled.backend)),
    ] {
        if let Some(value) = value {
            text.push_str(&format!(", {what} {value}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_tells_verdict_reason_and_names() {
        use sluice_ebpf::abi::NO_BACKEND;
        let sampled = Sampled {
            time: Duration::from_secs(1),
            ifindex: 1,
            frame_bytes: 60,
            vip: 3,
            backend: NO_BACKEND,
            action: Action::Drop,
            reason: Some(DropReason::LimitHost),
            frame: vec![0; 60],
        };
        let names = Names::default();
        assert_eq!(
            comment(&sampled, &names),
            "drop, reason limit_host, VIP number 3"
        );
    }
}
