//! Types that cross the kernel boundary, in the order in which a packet meets them.
//!
//! Every one has a fixed size, no hidden padding, and no byte that the two sides could read differently.
//! [`ABI_VERSION`] is part of the pin directory's name; any change here raises it.

use bytemuck::{Pod, Zeroable};

use crate::{cookie::Clock, decap::Prefix};

/// Raised with every change to this file or to the meaning of a map.
pub const ABI_VERSION: u32 = 8;

/// Index of a VIP's counters for packets that are for no VIP. VIPs are numbered from 1.
pub const NO_VIP: u16 = 0;
/// A slot or flow without a backend. Backends are numbered from 0 to `NO_BACKEND - 1`.
pub const NO_BACKEND: u16 = SLOT_MOVED - 1;
/// In a slot of a lookup table, beside the backend: flows of this slot may be at another one, from before it changed.
pub const SLOT_MOVED: u16 = 1 << 15;
/// Any VIP, in [`Limit::vip`].
pub const ANY_VIP: u16 = u16::MAX;
/// In [`Service::vip`]: a port of the host itself, on an address whose VIP takes all others.
pub const HOST_VIP: u16 = u16::MAX - 1;

/// Generations of the VIP index: packets use one while the daemon writes the other.
pub const GENERATIONS: u32 = 2;
/// Services that stand in an address entry itself; more are found by [`Service`]'s hash.
pub const INLINE_SERVICES: usize = 4;
/// Distinct prefix lengths that VIPs of one family can have.
pub const MAX_VIP_LENGTHS: usize = 8;
/// Distinct prefix lengths that exact limits of IPv6 prefixes can have.
pub const MAX_EXACT_LENGTHS: usize = 16;
/// Classes that a policy limits.
pub const CLASSES: usize = 5;
/// Counters of a VIP in `CLASS_STATS`, as a shift: one for each class, and room so that a shift finds them.
pub const CLASS_COUNTERS_SHIFT: u32 = 3;
/// Limiters of one class: host pps, host bps, network pps, network bps.
pub const LIMITERS: usize = 4;
/// Rows of the limiter's sketch.
pub const SKETCH_ROWS: usize = 4;
/// Cells of a row of a page of the sketch, as a shift.
pub const SKETCH_PAGE_SHIFT: u32 = 7;
/// Cells of a page of the sketch: 4 KiB of them. A value of `SKETCH`.
pub const SKETCH_PAGE_CELLS: usize = SKETCH_ROWS << SKETCH_PAGE_SHIFT;
/// Cells of a row of the sketch for each group of sources, as a shift.
pub const GROUP_SHIFT: u32 = 3;
/// Fractions of a jiffy in which limits are counted: 2^28.
pub const JIFFY_BITS: u32 = 28;
/// Ticks of an age (about a second each) for which handshakes that began before a switch of tables may be under way.
pub const HANDSHAKE_TICKS: u32 = 5;
/// Slots in a value of `SLOTS`.
pub const SLOTS_PER_WORD: usize = 4;
/// Limits that one packet can meet in nested prefixes before the walk ends.
pub const MAX_CHAIN: usize = 16;

/// Prefixes whose answers a policy says were asked for.
pub const MAX_REPLIES: usize = 16;
/// Prefixes of sources that the host takes whatever the filter says.
pub const MAX_PROTECTED: u32 = 16;
/// Values of `HANDSHAKES`, each of four SYNs.
pub const HANDSHAKE_WORDS: u32 = 1 << 17;
/// Values of `AMPLIFIED`: each preset's, enforced and monitored.
pub const AMPLIFIED_COUNTS: u32 = 128;
/// Ticks after a SYN in which what follows it is not charged to the budget of what is out of state.
pub const HANDSHAKE_MEMORY_TICKS: u16 = 8;

/// An IPv4 address as IPv6 (RFC 4291, 2.5.5.2), or an IPv6 address; in network byte order.
pub type Address = [u8; 16];

