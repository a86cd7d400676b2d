//! The maps. Their sizes here are defaults; the daemon sets those that the config names before it loads them.
//!
//! The kernel rounds each value up to eight bytes, so smaller ones share a value.

use aya_ebpf::{
    Global,
    btf_maps::{Array, PerCpuArray, RingBuf},
    macros::btf_map,
};

use crate::{
    abi::{
        AMPLIFIED_COUNTS, AddressEntry, Backend, CHALLENGED_SYNS, Challenge, ChallengeStats,
        ClassStats, Count, FlowStats, HANDSHAKE_WORDS, Limit, MAX_PROTECTED, PROOF_BUCKETS, Policy,
        RULE_NUMBERS, RuleCounts, RuleState, SKETCH_PAGE_CELLS, SLOTS_PER_WORD, Sample,
        SampleStats, Sampling, Service, Settings, Trace, Vip, VipStats, Watching,
    },
    decap::Prefix,
    exact,
    flow::WAYS,
    hash::Tuple,
    rules::{RuleTables, Search},
    sources,
};

/// The daemon maps these arrays into its memory, to write many entries without a system call each.
const MMAPABLE: usize = 1 << 10;

/// What can change at run time. Written by the daemon; read by every packet.
#[btf_map]
pub static SETTINGS: Array<Settings, 1, MMAPABLE> = Array::new();

/// Displacements of the VIP index: addresses of generation 0, of generation 1, services of 0, of 1, a quarter each.
#[btf_map]
pub static DISPLACEMENTS: Array<u32, 4096, MMAPABLE> = Array::new();

/// Addresses that have VIPs, half a generation each. Written by the daemon while the other half is in use.
#[btf_map]
pub static ADDRESSES: Array<AddressEntry, 4096, MMAPABLE> = Array::new();

/// Services beyond the first four of an address, half a generation each.
#[btf_map]
pub static SERVICES: Array<Service, 4096, MMAPABLE> = Array::new();

/// VIPs by number, from 1. Written by the daemon; packets write `disturbed`.
#[btf_map]
pub static VIPS: Array<Vip, 2048, MMAPABLE> = Array::new();

/// Policies by number; 0 has no limits.
#[btf_map]
pub static POLICIES: Array<Policy, 256, MMAPABLE> = Array::new();

/// Slots of all lookup tables. A new table is written into a free region, then its VIPs are switched to it.
#[btf_map]
pub static SLOTS: Array<[u16; SLOTS_PER_WORD], 2097152, MMAPABLE> = Array::new();

/// Backends by number. Written by the daemon.
#[btf_map]
pub static BACKENDS: Array<Backend, 32768, MMAPABLE> = Array::new();

/// Where each flow went first, so that it stays there while backends change.
///
/// Written on a flow's first packet that is no SYN; read on every later one, and by `sluice flows`. When a bucket is
/// full the flow least worth keeping makes room, and its next packet is balanced afresh.
#[btf_map]
pub static FLOWS: Array<[u64; WAYS], 131072, MMAPABLE> = Array::new();

/// Where the first seen fragment of each datagram went. The same buckets; the oldest makes room.
#[btf_map]
pub static FRAGMENTS: Array<[u64; WAYS], 2048> = Array::new();

/// The limiter's sketch: pages of four rows of theoretical arrival times. Cannot fill up: cells are shared.
#[btf_map]
pub static SKETCH: Array<[u64; SKETCH_PAGE_CELLS], 8192> = Array::new();

/// Gates of groups of sources, an eighth of the cells of a row: a source is looked for in the sketch only while its group
/// sends more than one source may. Its size is what a core's cache holds.
#[btf_map]
pub static GROUPS: Array<u64, 131072> = Array::new();

/// Whether exact limits of IPv4 prefixes are near an address: a bit for the first 21 bits. Most packets read nothing else.
#[btf_map]
pub static EXACT_V4_FILTER: Array<[u32; 2], { exact::V4_FILTER_WORDS as usize / 2 }, MMAPABLE> =
    Array::new();

/// Exact limits of IPv4 prefixes, by the first 24 bits: a limit's number, or a block.
#[btf_map]
pub static EXACT_V4: Array<[u32; 2], { exact::V4_ENTRIES as usize / 2 }, MMAPABLE> = Array::new();

/// Blocks of 256, for prefixes longer than 24 bits. When all are in use, such a limit is refused.
#[btf_map]
pub static EXACT_V4_BLOCKS: Array<[u32; 2], 16777216, MMAPABLE> = Array::new();

