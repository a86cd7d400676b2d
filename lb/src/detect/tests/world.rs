//! A site in memory: clients, an attacker, a data plane that counts, samples and applies rules a moment after they are
//! wanted. Time goes in steps of 10 ms.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use sluice_ebpf::{
    abi::{CLASSES, Count},
    packet::TCP,
};

use super::{
    attacks::{Attack, Kind},
    bursts::Bursts,
    innocent::{Service, v4},
};
use crate::{
    config::{Class, Mode, Stance},
    detect::{
        detector::{ALL_CLASSES, Decision, Detector, Reading, Settings, VipReading, VipSettings},
        header::Header,
        mitigation::Measure,
        recent::VipIndex,
        signature::Signature,
        trigger::{TICK_MS, times},
    },
};

/// Splitmix64 (Steele, Lea, Flood, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(super) fn below(&mut self, most: u64) -> u64 {
        ((self.next() >> 32) * most) >> 32
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    pub(super) fn bytes(&mut self) -> [u8; 8] {
        self.next().to_le_bytes()
    }

    /// From 0 to 1, without 0.
    pub(super) fn part(&mut self) -> f64 {
        (self.below(1_000_000) + 1) as f64 / 1e6
    }

    /// So many on average.
    fn about(&mut self, mean: f64) -> u64 {
        let spread = 2.0 * (self.below(1_000) as f64 / 1_000.0) - 1.0;
        let value = mean + spread * mean.sqrt() * 1.7;
        let part = value.fract().max(0.0) * 1_000.0;
        times(1, value) + u64::from((self.below(1_000) as f64) < part)
    }
}

/// The VIPs: one for the web, one for DNS, and many small ones from [`CARPET`] on.
pub(super) const WEB: VipIndex = 1;
pub(super) const DNS: VipIndex = 2;
pub(super) const CARPET: VipIndex = 3;
pub(super) const VIPS: VipIndex = 35;

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) detector: Detector,
    random: Random,
    /// Innocent packets a second, by VIP.
    pps: BTreeMap<VipIndex, u64>,
    bursts: Option<Bursts>,
    /// Packets of a VIP or an attack that are drawn in a step, and stand for the others.
    draws: u64,
    attacks: Vec<(u64, Attack)>,
    counts: BTreeMap<VipIndex, [Count; CLASSES]>,
    stopped: BTreeMap<VipIndex, Count>,
    ruled: BTreeMap<VipIndex, Count>,
    fitted: BTreeMap<u64, Count>,
    plane: Plane,
    pub(super) seen: Outcome,
}

/// What the data plane holds, and what it is about to.
#[derive(Clone, Debug, Default)]
struct Plane {
    rules: BTreeMap<u64, Rule>,
    measures: BTreeMap<u64, (VipIndex, Class, Measure, u64)>,
    /// An operator's rule: what fits is dropped before anything else looks at it.
    by_operator: Option<Signature>,
    /// No rule is taken, and none that is there becomes another.
    is_full: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    vip: Option<VipIndex>,
    signature: Signature,
    drops: bool,
    from_ms: u64,
}

/// Whether a packet may be among the samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sampled {
    Yes,
    No,
}

/// What became of packets since the attack began.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) attack_began_ms: u64,
    pub(super) first_drop_ms: Option<u64>,
    /// The same for each of several attacks at once.
    pub(super) first_drops_ms: BTreeMap<Kind, u64>,
    pub(super) attack_packets: u64,
    pub(super) attack_dropped: u64,
    pub(super) innocent_packets: u64,
    /// Dropped by a rule, though innocent.
    pub(super) innocent_dropped: u64,
    pub(super) decisions: Vec<Decision>,
}

/// From a decision to the first packet that meets it.
const APPLY_MS: u64 = 20;
const STEP_MS: u64 = 10;
/// Samples a step: 5,000 a second.
const SAMPLES: u64 = 50;

impl World {
    pub(super) fn new(seed: u64, stance: Stance) -> Self {
        let (settings, vips) = settings(stance);
        let mut detector = Detector::new(settings.clone(), seed);
        detector.set(settings, &vips);
        let pps = |vip| match vip {
            WEB => 1_500,
            DNS => 700,
            _ => 20,
        };
        Self {
            now_ms: 1_000_000,
            detector,
            random: Random(seed),
            pps: (WEB..VIPS).map(|vip| (vip, pps(vip))).collect(),
            bursts: None,
            draws: SAMPLES,
            attacks: Vec::new(),
            counts: BTreeMap::new(),
            stopped: BTreeMap::new(),
            ruled: BTreeMap::new(),
            fitted: BTreeMap::new(),
            plane: Plane::default(),
            seen: Outcome::default(),
        }
    }

    pub(super) fn set_stance(&mut self, stance: Stance) {
        let (settings, vips) = settings(stance);
        self.detector.set(settings, &vips);
    }

    pub(super) fn reseed(&mut self, seed: u64) {
        self.random = Random(seed);
    }

    pub(super) fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    pub(super) fn attack(&mut self, attack: Attack) {
        self.seen = Outcome {
            attack_began_ms: self.now_ms,
            ..Outcome::default()
        };
        self.attacks = vec![(self.now_ms, attack)];
    }

