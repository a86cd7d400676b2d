//! The IPv4 tables: what each entry shall be is worked out for a run of them, compared with what is there, and written
//! where it differs.
//!
//! A block is never changed while an entry leads to it, so each address goes from its old class to its new one by the
//! store of a single word, whatever sets change.

use std::ops::{Range, RangeInclusive};

use sluice_ebpf::{
    exact::{V4_FILTER_SHIFT, v4_filter},
    sources::{
        self, APART, CHANGES, FULL, FULL_UNITS, LONE, LONE_SHIFT, SPARSE, SPARSE_CLASSES, Sparse,
        UNIT_CLASSES, UNIT_WORDS, WORD,
    },
};

use super::{
    SourceError,
    tables::{Classes, SourceTables, Units, words_of_block},
};
use crate::{dataplane::exact::set_filtered, sources::Members};

/// What entries of the first level shall be, in order.
pub(super) struct Wanted {
    pieces: Vec<Piece>,
    /// Changes within the last 8 bits: from which address on, and the class.
    changes: Vec<(u8, u16)>,
}

enum Piece {
    /// Up to this one (included) all entries are this word.
    Run { last: u32, entry: u32 },
    /// One entry that leads to a block: the class that it begins with, and so many changes.
    Block { first: u16, changes: u16 },
}

/// Works out a run of entries. Makes the classes that they need.
pub(super) fn wanted<'a>(
    tables: &mut SourceTables,
    classes: &mut Classes,
    sets: impl Iterator<Item = (u8, &'a Members)>,
    entries: &RangeInclusive<u32>,
) -> Result<Wanted, SourceError> {
    let (first, last) = (entries.start() << 8, entries.end() << 8 | 0xff);
    // Address 32 | set 8 | whether it begins 8: a number that sorts by address.
    let mut events: Vec<u64> = Vec::new();
    for (set, members) in sets {
        let set = u64::from(set) << 8;
        members.within(first, last, |from, to| {
            events.push(u64::from(from) << 16 | set | 1);
            if to < last {
                events.push((u64::from(to) + 1) << 16 | set);
            }
        });
    }
    events.sort_unstable();
    let mut sweep = Sweep {
        wanted: Wanted {
            pieces: Vec::new(),
            changes: Vec::new(),
        },
        counts: [0; 64],
        sets: 0,
    };
    let mut next = *entries.start();
    let mut class = 0;
    let mut events = events.into_iter().peekable();
    while let Some(event) = events.peek() {
        let entry = entry_of(*event);
        sweep.run(next..entry, class.into());
        let begins_with = class;
        let before = sweep.wanted.changes.len();
        let mut at_first = begins_with;
        while let Some(event) = events.next_if(|event| entry_of(*event) == entry) {
            let low = address_of(event) & 0xff;
            sweep.take(event);
            // Events of the same address make one change.
            while let Some(more) = events.next_if(|more| address_of(*more) == address_of(event)) {
                sweep.take(more);
            }
            let now = classes.class(tables, sweep.sets)?;
            if low == 0 {
                at_first = now;
            } else if now != class {
                let low = u8::try_from(low).unwrap_or(u8::MAX);
                sweep.wanted.changes.push((low, now));
            }
            class = now;
        }
        let changes = &sweep.wanted.changes[before..];
        if let Some(alone) = self::entry(at_first, changes) {
            sweep.wanted.changes.truncate(before);
            sweep.run(entry..entry + 1, alone);
        } else {
            let changes = u16::try_from(changes.len()).unwrap_or(u16::MAX);
            sweep.wanted.pieces.push(Piece::Block {
                first: at_first,
                changes,
            });
        }
        next = entry + 1;
    }
    sweep.run(next..entries.end() + 1, class.into());
    Ok(sweep.wanted)
}

struct Sweep {
    wanted: Wanted,
    /// Ranges of each set that are open.
    counts: [u32; 64],
    sets: u64,
}

impl Sweep {
    fn take(&mut self, event: u64) {
        let set = (event >> 8 & 63) as usize;
        if event & 1 != 0 {
            self.counts[set] += 1;
        } else {
            self.counts[set] -= 1;
        }
        let bit = 1 << set;
        if self.counts[set] == 0 {
            self.sets &= !bit;
        } else {
            self.sets |= bit;
        }
    }

    fn run(&mut self, entries: Range<u32>, entry: u32) {
        if entries.is_empty() {
            return;
        }
        let last = entries.end - 1;
        match self.wanted.pieces.last_mut() {
            Some(Piece::Run {
                last: end,
                entry: same,
            }) if *same == entry => *end = last,
            _ => self.wanted.pieces.push(Piece::Run { last, entry }),
        }
    }
}

