//! Rules: which of them mean a packet, in their order, and what they do with it. See [`crate::rules`] for how they are
//! found.

use core::hint::cold_path;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_load_bytes};

use super::{
    Verdict, again, count,
    limits::{charge, would_admit},
    maps::{RULE_COUNTS, RULE_SEARCH, RULE_TABLES, RULES, explaining},
    sample, sources,
};
use crate::{
    abi::{
        Class, DropReason, FILTER_RULES_MONITOR, FILTER_RULES_OFF, NO_BACKEND, RULES_ANY,
        RULES_ESTABLISHED, RULES_GENERATION, RuleState, SOURCES_ALLOW, Settings, Step, Vip,
    },
    context::frame,
    flow::State,
    gcra, hide,
    packet::{self, Fragment, Frame, Ip, Ipv4Header, Transport},
    rules::{
        self, Asked, DONT_FRAGMENT, FIRST_FRAGMENT, IS_FRAGMENT, LAST_FRAGMENT, RuleAction,
        RuleTables, Search, WORDS, icmp_kind, plain_kind, tcp_kind,
    },
};

/// A packet that may meet rules.
pub struct Meets<'a> {
    pub context: *mut xdp_md,
    pub settings: &'static Settings,
    pub ip: &'a Ip,
    pub transport: &'a Transport,
    pub protocol: u8,
    pub fragment: Fragment,
    pub l4_offset: usize,
    pub vip_index: u16,
    pub vip: &'static Vip,
    pub class: Class,
    pub jiffies: u64,
}

/// What rules say of a packet that they do not drop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ruled {
    On,
    /// It skips challenge and limits.
    Pass,
    /// A SYN that is to be challenged.
    Challenge,
}

/// Asks the rules. Without any this is a load and a branch.
#[inline(always)]
pub fn check(packet: &Meets<'_>) -> Result<Ruled, Verdict> {
    let established = matches!(packet.class, Class::Established);
    let needed = if established {
        RULES_ESTABLISHED
    } else {
        RULES_ANY
    };
    let there = again(packet.settings);
    if (there.rules & needed) | (there.sources & SOURCES_ALLOW) == 0 {
        return Ok(Ruled::On);
    }
    cold_path();
    if sources::is_allowed(packet.settings, packet.ip, packet.vip, packet.vip_index) {
        return Ok(Ruled::Pass);
    }
    if again(packet.settings).rules & needed == 0 || packet.vip.filter & FILTER_RULES_OFF != 0 {
        return Ok(Ruled::On);
    }
    let (ports, byte, transport) = match *packet.transport {
        Transport::Tcp { ports, flags, .. } => (ports, flags, TCP),
        Transport::Udp { ports } => (ports, packet::UDP, PORTS),
        Transport::Icmp { kind } => (0, kind, ICMP),
        _ => (0, packet.protocol, PLAIN),
    };
    let fragment = match packet.fragment {
        Fragment::Whole => 0,
        Fragment::First(_) => u64::from(FIRST_FRAGMENT),
        Fragment::Later(_) => u64::from(IS_FRAGMENT),
    };
    let monitor = packet.vip.filter & FILTER_RULES_MONITOR != 0;
    let what = u64::from(packet.vip_index)
        | (packet.l4_offset as u64 & 0xffff) << L4_SHIFT
        | (packet.ip.offset as u64 & 31) << IP_SHIFT
        | fragment << FRAGMENT_SHIFT
        | u64::from(packet.ip.v6) << V6_SHIFT
        | u64::from(established) << ESTABLISHED_SHIFT
        | u64::from(monitor) << MONITOR_SHIFT
        | u64::from(matches!(packet.class, Class::Syn)) << SYN_SHIFT;
    let l4 = u64::from(ports) | u64::from(byte) << BYTE_SHIFT | transport << TRANSPORT_SHIFT;
    let generation = u64::from(again(packet.settings).rules & RULES_GENERATION);
    let about = what & ABOUT | generation << GENERATION_SHIFT;
    let first = sluice_rule_find(packet.context, what, l4, about, packet.jiffies);
    let mut done = (first >> FIRST_SHIFT) as u32;
    if done & MORE != 0 {
        let about = about | u64::from(done) << DONE_SHIFT;
        done = sluice_rule_obey(about, first as u32, packet.jiffies);
    }
    if done & SAMPLE != 0 {
        sample_now(packet.context, packet.vip_index);
    }
    match done & VERDICT {
        ON => Ok(Ruled::On),
        PASS => {
            count::note(Step::RulePassed);
            Ok(Ruled::Pass)
        }
        CHALLENGE => Ok(Ruled::Challenge),
        _ => Err(Verdict::Drop(DropReason::Rule)),
    }
}

