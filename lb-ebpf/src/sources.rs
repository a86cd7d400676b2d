//! Sets of source prefixes: how the class of an address is found, whatever number of sets and prefixes there are.
//!
//! All addresses that are in the same sets have the same class, a number. IPv4: a filter by the first 21 bits, then a table
//! of the first 24, whose entries are classes, or tell a single address apart, or lead to a block for the last 8. A block
//! with up to four addresses of one class among those of another takes 8 bytes; one with up to 16 changes between four
//! classes 32, any other 512. IPv6: a filter by the first 32 bits tells which prefix lengths there are below; each of them
//! is looked for in two buckets. The longest prefix decides, so its class has in it what covers it.

use bytemuck::{Pod, Zeroable};

use crate::{abi::Settings, exact::V6_FILTER_ENTRIES, hash};

/// In an entry of the table: it leads to a block with a list of changes, by its first unit.
pub const SPARSE: u32 = 2 << 30;
/// In an entry of the table: it leads to a block with a class for each address, by its first unit.
pub const FULL: u32 = 1 << 30;
/// In an entry of the table: it leads to a [`word`], by its number; there are [`UNIT_WORDS`] in a unit.
pub const WORD: u32 = SPARSE | FULL;
/// In an entry of the table that leads nowhere: its class is that of one address only, whose last 8 bits stand from
/// [`LONE_SHIFT`] on, and all others are in no set.
pub const LONE: u32 = 1 << 29;
pub const LONE_SHIFT: u32 = 16;
/// The rest of an entry that leads to a block.
pub const NUMBER: u32 = FULL - 1;
/// Addresses of a /24 whose class a word tells apart from that of the others.
pub const APART: usize = 4;
/// Words in a unit.
pub const UNIT_WORDS: usize = 4;
/// Units of a block that has all 256 classes.
pub const FULL_UNITS: u32 = 256 / UNIT_CLASSES as u32;
/// Classes in a unit of such a block.
pub const UNIT_CLASSES: usize = 4 * UNIT_WORDS;
/// Changes that a sparse block holds.
pub const CHANGES: usize = 16;
/// Different classes that a sparse block holds.
pub const SPARSE_CLASSES: usize = 4;
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

/// The class that an entry which leads nowhere tells of an address, by its last 8 bits.
#[inline(always)]
#[must_use]
pub const fn class_in_entry(entry: u32, low: u8) -> u32 {
    if entry & LONE != 0 && (entry >> LONE_SHIFT) as u8 != low {
        return 0;
    }
    entry & (CLASSES - 1)
}

/// The word of a /24 whose addresses have the class `others`, but for those that end in one of `apart`.
#[inline(always)]
#[must_use]
pub const fn word(others: u16, class: u16, apart: [u8; APART]) -> u64 {
    u32::from_le_bytes(apart) as u64 | (others as u64) << 32 | (class as u64) << 48
}

/// The class that a [`word`] tells of an address, by its last 8 bits.
#[inline(always)]
#[must_use]
pub const fn class_in_word(word: u64, low: u8) -> u32 {
    const HIGH: u32 = 0x8080_8080;
    const ONES: u32 = 0x0101_0101;
    let differing = word as u32 ^ (low as u32 * ONES);
    // Non-zero if a byte is zero.
    let is_apart = differing.wrapping_sub(ONES) & !differing & HIGH != 0;
    (word >> (32 + ((is_apart as u32) << 4))) as u32 & (CLASSES - 1)
}

/// Where the class changes within the last 8 bits of an address. A unit of `SOURCE_BLOCKS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Sparse {
    /// The addresses where it changes, a byte each, in order; the last one is repeated to fill them.
    pub changes: [u64; CHANGES / 8],
    /// Before the first change and from each change on: which of `classes`, two bits each.
    pub choices: u64,
    pub classes: [u16; SPARSE_CLASSES],
}

impl Sparse {
    /// Which of its classes an address has, by its last 8 bits.
    #[inline(always)]
    #[must_use]
    pub const fn choice(&self, low: u8) -> u32 {
        let low = low as u64 * ONES;
        let reached = reached(self.changes[0], low) + reached(self.changes[1], low);
        let changes = reached.wrapping_mul(ONES) >> 56;
        (self.choices >> (2 * changes)) as u32 & (SPARSE_CLASSES as u32 - 1)
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// A one in each byte of `changes` that the same byte of `low` is not below.
#[inline(always)]
const fn reached(changes: u64, low: u64) -> u64 {
    const HIGH: u64 = 0x80 * ONES;
    let rest = (low | HIGH) - (changes & !HIGH);
    (((low & !changes) | (!(low ^ changes) & rest)) & HIGH) >> 7
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
    fn a_word_tells_the_class_of_each_address() {
        for apart in [[0, 1, 2, 3], [255; 4], [7, 7, 7, 128], [127, 129, 254, 0]] {
            let word = word(0x3fff, 0x2001, apart);
            for low in 0..=255 {
                let expected = if apart.contains(&low) { 0x2001 } else { 0x3fff };
                assert_eq!(class_in_word(word, low), expected, "{apart:?} at {low}");
            }
        }
    }

    #[test]
    fn a_sparse_block_tells_the_class_of_each_address() {
        let padded = |list: &[u8]| -> [u8; CHANGES] {
            std::array::from_fn(|at| list[at.min(list.len() - 1)])
        };
        for changes in [
            padded(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
            padded(&[10, 20, 128, 129, 200, 254, 255]),
            padded(&[127, 128]),
            padded(&[255]),
            padded(&[1]),
        ] {
            let block = Sparse {
                changes: bytemuck::cast(changes),
                // Each change leads to the next of four, over and over.
                choices: (0..=CHANGES as u64).fold(0, |all, at| all | (at & 3) << (2 * at)),
                classes: [0; SPARSE_CLASSES],
            };
            for low in 0..=255 {
                let reached = changes.iter().filter(|change| **change <= low).count();
                assert_eq!(
                    block.choice(low) as usize,
                    reached % SPARSE_CLASSES,
                    "{changes:?} at {low}"
                );
            }
        }
    }

    #[test]
    fn a_block_is_as_large_as_its_map_says() {
        assert_eq!(size_of::<Sparse>(), 8 * UNIT_WORDS);
    }
}
