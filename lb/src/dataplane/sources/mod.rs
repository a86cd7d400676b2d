//! Sets of source prefixes, kept in the tables that packets look their source up in.
//!
//! Packets read while this writes. Every change is a chain of stores of single words, each of which moves addresses from
//! what they were in to what they shall be in: so at any moment each packet is judged by the sets as they were before or
//! as they are after, and a set is replaced without an address that is in both ever being out.

mod maps;
mod names;
mod scopes;
mod tables;
#[cfg(test)]
mod tests;
mod v4;
mod v6;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
};

use sluice_ebpf::{
    abi::{SOURCES_V4, SOURCES_V6},
    exact::V4_ENTRIES,
    sources::{CLASSES, SETS, V6_LENGTHS},
};

pub use maps::{Purpose, SourceCounts, SourceMaps, SourceSet};
pub use names::SetNames;
pub use tables::{Masks, SourceTables};

use super::prefix::Key;
use crate::sources::Members;
use tables::{Classes, Units};
use v6::V6;

/// Why the data plane does not take a set or a prefix. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(
        "the sets have more IPv4 prefixes longer than /24 than there is room for; raise `source_prefixes` in [dataplane]"
    )]
    Blocks,
    #[error(
        "the sets have more IPv6 prefixes than there is room for; raise `source_prefixes` in [dataplane]"
    )]
    V6Full,
    #[error("both hash buckets of an IPv6 prefix are full; raise `source_prefixes` in [dataplane]")]
    BucketFull,
    #[error(
        "IPv6 prefixes in one /32, and those that cover it, have more than {V6_LENGTHS} lengths; use fewer"
    )]
    Lengths,
    #[error("IPv6 prefixes have too many different mixes of lengths; use fewer lengths")]
    Lists,
    #[error(
        "addresses are in more than {} different combinations of sets; join some sets",
        CLASSES - 1
    )]
    Classes,
}

/// All sets, and the tables that hold them. The only writer of these tables.
pub struct Sources {
    tables: SourceTables,
    /// By the number that is their bit.
    sets: BTreeMap<u8, Arc<Members>>,
    classes: Classes,
    units: Units,
    used_words: u32,
    v6: V6,
    /// The part of the tables that is audited next.
    audited: u32,
}

/// Whether tables are what an earlier daemon left, or hold nothing that means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Held,
    Nothing,
}

impl Sources {
    /// Takes over the tables, and makes them hold these sets. `local_key` is that of `SETTINGS`.
    ///
    /// What is there already is not written again, so packets do not notice a restart. IPv6 tables that hold anything
    /// else are made anew. Sets that find no room come back with the reason, and are empty.
    pub(super) fn adopt(
        mut tables: SourceTables,
        local_key: [u64; 4],
        wanted: BTreeMap<u8, Arc<Members>>,
        found: Found,
    ) -> (Self, Vec<(u8, SourceError)>) {
        if found == Found::Nothing {
            tables.set_bits(false, false);
            (tables.grace)();
            for class in 0..CLASSES as usize {
                tables.classes.set(class, 0);
            }
        }
        let classes = Classes::held(&tables);
        let entries = v4::in_use(&tables, &(0..=V4_ENTRIES - 1));
        let entries = entries.map(|at| tables.v4.get(at as usize));
        let (units, used_words) = Units::without(tables.words(), entries);
        let prefixes = prefixes_v6(&wanted);
        let held = V6::held(local_key, &tables, &classes, prefixes);
        let is_held = held.is_some();
        let mut this = Self {
            tables,
            sets: if is_held {
                wanted.clone()
            } else {
                BTreeMap::new()
            },
            classes,
            units,
            used_words,
            v6: held.unwrap_or_else(|| V6::new(local_key)),
            audited: 0,
        };
        if !is_held {
            V6::clear(&mut this.tables);
        }
        let mut refused = Vec::new();
        let all_v4: Vec<Window> = (0..=u8::MAX).map(slash_8).collect();
        if is_held && this.update(&all_v4, &[]).is_ok() {
            return (this, refused);
        }
        // One by one, to find which of them has no room.
        this.sets.clear();
        for (number, set) in wanted {
            if let Err(error) = this.replace(number, Some(set)) {
                refused.push((number, error));
            }
        }
        // What was there before and is not wanted goes; that needs no room.
        _ = this.update(&all_v4, &[]);
        (this, refused)
    }

    /// Makes a set have other members, or none. Returns the classes that are no more, and the sets that they stood for.
    pub fn replace(
        &mut self,
        number: u8,
        set: Option<Arc<Members>>,
    ) -> Result<Vec<(u64, u16)>, SourceError> {
        let is_gone = set.is_none();
        let none = Members::default();
        let (old, new) = (
            self.sets.get(&number).map_or(&none, |set| &**set),
            set.as_deref().unwrap_or(&none),
        );
        let mut touched: BTreeSet<Key> = new.keys_v6().iter().copied().collect();
        // Those that stay have the same sets as before.
        for key in old.keys_v6() {
            if !touched.remove(key) {
                touched.insert(*key);
            }
        }
        let touched: Vec<Key> = touched.into_iter().collect();
        let mut slash_8s: BTreeSet<u8> = old.slash_8s_beside(new).into_iter().collect();
        slash_8s.extend(new.slash_8s_beside(old));
        let windows: Vec<Window> = slash_8s.into_iter().map(slash_8).collect();
        let before = match set {
            Some(set) => self.sets.insert(number, set),
            None => self.sets.remove(&number),
        };
        if let Err(error) = self.update(&windows, &touched) {
            match before {
                Some(before) => drop(self.sets.insert(number, before)),
                None => drop(self.sets.remove(&number)),
            }
            self.go_back(&windows, &touched);
            return Err(error);
        }
        if is_gone {
            return Ok(self.classes.free(&mut self.tables, number));
        }
        Ok(Vec::new())
    }

