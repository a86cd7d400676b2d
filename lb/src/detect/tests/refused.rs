//! What the data plane does not take does nothing: it is told once, and the next measure follows.

use super::{
    attacks::{Attack, Kind},
    world::{Random, World, peaceful},
};
use crate::{
    config::Stance,
    detect::{
        detector::Decision,
        mitigation::{Measure, Mitigation, PhaseWord},
        signature::NoSignature,
    },
};

/// An attack for so long while there is no room for rules.
fn attacked(kind: Kind, ms: u64) -> World {
    let mut world = peaceful(Stance::Enforce);
    world.fill();
    world.attack(Attack::new(kind, &mut Random(9)));
    world.run(ms);
    world
}

fn refused(decisions: &[Decision]) -> Vec<&Mitigation> {
    let refused = decisions.iter().filter_map(|decision| match decision {
        Decision::Refused(mitigation) => Some(mitigation),
        _ => None,
    });
    refused.collect()
}

/// The measures that were told to be in force.
fn raised(decisions: &[Decision]) -> Vec<&str> {
    let raised = decisions.iter().filter_map(|decision| match decision {
        Decision::Raised(mitigation) => Some(mitigation.measure.word()),
        _ => None,
    });
    raised.collect()
}

#[test]
fn a_rule_without_room_is_told_once_and_the_ladder_is_climbed() {
    for (kind, ladder) in [
        (Kind::SynRandom, &["challenge"][..]),
        (Kind::NtpReplies, &["cap"]),
    ] {
        let world = attacked(kind, 20_000);
        let decisions = &world.seen.decisions;
        let told = refused(decisions);
        assert_eq!(told.len(), 1, "{decisions:#?}");
        assert_eq!(raised(decisions), ladder, "{decisions:#?}");
        let why = |decision: &Decision| matches!(decision, Decision::NoRule { why, .. } if *why == NoSignature::Refused);
        assert!(decisions.iter().any(why), "{decisions:#?}");
        let rule = world.detector.mitigation(told[0].id).unwrap();
        assert_eq!(rule.phase_word(), PhaseWord::Refused);
        assert_eq!(rule.refusal(), Some("full"));
        assert!(!world.detector.enforces(rule));
        let first = world.seen.first_drop_ms.expect("the next measure stops it");
        let after = first - world.seen.attack_began_ms;
        assert!(after < 1_000, "{kind:?}: {after} ms");
    }
}

#[test]
fn when_there_is_room_again_the_rule_is_tried_again() {
    let mut world = attacked(Kind::NtpReplies, 20_000);
    let id = refused(&world.seen.decisions)[0].id;
    world.seen.decisions.clear();
    world.make_room();
    world.run(8_000);
    let decisions = &world.seen.decisions;
    assert_eq!(raised(decisions), ["rule"], "{decisions:#?}");
    let rule = world.detector.mitigation(id).unwrap();
    assert!(world.detector.enforces(rule), "{rule:?}");
    assert_eq!(rule.refusal(), None);
    assert!(rule.matched_packets > 10_000, "{rule:?}");
}

#[test]
fn a_rule_for_all_vips_that_is_refused_leaves_each_its_own_measures() {
    let world = attacked(Kind::Carpet, 10_000);
    let decisions = &world.seen.decisions;
    assert!(
        refused(decisions).iter().any(|rule| rule.vip.is_none()),
        "{decisions:#?}"
    );
    let is_rule = |decision: &Decision| matches!(decision, Decision::Raised(mitigation) if matches!(mitigation.measure, Measure::Rule(_)));
    assert!(!decisions.iter().any(is_rule), "{decisions:#?}");
    assert!(world.seen.first_drop_ms.is_some(), "{decisions:#?}");
}

#[test]
fn what_is_refused_is_forgotten_after_its_attack() {
    let mut world = attacked(Kind::NtpReplies, 3_000);
    let id = refused(&world.seen.decisions)[0].id;
    world.peace();
    world.run(60_000);
    assert_eq!(world.detector.mitigation(id), None);
    let forgotten =
        |decision: &Decision| matches!(decision, Decision::Forgotten(it) if it.id == id);
    assert!(world.seen.decisions.iter().any(forgotten));
}

#[test]
fn a_shadow_that_cannot_drop_again_is_not_told_to() {
    let mut world = peaceful(Stance::Enforce);
    world.attack(Attack::new(Kind::NtpReplies, &mut Random(9)));
    world.run(3_000);
    world.peace();
    world.run(70_000);
    world.fill();
    world.attack(Attack::new(Kind::NtpReplies, &mut Random(77)));
    world.run(3_000);
    let decisions = &world.seen.decisions;
    assert_eq!(refused(decisions).len(), 1, "{decisions:#?}");
    let rearmed = |decision: &Decision| matches!(decision, Decision::Rearmed(_));
    assert!(!decisions.iter().any(rearmed), "{decisions:#?}");
    assert_eq!(raised(decisions), ["cap"], "{decisions:#?}");
}
