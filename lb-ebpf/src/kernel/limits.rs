//! Limits per source: exact ones for prefixes that the operator named, and the policy's for everybody else.
//!
//! The policy's limits live in a sketch of fixed size: a source has a cell in each of four rows of a page, and is over its
//! limit only if all four say so. Spoofed sources cannot evict anything; what is dropped writes nothing: see `sketch.rs`.

use super::{
    again, atomic_add, compare_exchange, count, element,
    maps::{
        CLASS_STATS, EXACT_V4, EXACT_V4_BLOCKS, EXACT_V4_FILTER, EXACT_V6, EXACT_V6_LENGTHS,
        EXACT_V6_MASK, GROUPS, LIMITS, POLICIES, SKETCH, SKETCH_MASK, VIPS, explaining, settings,
    },
};
use crate::{
    abi::{
        self, ANY_VIP, CLASS_COUNTERS_SHIFT, CLASSES, Class, ClassStats, DropReason,
        EXACT_ESTABLISHED, EXACT_V4 as HAS_V4, EXACT_V6 as HAS_V6, LIMIT_MONITOR, LIMITERS, Limit,
        Limiter, MAX_CHAIN, MAX_EXACT_LENGTHS, Policy, SKETCH_PAGE_CELLS, SKETCH_ROWS, Settings,
        Step, VIP_CLASSES_SHIFT, Vip,
    },
    exact,
    flow::tag,
    gcra, hide,
    sketch::{Cell, Hashes, Memory, least, raise},
    vip::masked,
};

/// The gate opens the sketch at this part of a source's allowance.
const GATE_SHIFT: u32 = 2;

/// Who sends how much of what, to whom.
#[derive(Clone, Copy)]
pub struct Sender {
    /// Source address as words in memory.
    pub source: [u64; 2],
    pub v6: bool,
    pub class: Class,
    pub vip: u16,
    /// Bytes from the IP header on.
    pub length: u32,
    pub jiffies: u64,
    /// Where its class is counted; may be null.
    pub stats: *mut ClassStats,
    /// Whether it is worth to be spared a call.
    pub plain: bool,
}

/// Lets a packet pass, or says which limit it is over.
#[inline(always)]
pub fn admit(settings: &Settings, sender: &Sender, vip: &Vip) -> Result<(), DropReason> {
    let exact = settings.exact & if sender.v6 { HAS_V6 } else { HAS_V4 } != 0
        && (!matches!(sender.class, Class::Established) || settings.exact & EXACT_ESTABLISHED != 0)
        && (sender.v6 || is_near_v4(sender.source));
    let policy = vip.flags >> VIP_CLASSES_SHIFT >> sender.class as u32 & 1 != 0;
    if !exact && !policy {
        return Ok(());
    }
    let what = u64::from(vip.policy) << POLICY_SHIFT
        | u64::from(sender.length) << 32
        | u64::from(sender.vip) << 16
        | u64::from(sender.v6) << 8
        | sender.class as u64;
    let [high, low] = sender.source;
    let mut over = 0;
    if exact {
        over = sluice_over_exact(high, low, what, sender.jiffies);
    }
    if over == 0 && policy {
        let open = if sender.plain {
            is_gate_open(settings, sender, vip)
        } else {
            sluice_is_gate_open(what, sender.jiffies)
        };
        if open {
            over = over_policy(sender, what);
        }
    }
    if over == 0 {
        return Ok(());
    }
    count::note(Step::OverLimit);
    Err(match over - 1 {
        EXACT => DropReason::LimitExact,
        HOST => DropReason::LimitHost,
        _ => DropReason::LimitNetwork,
    })
}

/// In the argument `what` of the functions below, which tells them all about a sender but the address: the VIP's policy.
const POLICY_SHIFT: u32 = 56;
/// In the same: limiters, as bits.
const OPEN_IN: u32 = 9;
const EXACT: u32 = DropReason::LimitExact as u32;
const HOST: u32 = DropReason::LimitHost as u32;

/// The number of the drop reason plus one, or zero.
///
/// A global function: the verifier checks it once for all numbers, instead of once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_over_exact(high: u64, low: u64, what: u64, jiffies: u64) -> u32 {
    let Some((settings, asked)) = asked(high, low, what, jiffies) else {
        return 0;
    };
    verdict(check_exact(settings, &asked), &asked)
}

