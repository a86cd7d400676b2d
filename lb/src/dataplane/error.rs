//! Why the data plane could not be loaded, attached or changed.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};

use super::Mode;
use crate::disk::SaveError;

/// Why the data plane could not be loaded or attached. What was running before still is.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{} is not on a BPF file system; mount one: `mount -t bpf bpf /sys/fs/bpf`", path.display())]
    NoBpffs { path: PathBuf },
    #[error(
        "the kernel lets us load no programs; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    )]
    NotPermitted {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{} holds what another version of sluice loaded; stop that with `sluice unload`, then start again", path.display())]
    OtherVersion { path: PathBuf },
    #[error("nothing is loaded under {}; start the daemon with `sluice run`", path.display())]
    NothingLoaded { path: PathBuf },
    #[error(
        "the pinned map {map} has {actual}, but the config asks for {expected}; change the config back, or run `sluice unload`, then start again"
    )]
    Shape {
        map: &'static str,
        actual: Shape,
        expected: Shape,
    },
    #[error("the pinned map {map} is missing in {}; run `sluice unload`, then start again", path.display())]
    MapMissing { map: &'static str, path: PathBuf },
    #[error("cannot use {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot make the maps")]
    Maps(#[source] Box<EbpfError>),
    #[error("cannot use the map {map}")]
    Map {
        map: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the kernel refuses the program")]
    Program(#[source] Box<ProgramError>),
    #[error(
        "there is no interface {interface}; correct `interfaces` in [dataplane], or make it first"
    )]
    NoInterface { interface: String },
    #[error("cannot attach to {interface} in native mode; `mode = \"generic\"` works, but slower")]
    Native {
        interface: String,
        source: Box<ProgramError>,
    },
    #[error(
        "the program is on {interface} in {} mode, and has to come off for another; write `mode = \"auto\"`, or run `sluice unload`, then start again",
        is.word()
    )]
    OtherMode { interface: String, is: Mode },
    #[error(
        "cannot attach to {interface}; if another XDP program is there, take it off: `ip link set {interface} xdp off`"
    )]
    Attach {
        interface: String,
        source: Box<ProgramError>,
    },
    #[error(
        "cannot keep the link to {interface}: the kernel knows no links for it (it must be 5.9 or newer)"
    )]
    NoLink { interface: String },
    #[error("cannot pin the link to {interface}")]
    PinLink {
        interface: String,
        source: Box<PinError>,
    },
    #[error("cannot count this machine's CPUs")]
    Cpus(#[source] io::Error),
    #[error("cannot read the clock")]
    Clock(#[source] io::Error),
    #[error("cannot get random bytes")]
    Random(#[source] io::Error),
}

/// What must agree for a pinned map to be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub kind: MapKind,
    pub value_bytes: u32,
    pub entries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    Array,
    PerCpuArray,
    /// Its entries are bytes.
    RingBuffer,
    Other,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            MapKind::Array => "in an array",
            MapKind::PerCpuArray => "in an array for each CPU",
            MapKind::RingBuffer => "in a ring buffer",
            MapKind::Other => "in another kind of map",
        };
        write!(
            f,
            "{} values of {} bytes {kind}",
            self.entries, self.value_bytes
        )
    }
}

/// Why the data plane does not hold what was asked for. What it holds is consistent; asking again is safe.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(
        "{what} are more than the data plane holds ({most}), those included that this change removes or that went in the last 30 s; use fewer, or remove first and add half a minute later"
    )]
    Full { what: &'static str, most: u64 },
    #[error(
        "the lookup tables need more room than the data plane has ({slots} slots); raise `lookup_slots` in [dataplane], run `sluice unload`, then start again"
    )]
    Slots { slots: u32 },
    #[error(
        "the lookup tables change faster than the data plane has room for ({slots} slots): handshakes that are under way still need the tables before, so this change waits for {seconds} s; if this happens often, see why backends flap, or raise `lookup_slots` in [dataplane], run `sluice unload`, then start again"
    )]
    SlotsBusy { slots: u32, seconds: u64 },
    #[error("VIPs of IPv{family} have more than {most} different prefix lengths; use fewer")]
    Lengths { family: u8, most: usize },
    #[error("VIP {vip} names what does not exist")]
    Dangling { vip: String },
    #[error("no seed of the VIP index is free of collisions")]
    Index,
    #[error(transparent)]
    Registry(#[from] SaveError),
    #[error("cannot start counters from zero")]
    Counters(#[from] ReadError),
}

/// Why a figure could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read or write the map {map}")]
pub struct ReadError {
    pub map: &'static str,
    pub source: MapError,
}
