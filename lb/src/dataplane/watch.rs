//! What detection reads from the maps, by itself and often: counters by VIP and class, and samples.

use std::{mem::offset_of, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use sluice_ebpf::{
    abi::{
        CLASS_COUNTERS_SHIFT, CLASSES, ClassStats, Count, DROP_REASONS, DropReason, SAMPLE_BYTES,
        Sample, Settings, Watching, maps,
    },
    gcra,
};

use super::{
    explain::Action,
    load,
    pins::Pins,
    sampler::{SampleError, array, failed, open},
};
use crate::sys::{ArrayReader, Mapped};

/// Reads counters and samples, and says how many samples are wanted.
pub struct Watch {
    settings: Mapped<Settings>,
    watching: Mapped<Watching>,
    samples: RingBuf<MapData>,
    hz: u32,
    classes: ArrayReader,
    drops: ArrayReader,
}

/// The beginning of a packet, and what became of it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Number of its VIP.
    pub vip: u16,
    pub action: Action,
    pub reason: Option<DropReason>,
    /// As the program left it: what was forwarded may be in a tunnel.
    pub frame: Vec<u8>,
}

/// Counters of a VIP, of all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub classes: [Count; CLASSES],
    /// Dropped by limits and the like, or what would have been: whatever comes after the class is known, but rules.
    pub stopped: Count,
    /// Dropped by rules, whoever set them.
    pub ruled: Count,
}

impl Watch {
    pub fn open(pin_dir: &Path) -> Result<Self, SampleError> {
        let directory = Pins::existing(pin_dir).directory;
        let reader = |map| match open(&directory, map)? {
            Map::PerCpuArray(data) => ArrayReader::new(&data).map_err(|error| failed(map, error)),
            _ => Err(failed(map, "it is no array for each CPU")),
        };
        Ok(Self {
            settings: array(&directory, maps::SETTINGS)?,
            watching: array(&directory, maps::WATCHING)?,
            samples: RingBuf::try_from(open(&directory, maps::WATCHED)?)
                .map_err(|error| failed(maps::WATCHED, error))?,
            hz: load::hz()?,
            classes: reader(maps::CLASS_STATS)?,
            drops: reader(maps::DROPS)?,
        })
    }

    /// Takes one of `every` packets, and no more than `rate` a second. `every` 0: none.
    pub fn want(&self, every: u64, rate: u32) {
        let burst = u64::from(rate.clamp(1, MOST_AT_ONCE));
        let rate = gcra::limiter(u64::from(rate), burst, self.hz);
        let before = self.watching.read(0);
        if before.rate != rate {
            let watching = Watching { rate, ..before };
            self.watching.write(0, &watching);
        }
        let below = u64::MAX.checked_div(every).unwrap_or(0);
        let offset = offset_of!(Settings, watching);
        self.settings.store_u64(0, offset, below);
    }

    /// A sample, if one is there.
    pub fn sample(&mut self) -> Option<Watched> {
        loop {
            let item = self.samples.next()?;
            // None of another size can be there.
            let Ok(sample) = bytemuck::try_pod_read_unaligned::<Sample>(&item) else {
                continue;
            };
            let bytes = usize::try_from(sample.sampled_bytes).unwrap_or(0);
            let reason = usize::from(sample.reason).checked_sub(1);
            return Some(Watched {
                vip: sample.vip,
                action: Action::from(u32::from(sample.action)),
                reason: reason.and_then(|number| DropReason::ALL.get(number).copied()),
                frame: sample.frame[..bytes.min(SAMPLE_BYTES)].to_vec(),
            });
        }
    }

    /// Counters of the VIPs of these numbers. `stops` tells which drops are of packets that were counted by their class
    /// before, and are no rule's.
    pub fn counted(
        &self,
        vips: &[u16],
        stops: fn(DropReason) -> bool,
    ) -> Result<Vec<Counted>, SampleError> {
        let Some(last) = vips.iter().max() else {
            return Ok(Vec::new());
        };
        let room = u32::from(*last) + 1;
        let classes = sums::<ClassStats>(
            &self.classes,
            maps::CLASS_STATS,
            room << CLASS_COUNTERS_SHIFT,
        )?;
        let drops = sums::<Count>(&self.drops, maps::DROPS, room * DROP_REASONS * 2)?;
        let of_vip = |vip: &u16| {
            let first_class = usize::from(*vip) << CLASS_COUNTERS_SHIFT;
            let reasons = DropReason::ALL.iter().filter(|reason| stops(**reason));
            // What was dropped, and what would have been.
            let first = |reason: DropReason| {
                (usize::from(*vip) * DropReason::ALL.len() + reason as usize) * 2
            };
            let stopped = reasons.flat_map(|reason| {
                let first = first(*reason);
                drops.get(first..first + 2).unwrap_or_default()
            });
            let ruled = drops.get(first(DropReason::Rule));
            Counted {
                classes: std::array::from_fn(|class| {
                    classes
                        .get(first_class + class)
                        .copied()
                        .unwrap_or_default()
                }),
                stopped: stopped.fold(Count::default(), |sum, count| Count {
                    packets: sum.packets + count.packets,
                    bytes: sum.bytes + count.bytes,
                }),
                ruled: ruled.copied().unwrap_or_default(),
            }
        };
        Ok(vips.iter().map(of_vip).collect())
    }
}

impl Drop for Watch {
    /// Nobody reads any more.
    fn drop(&mut self) {
        self.want(0, 1);
    }
}

/// Values of counters, each summed over all CPUs.
/// Counts that values of the type `T` begin with, each summed over all CPUs.
fn sums<T>(reader: &ArrayReader, map: &'static str, count: u32) -> Result<Vec<Count>, SampleError> {
    let mut sums = Vec::with_capacity(count as usize);
    let mut first = 0;
    while first < count {
        let part = READ_AT_ONCE.min(count - first);
        let words = reader
            .read(first, part)
            .map_err(|error| failed(map, error))?;
        for copies in words.chunks_exact(reader.value_words()) {
            let (mut packets, mut bytes) = (0u64, 0u64);
            for copy in copies.chunks_exact(size_of::<T>() / 8) {
                packets = packets.wrapping_add(copy[0]);
                bytes = bytes.wrapping_add(copy[1]);
            }
            sums.push(Count { packets, bytes });
        }
        first += part;
    }
    Ok(sums)
}

/// Fits the ring with room to spare.
const MOST_AT_ONCE: u32 = 1_000;
const READ_AT_ONCE: u32 = 4_096;
