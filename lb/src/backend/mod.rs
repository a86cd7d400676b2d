//! `sluice backend`: has the kernel of a backend take the SYN cookies of load balancers, for as long as it runs.

mod btf;
mod host;
mod kfunc;

use std::{io, path::PathBuf, time::Duration};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Array, MapError, PerCpuArray},
    programs::{ProgramError, SchedClassifier, TcAttachType},
};
use ipnet::IpNet;
use sluice_ebpf::{
    backend::{MAX_KEYS, MAX_VIPS, Settings, Stats},
    cookie::MAX_SCALE,
    decap::Prefix,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval_at},
};
use tracing::{info, warn};

pub use btf::BtfError;
pub use host::HostError;
pub use kfunc::KfuncError;

use crate::{
    config::{self, SecretError},
    cookie,
    dataplane::{LoadError, hz},
    decap::prefix,
    net::{self, InterfacesError},
    objects::BACKEND,
};

/// Whose cookies to take, and where.
#[derive(Clone, Debug)]
pub struct Options {
    pub interfaces: Vec<String>,
    /// The fleet's secret; while it is changed, the old and the new one.
    pub secret_files: Vec<PathBuf>,
    /// Addresses of VIPs. None: any.
    pub vips: Vec<IpNet>,
    /// What the load balancers' answers tell clients.
    pub window_scale: u8,
}

/// Attaches, has that announced, and stays until SIGINT or SIGTERM; then detaches. Packets without a cookie pass untouched.
///
/// # Errors
/// If this kernel cannot take cookies, or the program cannot be attached. Nothing stays attached then.
pub async fn run(options: Options, announce: impl FnOnce(&Options)) -> Result<(), BackendError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(BackendError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(BackendError::Signals)?;
    host::takes_cookies()?;
    let keys = options
        .secret_files
        .iter()
        .map(|path| Ok(cookie::key(&config::read_secret(path)?)))
        .collect::<Result<Vec<_>, SecretError>>()?;
    for sentence in host::is_off() {
        warn!("{sentence}");
    }
    let known = net::interfaces().await?;
    let mut agents = Vec::new();
    for name in &options.interfaces {
        let interface = known
            .iter()
            .find(|interface| interface.name == *name)
            .ok_or_else(|| BackendError::NoInterface { name: name.clone() })?;
        let link = if interface.mac.is_some() || name == "lo" {
            Link::Ethernet
        } else {
            Link::Ip
        };
        let mut agent = Agent::load(&keys, &options.vips, options.window_scale, link)?;
        agent.attach(name)?;
        agents.push(agent);
    }
    announce(&options);

    let mut said = Stats::default();
    let mut minute = interval_at(Instant::now() + RENEWED_EVERY, RENEWED_EVERY);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = minute.tick() => said = look_after(&mut agents, said)?,
        }
    }
    info!(accepted = total(&agents)?.accepted, "detached");
    Ok(())
}

/// How often the clock is set anew, and what went wrong is told. An epoch of cookies is twice as long.
const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// Follows the time of day, and tells what hinders connections; returns what has been told of.
fn look_after(agents: &mut [Agent], said: Stats) -> Result<Stats, BackendError> {
    for agent in agents.iter_mut() {
        agent.set_clock()?;
    }
    if let Err(error) = host::takes_cookies() {
        warn!("clients that were sent a cookie get no connection: {error}");
    }
    let stats = total(agents)?;
    let refused = stats.refused - said.refused;
    if refused > 0 {
        let error = i32::try_from(stats.refused_with).unwrap_or(0);
        let why = io::Error::from_raw_os_error(error);
        warn!(
            "the kernel refused {refused} good cookies ({why}): load balancers offer clients what it has off; look at net.ipv4.tcp_sack, tcp_timestamps and tcp_window_scaling"
        );
    }
    Ok(stats)
}

fn total(agents: &[Agent]) -> Result<Stats, BackendError> {
    agents.iter().try_fold(Stats::default(), |sum, agent| {
        Ok(added(sum, agent.stats()?))
    })
}

fn added(a: Stats, b: Stats) -> Stats {
    Stats {
        accepted: a.accepted + b.accepted,
        known: a.known + b.known,
        no_listener: a.no_listener + b.no_listener,
        refused: a.refused + b.refused,
        refused_with: a.refused_with.max(b.refused_with),
    }
}

/// What frames of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    /// Those of a tunnel's interface.
    Ip,
}

/// The loaded program. It detaches when this is dropped, also when the process dies.
#[derive(Debug)]
pub struct Agent {
    ebpf: Ebpf,
    settings: Settings,
    hz: u32,
}