    /// Every class in use, and the sets that its sources are in.
    pub fn classes(&self) -> impl Iterator<Item = (u64, u16)> {
        self.classes.iter()
    }

    /// Whether a part of the tables holds what it should; each call looks at another part, for some milliseconds, and
    /// puts right what differs.
    pub fn audit(&mut self, local_key: [u64; 4]) -> bool {
        if self.sets.is_empty() && self.tables.bits() & (SOURCES_V4 | SOURCES_V6) == 0 {
            return true;
        }
        let part = self.audited;
        self.audited = (part + 1) % PARTS;
        let entries = part * PART..=(part + 1) * PART - 1;
        let mended = v4::mend_filter(&mut self.tables, &entries);
        let mut fits = !mended & (self.put_v4(&[entries]) == Ok(0));
        for (sets, class) in self.classes.iter() {
            let class = usize::from(class);
            if self.tables.classes.get(class) != sets {
                self.tables.classes.set(class, sets);
                fits = false;
            }
        }
        if part == 0 && !self.v6.fits(&self.tables, &self.classes) {
            V6::clear(&mut self.tables);
            self.v6 = V6::new(local_key);
            let all: Vec<Key> = prefixes_v6(&self.sets).into_keys().collect();
            // There was room before.
            _ = self.put_v6(&all);
            fits = false;
        }
        let bits = self.tables.bits();
        self.set_bits();
        fits && bits == self.tables.bits()
    }

    fn update(&mut self, windows: &[Window], touched: &[Key]) -> Result<(), SourceError> {
        self.put_v6(touched)?;
        self.put_v4(windows)?;
        self.set_bits();
        Ok(())
    }

    /// After an update that found no room: the sets are what they were, and there was room for that.
    fn go_back(&mut self, windows: &[Window], touched: &[Key]) {
        if let Err(error) = self.update(windows, touched) {
            tracing::error!(%error, "the sets of sources are not what they were; the next audit puts that right");
        }
    }

    /// Makes these parts of the first level, which must not overlap, be what they should. Tells how many entries were not.
    fn put_v4(&mut self, windows: &[Window]) -> Result<usize, SourceError> {
        let (mut all, mut words) = (Vec::with_capacity(windows.len()), self.used_words);
        for entries in windows {
            let sets = self.sets.iter().map(|(number, set)| (*number, &**set));
            let wanted = v4::wanted(&mut self.tables, &mut self.classes, sets, entries)?;
            words = words.saturating_sub(v4::used(&self.tables, entries)) + wanted.words();
            all.push(wanted);
        }
        // Before anything is written, so that nothing is half there.
        if words > self.tables.words() {
            return Err(SourceError::Blocks);
        }
        let mut differed = 0;
        for (entries, wanted) in windows.iter().zip(all) {
            let written = wanted.write(&mut self.tables, &mut self.units, entries);
            self.used_words = self.used_words.saturating_add_signed(written.words);
            written.result?;
            differed += written.entries;
        }
        Ok(differed)
    }

    fn put_v6(&mut self, touched: &[Key]) -> Result<(), SourceError> {
        if touched.is_empty() {
            return Ok(());
        }
        let sets = &self.sets;
        let numbers = |key: Key| {
            sets.iter()
                .filter(|(_, set)| set.covers(key))
                .fold(0u64, |bits, (number, _)| bits | 1 << number)
        };
        let mut wanted = BTreeMap::new();
        for key in touched {
            for key in self.v6.below(*key).chain([*key]) {
                wanted.entry(key).or_insert_with(|| {
                    let is_there = sets.values().any(|set| set.has(key));
                    is_there.then(|| numbers(key))
                });
            }
        }
        self.v6
            .change(&mut self.tables, &mut self.classes, &wanted, numbers)
    }

    fn set_bits(&mut self) {
        let has_v4 = self.sets.values().any(|set| !set.v4().is_empty());
        self.tables.set_bits(has_v4, !self.v6.is_empty());
    }
}

/// Entries of the first level.
type Window = RangeInclusive<u32>;

/// The entries of a /8.
fn slash_8(first: u8) -> Window {
    let first = u32::from(first) << 16;
    first..=first | 0xffff
}

/// Calls of [`Sources::audit`] that see all.
const PARTS: u32 = 16;
const PART: u32 = V4_ENTRIES / PARTS;
const _: () = assert!(SETS == u64::BITS as usize);

/// All IPv6 prefixes of some sets, and the sets that each of them is in.
fn prefixes_v6(sets: &BTreeMap<u8, Arc<Members>>) -> BTreeMap<Key, u64> {
    let all: BTreeSet<Key> = sets
        .values()
        .flat_map(|set| set.keys_v6())
        .copied()
        .collect();
    let of = |key: Key| {
        let within = sets.iter().filter(|(_, set)| set.covers(key));
        (key, within.fold(0, |bits, (number, _)| bits | 1 << number))
    };
    all.into_iter().map(of).collect()
}
