//! How long it takes from an attack's first packet to its first drop, and whom the rules hit.

use super::{
    attacks::{Attack, Kind},
    world::{Outcome, WEB, World, peaceful},
};
use crate::{config::Stance, detect::detector::Decision};

const SEEDS: u64 = 6;

fn attacked(kind: Kind, seed: u64, ms: u64) -> Outcome {
    let mut world = begin(kind, seed);
    world.run(ms);
    world.seen
}

/// An attack that begins anywhere between two ticks.
fn begin(kind: Kind, seed: u64) -> World {
    let mut world = peaceful(Stance::Enforce);
    world.reseed(seed);
    let wait = world.random().below(10) * 10;
    world.run(wait);
    let attack = Attack::new(kind, world.random());
    world.attack(attack);
    world
}

#[test]
fn half_of_all_attacks_meet_a_drop_within_500_ms_and_99_of_100_within_a_second() {
    let mut times: Vec<(u64, Kind, u64)> = Vec::new();
    for kind in Kind::ALL {
        for seed in 0..SEEDS {
            let mut world = begin(kind, seed * 31 + 7);
            while world.seen.first_drop_ms.is_none()
                && world.now_ms < world.seen.attack_began_ms + 10_000
            {
                world.run(10);
            }
            world.run(500);
            let seen = world.seen;
            let first_drop = seen.first_drop_ms.unwrap_or(u64::MAX);
            // A ramp is no attack before it is above the trigger.
            let began = if kind == Kind::Ramp {
                above_ms(&seen)
            } else {
                seen.attack_began_ms
            };
            times.push((first_drop.saturating_sub(began), kind, seed));
            let part = seen.innocent_dropped as f64 / seen.innocent_packets as f64;
            assert!(
                part <= 0.001,
                "{kind:?} {seed}: {part} of innocent packets were dropped: {:#?}",
                seen.decisions
            );
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "{} attacks of {} kinds: median {} ms, 99 of 100 {} ms, slowest {:?}",
        times.len(),
        Kind::ALL.len(),
        at(50).0,
        at(99).0,
        at(100)
    );
    assert!(at(50).0 < 500, "{:?}", at(50));
    assert!(at(99).0 < 1_000, "{times:?}");
}

/// When a ramp was first above the trigger: two ticks before it was said.
fn above_ms(seen: &Outcome) -> u64 {
    let raised = seen.decisions.iter().find_map(|decision| match decision {
        Decision::Raised(mitigation) => Some(mitigation.created_ms),
        _ => None,
    });
    raised.unwrap_or(u64::MAX).saturating_sub(200)
}

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
