//! The program and its maps, made in the sizes that the config asks for.

use std::{
    collections::BTreeMap,
    error::Error,
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapInfo, MapType},
    programs::Xdp,
};
use nix::time::{ClockId, clock_getres, clock_gettime};
use sluice_ebpf::{
    abi::{
        AMPLIFIED_COUNTS, AddressEntry, Backend, CHALLENGED_SYNS, CLASS_COUNTERS_SHIFT, Challenge,
        ChallengeStats, ClassStats, Count, DROP_REASONS, FlowStats, GROUP_SHIFT, HANDSHAKE_WORDS,
        Limit, MAX_PROTECTED, NO_BACKEND, PROOF_BUCKETS, Policy, RULE_NUMBERS, RuleCounts,
        RuleState, SKETCH_PAGE_CELLS, SKETCH_PAGE_SHIFT, SLOTS_PER_WORD, SampleStats, Sampling,
        Service, Settings, Vip, VipStats, Watching, maps,
    },
    challenge,
    decap::Prefix,
    exact, flow,
    rules::RuleTables,
    sources,
};

use super::error::{LoadError, MapKind, Shape};
use crate::{config::Dataplane, objects};

/// What the config needs, where the sizes of maps are chosen for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    pub vips: u32,
    /// Slots of all lookup tables in use at a time.
    pub slots: u32,
}

/// Sizes of what the config sizes.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    pub flow_buckets: u32,
    /// Slots of all tables.
    pub slots: u32,
    pub sketch_cells: u32,
    pub limits: u32,
    pub exact_v4_blocks: u32,
    pub exact_v6_buckets: u32,
    pub source_units: u32,
    pub source_v6_buckets: u32,
    /// VIP numbers, 0 included; a power of two.
    pub vips: u32,
    /// Seconds of silence.
    flow_idle: Duration,
}

/// Number of policies, 0 included.
pub(crate) const POLICIES: u32 = 256;
/// Number of backends.
pub(crate) const BACKENDS: u32 = NO_BACKEND as u32 + 1;
const FRAGMENT_BUCKETS: u32 = 2048;
/// Up to eight prefixes longer than /24 share a unit, or less, if they are in one /24; nine or more share 16.
const UNITS_A_PREFIX: u32 = 2;
/// A fourth as many IPv6 prefixes as there are of IPv4 fill half of the ways: then none finds both of its buckets full.
const PREFIXES_A_BUCKET: u32 = 16;
/// More than three thousand samples: three seconds of the default rate.
const SAMPLES_BYTES: u32 = 1 << 20;
const LEAST_VIPS: u32 = 2048;
const LEAST_SLOTS: u32 = 1 << 20;
/// The name of the XDP program in the object.
const PROGRAM: &str = "sluice";

#[expect(clippy::cast_possible_truncation, reason = "constants below 2^32")]
impl Sizes {
    pub(crate) fn new(config: &Dataplane, need: Need) -> Self {
        let exact = config.exact_limits.max(1).next_power_of_two();
        let slots = match config.lookup_slots {
            // Of each table there are up to three: the one in use, the one before it, and the next.
            0 => need
                .slots
                .saturating_mul(3)
                .min(1 << 31)
                .next_power_of_two()
                .max(LEAST_SLOTS),
            slots => slots,
        };
        Self {
            flow_buckets: config.flows / flow::WAYS as u32,
            slots,
            sketch_cells: config.sketch_cells,
            limits: config.exact_limits + 1,
            exact_v4_blocks: exact,
            exact_v6_buckets: exact,
            source_units: config.source_prefixes * UNITS_A_PREFIX,
            source_v6_buckets: config.source_prefixes / PREFIXES_A_BUCKET,
            vips: (need.vips * 2).next_power_of_two().max(LEAST_VIPS),
            flow_idle: config.flow_idle,
        }
    }

    /// Of no use but for names and kinds of the pinned maps.
    pub(crate) fn any() -> Self {
        Self {
            flow_buckets: 1,
            slots: 1,
            sketch_cells: 1,
            limits: 1,
            exact_v4_blocks: 1,
            exact_v6_buckets: 1,
            source_units: 1,
            source_v6_buckets: 1,
            vips: 1,
            flow_idle: Duration::ZERO,
        }
    }

