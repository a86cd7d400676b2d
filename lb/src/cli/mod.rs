//! The command line: nouns show, verbs change.

mod ask;
mod capture;
mod check;
mod client;
mod detection;
mod doctor;
mod explain;
mod flow;
mod limits;
mod manual;
mod names;
mod numbers;
mod output;
mod plan;
mod remote;
mod rules;
mod sources;
mod table;
mod token;
mod top;
mod unload;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use serde_json::json;

use crate::{
    backend, config, control, decap,
    drains::DrainKind,
    log::{self, LogFormat},
    sys,
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

impl Cli {
    /// All commands as they are typed, like `limit set`: whoever looks at each of them forgets none.
    pub fn commands() -> BTreeSet<String> {
        fn add(command: &clap::Command, outer: &str, all: &mut BTreeSet<String>) {
            for inner in command.get_subcommands() {
                let name = format!("{outer}{}", inner.get_name());
                if inner.has_subcommands() {
                    add(inner, &format!("{name} "), all);
                } else {
                    all.insert(name);
                }
            }
        }
        let mut all = BTreeSet::new();
        add(&Self::command(), "", &mut all);
        all
    }
}

#[derive(Debug, Args)]
struct Global {
    /// The config file
    #[arg(short, long, global = true, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// The daemon's socket, also if the environment names a daemon elsewhere [default: what the config file says]
    #[arg(long, global = true, value_name = "FILE")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    remote: remote::RemoteArgs,
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
    /// Show what a reload would do, and what that would move
    Plan,
    /// Look at all that the data plane stands on, and say what to do where something is amiss
    Doctor,
    /// Show how the daemon and its data plane are
    Status(Watch),
    /// Show VIPs and what became of their packets
    Vips(Watch),
    /// Show backends, their health and their share
    Backends(Watch),
    /// Show live flows by backend
    Flows(Watch),
    /// Show dropped packets by VIP and reason
    Drops(Watch),
    /// Show BGP peers: none, for this version speaks no BGP
    Peers(Watch),
    /// Show what detection does about attacks
    Mitigations(detection::MitigationFilters),
    /// Revert or allow what detection does
    #[command(subcommand)]
    Mitigation(detection::MitigationCommand),
    /// Show who sends most: networks, ports and lengths
    Talkers(detection::TalkerArgs),
    /// Show what happens now, on one screen: rates of VIPs, backends and drops, mitigations, who sends most
    Top(top::TopArgs),
    /// Show limits set at run time
    Limits(LimitFilters),
    /// Set or remove a limit for a source prefix
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Show rules, of the config and set at run time
    Rules(RuleFilters),
    /// Add or remove a rule
    #[command(subcommand)]
    Rule(RuleCommand),
    /// Show or change who is denied: prefixes, and lists from files
    #[command(subcommand)]
    Deny(sources::SourceCommand),
    /// Show or change who is let in, whatever else holds
    #[command(subcommand)]
    Allow(sources::SourceCommand),
    /// Give a backend, a VIP or all of this PoP no new flows; those that are there stay
    Drain(DrainArgs),
    /// End a drain
    Undrain(DrainArgs),
    /// Have the daemon read its config file again
    Reload,
    /// Tokens of clients by TCP
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Show what the loaded program would do with packets, without counting them
    Explain(ExplainArgs),
    /// Write samples of packets to a file, with what became of them as comments
    Capture(capture::CaptureArgs),
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
    /// Have the kernel of a backend take the SYN cookies of load balancers, until interrupted
    Backend(BackendArgs),
    /// Detach the program and remove what the kernel holds: nothing is balanced any more
    Unload {
        /// Even while a daemon is running
        #[arg(long)]
        force: bool,
    },
    /// Print what a shell needs to complete this command line
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command
    Man {
        /// Where to; made if it is missing
        dir: PathBuf,
    },
}

impl Command {
    /// Whether to show again and again, for those that show.
    fn watch(&self) -> Option<&Watch> {
        match self {
            Self::Status(watch)
            | Self::Vips(watch)
            | Self::Backends(watch)
            | Self::Flows(watch)
            | Self::Drops(watch)
            | Self::Peers(watch)
            | Self::Mitigations(detection::MitigationFilters { watch, .. })
            | Self::Talkers(detection::TalkerArgs { watch, .. })
            | Self::Rules(RuleFilters { watch, .. })
            | Self::Deny(sources::SourceCommand::List(sources::SourceFilters { watch, .. }))
            | Self::Allow(sources::SourceCommand::List(sources::SourceFilters { watch, .. }))
            | Self::Limits(LimitFilters { watch, .. }) => Some(watch),
            _ => None,
        }
    }
}

#[derive(Debug, Args)]
struct Watch {
    /// Show it again and again, after so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = seconds)]
    watch: Option<Duration>,
}

impl Watch {
    fn period(&self) -> Option<Duration> {
        self.watch
    }
}

/// From a tenth of a second to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_error| "not a number of seconds".to_owned())?;
    if (0.1..=86400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("from 0.1 to 86400 seconds".into())
    }
}

/// Packets from a file, or one described here.
#[derive(Debug, Args)]
struct ExplainArgs {
    /// Frames to explain: pcap or pcapng, Ethernet
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to"], required_unless_present = "to")]
    pcap: Option<PathBuf>,
    /// Where to write the frames that would leave
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    flow: flow::FlowArgs,
}