/// Which lengths of IPv6 prefixes have exact limits, by a hash of the first 32 bits.
#[btf_map]
pub static EXACT_V6_LENGTHS: Array<u32, { exact::V6_FILTER_ENTRIES as usize }, MMAPABLE> =
    Array::new();

/// Exact limits of IPv6 prefixes: buckets of tag 32 | limit 32. When a bucket is full, its limit is refused.
#[btf_map]
pub static EXACT_V6: Array<[u64; exact::V6_WAYS], 32768, MMAPABLE> = Array::new();

/// Exact limits by number, from 1; packets write their arrival times and counters.
#[btf_map]
pub static LIMITS: Array<Limit, 131072, MMAPABLE> = Array::new();

/// Whether sources near an IPv4 address are in any set: a bit for the first 21 bits. Most packets read nothing else.
#[btf_map]
pub static SOURCE_FILTER: Array<[u32; 2], { exact::V4_FILTER_WORDS as usize / 2 }, MMAPABLE> =
    Array::new();

/// Classes of IPv4 sources by the first 24 bits, or blocks.
#[btf_map]
pub static SOURCES: Array<[u32; 2], { exact::V4_ENTRIES as usize / 2 }, MMAPABLE> = Array::new();

/// Units of blocks for the last 8 bits. When there is no room, the set or prefix is refused.
#[btf_map]
pub static SOURCE_BLOCKS: Array<[u64; sources::UNIT_WORDS], 2097152, MMAPABLE> = Array::new();

/// Which prefix lengths IPv6 sources are in sets by: number of a list in `SOURCE_LENGTHS_V6`, by a hash of the first 32 bits.
#[btf_map]
pub static SOURCE_FILTER_V6: Array<[u32; 2], { sources::V6_FILTER as usize / 2 }, MMAPABLE> =
    Array::new();

/// Lists of prefix lengths, longest first, one more than they are; zero ends.
#[btf_map]
pub static SOURCE_LENGTHS_V6: Array<
    [u8; sources::V6_LENGTHS],
    { sources::V6_LISTS as usize },
    MMAPABLE,
> = Array::new();

/// Classes of IPv6 prefixes: buckets of tag 48 | class 16. When both of its buckets are full, the prefix is refused.
#[btf_map]
pub static SOURCES_V6: Array<[u64; sources::V6_WAYS], 65536, MMAPABLE> = Array::new();

/// The sets that sources of a class are in, a bit each.
#[btf_map]
pub static SOURCE_CLASSES: Array<u64, { sources::CLASSES as usize }, MMAPABLE> = Array::new();

/// Sets that do not hold for a VIP, because they are for another one; a bit each. Written by the daemon; read while any set
/// is for one VIP.
#[btf_map]
pub static SOURCE_SETS_OFF: Array<u64, 2048, MMAPABLE> = Array::new();

/// Packets by the class of their source, where one of its sets is of interest: class x (let in, dropped).
#[btf_map]
pub static SOURCE_STATS: PerCpuArray<Count, { sources::CLASSES as usize * 2 }> = PerCpuArray::new();

/// What a VIP's budget for TCP out of state has left, by VIP; each CPU has its share.
#[btf_map]
pub static BUDGETS: PerCpuArray<u64, 2048> = PerCpuArray::new();

/// SYNs that were let in lately, by the flow's hash; see [`crate::handshake`]. Of four the oldest makes room: what follows
/// it is charged to a budget, as if it had not been.
#[btf_map]
pub static HANDSHAKES: Array<u64, { HANDSHAKE_WORDS as usize }> = Array::new();

/// Sources that the host takes whatever the filter says. Unused ones hold no address.
#[btf_map]
pub static PROTECTED: Array<Prefix, { MAX_PROTECTED as usize }, MMAPABLE> = Array::new();

/// Answers that nobody asked for, by preset and mode.
#[btf_map]
pub static AMPLIFIED: PerCpuArray<Count, { AMPLIFIED_COUNTS as usize }> = PerCpuArray::new();

#[btf_map]
pub static VIP_STATS: PerCpuArray<VipStats, 2048> = PerCpuArray::new();

/// Packets to a VIP by class, whatever becomes of them after it is known, and the gates of its limits, which every packet
/// of a class passes as well: VIP x 8 + class.
#[btf_map]
pub static CLASS_STATS: PerCpuArray<ClassStats, 16384> = PerCpuArray::new();

#[btf_map]
pub static BACKEND_STATS: PerCpuArray<Count, 32768> = PerCpuArray::new();

/// Drops by VIP and reason: VIP x reasons x (enforced, monitored).
#[btf_map]
pub static DROPS: PerCpuArray<Count, 65536> = PerCpuArray::new();