    /// Sizes that were chosen for the config are kept as they are pinned, as long as the config fits.
    pub(crate) fn keep(
        &mut self,
        config: &Dataplane,
        need: Need,
        pinned: &BTreeMap<&'static str, Shape>,
    ) {
        if let Some(shape) = pinned.get(maps::SLOTS)
            && config.lookup_slots == 0
            && shape.entries.saturating_mul(SLOTS_PER_WORD as u32) >= need.slots
        {
            self.slots = shape.entries.saturating_mul(SLOTS_PER_WORD as u32);
        }
        if let Some(shape) = pinned.get(maps::VIPS)
            && shape.entries.is_power_of_two()
            && shape.entries >= (need.vips + 1).max(LEAST_VIPS)
        {
            self.vips = shape.entries;
        }
    }

    /// Entries of one generation's addresses; as many services. At most half are used.
    pub(crate) fn index_entries(&self) -> u32 {
        self.vips * 2
    }

    /// Entries of one generation's displacements of addresses; as many of services.
    pub(crate) fn displacements(&self) -> u32 {
        self.vips / 2
    }

    /// Ticks of silence after which a proven flow expires.
    pub(crate) fn flow_idle_ticks(&self, hz: u32) -> u16 {
        let jiffies = self.flow_idle.as_secs().saturating_mul(u64::from(hz));
        // Ages wrap: one must be seen to be old before it seems young again.
        let most = (1u64 << flow::AGE_BITS) * 15 / 16;
        let ticks =
            (jiffies >> flow::age_shift(hz)).clamp(2 * u64::from(flow::REFRESH_TICKS), most);
        u16::try_from(ticks).unwrap_or(u16::MAX)
    }

