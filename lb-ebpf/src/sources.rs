//! Sets of source prefixes: how the class of an address is found, whatever number of sets and prefixes there are.
//!
//! All addresses that are in the same sets have the same class, a number. IPv4: a filter by the first 21 bits, then a table
//! of the first 24, whose entries are classes or lead to a block for the last 8. A block with up to seven changes takes
//! 32 bytes, any other 512. IPv6: a filter by the first 32 bits tells which prefix lengths there are below; each of them is
//! looked for in two buckets. The longest prefix decides, so its class has in it what covers it.

use bytemuck::{Pod, Zeroable};

use crate::{abi::Settings, exact::V6_FILTER_ENTRIES, hash};

/// In an entry of the table: it leads to a block with a list of changes.
pub const SPARSE: u32 = 1 << 31;
/// In an entry of the table: it leads to a block with a class for each address.
pub const FULL: u32 = 1 << 30;
/// The rest of an entry: a class, or the first unit of a block.
pub const NUMBER: u32 = FULL - 1;
/// Units of a block that has all 256 classes.
pub const FULL_UNITS: u32 = 256 / UNIT_CLASSES as u32;
/// Classes in a unit of such a block.
pub const UNIT_CLASSES: usize = 16;
/// Changes that a sparse block holds.
pub const CHANGES: usize = 7;
/// Entries of `SOURCE_CLASSES`. Class 0 is of addresses in no set.
pub const CLASSES: u32 = 1 << 14;
/// Sets that can be at a time, a bit each.
pub const SETS: usize = 64;
/// Lists of prefix lengths that entries of the IPv6 filter name; 0 is the empty one.
pub const V6_LISTS: u32 = 1 << 12;
/// Prefix lengths in a list.
pub const V6_LENGTHS: usize = 32;
/// Entries of the IPv6 filter.
pub const V6_FILTER: u32 = V6_FILTER_ENTRIES;
/// Ways of an IPv6 bucket.
pub const V6_WAYS: usize = 8;

/// Where the class changes within the last 8 bits of an address. A unit of `SOURCE_BLOCKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sparse {
    /// The lower seven bytes are the addresses where it changes, in order; the last one is repeated to fill them.
    pub changes: u64,
    /// The class before the first change, and from each change on.
    pub classes: [u16; CHANGES + 1],
    pub pad: u64,
}

impl Sparse {
    /// Which of the classes an address has, by its last 8 bits.
    #[inline(always)]
    #[must_use]
    pub const fn class_at(changes: u64, low: u8) -> u32 {
        const HIGH: u64 = 0x8080_8080_8080_8080;
        const ONES: u64 = 0x0101_0101_0101_0101;
        let low = low as u64 * ONES;
        // In each byte the highest bit tells whether `low` is not below the change.
        let rest = (low | HIGH) - (changes & !HIGH);
        let reached = ((low & !changes) | (!(low ^ changes) & rest)) & (HIGH >> 8);
        ((reached >> 7).wrapping_mul(ONES) >> 56) as u32
    }
}

/// Hash of an IPv6 prefix. The low half chooses the first bucket, the upper 48 bits are the tag.
#[inline(always)]
#[must_use]
pub fn v6_hash(settings: &Settings, prefix: [u64; 2], length: u8) -> u64 {
    hash::hash4(
        &settings.local_key,
        [prefix[0], prefix[1], length as u64, 0x73],
    ) | 1 << TAG_SHIFT
}

/// The two buckets where a prefix may be. Both depend on all bits of the hash, so that a tag matches by chance only once
/// in 2^60.
#[inline(always)]
#[must_use]
pub const fn v6_buckets(hash: u64, mask: u32) -> [u32; 2] {
    let first = hash as u32;
    let other = (hash >> TAG_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    [first & mask, (first ^ other as u32) & mask]
}

/// An entry of a bucket: tag 48 | class 16. Zero is free: no tag is.
#[inline(always)]
#[must_use]
pub const fn v6_entry(hash: u64, class: u16) -> u64 {
    hash >> TAG_SHIFT << TAG_SHIFT | class as u64
}

/// Whether an entry of a bucket is of the prefix with this hash.
#[inline(always)]
#[must_use]
pub const fn v6_matches(entry: u64, hash: u64) -> bool {
    (entry ^ hash) >> TAG_SHIFT == 0
}

const TAG_SHIFT: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sparse_block_tells_the_class_of_each_address() {
        for changes in [
            [1u8, 2, 3, 4, 5, 6, 7],
            [10, 20, 128, 129, 200, 254, 255],
            [127, 128, 128, 128, 128, 128, 128],
            [255; 7],
            [1; 7],
        ] {
            let mut bytes = [0; 8];
            bytes[..7].copy_from_slice(&changes);
            let word = u64::from_le_bytes(bytes);
            for low in 0..=255 {
                let expected = changes.iter().filter(|change| **change <= low).count();
                assert_eq!(
                    Sparse::class_at(word, low) as usize,
                    expected,
                    "{changes:?} at {low}"
                );
            }
        }
    }

    #[test]
    fn a_block_is_as_large_as_its_map_says() {
        assert_eq!(size_of::<Sparse>(), 2 * UNIT_CLASSES);
    }
}
