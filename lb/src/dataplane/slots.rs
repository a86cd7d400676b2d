//! Where lookup tables lie: each new one in a free run of slots, old ones left alone until nothing reads them.

use std::{collections::BTreeMap, thread};

use super::{
    BackendKey, Table, TableKey, encode,
    maglev::{self, Entry},
    registry::Region,
};
use ahash::AHashSet;
use sluice_ebpf::abi::{SLOT_MOVED, SLOTS_PER_WORD};

use crate::sys::{self, Mapped};

#[expect(clippy::cast_possible_truncation, reason = "a few")]
const PER_WORD: u32 = SLOTS_PER_WORD as u32;

/// The slots of all tables.
#[derive(Debug)]
pub(crate) struct Slots {
    array: Mapped<[u16; SLOTS_PER_WORD]>,
    /// Regions that packets may still read, and until when in jiffies.
    retired: Vec<(Region, u64)>,
}

/// A lookup table, ready to be written.
pub(crate) struct Built {
    /// Backend numbers.
    pub slots: Vec<u16>,
    pub checksum: u64,
}

impl Slots {
    pub(crate) fn new(array: Mapped<[u16; SLOTS_PER_WORD]>) -> Self {
        Self {
            array,
            retired: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.array.len() * PER_WORD
    }

    pub(crate) fn read(&self, slot: u32) -> u16 {
        self.array.read(slot / PER_WORD)[(slot % PER_WORD) as usize]
    }

    /// Writes slots from `first` on; neighbours in the same words keep what they hold.
    fn write(&self, first: u32, table: &[u16]) {
        let mut slot = first;
        let mut rest = table;
        while !rest.is_empty() {
            let at = (slot % PER_WORD) as usize;
            let (now, later) = rest.split_at(rest.len().min(SLOTS_PER_WORD - at));
            let mut word = self.array.read(slot / PER_WORD);
            word[at..at + now.len()].copy_from_slice(now);
            self.array.write(slot / PER_WORD, &word);
            slot = (slot / PER_WORD + 1) * PER_WORD;
            rest = later;
        }
    }

    /// Whether a region holds this table already.
    pub(crate) fn holds(&self, region: Region, table: &[u16]) -> bool {
        region.slots as usize == table.len()
            && u64::from(region.first) + u64::from(region.slots) <= u64::from(self.len())
            && (region.first..)
                .zip(table)
                .all(|(slot, &backend)| self.read(slot) & !SLOT_MOVED == backend)
    }

    /// Marks the slots of a new table whose flows may be elsewhere: those that differ from the table before it, and those
    /// that were marked there.
    pub(crate) fn mark_moved(&self, before: Region, table: &mut [u16]) {
        let is_alike = before.slots as usize == table.len();
        for (slot, backend) in (before.first..).zip(table) {
            if !is_alike || self.read(slot) != *backend {
                *backend |= SLOT_MOVED;
            }
        }
    }

    /// Takes the marks off a table, but for the slots in `needed`.
    pub(crate) fn unmark(&self, region: Region, needed: &AHashSet<u32>) {
        for slot in region.first..region.first + region.slots {
            let held = self.read(slot);
            if held & SLOT_MOVED != 0 && !needed.contains(&slot) {
                self.write(slot, &[held & !SLOT_MOVED]);
            }
        }
    }

    /// What a region leads to, slot by slot.
    pub(crate) fn backends(&self, region: Region) -> impl Iterator<Item = u16> {
        let end = region.first.saturating_add(region.slots).min(self.len());
        (region.first..end).map(|slot| self.read(slot) & !SLOT_MOVED)
    }

    /// Writes a table to where nothing of `used` lies; `None` if there is no room.
    pub(crate) fn put(&mut self, used: &[Region], table: &[u16]) -> Option<Region> {
        let size = u32::try_from(table.len()).unwrap_or(u32::MAX);
        let first = self.gap(used, size).or_else(|| {
            // Whoever switches faster than time frees waits for the packets themselves: a few milliseconds.
            let waited = !self.retired.is_empty() && sys::wait_for_programs().is_ok();
            if waited {
                self.retired.clear();
            }
            waited.then(|| self.gap(used, size)).flatten()
        })?;
        self.write(first, table);
        Some(Region { first, slots: size })
    }

    /// Whether tables of these sizes would find room if only what lies in `used` were there.
    pub(crate) fn would_fit(
        &self,
        mut used: Vec<Region>,
        sizes: impl Iterator<Item = u32>,
    ) -> bool {
        for slots in sizes {
            let Some(first) = first_gap(used.clone(), slots, self.len()) else {
                return false;
            };
            used.push(Region { first, slots });
        }
        true
    }

    /// Leaves a region alone that no packet finds any more: one that is under way may still read it.
    pub(crate) fn retire(&mut self, region: Region, until: u64) {
        if region.slots == 0 {
            return;
        }
        match self.retired.iter_mut().find(|(known, _)| *known == region) {
            Some((_, known)) => *known = until.max(*known),
            None => self.retired.push((region, until)),
        }
    }

    fn gap(&self, used: &[Region], size: u32) -> Option<u32> {
        let retired = self.retired.iter().map(|&(region, _)| region);
        first_gap(
            used.iter().copied().chain(retired).collect(),
            size,
            self.len(),
        )
    }

    pub(crate) fn free(&mut self, now: u64) {
        self.retired.retain(|&(_, until)| until > now);
    }
}

/// Builds tables on all CPUs, in their order.
pub(crate) fn build_all(
    tables: &[(&TableKey, &Table)],
    numbers: &BTreeMap<BackendKey, u16>,
) -> Vec<Built> {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let share = tables.len().div_ceil(cpus).max(1);
    thread::scope(|scope| {
        let workers: Vec<_> = tables
            .chunks(share)
            .map(|tables| {
                scope.spawn(|| {
                    tables
                        .iter()
                        .map(|(_, table)| build(table, numbers))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| match worker.join() {
                Ok(built) => built,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect()
    })
}

fn build(table: &Table, numbers: &BTreeMap<BackendKey, u16>) -> Built {
    let entries = entries(table);
    let numbers: Vec<u16> = table.weights.keys().map(|key| numbers[key]).collect();
    let by_index = maglev::build(table.slots, &entries);
    Built {
        checksum: maglev::checksum(&by_index, &entries),
        slots: by_index
            .into_iter()
            .map(|index| numbers[usize::from(index)])
            .collect(),
    }
}

/// The backends of a table as they share its slots.
pub(super) fn entries(table: &Table) -> Vec<Entry> {
    let weights = table.weights.iter();
    let entry = |(key, &weight): (&BackendKey, &u16)| Entry {
        identity: encode::identity(key.address),
        weight,
    };
    weights.map(entry).collect()
}

/// The first run of `size` free slots.
fn first_gap(mut used: Vec<Region>, size: u32, len: u32) -> Option<u32> {
    used.sort_unstable_by_key(|region| region.first);
    let mut free = 0u32;
    for region in used {
        if region.slots == 0 {
            continue;
        }
        if region.first.saturating_sub(free) >= size {
            return Some(free);
        }
        free = free.max(region.first.saturating_add(region.slots));
    }
    (len.saturating_sub(free) >= size).then_some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(first: u32, slots: u32) -> Region {
        Region { first, slots }
    }

    #[test]
    fn gaps_are_found_and_nothing_is_overwritten() {
        assert_eq!(first_gap(vec![], 10, 10), Some(0));
        assert_eq!(first_gap(vec![], 11, 10), None);
        let used = vec![region(30, 10), region(0, 10), region(0, 0), region(5, 15)];
        assert_eq!(first_gap(used.clone(), 10, 50), Some(20));
        assert_eq!(first_gap(used.clone(), 11, 51), Some(40));
        assert_eq!(first_gap(used, 11, 50), None);
    }
}