/// Counts a packet at the gates of its class, and tells whether so much came that a source could be over a limit.
///
/// While a VIP's whole traffic of a class is below what one source may send, nobody can be, and all that follows is
/// saved. Each CPU has its share of that.
#[inline(always)]
fn is_gate_open(settings: &Settings, sender: &Sender, vip: &Vip) -> bool {
    let (Some(policy), false) = (POLICIES.get(vip.policy.into()), sender.stats.is_null()) else {
        return false;
    };
    // SAFETY: `class` is below `CLASSES`.
    let gates = unsafe { &*policy.gates.as_ptr().add(sender.class as usize) };
    opens_any(gates, sender.stats, settings, sender.length, sender.jiffies)
}

/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_is_gate_open(what: u64, jiffies: u64) -> bool {
    let Some((settings, asked)) = asked(0, 0, what, jiffies) else {
        return false;
    };
    let index = u32::from(asked.vip) << CLASS_COUNTERS_SHIFT | what as u32 & 7;
    let (Some(policy), Some(stats)) = (POLICIES.get(asked.policy), CLASS_STATS.get_ptr_mut(index))
    else {
        return false;
    };
    // SAFETY: `class` is below `CLASSES`.
    let gates = unsafe { &*policy.gates.as_ptr().add(asked.class) };
    opens_any(gates, stats, settings, asked.length, jiffies)
}

#[inline(always)]
fn opens_any(
    gates: &[Limiter; abi::GATES],
    stats: *mut ClassStats,
    settings: &Settings,
    length: u32,
    jiffies: u64,
) -> bool {
    let now = gcra::time(jiffies);
    let cpus = u64::from(settings.cpus);
    // SAFETY: a field of a per-CPU map value.
    let packets = unsafe { &raw mut (*stats).gates[0] };
    // SAFETY: as above.
    let bytes = unsafe { &raw mut (*stats).gates[1] };
    let open = gates[0].cost != 0 && opens(packets, now, &gates[0], cpus);
    let amount = cpus.wrapping_mul(u64::from(length));
    gates[1].cost != 0 && opens(bytes, now, &gates[1], amount) || open
}

/// Asks the policy's limiters, and charges those whose limits a packet that passes counts at.
///
/// All are asked before any is charged: a packet that one of them drops costs nothing at the others.
#[inline(always)]
fn over_policy(sender: &Sender, what: u64) -> u32 {
    let [high, low] = sender.source;
    let asked = sluice_over_policy(high, low, what, sender.jiffies);
    let (over, let_in) = (asked & REASON, u64::from(asked >> OPEN_SHIFT));
    if over == 0 && let_in != 0 && !explaining() {
        sluice_charge(high, low, what | let_in << OPEN_IN, sender.jiffies);
    }
    over
}

/// Like [`sluice_over_exact`], for the policy's limits. From bit `OPEN_SHIFT` on the limiters (as bits) that are to be
/// charged if the packet passes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_over_policy(high: u64, low: u64, what: u64, jiffies: u64) -> u32 {
    let Some((settings, asked)) = asked(high, low, what, jiffies) else {
        return 0;
    };
    let Some(policy) = POLICIES.get(asked.policy) else {
        return 0;
    };
    let mut open = 0;
    let checked = check_policy(settings, &asked, policy, &mut open);
    if open != 0 || checked.is_err() {
        count::note(Step::LimitSource);
    }
    verdict(checked, &asked) | open << OPEN_SHIFT
}

/// Parts of what `sluice_over_policy` returns.
const REASON: u32 = 0xff;
const OPEN_SHIFT: u32 = 8;

/// Charges a packet that passes to its source's cells.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_charge(high: u64, low: u64, what: u64, jiffies: u64) -> u32 {
    let Some((settings, asked)) = asked(high, low, what, jiffies) else {
        return 0;
    };
    let Some(policy) = POLICIES.get(asked.policy) else {
        return 0;
    };
    charge_sketch(settings, &asked, policy, (what >> OPEN_IN) as u32 & 15);
    0
}

/// The limiters of the packet's class lie side by side.
#[inline(always)]
fn limiters(policy: &Policy, class: usize) -> &[Limiter; LIMITERS] {
    // SAFETY: callers give a class below `CLASSES`.
    unsafe { &*policy.limiters.as_ptr().add(class) }
}

#[inline(always)]
fn asked(high: u64, low: u64, what: u64, jiffies: u64) -> Option<(&'static Settings, Asked)> {
    let class = hide(what as usize & 7);
    if class >= CLASSES {
        return None;
    }
    let asked = Asked {
        source: [high, low],
        v6: what >> 8 & 1 != 0,
        class,
        vip: (what >> 16) as u16,
        policy: (what >> POLICY_SHIFT) as u32,
        length: (what >> 32) as u32 & 0xff_ffff,
        jiffies,
    };
    Some((settings()?, asked))
}

