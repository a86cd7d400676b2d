//! What packets counted, summed over CPUs.

use std::collections::BTreeMap;

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use sluice_ebpf::{
    abi::{
        AMPLIFIED_COUNTS, CLASS_COUNTERS_SHIFT, ChallengeStats, ClassStats, Count, DROP_REASONS,
        DropReason, FlowStats, NO_VIP, VipStats, maps,
    },
    amplification::Preset,
    flow::{Flow, WAYS},
};

use super::{
    BackendKey,
    error::{LoadError, ReadError},
    load,
    plane::Plane,
};
use crate::{config::Mode, sys::ArrayReader};

/// Per-CPU counters.
pub(crate) struct Counters {
    vips: PerCpu<[u64; 8]>,
    backends: PerCpu<[u64; 2]>,
    drops: PerCpu<[u64; 2]>,
    flows: PerCpu<[u64; 4]>,
    classes: PerCpu<[u64; size_of::<ClassStats>() / 8]>,
    amplified: PerCpu<[u64; 2]>,
    challenges: PerCpu<[u64; size_of::<ChallengeStats>() / 8]>,
    cpus: usize,
}

/// Packets that were dropped, or (in mode [`Mode::Monitor`]) would have been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drops {
    /// Empty if the packet was for no VIP.
    pub vip: String,
    pub reason: DropReason,
    pub mode: Mode,
    pub count: Count,
}

/// What the flow table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub proven: u64,
    pub unproven: u64,
    pub capacity: u64,
    /// Flows of both states.
    pub by_backend: BTreeMap<BackendKey, u64>,
}

/// How long the program ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunStats {
    /// Changes whenever a program is loaded.
    pub program_id: u32,
    /// Zero unless `sysctl kernel.bpf_stats_enabled=1`.
    pub runs: u64,
    pub run_time_ns: u64,
}

impl Plane {
    /// What became of each VIP's packets. The empty name stands for packets that are for no VIP.
    pub fn vip_stats(&self) -> Result<BTreeMap<String, VipStats>, ReadError> {
        let sums = self.counters.vips.sums(self.vip_room())?;
        let stats = |(name, number): (&str, u16)| {
            let sum = sums[usize::from(number)];
            (name.to_owned(), bytemuck::cast(sum))
        };
        Ok(self.vip_numbers().map(stats).collect())
    }

    /// Drops by VIP, reason and mode; those that never happened are left out.
    pub fn drops(&self) -> Result<Vec<Drops>, ReadError> {
        let sums = self
            .counters
            .drops
            .sums(self.vip_room() * DROP_REASONS * 2)?;
        let mut drops = Vec::new();
        for (name, number) in self.vip_numbers() {
            for &reason in DropReason::ALL {
                for mode in [Mode::Enforce, Mode::Monitor] {
                    let index = drop_index(number, reason, mode);
                    let count: Count = bytemuck::cast(sums[index as usize]);
                    if count.packets != 0 {
                        drops.push(Drops {
                            vip: name.to_owned(),
                            reason,
                            mode,
                            count,
                        });
                    }
                }
            }
        }
        Ok(drops)
    }

    /// Answers that nobody asked for, by preset and mode; those that never came are left out.
    pub fn amplified(&self) -> Result<Vec<(Preset, Mode, Count)>, ReadError> {
        let sums = self.counters.amplified.sums(AMPLIFIED_COUNTS)?;
        let counts = Preset::ALL.iter().zip(sums.chunks_exact(2));
        let by_mode = counts.flat_map(|(preset, counts)| {
            [Mode::Enforce, Mode::Monitor]
                .into_iter()
                .zip(counts)
                .map(|(mode, sum)| (*preset, mode, bytemuck::cast(*sum)))
        });
        Ok(by_mode
            .filter(|(_, _, count): &(Preset, Mode, Count)| count.packets != 0)
            .collect())
    }

    /// What came of challenges, by VIP; where no SYN was looked at is left out.
    pub fn challenges(&self) -> Result<BTreeMap<String, ChallengeStats>, ReadError> {
        let sums = self.counters.challenges.sums(self.vip_room())?;
        let stats = self.vip_numbers().map(|(name, number)| {
            let stats: ChallengeStats = bytemuck::cast(sums[usize::from(number)]);
            (name.to_owned(), stats)
        });
        Ok(stats
            .filter(|(_, stats)| *stats != ChallengeStats::default())
            .collect())
    }

    /// What was sent to each backend.
    pub fn backend_stats(&self) -> Result<BTreeMap<BackendKey, Count>, ReadError> {
        let sums = self
            .counters
            .backends
            .sums(room(self.registry.backends.values().copied()))?;
        let count = |(key, &number): (&BackendKey, &u16)| {
            (key.clone(), bytemuck::cast(sums[usize::from(number)]))
        };
        Ok(self.registry.backends.iter().map(count).collect())
    }

    pub fn flow_stats(&self) -> Result<FlowStats, ReadError> {
        Ok(bytemuck::cast(self.counters.flows.sums(1)?[0]))
    }

