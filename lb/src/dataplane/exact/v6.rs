//! The IPv6 tables: a filter of the prefix lengths below the first 32 bits, and buckets of prefixes.
//!
//! A prefix shorter than /32 sets its bit in the entry of every /32 that it covers: up to all 65,536 of them, and every
//! packet that meets the bit pays one more bucket.

use std::collections::HashMap;

use bytemuck::Zeroable;
use sluice_ebpf::{
    abi::{EXACT_V6, MAX_EXACT_LENGTHS, Settings},
    exact::{V6_FILTER_ENTRIES, V6_WAYS, v6_filter_index, v6_hash},
};

use super::{
    ExactError,
    cells::ExactTables,
    tree::{Key, Tree, words_of},
};

/// What the tables do not tell by themselves.
pub(super) struct V6 {
    /// Only its key is of use.
    keyed: Settings,
    /// Longest first, by their bit in the filter. One that no prefix has any more stays until its place is needed.
    lengths: Vec<u8>,
    /// For each length in use, how many prefixes set its bit in each entry of the filter.
    counts: HashMap<u8, Count>,
}

struct Count {
    prefixes: usize,
    by_entry: Vec<u32>,
}

impl V6 {
    pub(super) fn new(local_key: [u64; 4]) -> Self {
        Self {
            keyed: Settings {
                local_key,
                ..Settings::zeroed()
            },
            lengths: Vec::new(),
            counts: HashMap::new(),
        }
    }

    /// Whether there is room for one more prefix.
    pub(super) fn check(&self, tables: &ExactTables, key: Key) -> Result<(), ExactError> {
        if !self.counts.contains_key(&key.length) && self.counts.len() == MAX_EXACT_LENGTHS {
            let mut lengths: Vec<u8> = self.counts.keys().copied().collect();
            lengths.sort_unstable();
            return Err(ExactError::TooManyLengths { lengths });
        }
        match self.find(tables, key, 0) {
            Some(_) => Ok(()),
            None => Err(ExactError::BucketFull),
        }
    }

    /// Leads the prefix to its first limit. There is room: [`V6::check`] said so.
    pub(super) fn add(&mut self, tables: &mut ExactTables, key: Key, head: u32) {
        if !self.lengths.contains(&key.length) {
            self.add_length(tables, key.length);
        }
        if let Some(at) = self.find(tables, key, 0) {
            let value = self.entry(key, head);
            tables.v6.set(at, value);
        }
        self.count(key);
        let bit = self.bit(key.length);
        for at in self.filter_entries(key) {
            let lengths = tables.v6_filter.get(at);
            if lengths & bit == 0 {
                tables.v6_filter.set(at, lengths | bit);
            }
        }
    }

    /// Leads a prefix to another limit.
    pub(super) fn repoint(&self, tables: &mut ExactTables, key: Key, old: u32, new: u32) {
        if let Some(at) = self.find(tables, key, self.entry(key, old)) {
            tables.v6.set(at, self.entry(key, new));
        }
    }

    pub(super) fn remove(&mut self, tables: &mut ExactTables, key: Key, head: u32) {
        if let Some(at) = self.find(tables, key, self.entry(key, head)) {
            tables.v6.set(at, 0);
        }
        let bit = self.bit(key.length);
        let entries = self.filter_entries(key);
        let Some(count) = self.counts.get_mut(&key.length) else {
            return;
        };
        for at in entries {
            count.by_entry[at] -= 1;
            if count.by_entry[at] == 0 {
                let lengths = tables.v6_filter.get(at);
                tables.v6_filter.set(at, lengths & !bit);
            }
        }
        count.prefixes -= 1;
        if count.prefixes == 0 {
            self.counts.remove(&key.length);
        }
    }

    /// The bookkeeping for tables that hold just what the tree says; `None` if they do not.
    pub(super) fn verify(local_key: [u64; 4], tables: &ExactTables, tree: &Tree) -> Option<Self> {
        let mut this = Self::new(local_key);
        for length in tables.v6_lengths() {
            if length == 0 || this.lengths.last().is_some_and(|last| *last <= length) {
                break;
            }
            this.lengths.push(length);
        }
        let has_default = tree.iter().next().is_some_and(|(key, _)| key.length == 0);
        if has_default && this.lengths.len() < MAX_EXACT_LENGTHS {
            this.lengths.push(0);
        }
        let mut prefixes = 0;
        for (key, group) in tree.iter() {
            this.find(tables, key, this.entry(key, group.limits[0]))?;
            this.lengths.contains(&key.length).then_some(())?;
            this.count(key);
            prefixes += 1;
        }
        let entries = (0..tables.v6.len())
            .filter(|at| tables.v6.get(*at) != 0)
            .count();
        let expected = this.expected_filter();
        let filter_fits = expected
            .iter()
            .enumerate()
            .all(|(at, lengths)| tables.v6_filter.get(at) == *lengths);
        (entries == prefixes && filter_fits).then_some(this)
    }

