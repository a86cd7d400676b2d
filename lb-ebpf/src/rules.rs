//! Rules as packets meet them: each field of a packet has a class, each class a row of bits, one for each rule that it
//! fits. The rows of all fields, ANDed, are the rules that mean the packet; the lowest bit counts first.
//!
//! Rules could be a thousand, so a row is 16 words, and an entry has beside its row a summary: a bit for each word that
//! is not zero. Summaries are ANDed first; of what is left, rows are ANDed four words at a time. Fields that no rule looks
//! at cost a branch. (After Lakshman and Stiliadis, 1998, and Baboescu and Varghese, 2001.)
//!
//! The daemon builds [`RuleTables`] whole, in the generation that is not in use, and switches by one word.

use bytemuck::{Pod, Zeroable};

use crate::{flow::State, hide};

/// Words of a row.
pub const WORDS: usize = 16;
/// Rules that there can be.
pub const BITS: usize = 64 * WORDS;
/// Rows of a generation.
pub const ROWS: usize = 1 << 14;
/// Blocks of 256 entries, for IPv4 prefixes longer than 16 bits.
pub const BLOCKS: usize = 1 << 12;
/// Intervals of IPv6 addresses of one field: the ends of as many prefixes as there are rules, and one more.
pub const INTERVALS: usize = 1 << 12;
/// Different pieces of payload that are looked at.
pub const WINDOWS: usize = 8;
pub const WINDOW_BUCKETS: usize = 1 << 10;
pub const WINDOW_WAYS: usize = 4;
/// Values of what a packet is beside its addresses and numbers: see [`Asked::kind`].
pub const KINDS: usize = 1 << 10;

/// Bits of [`RuleTables::fields`]: some rule looks at it. The number of the bit is the field's place in a [`Search`].
pub const FIELD_SOURCE: u32 = 1;
pub const FIELD_DESTINATION: u32 = 1 << 1;
pub const FIELD_SOURCE_PORT: u32 = 1 << 2;
pub const FIELD_DESTINATION_PORT: u32 = 1 << 3;
pub const FIELD_LENGTH: u32 = 1 << 4;
pub const FIELD_KIND: u32 = 1 << 5;
pub const FIELD_VIP: u32 = 1 << 6;
pub const FIELD_MARK: u32 = 1 << 7;
pub const FIELD_TTL: u32 = 1 << 8;
pub const FIELD_CODE: u32 = 1 << 9;
/// The first window; the others follow.
pub const FIELD_WINDOW: u32 = 1 << 10;
/// Fields that are seldom looked at.
pub const FIELDS_RARE: u32 = FIELD_MARK | FIELD_TTL | FIELD_CODE;
pub const FIELDS_WINDOWS: u32 = (FIELD_WINDOW << WINDOWS) - FIELD_WINDOW;

/// In an entry of a prefix: a block, by its number, instead of a row.
pub const BLOCK: u32 = 1 << 15;
/// In an entry: the summary stands above the row.
pub const SUMMARY_SHIFT: u32 = 16;
const BLOCK_MASK: u32 = BLOCKS as u32 - 1;

/// [`Asked::fragment`]: as in RFC 8955, 4.2.2.12.
pub const DONT_FRAGMENT: u32 = 1;
pub const IS_FRAGMENT: u32 = 2;
pub const FIRST_FRAGMENT: u32 = 4;
pub const LAST_FRAGMENT: u32 = 8;

/// One generation of all rules. An entry of a table is a row in the lower half, and that row's summary in the upper.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RuleTables {
    /// `FIELD_*` bits.
    pub fields: u32,
    /// Words that have rules, a bit each.
    pub summary: u32,
    pub pad: u32,
    /// Entries of packets that have no ports, or no ICMP.
    pub no_source_port: u32,
    pub no_destination_port: u32,
    pub no_code: u32,
    /// Intervals in use, of sources and destinations.
    pub intervals: [u32; 2],
    /// Rules that proven flows meet too.
    pub established: [u64; WORDS],
    pub windows: [Window; WINDOWS],
    pub entries: [RuleEntry; BITS],
    pub kinds: [u32; KINDS],
    /// By DSCP and the fragment's bits.
    pub marks: [u32; 1 << 10],
    pub ttls: [u32; 256],
    pub codes: [u32; 256],
    pub source_ports: [u32; 1 << 16],
    pub destination_ports: [u32; 1 << 16],
    pub lengths: [u32; 1 << 16],
    pub vips: [u32; 1 << 16],
    /// IPv4 sources and destinations by their first 16 bits.
    pub prefixes: [[u32; 1 << 16]; 2],
    /// By the next 8 bits.
    pub blocks: [[u32; 256]; BLOCKS],
    /// IPv6 sources and destinations, in order; the first begins at 0.
    pub starts: [[Interval; INTERVALS]; 2],
    pub window_values: [[[u64; WINDOW_WAYS]; WINDOW_BUCKETS]; WINDOWS],
    pub window_entries: [[[u32; WINDOW_WAYS]; WINDOW_BUCKETS]; WINDOWS],
    pub rows: [[u64; WORDS]; ROWS],
}