    /// Every pinned map, as these sizes make it.
    pub(crate) fn shapes(&self) -> Vec<(&'static str, Shape)> {
        let array =
            |name, value_bytes: usize, entries| (name, MapKind::Array, value_bytes, entries);
        let per_cpu =
            |name, value_bytes: usize, entries| (name, MapKind::PerCpuArray, value_bytes, entries);
        let bucket = size_of::<[u64; flow::WAYS]>();
        [
            array(maps::SETTINGS, size_of::<Settings>(), 1),
            array(maps::DISPLACEMENTS, 4, self.displacements() * 4),
            array(
                maps::ADDRESSES,
                size_of::<AddressEntry>(),
                self.index_entries() * 2,
            ),
            array(
                maps::SERVICES,
                size_of::<Service>(),
                self.index_entries() * 2,
            ),
            array(maps::VIPS, size_of::<Vip>(), self.vips),
            array(maps::POLICIES, size_of::<Policy>(), POLICIES),
            array(
                maps::SLOTS,
                2 * SLOTS_PER_WORD,
                self.slots.div_ceil(SLOTS_PER_WORD as u32),
            ),
            array(maps::BACKENDS, size_of::<Backend>(), BACKENDS),
            array(maps::FLOWS, bucket, self.flow_buckets),
            array(maps::FRAGMENTS, bucket, FRAGMENT_BUCKETS),
            array(
                maps::SKETCH,
                8 * SKETCH_PAGE_CELLS,
                self.sketch_cells >> SKETCH_PAGE_SHIFT,
            ),
            array(maps::GROUPS, 8, self.sketch_cells >> GROUP_SHIFT),
            array(maps::EXACT_V4_FILTER, 8, exact::V4_FILTER_WORDS / 2),
            array(maps::EXACT_V4, 8, exact::V4_ENTRIES / 2),
            array(
                maps::EXACT_V4_BLOCKS,
                8,
                self.exact_v4_blocks * exact::BLOCK_ENTRIES / 2,
            ),
            array(maps::EXACT_V6_LENGTHS, 4, exact::V6_FILTER_ENTRIES),
            array(maps::EXACT_V6, 8 * exact::V6_WAYS, self.exact_v6_buckets),
            array(maps::LIMITS, size_of::<Limit>(), self.limits),
            array(maps::SOURCE_FILTER, 8, exact::V4_FILTER_WORDS / 2),
            array(maps::SOURCES, 8, exact::V4_ENTRIES / 2),
            array(
                maps::SOURCE_BLOCKS,
                size_of::<sources::Sparse>(),
                self.source_units,
            ),
            array(maps::SOURCE_FILTER_V6, 8, sources::V6_FILTER / 2),
            array(
                maps::SOURCE_LENGTHS_V6,
                sources::V6_LENGTHS,
                sources::V6_LISTS,
            ),
            array(
                maps::SOURCES_V6,
                8 * sources::V6_WAYS,
                self.source_v6_buckets,
            ),
            array(maps::SOURCE_CLASSES, 8, sources::CLASSES),
            array(maps::SOURCE_SETS_OFF, 8, self.vips),
            per_cpu(maps::SOURCE_STATS, size_of::<Count>(), sources::CLASSES * 2),
            per_cpu(maps::BUDGETS, 8, self.vips),
            per_cpu(maps::CHALLENGE_GATE, 8, self.vips),
            array(maps::HANDSHAKES, 8, HANDSHAKE_WORDS),
            array(maps::PROTECTED, size_of::<Prefix>(), MAX_PROTECTED),
            per_cpu(maps::AMPLIFIED, size_of::<Count>(), AMPLIFIED_COUNTS),
            per_cpu(maps::VIP_STATS, size_of::<VipStats>(), self.vips),
            per_cpu(maps::BACKEND_STATS, size_of::<Count>(), BACKENDS),
            per_cpu(
                maps::DROPS,
                size_of::<Count>(),
                self.vips * DROP_REASONS * 2,
            ),
            per_cpu(maps::FLOW_STATS, size_of::<FlowStats>(), 1),
            array(maps::CHALLENGES, size_of::<Challenge>(), self.vips),
            per_cpu(
                maps::CHALLENGE_STATS,
                size_of::<ChallengeStats>(),
                self.vips,
            ),
            array(maps::CHALLENGED, 8, CHALLENGED_SYNS / 2),
            array(maps::PROOFS, bucket, PROOF_BUCKETS),
            array(maps::SAMPLING, size_of::<Sampling>(), 1),
            (maps::SAMPLES, MapKind::RingBuffer, 0, SAMPLES_BYTES),
            per_cpu(maps::SAMPLE_STATS, size_of::<SampleStats>(), 1),
            array(maps::WATCHING, size_of::<Watching>(), 1),
            (maps::WATCHED, MapKind::RingBuffer, 0, SAMPLES_BYTES),
            per_cpu(maps::WATCH_STATS, size_of::<SampleStats>(), 1),
            per_cpu(
                maps::CLASS_STATS,
                size_of::<ClassStats>(),
                self.vips << CLASS_COUNTERS_SHIFT,
            ),
            array(maps::RULE_TABLES, size_of::<RuleTables>(), 2),
            array(maps::RULES, size_of::<RuleState>(), RULE_NUMBERS.into()),
            per_cpu(
                maps::RULE_COUNTS,
                size_of::<RuleCounts>(),
                RULE_NUMBERS.into(),
            ),
        ]
        .into_iter()
        .map(|(name, kind, value_bytes, entries)| {
            let value_bytes = u32::try_from(value_bytes).unwrap_or(u32::MAX);
            (
                name,
                Shape {
                    kind,
                    value_bytes,
                    entries,
                },
            )
        })
        .collect()
    }
}

/// Whether a program forwards packets, or tells what would become of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Twin {
    Forwarding,
    Explaining,
}

/// Loads the program over the maps pinned in `pins`, and makes and pins those that are not.
pub(crate) fn load(sizes: &Sizes, pins: &Path, twin: Twin) -> Result<Ebpf, LoadError> {
    let hz = hz()?;
    let shift = flow::age_shift(hz);
    let idle = sizes.flow_idle_ticks(hz);
    let twin = match twin {
        Twin::Forwarding => objects::BALANCER,
        Twin::Explaining => objects::EXPLAIN,
    };
    let epoch_shift = challenge::epoch_shift(shift);
    let shift = u8::try_from(shift).unwrap_or(0);
    let flow_mask = sizes.flow_buckets - 1;
    let sketch_mask = sizes.sketch_cells - 1;
    let exact_v6_mask = sizes.exact_v6_buckets - 1;
    let sources_v6_mask = sizes.source_v6_buckets - 1;

    let mut loader = EbpfLoader::new();
    loader
        .override_global("AGE_SHIFT", &shift, true)
        .override_global("EPOCH_SHIFT", &epoch_shift, true)
        .override_global("FLOW_MASK", &flow_mask, true)
        .override_global("FLOW_IDLE", &idle, true)
        .override_global("SKETCH_MASK", &sketch_mask, true)
        .override_global("EXACT_V6_MASK", &exact_v6_mask, true)
        .override_global("SOURCES_V6_MASK", &sources_v6_mask, true);
    for (name, shape) in sizes.shapes() {
        loader
            .map_max_entries(name, shape.entries)
            .map_pin_path(name, pins.join(name));
    }
    let mut object = loader
        .load(twin)
        .map_err(|error| refused(error, |error| LoadError::Maps(Box::new(error))))?;
    program(&mut object)?
        .load()
        .map_err(|error| refused(error, |error| LoadError::Program(Box::new(error))))?;
    Ok(object)
}