/// In the argument `what` of [`sluice_rule_find`]; the VIP's number is below.
const L4_SHIFT: u32 = 16;
const IP_SHIFT: u32 = 32;
const FRAGMENT_SHIFT: u32 = 40;
const V6_SHIFT: u32 = 48;
const ESTABLISHED_SHIFT: u32 = 49;
const MONITOR_SHIFT: u32 = 50;
const SYN_SHIFT: u32 = 51;
/// In its argument `l4`; ports are below. The byte is flags, type or protocol.
const BYTE_SHIFT: u32 = 32;
const TRANSPORT_SHIFT: u32 = 40;
const TCP: u64 = 0;
const PORTS: u64 = 1;
const ICMP: u64 = 2;
const PLAIN: u64 = 3;
/// What the functions below return.
const ON: u32 = 0;
const DROP: u32 = 8;
const PASS: u32 = 2;
const CHALLENGE: u32 = 4;
/// The bits of these.
const VERDICT: u32 = 6 | 1 << 3;
/// It goes on, and was counted as one that would have been dropped.
const MONITORED: u32 = 1;
/// It goes on, and is to be sampled.
const SAMPLE: u32 = 16;
/// It goes on to the next rule that means it.
const MORE: u32 = 32;

/// Finds the rules that mean the packet, and has the first of them do what it says: mostly there is no other. Returns what it did
/// from [`FIRST_SHIFT`] on, and below that for [`sluice_rule_obey`] the words in which there are some, and their generation.
///
/// A global function, as those below: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_rule_find(
    context: *mut xdp_md,
    what: u64,
    l4: u64,
    about: u64,
    jiffies: u64,
) -> u64 {
    let Some(search) = RULE_SEARCH.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a value of a per-CPU map.
    let search = unsafe { &mut *search };
    if ask(&frame(context), what, l4, &mut search.asked).is_none() {
        return 0;
    }
    let generation = about as u32 & RULES_GENERATION << GENERATION_SHIFT;
    let Some(tables) = tables(generation) else {
        return 0;
    };
    let flow = if what >> ESTABLISHED_SHIFT & 1 != 0 {
        State::Proven
    } else {
        State::Unproven
    };
    let words = rules::find(tables, search, flow, |at, bytes| {
        payload(context, at, bytes)
    });
    // By way of the map, so that the verifier follows the rest once, not once for each way that leads here.
    let words = rules::forget(&mut search.words, words | generation);
    if words & WORD_BITS == 0 {
        return 0;
    }
    let done = obey_first(tables, search, words, about, jiffies);
    u64::from(words) | u64::from(done) << FIRST_SHIFT
}

/// In what this returns, and in its argument `about`.
const GENERATION_SHIFT: u32 = 16;
const WORD_BITS: u32 = (1 << GENERATION_SHIFT) - 1;
const FIRST_SHIFT: u32 = 32;

/// Has the first rule that means the packet do what it says, and takes it from those that are left.
#[inline(always)]
fn obey_first(
    tables: &RuleTables,
    search: &mut Search,
    words: u32,
    about: u64,
    jiffies: u64,
) -> u32 {
    let word = lowest(u64::from(words)) as usize;
    let bits = rules::pick(&search.meant, word);
    let rest = bits & bits.wrapping_sub(1);
    // SAFETY: the mask keeps the index among the words.
    let place = unsafe { search.meant.as_mut_ptr().add(hide(word) & (WORDS - 1)) };
    // SAFETY: as above.
    unsafe { place.write(rest) };
    let length = rules::read(&search.asked.length);
    let done = obey(entry(tables, word, lowest(bits)), about, length, jiffies);
    let others = u64::from(words & words.wrapping_sub(1) & WORD_BITS) | rest;
    if done & VERDICT == 0 && others != 0 {
        done | MORE
    } else {
        done
    }
}

#[inline(always)]
fn tables(words: u32) -> Option<&'static RuleTables> {
    RULE_TABLES.get(words >> GENERATION_SHIFT & RULES_GENERATION)
}

/// The entry of a rule, as one number.
#[inline(always)]
fn entry(tables: &RuleTables, word: usize, bit: u64) -> u64 {
    let entries = (&raw const tables.entries).cast::<[u64; rules::BITS]>();
    // SAFETY: the same memory, an entry a word.
    let entries = unsafe { &*entries };
    rules::pick(entries, word << 6 | bit as usize)
}