/// From where on IPv6 addresses have another class.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interval {
    /// In host byte order.
    pub high: u64,
    pub low: u64,
    pub entry: u64,
}

/// A piece of payload that some rule looks at.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Window {
    pub mask: u64,
    /// Of the hash that keeps each bucket's values within its ways.
    pub seed: u64,
    /// In the payload.
    pub offset: u32,
    /// From 1 to 8.
    pub bytes: u32,
    /// Entry of all values that no rule names.
    pub other: u32,
    pub pad: u32,
}

/// What becomes of a packet that a rule means.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RuleEntry {
    /// Index of its state and counters.
    pub number: u16,
    /// A [`RuleAction`] as a number.
    pub action: u8,
    /// Non-zero: count only.
    pub monitor: u8,
    pub pad: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RuleAction {
    Drop = 0,
    Limit = 1,
    Pass = 2,
    Challenge = 3,
    Sample = 4,
}

/// What rules look at of a packet. Addresses are words in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Asked {
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Non-zero if it is IPv6.
    pub v6: u32,
    /// Non-zero if the next two are of this packet.
    pub has_ports: u32,
    pub source_port: u32,
    pub destination_port: u32,
    /// Non-zero if there is a `code`.
    pub has_code: u32,
    pub code: u32,
    /// [`tcp_kind`], [`icmp_kind`] or [`plain_kind`].
    pub kind: u32,
    pub length: u32,
    pub dscp: u32,
    /// `*_FRAGMENT` bits.
    pub fragment: u32,
    pub ttl: u32,
    pub vip: u32,
    /// Where the payload begins and ends in the frame; both zero if there is none.
    pub payload: u32,
    pub end: u32,
}

/// What is kept of a packet while its rules are looked for: in a map, for the kernel's stack is small, and the verifier
/// forgets there what it knows of numbers, which would multiply the ways that it follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Search {
    pub asked: Asked,
    /// Of the packet's classes, at the places of the fields that are looked at.
    pub entries: [u32; ENTRIES],
    /// The rules that mean it, in the words that [`find`] names.
    pub meant: [u64; WORDS],
    /// See [`forget`].
    pub words: u32,
    pub pad: u32,
}

#[inline(always)]
#[must_use]
pub const fn tcp_kind(flags: u8) -> u32 {
    flags as u32
}

#[inline(always)]
#[must_use]
pub const fn icmp_kind(v6: bool, kind: u8) -> u32 {
    (if v6 { 0x200 } else { 0x100 }) | kind as u32
}

/// Of a packet that is neither, or whose header is in another fragment.
#[inline(always)]
#[must_use]
pub const fn plain_kind(protocol: u8) -> u32 {
    0x300 | protocol as u32
}

/// Places for entries of fields.
pub const ENTRIES: usize = 32;
/// Places that fields have.
const FIELDS: u32 = FIELDS_WINDOWS.ilog2() + 1;

