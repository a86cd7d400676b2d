//! Sets of sources in the loaded data plane: their members, what they are for, and what they counted.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use sluice_ebpf::{
    abi::{Count, Settings, maps},
    sources::{UNIT_WORDS, V6_WAYS},
};

use super::{
    Found, Masks, Members, SourceError, SourceTables, Sources, scopes::Scopes, v6::LIST_WORDS,
};
use crate::{
    dataplane::{LoadError, SettingsWords, plane::mapped},
    sys::{self, Mapped},
};

/// A set that packets shall meet.
#[derive(Clone, Debug)]
pub struct SourceSet {
    /// Its bit, below [`sluice_ebpf::sources::SETS`].
    pub number: u8,
    /// For who asks why.
    pub name: String,
    pub purpose: Purpose,
    /// The number of the one VIP that it is for. `NO_VIP`: of one that is not there.
    pub vip: Option<u16>,
    pub members: Arc<Members>,
}

/// What a set is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Allow,
    Deny,
    /// To count whom it would deny.
    Monitor,
    /// As each policy says.
    Bogons,
}

/// Packets from the sources of a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounts {
    pub passed: Count,
    pub dropped: Count,
}

/// The maps that sets live in, once they were taken over.
pub struct SourceMaps {
    sources: Sources,
    stats: PerCpuArray<MapData, [u64; 2]>,
    /// `SOURCE_SETS_OFF`.
    off: Mapped<u64>,
    held: BTreeMap<u8, SourceSet>,
    /// What was counted for a set by classes that are no more.
    before: BTreeMap<u8, SourceCounts>,
}

impl SourceMaps {
    /// Of a loaded program. Sets that it holds already stay as they are; those that find no room come back, and are empty.
    pub fn adopt(
        object: &mut Ebpf,
        wanted: &[SourceSet],
    ) -> Result<(Self, Vec<(u8, SourceError)>), LoadError> {
        let failed = |source| LoadError::Map {
            map: maps::SOURCE_STATS,
            source,
        };
        let stats = match object.take_map(maps::SOURCE_STATS) {
            Some(Map::PerCpuArray(data)) => PerCpuArray::try_from(Map::PerCpuArray(data)),
            _ => return Err(failed("the program has no such map".into())),
        };
        let stats = stats.map_err(|error| failed(error.into()))?;
        let mut tables = tables(object)?;
        let off = mapped(object, maps::SOURCE_SETS_OFF)?;
        let scopes = Scopes::of(wanted);
        scopes.narrow(&off, &mut tables);
        let settings: Mapped<Settings> = mapped(object, maps::SETTINGS)?;
        let local_key = settings.read(0).local_key;
        // A set that is allowed now may have been denied before: no class may mean what it did.
        let (held, masks) = (tables.masks(), masks(wanted));
        let turned =
            held.allow & (masks.deny | masks.monitor) | masks.allow & (held.deny | held.monitor);
        let found = if turned == 0 {
            Found::Held
        } else {
            Found::Nothing
        };
        if found == Found::Nothing {
            tables.set_bits(false, false);
        }
        tables.set_masks(masks);
        let members = wanted
            .iter()
            .map(|set| (set.number, set.members.clone()))
            .collect();
        let (mut sources, refused) = Sources::adopt(tables, local_key, members, found);
        scopes.put(&off, &mut sources.tables);
        let held = wanted
            .iter()
            .filter(|set| !refused.iter().any(|(number, _)| *number == set.number))
            .map(|set| (set.number, set.clone()))
            .collect();
        let this = Self {
            sources,
            stats,
            off,
            held,
            before: BTreeMap::new(),
        };
        Ok((this, refused))
    }

    /// Makes packets meet exactly these. On an error they meet those from before.
    pub fn set(&mut self, wanted: &[SourceSet]) -> Result<(), SourceError> {
        let before: Vec<SourceSet> = self.held.values().cloned().collect();
        self.try_to_set(wanted).inspect_err(|_| {
            if let Err(error) = self.try_to_set(&before) {
                tracing::error!(%error, "sets of sources are not all there; remove some, and set them anew");
            }
        })
    }

    fn try_to_set(&mut self, wanted: &[SourceSet]) -> Result<(), SourceError> {
        let stays = |held: &SourceSet| {
            wanted.iter().any(|set| {
                set.number == held.number
                    && (set.purpose == Purpose::Allow) == (held.purpose == Purpose::Allow)
            })
        };
        let gone: Vec<u8> = self
            .held
            .values()
            .filter(|held| !stays(held))
            .map(|held| held.number)
            .collect();
        for number in gone {
            let classes = self.sources.replace(number, None)?;
            self.held.remove(&number);
            self.retire(number, &classes);
        }
        let scopes = Scopes::of(wanted);
        scopes.narrow(&self.off, &mut self.sources.tables);
        let mut all = masks(wanted);
        let now = self.sources.tables.masks();
        // What finds no room is taken back, and what it is for with it.
        for set in self.held.values() {
            let bit = 1 << set.number;
            if !wanted.iter().any(|wanted| wanted.number == set.number) {
                all.allow |= now.allow & bit;
                all.deny |= now.deny & bit;
                all.monitor |= now.monitor & bit;
            }
        }
        self.sources.tables.set_masks(all);
        for set in wanted {
            let same = self.held.get(&set.number).is_some_and(|held| {
                Arc::ptr_eq(&held.members, &set.members) || held.members == set.members
            });
            if !same {
                self.sources
                    .replace(set.number, Some(set.members.clone()))?;
            }
            self.held.insert(set.number, set.clone());
        }
        scopes.put(&self.off, &mut self.sources.tables);
        Ok(())
    }