    /// Counts the flow table's entries. Reads all of it: a million take 1 to 2 ms.
    #[must_use]
    pub fn flows_per_backend(&self) -> Census {
        let mut census = Census {
            capacity: u64::from(self.flows.len()) * WAYS as u64,
            ..Census::default()
        };
        let mut counts = vec![0; usize::from(u16::MAX) + 1];
        for flow in self.flows.iter_u64().map(Flow) {
            if flow.is_empty() {
                continue;
            }
            if flow.is_proven() {
                census.proven += 1;
            } else {
                census.unproven += 1;
            }
            counts[usize::from(flow.backend())] += 1;
        }
        for (key, &number) in &self.registry.backends {
            let count = counts[usize::from(number)];
            if count > 0 {
                census.by_backend.insert(key.clone(), count);
            }
        }
        census
    }

    /// The program's id, and how long it ran.
    pub fn run_stats(&mut self) -> Result<RunStats, LoadError> {
        let info = load::program(&mut self.object)?
            .info()
            .map_err(|error| LoadError::Program(Box::new(error)))?;
        Ok(RunStats {
            program_id: info.id(),
            runs: info.run_count(),
            run_time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// Numbers up to the highest that a VIP has.
    fn vip_room(&self) -> u32 {
        room(self.vip_numbers().map(|(_, number)| number))
    }

    fn vip_numbers(&self) -> impl Iterator<Item = (&str, u16)> {
        let vips = self
            .registry
            .vips
            .iter()
            .map(|(name, &number)| (name.as_str(), number));
        std::iter::once(("", NO_VIP)).chain(vips)
    }
}

impl Counters {
    /// Takes the maps out of `object`.
    pub(crate) fn new(object: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            vips: PerCpu::new(object, maps::VIP_STATS)?,
            backends: PerCpu::new(object, maps::BACKEND_STATS)?,
            drops: PerCpu::new(object, maps::DROPS)?,
            flows: PerCpu::new(object, maps::FLOW_STATS)?,
            classes: PerCpu::new(object, maps::CLASS_STATS)?,
            amplified: PerCpu::new(object, maps::AMPLIFIED)?,
            challenges: PerCpu::new(object, maps::CHALLENGE_STATS)?,
            cpus: nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))?,
        })
    }

    /// A number that is given anew starts from zero.
    pub(crate) fn reset_vip(&mut self, number: u16) -> Result<(), ReadError> {
        let cpus = self.cpus;
        self.vips.reset(u32::from(number), cpus)?;
        self.challenges.reset(u32::from(number), cpus)?;
        for &reason in DropReason::ALL {
            for mode in [Mode::Enforce, Mode::Monitor] {
                self.drops.reset(drop_index(number, reason, mode), cpus)?;
            }
        }
        let first = u32::from(number) << CLASS_COUNTERS_SHIFT;
        (first..first + (1 << CLASS_COUNTERS_SHIFT))
            .try_for_each(|class| self.classes.reset(class, cpus))
    }

    pub(crate) fn reset_backend(&mut self, number: u16) -> Result<(), ReadError> {
        self.backends.reset(u32::from(number), self.cpus)
    }
}

fn room(numbers: impl Iterator<Item = u16>) -> u32 {
    numbers.max().map_or(0, |highest| u32::from(highest) + 1)
}

fn drop_index(vip: u16, reason: DropReason, mode: Mode) -> u32 {
    let mode = match mode {
        Mode::Enforce => 0,
        Mode::Monitor => 1,
    };
    (u32::from(vip) * DROP_REASONS + reason as u32) * 2 + mode
}

struct PerCpu<V: Pod> {
    name: &'static str,
    array: PerCpuArray<MapData, V>,
    reader: ArrayReader,
}

impl<const WORDS: usize> PerCpu<[u64; WORDS]> {
    fn new(object: &mut Ebpf, map: &'static str) -> Result<Self, LoadError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Map { map, source };
        let found = object
            .take_map(map)
            .ok_or_else(|| failed("the program has no such map".into()))?;
        let Map::PerCpuArray(data) = &found else {
            return Err(failed("it is no array for each CPU".into()));
        };
        let reader = ArrayReader::new(data).map_err(|error| failed(error.into()))?;
        if !reader.value_words().is_multiple_of(WORDS) {
            return Err(failed("its values have another size".into()));
        }
        let array = found
            .try_into()
            .map_err(|error: MapError| failed(error.into()))?;
        Ok(Self {
            name: map,
            array,
            reader,
        })
    }

    /// The first `count` values, each summed over all CPUs.
    fn sums(&self, count: u32) -> Result<Vec<[u64; WORDS]>, ReadError> {
        let mut sums = Vec::with_capacity(count as usize);
        let mut first = 0;
        while first < count {
            let part = READ_AT_ONCE.min(count - first);
            let words = self.reader.read(first, part).map_err(|error| ReadError {
                map: self.name,
                source: MapError::IoError(error),
            })?;
            for copies in words.chunks_exact(self.reader.value_words()) {
                let mut sum = [0u64; WORDS];
                for copy in copies.chunks_exact(WORDS) {
                    for (sum, word) in sum.iter_mut().zip(copy) {
                        *sum = sum.wrapping_add(*word);
                    }
                }
                sums.push(sum);
            }
            first += part;
        }
        Ok(sums)
    }

    fn reset(&mut self, index: u32, cpus: usize) -> Result<(), ReadError> {
        let failed = |source| ReadError {
            map: self.name,
            source,
        };
        let zeros = PerCpuValues::try_from(vec![[0; WORDS]; cpus])
            .map_err(|error| failed(MapError::IoError(error)))?;
        self.array.set(index, zeros, 0).map_err(failed)
    }
}

/// Values of a part: what they take on a machine with many CPUs stays small.
const READ_AT_ONCE: u32 = 1024;
