//! What a valid config says. Values of these types cannot be wrong: every check was made when they were read.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, Serializer};
use sluice_ebpf::{abi::Check, amplification::Preset, sanity};
use utoipa::ToSchema;

use super::{error::Position, health::Health};
use crate::{rules::RuleSpec, sources::SourceSpec};

/// A whole config file, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    pub pop: Pop,
    pub dataplane: Dataplane,
    pub api: Api,
    pub detect: Detect,
    pub pools: Vec<Pool>,
    pub vips: Vec<Vip>,
    pub policies: Vec<Policy>,
    pub rules: Vec<RuleSpec>,
    /// Named sets of sources that are denied or allowed.
    pub sources: Vec<SourceList>,
    pub host: Host,
    #[serde(skip)]
    pub origin: Origin,
}

/// One `[[deny]]` or `[[allow]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceList {
    pub spec: SourceSpec,
    /// Where its prefixes stand, if not in the config.
    pub file: Option<PathBuf>,
    /// Of its prefixes, which do not stand in `spec` when that is written.
    pub fingerprint: u64,
}

/// Where a config was read from, for what can only be checked later. Says nothing about what the config means.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub file: String,
    /// Of each interface, in their order.
    pub interfaces: Vec<Position>,
    /// Of each VIP's address, in their order.
    pub vips: Vec<Position>,
}

/// Always equal, so that a config which only moved in its file is no change.
impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// `[pop]`: which site this is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pop {
    pub name: String,
    /// 1 to 255, unique in the fleet.
    pub id: u8,
    /// 32 bytes that key every hash. Equal on all load balancers of a fleet, so that they choose alike.
    pub secret_file: Option<PathBuf>,
}

/// `[dataplane]`: what is set when the program is loaded. A change here needs `sluice unload` and a new start, except for `interfaces`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataplane {
    pub interfaces: Vec<String>,
    pub mode: XdpMode,
    /// Capacity of the flow table: a power of two, 2^10 to 2^26. Default 2^20.
    pub flows: u32,
    /// How long a proven flow may be silent before it makes room for others. Default 15 minutes.
    pub flow_idle: Duration,
    /// Most limits for single prefixes at a time. Default 131,072.
    pub exact_limits: u32,
    /// IPv4 prefixes that sets of sources have room for, and a fourth as many of IPv6; a power of two. Default 2^20.
    pub source_prefixes: u32,
    /// Slots for all lookup tables together, both halves. Default 0: chosen from the config at start.
    pub lookup_slots: u32,
    /// Cells in a row of the limiter's sketch, a power of two. Default 2^20.
    pub sketch_cells: u32,
    /// Outer source addresses of tunnels are spread over these. Defaults 172.16.0.0/16 and 100::/64.
    pub tunnel_source_v4: ipnet::Ipv4Net,
    pub tunnel_source_v6: ipnet::Ipv6Net,
    pub pin_dir: PathBuf,
    pub state_dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, generic (and said so) where it cannot.
    Auto,
    Native,
    Generic,
}

/// `[host]`: what the host itself must get, whatever the filter says, on addresses that it shares with VIPs.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Host {
    /// TCP or UDP, and a port, beside VIPs that take every port by `local`.
    pub ports: Vec<(Protocol, u16)>,
    /// Sources, to VIPs by `local`.
    pub sources: Vec<IpNet>,
}

/// `[api]`: where the daemon listens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Api {
    pub socket: PathBuf,
    pub remote: Option<Remote>,
}

/// Where clients of other machines are answered, and which.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remote {
    pub listen: SocketAddr,
    /// Absent only on a loopback address.
    pub tls: Option<ApiTls>,
    /// Hashes of the tokens that clients must show.
    pub tokens_file: PathBuf,
}

/// `[api.tls]`: PEM files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ApiTls {
    /// The certificate, and after it those between it and the root.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients must have a certificate that one of these signed. Absent: they need none.
    pub client_ca: Option<PathBuf>,
}

/// `[detect]`: when traffic is an attack, and what is done about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detect {
    pub mode: Stance,
    /// Less than both is never an attack.
    pub floor_pps: u64,
    pub floor_bps: u64,
    /// So many times the 99th percentile of peace is an attack.
    pub factor: u32,
    /// What is left through at most where nothing else helps, in the same measure.
    pub cap: u32,
    /// How long a mitigation's rule stays after the last packets that fit it.
    pub hold: Duration,
    /// How long traffic stays low before an attack is over; each return of one doubles it.
    pub quiet: Duration,
    /// How long peace is learned before anything is taken for an attack.
    pub learn: Duration,
    /// Headers that are looked at, a second.
    pub sampling: u32,
    /// URL that gets decisions by POST.
    pub webhook: Option<String>,
}