/// Everything about the whole data plane that can change at run time. The only element of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Settings {
    /// Keys the choice of backends and flow table buckets. Equal on all load balancers of a fleet.
    pub flow_key: [u64; 4],
    /// Keys everything that is this machine's alone: sketch, fragments, exact limits of IPv6.
    pub local_key: [u64; 4],
    /// The generation that packets use: 0 or 1.
    pub active: u32,
    /// Non-zero if there is any exact limit: bit 0 IPv4, bit 1 IPv6, bit 2 one of the class `established`.
    pub exact: u32,
    pub generations: [Generation; 2],
    /// Prefix lengths of exact IPv6 limits by their bit in `EXACT_V6_LENGTHS`, zero if unused.
    pub exact_v6_lengths: [u8; MAX_EXACT_LENGTHS],
    /// Outer source of IPv4 tunnels: prefix bits, and a mask of the bits that the flow's hash fills. Host byte order.
    pub tunnel_source_v4: u32,
    pub tunnel_spread_v4: u32,
    /// Outer source of IPv6 tunnels: the hash fills the last 16 bits where the prefix leaves room.
    pub tunnel_source_v6: Address,
    pub tunnel_spread_v6: u32,
    /// CPUs that may run the program: the gates of a class share the limit of one source among them.
    pub cpus: u32,
    /// Until when samples of packets are taken, in jiffies: see [`Sampling`]. Zero: none are, and nothing else is read.
    pub sampling_until: u64,
    /// In which networks VIPs are, by a hash of 6 bits: a source of another is no VIP. See [`crate::sanity::network_bit`].
    pub vip_networks: u64,
    /// Packets of which the count, spread over all numbers, falls below this are samples for the daemon. Zero: none.
    pub watching: u64,
    /// `RULES_*` bits, written at once.
    pub rules: u32,
    /// Non-zero if any source is in a set: `SOURCES_*` bits. In one word with `rules`: packets ask for both at once.
    pub sources: u32,
    /// Keys the marks of SYN challenges, which strangers see.
    pub challenge_key: [u64; 2],
    /// How many resets to a VIP are looked at as answers to challenges, at most: each is a guess at a mark.
    pub challenge_answers: Limiter,
    /// What sets of sources are for, a bit for each set. Those that are allowed meet no deny, rule, challenge or limit.
    pub sets_allow: u64,
    pub sets_deny: u64,
    /// Counted as if they were denied.
    pub sets_monitor: u64,
    /// Keys SYN cookies. Equal on all load balancers of a fleet, and on its backends.
    pub cookie_key: [u64; 2],
    /// The time of day, which load balancers and backends take a cookie's epoch from.
    pub clock: Clock,
}

/// `Settings::sources` bits.
pub const SOURCES_V4: u32 = 1;
pub const SOURCES_V6: u32 = 2;
/// Some are allowed.
pub const SOURCES_ALLOW: u32 = 4;
/// Some sets are for one VIP.
pub const SOURCES_OF_VIPS: u32 = 8;

/// Sets that are always there, by their bit.
pub const SET_BOGONS: u8 = 0;
pub const SET_DENY: u8 = 1;
pub const SET_DENY_MONITOR: u8 = 2;
pub const SET_ALLOW: u8 = 3;

/// `Settings::rules`: the generation of rules that packets meet.
pub const RULES_GENERATION: u32 = 1;
/// `Settings::rules`: there are rules.
pub const RULES_ANY: u32 = 2;
/// `Settings::rules`: one of them is for proven flows too.
pub const RULES_ESTABLISHED: u32 = 4;
/// `Settings::rules`: one of them has SYNs challenged, of whatever VIP.
pub const RULES_CHALLENGE: u32 = 8;

/// `Settings::exact` bits.
pub const EXACT_V4: u32 = 1;
pub const EXACT_V6: u32 = 2;
pub const EXACT_ESTABLISHED: u32 = 4;

/// Seeds and sizes of one generation of the VIP index; see [`crate::vip`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Generation {
    pub address_seed: u64,
    pub service_seed: u64,
    /// Prefix lengths that addresses have, longest first, a byte each plus one (so that zero ends the list). IPv4 lengths count from 0 to 32.
    pub lengths_v4: u64,
    pub lengths_v6: u64,
    /// Number of address slots less one; a power of two less one.
    pub address_mask: u32,
    pub service_mask: u32,
    /// Number of displacements less one, for both tables.
    pub address_displacement_mask: u32,
    pub service_displacement_mask: u32,
    /// Where this generation's part of each map begins.
    pub address_base: u32,
    pub service_base: u32,
    pub address_displacement_base: u32,
    pub service_displacement_base: u32,
}

/// One address or prefix that has VIPs. Value of `ADDRESSES`; a free one has `id` 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AddressEntry {
    /// The prefix, in network byte order; IPv4 mapped.
    pub prefix: [u64; 2],
    /// Number of this address in its generation, from 1, 24 bits; part of the key of `SERVICES`.
    pub id: u32,
    /// Prefix length of the family.
    pub length: u8,
    /// 4 or 6.
    pub family: u8,
    /// VIP whose policy and counters stand for ICMP to this address.
    pub icmp_vip: u16,
    /// VIPs that take fragments without ports of TCP and of UDP; `NO_VIP` if none.
    pub tcp_fragment_vip: u16,
    pub udp_fragment_vip: u16,
    /// Non-zero if more services than `services` are in `SERVICES`.
    pub more: u32,
    /// Most specific first; unused ones have `NO_VIP`.
    pub services: [Service; INLINE_SERVICES],
}

