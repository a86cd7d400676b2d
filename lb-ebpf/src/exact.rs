//! Exact limits for prefixes: where an address's limits are found.
//!
//! IPv4: a filter by the first 21 bits tells whether there is any limit near; it fits a near cache. A direct table of the
//! first 24 bits has entries that name a limit, or a block of 256 for the last 8 bits.
//! IPv6: a filter by the first 32 bits tells which prefix lengths exist below; each is one bucket of a hash table.
//! Either way the result is the most specific limit, which links to the less specific ones that cover it.

use crate::{abi::Settings, hash};

/// Entries of the first level of the IPv4 table.
pub const V4_ENTRIES: u32 = 1 << 24;
/// Entries of a block of its second level.
pub const BLOCK_ENTRIES: u32 = 256;
/// Set in an entry of the first level that names a block.
pub const BLOCK: u32 = 1 << 31;
/// Entries of the IPv6 filter.
pub const V6_FILTER_ENTRIES: u32 = 1 << 16;
/// Ways of an IPv6 bucket.
pub const V6_WAYS: usize = 8;

/// Neighbours in the first level that share a bit of the filter, as a shift.
pub const V4_FILTER_SHIFT: u32 = 3;
/// Words of the filter.
pub const V4_FILTER_WORDS: u32 = V4_ENTRIES >> V4_FILTER_SHIFT >> 5;

/// The word of the filter that has an entry's bit, and the bit.
#[inline(always)]
#[must_use]
pub const fn v4_filter(index: u32) -> (u32, u32) {
    let bit = index >> V4_FILTER_SHIFT;
    (bit >> 5, 1 << (bit & 31))
}

/// Index in the first level, for an address in host byte order.
#[inline(always)]
#[must_use]
pub const fn v4_index(address: u32) -> u32 {
    address >> 8
}

/// Index in the filter. Its value has a bit for each length in `Settings::exact_v6_lengths`.
#[inline(always)]
#[must_use]
pub fn v6_filter_index(settings: &Settings, address: [u64; 2]) -> u32 {
    let hash = hash::hash2(&settings.local_key, address[0] & 0xffff_ffff, 0x76);
    hash as u32 & (V6_FILTER_ENTRIES - 1)
}

/// Hash of a prefix. The low half chooses the bucket, the high half is the tag (never zero, which is free).
#[inline(always)]
#[must_use]
pub fn v6_hash(settings: &Settings, prefix: [u64; 2], length: u8) -> u64 {
    hash::hash4(
        &settings.local_key,
        [prefix[0], prefix[1], length as u64, 0x76],
    ) | 1 << 32
}
