//! Sources in sets: whom the operator denies, and whom he lets in whatever else holds. See [`crate::sources`] for how
//! they are found.

use core::hint::cold_path;

use super::{
    Verdict, again, count, element,
    maps::{
        SOURCE_BLOCKS, SOURCE_CLASSES, SOURCE_FILTER, SOURCE_FILTER_V6, SOURCE_LENGTHS_V6,
        SOURCE_SETS_OFF, SOURCES, SOURCES_V6, SOURCES_V6_MASK, settings,
    },
};
use crate::{
    abi::{
        DropReason, FILTER_BOGONS, FILTER_BOGONS_MONITOR, FILTER_SETS_MONITOR, FILTER_SETS_OFF,
        SET_BOGONS, SOURCES_ALLOW, SOURCES_OF_VIPS, SOURCES_V4, SOURCES_V6 as HAS_V6, Settings,
        Step, Vip,
    },
    exact,
    packet::Ip,
    sources::{self, FULL, NUMBER, Sparse, UNIT_CLASSES, UNIT_WORDS, V6_LENGTHS, WORD},
    vip::masked,
};

/// Ends a packet whose source is denied. Without any set this is a load and a branch. A `plain` packet is worth to be
/// spared a call.
#[inline(always)]
pub fn check(
    settings: &Settings,
    ip: &Ip,
    vip: &Vip,
    vip_index: u16,
    plain: bool,
) -> Result<(), Verdict> {
    let has = if ip.v6 { HAS_V6 } else { SOURCES_V4 };
    if again(settings).sources & has == 0 || !ip.v6 && !is_near_v4(v4(ip.source)) {
        return Ok(());
    }
    cold_path();
    let counted = u64::from(vip_index) | u64::from(ip.length) << LENGTH_SHIFT;
    let entry = if plain && !ip.v6 {
        entry_v4(v4(ip.source))
    } else {
        FULL
    };
    let low = v4(ip.source) as u8;
    let class = match entry & WORD {
        0 => Some(sources::class_in_entry(entry, low)),
        WORD => Some(sources::class_in_word(word_v4(entry), low)),
        _ => None,
    };
    let answer = match class {
        Some(class) => judge(class, with_filter(vip, counted)),
        None => ask(ip, vip, counted),
    };
    match answer {
        ORDINARY | ALLOWED => Ok(()),
        BOGON => Err(Verdict::Drop(DropReason::Bogon)),
        _ => Err(Verdict::Drop(DropReason::Deny)),
    }
}

/// Whether the source is in a set that is allowed: asked once more where that counts, for to remember it would take more
/// of the stack than there is. Without such a set this is a load and a branch.
#[inline(always)]
pub fn is_allowed(settings: &Settings, ip: &Ip, vip: &Vip, vip_index: u16) -> bool {
    if again(settings).sources & SOURCES_ALLOW == 0 {
        return false;
    }
    cold_path();
    ask(ip, vip, u64::from(vip_index) | QUIET) == ALLOWED
}

#[inline(always)]
fn ask(ip: &Ip, vip: &Vip, what: u64) -> u32 {
    let what = with_filter(vip, what);
    if ip.v6 {
        sluice_source_v6(ip.source[0], ip.source[1], what)
    } else {
        sluice_source_v4(v4(ip.source), what)
    }
}

#[inline(always)]
fn with_filter(vip: &Vip, what: u64) -> u64 {
    what | u64::from(vip.filter & FILTER_BITS) << FILTER_SHIFT
}

/// In the argument `what` of the functions below; the VIP's number is below.
const FILTER_SHIFT: u32 = 16;
/// `Vip::filter` bits.
const FILTER_BITS: u32 =
    FILTER_SETS_OFF | FILTER_SETS_MONITOR | FILTER_BOGONS | FILTER_BOGONS_MONITOR;
/// Nothing is counted or told.
const QUIET: u64 = 1 << 31;
const LENGTH_SHIFT: u32 = 32;
/// What they return.
const ORDINARY: u32 = 0;
const ALLOWED: u32 = 1;
const BOGON: u32 = 2;
const DENIED: u32 = 3;

/// A global function, as those below: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_source_v4(address: u32, what: u64) -> u32 {
    judge(class_v4(address), what)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_source_v6(high: u64, low: u64, what: u64) -> u32 {
    judge(class_v6([high, low]), what)
}

#[inline(always)]
fn judge(class: u32, what: u64) -> u32 {
    if class == 0 {
        return ORDINARY;
    }
    let (Some(sets), Some(settings)) = (SOURCE_CLASSES.get(class), settings()) else {
        return ORDINARY;
    };
    let bogons = 1u64 << SET_BOGONS;
    let filter = (what >> FILTER_SHIFT) as u32;
    let mut sets = *sets & !of_others(settings, what as u16);
    if filter & FILTER_SETS_OFF != 0 {
        sets &= bogons;
    }
    let mut denied = sets & settings.sets_deny;
    let mut monitored = sets & settings.sets_monitor;
    if filter & FILTER_BOGONS != 0 {
        denied |= sets & bogons;
    }
    if filter & FILTER_BOGONS_MONITOR != 0 {
        monitored |= sets & bogons;
    }
    if filter & FILTER_SETS_MONITOR != 0 {
        monitored |= denied;
        denied = 0;
    }
    let allowed = sets & settings.sets_allow;
    if what & QUIET != 0 {
        return if allowed != 0 { ALLOWED } else { ORDINARY };
    }
    if allowed | denied | monitored == 0 {
        return ORDINARY;
    }
    let length = (what >> LENGTH_SHIFT) as u32;
    count::from_class(class, allowed == 0 && denied != 0, length);
    if allowed != 0 {
        count::note(Step::SourceAllowed);
        count::note_sets(allowed);
        return ALLOWED;
    }
    count::note(Step::SourceDenied);
    count::note_sets(denied | monitored);
    // What is denied for more than one set has the reason of those that the operator chose.
    if denied != 0 {
        return if denied == bogons { BOGON } else { DENIED };
    }
    let reason = if monitored == bogons {
        DropReason::Bogon
    } else {
        DropReason::Deny
    };
    count::monitored(what as u16, reason, length);
    ORDINARY
}

