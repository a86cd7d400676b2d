//! Samples of packets, as the program takes them for who asks. Only the maps are needed, not the daemon.

use std::{
    fs::File,
    io,
    mem::offset_of,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::maps::{Map, MapData, MapError, PerCpuArray, RingBuf};
use ipnet::IpNet;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    time::{ClockId, clock_gettime},
};
use sluice_ebpf::{
    abi::{ANY_VIP, DropReason, SAMPLE_BYTES, Sample, SampleStats, Sampling, Settings, maps},
    decap::Prefix,
    gcra,
};

use super::{
    error::LoadError,
    explain::Action,
    load::{self, jiffies_now},
    pins::Pins,
};
use crate::{decap::prefix, sys::Mapped};

/// Which packets are wanted, and how many.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// One of so many.
    pub every: u32,
    /// Most samples a second.
    pub rate: u32,
    /// Number of the VIP.
    pub vip: Option<u16>,
    /// Empty: all.
    pub actions: Vec<Action>,
    /// Empty: all. Of dropped packets only.
    pub reasons: Vec<DropReason>,
    /// Where either address of the client's packet lies.
    pub prefix: Option<IpNet>,
}

/// Takes samples as long as it lives and is [renewed](Sampler::renew).
pub struct Sampler {
    settings: Mapped<Settings>,
    ring: RingBuf<MapData>,
    stats: PerCpuArray<MapData, [u64; 4]>,
    hz: u32,
    /// Counters from before.
    base: SampleStats,
    /// From the kernel's monotonic clock to the time of day.
    epoch: Duration,
    _alone: Flock<File>,
}

/// A packet, and what became of it.
#[derive(Clone, Debug)]
pub struct Sampled {
    /// Since 1970.
    pub time: Duration,
    pub ifindex: u32,
    pub frame_bytes: u32,
    pub vip: u16,
    pub backend: u16,
    pub action: Action,
    pub reason: Option<DropReason>,
    /// The first bytes of the frame.
    pub frame: Vec<u8>,
}