/// The entry of a /24 that leads nowhere, if its changes leave that possible.
fn entry(first: u16, changes: &[(u8, u16)]) -> Option<u32> {
    if changes.is_empty() {
        return Some(first.into());
    }
    let word = word_of(first, changes)?;
    let [low, .., a, b] = word.to_le_bytes();
    let class = u16::from_le_bytes([a, b]);
    let lone = sources::word(0, class, [low; APART]);
    (word == lone).then_some(LONE | u32::from(low) << LONE_SHIFT | u32::from(class))
}

/// The word of a /24 by its changes, if few of its addresses have another class than all others.
fn word_of(first: u16, changes: &[(u8, u16)]) -> Option<u64> {
    let &(_, second) = changes.first()?;
    if changes.len() > 2 * APART {
        return None;
    }
    let of_all = |others: u16| {
        let mut apart = Vec::with_capacity(APART);
        let mut class = None;
        for (addresses, other) in runs(first, changes).filter(|(_, class)| *class != others) {
            if *class.get_or_insert(other) != other || apart.len() + addresses.len() > APART {
                return None;
            }
            apart.extend(addresses);
        }
        let last = apart.last().copied()?;
        apart.resize(APART, last);
        Some(sources::word(others, class?, apart.try_into().ok()?))
    };
    of_all(first).or_else(|| of_all(second))
}

/// The addresses between changes, by their last 8 bits, and their class.
fn runs(
    first: u16,
    changes: &[(u8, u16)],
) -> impl Iterator<Item = (RangeInclusive<u8>, u16)> + use<'_> {
    let begin = std::iter::once((0, first)).chain(changes.iter().copied());
    let end = changes.iter().map(|(at, _)| at - 1);
    begin
        .zip(end.chain([u8::MAX]))
        .map(|((from, class), to)| (from..=to, class))
}

fn address_of(event: u64) -> u64 {
    event >> 16
}

#[expect(clippy::cast_possible_truncation, reason = "an address has 32 bits")]
fn entry_of(event: u64) -> u32 {
    (event >> 24) as u32
}

impl Wanted {
    /// Words of all its blocks.
    pub(super) fn words(&self) -> u32 {
        let mut changes = self.changes.as_slice();
        let of = |piece: &Piece| match piece {
            Piece::Run { .. } => 0,
            Piece::Block { first, changes: n } => {
                let (of_this, rest) = changes.split_at(usize::from(*n));
                changes = rest;
                Block::of(*first, of_this).words().len()
            }
        };
        let words = self.pieces.iter().map(of).sum::<usize>();
        u32::try_from(words).unwrap_or(u32::MAX)
    }

    /// Writes what differs.
    pub(super) fn write(
        &self,
        tables: &mut SourceTables,
        units: &mut Units,
        entries: &RangeInclusive<u32>,
    ) -> Written {
        let mut written = Written {
            entries: 0,
            words: 0,
            result: Ok(()),
        };
        let mut at = *entries.start();
        let mut changes = self.changes.as_slice();
        for piece in &self.pieces {
            match piece {
                Piece::Run { last, entry: 0 } => {
                    let held: Vec<u32> = in_use(tables, &(at..=*last)).collect();
                    for at in held {
                        written.entry(tables, units, at, 0);
                    }
                    at = last + 1;
                }
                Piece::Run { last, entry } => {
                    for at in at..=*last {
                        if tables.v4.get(at as usize) != *entry {
                            written.entry(tables, units, at, *entry);
                        }
                    }
                    at = last + 1;
                }
                Piece::Block { first, changes: n } => {
                    let (of_this, rest) = changes.split_at(usize::from(*n));
                    changes = rest;
                    let block = Block::of(*first, of_this);
                    if !block.is_at(tables, tables.v4.get(at as usize)) {
                        match block.put(tables, units) {
                            Ok(new) => written.entry(tables, units, at, new),
                            Err(error) => {
                                written.result = Err(error);
                                return written;
                            }
                        }
                    }
                    at += 1;
                }
            }
        }
        written
    }
}

/// Words that entries lead to now.
pub(super) fn used(tables: &SourceTables, entries: &RangeInclusive<u32>) -> u32 {
    let of = |entry: u32| words_of_block(tables.v4.get(entry as usize)).len();
    let words = in_use(tables, entries).map(of).sum::<usize>();
    u32::try_from(words).unwrap_or(u32::MAX)
}

/// Entries that are not zero, found by the filter.
pub(super) fn in_use<'a>(
    tables: &'a SourceTables,
    entries: &RangeInclusive<u32>,
) -> impl Iterator<Item = u32> + 'a {
    let (first, last) = (*entries.start(), *entries.end());
    let near = move |word: u32| {
        let bits = tables.filter.get(word as usize);
        (0..u32::BITS)
            .filter(move |bit| bits >> bit & 1 != 0)
            .map(move |bit| word * u32::BITS + bit)
    };
    (v4_filter(first).0..=v4_filter(last).0)
        .flat_map(near)
        .flat_map(|group| group << V4_FILTER_SHIFT..(group + 1) << V4_FILTER_SHIFT)
        .filter(move |at| (first..=last).contains(at))
        .filter(|at| tables.v4.get(*at as usize) != 0)
}