    /// Another one, beside those that go on.
    pub(super) fn attack_too(&mut self, attack: Attack) {
        self.attacks.push((self.now_ms, attack));
    }

    /// Peace above the floor: it is told that it could not be judged, until it is learned.
    fn learn(&mut self, ms: u64) {
        self.run(ms);
        let decisions = std::mem::take(&mut self.seen.decisions);
        let unjudged = |decision: &Decision| matches!(decision, Decision::Unjudged(_));
        assert!(decisions.iter().all(unjudged), "{decisions:#?}");
    }

    /// An operator drops what fits this.
    pub(super) fn drop_by_hand(&mut self, signature: Signature) {
        self.plane.by_operator = Some(signature);
    }

    /// From now on the data plane refuses rules.
    pub(super) fn fill(&mut self) {
        self.plane.is_full = true;
    }

    pub(super) fn make_room(&mut self) {
        self.plane.is_full = false;
    }

    /// For long times.
    pub(super) fn draw_few(&mut self) {
        self.draws = SAMPLES / 10;
    }

    pub(super) fn peace(&mut self) {
        self.attacks.clear();
    }

    /// A VIP's innocent clients are so many times as many.
    pub(super) fn crowd(&mut self, vip: VipIndex, times: u64) {
        self.seen = Outcome {
            attack_began_ms: self.now_ms,
            ..Outcome::default()
        };
        *self.pps.get_mut(&vip).unwrap() *= times;
    }

    pub(super) fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.step();
        }
    }

    fn step(&mut self) {
        let mut packets: Vec<(VipIndex, Header, u64, Option<Kind>)> = Vec::new();
        for (&vip, &pps) in &self.pps.clone() {
            let mut mean = pps as f64 * STEP_MS as f64 / 1_000.0;
            if let Some(bursts) = &mut self.bursts {
                mean *= bursts.factor(vip, self.now_ms);
            }
            let count = self.random.about(mean);
            let drawn = count.min(self.draws);
            let service = if vip == DNS {
                Service::Dns
            } else {
                Service::Web
            };
            let destination = v4(0xc000_0200 + u64::from(vip));
            for at in 0..drawn {
                let mut header = service.packet(&mut self.random, destination);
                if let Some(bursts) = &mut self.bursts {
                    bursts.sign(vip, &mut header);
                }
                packets.push((vip, header, share(count, drawn, at), None));
            }
        }
        for (began_ms, attack) in &self.attacks {
            let count = attack.pps(self.now_ms - began_ms) * STEP_MS / 1_000;
            let drawn = count.min(self.draws);
            for at in 0..drawn {
                let (vip, header) = attack.packet(&mut self.random);
                packets.push((vip, header, share(count, drawn, at), Some(attack.kind)));
            }
        }
        let all: u64 = packets.iter().map(|(_, _, weight, _)| weight).sum();
        for (vip, header, weight, attack) in packets {
            let sampled = self.packet(vip, &header, weight, attack);
            // As many of them as of all packets.
            if sampled == Sampled::Yes
                && self.random.below(all.max(SAMPLES)) < SAMPLES * weight.min(all)
            {
                self.detector.sample(self.now_ms, vip, header);
            }
        }
        self.now_ms += STEP_MS;
        if self.now_ms.is_multiple_of(TICK_MS) {
            self.tick();
        }
    }

    /// One packet that stands for `weight`. Tells whether it may be among the samples.
    fn packet(
        &mut self,
        vip: VipIndex,
        header: &Header,
        weight: u64,
        attack: Option<Kind>,
    ) -> Sampled {
        let hostile = attack.is_some();
        let class = class(header, hostile);
        let bytes = u64::from(header.length) * weight;
        add(
            &mut self.counts.entry(vip).or_default()[class as usize],
            weight,
            bytes,
        );
        let by_operator = self.plane.by_operator.as_ref();
        if by_operator.is_some_and(|rule| rule.fits(header)) {
            add(self.ruled.entry(vip).or_default(), weight, bytes);
            return Sampled::No;
        }
        let mut dropped = false;
        for (id, rule) in &self.plane.rules {
            if rule.vip.is_none_or(|of| of == vip)
                && self.now_ms >= rule.from_ms
                && rule.signature.fits(header)
            {
                add(self.fitted.entry(*id).or_default(), weight, bytes);
                dropped |= rule.drops;
            }
        }
        if dropped {
            add(self.ruled.entry(vip).or_default(), weight, bytes);
        }
        let limited = self
            .plane
            .measures
            .values()
            .any(|(of, what, measure, from_ms)| {
                *of == vip && *what == class && self.now_ms >= *from_ms && stops(measure, hostile)
            });
        if limited && !dropped {
            add(self.stopped.entry(vip).or_default(), weight, bytes);
        }
        if let Some(kind) = attack {
            self.seen.attack_packets += weight;
            if dropped || limited {
                self.seen.attack_dropped += weight;
                self.seen.first_drop_ms.get_or_insert(self.now_ms);
                let first = self.seen.first_drops_ms.entry(kind);
                first.or_insert(self.now_ms);
            }
        } else {
            self.seen.innocent_packets += weight;
            self.seen.innocent_dropped += if dropped { weight } else { 0 };
        }
        Sampled::Yes
    }

    fn tick(&mut self) {
        let reading = Reading {
            vips: self
                .pps
                .keys()
                .map(|vip| VipReading {
                    vip: *vip,
                    classes: self.counts.get(vip).copied().unwrap_or_default(),
                    stopped: self.stopped.get(vip).copied().unwrap_or_default(),
                    ruled: self.ruled.get(vip).copied().unwrap_or_default(),
                })
                .collect(),
            fitted: self
                .plane
                .rules
                .keys()
                .map(|id| (*id, self.fitted.get(id).copied().unwrap_or_default()))
                .collect(),
        };
        let mut decisions = self.detector.tick(self.now_ms, reading);
        let refused = self.apply();
        self.detector.settle(self.now_ms, refused, &mut decisions);
        self.seen.decisions.extend(decisions);
    }

    /// Makes the plane hold what the detector wants. Returns what it refuses.
    fn apply(&mut self) -> BTreeMap<u64, String> {
        let from_ms = self.now_ms + APPLY_MS;
        let (mut wanted, mut refused) = (BTreeSet::new(), BTreeMap::new());
        for mitigation in self.detector.mitigations() {
            let Some(mode) = self.detector.wanted(mitigation) else {
                continue;
            };
            let (id, vip) = (mitigation.id, &mitigation.vip);
            let vip = vip.as_ref().map(|name| name[3..].parse().unwrap());
            wanted.insert(id);
            if let Measure::Rule(signature) = &mitigation.measure {
                let drops = mode == Mode::Enforce;
                let held = self.plane.rules.get(&id);
                if held.is_some_and(|rule| rule.drops == drops) {
                    continue;
                }
                if self.plane.is_full {
                    refused.insert(id, "full".to_owned());
                    continue;
                }
                let rule = Rule {
                    vip,
                    signature: signature.clone(),
                    drops,
                    from_ms,
                };
                self.plane.rules.insert(id, rule);
            } else {
                let measure = (
                    vip.unwrap_or_default(),
                    mitigation.class,
                    mitigation.measure.clone(),
                    from_ms,
                );
                self.plane.measures.entry(id).or_insert(measure);
            }
        }
        self.plane.rules.retain(|id, _| wanted.contains(id));
        self.plane.measures.retain(|id, _| wanted.contains(id));
        refused
    }
}

