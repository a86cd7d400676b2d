//! The steps of a plan, taken one by one in the maps.

use std::{collections::BTreeSet, iter, mem::offset_of};

use bytemuck::Zeroable;
use sluice_ebpf::{
    abi::{self, Generation, HANDSHAKE_TICKS, HOST_VIP, Settings, VIP_MOVED},
    decap::Prefix,
    flow::{self, Flow},
    sanity,
};

use super::{
    ApplyError, Plane, TableKey, encode,
    index::{self, Indexed, Room},
    plan::{Image, Step, VipImage},
    registry::{Lacking, Region},
    slots::build_all,
};

/// Seconds for which the number of a backend that was removed is nobody's.
const LINGER_SECONDS: u64 = 30;
/// Seconds after which no packet that found a lookup table is under way any more.
const GRACE_SECONDS: u64 = 1;

impl Plane {
    /// Frees what nothing uses any more.
    pub(super) fn free(&mut self, now: u64) {
        self.slots.free(now);
        let due = self.registry.due(now);
        if !due.is_empty() {
            self.scrub(&due);
            self.registry.free(&due);
        }
    }

    /// Takes these backends out of the flow table.
    fn scrub(&self, backends: &BTreeSet<u16>) {
        for bucket in 0..self.flows.len() {
            for (way, word) in self.flows.read(bucket).into_iter().enumerate() {
                let flow = Flow(word);
                if !flow.is_empty() && backends.contains(&flow.backend()) {
                    // If a packet was quicker, the flow is another by now, or soon is.
                    self.flows.replace_u64(bucket, way * 8, word, 0);
                }
            }
        }
    }

    /// Takes these numbers, which last where they must, and count from zero.
    pub(super) fn number(&mut self, lacking: &Lacking) -> Result<(), ApplyError> {
        for (_, number) in &lacking.backends {
            self.counters.reset_backend(*number)?;
        }
        for (_, number) in &lacking.vips {
            let vip = abi::Vip::zeroed();
            self.arrays.vips.write(u32::from(*number), &vip);
            self.counters.reset_vip(*number)?;
        }
        Ok(self.registry.take(lacking)?)
    }

    /// Builds what tables the steps put, on all CPUs, and writes those that are not there yet into free regions.
    pub(super) fn put_tables(
        &mut self,
        steps: &[Step],
        wanted: &Image,
        now: u64,
    ) -> Result<(), ApplyError> {
        let keys = steps.iter().filter_map(|step| match step {
            Step::PutTable(key) => Some(key),
            _ => None,
        });
        let tables: Vec<_> = keys.map(|key| (key, &wanted.tables[key])).collect();
        for (&(key, _), mut built) in tables
            .iter()
            .zip(build_all(&tables, &self.registry.backends))
        {
            let old = self.registry.tables.get(key).copied();
            if let Some(old) = old {
                if self.slots.holds(old, &built.slots) {
                    self.known.note_table(key, &built.slots);
                    self.checksums.insert(key.clone(), built.checksum);
                    continue;
                }
                self.slots.mark_moved(old, &mut built.slots);
            }
            let region = self.find_room(&built.slots, now)?;
            self.registry.put_table(key.clone(), region);
            self.known.note_table(key, &built.slots);
            self.checksums.insert(key.clone(), built.checksum);
        }
        Ok(())
    }

    /// Writes a table to where no other lies that a packet may ask: one that is in use, or the one before it while a
    /// handshake that began there may be under way. So three tables for each are enough, however often they change.
    fn find_room(&mut self, table: &[u16], now: u64) -> Result<Region, ApplyError> {
        let window = u64::from(HANDSHAKE_TICKS + 1) << flow::age_shift(self.hz);
        let in_use = self.in_use();
        let mut before = Vec::new();
        let mut ends = now;
        for number in 1..self.arrays.vips.len() {
            let vip = self.arrays.vips.read(number);
            let end = vip.switched.saturating_add(window);
            if vip.previous_table != 0 && end > now {
                before.push(Region::from_word(vip.previous_table));
                ends = ends.max(end);
            }
        }
        before.extend(&in_use);
        if let Some(region) = self.slots.put(&before, table) {
            return Ok(region);
        }
        let slots = self.slots.len();
        let size = u32::try_from(table.len()).unwrap_or(u32::MAX);
        Err(if self.slots.would_fit(in_use, iter::once(size)) {
            let seconds = (ends - now).div_ceil(u64::from(self.hz)).max(GRACE_SECONDS);
            ApplyError::SlotsBusy { slots, seconds }
        } else {
            ApplyError::Slots { slots }
        })
    }

    /// Regions of the tables that are in use.
    pub(super) fn in_use(&self) -> Vec<Region> {
        let vips = 1..self.arrays.vips.len();
        let regions = vips.map(|number| Region::from_word(self.arrays.vips.read(number).table));
        regions
            .chain(self.registry.tables.values().copied())
            .collect()
    }