/// Has the kernel verify the program, over maps of next to no size that go at once. Returns how long it took.
pub fn rehearse() -> Result<Duration, LoadError> {
    let begun = Instant::now();
    let mut loader = EbpfLoader::new();
    for (name, shape) in Sizes::any().shapes() {
        // A page at least.
        let entries = if shape.kind == MapKind::RingBuffer {
            1 << 16
        } else {
            1
        };
        loader.map_max_entries(name, entries);
    }
    let mut object = loader
        .load(objects::BALANCER)
        .map_err(|error| refused(error, |error| LoadError::Maps(Box::new(error))))?;
    program(&mut object)?
        .load()
        .map_err(|error| refused(error, |error| LoadError::Program(Box::new(error))))?;
    Ok(begun.elapsed())
}

/// The XDP program of a loaded object.
pub(crate) fn program(object: &mut Ebpf) -> Result<&mut Xdp, LoadError> {
    object
        .program_mut(PROGRAM)
        .ok_or(aya::programs::ProgramError::UnexpectedProgramType)
        .and_then(TryInto::try_into)
        .map_err(|error| LoadError::Program(Box::new(error)))
}

/// The shape of a pinned map.
pub(crate) fn shape(info: &MapInfo) -> Shape {
    let kind = match info.map_type() {
        Ok(MapType::Array) => MapKind::Array,
        Ok(MapType::PerCpuArray) => MapKind::PerCpuArray,
        Ok(MapType::RingBuf) => MapKind::RingBuffer,
        _ => MapKind::Other,
    };
    Shape {
        kind,
        value_bytes: info.value_size(),
        entries: info.max_entries(),
    }
}

/// Ticks of the kernel's clock in a second.
pub(crate) fn hz() -> Result<u32, LoadError> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|error| LoadError::Clock(error.into()))?;
    let tick_ns = Duration::from(tick).as_nanos().max(1);
    let hz = (1_000_000_000 + tick_ns / 2) / tick_ns;
    u32::try_from(hz).map_err(|error| LoadError::Clock(io::Error::other(error)))
}

/// The kernel's `jiffies` as they are now, give or take a few.
pub(crate) fn jiffies_now(hz: u32) -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    let ticks = monotonic_ticks(hz);
    let start = START.get_or_init(|| match read_jiffies() {
        Some(jiffies) => jiffies.wrapping_sub(ticks),
        // They start five minutes before their lower half overflows, so that what can't bear that shows early. A
        // machine that was suspended or moved is some ticks off.
        None => (1u64 << 32) - 300 * u64::from(hz),
    });
    start.wrapping_add(ticks)
}

fn monotonic_ticks(hz: u32) -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos() * u128::from(hz) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// What the kernel itself says, for root only.
fn read_jiffies() -> Option<u64> {
    let timers = File::open("/proc/timer_list").ok()?;
    let line = BufReader::new(timers)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.starts_with("jiffies: "))?;
    line.strip_prefix("jiffies: ")?.trim().parse().ok()
}

/// Tells apart what the kernel does not permit from what it cannot do.
fn refused<E: Error + Send + Sync + 'static>(
    error: E,
    otherwise: impl FnOnce(E) -> LoadError,
) -> LoadError {
    if is_denied(&error) {
        LoadError::NotPermitted {
            source: Box::new(error),
        }
    } else {
        otherwise(error)
    }
}

fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::PermissionDenied;
        }
        cause = error.source();
    }
    false
}
