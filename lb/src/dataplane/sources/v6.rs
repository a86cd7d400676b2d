//! The IPv6 tables: buckets of prefixes, and for each of 65,536 groups of /32 the list of lengths that are looked for.
//!
//! Changes are made in an order in which each store moves the addresses that it is about from their old class to their
//! new one. Those that come are put in, and packets look for their lengths. Then a wait: a packet that had the old list, or
//! looked for a long prefix before it was there, would now find a shorter one that no longer tells what it did. Then those
//! that were there get their new classes, and those that are no more go, and last their lengths.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytemuck::Zeroable;
use sluice_ebpf::{
    abi::Settings,
    exact::v6_filter_index,
    sources::{
        V6_FILTER, V6_LENGTHS, V6_LISTS, V6_WAYS, v6_buckets, v6_entry, v6_hash, v6_matches,
    },
};

use super::{
    SourceError,
    tables::{Classes, Pool, SourceTables},
};
use crate::dataplane::{Key, prefix::words_of};

/// What the tables do not tell by themselves.
pub(super) struct V6 {
    /// Only its key is of use.
    keyed: Settings,
    /// All prefixes that are there, and the sets that their addresses are in.
    prefixes: BTreeMap<Key, u64>,
    /// For each entry of the filter, how many prefixes of each length there are.
    lengths: Vec<BTreeMap<u8, u32>>,
    lists: HashMap<List, Numbered>,
    numbers: Pool,
}

type List = [u8; V6_LENGTHS];

/// A list's number, and how many entries of the filter name it.
#[derive(Clone, Copy)]
struct Numbered {
    number: u32,
    uses: u32,
}

impl V6 {
    /// For tables that are empty.
    pub(super) fn new(local_key: [u64; 4]) -> Self {
        Self {
            keyed: Settings {
                local_key,
                ..Settings::zeroed()
            },
            prefixes: BTreeMap::new(),
            lengths: vec![BTreeMap::new(); V6_FILTER as usize],
            lists: HashMap::new(),
            numbers: Pool::without(V6_LISTS, |_| false),
        }
    }

    /// Takes over tables that hold just these prefixes; `None` if they do not.
    pub(super) fn held(
        local_key: [u64; 4],
        tables: &SourceTables,
        classes: &Classes,
        prefixes: BTreeMap<Key, u64>,
    ) -> Option<Self> {
        let mut this = Self::new(local_key);
        for key in prefixes.keys() {
            this.count(*key, 1);
        }
        this.prefixes = prefixes;
        for at in 0..V6_FILTER as usize {
            let number = tables.filter_v6.get(at);
            let list = this.list(at)?;
            if (number == 0) != (list[0] == 0) || number >= V6_LISTS {
                return None;
            }
            if number == 0 {
                continue;
            }
            let known = this
                .lists
                .entry(list)
                .or_insert(Numbered { number, uses: 0 });
            known.uses += 1;
            if known.number != number || list_at(tables, number) != list {
                return None;
            }
        }
        let used: BTreeSet<u32> = this.lists.values().map(|list| list.number).collect();
        this.numbers = Pool::without(V6_LISTS, |number| used.contains(&number));
        this.fits(tables, classes).then_some(this)
    }

