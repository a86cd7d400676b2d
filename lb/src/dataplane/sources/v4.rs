//! The IPv4 tables: what each entry shall be is worked out for a run of them, compared with what is there, and written
//! where it differs.
//!
//! A block is never changed while an entry leads to it, so each address goes from its old class to its new one by the
//! store of a single word, whatever sets change.

use std::ops::RangeInclusive;

use sluice_ebpf::{
    exact::{V4_FILTER_SHIFT, v4_filter},
    sources::{CHANGES, FULL, FULL_UNITS, NUMBER, SPARSE, Sparse, UNIT_CLASSES},
};

use super::{
    SourceError,
    tables::{Classes, SourceTables, UNIT_WORDS, Units, size_of_block},
};
use crate::{dataplane::exact::set_filtered, sources::Members};

/// What entries of the first level shall be, in order.
pub(super) struct Wanted {
    pieces: Vec<Piece>,
    /// Changes within the last 8 bits: from which address on, and the class.
    changes: Vec<(u8, u16)>,
}

enum Piece {
    /// Up to this entry (included) all have a class.
    Run { last: u32, class: u16 },
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
        sweep.run(next..entry, class);
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
        let changes = sweep.wanted.changes.len() - before;
        if changes == 0 {
            sweep.run(entry..entry + 1, at_first);
        } else {
            sweep.wanted.pieces.push(Piece::Block {
                first: at_first,
                changes: u16::try_from(changes).unwrap_or(u16::MAX),
            });
        }
        next = entry + 1;
    }
    sweep.run(next..entries.end() + 1, class);
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

    fn run(&mut self, entries: std::ops::Range<u32>, class: u16) {
        if entries.is_empty() {
            return;
        }
        let last = entries.end - 1;
        match self.wanted.pieces.last_mut() {
            Some(Piece::Run {
                last: end,
                class: same,
            }) if *same == class => *end = last,
            _ => self.wanted.pieces.push(Piece::Run { last, class }),
        }
    }
}

fn address_of(event: u64) -> u64 {
    event >> 16
}

#[expect(clippy::cast_possible_truncation, reason = "an address has 32 bits")]
fn entry_of(event: u64) -> u32 {
    (event >> 24) as u32
}

impl Wanted {
    /// Units of all its blocks.
    pub(super) fn units(&self) -> u32 {
        let of = |piece: &Piece| match piece {
            Piece::Run { .. } => 0,
            Piece::Block { changes, .. } if usize::from(*changes) <= CHANGES => 1,
            Piece::Block { .. } => FULL_UNITS,
        };
        self.pieces.iter().map(of).sum()
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
            units: 0,
            result: Ok(()),
        };
        let mut at = *entries.start();
        let mut changes = self.changes.as_slice();
        for piece in &self.pieces {
            match piece {
                Piece::Run { last, class: 0 } => {
                    let held: Vec<u32> = in_use(tables, &(at..=*last)).collect();
                    for entry in held {
                        written.entry(tables, units, entry, 0);
                    }
                    at = last + 1;
                }
                Piece::Run { last, class } => {
                    for entry in at..=*last {
                        let old = tables.v4.get(entry as usize);
                        if old != u32::from(*class) {
                            written.entry(tables, units, entry, u32::from(*class));
                        }
                    }
                    at = last + 1;
                }
                Piece::Block { first, changes: n } => {
                    let (of_this, rest) = changes.split_at(usize::from(*n));
                    changes = rest;
                    let old = tables.v4.get(at as usize);
                    if !holds(tables, old, *first, of_this) {
                        match put_block(tables, units, *first, of_this) {
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

/// Units that entries lead to now.
pub(super) fn used(tables: &SourceTables, entries: &RangeInclusive<u32>) -> u32 {
    let of = |entry: u32| size_of_block(tables.v4.get(entry as usize));
    in_use(tables, entries).map(of).sum()
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
    /// How many units more are in use.
    pub(super) units: i32,
    pub(super) result: Result<(), SourceError>,
}

impl Written {
    fn entry(&mut self, tables: &mut SourceTables, units: &mut Units, at: u32, new: u32) {
        let old = tables.v4.get(at as usize);
        set_filtered(&mut *tables.filter, &mut *tables.v4, at as usize, new);
        units.give_back(old);
        self.entries += 1;
        self.units += size_of_block(new).cast_signed() - size_of_block(old).cast_signed();
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

/// Whether an entry leads to a block with just these classes.
fn holds(tables: &SourceTables, entry: u32, first: u16, changes: &[(u8, u16)]) -> bool {
    let start = (entry & NUMBER) as usize * UNIT_WORDS;
    let is_there = |words: &[u64]| {
        let there = start..start + words.len();
        there.end <= tables.blocks.len()
            && there
                .zip(words)
                .all(|(at, word)| tables.blocks.get(at) == *word)
    };
    match (size_of_block(entry), sparse_words(first, changes)) {
        (1, Some(words)) => is_there(&words),
        (FULL_UNITS, None) => is_there(&full_words(first, changes)),
        _ => false,
    }
}

/// Writes a block that nothing leads to yet, and tells the entry that does.
fn put_block(
    tables: &mut SourceTables,
    units: &mut Units,
    first: u16,
    changes: &[(u8, u16)],
) -> Result<u32, SourceError> {
    let mut put = |unit: u32, words: &[u64]| {
        for (at, word) in words.iter().enumerate() {
            tables.blocks.set(unit as usize * UNIT_WORDS + at, *word);
        }
    };
    if let Some(words) = sparse_words(first, changes) {
        let unit = units
            .take_single(&mut tables.grace)
            .ok_or(SourceError::Blocks)?;
        put(unit, &words);
        Ok(unit | SPARSE)
    } else {
        let unit = units
            .take_run(&mut tables.grace)
            .ok_or(SourceError::Blocks)?;
        put(unit, &full_words(first, changes));
        Ok(unit | FULL)
    }
}

/// A sparse block, if the changes fit one.
fn sparse_words(first: u16, changes: &[(u8, u16)]) -> Option<[u64; UNIT_WORDS]> {
    let (last, _) = (
        changes.last()?,
        changes.get(CHANGES).is_none().then_some(())?,
    );
    let padded = |at: usize| changes.get(at).unwrap_or(last);
    let mut points = [0; 8];
    for (at, point) in points.iter_mut().take(CHANGES).enumerate() {
        *point = padded(at).0;
    }
    let block = Sparse {
        changes: u64::from_le_bytes(points),
        classes: std::array::from_fn(|at| match at.checked_sub(1) {
            None => first,
            Some(at) => padded(at).1,
        }),
        pad: 0,
    };
    Some(bytemuck::cast(block))
}

fn full_words(first: u16, changes: &[(u8, u16)]) -> [u64; FULL_UNITS as usize * UNIT_WORDS] {
    let mut classes = [first; FULL_UNITS as usize * UNIT_CLASSES];
    for (from, class) in changes {
        classes[usize::from(*from)..].fill(*class);
    }
    bytemuck::cast(classes)
}