/// Why no samples can be taken.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("another capture is under way; only one can be at a time")]
    Busy,
    #[error("cannot use {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot use the map {map}; are you root?")]
    Map {
        map: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Samples end so long after the last [`Sampler::renew`], so that nothing stays when a capture is killed.
const LEASE: Duration = Duration::from_secs(3);

impl Sampler {
    /// Begins to take samples.
    pub fn open(pin_dir: &Path, wanted: &Wanted) -> Result<Self, SampleError> {
        let directory = Pins::existing(pin_dir).directory;
        if !directory.join(maps::SAMPLES).exists() {
            return Err(LoadError::NothingLoaded {
                path: pin_dir.to_owned(),
            }
            .into());
        }
        let alone = lock(&directory)?;
        let hz = load::hz()?;
        let settings = array::<Settings>(&directory, maps::SETTINGS)?;
        let sampling = array::<Sampling>(&directory, maps::SAMPLING)?;
        let mut ring = RingBuf::try_from(open(&directory, maps::SAMPLES)?)
            .map_err(|error| failed(maps::SAMPLES, error))?;
        let stats = PerCpuArray::try_from(open(&directory, maps::SAMPLE_STATS)?)
            .map_err(|error| failed(maps::SAMPLE_STATS, error))?;
        // Of one that was killed.
        until(&settings, 0);
        while ring.next().is_some() {}
        sampling.write(0, &wanted.encoded(hz));
        let mut sampler = Self {
            settings,
            ring,
            stats,
            hz,
            base: SampleStats::default(),
            epoch: epoch(),
            _alone: alone,
        };
        sampler.base = sampler.read_stats()?;
        sampler.renew();
        Ok(sampler)
    }

    /// To be called about once a second.
    pub fn renew(&self) {
        let end = jiffies_now(self.hz).wrapping_add(lease_ticks(self.hz));
        until(&self.settings, end.max(1));
    }

    /// A sample, if one is there.
    pub fn take(&mut self) -> Option<Sampled> {
        loop {
            let item = self.ring.next()?;
            // None of another size can be there.
            let Ok(sample) = bytemuck::try_pod_read_unaligned::<Sample>(&item) else {
                continue;
            };
            let bytes = usize::try_from(sample.sampled_bytes).unwrap_or(0);
            let reason = usize::from(sample.reason).checked_sub(1);
            return Some(Sampled {
                time: self.epoch + Duration::from_nanos(sample.time_ns),
                ifindex: sample.ifindex,
                frame_bytes: sample.frame_bytes,
                vip: sample.vip,
                backend: sample.backend,
                action: Action::from(u32::from(sample.action)),
                reason: reason.and_then(|number| DropReason::ALL.get(number).copied()),
                frame: sample.frame[..bytes.min(SAMPLE_BYTES)].to_vec(),
            });
        }
    }

    /// What became of the packets since this began.
    pub fn stats(&self) -> Result<SampleStats, SampleError> {
        let (now, base) = (self.read_stats()?, self.base);
        Ok(SampleStats {
            matched: now.matched - base.matched,
            taken: now.taken - base.taken,
            capped: now.capped - base.capped,
            lost: now.lost - base.lost,
        })
    }

    /// No more are taken; what was taken can still be read.
    pub fn stop(&self) {
        until(&self.settings, 0);
    }

    fn read_stats(&self) -> Result<SampleStats, SampleError> {
        let all = self
            .stats
            .get(&0, 0)
            .map_err(|error| failed(maps::SAMPLE_STATS, error))?;
        let mut sum = SampleStats::default();
        for &words in all.iter() {
            let cpu: SampleStats = bytemuck::cast(words);
            sum.matched += cpu.matched;
            sum.taken += cpu.taken;
            sum.capped += cpu.capped;
            sum.lost += cpu.lost;
        }
        Ok(sum)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Wanted {
    fn encoded(&self, hz: u32) -> Sampling {
        let bits = |numbers: &mut dyn Iterator<Item = u32>| {
            let bits = numbers.fold(0u64, |bits, number| bits | 1 << (number & 63));
            if bits == 0 { u64::MAX } else { bits }
        };
        let actions = if self.reasons.is_empty() {
            bits(&mut self.actions.iter().map(|action| action.number()))
        } else {
            1 << Action::Drop.number()
        };
        let [actions, _]: [u32; 2] = bytemuck::cast(actions);
        Sampling {
            // What may come at once fits the ring with room to spare.
            rate: gcra::limiter(
                u64::from(self.rate),
                u64::from(self.rate.clamp(1, 1000)),
                hz,
            ),
            rate_tat: 0,
            prefix: self.prefix.map_or_else(Prefix::default, prefix),
            every: self.every.max(1),
            actions,
            reasons: bits(&mut self.reasons.iter().map(|reason| *reason as u32)),
            vip: self.vip.unwrap_or(ANY_VIP),
            pad: [0; 3],
        }
    }
}

/// Until when samples may be taken if the settings say `until`: no capture asks for longer than its lease.
pub(super) fn lease(until: u64, now: u64, hz: u32) -> u64 {
    // A second more, for clocks that differ.
    let most = lease_ticks(hz) + u64::from(hz);
    let left = until.wrapping_sub(now).cast_signed();
    if left > most.cast_signed() { 0 } else { until }
}

fn lease_ticks(hz: u32) -> u64 {
    LEASE.as_secs() * u64::from(hz)
}

fn until(settings: &Mapped<Settings>, jiffies: u64) {
    settings.store_u64(0, offset_of!(Settings, sampling_until), jiffies);
}

fn lock(directory: &Path) -> Result<Flock<File>, SampleError> {
    let failed = |source| SampleError::Lock {
        path: directory.to_owned(),
        source,
    };
    let file = File::open(directory).map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(SampleError::Busy),
        Err((_, error)) => Err(failed(error.into())),
    }
}

pub(super) fn open(directory: &Path, map: &'static str) -> Result<Map, SampleError> {
    let data = MapData::from_pin(directory.join(map)).map_err(|error| failed(map, error))?;
    Map::from_map_data(data).map_err(|error| failed(map, error))
}

pub(super) fn array<T: bytemuck::Pod>(
    directory: &Path,
    map: &'static str,
) -> Result<Mapped<T>, SampleError> {
    match open(directory, map)? {
        Map::Array(data) => Mapped::new(data.fd(), 1).map_err(|error| failed(map, error)),
        _ => Err(failed(map, MapError::InvalidMapType { map_type: 0 })),
    }
}

pub(super) fn failed(
    map: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SampleError {
    SampleError::Map {
        map,
        source: source.into(),
    }
}

fn epoch() -> Duration {
    let now = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    now(ClockId::CLOCK_REALTIME).saturating_sub(now(ClockId::CLOCK_MONOTONIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_bits_for_the_program() {
        let mut wanted = Wanted {
            every: 0,
            rate: 100,
            vip: None,
            actions: Vec::new(),
            reasons: Vec::new(),
            prefix: None,
        };
        let any = wanted.encoded(250);
        assert_eq!(
            (any.every, any.actions, any.reasons),
            (1, u32::MAX, u64::MAX)
        );
        assert_eq!((any.vip, any.prefix.mask), (ANY_VIP, [0, 0]));

        wanted.actions = vec![Action::Tx, Action::Redirect];
        assert_eq!(wanted.encoded(250).actions, 1 << 3 | 1 << 4);
        wanted.reasons = vec![DropReason::NoBackend];
        let some = wanted.encoded(250);
        assert_eq!(some.actions, 1 << 1, "only drops have a reason");
        assert_eq!(some.reasons, 1 << DropReason::NoBackend as u32);
        assert!(DropReason::ALL.len() <= 64, "each has its bit");
    }

    #[test]
    fn no_capture_goes_on_for_longer_than_its_lease() {
        let hz = 250;
        for now in [1_000, u64::MAX - 10] {
            let until = |seconds: u64| now.wrapping_add(seconds * u64::from(hz));
            assert_eq!(
                lease(until(LEASE.as_secs()), now, hz),
                until(LEASE.as_secs())
            );
            assert_eq!(lease(until(60), now, hz), 0);
            let over = now.wrapping_sub(1);
            assert_eq!(lease(over, now, hz), over, "it ends by itself");
            assert_eq!(lease(0, now, hz), 0);
        }
    }
}