/// One protocol and port of an address. In an address entry, and value of `SERVICES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Service {
    /// Id of the address in the upper 24 bits; protocol (6, 17, or 0 for both) in the lower 8.
    pub address_and_protocol: u32,
    /// In host byte order; zero means all.
    pub port: u16,
    pub vip: u16,
}

/// Where a VIP's slots lie in `SLOTS`, and how its packets are treated. Value of `VIPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Vip {
    /// The lookup table in use: first slot in the lower half, number of slots in the upper; written at once. Zero: no backend.
    pub table: u64,
    /// The table before the last switch, for the handshakes that were under way.
    pub previous_table: u64,
    /// When the tables were switched, in jiffies.
    pub switched: u64,
    /// Index into `POLICIES`; 0 has no limits.
    pub policy: u16,
    /// Largest packet that fits the path to the backends, outer headers included, in bytes of L3.
    pub mtu_bytes: u16,
    /// `VIP_*` bits.
    pub flags: u32,
    /// Jiffies of the last packet over a limit of this VIP. No flow is proven soon after.
    pub disturbed: u64,
    /// Sanity checks, a bit each: those that drop, and those that only count.
    pub sanity_enforce: u32,
    pub sanity_monitor: u32,
    /// `FILTER_*` bits: the stages of the filter that have work for this VIP.
    pub filter: u32,
    /// How SYNs are answered. Zero: they are forwarded.
    pub syn: u32,
    /// What an answer with a cookie says.
    pub answer: SynAnswer,
}

/// `Vip::filter`: answers of services that are abused to amplify are looked for.
pub const FILTER_AMPLIFICATION: u32 = 1;
/// `Vip::filter`: TCP out of state has a budget.
pub const FILTER_OUT_OF_STATE: u32 = 2;
/// `Vip::filter`: there are sources that the host takes whatever the filter says.
pub const FILTER_PROTECTED: u32 = 4;
/// `Vip::filter`: its packets meet no rules.
pub const FILTER_RULES_OFF: u32 = 1 << 8;
/// `Vip::filter`: rules only count its packets.
pub const FILTER_RULES_MONITOR: u32 = 1 << 9;

/// `Vip::filter`: its packets meet no sets of sources, but for bogons.
pub const FILTER_SETS_OFF: u32 = 1 << 10;
/// `Vip::filter`: sets that are denied only count its packets, bogons too.
pub const FILTER_SETS_MONITOR: u32 = 1 << 11;
/// `Vip::filter`: sources that nobody on the internet has are denied.
pub const FILTER_BOGONS: u32 = 1 << 12;
/// `Vip::filter`: they are only counted.
pub const FILTER_BOGONS_MONITOR: u32 = 1 << 13;
/// `Vip::filter`: fragments are dropped.
pub const FILTER_FRAGMENTS: u32 = 1 << 14;
/// `Vip::filter`: they are only counted.
pub const FILTER_FRAGMENTS_MONITOR: u32 = 1 << 15;

/// `Vip::flags`: slots are chosen by source address only.
pub const VIP_HASH_SOURCE: u32 = 1;
/// `Vip::flags`: flows may be at backends of a table that the VIP had before.
pub const VIP_MOVED: u32 = 2;
/// `Vip::flags`: TCP that no backend takes is answered with a reset.
pub const VIP_RESET: u32 = 4;
/// `Vip::flags`: from this bit on, a bit for each class that the policy limits.
pub const VIP_CLASSES_SHIFT: u32 = 8;

/// `Vip::syn`: challenged while more SYNs come than [`Challenge::rate`] allows.
pub const SYN_AUTO: u32 = 1;
/// `Vip::syn`: always challenged.
pub const SYN_ALWAYS: u32 = 2;
/// `Vip::syn`: what would be challenged is counted, and forwarded.
pub const SYN_MONITOR: u32 = 4;
/// `Vip::syn`: answered with a cookie instead of a challenge. Alone: where a rule wants one.
pub const SYN_COOKIE: u32 = 8;

/// What answers with a cookie say of the backends, which are to say the same. In [`Vip`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SynAnswer {
    /// Largest segment that may come, in bytes.
    pub mss: u16,
    /// Bytes that may come at first.
    pub window: u16,
    /// What windows are shifted by after that.
    pub window_scale: u8,
    /// `ANSWER_*` bits.
    pub options: u8,
    pub pad: u16,
}

