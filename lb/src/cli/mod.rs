//! The command line: nouns show, verbs change.

mod ask;
mod check;
mod client;
mod explain;

mod limits;
mod output;
mod table;
mod unload;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    config, control, decap,
    log::{self, LogFormat},
};

use output::Output;

/// Anycast-aware L4 load balancer and DoS filter.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The config file
    #[arg(short, long, global = true, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// The daemon's socket [default: what the config file says]
    #[arg(long, global = true, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// What to log on stderr: error, warn, info, debug, trace, or a filter like `sluice::health=debug`
    #[arg(
        long,
        global = true,
        env = "SLUICE_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: String,
    /// How to log
    #[arg(
        long,
        global = true,
        env = "SLUICE_LOG_FORMAT",
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run,
    /// Check a config file, and that this machine has its interfaces
    Check,
    /// Show how the daemon and its data plane are
    Status,
    /// Show VIPs and what became of their packets
    Vips,
    /// Show backends, their health and their share
    Backends,
    /// Show live flows by backend
    Flows,
    /// Show dropped packets by VIP and reason
    Drops,
    /// Show limits set at run time
    Limits(LimitFilters),
    /// Set or remove a limit for a source prefix
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Give a backend no new flows; it keeps those that it has
    Drain(DrainArgs),
    /// End a drain
    Undrain(DrainArgs),
    /// Have the daemon read its config file again
    Reload,
    /// Show what the loaded program would do with captured packets, without counting them
    Explain {
        /// Frames to explain: pcap or pcapng, Ethernet
        #[arg(long, value_name = "FILE")]
        pcap: PathBuf,
        /// Where to write the frames that would leave
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Take tunnel headers off on a backend, until interrupted
    Decap {
        /// Where tunnelled packets come in
        #[arg(long)]
        interface: String,
        /// Accept tunnels from this prefix only; may be given several times
        #[arg(long, value_name = "PREFIX")]
        from: Vec<IpNet>,
        /// Accept tunnels to this address only; may be given several times
        #[arg(long)]
        address: Vec<IpAddr>,
    },
    /// Detach the program and remove what the kernel holds: nothing is balanced any more
    Unload {
        /// Even while a daemon is running
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum LimitCommand {
    /// Limit what a source prefix may send; replaces the limit of the same prefix, VIP and class
    Set(LimitArgs),
    /// Set many limits from a file, all or none
    Import {
        /// JSON: an array of limits, or one after the other; `-` for standard input
        file: PathBuf,
    },
    /// Remove a limit
    Remove { id: u64 },
}

/// Which limits to show: those that match all of these.
#[derive(Debug, Args)]
struct LimitFilters {
    /// For this VIP
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// Of this class
    #[arg(long, value_enum)]
    class: Option<ClassArg>,
    /// Of this mode
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Whose prefix lies in this one
    #[arg(long, value_name = "PREFIX")]
    within: Option<IpNet>,
    /// Whose prefix covers this address or prefix
    #[arg(long, value_name = "ADDRESS")]
    covers: Option<String>,
    /// With this in its comment
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

#[derive(Debug, Args)]
struct LimitArgs {
    /// Source addresses
    #[arg(long)]
    prefix: IpNet,
    /// Only packets to this VIP [default: to any]
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// Which packets
    #[arg(long, value_enum, default_value_t = ClassArg::All)]
    class: ClassArg,
    /// Packets a second; this or --bps
    #[arg(long, required_unless_present = "bps")]
    pps: Option<u64>,
    /// Bits a second
    #[arg(long)]
    bps: Option<u64>,
    /// Packets that may come at once [default: a tenth of a second's worth]
    #[arg(long, value_name = "PACKETS")]
    burst: Option<u32>,
    /// Drop what is over the limit, or only count it
    #[arg(long, value_enum, default_value_t = ModeArg::Enforce)]
    mode: ModeArg,
    /// Remove it after this time, like 60s or 1h [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Why it is there
    #[arg(long, default_value = "")]
    comment: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClassArg {
    All,
    Syn,
    Udp,
    Icmp,
    Other,
    Established,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ModeArg {
    Enforce,
    Monitor,
}

#[derive(Debug, Args)]
struct DrainArgs {
    /// What kind of thing
    #[arg(value_enum)]
    kind: DrainKind,
    /// Its name; of a backend POOL/ADDRESS
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DrainKind {
    Backend,
    Vip,
    Pop,
}

/// Why a command failed, in words for its user. Exit code 1.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.log_format;
    if let Err(error) = log::init(&cli.global.log, format) {
        eprintln!("sluice: --log: {error}");
        return ExitCode::from(2);
    }
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            let error = control::chain(&*error);
            match format {
                LogFormat::Human => eprintln!("sluice: {error}"),
                LogFormat::Json => tracing::error!("{error}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode, Failed> {
    let Cli { global, command } = cli;
    let output = Output::new(global.json);
    // One thread: sockets belong to the network namespace of the thread that opens them, and the work is small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match command {
        Command::Run => runtime.block_on(control::run(&global.config, global.socket))?,
        Command::Decap {
            interface,
            from,
            address,
        } => runtime.block_on(decap::run(decap::Options {
            interface,
            addresses: address,
            from,
            mode: config::XdpMode::Auto,
        }))?,
        Command::Unload { force } => {
            let daemon = if force {
                unload::Daemon::Ignore
            } else {
                unload::Daemon::Respect
            };
            unload::unload(&global, daemon, output)?;
        }
        Command::Explain { pcap, out } => {
            explain::explain(&global.config, &pcap, out.as_deref(), output)?;
        }
        Command::Check => return check::check(&global.config, output),
        command => {
            let socket = client::socket(global.socket, &global.config);
            runtime.block_on(ask::ask(command, client::Client::new(socket), output))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