    /// Whether the maps hold what was put there; puts right what differs. Each call looks at another part.
    pub fn audit(&mut self, local_key: [u64; 4]) -> bool {
        let sets: Vec<SourceSet> = self.held.values().cloned().collect();
        let masks = masks(&sets);
        let tables = &mut self.sources.tables;
        let held = (tables.masks(), tables.bits());
        tables.set_masks(masks);
        let same = Scopes::of(&sets).put(&self.off, tables);
        let same = held == (masks, tables.bits()) && same;
        self.sources.audit(local_key) && same
    }

    /// What each set counted.
    pub fn counts(&self) -> BTreeMap<u8, SourceCounts> {
        let mut counts = self.before.clone();
        for (sets, class) in self.sources.classes() {
            let of_class = self.of_class(class);
            for number in self.held.keys().filter(|number| sets >> **number & 1 != 0) {
                add(counts.entry(*number).or_default(), of_class);
            }
        }
        counts
    }

    /// Keeps for other sets what was counted by classes of one that is no more.
    fn retire(&mut self, gone: u8, classes: &[(u64, u16)]) {
        self.before.remove(&gone);
        for (sets, class) in classes {
            let of_class = self.of_class(*class);
            for number in self.held.keys().filter(|number| sets >> **number & 1 != 0) {
                add(self.before.entry(*number).or_default(), of_class);
            }
            for index in [u32::from(*class) << 1, u32::from(*class) << 1 | 1] {
                let zeros = nr_cpus()
                    .map_err(|(_, error)| error)
                    .and_then(|cpus| PerCpuValues::try_from(vec![[0; 2]; cpus]));
                let done = zeros.map(|zeros| self.stats.set(index, zeros, 0));
                if !matches!(done, Ok(Ok(()))) {
                    tracing::warn!("counters of a set of sources do not begin at zero");
                }
            }
        }
    }

    fn of_class(&self, class: u16) -> SourceCounts {
        let read = |dropped: u32| {
            let mut sum = Count::default();
            // What cannot be read counts nothing.
            if let Ok(values) = self.stats.get(&(u32::from(class) << 1 | dropped), 0) {
                for [packets, bytes] in values.iter() {
                    sum.packets += packets;
                    sum.bytes += bytes;
                }
            }
            sum
        };
        SourceCounts {
            passed: read(0),
            dropped: read(1),
        }
    }
}

fn tables(object: &Ebpf) -> Result<SourceTables, LoadError> {
    Ok(SourceTables {
        settings: Box::new(SettingsWords::new(mapped(object, maps::SETTINGS)?)),
        filter: Box::new(mapped::<[u32; 2]>(object, maps::SOURCE_FILTER)?),
        v4: Box::new(mapped::<[u32; 2]>(object, maps::SOURCES)?),
        blocks: Box::new(mapped::<[u64; UNIT_WORDS]>(object, maps::SOURCE_BLOCKS)?),
        filter_v6: Box::new(mapped::<[u32; 2]>(object, maps::SOURCE_FILTER_V6)?),
        lists: Box::new(mapped::<[u64; LIST_WORDS]>(
            object,
            maps::SOURCE_LENGTHS_V6,
        )?),
        v6: Box::new(mapped::<[u64; V6_WAYS]>(object, maps::SOURCES_V6)?),
        classes: Box::new(mapped::<[u64; 1]>(object, maps::SOURCE_CLASSES)?),
        grace: Box::new(grace),
    })
}

/// Waits until no packet is under way that was.
fn grace() {
    if sys::wait_for_programs().is_err() {
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn add(sum: &mut SourceCounts, more: SourceCounts) {
    for (sum, more) in [
        (&mut sum.passed, more.passed),
        (&mut sum.dropped, more.dropped),
    ] {
        sum.packets += more.packets;
        sum.bytes += more.bytes;
    }
}

fn masks(sets: &[SourceSet]) -> Masks {
    let mut masks = Masks::default();
    for set in sets {
        let mask = match set.purpose {
            Purpose::Allow => &mut masks.allow,
            Purpose::Deny => &mut masks.deny,
            Purpose::Monitor => &mut masks.monitor,
            Purpose::Bogons => continue,
        };
        *mask |= 1 << set.number;
    }
    masks
}