impl Default for Detect {
    fn default() -> Self {
        Self {
            mode: Stance::Advise,
            floor_pps: 10_000,
            floor_bps: 100_000_000,
            factor: 3,
            cap: 10,
            hold: Duration::from_secs(120),
            quiet: Duration::from_secs(60),
            learn: Duration::from_secs(60),
            sampling: 10_000,
            webhook: None,
        }
    }
}

/// What is done about attacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stance {
    /// Peace is learned, and nothing is said.
    Off,
    /// Mitigations are raised, and only count.
    #[default]
    Advise,
    Enforce,
}

/// `[[pool]]`: backends that serve the same content.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    pub name: String,
    pub health: Health,
    /// Slots of the lookup table, a prime. Default 65,537.
    pub slots: u32,
    pub all_down: AllDown,
    /// How long a backend that comes back takes to its whole weight. Zero: it has it at once.
    pub slow_start: Duration,
    /// Never empty.
    pub backends: Vec<Backend>,
}

/// What becomes of packets while no backend of a pool takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AllDown {
    /// They are dropped, for a reason that is counted.
    Drop,
    /// They go to the backends that were the last to be up.
    LastKnown,
    /// TCP is answered with a reset; the rest is dropped.
    Reset,
}

/// `[[pool.backend]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Backend {
    pub address: IpAddr,
    /// 0 to 1000; a backend of weight 0 gets no new flows.
    pub weight: u16,
    /// Overrides the VIP's.
    pub forward: Option<Forward>,
}

/// How a packet reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// New MAC addresses, nothing else.
    L2,
    /// IP in IP, of any two families (RFC 2003, 2473, 4213).
    Ipip,
    /// Generic UDP Encapsulation, variant 1 (IP directly in UDP), port 6080.
    Gue,
    /// To this host's own stack.
    Local,
}

/// `[[vip]]`: an address, protocol and port that we balance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Vip {
    pub name: String,
    /// A single address is a prefix of full length.
    pub prefix: IpNet,
    pub protocol: Protocol,
    /// Absent: every port.
    pub port: Option<u16>,
    /// Name of a pool that exists.
    pub pool: String,
    pub forward: Forward,
    /// Largest packet that fits the path to the backends, in bytes of L3, outer headers included. Absent: of the interface.
    pub mtu_bytes: Option<u16>,
    pub hash: HashInput,
    /// Name of a policy that exists.
    pub policy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    /// TCP and UDP.
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashInput {
    /// The five-tuple.
    Flow,
    /// Source address only: a client stays on one backend.
    Source,
}

/// `[[policy]]`: what traffic may do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Policy {
    pub name: String,
    pub mode: Mode,
    /// Prefix lengths that count as one host and one network, by family. Defaults 32, 24, 64, 48.
    pub prefix_lengths: PrefixLengths,
    /// At most one for each class and scope.
    pub limits: Vec<SourceLimit>,
    /// Absent: as `[detect]` says.
    pub detect: Option<Stance>,
    /// What becomes of packets that make no sense.
    pub sanity: Sanity,
    /// Answers of services that are abused to amplify, at most one entry a preset.
    pub amplification: Vec<Amplified>,
    /// What may come to one VIP of TCP that is neither a SYN nor of a known flow. Absent: anything.
    pub out_of_state: Option<OutOfState>,
    /// What becomes of packets that a rule would drop.
    pub rules: Stage,
    pub syn: Syn,
    /// What becomes of packets from sources that are denied.
    pub sources: Stage,
    /// The same for addresses that nobody on the internet has.
    pub bogons: Stage,
    /// What becomes of fragments of TCP and UDP.
    pub fragments: Stage,
}

/// One of a policy's `amplification`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Amplified {
    #[serde(serialize_with = "preset_word")]
    pub preset: Preset,
    pub mode: Mode,
    /// Whose answers backends asked for.
    pub replies_from: Vec<IpNet>,
}

fn preset_word<S: Serializer>(preset: &Preset, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(preset.word())
}