    /// Nothing leads to these any more but packets that are under way.
    fn retire(&mut self, words: [u64; 2], now: u64) {
        let until = now + GRACE_SECONDS * u64::from(self.hz);
        for word in words {
            self.slots.retire(Region::from_word(word), until);
        }
    }

    pub(super) fn remove_table(&mut self, key: &TableKey, now: u64) {
        if let Some(region) = self.registry.remove_table(key) {
            self.retire([region.word(), 0], now);
        }
        self.checksums.remove(key);
        self.known.forget_table(key);
    }

    pub(super) fn take_step(
        &mut self,
        step: &Step,
        wanted: &Image,
        now: u64,
    ) -> Result<(), ApplyError> {
        match step {
            Step::PutPolicy(name) => {
                let policy = wanted.policies[name];
                let number = self.registry.policies[name];
                self.arrays.policies.write(u32::from(number), &policy);
                self.actual.policies.insert(name.clone(), policy);
            }
            Step::PutProtected => {
                let wanted = wanted.protected.clone().unwrap_or_default();
                for (at, row) in (0..abi::MAX_PROTECTED).zip(protected_rows(&wanted)) {
                    self.arrays.protected.write(at, &row);
                }
                self.actual.protected = Some(wanted);
            }
            Step::PutBackend(key) => {
                let backend = wanted.backends[key];
                self.arrays
                    .backends
                    .write(u32::from(self.registry.backends[key]), &backend);
                self.actual.backends.insert(key.clone(), backend);
            }
            Step::PutTable(key) => {
                let table = wanted.tables[key].clone();
                self.actual.tables.insert(key.clone(), table);
            }
            Step::PutVip(name) => {
                if let Some(vip) = &wanted.vips[name] {
                    self.put_vip(name, vip, now);
                }
                // The index still leads elsewhere, or nowhere, until it flips.
            }
            Step::FlipIndex => {
                self.flip(wanted)?;
                self.note_index();
                self.actual.vips.extend(wanted.vips.clone());
            }
            Step::RemoveVip(name) => {
                if let Some(number) = self.registry.remove_vip(name) {
                    let vip = self.arrays.vips.read(u32::from(number));
                    self.arrays
                        .vips
                        .write(u32::from(number), &abi::Vip::zeroed());
                    self.retire([vip.table, vip.previous_table], now);
                }
                self.actual.vips.remove(name);
                self.vip_tables.remove(name);
            }
            Step::RemoveTable(key) => {
                self.remove_table(key, now);
                self.actual.tables.remove(key);
            }
            Step::RemoveBackend(key) => {
                let linger = now + LINGER_SECONDS * u64::from(self.hz);
                if let Some(number) = self.registry.remove_backend(key, linger) {
                    let nothing = abi::Backend::zeroed();
                    self.arrays.backends.write(u32::from(number), &nothing);
                }
                self.actual.backends.remove(key);
            }
            Step::RemovePolicy(name) => {
                if let Some(number) = self.registry.remove_policy(name) {
                    let nothing = abi::Policy::zeroed();
                    self.arrays.policies.write(u32::from(number), &nothing);
                }
                self.actual.policies.remove(name);
            }
        }
        Ok(())
    }

    fn put_vip(&mut self, name: &str, image: &VipImage, now: u64) {
        let number = u32::from(self.registry.vips[name]);
        let old = self.arrays.vips.read(number);
        let policy = image
            .policy
            .as_ref()
            .map_or(0, |policy| self.registry.policies[policy]);
        // Flows of a VIP that had another table are where no slot of this one tells.
        let comes_from = self.vip_tables.insert(name.to_owned(), image.table.clone());
        let moved = if comes_from.as_ref() == Some(&image.table) {
            old.flags & VIP_MOVED
        } else if self.is_new {
            0
        } else {
            VIP_MOVED
        };
        let vip = abi::Vip {
            policy,
            mtu_bytes: image.mtu_bytes,
            flags: image.flags | moved,
            sanity_enforce: image.stages.sanity_enforce,
            sanity_monitor: image.stages.sanity_monitor,
            filter: image.stages.filter,
            syn: image.stages.syn,
            answer: image.answer,
            ..old
        };
        self.put_challenge(number, &image.challenge);
        // Four words hold these; packets write another. What answers say comes before that there are any.
        let words: [u64; 8] = bytemuck::cast(vip);
        for offset in [
            offset_of!(abi::Vip, policy),
            offset_of!(abi::Vip, sanity_enforce),
            offset_of!(abi::Vip, answer),
            offset_of!(abi::Vip, filter),
        ] {
            let word = words[offset / 8];
            self.arrays.vips.store_u64(number, offset, word);
        }
        let table = self.registry.tables[&image.table].word();
        if old.table != table {
            let store = |offset, value| self.arrays.vips.store_u64(number, offset, value);
            // Building the tables took its time.
            let now = now.max(self.jiffies_now());
            let window = u64::from(HANDSHAKE_TICKS) << flow::age_shift(self.hz);
            // A second switch within the window: handshakes of the table before the first may still be under way, and
            // those of the one between left a mark where it differs. They do no more if a packet finds the window over
            // a moment before it is opened again here, so its last part does not count.
            let window = window - u64::from(self.hz) / 4;
            if old.previous_table == 0 || now.wrapping_sub(old.switched) >= window {
                store(offset_of!(abi::Vip, previous_table), old.table);
            }
            store(offset_of!(abi::Vip, switched), now);
            store(offset_of!(abi::Vip, table), table);
            self.retire([old.table, old.previous_table], now);
            self.sweep.note_switch(&image.table, now);
        }
        if let Some(Some(actual)) = self.actual.vips.get_mut(name) {
            // Where it is found changes with the index only.
            *actual = VipImage {
                place: actual.place.clone(),
                ..image.clone()
            };
        }
    }