/// `SynAnswer::options`: takes selective acknowledgements (RFC 2018).
pub const ANSWER_SACK: u8 = 1;
/// `SynAnswer::options`: uses timestamps (RFC 7323).
pub const ANSWER_TIMESTAMPS: u8 = 2;
/// `SynAnswer::options`: takes marks of congestion (RFC 3168).
pub const ANSWER_ECN: u8 = 4;

/// How a VIP's SYNs are challenged. Value of `CHALLENGES`; one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Challenge {
    /// SYNs that are forwarded as they come, by [`SYN_AUTO`].
    pub rate: Limiter,
    /// What is let in unproven: SYNs that came again. With [`SYN_COOKIE`]: packets of no known flow that show no cookie, if the
    /// policy has no budget for what is out of state.
    pub again: Limiter,
    /// Jiffies that challenges go on for after the last SYN above `rate`.
    pub hold: u64,
    /// The arrival times of `rate` and `again`, and until when `rate` is exceeded, in jiffies. Written by packets.
    pub rate_tat: u64,
    pub again_tat: u64,
    pub until: u64,
}

/// Buckets of `PROOFS`: room for 131,072 sources, in 1 MiB, which stays in a core's cache.
pub const PROOF_BUCKETS: u32 = 1 << 14;
/// SYNs that `CHALLENGED` remembers, two in a value; 16 MiB.
pub const CHALLENGED_SYNS: u32 = 1 << 22;

/// What became of a VIP's SYNs, and of what answers challenges and cookies. Value of `CHALLENGE_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ChallengeStats {
    /// All SYNs that came as far.
    pub syns: u64,
    /// SYNs that were let in for their source's proof.
    pub let_in: u64,
    /// SYNs that were let in because they came again.
    pub again: u64,
    /// Resets that proved their source.
    pub proved: u64,
    /// Resets that did not.
    pub failed: u64,
    /// Resets that nobody looked at: too many came.
    pub capped: u64,
    /// SYNs that were answered with a challenge.
    pub sent: Count,
    /// SYNs that would have been.
    pub monitored: Count,
    /// SYNs that were answered with a cookie.
    pub cookies: Count,
    /// Packets that showed a good cookie: each begins a proven flow.
    pub taken: u64,
    /// Packets of no known flow that showed none, while SYNs were answered with cookies.
    pub refused: u64,
}

/// One backend reached in one way. Value of `BACKENDS`; one cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// MAC addresses as they stand in the frame: next hop, then our own.
    pub macs: [u8; 12],
    /// A [`Forward`] as a number.
    pub forward: u8,
    /// `BACKEND_*` bits.
    pub flags: u8,
    /// Largest packet on the egress link, in bytes of L3.
    pub mtu_bytes: u16,
    pub outer_destination: Address,
    /// Outer source for `gue`; for `ipip` the spread source of [`Settings`] is used.
    pub outer_source: Address,
    pub ifindex: u32,
    /// VLAN of the egress, in host byte order; 0 if untagged.
    pub vlan: u16,
    /// 4 or 6: family of the outer addresses.
    pub family: u8,
    pub pad: [u8; 9],
}

/// `Backend::flags`: takes packets of flows that it has (up or draining).
pub const BACKEND_FORWARDS: u8 = 1;
/// `Backend::flags`: the next hop is known.
pub const BACKEND_RESOLVED: u8 = 2;

/// How a packet reaches its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Forward {
    L2 = 0,
    Ipip = 1,
    Gue = 2,
    Local = 3,
}

/// Classes that limits apply to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    Syn = 0,
    Udp = 1,
    Icmp = 2,
    Other = 3,
    Established = 4,
}

/// Limits per source of one policy. Value of `POLICIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Policy {
    /// Prefix lengths, as masks of the first 64 bits of the address for IPv6 (`[0]`, `[1]`) and of all 32 for IPv4.
    pub host_mask_v6: [u64; 2],
    pub network_mask_v6: [u64; 2],
    pub host_mask_v4: u32,
    pub network_mask_v4: u32,
    pub pad: u32,
    /// Non-zero: count only.
    pub monitor: u32,
    pub limiters: [[Limiter; LIMITERS]; CLASSES],
    /// Presets of [`crate::amplification`], a bit each: those that drop, and those that only count.
    pub amplification_enforce: u64,
    pub amplification_monitor: u64,
    pub replies: [Replies; MAX_REPLIES],
    /// What may come to one VIP of TCP that is neither a SYN nor of a known flow.
    pub out_of_state: Limiter,
    /// Non-zero: count only.
    pub out_of_state_monitor: u64,
    /// By class: what all sources together may send while none of them can be over a limit. Made of `limiters`, those of
    /// packets and those of bytes: see [`Self::with_gates`].
    pub gates: [[Limiter; GATES]; CLASSES],
}