#[btf_map]
pub static FLOW_STATS: PerCpuArray<FlowStats, 1> = PerCpuArray::new();

/// How SYNs of each VIP are challenged. Written by the daemon; packets write the times.
#[btf_map]
pub static CHALLENGES: Array<Challenge, 2048, MMAPABLE> = Array::new();

#[btf_map]
pub static CHALLENGE_STATS: PerCpuArray<ChallengeStats, 2048> = PerCpuArray::new();

/// The arrival time of resets that are looked at as answers to challenges, by VIP; each CPU has its share.
#[btf_map]
pub static CHALLENGE_GATE: PerCpuArray<u64, 2048> = PerCpuArray::new();

/// SYNs that were challenged in the last seconds, so that one that comes again is known. The oldest makes room: a client
/// whose SYN went waits for the next one it sends.
#[btf_map]
pub static CHALLENGED: Array<u64, { CHALLENGED_SYNS as usize / 2 }> = Array::new();

/// Sources that answered a challenge. Nobody enters who did not; the oldest of a bucket makes room, and is asked again.
#[btf_map]
pub static PROOFS: Array<[u64; WAYS], { PROOF_BUCKETS as usize }> = Array::new();

/// Which packets `sluice capture` wants. Written by it; read while `Settings::sampling_until` is not zero.
#[btf_map]
pub static SAMPLING: Array<Sampling, 1, MMAPABLE> = Array::new();

/// Samples on their way to `sluice capture`. When it does not keep up, new ones are lost, and counted.
#[btf_map]
pub static SAMPLES: RingBuf<Sample, 1048576> = RingBuf::new();

#[btf_map]
pub static SAMPLE_STATS: PerCpuArray<SampleStats, 1> = PerCpuArray::new();

/// Two generations of all rules: the daemon writes one while packets use the other.
#[btf_map]
pub static RULE_TABLES: Array<RuleTables, 2, MMAPABLE> = Array::new();

/// Rules by number; packets write the arrival times of those that limit.
#[btf_map]
pub static RULES: Array<RuleState, { RULE_NUMBERS as usize }, MMAPABLE> = Array::new();

#[btf_map]
pub static RULE_COUNTS: PerCpuArray<RuleCounts, { RULE_NUMBERS as usize }> = PerCpuArray::new();

/// The packet at hand, while its rules are looked for.
#[btf_map]
pub static RULE_SEARCH: PerCpuArray<Search, 1> = PerCpuArray::new();

/// How many samples the daemon takes at most. Written by it.
#[btf_map]
pub static WATCHING: Array<Watching, 1, MMAPABLE> = Array::new();

/// Samples on their way to the daemon. When it does not keep up, new ones are lost, and counted.
#[btf_map]
pub static WATCHED: RingBuf<Sample, 1048576> = RingBuf::new();

#[btf_map]
pub static WATCH_STATS: PerCpuArray<SampleStats, 1> = PerCpuArray::new();

/// Written by the explaining twin only.
#[btf_map]
pub static TRACE: Array<Trace, 1, MMAPABLE> = Array::new();

/// The flow that an ICMP error is about, on its way from one function to another.
#[btf_map]
pub static QUOTED: PerCpuArray<Tuple, 1> = PerCpuArray::new();

/// Right shift of jiffies to an age, by the kernel's HZ.
#[unsafe(no_mangle)]
pub static AGE_SHIFT: Global<u8> = Global::new(8);
/// Right shift of jiffies to an epoch of challenges, of some 64 seconds.
#[unsafe(no_mangle)]
pub static EPOCH_SHIFT: Global<u32> = Global::new(14);
/// Number of flow table buckets less one.
#[unsafe(no_mangle)]
pub static FLOW_MASK: Global<u32> = Global::new(131071);
/// Ticks of silence after which a proven flow expires.
#[unsafe(no_mangle)]
pub static FLOW_IDLE: Global<u16> = Global::new(880);
/// A quarter of the sketch's cells less one.
#[unsafe(no_mangle)]
pub static SKETCH_MASK: Global<u32> = Global::new(1048575);
/// Buckets of `EXACT_V6` less one.
#[unsafe(no_mangle)]
pub static EXACT_V6_MASK: Global<u32> = Global::new(32767);
/// Buckets of `SOURCES_V6` less one.
#[unsafe(no_mangle)]
pub static SOURCES_V6_MASK: Global<u32> = Global::new(65535);

/// Whether this program explains instead of forwarding.
#[inline(always)]
#[must_use]
pub const fn explaining() -> bool {
    crate::EXPLAINING
}

/// The settings. `None` cannot happen; the verifier wants it said.
#[inline(always)]
#[must_use]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}
