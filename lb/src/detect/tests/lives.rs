//! What becomes of mitigations over minutes and hours.

use super::{
    attacks::{Attack, Kind},
    world::{Random, World, peaceful},
};
use crate::{
    config::{Class, Stance},
    detect::{
        detector::Decision,
        mitigation::{Measure, Mitigation, Phase},
        signature::Signature,
        trigger::Rates,
    },
};

fn attacked(stance: Stance, kind: Kind) -> World {
    let mut world = peaceful(stance);
    let attack = Attack::new(kind, &mut Random(9));
    world.attack(attack);
    world.run(3_000);
    world
}

fn first_rule(world: &World) -> u64 {
    let rule = world
        .detector
        .mitigations()
        .find(|mitigation| matches!(mitigation.measure, Measure::Rule(_)));
    rule.expect("a rule was raised").id
}

#[test]
fn advice_counts_and_drops_nothing() {
    let world = attacked(Stance::Advise, Kind::NtpReplies);
    assert_eq!(world.seen.attack_dropped, 0);
    let rule = world.detector.mitigation(first_rule(&world)).unwrap();
    assert!(
        rule.is_active() && rule.matched_packets > 10_000,
        "{rule:?}"
    );
}

#[test]
fn off_says_nothing() {
    let world = attacked(Stance::Off, Kind::NtpReplies);
    assert_eq!(world.seen.decisions, []);
    assert_eq!(world.detector.mitigations().count(), 0);
}

#[test]
fn an_attack_while_peace_is_learned_is_told() {
    let mut world = World::new(1, Stance::Enforce);
    world.attack(Attack::new(Kind::NtpReplies, &mut Random(9)));
    world.run(3_000);
    let told = world.seen.decisions.iter().map(|decision| match decision {
        Decision::Unjudged(seen) => (seen.vip.as_deref(), seen.class),
        decision => panic!("{decision:?}"),
    });
    let expected = [(Some("vip1"), Class::Udp), (None, Class::Udp)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn a_second_pulse_meets_the_rule_of_the_first_within_two_ticks() {
    let mut world = attacked(Stance::Enforce, Kind::NtpReplies);
    world.peace();
    world.run(70_000);
    assert!(
        world
            .seen
            .decisions
            .iter()
            .any(|decision| matches!(decision, Decision::Shadowed(_)))
    );
    let attack = Attack::new(Kind::NtpReplies, &mut Random(77));
    world.run(30);
    world.attack(attack);
    world.run(1_000);
    let first = world.seen.first_drop_ms.expect("dropped");
    assert!(
        first - world.seen.attack_began_ms <= 200,
        "{} ms",
        first - world.seen.attack_began_ms
    );
    assert!(
        matches!(world.seen.decisions[0], Decision::Rearmed(_)),
        "{:?}",
        world.seen.decisions
    );
}

#[test]
fn an_attack_is_over_a_minute_after_its_last_packet_and_was_not_learned() {
    let mut world = attacked(Stance::Enforce, Kind::Udp);
    let level = |world: &World| {
        let thresholds = world.detector.settings().thresholds;
        let seen = world.detector.watched().nth(1).unwrap();
        seen.trigger.level(&thresholds)
    };
    let before = level(&world);
    world.run(20_000);
    world.peace();
    world.run(62_000);
    let ended = |decision: &Decision| matches!(decision, Decision::AttackEnded(_));
    assert!(
        world.seen.decisions.iter().any(ended),
        "{:?}",
        world.seen.decisions
    );
    assert_eq!(level(&world), before);
}

#[test]
fn what_was_reverted_is_not_raised_again_until_it_is_allowed() {
    let mut world = attacked(Stance::Enforce, Kind::NtpReplies);
    let id = first_rule(&world);
    let signature = world.detector.mitigation(id).unwrap().measure.clone();
    let now_ms = world.now_ms;
    world.detector.revert(id, now_ms).unwrap();
    world.run(10_000);
    let like_it = |world: &World| {
        world.detector.mitigations().any(|mitigation| {
            mitigation.is_active()
                && mitigation.covers(mitigation.vip.as_deref(), mitigation.class, &signature)
        })
    };
    assert!(
        !like_it(&world),
        "{:#?}",
        world.detector.mitigations().collect::<Vec<_>>()
    );

    world.detector.allow(id).unwrap();
    world.run(10_000);
    assert!(
        like_it(&world),
        "{:#?}",
        world.detector.mitigations().collect::<Vec<_>>()
    );
}

#[test]
fn no_vip_has_more_than_four_rules() {
    let mut world = attacked(Stance::Enforce, Kind::NtpReplies);
    for (seed, kind) in Kind::ALL.into_iter().enumerate() {
        let attack = Attack::new(kind, &mut Random(seed as u64));
        world.attack(attack);
        world.run(3_000);
    }
    let rules = world.detector.mitigations().filter(|mitigation| {
        matches!(mitigation.measure, Measure::Rule(_)) && mitigation.vip.as_deref() == Some("vip1")
    });
    assert!((1..=4).contains(&rules.count()));
}

#[test]
fn a_shadow_that_makes_room_is_told_to_be_forgotten() {
    let mut world = peaceful(Stance::Enforce);
    let never = Rates {
        pps: u64::MAX,
        bps: u64::MAX,
    };
    let since_ms = world.now_ms;
    let shadows = (1..=4).map(|id| Mitigation {
        id,
        vip: Some("vip1".to_owned()),
        class: Class::Udp,
        measure: Measure::Rule(Signature(Vec::new())),
        evidence: None,
        rates: never,
        trigger: never,
        created_ms: since_ms,
        phase: Phase::Shadow { since_ms },
        returns: 0,
        matched_packets: 0,
    });
    world.detector.adopt(shadows);
    let attack = Attack::new(Kind::NtpReplies, &mut Random(9));
    world.attack(attack);
    world.run(3_000);
    let forgotten = |decision: &Decision| match decision {
        Decision::Forgotten(mitigation) => Some(mitigation.id),
        _ => None,
    };
    let told: Vec<u64> = world.seen.decisions.iter().filter_map(forgotten).collect();
    assert_eq!(told, [1], "{:#?}", world.seen.decisions);
    let ids = world.detector.mitigations().map(|mitigation| mitigation.id);
    assert_eq!(ids.collect::<Vec<_>>(), [2, 3, 4, 5]);
}

#[test]
fn what_an_operator_drops_needs_no_measure() {
    let world = attacked(Stance::Enforce, Kind::NtpReplies);
    let found = world.detector.mitigation(first_rule(&world)).unwrap();
    let Measure::Rule(signature) = found.measure.clone() else {
        panic!("{found:?} is no rule");
    };
    let mut world = peaceful(Stance::Enforce);
    world.drop_by_hand(signature);
    let attack = Attack::new(Kind::NtpReplies, &mut Random(9));
    world.attack(attack);
    world.run(10_000);
    let decisions = &world.seen.decisions;
    let began = |decision: &Decision| matches!(decision, Decision::AttackBegan(_));
    assert!(decisions.iter().any(began), "{decisions:#?}");
    let raised = |decision: &Decision| matches!(decision, Decision::Raised(_));
    assert!(!decisions.iter().any(raised), "{decisions:#?}");
}