/// A policy's `out_of_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutOfState {
    /// Packets a second.
    pub pps: u64,
    /// Packets that may come at once.
    pub burst: u32,
    pub mode: Mode,
}

/// What a stage of the filter does with packets that it is against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Off,
    /// Counts them, and drops none.
    Monitor,
    Enforce,
}

/// A stage for each sanity check, in the order of their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sanity(pub [Stage; Check::ALL.len()]);

impl Default for Sanity {
    /// Drops what is certainly nonsense.
    fn default() -> Self {
        let mut stages = [Stage::Off; Check::ALL.len()];
        for (stage, check) in stages.iter_mut().zip(Check::ALL) {
            if sanity::ENFORCED_BY_DEFAULT & check.bit() != 0 {
                *stage = Stage::Enforce;
            }
        }
        Self(stages)
    }
}

impl Policy {
    /// With all defaults.
    pub fn without_limits(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            mode: Mode::Enforce,
            prefix_lengths: PrefixLengths {
                host_v4: 32,
                network_v4: 24,
                host_v6: 64,
                network_v6: 48,
            },
            sanity: Sanity::default(),
            amplification: Vec::new(),
            out_of_state: None,
            rules: Stage::Enforce,
            sources: Stage::Enforce,
            bogons: Stage::Off,
            fragments: Stage::Off,
            limits: Vec::new(),
            detect: None,
            syn: Syn::default(),
        }
    }
}

/// A policy's `syn`: what becomes of SYNs before their source has shown that it gets our packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Syn {
    pub mode: SynMode,
    pub defence: Defence,
    /// Count what would be challenged, and forward it. So it is too where the policy only counts.
    pub monitor: bool,
    /// With `auto`: challenge while a VIP gets more SYNs a second than this. Default 10,000.
    pub above_pps: u64,
    /// With `auto`: for how long after the last SYN above that. Default 10 seconds.
    pub hold: Duration,
    /// SYNs a second that are let in because they came again after a challenge: of clients that could not answer. Default 500.
    pub again_pps: u64,
    /// What answers with a cookie say.
    pub answer: SynAnswer,
}

/// How SYNs are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Defence {
    /// With what a client contradicts; any backend will do.
    Challenge,
    /// With a cookie, of which `sluice backend` makes a connection.
    Cookie,
}

/// What answers with a cookie say of the backends, which are to say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SynAnswer {
    /// The largest segment that may come, in bytes, of IPv4; of IPv6 20 less. Default: what the path to the backends has room for.
    pub mss: Option<u16>,
    /// What the backends' windows are shifted by. Default 7.
    pub window_scale: u8,
    /// Bytes that may come at first. Default 64,240.
    pub window: u16,
    pub sack: bool,
    pub timestamps: bool,
    pub ecn: bool,
}

impl Default for SynAnswer {
    /// As Linux answers.
    fn default() -> Self {
        Self {
            mss: None,
            window_scale: 7,
            window: 64_240,
            sack: true,
            timestamps: true,
            ecn: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SynMode {
    Off,
    /// While there is a flood of them.
    Auto,
    Always,
}

impl Default for Syn {
    fn default() -> Self {
        Self {
            mode: SynMode::Off,
            defence: Defence::Challenge,
            monitor: false,
            above_pps: 10_000,
            hold: Duration::from_secs(10),
            again_pps: 500,
            answer: SynAnswer::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PrefixLengths {
    pub host_v4: u8,
    pub network_v4: u8,
    pub host_v6: u8,
    pub network_v6: u8,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Enforce,
    /// Counts what `Enforce` would drop, and drops nothing.
    Monitor,
}

/// One of a policy's `limits`: what each source host or network may send.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SourceLimit {
    pub class: Class,
    pub per: Scope,
    /// Packets a second; at least one of this and `bps` is set.
    pub pps: Option<u64>,
    /// Bits a second, counted from the IP header on.
    pub bps: Option<u64>,
    /// Packets that may come at once. Default: a tenth of a second's worth, at least 10.
    pub burst: u32,
}

/// Traffic classes that limits apply to. The discriminants are the data plane's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// TCP SYN.
    Syn = 0,
    /// All UDP.
    Udp = 1,
    /// ICMP to a VIP: errors and echo.
    Icmp = 2,
    /// TCP outside a proven flow that is no SYN, and fragments.
    Other = 3,
    /// TCP of proven flows. Off unless named.
    Established = 4,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    Host,
    Network,
}
