//! What detection wants, asked of a control loop above a data plane in memory.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::time::sleep;

use super::*;
use crate::{
    config,
    control::{
        Control, Heart, Start, Supervisor,
        fake::{self, Fake},
    },
    detect::{detector::Decision, mitigation::Phase, predicate::Predicate, trigger::Rates},
    store::{Directory, Store, Writer},
};

const CONFIG: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["lo"]
[detect]
mode = "enforce"
[[pool]]
name = "web"
health = { kind = "none" }
backend = [{ address = "127.0.0.1", forward = "local" }]
[[vip]]
name = "site"
address = "192.0.2.10"
protocol = "udp"
pool = "web"
forward = "local"
"#;

/// Where policies may stand before.
const POOL: &str = "[[pool]]";

/// A control loop above a data plane in memory, and what detection has done through it.
struct World {
    plane: Fake,
    handle: Handle,
    measures: Measures,
    _dir: TempDir,
}

impl World {
    async fn start() -> Self {
        Self::start_with(CONFIG).await
    }

    async fn start_with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config_file = dir.path().join("sluice.toml");
        std::fs::write(&config_file, text).unwrap();
        let (store, contents, _) = Store::open(Directory::new(dir.path())).unwrap();
        let plane = Fake::default();
        let start = Start {
            plane: plane.clone(),
            config: config::load(&config_file).unwrap(),
            config_file,
            contents,
            writer: Writer::start(store).unwrap(),
            adopted: false,
            warnings: Vec::new(),
        };
        let (sources, health, _resolutions) = fake::sources();
        let (control, handle) = Control::new(start, sources, Supervisor::default());
        tokio::spawn(control.run(Heart::default()));
        // Nothing is left to wait for.
        health.send_replace(Arc::default());
        while !handle.view().ready {
            sleep(Duration::from_millis(1)).await;
        }
        let view = handle.view();
        let mut state = handle.detection().lock();
        state.set(&view.config, &view.vip_numbers);
        drop(state);
        Self {
            plane,
            handle,
            measures: Measures::default(),
            _dir: dir,
        }
    }

    /// Detection wants this for the first time, or again.
    fn want(&self, id: u64, measure: Measure, phase: Phase) {
        let mitigation = Mitigation {
            id,
            vip: Some("site".to_owned()),
            class: Class::Udp,
            measure,
            evidence: None,
            rates: Rates::default(),
            trigger: Rates::default(),
            created_ms: 0,
            phase,
            returns: 0,
            matched_packets: 0,
        };
        let mut state = self.handle.detection().lock();
        state.detector.adopt([mitigation]);
    }

    /// A tick's end: what is told of it.
    async fn settle(&mut self) -> Vec<String> {
        let shared = self.handle.detection();
        let unmade = self.measures.apply(&self.handle, shared).await;
        let mut decisions = Vec::new();
        let detector = &mut shared.lock().detector;
        detector.settle(now_ms(), unmade, &mut decisions);
        decisions.iter().map(Decision::to_string).collect()
    }

    /// An operator limits everybody, with this comment.
    async fn set_limit(&self, comment: &str) -> (u64, LimitSpec) {
        let limit = br#"{ "prefix": "0.0.0.0/0", "vip": "site", "class": "udp", "pps": 5 }"#;
        let limit = LimitSpec {
            comment: comment.to_owned(),
            ..LimitSpec::from_json(limit).unwrap()
        };
        let set = self.handle.set_limit(limit.clone(), Precondition::None);
        (set.await.unwrap().0.record.id, limit)
    }

    fn revert(&self, id: u64) {
        let mut state = self.handle.detection().lock();
        state.detector.revert(id, now_ms()).unwrap();
    }

    fn enforces(&self, id: u64) -> bool {
        let detector = &self.handle.detection().lock().detector;
        detector.enforces(detector.mitigation(id).unwrap())
    }
}

/// Looks at a piece of payload that no other rule does.
fn rule() -> Measure {
    let payload = Predicate::Payload {
        value: [0, 0x17, 0, 0, 0, 0, 0, 0],
        mask: [0, 0xff, 0, 0, 0, 0, 0, 0],
    };
    Measure::Rule(Signature(vec![payload]))
}

const CAP: Measure = Measure::Cap { pps: 1_000 };
const LIMITS: Measure = Measure::PrefixLimits { pps: 1_000 };

fn first() -> Phase {
    Phase::Active {
        since_ms: now_ms(),
        seen_ms: now_ms(),
    }
}

fn again() -> Phase {
    Phase::Retried {
        why: "it was full".to_owned(),
    }
}

#[tokio::test]
async fn a_ninth_piece_of_payload_is_refused_until_there_is_room() {
    let pieces = (8..16).map(|offset| format!("payload {offset} = 0x01 -> drop"));
    refused_until_there_is_room(pieces, "more than 8 pieces of payload").await;
}

#[tokio::test]
async fn one_rule_too_many_is_refused_until_there_is_room() {
    let rules = (0..1_024).map(|port| format!("sport {port} -> drop"));
    refused_until_there_is_room(rules, "more than 1024 rules").await;
}