#[derive(Debug, Args)]
struct BackendArgs {
    /// Where packets for the VIPs come in, tunnels taken off; may be given several times
    #[arg(long, required = true)]
    interface: Vec<String>,
    /// The `secret_file` of the load balancers; while that is changed, the old and the new one
    #[arg(long, required = true, value_name = "FILE")]
    secret_file: Vec<PathBuf>,
    /// Take cookies to this VIP only; may be given several times
    #[arg(long, value_name = "PREFIX", value_parser = address_or_prefix)]
    vip: Vec<IpNet>,
    /// What the load balancers' answers tell clients that this host's windows are shifted by
    #[arg(long, value_name = "BITS", default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=14))]
    window_scale: u8,
}

fn address_or_prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_no_address| {
            text.parse::<IpNet>().map_err(|_no_prefix| {
                "neither an address nor a prefix, like 203.0.113.10".to_owned()
            })
        })
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
    #[command(flatten)]
    watch: Watch,
}

#[derive(Debug, Subcommand)]
enum RuleCommand {
    /// Add a rule; replaces the one that means the same packets
    Add {
        /// Like `dst 192.0.2.0/24; proto udp; sport 53,123; length > 1000 -> drop; expire 10m`
        text: String,
    },
    /// Tell what a rule would have meant in the last minute, and set nothing
    Preview {
        /// As for `add`
        text: String,
    },
    /// Add many rules from a file, all or none
    Import {
        /// A rule on each line; `#` begins a comment; `-` for standard input
        file: PathBuf,
        /// Skip lines that are no rules, and say why
        #[arg(long)]
        skip_bad: bool,
    },
    /// Remove a rule
    Remove { id: u64 },
}

/// Which rules to show: those that match all of these.
#[derive(Debug, Args)]
struct RuleFilters {
    /// For this VIP
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// Set by this
    #[arg(long, value_enum)]
    origin: Option<OriginArg>,
    /// With this in its comment
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    #[command(flatten)]
    watch: Watch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OriginArg {
    Operator,
    Config,
    Detection,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("rate").multiple(true).required(true))]
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
    /// Packets a second
    #[arg(long, group = "rate")]
    pps: Option<u64>,
    /// Bits a second
    #[arg(long, group = "rate")]
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
    /// Its name; of a backend POOL/ADDRESS; of the PoP it may be left out
    #[arg(required_if_eq_any([("kind", "backend"), ("kind", "vip")]))]
    name: Option<String>,
}

/// Why a command failed, in words for its user. Exit code 1.
type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    sys::share_memory();
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
        Command::Run => {
            let ended = runtime.block_on(control::run(&global.config, global.socket));
            // A file that a reload reads may never end.
            runtime.shutdown_background();
            ended?;
        }
        Command::Decap {
            interface,
            from,
            address,
        } => {
            let options = decap::Options {
                interface,
                addresses: address,
                from,
                mode: config::XdpMode::Auto,
            };
            runtime.block_on(decap::run(options, |options, addresses| {
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let interface = &options.interface;
                let started = json!({ "interface": interface, "addresses": list });
                // Nobody may be there to read it.
                let _said = output.show(&started, |_| {
                    format!(
                        "decapsulating ipip and gue on {interface} for {}",
                        list.join(", ")
                    )
                });
            }))?;
        }
        Command::Backend(args) => {
            let options = backend::Options {
                interfaces: args.interface,
                secret_files: args.secret_file,
                vips: args.vip,
                window_scale: args.window_scale,
            };
            runtime.block_on(backend::run(options, |options| {
                let interfaces = &options.interfaces;
                let vips: Vec<String> = options.vips.iter().map(ToString::to_string).collect();
                let started = json!({
                    "interfaces": interfaces, "vips": vips, "window_scale": options.window_scale
                });
                // Nobody may be there to read it.
                let _said = output.show(&started, |_| {
                    let vips = if vips.is_empty() {
                        "any VIP".to_owned()
                    } else {
                        vips.join(", ")
                    };
                    format!(
                        "taking SYN cookies on {} for {vips}, window scale {}",
                        interfaces.join(", "),
                        options.window_scale
                    )
                });
            }))?;
        }
        Command::Unload { force } => {
            let daemon = if force {
                unload::Daemon::Ignore
            } else {
                unload::Daemon::Respect
            };
            unload::unload(&global, daemon, output)?;
        }
        Command::Explain(args) => explain::explain(&global.config, &args, output)?,
        Command::Capture(args) => {
            runtime.block_on(capture::capture(&global.config, &args, output))?;
        }
        Command::Completions { shell } => manual::completions(shell, output)?,
        Command::Man { dir } => manual::write(&dir, output)?,
        Command::Token(command) => token::token(&global, command, output)?,
        Command::Check => return check::check(&global.config, output),
        command => {
            // Who names a socket means that one, whatever the environment says.
            let remote = match global.socket {
                Some(_) => None,
                None => global.remote.remote()?,
            };
            let client = match remote {
                Some(remote) => client::Client::Remote(remote),
                None => client::Client::Local {
                    socket: client::socket(global.socket, &global.config),
                },
            };
            if matches!(command, Command::Doctor) {
                return runtime.block_on(doctor::doctor(&global.config, &client, output));
            }
            runtime.block_on(ask::ask(command, client, output))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
