//! What detection reads from the maps, by itself and often: counters by VIP and class, and samples.

use std::{mem::offset_of, ops::Range, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use bytemuck::Pod;
use sluice_ebpf::{
    abi::{
        CLASS_COUNTERS_SHIFT, CLASSES, ChallengeStats, ClassStats, Count, DROP_REASONS, DropReason,
        NO_BACKEND, SAMPLE_BYTES, Sample, Settings, Watching, maps,
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
    challenges: ArrayReader,
    /// By number of the VIP.
    last: Vec<Option<Last>>,
}

/// What was read last of a VIP.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    counted: Counted,
    /// Some packets came since it was read before.
    came: bool,
}

/// The beginning of a packet, and what became of it.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Number of its VIP.
    pub vip: u16,
    pub action: Action,
    /// The program answered it: what is here is the answer.
    pub answered: bool,
    pub reason: Option<DropReason>,
    /// As the program left it: what was forwarded may be in a tunnel.
    pub frame: Vec<u8>,
}

/// Counters of a VIP, of all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    pub classes: [Count; CLASSES],
    /// Challenged, dropped by limits and the like, or what would have been: whatever comes after the class is known, but
    /// rules.
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
            challenges: reader(maps::CHALLENGE_STATS)?,
            last: Vec::new(),
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
            let action = Action::from(u32::from(sample.action));
            return Some(Watched {
                vip: sample.vip,
                action,
                answered: action == Action::Tx && sample.backend == NO_BACKEND,
                reason: reason.and_then(|number| DropReason::ALL.get(number).copied()),
                frame: sample.frame[..bytes.min(SAMPLE_BYTES)].to_vec(),
            });
        }
    }

    /// Counters of the VIPs of these numbers. `stops` tells which drops are of packets that were counted by their class
    /// before, and are no rule's.
    ///
    /// Drops are many counters, most of which stand still: those of a VIP are read when packets came to it, and once more
    /// after that, for packets that were between the two.
    pub fn counted(
        &mut self,
        vips: &[u16],
        stops: fn(DropReason) -> bool,
    ) -> Result<Vec<Counted>, SampleError> {
        let Some(last) = vips.iter().max() else {
            return Ok(Vec::new());
        };
        let room = u32::from(*last) + 1;
        let classes: Vec<ClassStats> = sums(
            &self.classes,
            maps::CLASS_STATS,
            0..room << CLASS_COUNTERS_SHIFT,
        )?;
        // A number that is another VIP's now was set to zero meanwhile.
        self.last.resize(room as usize, None);
        let of_vip = |vip: &u16| {
            let first = usize::from(*vip) << CLASS_COUNTERS_SHIFT;
            let classes = std::array::from_fn(|class| {
                let stats = classes.get(first + class);
                stats.map_or_else(Count::default, |stats| stats.count)
            });
            let known = self.last[usize::from(*vip)];
            let came = known.is_none_or(|known| known.counted.classes != classes);
            let (stopped, ruled) = match known {
                Some(known) if !came && !known.came => (known.counted.stopped, known.counted.ruled),
                _ => self.dropped(*vip, stops)?,
            };
            let counted = Counted {
                classes,
                stopped,
                ruled,
            };
            self.last[usize::from(*vip)] = Some(Last { counted, came });
            Ok(counted)
        };
        vips.iter().map(of_vip).collect()
    }

    /// What was challenged or dropped of a VIP's packets, or would have been, for reasons that `stops`; and what rules
    /// dropped.
    fn dropped(
        &self,
        vip: u16,
        stops: fn(DropReason) -> bool,
    ) -> Result<(Count, Count), SampleError> {
        let first = u32::from(vip) * DROP_REASONS * 2;
        let drops: Vec<Count> = sums(&self.drops, maps::DROPS, first..first + DROP_REASONS * 2)?;
        let reasons = DropReason::ALL.iter().zip(drops.chunks_exact(2));
        let stopped = reasons.filter(|(reason, _)| stops(**reason));
        let vip = u32::from(vip);
        let challenges: Vec<ChallengeStats> =
            sums(&self.challenges, maps::CHALLENGE_STATS, vip..vip + 1)?;
        let challenged = challenges
            .iter()
            .flat_map(|stats| [&stats.sent, &stats.monitored, &stats.cookies]);
        let stopped = stopped.flat_map(|(_, counts)| counts).chain(challenged);
        let stopped = stopped.fold(Count::default(), |sum, count| Count {
            packets: sum.packets + count.packets,
            bytes: sum.bytes + count.bytes,
        });
        let ruled = drops.get(DropReason::Rule as usize * 2);
        Ok((stopped, ruled.copied().unwrap_or_default()))
    }
}

impl Drop for Watch {
    /// Nobody reads any more.
    fn drop(&mut self) {
        self.want(0, 1);
    }
}

/// Values of counters, each summed over all CPUs.
fn sums<T: Pod>(
    reader: &ArrayReader,
    map: &'static str,
    range: Range<u32>,
) -> Result<Vec<T>, SampleError> {
    let mut sums = Vec::with_capacity(range.len());
    let mut first = range.start;
    while first < range.end {
        let part = READ_AT_ONCE.min(range.end - first);
        let words = reader
            .read(first, part)
            .map_err(|error| failed(map, error))?;
        for copies in words.chunks_exact(reader.value_words()) {
            let mut sum = T::zeroed();
            for copy in copies.chunks_exact(size_of::<T>() / 8) {
                let words = bytemuck::cast_slice_mut::<T, u64>(std::slice::from_mut(&mut sum));
                for (word, more) in words.iter_mut().zip(copy) {
                    *word = word.wrapping_add(*more);
                }
            }
            sums.push(sum);
        }
        first += part;
    }
    Ok(sums)
}

/// Fits the ring with room to spare.
const MOST_AT_ONCE: u32 = 1_000;
const READ_AT_ONCE: u32 = 4_096;