    /// No address has a limit any more.
    pub(super) fn clear(tables: &mut ExactTables) {
        clear_filter(tables);
        for at in 0..tables.v6.len() {
            if tables.v6.get(at) != 0 {
                tables.v6.set(at, 0);
            }
        }
        tables.set_v6_lengths([0; MAX_EXACT_LENGTHS]);
    }

    /// Makes a bit for a new length.
    ///
    /// A length shorter than all gets the next bit. Any other moves bits, and a packet between old bits and new lengths
    /// could take a less specific limit: so IPv6 limits are off meanwhile, some 100 microseconds. Emptying the
    /// filter before the lengths change takes longer than any packet that has read the old one.
    fn add_length(&mut self, tables: &mut ExactTables, length: u8) {
        let is_shortest = self.lengths.last().is_none_or(|last| length < *last);
        if is_shortest && self.lengths.len() < MAX_EXACT_LENGTHS {
            self.lengths.push(length);
            tables.set_v6_lengths(self.padded_lengths());
            return;
        }
        self.lengths
            .retain(|length| self.counts.contains_key(length));
        self.lengths.push(length);
        self.lengths.sort_unstable_by(|a, b| b.cmp(a));
        let filter = self.expected_filter();
        let bits = tables.exact_bits();
        tables.set_exact_bits(bits & !EXACT_V6);
        clear_filter(tables);
        tables.set_v6_lengths(self.padded_lengths());
        for (at, lengths) in filter.into_iter().enumerate() {
            if lengths != 0 {
                tables.v6_filter.set(at, lengths);
            }
        }
        tables.set_exact_bits(bits);
    }

    fn count(&mut self, key: Key) {
        let entries = self.filter_entries(key);
        let count = self.counts.entry(key.length).or_insert_with(|| Count {
            prefixes: 0,
            by_entry: vec![0; V6_FILTER_ENTRIES as usize],
        });
        count.prefixes += 1;
        for at in entries {
            count.by_entry[at] += 1;
        }
    }

    fn expected_filter(&self) -> Vec<u32> {
        let mut filter = vec![0; V6_FILTER_ENTRIES as usize];
        for (length, count) in &self.counts {
            let bit = self.bit(*length);
            for (lengths, prefixes) in filter.iter_mut().zip(&count.by_entry) {
                if *prefixes > 0 {
                    *lengths |= bit;
                }
            }
        }
        filter
    }

    pub(super) fn padded_lengths(&self) -> [u8; MAX_EXACT_LENGTHS] {
        std::array::from_fn(|at| self.lengths.get(at).copied().unwrap_or(0))
    }

    fn bit(&self, length: u8) -> u32 {
        let at = self.lengths.iter().position(|known| *known == length);
        at.map_or(0, |at| 1 << at)
    }

    /// Entries of the filter whose addresses the prefix covers; one can be named several times.
    fn filter_entries(&self, key: Key) -> Vec<usize> {
        // Below this, a prefix covers at least as many /32 as there are entries.
        if u32::from(key.length) + V6_FILTER_ENTRIES.ilog2() <= FILTER_PREFIX.into() {
            return (0..V6_FILTER_ENTRIES as usize).collect();
        }
        let covered = 1u128 << FILTER_PREFIX.saturating_sub(key.length);
        (0..covered)
            .map(|n| words_of(key.bits | n << (128 - FILTER_PREFIX)))
            .map(|address| v6_filter_index(&self.keyed, address) as usize)
            .collect()
    }

    fn hash(&self, key: Key) -> u64 {
        v6_hash(&self.keyed, key.words(), key.length)
    }

    fn entry(&self, key: Key, head: u32) -> u64 {
        self.hash(key) & !u64::from(u32::MAX) | u64::from(head)
    }

    /// Where `entry` stands in the prefix's bucket.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low bits choose the bucket"
    )]
    fn find(&self, tables: &ExactTables, key: Key, entry: u64) -> Option<usize> {
        let bucket = self.hash(key) as usize & (tables.bucket_count() - 1);
        let mut ways = bucket * V6_WAYS..(bucket + 1) * V6_WAYS;
        ways.find(|at| tables.v6.get(*at) == entry)
    }
}

/// The filter is by a hash of so many bits.
const FILTER_PREFIX: u8 = 32;

fn clear_filter(tables: &mut ExactTables) {
    for at in 0..V6_FILTER_ENTRIES as usize {
        tables.v6_filter.set(at, 0);
    }
}