/// Has the rules of these words that mean the packet do what they say, one after the other.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_rule_obey(about: u64, words: u32, jiffies: u64) -> u32 {
    let mut about = about;
    let mut words = words;
    for _ in 0..WORDS {
        if words & WORD_BITS == 0 {
            break;
        }
        let done = sluice_rule_word(about, words, jiffies);
        words &= words.wrapping_sub(1);
        about |= u64::from(done) << DONE_SHIFT;
        if done & VERDICT != 0 {
            break;
        }
    }
    (about >> DONE_SHIFT) as u32
}

/// What of the argument `what` is in `about`, which tells these functions of the packet.
const ABOUT: u64 = 0xffff | 1 << MONITOR_SHIFT | 1 << SYN_SHIFT;
/// What rules did with it so far.
const DONE_SHIFT: u32 = 56;

/// The same for the first of these words alone.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_rule_word(about: u64, words: u32, jiffies: u64) -> u32 {
    let (Some(tables), Some(search)) = (tables(words), RULE_SEARCH.get(0)) else {
        return ON;
    };
    let word = lowest(u64::from(words)) as usize;
    let mut bits = rules::pick(&search.meant, word);
    let mut about = about;
    for _ in 0..64 {
        if bits == 0 {
            break;
        }
        let entry = entry(tables, word, lowest(bits));
        bits &= bits.wrapping_sub(1);
        let done = sluice_rule(entry, about, rules::read(&search.asked.length), jiffies);
        about |= u64::from(done) << DONE_SHIFT;
        if done & VERDICT != 0 {
            break;
        }
    }
    (about >> DONE_SHIFT) as u32
}

/// [`obey`] for a loop: inlined, the verifier would follow it for each of 64.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_rule(entry: u64, about: u64, length: u32, jiffies: u64) -> u32 {
    obey(entry, about, length, jiffies)
}

/// What one rule does with a packet that it means.
#[inline(always)]
fn obey(entry: u64, about: u64, length: u32, jiffies: u64) -> u32 {
    const DROPS: u8 = RuleAction::Drop as u8;
    const LIMIT: u8 = RuleAction::Limit as u8;
    const PASSES: u8 = RuleAction::Pass as u8;
    const CHALLENGES: u8 = RuleAction::Challenge as u8;
    let number = entry as u32 & 0xffff;
    let action = (entry >> 16) as u8;
    let monitor = (entry >> 24) as u8 != 0 || about >> MONITOR_SHIFT & 1 != 0;
    count::note(Step::RuleMatched);
    count::note_rule(number);
    let drops = match action {
        DROPS => true,
        LIMIT => RULES
            .get_ptr_mut(number)
            .is_some_and(|state| is_over(state, length, jiffies)),
        _ => false,
    };
    if !explaining()
        && let Some(counts) = RULE_COUNTS.get_ptr_mut(number)
    {
        // SAFETY: a field of a value of a per-CPU map.
        let passed = unsafe { &raw mut (*counts).passed };
        // SAFETY: as above.
        let dropped = unsafe { &raw mut (*counts).dropped };
        // SAFETY: as above.
        unsafe { count::add(if drops { dropped } else { passed }, length) };
    }
    if drops {
        if !monitor {
            return DROP;
        }
        // One packet is counted once, however many rules would drop it.
        if (about >> DONE_SHIFT) as u32 & MONITORED == 0 {
            count::monitored(about as u16, DropReason::Rule, length);
        }
        return MONITORED;
    }
    if monitor {
        return ON;
    }
    match action {
        PASSES => PASS,
        CHALLENGES if about >> SYN_SHIFT & 1 != 0 => CHALLENGE,
        CHALLENGES | LIMIT => ON,
        _ => SAMPLE,
    }
}

/// Charges a rule's limit, or finds it exhausted.
#[inline(always)]
fn is_over(state: *mut RuleState, length: u32, jiffies: u64) -> bool {
    let now = gcra::time(jiffies);
    let bytes = u64::from(length);
    // SAFETY: a map value; constants are written before packets meet the rule.
    let (packets, byte_limiter) = unsafe { ((*state).packets, (*state).bytes) };
    // SAFETY: a field of the map value.
    let packets_tat = unsafe { &raw mut (*state).packets_tat };
    // SAFETY: as above.
    let bytes_tat = unsafe { &raw mut (*state).bytes_tat };
    let fits = (packets.cost == 0 || would_admit(packets_tat, now, &packets, 1))
        && (byte_limiter.cost == 0 || would_admit(bytes_tat, now, &byte_limiter, bytes));
    if !fits || explaining() {
        return !fits;
    }
    !((packets.cost == 0 || charge(packets_tat, now, &packets, 1))
        && (byte_limiter.cost == 0 || charge(bytes_tat, now, &byte_limiter, bytes)))
}