fn settings(stance: Stance) -> (Settings, Vec<VipSettings>) {
    let settings = Settings {
        stance,
        ..Settings::default()
    };
    let vips = (WEB..VIPS).map(|index| VipSettings {
        index,
        name: format!("vip{index}"),
        stance,
    });
    (settings, vips.collect())
}

/// A world that knows peace, made once for all tests.
pub(super) fn peaceful(stance: Stance) -> World {
    static PEACEFUL: LazyLock<World> = LazyLock::new(|| {
        let mut world = World::new(1, Stance::Enforce);
        world.run(70_000);
        assert_eq!(world.seen.decisions, [], "peace is no attack");
        world
    });
    let mut world = PEACEFUL.clone();
    if stance != Stance::Enforce {
        world.set_stance(stance);
    }
    world
}

/// The same with traffic that is far above the floor of what an attack is.
pub(super) fn busy() -> World {
    static BUSY: LazyLock<World> = LazyLock::new(|| {
        let mut world = World::new(2, Stance::Enforce);
        world.pps.extend([(WEB, 40_000), (DNS, 20_000)]);
        world.learn(70_000);
        world
    });
    BUSY.clone()
}

/// The same, and it comes in bursts.
pub(super) fn bursty() -> World {
    static BURSTY: LazyLock<World> = LazyLock::new(|| {
        let mut world = World::new(3, Stance::Enforce);
        world.pps.extend([(WEB, 20_000), (DNS, 10_000)]);
        world.bursts = Some(Bursts::new(world.random.next()));
        world.learn(130_000);
        world
    });
    BURSTY.clone()
}

/// The data plane's class: what innocent clients send beside SYNs is of flows that it knows.
pub(super) fn class(header: &Header, hostile: bool) -> Class {
    let fits = |class: &Class| header.is_of(*class);
    let class = ALL_CLASSES.into_iter().find(fits).unwrap_or(Class::Other);
    let known = class == Class::Other && header.protocol == TCP && !hostile;
    if known { Class::Established } else { class }
}

/// What a measure does to a hostile packet, roughly; none of them is meant to touch an innocent one.
fn stops(measure: &Measure, hostile: bool) -> bool {
    hostile && !matches!(measure, Measure::Upstream | Measure::Rule(_))
}

fn add(count: &mut Count, packets: u64, bytes: u64) {
    count.packets += packets;
    count.bytes += bytes;
}

/// How many packets the drawn one of this number stands for.
fn share(count: u64, drawn: u64, at: u64) -> u64 {
    count / drawn + u64::from(at < count % drawn)
}