    /// Writes a challenge's constants, which come before its times.
    fn put_challenge(&self, number: u32, challenge: &abi::Challenge) {
        let words: [u64; 8] = bytemuck::cast(*challenge);
        let constants = offset_of!(abi::Challenge, rate_tat) / 8;
        for (at, word) in words.into_iter().take(constants).enumerate() {
            self.arrays.challenges.store_u64(number, at * 8, word);
        }
    }

    /// Writes the index that packets do not use, then makes them use it.
    fn flip(&self, wanted: &Image) -> Result<(), ApplyError> {
        let vips = indexed(wanted, |name| self.registry.vips[name]);
        let index = index::build(&vips, self.room)?;
        let next = (self.settings.read(0).active + 1) % abi::GENERATIONS;
        let Room {
            entries,
            displacements,
        } = self.room;
        let generation = Generation {
            address_base: next * entries,
            service_base: next * entries,
            address_displacement_base: next * displacements,
            service_displacement_base: (next + abi::GENERATIONS) * displacements,
            ..index.generation
        };
        let arrays = &self.arrays;
        arrays
            .addresses
            .write_range(generation.address_base, index.addresses);
        arrays
            .services
            .write_range(generation.service_base, index.services);
        arrays.displacements.write_range(
            generation.address_displacement_base,
            index.address_displacements,
        );
        arrays.displacements.write_range(
            generation.service_displacement_base,
            index.service_displacements,
        );
        let at = offset_of!(Settings, generations) + next as usize * size_of::<Generation>();
        // Packets of both generations find their VIPs' networks in between.
        let networks = vips.iter().fold(0, |bits, vip| {
            let prefix = vip.prefix;
            let v6 = prefix.addr().is_ipv6();
            bits | sanity::network_bits(v6, encode::words(prefix.network()), prefix.prefix_len())
        });
        let networks_at = offset_of!(Settings, vip_networks);
        let held = self.settings.read(0).vip_networks;
        self.settings.store_u64(0, networks_at, held | networks);
        let words: [u64; size_of::<Generation>() / 8] = bytemuck::cast(generation);
        for (n, word) in words.into_iter().enumerate() {
            self.settings.store_u64(0, at + n * 8, word);
        }
        self.settings
            .store_u32(0, offset_of!(Settings, active), next);
        self.settings.store_u64(0, networks_at, networks);
        Ok(())
    }
}

/// What `PROTECTED` holds for these sources: a row that is not used holds no address.
pub(super) fn protected_rows(sources: &[Prefix]) -> impl Iterator<Item = Prefix> {
    let nobody = Prefix {
        bits: [u64::MAX; 2],
        mask: [0; 2],
    };
    sources.iter().copied().chain(iter::repeat(nobody))
}

/// The VIPs that are wanted, as the index takes them, and behind them the ports of the host itself: the first of an
/// address has its ICMP and fragments.
pub(super) fn indexed(wanted: &Image, number: impl Fn(&str) -> u16) -> Vec<Indexed> {
    let mut vips = Vec::new();
    let mut of_host = BTreeSet::new();
    for (name, vip) in &wanted.vips {
        let Some(VipImage { place, .. }) = vip else {
            continue;
        };
        vips.push(Indexed {
            prefix: place.prefix,
            protocol: place.protocol,
            port: place.port,
            vip: number(name),
        });
        of_host.extend(place.host_ports.iter().map(|port| (place.prefix, *port)));
    }
    let of_host = of_host.into_iter();
    vips.extend(of_host.map(|(prefix, (protocol, port))| Indexed {
        prefix,
        protocol,
        port,
        vip: HOST_VIP,
    }));
    vips
}