/// Puts the packet among the samples before anything else becomes of it.
#[inline(always)]
fn sample_now(context: *mut xdp_md, vip: u16) {
    if !explaining() {
        let pass = u64::from(aya_ebpf::bindings::xdp_action::XDP_PASS);
        sample::sluice_watch(
            context,
            u64::from(vip) | u64::from(NO_BACKEND) << 16 | pass << 32,
        );
    }
}

/// Notes what rules look at of the packet. In place: the stack would hold it once more.
#[inline(always)]
fn ask(frame: &Frame, what: u64, l4: u64, asked: &mut Asked) -> Option<()> {
    let offset = (what >> IP_SHIFT) as usize & 31;
    let v6 = what >> V6_SHIFT & 1 != 0;
    let mut fragment = (what >> FRAGMENT_SHIFT) as u32 & 0xff;
    let (ip, ttl) = if v6 {
        let ip = packet::ipv6(frame, offset)?;
        let [_, ttl] = frame.read::<u16>(offset + 6)?.to_ne_bytes();
        if fragment & IS_FRAGMENT != 0 {
            // The fragment header stands before what is taken for the transport header.
            let before = ((what >> L4_SHIFT) as usize & 0xffff).wrapping_sub(6);
            let word = u16::from_be(frame.read::<u16>(before)?);
            fragment |= if word & 1 == 0 { LAST_FRAGMENT } else { 0 };
        }
        (ip, ttl)
    } else {
        let header: Ipv4Header = frame.read(offset)?;
        let word = u16::from_be(header.fragment_be);
        fragment |= u32::from(word >> 14 & 1) * DONT_FRAGMENT;
        if fragment & IS_FRAGMENT != 0 && word & 0x2000 == 0 {
            fragment |= LAST_FRAGMENT;
        }
        (packet::ipv4(frame, offset)?, header.ttl)
    };
    let byte = (l4 >> BYTE_SHIFT) as u8;
    let transport = l4 >> TRANSPORT_SHIFT & 3;
    let l4_offset = (what >> L4_SHIFT) as u32 & 0xffff;
    let mut code = 0;
    let mut header = 8;
    if transport == ICMP {
        [_, code] = frame.read::<u16>(l4_offset as usize)?.to_ne_bytes();
    } else if transport == TCP {
        // A first fragment may end before its length: no rule may be passed by for that.
        header = frame
            .read::<u16>(l4_offset as usize + 12)
            .map_or(20, |word| u32::from(word.to_ne_bytes()[0] >> 4) * 4);
    }
    let has_payload = u32::from(transport != PLAIN);
    *asked = Asked {
        source: ip.source,
        destination: ip.destination,
        v6: u32::from(v6),
        has_ports: u32::from(transport == TCP || transport == PORTS),
        source_port: u32::from(u16::from_be(l4 as u16)),
        destination_port: u32::from(u16::from_be((l4 >> 16) as u16)),
        has_code: u32::from(transport == ICMP),
        code: u32::from(code),
        kind: match transport {
            TCP => tcp_kind(byte),
            ICMP => icmp_kind(v6, byte),
            _ => plain_kind(byte),
        },
        length: if ip.length > 0xffff {
            0xffff
        } else {
            ip.length
        },
        dscp: u32::from(ip.class >> 2),
        fragment,
        ttl: u32::from(ttl),
        vip: what as u32 & 0xffff,
        payload: (l4_offset + header) * has_payload,
        end: (offset as u32 + ip.length) * has_payload,
    };
    Some(())
}

/// A piece of the frame, zeros behind it.
#[inline(always)]
fn payload(context: *mut xdp_md, at: u32, bytes: u32) -> Option<u64> {
    let mut piece = 0u64;
    // From 1 to 8, in a way that the verifier can follow.
    let bytes = (hide((bytes as usize).wrapping_sub(1)) & 7) + 1;
    // SAFETY: the kernel writes no more than `bytes`, which the piece has.
    let failed =
        unsafe { bpf_xdp_load_bytes(context, at, (&raw mut piece).cast(), bytes as u32) } != 0;
    (!failed).then_some(piece)
}

/// The number of the lowest bit that is set.
#[inline(always)]
fn lowest(bits: u64) -> u64 {
    let below = hide((bits & bits.wrapping_neg()).wrapping_sub(1) as usize) as u64;
    u64::from(below.count_ones())
}
