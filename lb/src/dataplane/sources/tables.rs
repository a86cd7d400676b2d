//! The memory that sets of sources live in, and what is free in it.

use std::{collections::HashMap, mem::offset_of, ops::Range};

use sluice_ebpf::{
    abi::{SOURCES_ALLOW, SOURCES_OF_VIPS, SOURCES_V4, SOURCES_V6, Settings},
    sources::{CLASSES, FULL, FULL_UNITS, NUMBER, SPARSE, UNIT_WORDS, V6_WAYS, WORD},
};

use super::SourceError;
use crate::dataplane::Cells;

/// The maps that sets of sources live in, as words.
pub struct SourceTables {
    /// `SETTINGS`, of which only `sources` and `sets_*` are written.
    pub settings: Box<dyn Cells<u32> + Send>,
    /// `SOURCE_FILTER`.
    pub filter: Box<dyn Cells<u32> + Send>,
    /// `SOURCES`.
    pub v4: Box<dyn Cells<u32> + Send>,
    /// `SOURCE_BLOCKS`: 4 words a unit.
    pub blocks: Box<dyn Cells<u64> + Send>,
    /// `SOURCE_FILTER_V6`.
    pub filter_v6: Box<dyn Cells<u32> + Send>,
    /// `SOURCE_LENGTHS_V6`: 4 words a list.
    pub lists: Box<dyn Cells<u64> + Send>,
    /// `SOURCES_V6`: 8 words a bucket; the number of buckets is a power of two.
    pub v6: Box<dyn Cells<u64> + Send>,
    /// `SOURCE_CLASSES`.
    pub classes: Box<dyn Cells<u64> + Send>,
    /// Returns when no packet is under way any more that was when it was called.
    pub grace: Box<dyn FnMut() + Send>,
}

impl SourceTables {
    pub(super) fn bits(&self) -> u32 {
        self.settings.get(SOURCES_AT)
    }

    pub(super) fn set_bits(&mut self, has_v4: bool, has_v6: bool) {
        let given = [
            (has_v4, SOURCES_V4),
            (has_v6, SOURCES_V6),
            (self.masks().allow != 0, SOURCES_ALLOW),
        ];
        let bits = given.iter().filter(|(is_given, _)| *is_given);
        let of_vips = self.bits() & SOURCES_OF_VIPS;
        self.write_bits(bits.fold(of_vips, |bits, (_, bit)| bits | bit));
    }

    /// Whether packets ask which sets hold for their VIP.
    pub(super) fn set_of_vips(&mut self, any: bool) {
        let others = self.bits() & !SOURCES_OF_VIPS;
        self.write_bits(if any {
            others | SOURCES_OF_VIPS
        } else {
            others
        });
    }

    fn write_bits(&mut self, bits: u32) {
        if self.bits() != bits {
            self.settings.set(SOURCES_AT, bits);
        }
    }

