//! What detection reads from the maps, by itself and often: counters by VIP and class.

use std::path::Path;

use aya::maps::Map;
use sluice_ebpf::abi::{CLASS_COUNTERS_SHIFT, CLASSES, Count, DROP_REASONS, DropReason, maps};

use super::{
    pins::Pins,
    sampler::{SampleError, failed, open},
};
use crate::sys::ArrayReader;

/// Reads counters.
pub struct Watch {
    classes: ArrayReader,
    drops: ArrayReader,
}

/// Counters of a VIP, of all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub classes: [Count; CLASSES],
    /// Dropped by limits and the like, or what would have been: whatever comes after the class is known, but rules.
    pub stopped: Count,
}

impl Watch {
    pub fn open(pin_dir: &Path) -> Result<Self, SampleError> {
        let directory = Pins::existing(pin_dir).directory;
        let reader = |map| match open(&directory, map)? {
            Map::PerCpuArray(data) => ArrayReader::new(&data).map_err(|error| failed(map, error)),
            _ => Err(failed(map, "it is no array for each CPU")),
        };
        Ok(Self {
            classes: reader(maps::CLASS_STATS)?,
            drops: reader(maps::DROPS)?,
        })
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
        let classes = sums(
            &self.classes,
            maps::CLASS_STATS,
            room << CLASS_COUNTERS_SHIFT,
        )?;
        let drops = sums(&self.drops, maps::DROPS, room * DROP_REASONS * 2)?;
        let of_vip = |vip: &u16| {
            let first = usize::from(*vip) << CLASS_COUNTERS_SHIFT;
            let reasons = DropReason::ALL.iter().filter(|reason| stops(**reason));
            let stopped = reasons.flat_map(|reason| {
                let first = (usize::from(*vip) * DropReason::ALL.len() + *reason as usize) * 2;
                drops.get(first..first + 2).unwrap_or_default()
            });
            Counted {
                classes: std::array::from_fn(|class| {
                    classes.get(first + class).copied().unwrap_or_default()
                }),
                stopped: stopped.fold(Count::default(), |sum, count| Count {
                    packets: sum.packets + count.packets,
                    bytes: sum.bytes + count.bytes,
                }),
            }
        };
        Ok(vips.iter().map(of_vip).collect())
    }
}

/// Values of counters, each summed over all CPUs.
fn sums(reader: &ArrayReader, map: &'static str, count: u32) -> Result<Vec<Count>, SampleError> {
    let mut sums = Vec::with_capacity(count as usize);
    let mut first = 0;
    while first < count {
        let part = READ_AT_ONCE.min(count - first);
        let words = reader
            .read(first, part)
            .map_err(|error| failed(map, error))?;
        for copies in words.chunks_exact(reader.value_words()) {
            let (mut packets, mut bytes) = (0u64, 0u64);
            for copy in copies.chunks_exact(2) {
                packets = packets.wrapping_add(copy[0]);
                bytes = bytes.wrapping_add(copy[1]);
            }
            sums.push(Count { packets, bytes });
        }
        first += part;
    }
    Ok(sums)
}

const READ_AT_ONCE: u32 = 4_096;