#[inline(always)]
fn verdict(checked: Result<(), DropReason>, asked: &Asked) -> u32 {
    match checked {
        Ok(()) => 0,
        Err(reason) => {
            // Only packets that could enter the flow table disturb its peace.
            if asked.class == Class::Other as usize
                && let Some(vip) = VIPS.get_ptr_mut(u32::from(asked.vip))
            {
                disturb(vip, asked.jiffies);
            }
            reason as u32 + 1
        }
    }
}

/// A [`Sender`], with its class as an index.
struct Asked {
    source: [u64; 2],
    v6: bool,
    class: usize,
    vip: u16,
    policy: u32,
    length: u32,
    jiffies: u64,
}

/// Marks the VIP as under attack, so that its new flows are not proven yet.
#[inline(always)]
pub fn disturb(vip: *mut Vip, jiffies: u64) {
    // SAFETY: a field of a map value; at worst another CPU writes the same jiffy.
    let disturbed = unsafe { &raw mut (*vip).disturbed };
    // SAFETY: as above.
    if !explaining() && unsafe { disturbed.read_volatile() } != jiffies {
        // SAFETY: as above.
        unsafe { disturbed.write_volatile(jiffies) };
    }
}

#[inline(always)]
fn check_exact(settings: &Settings, sender: &Asked) -> Result<(), DropReason> {
    let first = if sender.v6 {
        find_v6(settings, sender.source)
    } else {
        find_v4(sender.source)
    };
    let mut next = first.unwrap_or(0);
    for _ in 0..MAX_CHAIN {
        if next == 0 {
            return Ok(());
        }
        let Some(limit) = LIMITS.get_ptr_mut(next) else {
            return Ok(());
        };
        // SAFETY: a map value whose constants the daemon writes before it links them.
        let constants = unsafe { &*limit };
        let for_vip = constants.vip == ANY_VIP || constants.vip == sender.vip;
        if for_vip && constants.classes >> sender.class & 1 != 0 {
            count::note(Step::LimitExact);
            count::note_limit(next);
            return meet(limit, sender);
        }
        next = constants.next;
    }
    Ok(())
}

/// Whether the filter knows of a limit near this address.
#[inline(always)]
fn is_near_v4(source: [u64; 2]) -> bool {
    let (word, bit) = exact::v4_filter(exact::v4_index(v4(source)));
    EXACT_V4_FILTER
        .get(word / 2)
        .is_some_and(|words| element(words, word) & bit != 0)
}

/// An IPv4 source in host byte order.
#[inline(always)]
fn v4(source: [u64; 2]) -> u32 {
    u32::from_be((source[1] >> 32) as u32)
}

#[inline(always)]
fn find_v4(source: [u64; 2]) -> Option<u32> {
    let address = v4(source);
    let index = exact::v4_index(address);
    let entry = element(EXACT_V4.get(index / 2)?, index);
    if entry & exact::BLOCK == 0 {
        return Some(entry);
    }
    let index = (entry & !exact::BLOCK) * exact::BLOCK_ENTRIES + (address & 0xff);
    Some(element(EXACT_V4_BLOCKS.get(index / 2)?, index))
}

#[inline(always)]
fn find_v6(settings: &Settings, source: [u64; 2]) -> Option<u32> {
    let lengths = *EXACT_V6_LENGTHS.get(exact::v6_filter_index(settings, source))?;
    if lengths == 0 {
        return None;
    }
    let list = settings.exact_v6_lengths.as_ptr();
    for at in 0..MAX_EXACT_LENGTHS {
        if lengths >> at & 1 == 0 {
            continue;
        }
        // SAFETY: `at` is below the length of the list.
        let length = unsafe { *list.add(at) };
        let prefix = masked(source, length, true);
        let hash = exact::v6_hash(settings, prefix, length);
        let Some(bucket) = EXACT_V6.get(hash as u32 & EXACT_V6_MASK.load()) else {
            continue;
        };
        for entry in bucket {
            if (entry >> 32) as u32 == tag(hash)
                && let Some(limit) = LIMITS.get(*entry as u32)
                && limit.prefix[0] == prefix[0]
                && limit.prefix[1] == prefix[1]
            {
                return Some(*entry as u32);
            }
        }
    }
    None
}