    /// Whether the tables hold just what they should.
    pub(super) fn fits(&self, tables: &SourceTables, classes: &Classes) -> bool {
        let all_there = self.prefixes.iter().all(|(key, sets)| {
            let hash = self.hash(*key);
            let class = classes.get(*sets);
            (class != 0 || *sets == 0)
                && find(tables, hash, |entry| entry == v6_entry(hash, class)).is_some()
        });
        let lists = (0..V6_FILTER as usize).all(|at| {
            let number = tables.filter_v6.get(at);
            let list = self.list(at).unwrap_or([u8::MAX; V6_LENGTHS]);
            if list[0] == 0 {
                return number == 0;
            }
            self.lists
                .get(&list)
                .is_some_and(|known| known.number == number)
                && list_at(tables, number) == list
        });
        let used = (0..tables.v6.len())
            .filter(|at| tables.v6.get(*at) != 0)
            .count();
        all_there && lists && used == self.prefixes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// The prefixes that are there inside of one, itself included.
    pub(super) fn below(&self, key: Key) -> impl Iterator<Item = Key> {
        let last = Key {
            bits: key.last(),
            length: 128,
        };
        self.prefixes.range(key..=last).map(|(key, _)| *key)
    }

    /// Makes prefixes be in these sets, or go (`None`). On an error nothing was changed.
    pub(super) fn change(
        &mut self,
        tables: &mut SourceTables,
        classes: &mut Classes,
        wanted: &BTreeMap<Key, Option<u64>>,
        above: impl Fn(Key) -> u64,
    ) -> Result<(), SourceError> {
        let come: Vec<Key> = wanted
            .iter()
            .filter(|(key, sets)| sets.is_some() && !self.prefixes.contains_key(key))
            .map(|(key, _)| *key)
            .collect();
        let go: Vec<Key> = wanted
            .iter()
            .filter(|(key, sets)| sets.is_none() && self.prefixes.contains_key(key))
            .map(|(key, _)| *key)
            .collect();
        // Half of the ways: then hardly ever are both buckets of a prefix full.
        if self.prefixes.len() + come.len() > tables.v6.len() / 2 {
            return Err(SourceError::V6Full);
        }
        let (new, old): (Vec<(Key, u64)>, Vec<_>) = wanted
            .iter()
            .filter(|(key, sets)| sets.is_some() || self.prefixes.contains_key(key))
            .map(|(key, sets)| (*key, sets.unwrap_or_else(|| above(*key))))
            .partition(|(key, _)| !self.prefixes.contains_key(key));
        for (_, sets) in new.iter().chain(&old) {
            classes.class(tables, *sets)?;
        }
        self.lengthen(tables, &come)?;
        for (at, (key, sets)) in new.iter().enumerate() {
            if self.put(tables, classes, *key, *sets).is_none() {
                for (key, _) in &new[..at] {
                    self.take_out(tables, *key);
                }
                self.shorten(tables, &come);
                return Err(SourceError::BucketFull);
            }
        }
        let is_changed = |(key, sets): &(Key, u64)| self.prefixes.get(key) != Some(sets);
        if !go.is_empty() || old.iter().any(is_changed) {
            (tables.grace)();
        }
        for (key, sets) in &old {
            // It is there, so it needs no room.
            _ = self.put(tables, classes, *key, *sets);
        }
        self.prefixes.extend(new.into_iter().chain(old));
        for key in &go {
            self.take_out(tables, *key);
            self.prefixes.remove(key);
        }
        self.shorten(tables, &go);
        Ok(())
    }

    /// Makes the tables empty. IPv6 sources are in no set meanwhile.
    pub(super) fn clear(tables: &mut SourceTables) {
        for at in 0..V6_FILTER as usize {
            if tables.filter_v6.get(at) != 0 {
                tables.filter_v6.set(at, 0);
            }
        }
        (tables.grace)();
        for at in 0..tables.v6.len() {
            if tables.v6.get(at) != 0 {
                tables.v6.set(at, 0);
            }
        }
    }

    /// Writes a prefix's entry, where it is or in the emptier one of its buckets; `None` if both are full.
    fn put(&self, tables: &mut SourceTables, classes: &Classes, key: Key, sets: u64) -> Option<()> {
        let hash = self.hash(key);
        let entry = v6_entry(hash, classes.get(sets));
        if let Some(at) = find(tables, hash, |held| v6_matches(held, hash)) {
            if tables.v6.get(at) != entry {
                tables.v6.set(at, entry);
            }
            return Some(());
        }
        let [first, second] = buckets(tables, hash);
        let free = |bucket: usize| ways(bucket).filter(|at| tables.v6.get(*at) == 0).count();
        let bucket = if free(first) >= free(second) {
            first
        } else {
            second
        };
        let at = ways(bucket).find(|at| tables.v6.get(*at) == 0)?;
        tables.v6.set(at, entry);
        Some(())
    }

    fn take_out(&self, tables: &mut SourceTables, key: Key) {
        let hash = self.hash(key);
        if let Some(at) = find(tables, hash, |held| v6_matches(held, hash)) {
            tables.v6.set(at, 0);
        }
    }

    /// Has packets look for prefixes that come.
    fn lengthen(&mut self, tables: &mut SourceTables, keys: &[Key]) -> Result<(), SourceError> {
        let touched = self.count_all(keys, 1);
        for (n, at) in touched.iter().enumerate() {
            if let Err(error) = self.point(tables, *at) {
                let unpointed = self.count_all(keys, -1);
                for at in unpointed.iter().take(n) {
                    // These lists were there before.
                    _ = self.point(tables, *at);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has packets look no more for prefixes that went.
    fn shorten(&mut self, tables: &mut SourceTables, keys: &[Key]) {
        for at in self.count_all(keys, -1) {
            // If no number is free for the shorter list, the longer one only costs time.
            _ = self.point(tables, at);
        }
    }

    /// Counts prefixes, and tells the entries of the filter that they are about.
    fn count_all(&mut self, keys: &[Key], by: i32) -> BTreeSet<usize> {
        keys.iter().flat_map(|key| self.count(*key, by)).collect()
    }

    fn count(&mut self, key: Key, by: i32) -> Vec<usize> {
        let entries = filter_entries(&self.keyed, key);
        for at in &entries {
            let lengths = &mut self.lengths[*at];
            let count = lengths.entry(key.length).or_insert(0);
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                lengths.remove(&key.length);
            }
        }
        entries
    }

    /// Leads an entry of the filter to the list that it should have.
    fn point(&mut self, tables: &mut SourceTables, at: usize) -> Result<(), SourceError> {
        let list = self.list(at).ok_or(SourceError::Lengths)?;
        let old = tables.filter_v6.get(at);
        let old_list = if old == 0 {
            [0; V6_LENGTHS]
        } else {
            list_at(tables, old)
        };
        if old_list == list {
            return Ok(());
        }
        let number = if list[0] == 0 {
            0
        } else if let Some(known) = self.lists.get_mut(&list) {
            known.uses += 1;
            known.number
        } else {
            let number = self
                .numbers
                .take(&mut tables.grace)
                .ok_or(SourceError::Lists)?;
            let words: [u64; LIST_WORDS] = bytemuck::cast(list);
            for (word, value) in words.into_iter().enumerate() {
                tables.lists.set(number as usize * LIST_WORDS + word, value);
            }
            self.lists.insert(list, Numbered { number, uses: 1 });
            number
        };
        tables.filter_v6.set(at, number);
        if let Some(known) = self.lists.get_mut(&old_list) {
            known.uses -= 1;
            if known.uses == 0 {
                self.lists.remove(&old_list);
                self.numbers.give_back(old);
            }
        }
        Ok(())
    }

    /// The lengths of an entry of the filter, as packets read them; `None` if they are too many.
    fn list(&self, at: usize) -> Option<List> {
        let lengths = &self.lengths[at];
        let mut list = [0; V6_LENGTHS];
        if lengths.len() > V6_LENGTHS {
            return None;
        }
        for (to, length) in list.iter_mut().zip(lengths.keys().rev()) {
            *to = length + 1;
        }
        Some(list)
    }

    fn hash(&self, key: Key) -> u64 {
        v6_hash(&self.keyed, key.words(), key.length)
    }
}

pub(super) const LIST_WORDS: usize = V6_LENGTHS / 8;
/// The filter is by a hash of so many bits.
const FILTER_PREFIX: u8 = 32;

/// Entries of the filter whose addresses the prefix covers, each once.
fn filter_entries(keyed: &Settings, key: Key) -> Vec<usize> {
    if u32::from(key.length) + V6_FILTER.ilog2() <= FILTER_PREFIX.into() {
        return (0..V6_FILTER as usize).collect();
    }
    let covered = 1u128 << FILTER_PREFIX.saturating_sub(key.length);
    let mut entries: Vec<usize> = (0..covered)
        .map(|n| words_of(key.bits | n << (128 - FILTER_PREFIX)))
        .map(|address| v6_filter_index(keyed, address) as usize)
        .collect();
    entries.sort_unstable();
    entries.dedup();
    entries
}

fn list_at(tables: &SourceTables, number: u32) -> List {
    let words: [u64; LIST_WORDS] =
        std::array::from_fn(|word| tables.lists.get(number as usize * LIST_WORDS + word));
    bytemuck::cast(words)
}

#[expect(clippy::cast_possible_truncation, reason = "no table has 2^32 buckets")]
fn buckets(tables: &SourceTables, hash: u64) -> [usize; 2] {
    v6_buckets(hash, (tables.buckets() - 1) as u32).map(|bucket| bucket as usize)
}

fn ways(bucket: usize) -> std::ops::Range<usize> {
    bucket * V6_WAYS..(bucket + 1) * V6_WAYS
}

fn find(tables: &SourceTables, hash: u64, is_it: impl Fn(u64) -> bool) -> Option<usize> {
    buckets(tables, hash)
        .into_iter()
        .flat_map(ways)
        .find(|at| tables.v6.get(*at) != 0 && is_it(tables.v6.get(*at)))
}
