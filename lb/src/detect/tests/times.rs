//! How long it takes from an attack's first packet to its first drop, and whom the rules hit.

use std::collections::BTreeMap;

use super::{
    attacks::{Attack, Kind},
    world::{Outcome, Random, WEB, World, class, peaceful},
};
use crate::{
    config::{Class, Stance},
    detect::{detector::Decision, trigger::Rates},
};

const SEEDS: u64 = 6;

fn attacked(kind: Kind, seed: u64, ms: u64) -> Outcome {
    let mut world = begin(kind, seed);
    world.run(ms);
    world.seen
}

/// To anywhere between two ticks.
pub(super) fn wait(world: &mut World, seed: u64) {
    world.reseed(seed);
    let wait = world.random().below(10) * 10;
    world.run(wait);
}

fn begin(kind: Kind, seed: u64) -> World {
    let mut world = peaceful(Stance::Enforce);
    wait(&mut world, seed);
    let attack = Attack::new(kind, world.random());
    world.attack(attack);
    world
}

#[test]
fn half_of_all_attacks_meet_a_drop_within_500_ms_and_99_of_100_within_a_second() {
    let mut times = Times::default();
    for kind in Kind::ALL {
        for seed in 0..SEEDS {
            let mut world = peaceful(Stance::Enforce);
            wait(&mut world, seed * 31 + 7);
            let attack = Attack::new(kind, world.random());
            times.take(world, &[attack]);
        }
    }
    times.tell("as they come");
    times.check();
}

/// How long attacks took to meet a drop.
#[derive(Debug, Default)]
pub(super) struct Times(Vec<(u64, String)>);

impl Times {
    /// Lets attacks begin at once. From the first packet, or of a ramp the one with which it is above the trigger.
    pub(super) fn take(&mut self, mut world: World, attacks: &[Attack]) -> Outcome {
        let began = attacks.iter().map(|attack| above_after_ms(&world, attack));
        let began = world.now_ms + began.min().unwrap();
        for (at, attack) in attacks.iter().enumerate() {
            match at {
                0 => world.attack(attack.clone()),
                _ => world.attack_too(attack.clone()),
            }
        }
        while world.seen.first_drop_ms.is_none() && world.now_ms < began + 10_000 {
            world.run(10);
        }
        world.run(500);
        let seen = world.seen;
        let first_drop = seen.first_drop_ms.unwrap_or(u64::MAX);
        let name = format!("{attacks:?}");
        let part = seen.innocent_dropped as f64 / seen.innocent_packets as f64;
        assert!(
            part <= 0.001,
            "{name}: {part} of innocent packets were dropped: {:#?}",
            seen.decisions
        );
        self.0.push((first_drop.saturating_sub(began), name));
        seen
    }

    pub(super) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(super) fn tell(&mut self, of: &str) {
        self.0.sort_unstable();
        println!(
            "{} attacks, {of}: median {} ms, 99 of 100 {} ms, slowest {} ms",
            self.0.len(),
            self.at(50).0,
            self.at(99).0,
            self.at(100).0,
        );
    }

    pub(super) fn check(&self) {
        assert!(self.at(50).0 < 500, "{:?}", self.at(50));
        assert!(self.at(99).0 < 1_000, "{:#?}", self.0);
        assert!(self.at(100).0 < 10_000, "{:#?}", self.at(100));
    }

    fn at(&self, percent: usize) -> &(u64, String) {
        &self.0[(self.0.len() - 1) * percent / 100]
    }
}

/// When an attack of these kinds is above a trigger, if it does not begin above it.
fn above_after_ms(world: &World, attack: &Attack) -> u64 {
    if attack.kind != Kind::Ramp && attack.doubles_in_ms.is_none() {
        return 0;
    }
    let mut random = Random(7);
    let mut drawn: BTreeMap<(String, Class), Rates> = BTreeMap::new();
    for _ in 0..DRAWN {
        let (vip, header) = attack.packet(&mut random);
        let rates = drawn.entry((format!("vip{vip}"), class(&header, true)));
        let rates = rates.or_default();
        *rates = rates.plus(Rates {
            pps: 1,
            bps: u64::from(header.length) * 8,
        });
    }
    let thresholds = world.detector.settings().thresholds;
    let exceeds = |since_ms: &u64| {
        world.detector.watched().any(|seen| {
            let name = (seen.vip.unwrap_or_default().to_owned(), seen.class);
            let usual = Rates {
                pps: seen.trigger.packets.usual(),
                bps: seen.trigger.bits.usual(),
            };
            let part = attack.pps(*since_ms) as f64 / DRAWN as f64;
            drawn.get(&name).is_some_and(|rates| {
                let level = seen.trigger.level(&thresholds).unwrap();
                rates.part(part).plus(usual).exceeds(level)
            })
        })
    };
    let mut times = (0..60_000).step_by(10);
    times.find(exceeds).expect("it is above some time")
}

const DRAWN: u64 = 300;

#[test]
fn what_has_a_signature_is_stopped() {
    let without = [
        Kind::UdpRandom,
        Kind::BotnetEverywhere,
        Kind::Pulse,
        Kind::Ramp,
    ];
    for kind in Kind::ALL.into_iter().filter(|kind| !without.contains(kind)) {
        let seen = attacked(kind, 5, 4_000);
        let part = seen.attack_dropped as f64 / seen.attack_packets as f64;
        assert!(
            part > 0.7,
            "{kind:?}: only {part} of it was dropped: {:#?}",
            seen.decisions
        );
        let rules = seen
            .decisions
            .iter()
            .filter(|decision| matches!(decision, Decision::Raised(m) if m.evidence.is_some()));
        assert!(
            (1..=4).contains(&rules.count()),
            "{kind:?}: {:#?}",
            seen.decisions
        );
    }
}

#[test]
fn a_flash_crowd_meets_no_rule() {
    for seed in 0..3 {
        let mut world = peaceful(Stance::Enforce);
        world.reseed(seed);
        world.crowd(WEB, 40);
        world.run(6_000);
        let seen = &world.seen;
        assert!(!seen.decisions.is_empty(), "it is far above peace");
        let part = seen.innocent_dropped as f64 / seen.innocent_packets as f64;
        assert!(part <= 0.001, "{part}: {:#?}", seen.decisions);
    }
}