/// What a write changed, also if it found no room in the end.
#[derive(Debug)]
pub(super) struct Written {
    /// How many entries differed.
    pub(super) entries: usize,
    /// How many words more are in use.
    pub(super) words: i32,
    pub(super) result: Result<(), SourceError>,
}

impl Written {
    fn entry(&mut self, tables: &mut SourceTables, units: &mut Units, at: u32, new: u32) {
        let old = tables.v4.get(at as usize);
        set_filtered(&mut *tables.filter, &mut *tables.v4, at as usize, new);
        units.give_back(old);
        self.entries += 1;
        let [more, less] = [new, old].map(|entry| words_of_block(entry).len());
        self.words += i32::try_from(more).unwrap_or(0) - i32::try_from(less).unwrap_or(0);
    }
}

/// Sets bits of the filter that are missing in a run of entries, and tells whether there were any.
pub(super) fn mend_filter(tables: &mut SourceTables, entries: &RangeInclusive<u32>) -> bool {
    let mut is_mended = false;
    for entry in entries.clone() {
        let (word, bit) = v4_filter(entry);
        let bits = tables.filter.get(word as usize);
        if bits & bit == 0 && tables.v4.get(entry as usize) != 0 {
            tables.filter.set(word as usize, bits | bit);
            is_mended = true;
        }
    }
    is_mended
}

/// What an entry leads to.
enum Block {
    Word(u64),
    Sparse([u64; UNIT_WORDS]),
    Full(Box<[u64; FULL_UNITS as usize * UNIT_WORDS]>),
}

impl Block {
    /// The smallest that holds these classes.
    fn of(first: u16, changes: &[(u8, u16)]) -> Self {
        if let Some(word) = word_of(first, changes) {
            return Self::Word(word);
        }
        if let Some(block) = sparse(first, changes) {
            return Self::Sparse(bytemuck::cast(block));
        }
        let mut classes = [first; FULL_UNITS as usize * UNIT_CLASSES];
        for (from, class) in changes {
            classes[usize::from(*from)..].fill(*class);
        }
        Self::Full(Box::new(bytemuck::cast(classes)))
    }

    fn words(&self) -> &[u64] {
        match self {
            Self::Word(word) => std::slice::from_ref(word),
            Self::Sparse(words) => words,
            Self::Full(words) => words.as_slice(),
        }
    }

    const fn kind(&self) -> u32 {
        match self {
            Self::Word(_) => WORD,
            Self::Sparse(_) => SPARSE,
            Self::Full(_) => FULL,
        }
    }

    /// Whether an entry leads to one like this.
    fn is_at(&self, tables: &SourceTables, entry: u32) -> bool {
        let there = words_of_block(entry);
        entry & WORD == self.kind()
            && there.end <= tables.blocks.len()
            && there
                .zip(self.words())
                .all(|(at, word)| tables.blocks.get(at) == *word)
    }

    /// Writes it where nothing leads to yet, and tells the entry that does.
    fn put(&self, tables: &mut SourceTables, units: &mut Units) -> Result<u32, SourceError> {
        let grace = &mut tables.grace;
        let number = match self {
            Self::Word(_) => units.take_word(grace),
            Self::Sparse(_) => units.take_single(grace),
            Self::Full(_) => units.take_run(grace),
        };
        let entry = self.kind() | number.ok_or(SourceError::Blocks)?;
        for (at, word) in words_of_block(entry).zip(self.words()) {
            tables.blocks.set(at, *word);
        }
        Ok(entry)
    }
}

/// A sparse block, if the changes fit one.
fn sparse(first: u16, changes: &[(u8, u16)]) -> Option<Sparse> {
    let last = changes.last()?;
    if changes.len() > CHANGES {
        return None;
    }
    let mut points = [last.0; CHANGES];
    let mut classes = [first; SPARSE_CLASSES];
    let (mut known, mut choices) = (1, 0);
    for (at, point) in points.iter_mut().enumerate() {
        let (from, class) = *changes.get(at).unwrap_or(last);
        *point = from;
        let choice = classes[..known].iter().position(|known| *known == class);
        let choice = match choice {
            Some(choice) => choice,
            None => {
                *classes.get_mut(known)? = class;
                known += 1;
                known - 1
            }
        };
        choices |= (choice as u64) << (2 * (at + 1));
    }
    Some(Sparse {
        changes: bytemuck::cast(points),
        choices,
        classes,
    })
}
