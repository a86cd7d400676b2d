//! Samples of packets: the last seconds of all VIPs, and for each VIP some of what peace looked like. All of fixed size.

use std::collections::{BTreeMap, VecDeque};

use super::header::Header;

/// The number of a VIP among those of the config, as the detector has them.
pub type VipIndex = u16;

/// What was sampled lately, and in peace.
#[derive(Clone, Debug)]
pub struct Recent {
    ring: VecDeque<Taken>,
    peace: BTreeMap<VipIndex, Reservoir>,
    peace_capacity: usize,
    random: u64,
}

/// A sample, when and of which VIP.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    pub at_ms: u64,
    pub vip: VipIndex,
    pub header: Header,
}

/// Some packets of peace, of the last minutes: each has the same chance to be among them at any time.
#[derive(Clone, Debug, Default)]
struct Reservoir {
    headers: Vec<Header>,
    /// Before this, none is taken.
    next_ms: u64,
}

/// How far back the ring reaches.
pub const RING_MS: u64 = 5_000;
/// Samples in the ring, whatever comes: 5 seconds of 10,000 a second.
const RING: usize = 50_000;
/// Samples of peace of all VIPs together, and of one at least and at most.
const PEACE: usize = 262_144;
const PEACE_LEAST: usize = 512;
const PEACE_MOST: usize = 4_096;
/// How long a sample of peace stays, on average.
const PEACE_MS: u64 = 600_000;
/// Until it is full, a reservoir takes a sample each so many ms.
const FILL_MS: u64 = 5;

impl Recent {
    pub fn new(seed: u64) -> Self {
        Self {
            ring: VecDeque::new(),
            peace: BTreeMap::new(),
            peace_capacity: PEACE_MOST,
            random: seed | 1,
        }
    }

    /// How many VIPs share the room. Samples of those that are gone are forgotten.
    pub fn set_vips(&mut self, vips: usize, stays: impl Fn(VipIndex) -> bool) {
        self.peace_capacity = (PEACE / vips.max(1)).clamp(PEACE_LEAST, PEACE_MOST);
        self.peace.retain(|vip, _| stays(*vip));
        for reservoir in self.peace.values_mut() {
            reservoir.headers.truncate(self.peace_capacity);
        }
        self.ring.retain(|taken| stays(taken.vip));
    }

    pub fn push(&mut self, taken: Taken) {
        if self.ring.len() >= RING {
            self.ring.pop_front();
        }
        self.ring.push_back(taken);
    }

    /// Takes what is old enough out of the ring: into peace, if it was peace. `attacked` tells whether a sample belongs
    /// to an attack.
    pub fn age(&mut self, now_ms: u64, attacked: impl Fn(&Taken) -> bool) {
        while let Some(taken) = self.ring.front() {
            if taken.at_ms + RING_MS > now_ms {
                return;
            }
            if let Some(taken) = self.ring.pop_front()
                && !attacked(&taken)
            {
                self.learn(&taken);
            }
        }
    }

    /// Those of the ring from this time on.
    pub fn since(&self, since_ms: u64) -> impl Iterator<Item = &Taken> {
        let first = self.ring.partition_point(|taken| taken.at_ms < since_ms);
        self.ring.range(first..)
    }

    pub fn peace(&self, vip: VipIndex) -> &[Header] {
        self.peace
            .get(&vip)
            .map_or(&[], |reservoir| &reservoir.headers)
    }

    /// Some of the peace of all VIPs.
    pub fn peace_of_all(&self, most: usize) -> Vec<Header> {
        let each = (most / self.peace.len().max(1)).max(1);
        let of_one = |reservoir: &Reservoir| {
            let step = (reservoir.headers.len() / each).max(1);
            let some = reservoir.headers.iter().step_by(step).take(each);
            some.copied().collect::<Vec<_>>()
        };
        self.peace.values().flat_map(of_one).collect()
    }

    fn learn(&mut self, taken: &Taken) {
        let capacity = self.peace_capacity;
        let reservoir = self.peace.entry(taken.vip).or_default();
        if taken.at_ms < reservoir.next_ms {
            return;
        }
        if reservoir.headers.len() < capacity {
            reservoir.next_ms = taken.at_ms + FILL_MS;
            reservoir.headers.push(taken.header);
            return;
        }
        reservoir.next_ms = taken.at_ms + PEACE_MS / capacity as u64;
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let at = usize::try_from(self.random % capacity as u64).unwrap_or_default();
        if let Some(old) = reservoir.headers.get_mut(at) {
            *old = taken.header;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(at_ms: u64) -> Taken {
        let header = Header {
            length: u16::try_from(at_ms % 60_000).unwrap(),
            ..Header::default()
        };
        Taken {
            at_ms,
            vip: 1,
            header,
        }
    }

    #[test]
    fn its_size_is_bounded_whatever_comes() {
        let mut recent = Recent::new(1);
        for n in 0..200_000 {
            recent.push(taken(n / 100));
        }
        assert_eq!(recent.ring.len(), RING);
        for n in 0..1_000_000 {
            recent.push(taken(n));
            recent.age(n, |_| false);
        }
        assert_eq!(recent.peace(1).len(), PEACE_MOST);
    }

    #[test]
    fn what_belongs_to_an_attack_is_never_peace() {
        let mut recent = Recent::new(1);
        for n in 0..60_000 {
            recent.push(taken(n));
            recent.age(n, |taken| (20_000..30_000).contains(&taken.at_ms));
        }
        let attack = |header: &&Header| (20_000..30_000).contains(&header.length);
        assert_eq!(recent.peace(1).iter().filter(attack).count(), 0);
        assert!(recent.peace(1).len() > 1_000);
    }

    #[test]
    fn peace_is_of_the_last_minutes() {
        let mut recent = Recent::new(1);
        for n in 0..3_600_000 {
            recent.push(Taken {
                header: Header {
                    source: n.into(),
                    ..Header::default()
                },
                ..taken(n)
            });
            recent.age(n, |_| false);
        }
        let old = recent.peace(1).iter();
        let old = old.filter(|header| header.source < 1_800_000).count();
        assert!(old < PEACE_MOST / 10, "{old} are older than half an hour");
    }
}