/// Sets that are for another VIP than this one.
#[inline(always)]
fn of_others(settings: &Settings, vip: u16) -> u64 {
    if settings.sources & SOURCES_OF_VIPS == 0 {
        return 0;
    }
    cold_path();
    SOURCE_SETS_OFF.get(vip.into()).map_or(0, |sets| *sets)
}

/// An IPv4 source in host byte order.
#[inline(always)]
fn v4(source: [u64; 2]) -> u32 {
    u32::from_be((source[1] >> 32) as u32)
}

/// Whether the filter knows of a set near this address.
#[inline(always)]
fn is_near_v4(address: u32) -> bool {
    let (word, bit) = exact::v4_filter(exact::v4_index(address));
    SOURCE_FILTER
        .get(word / 2)
        .is_some_and(|words| element(words, word) & bit != 0)
}

#[inline(always)]
fn entry_v4(address: u32) -> u32 {
    let index = exact::v4_index(address);
    SOURCES
        .get(index / 2)
        .map_or(0, |entries| element(entries, index))
}

#[inline(always)]
fn class_v4(address: u32) -> u32 {
    let (entry, low) = (entry_v4(address), address as u8);
    match entry & WORD {
        0 => sources::class_in_entry(entry, low),
        WORD => sources::class_in_word(word_v4(entry), low),
        _ => class_in_block(entry, low),
    }
}

#[inline(always)]
fn word_v4(entry: u32) -> u64 {
    let number = entry & NUMBER;
    SOURCE_BLOCKS
        .get(number / UNIT_WORDS as u32)
        .map_or(0, |unit| element(unit, number))
}

#[inline(always)]
fn class_in_block(entry: u32, low: u8) -> u32 {
    let first = entry & NUMBER;
    if entry & FULL != 0 {
        let at = u32::from(low);
        let Some(unit) = SOURCE_BLOCKS.get(first + at / UNIT_CLASSES as u32) else {
            return 0;
        };
        // SAFETY: the same memory, four classes a word.
        let classes = unsafe { &*core::ptr::from_ref(unit).cast::<[u16; UNIT_CLASSES]>() };
        return u32::from(element(classes, at));
    }
    let Some(unit) = SOURCE_BLOCKS.get(first) else {
        return 0;
    };
    // SAFETY: a unit is as large as a sparse block, and aligned as all values are.
    let block = unsafe { &*core::ptr::from_ref(unit).cast::<Sparse>() };
    u32::from(element(&block.classes, block.choice(low)))
}

/// The class of the longest prefix with one of the lengths that there are near an address.
#[inline(always)]
fn class_v6(source: [u64; 2]) -> u32 {
    let Some(settings) = settings() else {
        return 0;
    };
    let index = exact::v6_filter_index(settings, source);
    let list = SOURCE_FILTER_V6
        .get(index / 2)
        .map_or(0, |lists| element(lists, index));
    if list == 0 {
        return 0;
    }
    let Some(lengths) = SOURCE_LENGTHS_V6.get(list) else {
        return 0;
    };
    for at in 0..V6_LENGTHS {
        // SAFETY: `at` is below the length of the list.
        let length = unsafe { *lengths.as_ptr().add(at) };
        if length == 0 {
            return 0;
        }
        let class = sluice_source_class(source[0], source[1], u32::from(length) - 1);
        if class != NOT_THERE {
            return class & 0xffff;
        }
    }
    0
}

/// The class of a prefix of one length.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_source_class(high: u64, low: u64, length: u32) -> u32 {
    let Some(settings) = settings() else {
        return NOT_THERE;
    };
    let length = length as u8;
    let prefix = masked([high, low], length, true);
    let hash = sources::v6_hash(settings, prefix, length);
    let [first, second] = sources::v6_buckets(hash, SOURCES_V6_MASK.load());
    class_in_bucket(first, hash) | class_in_bucket(second, hash)
}

const NOT_THERE: u32 = 0;
/// Beside the class, which may be 0.
const THERE: u32 = 1 << 16;

#[inline(always)]
fn class_in_bucket(bucket: u32, hash: u64) -> u32 {
    let Some(bucket) = SOURCES_V6.get(bucket) else {
        return NOT_THERE;
    };
    for entry in bucket {
        if sources::v6_matches(*entry, hash) {
            return THERE | u32::from(*entry as u16);
        }
    }
    NOT_THERE
}