    /// What the sets are for.
    pub(super) fn masks(&self) -> Masks {
        let word = |at: usize| {
            let half = |at: usize| u64::from(self.settings.get(at));
            half(at) | half(at + 1) << 32
        };
        let [allow, deny, monitor] = MASKS_AT.map(word);
        Masks {
            allow,
            deny,
            monitor,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub(super) fn set_masks(&mut self, masks: Masks) {
        let words = [masks.allow, masks.deny, masks.monitor];
        for (at, word) in MASKS_AT.into_iter().zip(words) {
            for (at, half) in [(at, word as u32), (at + 1, (word >> 32) as u32)] {
                if self.settings.get(at) != half {
                    self.settings.set(at, half);
                }
            }
        }
        let bits = self.bits();
        self.set_bits(bits & SOURCES_V4 != 0, bits & SOURCES_V6 != 0);
    }

    /// Words that blocks can have.
    pub(super) fn words(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn buckets(&self) -> usize {
        self.v6.len() / V6_WAYS
    }
}

/// What sets are for, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    pub allow: u64,
    pub deny: u64,
    pub monitor: u64,
}

const SOURCES_AT: usize = offset_of!(Settings, sources) / 4;
const MASKS_AT: [usize; 3] = [
    offset_of!(Settings, sets_allow) / 4,
    offset_of!(Settings, sets_deny) / 4,
    offset_of!(Settings, sets_monitor) / 4,
];

/// Numbers of a table. One that was given back is used again only when no packet can have it any more.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Vec<u32>,
    retired: Vec<u32>,
}

impl Pool {
    /// All numbers below `end` but those in use and 0, which is nothing; the lowest is taken first.
    pub(super) fn without(end: u32, is_used: impl Fn(u32) -> bool) -> Self {
        Self {
            free: (1..end).rev().filter(|number| !is_used(*number)).collect(),
            retired: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, grace: &mut dyn FnMut()) -> Option<u32> {
        if self.free.is_empty() && !self.retired.is_empty() {
            grace();
            self.free.append(&mut self.retired);
        }
        self.free.pop()
    }

    pub(super) fn give_back(&mut self, number: u32) {
        self.retired.push(number);
    }

    /// Whether there are some, or so many to be had by a wait that nothing larger should be taken apart instead.
    fn has_many(&self) -> bool {
        const MANY: usize = 1 << 12;
        !self.free.is_empty() || self.retired.len() >= MANY
    }
}

/// Units of blocks: words, single units, and runs of 16. A run is taken apart when no single one is left, and a unit when
/// no word is, but not while many of them only wait to be used again.
#[derive(Debug)]
pub(super) struct Units {
    words: Pool,
    single: Pool,
    runs: Pool,
}

impl Units {
    /// All but those that these entries of the first level use. Tells how many words those are.
    pub(super) fn without(words: u32, entries: impl Iterator<Item = u32>) -> (Self, u32) {
        let mut used = vec![false; words as usize];
        for entry in entries {
            for word in words_of_block(entry) {
                if let Some(used) = used.get_mut(word) {
                    *used = true;
                }
            }
        }
        let mut this = Self {
            words: Pool::default(),
            single: Pool::default(),
            runs: Pool::default(),
        };
        let runs = (0..words).step_by(RUN_WORDS).zip(used.chunks(RUN_WORDS));
        for (first, run) in runs.rev() {
            if run.len() == RUN_WORDS && !run.contains(&true) {
                this.runs.free.push(first / UNIT);
                continue;
            }
            let units = (first..words).step_by(UNIT_WORDS);
            let units: Vec<_> = units.zip(run.chunks(UNIT_WORDS)).collect();
            for (first, unit) in units.into_iter().rev() {
                if !unit.contains(&true) {
                    this.single.free.push(first / UNIT);
                    continue;
                }
                let free = (first..).zip(unit).filter(|(_, used)| !**used);
                this.words.free.extend(free.map(|(word, _)| word));
            }
        }
        let used = used.into_iter().filter(|used| *used).count();
        (this, u32::try_from(used).unwrap_or(u32::MAX))
    }

    pub(super) fn take_word(&mut self, grace: &mut dyn FnMut()) -> Option<u32> {
        if self.words.has_many() {
            return self.words.take(grace);
        }
        let unit = match self.take_near_single(grace) {
            Some(unit) => unit,
            None => match self.words.take(grace) {
                Some(word) => return Some(word),
                None => self.take_single(grace)?,
            },
        };
        let first = unit * UNIT;
        self.words.free.extend((first + 1..first + UNIT).rev());
        Some(first)
    }

    pub(super) fn take_single(&mut self, grace: &mut dyn FnMut()) -> Option<u32> {
        if let Some(unit) = self.take_near_single(grace) {
            return Some(unit);
        }
        if let Some(unit) = self.single.take(grace) {
            return Some(unit);
        }
        let first = self.runs.take(grace)?;
        Some(self.take_apart(first))
    }

