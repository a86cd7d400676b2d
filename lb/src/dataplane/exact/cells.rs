//! The memory that the exact limits live in, and the numbers that are free in it.

use std::collections::{HashSet, VecDeque};

use sluice_ebpf::{
    abi::{MAX_EXACT_LENGTHS, Settings},
    exact::{BLOCK_ENTRIES, V4_FILTER_SHIFT, V6_WAYS, v4_filter},
};

use super::limit::LIMIT_WORDS;
use crate::sys::Mapped;

/// A table of words that packets read while the daemon writes it.
///
/// A word is written at once, and after all words that were written before it. Indices are below [`Cells::len`].
#[expect(clippy::len_without_is_empty, reason = "no table is empty")]
pub trait Cells<T: Copy> {
    fn len(&self) -> usize;
    fn get(&self, at: usize) -> T;
    fn set(&mut self, at: usize, value: T);
}

impl<T: Copy> Cells<T> for Vec<T> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn get(&self, at: usize) -> T {
        self[at]
    }

    fn set(&mut self, at: usize, value: T) {
        self[at] = value;
    }
}

/// `SETTINGS`, as half words.
pub(crate) struct SettingsWords(Mapped<Settings>);

impl SettingsWords {
    pub(crate) fn new(settings: Mapped<Settings>) -> Self {
        Self(settings)
    }
}

impl Cells<u32> for SettingsWords {
    fn len(&self) -> usize {
        size_of::<Settings>() / 4
    }

    fn get(&self, at: usize) -> u32 {
        self.0.load_u32(0, at * 4)
    }

    fn set(&mut self, at: usize, value: u32) {
        self.0.store_u32(0, at * 4, value);
    }
}

/// The maps that exact limits live in, as words.
pub struct ExactTables {
    /// `SETTINGS`, of which only `exact` and `exact_v6_lengths` are written.
    pub settings: Box<dyn Cells<u32> + Send>,
    /// `EXACT_V4_FILTER`.
    pub v4_filter: Box<dyn Cells<u32> + Send>,
    /// `EXACT_V4`.
    pub v4: Box<dyn Cells<u32> + Send>,
    /// `EXACT_V4_BLOCKS`.
    pub blocks: Box<dyn Cells<u32> + Send>,
    /// `EXACT_V6_LENGTHS`.
    pub v6_filter: Box<dyn Cells<u32> + Send>,
    /// `EXACT_V6`: 8 words a bucket; the number of buckets is a power of two.
    pub v6: Box<dyn Cells<u64> + Send>,
    /// `LIMITS`: 16 words a limit.
    pub limits: Box<dyn Cells<u64> + Send>,
}

impl ExactTables {
    pub(super) fn limit_words(&self, index: u32) -> [u64; LIMIT_WORDS] {
        std::array::from_fn(|word| self.limits.get(index as usize * LIMIT_WORDS + word))
    }

    pub(super) fn set_limit_word(&mut self, index: u32, word: usize, value: u64) {
        self.limits.set(index as usize * LIMIT_WORDS + word, value);
    }

    pub(super) fn limit_count(&self) -> u32 {
        count(self.limits.len() / LIMIT_WORDS)
    }

    pub(super) fn block_count(&self) -> u32 {
        count(self.blocks.len() / BLOCK_ENTRIES as usize)
    }

    pub(super) fn bucket_count(&self) -> usize {
        self.v6.len() / V6_WAYS
    }

    pub(super) fn exact_bits(&self) -> u32 {
        self.settings.get(EXACT_AT)
    }

    pub(super) fn set_exact_bits(&mut self, bits: u32) {
        if self.exact_bits() != bits {
            self.settings.set(EXACT_AT, bits);
        }
    }

    pub(super) fn v6_lengths(&self) -> [u8; MAX_EXACT_LENGTHS] {
        let words: [u32; LENGTHS_WORDS] =
            std::array::from_fn(|word| self.settings.get(LENGTHS_AT + word));
        bytemuck::cast(words)
    }

    pub(super) fn set_v6_lengths(&mut self, lengths: [u8; MAX_EXACT_LENGTHS]) {
        let words: [u32; LENGTHS_WORDS] = bytemuck::cast(lengths);
        for (word, value) in words.into_iter().enumerate() {
            self.settings.set(LENGTHS_AT + word, value);
        }
    }
}

const EXACT_AT: usize = std::mem::offset_of!(Settings, exact) / 4;
const LENGTHS_AT: usize = std::mem::offset_of!(Settings, exact_v6_lengths) / 4;
const LENGTHS_WORDS: usize = MAX_EXACT_LENGTHS / 4;

/// No map holds more than 2^32 elements.
fn count(elements: usize) -> u32 {
    u32::try_from(elements).unwrap_or(u32::MAX)
}

/// Writes an entry of a table of the first 24 bits. Its filter says so before it is there, and until none of its
/// neighbours is.
#[expect(clippy::cast_possible_truncation, reason = "there are 2^24 entries")]
pub(crate) fn set_filtered(
    filter: &mut dyn Cells<u32>,
    entries: &mut dyn Cells<u32>,
    at: usize,
    entry: u32,
) {
    let (word, bit) = v4_filter(at as u32);
    let word = word as usize;
    let bits = filter.get(word);
    if entry != 0 && bits & bit == 0 {
        filter.set(word, bits | bit);
    }
    entries.set(at, entry);
    let first = at >> V4_FILTER_SHIFT << V4_FILTER_SHIFT;
    let mut neighbours = first..first + (1 << V4_FILTER_SHIFT);
    if entry == 0 && bits & bit != 0 && neighbours.all(|at| entries.get(at) == 0) {
        filter.set(word, bits & !bit);
    }
}

/// Free numbers of a table. One that was given back is taken again as late as can be: a packet may still hold it.
#[derive(Debug)]
pub(super) struct Numbers {
    never_used: std::ops::Range<u32>,
    given_back: VecDeque<u32>,
}

impl Numbers {
    pub(super) fn new(all: std::ops::Range<u32>) -> Self {
        Self {
            never_used: all,
            given_back: VecDeque::new(),
        }
    }

    /// All numbers but those in use.
    pub(super) fn without(all: std::ops::Range<u32>, used: &HashSet<u32>) -> Self {
        let end = used.iter().max().map_or(all.start, |last| last + 1);
        Self {
            never_used: end..all.end,
            given_back: (all.start..end)
                .filter(|number| !used.contains(number))
                .collect(),
        }
    }

    pub(super) fn are_gone(&self) -> bool {
        self.never_used.is_empty() && self.given_back.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.never_used
            .next()
            .or_else(|| self.given_back.pop_front())
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.given_back.push_back(number);
    }
}