/// Charges an exact limit, or finds it exhausted.
#[inline(always)]
fn meet(limit: *mut Limit, sender: &Asked) -> Result<(), DropReason> {
    let now = gcra::time(sender.jiffies);
    let bytes = u64::from(sender.length);
    // SAFETY: a map value; constants and words are read one by one.
    let (packets, byte_limiter, monitor) = unsafe {
        (
            (*limit).packets,
            (*limit).bytes,
            (*limit).length_and_mode & LIMIT_MONITOR != 0,
        )
    };
    // SAFETY: fields of the map value.
    let (packets_tat, bytes_tat) =
        unsafe { (&raw mut (*limit).packets_tat, &raw mut (*limit).bytes_tat) };
    let fits = (packets.cost == 0 || would_admit(packets_tat, now, &packets, 1))
        && (byte_limiter.cost == 0 || would_admit(bytes_tat, now, &byte_limiter, bytes));
    if explaining() {
        if monitor && !fits {
            count::note(Step::Monitored);
        }
        return if fits || monitor {
            Ok(())
        } else {
            Err(DropReason::LimitExact)
        };
    }
    let fits = fits
        && (packets.cost == 0 || charge(packets_tat, now, &packets, 1))
        && (byte_limiter.cost == 0 || charge(bytes_tat, now, &byte_limiter, bytes));
    // SAFETY: fields of the map value.
    let (counted_packets, counted_bytes) = unsafe {
        if fits {
            (
                &raw mut (*limit).passed_packets,
                &raw mut (*limit).passed_bytes,
            )
        } else {
            (
                &raw mut (*limit).dropped_packets,
                &raw mut (*limit).dropped_bytes,
            )
        }
    };
    // SAFETY: words of the map value.
    unsafe { atomic_add(counted_packets, 1) };
    // SAFETY: as above.
    unsafe { atomic_add(counted_bytes, bytes) };
    if fits {
        return Ok(());
    }
    if monitor {
        count::monitored(sender.vip, DropReason::LimitExact, sender.length);
        return Ok(());
    }
    Err(DropReason::LimitExact)
}

#[inline(always)]
pub fn would_admit(tat: *mut u64, now: u64, limiter: &Limiter, amount: u64) -> bool {
    // SAFETY: a word of a map value.
    gcra::admit(unsafe { tat.read_volatile() }, now, limiter, amount).is_some()
}

/// Raises an arrival time that all CPUs share. After three lost races the packet goes uncounted.
#[inline(always)]
pub fn charge(tat: *mut u64, now: u64, limiter: &Limiter, amount: u64) -> bool {
    // SAFETY: a word of a map value.
    let mut old = unsafe { tat.read_volatile() };
    for _ in 0..3 {
        let Some(after) = gcra::admit(old, now, limiter, amount) else {
            return false;
        };
        // SAFETY: as above.
        let found = unsafe { compare_exchange(tat, old, after) };
        if found == old {
            return true;
        }
        old = found;
    }
    true
}

/// Counts a packet at a gate, and tells whether so much came that a single source could be over its limit.
///
/// It stays open while the flood lasts: its arrival time may run ahead by twice of what opens it.
#[inline(always)]
fn opens(gate: *mut u64, now: u64, limiter: &Limiter, amount: u64) -> bool {
    // SAFETY: callers give a word of a map value.
    let tat = unsafe { gate.read_volatile() };
    let ahead = tat.wrapping_sub(now);
    let start = if ahead > limiter.allowance { 0 } else { ahead };
    let used = start.wrapping_add(limiter.cost.wrapping_mul(amount));
    let open = limiter.allowance >> GATE_SHIFT;
    if !explaining() {
        let kept = if used > 2 * open { 2 * open } else { used };
        // SAFETY: as above.
        unsafe { gate.write_volatile(now.wrapping_add(kept)) };
    }
    used > open
}

/// The gate of a source's group: below it none of them can be over the limit.
///
/// These gates fit the cache of a core where the sketch does not, and spread sources stay below them.
#[inline(always)]
fn group(hashes: Hashes) -> Option<*mut u64> {
    GROUPS.get_ptr_mut(hashes.group(SKETCH_MASK.load()))
}

/// The page of the sketch where a source's cells are.
struct Page(*mut [u64; SKETCH_PAGE_CELLS]);

impl Page {
    #[inline(always)]
    fn of(cells: &[u32; SKETCH_ROWS]) -> Option<Self> {
        SKETCH
            .get_ptr_mut(cells[0] / SKETCH_PAGE_CELLS as u32)
            .map(Self)
    }
}