impl Policy {
    /// The same with its gates: they open as soon as that of any single limiter would.
    #[cfg(not(target_arch = "bpf"))]
    #[must_use]
    pub fn with_gates(mut self) -> Self {
        for (gates, limiters) in self.gates.iter_mut().zip(&self.limiters) {
            for (at, gate) in gates.iter_mut().enumerate() {
                let on = || {
                    let of_unit = limiters.iter().skip(at).step_by(GATES);
                    of_unit.filter(|limiter| limiter.cost != 0)
                };
                *gate = Limiter {
                    cost: on().map(|limiter| limiter.cost).max().unwrap_or(0),
                    allowance: on().map(|limiter| limiter.allowance).min().unwrap_or(0),
                };
            }
        }
        self
    }
}

/// Gates of a class: for packets, and for bytes.
pub const GATES: usize = 2;

/// Packets to a VIP of one class on one CPU, and how far they are ahead at the class's gates. Value of `CLASS_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ClassStats {
    pub count: Count,
    pub gates: [u64; GATES],
}

/// Answers that backends asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Replies {
    /// Whose.
    pub prefix: Prefix,
    /// A bit for each preset. Zero: unused.
    pub presets: u64,
}

/// A token bucket's constants, in units of 2^-28 jiffies. All zero: off.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limiter {
    /// Cost of a packet, or of a byte where the limiter counts bits.
    pub cost: u64,
    /// How far the theoretical arrival time may run ahead of now.
    pub allowance: u64,
}

/// An exact limit for one prefix: constants on the first cache line, what packets write on the second. Value of `LIMITS`; index 0 is unused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Limit {
    /// The prefix, IPv4 mapped, in network byte order.
    pub prefix: [u64; 2],
    pub packets: Limiter,
    pub bytes: Limiter,
    /// Next limit to try if this one does not match: of the same prefix, or of the closest that covers it. 0 ends.
    pub next: u32,
    /// VIP that it is for, or `ANY_VIP`.
    pub vip: u16,
    /// Bit for each class. One that has ceased has none of these: the bits from `CLASSES` on tell what it was for.
    pub classes: u8,
    /// Bit 7: count only. The rest is the prefix length in IPv6 terms less one (an IPv4 /0 is 95).
    pub length_and_mode: u8,
    pub pad: u64,
    pub packets_tat: u64,
    pub bytes_tat: u64,
    pub passed_packets: u64,
    pub passed_bytes: u64,
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
    pub pad2: [u64; 2],
}

/// `Limit::length_and_mode`: count only.
pub const LIMIT_MONITOR: u8 = 0x80;

/// Rules that there can be at a time, and some whose numbers are about to be free.
pub const RULE_NUMBERS: u16 = 2048;

/// What a rule limits, and what of it packets write; one cache line. Value of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleState {
    /// The daemon's; 0 is free.
    pub id: u64,
    pub packets: Limiter,
    pub bytes: Limiter,
    pub packets_tat: u64,
    pub bytes_tat: u64,
    pub pad: u64,
}

/// Packets that a rule meant, by what it did with them. Value of `RULE_COUNTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleCounts {
    pub passed: Count,
    /// In monitor mode: would have been.
    pub dropped: Count,
}

/// How many samples the daemon takes at most. The only element of `WATCHING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Watching {
    pub rate: Limiter,
    /// As in [`Sampling`].
    pub rate_tat: u64,
}

/// Packets and bytes (from the IP header on). Value of `BACKEND_STATS` and `DROPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// What became of a VIP's packets, drops aside. Value of `VIP_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct VipStats {
    pub pass: Count,
    pub tx: Count,
    pub redirect: Count,
    /// TCP that was neither SYN nor of a known flow.
    pub out_of_state: u64,
    /// Flows that entered the flow table.
    pub inserts: u64,
}

/// Figures of the flow table. Value of `FLOW_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowStats {
    pub evicted_expired: u64,
    pub evicted_unproven: u64,
    pub evicted_idle: u64,
    /// New flows that found their bucket full of live, proven flows.
    pub refused: u64,
}

/// What the explaining twin of the program tells of one packet. The only element of `TRACE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Trace {
    /// Numbers of [`Step`]s, in order.
    pub steps: [u8; 32],
    pub count: u32,
    pub vip: u16,
    pub backend: u16,
    /// A [`DropReason`] plus one, or zero.
    pub reason: u32,
    /// Exact limit that the packet met, or zero.
    pub limit: u32,
    /// Number of the last rule that meant it, plus one; or zero.
    pub rule: u32,
    pub pad: u32,
    /// The sets that decided about the packet for its source, a bit each.
    pub sets: u64,
}