    pub(super) fn take_run(&mut self, grace: &mut dyn FnMut()) -> Option<u32> {
        self.runs.take(grace)
    }

    /// Gives back what an entry of the first level led to.
    pub(super) fn give_back(&mut self, entry: u32) {
        match entry & WORD {
            WORD => self.words.give_back(entry & NUMBER),
            SPARSE => self.single.give_back(entry & NUMBER),
            FULL => self.runs.give_back(entry & NUMBER),
            _ => {}
        }
    }

    /// One that takes no wait for just a few.
    fn take_near_single(&mut self, grace: &mut dyn FnMut()) -> Option<u32> {
        if self.single.has_many() {
            return self.single.take(grace);
        }
        let first = self.runs.free.pop()?;
        Some(self.take_apart(first))
    }

    fn take_apart(&mut self, first: u32) -> u32 {
        self.single
            .free
            .extend((first + 1..first + FULL_UNITS).rev());
        first
    }
}

const RUN_WORDS: usize = FULL_UNITS as usize * UNIT_WORDS;
#[expect(clippy::cast_possible_truncation, reason = "a few")]
const UNIT: u32 = UNIT_WORDS as u32;

/// The words that an entry of the first level leads to.
pub(super) const fn words_of_block(entry: u32) -> Range<usize> {
    let number = (entry & NUMBER) as usize;
    let (first, words) = match entry & WORD {
        WORD => (number, 1),
        SPARSE => (number * UNIT_WORDS, UNIT_WORDS),
        FULL => (number * UNIT_WORDS, RUN_WORDS),
        _ => (0, 0),
    };
    first..first + words
}

/// Which sets the sources of each class are in.
#[derive(Debug)]
pub(super) struct Classes {
    by_sets: HashMap<u64, u16>,
    pool: Pool,
}

impl Classes {
    /// Takes over those of the table.
    pub(super) fn held(tables: &SourceTables) -> Self {
        let by_sets: HashMap<u64, u16> = (1..CLASSES)
            .filter_map(|class| {
                let sets = tables.classes.get(class as usize);
                Some((sets, u16::try_from(class).ok()?)).filter(|_| sets != 0)
            })
            .collect();
        Self {
            pool: Pool::without(CLASSES, |class| tables.classes.get(class as usize) != 0),
            by_sets,
        }
    }

    pub(super) fn get(&self, sets: u64) -> u16 {
        self.by_sets.get(&sets).copied().unwrap_or(0)
    }

    /// The class of sources that are in just these sets; makes one if there is none.
    pub(super) fn class(
        &mut self,
        tables: &mut SourceTables,
        sets: u64,
    ) -> Result<u16, SourceError> {
        if sets == 0 {
            return Ok(0);
        }
        if let Some(class) = self.by_sets.get(&sets) {
            return Ok(*class);
        }
        let class = self.pool.take(&mut tables.grace);
        let class = class.and_then(|class| u16::try_from(class).ok());
        let class = class.ok_or(SourceError::Classes)?;
        tables.classes.set(usize::from(class), sets);
        self.by_sets.insert(sets, class);
        Ok(class)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u16)> {
        self.by_sets.iter().map(|(sets, class)| (*sets, *class))
    }

    /// Frees the classes of a set that no source is in any more. Returns them.
    pub(super) fn free(&mut self, tables: &mut SourceTables, set: u8) -> Vec<(u64, u16)> {
        let gone: Vec<(u64, u16)> = self
            .iter()
            .filter(|(sets, _)| sets >> set & 1 != 0)
            .collect();
        if !gone.is_empty() {
            // Packets may have found such a class before their source got another.
            (tables.grace)();
        }
        for (sets, class) in &gone {
            self.by_sets.remove(sets);
            tables.classes.set(usize::from(*class), 0);
            self.pool.give_back(u32::from(*class));
        }
        gone
    }
}
