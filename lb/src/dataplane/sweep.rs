//! Clears away what flows leave behind: entries that expired, and marks on slots whose flows are gone.
//!
//! A slot of a lookup table that came to another backend is marked ([`SLOT_MOVED`]), since flows of it may be at the one
//! before: their next SYN asks the flow table. A look at the whole table tells which marks are needed no more.

use std::{collections::BTreeMap, mem::offset_of};

use ahash::AHashSet;
use sluice_ebpf::{
    abi::{self, HANDSHAKE_TICKS, SLOT_MOVED, VIP_MOVED},
    flow::{self, Flow},
    hash,
};

use super::{Plane, TableKey, registry::Region};

/// A pass over the flow table, a part at a time.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The next bucket to look at.
    next: u32,
    /// When the pass began, in jiffies.
    began: u64,
    /// Slots that some flow is not at, as far as the pass has come.
    needed: AHashSet<u32>,
    /// When each table was last switched, in jiffies.
    switched: BTreeMap<TableKey, u64>,
}

impl Sweep {
    pub(super) fn note_switch(&mut self, key: &TableKey, now: u64) {
        self.switched.insert(key.clone(), now);
    }
}

/// No flow grows older than this. What seems to be was seen a moment ago, by a clock that is ahead of ours: ages wrap.
const OLDEST: u16 = (1 << flow::AGE_BITS) / 16 * 15;
/// Buckets that one call looks at: some milliseconds.
const STRIDE: u32 = 1 << 16;

impl Plane {
    /// Looks at a part of the flow table, and takes out what expired. At the end of a pass, marks that no flow needs any
    /// more are taken off the lookup tables. To be called every few seconds.
    pub fn sweep(&mut self) {
        self.sweep_at(self.jiffies_now());
    }

    /// As [`Plane::sweep`], at a time of the caller's choice.
    pub fn sweep_at(&mut self, now: u64) {
        if self.sweep.next == 0 {
            self.sweep.began = now;
            self.sweep.needed.clear();
        }
        let end = self.flows.len().min(self.sweep.next.saturating_add(STRIDE));
        let tables = self.tables_by_backend();
        for bucket in self.sweep.next..end {
            for (way, word) in self.flows.read(bucket).into_iter().enumerate() {
                let flow = Flow(word);
                if flow.is_empty() {
                    continue;
                }
                if (self.flow_idle..=OLDEST).contains(&flow.age(self.tick(now))) {
                    // If a packet was quicker, the flow is alive.
                    self.flows.replace_u64(bucket, way * 8, word, 0);
                    continue;
                }
                let hash = u64::from(flow.tag()) << 32;
                for region in tables.get(&flow.backend()).into_iter().flatten() {
                    let slot = region.first + hash::slot(hash, region.slots.max(1));
                    let held = self.slots.read(slot);
                    if held & SLOT_MOVED != 0 && held & !SLOT_MOVED != flow.backend() {
                        self.sweep.needed.insert(slot);
                    }
                }
            }
        }
        self.sweep.next = end;
        if end == self.flows.len() {
            self.sweep.next = 0;
            self.take_marks_off(now);
        }
    }

    fn take_marks_off(&mut self, now: u64) {
        let shift = flow::age_shift(self.hz);
        // While handshakes are under way, flows may still come to where the table before had them.
        let settled = |switched: u64| {
            let window = u64::from(HANDSHAKE_TICKS + 1) << shift;
            switched.saturating_add(window) <= self.sweep.began
        };
        for (key, &region) in &self.registry.tables {
            let switched = self.sweep.switched.get(key).copied();
            if settled(switched.unwrap_or(self.opened)) && self.is_used(key, region) {
                self.slots.unmark(region, &self.sweep.needed);
            }
        }
        // Which flows a VIP had in a table that it does not use any more, no entry tells.
        let gone = u64::from(self.flow_idle) << shift;
        for &number in self.registry.vips.values() {
            let number = u32::from(number);
            let vip = self.arrays.vips.read(number);
            if vip.flags & VIP_MOVED != 0 && now.saturating_sub(vip.switched) >= gone {
                let flags = offset_of!(abi::Vip, flags);
                self.arrays
                    .vips
                    .store_u32(number, flags, vip.flags & !VIP_MOVED);
            }
        }
    }

    /// Whether all VIPs of a table have come to its last version.
    fn is_used(&self, key: &TableKey, region: Region) -> bool {
        let mut vips = self.vip_tables.iter().filter(|(_, used)| *used == key);
        vips.all(|(name, _)| {
            let number = self.registry.vips.get(name).copied().map_or(0, u32::from);
            self.arrays.vips.read(number).table == region.word()
        })
    }

    /// The tables that each backend's flows were chosen by.
    fn tables_by_backend(&self) -> BTreeMap<u16, Vec<Region>> {
        let mut by_pool: BTreeMap<&str, Vec<Region>> = BTreeMap::new();
        for (key, &region) in &self.registry.tables {
            by_pool.entry(&key.pool).or_default().push(region);
        }
        self.registry
            .backends
            .iter()
            .filter_map(|(key, &number)| Some((number, by_pool.get(key.pool.as_str())?.clone())))
            .collect()
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked to the bits of an age"
    )]
    fn tick(&self, now: u64) -> u16 {
        (now >> flow::age_shift(self.hz)) as u16 & ((1 << flow::AGE_BITS) - 1)
    }
}