/// Bytes of a frame that a sample holds at most.
pub const SAMPLE_BYTES: usize = 256;

/// Which packets are sampled. The only element of `SAMPLING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sampling {
    /// How many samples at most, whatever comes.
    pub rate: Limiter,
    /// The arrival time of `rate`. Written by packets; without care for other CPUs, which costs a few samples more.
    pub rate_tat: u64,
    /// Where either address of the innermost IP header must lie; all zero: anywhere.
    pub prefix: Prefix,
    /// One of so many.
    pub every: u32,
    /// A bit for each number that an XDP program can return.
    pub actions: u32,
    /// A bit for each drop reason; of dropped packets only.
    pub reasons: u64,
    /// VIP, or `ANY_VIP`.
    pub vip: u16,
    pub pad: [u16; 3],
}

/// What became of the packets that were to be sampled. Value of `SAMPLE_STATS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SampleStats {
    /// Those that [`Sampling`] describes.
    pub matched: u64,
    pub taken: u64,
    /// Not taken because of the rate.
    pub capped: u64,
    /// Not taken because nobody had read those before.
    pub lost: u64,
}

/// A packet as it was when the program was done with it. In `SAMPLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Sample {
    /// Of the kernel's monotonic clock.
    pub time_ns: u64,
    pub frame_bytes: u32,
    /// How much of it is here.
    pub sampled_bytes: u32,
    /// Where it came in.
    pub ifindex: u32,
    pub vip: u16,
    pub backend: u16,
    /// What the program returned.
    pub action: u8,
    /// A [`DropReason`] plus one, or zero.
    pub reason: u8,
    pub pad: [u8; 6],
    pub frame: [u8; SAMPLE_BYTES],
}