impl Memory for Page {
    type Cell = Word;

    #[inline(always)]
    fn cell(&self, at: u32) -> Option<Word> {
        let at = hide(at as usize) & (SKETCH_PAGE_CELLS - 1);
        // SAFETY: the mask keeps the index in the page.
        Some(Word(unsafe { self.0.cast::<u64>().add(at) }))
    }
}

/// A cell of the sketch.
struct Word(*mut u64);

impl Cell for Word {
    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: a word of the sketch.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn exchange(&self, old: u64, new: u64) -> u64 {
        // SAFETY: as above.
        unsafe { compare_exchange(self.0, old, new) }
    }
}

/// Asks each limiter in turn, from near memory to far: the gate of the source's group, then the source's cells. `open`
/// gets the ones (as bits) that the packet is to be charged at.
#[inline(always)]
fn check_policy(
    settings: &Settings,
    sender: &Asked,
    policy: &Policy,
    open: &mut u32,
) -> Result<(), DropReason> {
    let limiters = limiters(policy, sender.class);
    let now = gcra::time(sender.jiffies);
    for at in 0..LIMITERS {
        let at = hide(at) & (LIMITERS - 1);
        let limiter = limiter(again(limiters), at);
        if limiter.cost == 0 {
            continue;
        }
        let amount = amount(sender, at);
        let hashes = hashes(settings, sender, policy, at);
        let Some(group) = group(hashes) else {
            return Ok(());
        };
        if !opens(group, now, limiter, amount) {
            continue;
        }
        let cells = hashes.cells(SKETCH_MASK.load());
        let Some(page) = Page::of(&cells) else {
            return Ok(());
        };
        if gcra::admit(least(&page, &cells, now), now, limiter, amount).is_none() {
            let reason = if is_network(at) {
                DropReason::LimitNetwork
            } else {
                DropReason::LimitHost
            };
            *open = 0;
            if policy.monitor != 0 {
                count::monitored(sender.vip, reason, sender.length);
                return Ok(());
            }
            return Err(reason);
        }
        *open |= 1 << at;
    }
    Ok(())
}

#[inline(always)]
fn charge_sketch(settings: &Settings, sender: &Asked, policy: &Policy, open: u32) {
    let now = gcra::time(sender.jiffies);
    let limiters = limiters(policy, sender.class);
    for at in 0..LIMITERS {
        let at = hide(at) & (LIMITERS - 1);
        if open >> at & 1 == 0 {
            continue;
        }
        let cells = hashes(settings, sender, policy, at).cells(SKETCH_MASK.load());
        let limiter = limiter(again(limiters), at);
        let Some(page) = Page::of(&cells) else {
            return;
        };
        if let Some(after) =
            gcra::admit(least(&page, &cells, now), now, limiter, amount(sender, at))
        {
            raise(&page, cells[0], after, now);
            raise(&page, cells[1], after, now);
            raise(&page, cells[2], after, now);
            raise(&page, cells[3], after, now);
        }
    }
}

/// A class has a limiter for packets and one for bytes of a host, then the same for a network.
#[inline(always)]
const fn is_network(at: usize) -> bool {
    at >= 2
}

/// What a packet costs at a limiter.
#[inline(always)]
fn amount(sender: &Asked, at: usize) -> u64 {
    if at & 1 == 0 {
        1
    } else {
        u64::from(sender.length)
    }
}

#[inline(always)]
fn limiter(limiters: &[Limiter; LIMITERS], at: usize) -> &Limiter {
    // SAFETY: callers mask `at`.
    unsafe { &*limiters.as_ptr().add(at) }
}

#[inline(always)]
fn hashes(settings: &Settings, sender: &Asked, policy: &Policy, at: usize) -> Hashes {
    let (settings, policy) = (again(settings), again(policy));
    let network = is_network(at);
    let source = sender.source;
    let what = u64::from(sender.vip) | (at as u64) << 16 | (sender.class as u64) << 24;
    if sender.v6 {
        let mask = if network {
            policy.network_mask_v6
        } else {
            policy.host_mask_v6
        };
        let masked = [source[0] & mask[0], source[1] & mask[1]];
        Hashes::v6(&settings.local_key, masked, what, sender.jiffies)
    } else {
        let mask = if network {
            policy.network_mask_v4
        } else {
            policy.host_mask_v4
        };
        let masked = (source[1] >> 32) & u64::from(mask);
        Hashes::v4(&settings.local_key, masked, what, sender.jiffies)
    }
}