/// Beside these rules of the operator there is no room, and without one of them there is.
async fn refused_until_there_is_room(rules: impl Iterator<Item = String>, why: &str) {
    let mut world = World::start().await;
    let rules = rules.map(|text| text.parse().unwrap()).collect();
    let set = world.handle.set_rules(rules).await.unwrap();
    let rules = world.plane.rules();

    world.want(1, rule(), first());
    let told = world.settle().await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("mitigation 1 (drop "), "{told:?}");
    assert!(told[0].contains(why), "{told:?}");
    assert!(!world.enforces(1));
    assert_eq!(world.plane.rules(), rules);
    assert_eq!(world.settle().await, [""; 0], "it is told once");

    world.want(1, rule(), again());
    assert_eq!(world.settle().await, [""; 0]);
    assert!(!world.enforces(1));
    let id = set[0].0.record.id;
    let removed = world
        .handle
        .remove_rule(id, Origin::Operator, Precondition::None);
    removed.await.unwrap();
    world.want(1, rule(), again());
    let told = world.settle().await;
    assert!(told[0].starts_with("mitigation 1: drop "), "{told:?}");
    assert!(world.enforces(1));
    assert_eq!(world.plane.rules().len(), rules.len());
}

#[tokio::test]
async fn what_the_data_plane_refuses_is_not_in_force_nor_kept() {
    let mut world = World::start().await;
    world.plane.make_room_for(Some(0));
    world.want(1, rule(), first());
    world.want(2, CAP, first());
    let told = world.settle().await;
    assert!(told[0].contains("no room for these rules"), "{told:?}");
    assert!(told[1].contains("full"), "{told:?}");
    assert!(!world.enforces(1) && !world.enforces(2));
    world.plane.make_room_for(None);
    let held = world.handle.rule_page(RuleQuery {
        most: 1,
        ..RuleQuery::default()
    });
    assert!(held.await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_cap_leaves_what_an_operator_set_for_everybody() {
    let mut world = World::start().await;
    let (id, limit) = world.set_limit("").await;
    world.want(1, CAP, first());
    let told = world.settle().await;
    assert!(
        told[0].contains("an operator set, changed or removed"),
        "{told:?}"
    );
    assert!(!world.enforces(1));
    assert_eq!(world.plane.limits(), [limit]);

    let removed = world.handle.remove_limit(id, Precondition::None);
    removed.await.unwrap();
    world.want(1, CAP, again());
    assert_eq!(world.settle().await.len(), 1);
    assert!(world.enforces(1));
    assert_eq!(world.plane.limits()[0].prefix.to_string(), "0.0.0.0/0");
}

#[tokio::test]
async fn a_cap_ends_by_itself_unless_it_is_renewed() {
    let mut world = World::start().await;
    world.want(1, CAP, first());
    assert_eq!(world.settle().await, [""; 0]);
    assert_eq!(world.plane.limits()[0].ttl_seconds, Some(150));
    let id = world.measures.caps[&1].id;
    for (past_ms, revision) in [(0, 1), (75_000, 2), (0, 2)] {
        let lease = &mut world.measures.caps.get_mut(&1).unwrap().lease;
        lease.renew_ms -= past_ms;
        assert_eq!(world.settle().await, [""; 0]);
        let limit = world.handle.limit(id).await.unwrap();
        assert_eq!(limit.record.revision, revision);
    }
}

#[tokio::test]
async fn a_cap_that_an_operator_changes_is_the_operators() {
    let mut world = World::start().await;
    world.want(1, CAP, first());
    assert_eq!(world.settle().await, [""; 0]);
    let (_, limit) = world.set_limit("").await;
    let lease = &mut world.measures.caps.get_mut(&1).unwrap().lease;
    lease.renew_ms = 0;
    assert_eq!(world.settle().await.len(), 1);
    assert!(!world.enforces(1));
    assert_eq!(world.settle().await, [""; 0]);
    assert_eq!(world.plane.limits(), [limit]);
}

#[tokio::test]
async fn a_restart_knows_its_caps_and_leaves_limits_that_only_look_like_them() {
    let mut world = World::start().await;
    world.want(1, CAP, first());
    assert_eq!(world.settle().await, [""; 0]);
    let cap = world.measures.caps[&1].id;
    world.measures = Measures::default();
    assert_eq!(world.settle().await, [""; 0]);
    assert!(world.enforces(1));
    assert_eq!(world.measures.caps[&1].id, cap);

    world.revert(1);
    assert_eq!(world.settle().await, [""; 0]);
    assert_eq!(world.plane.limits(), []);
    for comment in ["mitigation 1", "mitigation 4711"] {
        let (_, limit) = world.set_limit(comment).await;
        world.measures = Measures::default();
        assert_eq!(world.settle().await, [""; 0]);
        assert_eq!(world.plane.limits(), [limit]);
    }
}

#[tokio::test]
async fn limits_of_a_vip_need_room_for_a_policy() {
    let policies = |count: usize| {
        let policies = (0..count).map(|at| format!("[[policy]]\nname = \"p{at}\"\n"));
        policies.collect::<String>() + POOL
    };
    for (count, refused) in [(254, 0), (255, 1)] {
        let config = CONFIG.replace(POOL, &policies(count));
        let mut world = World::start_with(&config).await;
        world.want(1, LIMITS, first());
        let told = world.settle().await;
        assert_eq!(told.len(), refused, "{told:?}");
        assert_eq!(world.enforces(1), refused == 0);
    }
}

#[tokio::test]
async fn measures_of_a_data_plane_that_takes_nothing_are_refused() {
    let mut world = World::start().await;
    world.want(1, LIMITS, first());
    world.plane.fail(Some("broken"));
    let told = world.settle().await;
    assert!(told[0].contains("broken"), "{told:?}");
    assert!(!world.enforces(1));
    world.plane.fail(None);
    world.want(1, LIMITS, again());
    assert_eq!(world.settle().await.len(), 1);
    assert!(world.enforces(1));
}