/// Finds the rules that mean a packet of a flow, and returns the words in which there are some. `payload` reads so many
/// bytes from this offset of the frame on, zeros behind them; `None` if they are not there.
#[inline(always)]
pub fn find(
    tables: &RuleTables,
    search: &mut Search,
    flow: State,
    payload: impl Fn(u32, u32) -> Option<u64>,
) -> u32 {
    let Search {
        asked,
        entries,
        meant,
        ..
    } = search;
    let mut summary = read(&tables.summary);
    macro_rules! field {
        ($field:expr, $entry:expr) => {
            field!($field, $field.ilog2() as usize, $entry)
        };
        ($field:expr, $place:expr, $entry:expr) => {
            if read(&tables.fields) & $field != 0 {
                let entry = $entry;
                summary &= entry >> SUMMARY_SHIFT;
                put(entries, $place, entry);
            }
        };
    }
    macro_rules! pick {
        ($table:ident, $($field:ident)|+ ) => {
            pick(&tables.$table, 0 $(| read(&asked.$field) as usize)+)
        };
    }
    field!(FIELD_KIND, pick!(kinds, kind));
    field!(
        FIELD_SOURCE_PORT,
        if read(&asked.has_ports) != 0 {
            pick!(source_ports, source_port)
        } else {
            read(&tables.no_source_port)
        }
    );
    field!(
        FIELD_DESTINATION_PORT,
        if read(&asked.has_ports) != 0 {
            pick!(destination_ports, destination_port)
        } else {
            read(&tables.no_destination_port)
        }
    );
    field!(FIELD_LENGTH, pick!(lengths, length));
    field!(FIELD_VIP, pick!(vips, vip));
    field!(
        FIELD_SOURCE,
        prefix::<0>(tables, &asked.source, read(&asked.v6))
    );
    field!(
        FIELD_DESTINATION,
        prefix::<1>(tables, &asked.destination, read(&asked.v6))
    );
    if read(&tables.fields) & FIELDS_RARE != 0 {
        let mark = read(&asked.dscp) << 4 | read(&asked.fragment);
        field!(FIELD_MARK, pick(&tables.marks, mark as usize));
        field!(FIELD_TTL, pick!(ttls, ttl));
        field!(
            FIELD_CODE,
            if read(&asked.has_code) != 0 {
                pick!(codes, code)
            } else {
                read(&tables.no_code)
            }
        );
    }
    if read(&tables.fields) & FIELDS_WINDOWS != 0 && summary != 0 {
        for at in 0..WINDOWS {
            field!(
                FIELD_WINDOW << at,
                FIELD_WINDOW.ilog2() as usize + at,
                window(tables, at, asked, &payload)
            );
        }
    }
    let mut found = 0;
    for quarter in 0..WORDS / QUARTER {
        let first = quarter * QUARTER;
        if summary >> first & ((1 << QUARTER) - 1) == 0 {
            continue;
        }
        let words = in_quarter(tables, entries, quarter);
        for (at, word) in words.into_iter().enumerate() {
            let word = match flow {
                State::Proven => word & pick(&tables.established, first + at),
                _ => word,
            };
            // SAFETY: there are as many words as quarters have.
            let place = unsafe { meant.as_mut_ptr().add(first + at) };
            // SAFETY: as above.
            unsafe { place.write_volatile(word) };
            found |= (1 ^ same(word, 0) as u32) << (first + at);
        }
    }
    found
}

/// Words whose rows are ANDed at a time: so many fit the registers.
const QUARTER: usize = WORDS / 4;

/// The rules in a quarter of the words that mean the packet whose entries these are.
#[inline(always)]
fn in_quarter(tables: &RuleTables, entries: &[u32; ENTRIES], quarter: usize) -> [u64; QUARTER] {
    let rows: *const [[u64; WORDS]; ROWS] = &raw const tables.rows;
    // SAFETY: the same memory, as one array.
    let quarters = unsafe { &*rows.cast::<[[u64; QUARTER]; 4 * ROWS]>() };
    let mut words = [u64::MAX; QUARTER];
    let mut fields = read(&tables.fields);
    for place in 0..FIELDS {
        if fields == 0 {
            break;
        }
        if fields & 1 != 0 {
            // The index is masked to the rows that there are, which cuts the summary off.
            let index = (get(entries, place as usize) as usize) << 2 | quarter;
            let row = pick(quarters, index);
            words[0] &= row[0];
            words[1] &= row[1];
            words[2] &= row[2];
            words[3] &= row[3];
        }
        fields >>= 1;
    }
    words
}

/// The class of an address: `FIELD` 0 for sources, 1 for destinations.
#[inline(always)]
fn prefix<const FIELD: usize>(tables: &RuleTables, address: &[u64; 2], v6: u32) -> u32 {
    if v6 != 0 {
        return interval::<FIELD>(tables, address);
    }
    let address = u32::from_be((read64(&address[1]) >> 32) as u32);
    let entry = pick(&tables.prefixes[FIELD], (address >> 16) as usize);
    if entry & BLOCK == 0 {
        return entry;
    }
    let entry = in_block(tables, entry, address >> 8);
    if entry & BLOCK == 0 {
        return entry;
    }
    in_block(tables, entry, address)
}

#[inline(always)]
fn in_block(tables: &RuleTables, block: u32, next: u32) -> u32 {
    let blocks: *const [[u32; 256]; BLOCKS] = &raw const tables.blocks;
    // SAFETY: the same memory, as one array.
    let blocks = unsafe { &*blocks.cast::<[u32; 256 * BLOCKS]>() };
    pick(blocks, ((block & BLOCK_MASK) << 8 | next & 0xff) as usize)
}