macro_rules! numbered {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word for it in metrics, the CLI and the reference.
            #[cfg(not(target_arch = "bpf"))]
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

numbered! {
    /// Why a packet was dropped. The number is the index in `DROPS`, the word is the metric's label.
    DropReason {
        /// The frame ends before the headers that it promises, or before the length in its IP header.
        Truncated = "truncated",
        /// A header length or total length that cannot be.
        MalformedHeader = "malformed_header",
        /// More IPv6 extension headers, or longer ones, than we follow.
        Ipv6Extensions = "ipv6_extensions",
        /// A fragment that carries no TCP or UDP.
        FragmentProtocol = "fragment_protocol",
        /// An ICMP error that quotes nothing that a backend of this VIP could have sent.
        IcmpQuote = "icmp_quote",
        /// Over an exact limit.
        LimitExact = "limit_exact",
        /// Over the policy's limit for one source host.
        LimitHost = "limit_host",
        /// Over the policy's limit for one source network.
        LimitNetwork = "limit_network",
        /// The VIP's pool has no backend that takes new flows.
        NoBackend = "no_backend",
        /// The backend's next hop is not known.
        BackendUnresolved = "backend_unresolved",
        /// Does not fit the path to the backend, and no ICMP error may be sent for it.
        TooBig = "too_big",
        /// The kernel gave no room for the outer headers.
        Headroom = "headroom",
        /// TCP flags that no stack sends.
        TcpFlags = "tcp_flags",
        /// From the address that it is for.
        Land = "land",
        /// From an address that nobody can have.
        SourceInvalid = "source_invalid",
        /// From an address of a VIP.
        SourceVip = "source_vip",
        /// TCP or UDP from or to port 0.
        PortZero = "port_zero",
        /// A SYN with data.
        SynData = "syn_data",
        /// A first fragment that does not hold the whole TCP header.
        FragmentTiny = "fragment_tiny",
        /// A fragment that overwrites the first one's TCP header.
        FragmentOverlap = "fragment_overlap",
        /// A fragment of a length that cannot be there.
        FragmentLength = "fragment_length",
        /// A fragment to a VIP whose policy wants none.
        Fragment = "fragment",
        /// An answer of a service that is abused to amplify, which nobody asked for.
        Amplification = "amplification",
        /// TCP that is neither a SYN nor of a known flow, over the VIP's budget.
        OutOfState = "out_of_state",
        /// A rule says so, or the packet is over a rule's limit.
        Rule = "rule",
        /// A reset that answers a SYN challenge: what it was to tell is known now.
        ChallengeAnswer = "challenge_answer",
        /// A SYN with a wrong checksum, which is not challenged.
        SynChecksum = "syn_checksum",
        /// Its source is in a set that is denied.
        Deny = "deny",
        /// Its source is an address that nobody on the internet has.
        Bogon = "bogon",
        /// TCP of no known flow without a good cookie, over the budget for such, while the VIP's SYNs are answered with cookies.
        Cookie = "cookie",
    }
}

/// Number of drop reasons.
pub const DROP_REASONS: u32 = DropReason::ALL.len() as u32;

numbered! {
    /// Sanity checks: the number is that of the bit in [`Vip::sanity_enforce`], the word is that of the drop reason.
    Check {
        TcpFlags = "tcp_flags",
        Land = "land",
        SourceInvalid = "source_invalid",
        SourceVip = "source_vip",
        PortZero = "port_zero",
        SynData = "syn_data",
        FragmentTiny = "fragment_tiny",
        FragmentOverlap = "fragment_overlap",
        FragmentLength = "fragment_length",
    }
}

impl Check {
    #[inline(always)]
    #[must_use]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Of the first check in these bits, which has the reason for all of them.
    #[inline(always)]
    #[must_use]
    pub const fn reason(bits: u32) -> DropReason {
        if bits & Self::TcpFlags.bit() != 0 {
            DropReason::TcpFlags
        } else if bits & Self::Land.bit() != 0 {
            DropReason::Land
        } else if bits & Self::SourceInvalid.bit() != 0 {
            DropReason::SourceInvalid
        } else if bits & Self::SourceVip.bit() != 0 {
            DropReason::SourceVip
        } else if bits & Self::PortZero.bit() != 0 {
            DropReason::PortZero
        } else if bits & Self::SynData.bit() != 0 {
            DropReason::SynData
        } else if bits & Self::FragmentTiny.bit() != 0 {
            DropReason::FragmentTiny
        } else if bits & Self::FragmentOverlap.bit() != 0 {
            DropReason::FragmentOverlap
        } else {
            DropReason::FragmentLength
        }
    }
}

numbered! {
    /// What the program did with a packet, for `sluice explain`.
    Step {
        NotIp = "not IPv4 or IPv6: passed to the host",
        NotVipAddress = "destination is no VIP: passed to the host",
        NotVipService = "protocol or port is no VIP of this address: passed to the host",
        Address = "destination is an address with VIPs",
        Vip = "VIP found",
        Malformed = "headers cannot be read",
        Echo = "ICMP echo request: answered",
        OtherIcmp = "ICMP that is neither error nor echo request: passed to the host",
        IcmpError = "ICMP error: steered by the packet that it quotes",
        FirstFragment = "first fragment: its backend is remembered for the others",
        LaterFragment = "later fragment: has no ports",
        FragmentKnown = "another fragment of this datagram chose the backend",
        FlowProven = "known flow, proven",
        FlowUnproven = "known flow, not proven yet",
        FlowUnknown = "no known flow",
        FlowBackendGone = "the flow's backend does not forward any more",
        LimitExact = "met an exact limit",
        LimitSource = "met the policy's limits",
        OverLimit = "over a limit",
        Monitored = "would have been dropped by what only counts",
        Chosen = "backend chosen from the lookup table",
        ChosenPrevious = "handshake under way: backend chosen from the previous lookup table",
        Remembered = "flow remembered",
        TooBig = "does not fit the path to the backend",
        L2 = "forwarded by l2",
        Ipip = "forwarded by ipip",
        Gue = "forwarded by gue",
        Local = "forwarded to the host itself",
        Reset = "no backend: answered with a reset",
        Sanity = "headers that make no sense",
        Fragment = "a fragment, and the VIP's policy wants none",
        Amplification = "an answer of a service that is abused to amplify",
        AmplifiedFragment = "another fragment of this datagram was such an answer",
        OverBudget = "over the VIP's budget for what is out of state",
        Protected = "the host's own: passed to it before the filter",
        RuleMatched = "a rule means it",
        RulePassed = "a rule lets it pass challenge and limits",
        Challenged = "SYN answered with a challenge",
        ChallengeMonitored = "SYN would have been challenged",
        SourceProven = "source answered a challenge: SYN let in",
        SynAgain = "SYN came again after its challenge: let in",
        ChallengeAnswer = "reset answers a challenge: its source is proven",
        FlowOfProof = "flow of a proven source: remembered as proven",
        SourceAllowed = "its source is in a set that is allowed: it meets no deny, rule or limit",
        SourceDenied = "its source is in a set that is denied",
        CookieSent = "SYN answered with a cookie",
        CookieGood = "shows a good cookie: its flow is proven",
        CookieBad = "shows no good cookie",
    }
}

/// Names of the maps, as they are pinned.
pub mod maps {
    pub const SETTINGS: &str = "SETTINGS";
    pub const DISPLACEMENTS: &str = "DISPLACEMENTS";
    pub const ADDRESSES: &str = "ADDRESSES";
    pub const SERVICES: &str = "SERVICES";
    pub const VIPS: &str = "VIPS";
    pub const POLICIES: &str = "POLICIES";
    pub const SLOTS: &str = "SLOTS";
    pub const BACKENDS: &str = "BACKENDS";
    pub const FLOWS: &str = "FLOWS";
    pub const FRAGMENTS: &str = "FRAGMENTS";
    pub const SKETCH: &str = "SKETCH";
    pub const GROUPS: &str = "GROUPS";
    pub const EXACT_V4_FILTER: &str = "EXACT_V4_FILTER";
    pub const EXACT_V4: &str = "EXACT_V4";
    pub const EXACT_V4_BLOCKS: &str = "EXACT_V4_BLOCKS";
    pub const EXACT_V6_LENGTHS: &str = "EXACT_V6_LENGTHS";
    pub const EXACT_V6: &str = "EXACT_V6";
    pub const LIMITS: &str = "LIMITS";
    pub const BUDGETS: &str = "BUDGETS";
    pub const HANDSHAKES: &str = "HANDSHAKES";
    pub const PROTECTED: &str = "PROTECTED";
    pub const AMPLIFIED: &str = "AMPLIFIED";
    pub const VIP_STATS: &str = "VIP_STATS";
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    pub const DROPS: &str = "DROPS";
    pub const FLOW_STATS: &str = "FLOW_STATS";
    pub const SAMPLING: &str = "SAMPLING";
    pub const SAMPLES: &str = "SAMPLES";
    pub const SAMPLE_STATS: &str = "SAMPLE_STATS";
    pub const WATCHING: &str = "WATCHING";
    pub const WATCHED: &str = "WATCHED";
    pub const WATCH_STATS: &str = "WATCH_STATS";
    pub const CLASS_STATS: &str = "CLASS_STATS";
    pub const RULE_TABLES: &str = "RULE_TABLES";
    pub const RULES: &str = "RULES";
    pub const RULE_COUNTS: &str = "RULE_COUNTS";
    pub const SOURCE_FILTER: &str = "SOURCE_FILTER";
    pub const SOURCES: &str = "SOURCES";
    pub const SOURCE_BLOCKS: &str = "SOURCE_BLOCKS";
    pub const SOURCE_LENGTHS_V6: &str = "SOURCE_LENGTHS_V6";
    pub const SOURCE_FILTER_V6: &str = "SOURCE_FILTER_V6";
    pub const SOURCES_V6: &str = "SOURCES_V6";
    pub const SOURCE_CLASSES: &str = "SOURCE_CLASSES";
    pub const SOURCE_SETS_OFF: &str = "SOURCE_SETS_OFF";
    pub const SOURCE_STATS: &str = "SOURCE_STATS";
    pub const TRACE: &str = "TRACE";
    pub const CHALLENGES: &str = "CHALLENGES";
    pub const CHALLENGE_STATS: &str = "CHALLENGE_STATS";
    pub const CHALLENGE_GATE: &str = "CHALLENGE_GATE";
    pub const CHALLENGED: &str = "CHALLENGED";
    pub const PROOFS: &str = "PROOFS";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_the_reason_of_its_name() {
        for check in Check::ALL {
            assert_eq!(Check::reason(check.bit()).word(), check.word());
        }
    }

    #[test]
    fn sizes_are_what_the_pinned_maps_hold() {
        let sizes = [
            size_of::<Generation>(),
            size_of::<AddressEntry>(),
            size_of::<Service>(),
            size_of::<Vip>(),
            size_of::<Backend>(),
            size_of::<Policy>(),
            size_of::<Limit>(),
            size_of::<Count>(),
            size_of::<VipStats>(),
            size_of::<Trace>(),
            size_of::<Settings>(),
            size_of::<Sampling>(),
            size_of::<SampleStats>(),
            size_of::<Sample>(),
            size_of::<RuleState>(),
            size_of::<RuleCounts>(),
            size_of::<Watching>(),
            size_of::<ClassStats>(),
            size_of::<Challenge>(),
            size_of::<ChallengeStats>(),
        ];
        let expected = [
            64, 64, 8, 64, 64, 1208, 128, 16, 64, 64, 368, 80, 32, 288, 64, 32, 24, 32, 64, 112,
        ];
        assert_eq!(sizes, expected);
    }
}