impl Agent {
    /// Loads the program for cookies made with one of `keys` and this window scale, sent to one of `vips` (none: any).
    ///
    /// # Errors
    /// If there are too many keys or VIPs, or the kernel cannot.
    pub fn load(
        keys: &[[u64; 2]],
        vips: &[IpNet],
        window_scale: u8,
        link: Link,
    ) -> Result<Self, BackendError> {
        let vips: Vec<Prefix> = vips.iter().copied().map(prefix).collect();
        let vip_count = count("VIPs", vips.len(), MAX_VIPS)?;
        let key_count = count("secrets", keys.len(), MAX_KEYS)?;
        if window_scale > MAX_SCALE {
            return Err(BackendError::WindowScale { window_scale });
        }
        let object = kfunc::for_this_kernel(BACKEND)?;
        let mut ebpf = EbpfLoader::new()
            .override_global("VIP_COUNT", &vip_count, true)
            .override_global("KEY_COUNT", &key_count, true)
            .override_global("WINDOW_SCALE", &window_scale, true)
            .override_global("ETHERNET", &u8::from(link == Link::Ethernet), true)
            .load(&object)
            .map_err(|error| BackendError::Load(Box::new(error)))?;
        let map = ebpf.map_mut("VIPS").expect("the object has this map");
        let mut map = Array::<_, [u64; 4]>::try_from(map).map_err(BackendError::Map)?;
        for (index, vip) in (0..).zip(&vips) {
            map.set(index, bytemuck::cast::<_, [u64; 4]>(*vip), 0)
                .map_err(BackendError::Map)?;
        }
        let mut settings = Settings::default();
        for (place, key) in settings.keys.iter_mut().zip(keys) {
            *place = *key;
        }
        let mut agent = Self {
            ebpf,
            settings,
            hz: hz()?,
        };
        agent.set_clock()?;
        agent.program().load().map_err(BackendError::Program)?;
        Ok(agent)
    }

    /// Attaches to an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self, interface: &str) -> Result<(), BackendError> {
        self.program()
            .attach(interface, TcAttachType::Ingress)
            .map_err(|source| BackendError::Attach {
                interface: interface.to_owned(),
                source,
            })?;
        Ok(())
    }

    /// Tells the program the time of day.
    ///
    /// # Errors
    /// If the kernel does not let us write the map.
    pub fn set_clock(&mut self) -> Result<(), BackendError> {
        self.settings.clock = cookie::clock(self.hz);
        let map = self.ebpf.map_mut("SETTINGS").expect("the object has it");
        let mut map = Array::<_, [u64; 6]>::try_from(map).map_err(BackendError::Map)?;
        map.set(0, bytemuck::cast::<_, [u64; 6]>(self.settings), 0)
            .map_err(BackendError::Map)
    }

    /// What became of packets with good cookies so far, over all CPUs.
    ///
    /// # Errors
    /// If the kernel does not let us read the map.
    pub fn stats(&self) -> Result<Stats, BackendError> {
        let map = self.ebpf.map("STATS").expect("the object has this map");
        let stats = PerCpuArray::<_, [u64; 5]>::try_from(map)
            .and_then(|stats| stats.get(&0, 0))
            .map_err(BackendError::Map)?;
        Ok(stats
            .iter()
            .map(|&words| bytemuck::cast::<_, Stats>(words))
            .fold(Stats::default(), added))
    }

    fn program(&mut self) -> &mut SchedClassifier {
        self.ebpf
            .program_mut("backend")
            .expect("the object has this program")
            .try_into()
            .expect("it is for tc")
    }
}

/// Why `sluice backend` did not start.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Kfunc(#[from] KfuncError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Interfaces(#[from] InterfacesError),
    #[error(transparent)]
    Clock(#[from] LoadError),
    #[error("there is no interface {name}; `ip link` lists those that there are")]
    NoInterface { name: String },
    #[error("cannot load the program (are you root?)")]
    Load(#[source] Box<EbpfError>),
    #[error("the kernel refuses the program (are you root, and is this Linux 6.9 or later?)")]
    Program(#[source] ProgramError),
    #[error("cannot attach to {interface} at tc ingress")]
    Attach {
        interface: String,
        source: ProgramError,
    },
    #[error("cannot use a map of the program")]
    Map(#[source] MapError),
    #[error("{number} {what}; at most {most} are possible")]
    TooMany {
        what: &'static str,
        number: usize,
        most: u32,
    },
    #[error("window scale {window_scale}; at most {MAX_SCALE} is possible")]
    WindowScale { window_scale: u8 },
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}

fn count(what: &'static str, number: usize, most: u32) -> Result<u32, BackendError> {
    u32::try_from(number)
        .ok()
        .filter(|&number| number <= most)
        .ok_or(BackendError::TooMany { what, number, most })
}