/// The last interval that does not begin behind the address. Without branches, whose ways the verifier would all follow.
#[inline(always)]
fn interval<const FIELD: usize>(tables: &RuleTables, address: &[u64; 2]) -> u32 {
    let (high, low) = (
        u64::from_be(read64(&address[0])),
        u64::from_be(read64(&address[1])),
    );
    let starts = &tables.starts[FIELD];
    let mut found = 0u64;
    let mut step = INTERVALS as u64 / 2;
    while step > 0 {
        let count = u64::from(read(&tables.intervals[FIELD]));
        if count > step {
            let middle = found + step;
            let start = pick(starts, middle as usize);
            let is_before =
                below(start.high, high) | same(start.high, high) & (1 ^ below(low, start.low));
            let is_used = below(middle, count);
            found += step & (is_before & is_used).wrapping_neg();
        }
        step >>= 1;
    }
    pick(starts, found as usize).entry as u32
}

/// 1 if a is below b, by the borrow of their difference.
#[inline(always)]
fn below(a: u64, b: u64) -> u64 {
    let a = hide(a as usize) as u64;
    ((!a & b) | ((!a | b) & a.wrapping_sub(b))) >> 63
}

/// 1 if both are equal.
#[inline(always)]
fn same(a: u64, b: u64) -> u64 {
    let differing = hide((a ^ b) as usize) as u64;
    1 ^ (differing | differing.wrapping_neg()) >> 63
}

/// The class of a piece of payload.
#[inline(always)]
fn window(
    tables: &RuleTables,
    at: usize,
    asked: &Asked,
    payload: &impl Fn(u32, u32) -> Option<u64>,
) -> u32 {
    let window = pick(&tables.windows, at);
    let start = read(&asked.payload) + window.offset;
    if start + window.bytes > read(&asked.end) {
        return window.other;
    }
    let Some(value) = payload(start, window.bytes) else {
        return window.other;
    };
    let value = value & window.mask;
    let bucket = at << 10 | window_bucket(window.seed, value);
    let values: *const _ = &raw const tables.window_values;
    let entries: *const _ = &raw const tables.window_entries;
    // SAFETY: the same memory, as one array.
    let values = unsafe { &*values.cast::<[u64; WINDOWS * WINDOW_BUCKETS * WINDOW_WAYS]>() };
    // SAFETY: as above.
    let entries = unsafe { &*entries.cast::<[u32; WINDOWS * WINDOW_BUCKETS * WINDOW_WAYS]>() };
    for way in 0..WINDOW_WAYS {
        let index = bucket << 2 | way;
        let entry = pick(entries, index);
        if entry != 0 && pick(values, index) == value {
            return entry;
        }
    }
    window.other
}

/// Where a value of a window lies.
#[inline(always)]
#[must_use]
pub fn window_bucket(seed: u64, value: u64) -> usize {
    (value.wrapping_mul(seed | 1) >> 54) as usize
}

/// The element at `index`, which is masked to the table's size.
#[inline(always)]
#[must_use]
pub fn pick<T: Copy, const N: usize>(table: &[T; N], index: usize) -> T {
    const { assert!(N.is_power_of_two()) };
    // SAFETY: the mask keeps the index below `N`.
    let element = unsafe { table.as_ptr().add(hide(index) & (N - 1)) };
    // SAFETY: as above.
    unsafe { element.read() }
}

/// A word, read anew each time: so the verifier does not multiply its ways by what it learned of it before.
#[inline(always)]
#[must_use]
pub fn read(word: &u32) -> u32 {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

#[inline(always)]
fn read64(word: &u64) -> u64 {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// A number by way of a map's value: what the verifier has learned of it is no longer known, nor is what it was made from of
/// any more use to it, as it is to [`crate::forget`].
#[inline(always)]
#[must_use]
pub fn forget(word: &mut u32, number: u32) -> u32 {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::from_mut(word).write_volatile(number) };
    read(word)
}

#[inline(always)]
fn get(entries: &[u32; ENTRIES], place: usize) -> u32 {
    // SAFETY: callers name a place below the number of entries.
    let entry = unsafe { entries.as_ptr().add(place & (ENTRIES - 1)) };
    // SAFETY: as above.
    unsafe { entry.read_volatile() }
}

#[inline(always)]
fn put(entries: &mut [u32; ENTRIES], place: usize, entry: u32) {
    // SAFETY: callers name a place below the number of entries.
    let to = unsafe { entries.as_mut_ptr().add(place & (ENTRIES - 1)) };
    // SAFETY: as above.
    unsafe { to.write_volatile(entry) };
}
