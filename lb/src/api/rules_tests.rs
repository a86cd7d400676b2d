//! Rules over a real socket: set, shown, replaced, removed, many at once, conditions, time, restarts, and those of the config.

use std::time::Duration;

use etherparse::PacketBuilder;
use hyper::{Method, header};
use serde_json::{Value, json};

use super::tests::{CONFIG, World, assert_problem};
use crate::{
    book::Precondition,
    control::{Event, now_ms},
    detect::{
        header::InTunnel,
        minute::{self, Seen},
    },
    rules::{Origin, RuleSpec},
};

async fn post(world: &World, body: Value) -> super::tests::Answer {
    world
        .send(Method::POST, "/v1/rules", body.to_string())
        .await
}

#[tokio::test]
async fn a_rule_is_set_shown_replaced_and_removed() {
    let world = World::ready().await;
    let set = post(&world, json!("proto udp; sport 53 -> drop; priority 7")).await;
    assert_eq!(set.status, 201, "{}", set.text());
    let rule = set.json();
    assert_eq!(rule["id"], 1);
    assert_eq!(rule["rule"], "proto 17; sport 53 -> drop; priority 7");
    assert_eq!(
        rule["match"],
        json!({ "protocol": "17", "source_port": "53" })
    );
    assert_eq!(
        (&rule["action"], &rule["origin"]),
        (&json!("drop"), &json!("operator"))
    );
    assert_eq!(rule["matched_packets"], 13);
    assert_eq!(rule["dropped_bytes"], 300);

    let second = json!({ "match": { "tcp_flags": "syn && !ack" }, "action": { "limit": { "pps": 5 } }, "vip": "site" });
    assert_eq!(post(&world, second).await.status, 201);
    // The one with the lower priority comes first.
    assert_eq!(
        world.plane.rules(),
        [
            "proto 17; sport 53 -> drop; priority 7",
            "tcp flags 0x02/0x02 && !0x10/0x10; vip site -> limit 5 pps",
        ]
    );
    let again = post(&world, json!("proto udp; sport 53 -> pass")).await;
    assert_eq!((again.status, &again.json()["id"]), (200, &json!(1)));
    let put = world
        .send(Method::PUT, "/v1/rules/2", r#"{"rule": "ttl 1 -> sample"}"#)
        .await;
    assert_eq!(
        (put.status, put.json()["rule"].clone()),
        (200, json!("ttl 1 -> sample"))
    );
    let all = world.get("/v1/rules").await.json();
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    assert_eq!(
        world.get("/v1/rules?vip=site").await.json()["items"],
        json!([])
    );
    assert_eq!(
        world.send(Method::DELETE, "/v1/rules/1", "").await.status,
        204
    );
    assert_eq!(world.plane.rules(), ["ttl 1 -> sample"]);
    assert_problem(&world.get("/v1/rules/1").await, 404, "no rule 1");
    assert_problem(&world.get("/v1/rules/x").await, 404, "no rule x");
}

#[tokio::test]
async fn a_wrong_rule_is_refused_with_its_field_and_column() {
    let world = World::ready().await;
    for (body, field, part) in [
        (
            json!({ "rule": "proto udq -> drop" }),
            Some("rule"),
            "column 7",
        ),
        (
            json!({ "match": { "ttl": 300 }, "action": "drop" }),
            Some("match.ttl"),
            "255",
        ),
        (json!("ttl 1; vip nowhere -> drop"), Some("vip"), "nowhere"),
        (
            json!({ "match": { "ttl": 1 }, "action": "drop", "origin": "config" }),
            Some("origin"),
            "operator's",
        ),
        (
            json!([{ "rule": "ttl 1 -> drop", "origin": "detection" }]),
            Some("[0].origin"),
            "operator's",
        ),
        (
            json!(["ttl 1 -> drop", "ttl 1; vip nowhere -> drop"]),
            Some("[1].vip"),
            "nowhere",
        ),
        (
            json!(["ttl 1 -> drop", "ttl 1 -> pass"]),
            Some("[1]"),
            "same packets",
        ),
    ] {
        let answer = post(&world, body.clone()).await;
        assert_problem(&answer, 422, part);
        assert_eq!(answer.json()["field"].as_str(), field, "{body}");
    }
    assert_problem(&post(&world, json!(7)).await, 400, "object");
    let many: Vec<String> = (0..9)
        .map(|n| format!("payload {n} = 0x01 -> drop"))
        .collect();
    assert_problem(&post(&world, json!(many)).await, 409, "pieces of payload");
    assert_eq!(world.plane.rules(), [""; 0]);
    assert_eq!(world.get("/v1/rules").await.json()["items"], json!([]));
}

#[tokio::test]
async fn a_thousand_rules_are_one_request_and_survive_a_restart() {
    let world = World::ready().await;
    let texts: Vec<String> = (1..=1000).map(|n| format!("sport {n} -> drop")).collect();
    let done = post(&world, json!(texts)).await.json();
    assert_eq!(
        (&done["created"], &done["replaced"]),
        (&json!(1000), &json!(0))
    );
    assert_eq!(world.plane.rules().len(), 1000);
    let more: Vec<String> = (2000..2100).map(|n| format!("sport {n} -> drop")).collect();
    assert_problem(&post(&world, json!(more)).await, 409, "1024 rules");
    let dir = world.stop().await;
    let world = World::ready_in(dir).await;
    assert_eq!(world.plane.rules().len(), 1000);
    let next = post(&world, json!("ttl 9 -> drop")).await;
    assert_eq!(next.json()["id"], 1001);
}

#[tokio::test]
async fn what_the_data_plane_refuses_changes_nothing_on_the_disk_either() {
    let world = World::ready().await;
    assert_eq!(post(&world, json!("ttl 1 -> drop")).await.status, 201);
    world.plane.make_room_for(Some(1));
    let two = json!(["ttl 1 -> pass", "ttl 2 -> drop"]);
    assert_problem(&post(&world, two).await, 409, "no room");
    assert_eq!(world.plane.rules(), ["ttl 1 -> drop"]);
    let world = World::ready_in(world.stop().await).await;
    assert_eq!(world.plane.rules(), ["ttl 1 -> drop"]);
    let warnings = &world.get("/v1/status").await.json()["warnings"];
    assert_eq!(*warnings, json!(["slow"]));
}

#[tokio::test]
async fn a_rule_that_is_put_again_stays_what_it_is() {
    let world = World::ready().await;
    let set = post(&world, json!("ttl 1 -> drop; expire 60s")).await;
    let mut events = world.handle.events();
    let put = async |text: &str| {
        let body = json!({ "rule": text }).to_string();
        world.send(Method::PUT, "/v1/rules/1", body).await
    };
    let same = put("ttl 1 -> drop; expire 60s").await;
    assert_eq!((same.status, &same.etag), (200, &set.etag));
    assert_eq!(same.json(), set.json(), "its time included");
    let other = put("ttl 1 -> pass; expire 60s").await;
    assert_ne!(other.etag, set.etag);
    let told = events.recv().await.unwrap();
    assert!(matches!(told, Event::RuleSet(record) if record.revision == 2));
}

#[tokio::test]
async fn rules_that_end_together_are_one_event() {
    let world = World::ready().await;
    let mut events = world.handle.events();
    let texts = [1, 2, 3].map(|n| format!("ttl {n} -> drop; expire 1s"));
    post(&world, json!(texts)).await;
    assert!(matches!(events.recv().await, Ok(Event::RulesSet(_))));
    let expired = Event::RulesExpired([1, 2, 3].into());
    assert_eq!(events.recv().await, Ok(expired));
    assert_eq!(world.plane.rules(), [""; 0]);
}

#[tokio::test]
async fn a_stale_tag_changes_no_rule() {
    let world = World::ready().await;
    let old = post(&world, json!("ttl 1 -> drop")).await;
    let new = post(&world, json!("ttl 1 -> pass")).await;
    assert_ne!(old.etag, new.etag);
    for (method, path) in [
        (Method::PUT, "/v1/rules/1"),
        (Method::DELETE, "/v1/rules/1"),
    ] {
        let body = r#""ttl 1 -> sample""#;
        let stale = world
            .send_if(method, path, body, header::IF_MATCH, &old.etag)
            .await;
        assert_problem(&stale, 412, "was changed meanwhile");
    }
    let body = r#""ttl 1 -> drop""#;
    let exists = world
        .send_if(Method::POST, "/v1/rules", body, header::IF_NONE_MATCH, "*")
        .await;
    assert_problem(&exists, 412, "If-None-Match");
    assert_eq!(world.plane.rules(), ["ttl 1 -> pass"]);
}

#[tokio::test]
async fn a_rule_of_detection_is_shown_and_is_detections_to_change() {
    let world = World::ready().await;
    let mut spec: RuleSpec = "ttl 1 -> drop; comment \"mitigation 4\"".parse().unwrap();
    spec.origin = Origin::Detection;
    let (rule, _) = world
        .handle
        .set_rule(spec, Precondition::None)
        .await
        .unwrap();
    let shown = world.get("/v1/rules?origin=detection").await.json();
    assert_eq!(shown["items"][0]["id"], rule.record.id);
    let path = format!("/v1/rules/{}", rule.record.id);
    for (method, body) in [(Method::PUT, r#""ttl 2 -> drop""#), (Method::DELETE, "")] {
        let refused = world.send(method, &path, body).await;
        assert_problem(&refused, 409, "mitigation 4");
    }
    let put = r#"{ "rule": "ttl 1 -> drop", "origin": "detection" }"#;
    let refused = world.send(Method::PUT, &path, put).await;
    assert_problem(&refused, 422, "operator's");
    assert_eq!(refused.json()["field"], "origin");
    // An operator's own, for the same packets, stands beside it.
    assert_eq!(post(&world, json!("ttl 1 -> pass")).await.status, 201);
    assert_eq!(
        world.get("/v1/rules").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn a_rule_is_tried_before_it_is_set() {
    let world = World::ready().await;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([198, 51, 100, 7], [192, 0, 2, 10], 64)
        .udp(53, 80)
        .write(&mut frame, b"an answer")
        .unwrap();
    let seen = Seen {
        vip: 1,
        header: minute::read(&frame, InTunnel::No).unwrap(),
        dropped: false,
    };
    let detection = world.handle.detection();
    detection.lock().minute.push(now_ms(), 100, vec![seen]);
    for (rule, packets) in [
        (json!("proto udp; sport 53 -> drop"), 100),
        (json!("proto tcp -> drop"), 0),
    ] {
        let told = world
            .send(Method::POST, "/v1/rules/preview", rule.to_string())
            .await;
        assert_eq!(told.status, 200, "{}", told.text());
        assert_eq!(told.json()["samples"], 1);
        assert_eq!(told.json()["matched_packets"], packets);
        assert_eq!(told.json()["matched_bytes"], packets * (28 + 9));
    }
    assert_eq!(world.plane.rules(), [""; 0]);
}

#[tokio::test]
async fn a_rule_ends_with_its_time() {
    let world = World::ready().await;
    let set = post(&world, json!("ttl 1 -> drop; expire 1s")).await;
    assert!(set.json()["expires"].is_string());
    for _ in 0..60 {
        if world.plane.rules().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.plane.rules(), [""; 0]);
    assert_problem(&world.get("/v1/rules/1").await, 404, "no rule 1");
    // It is off the disk too.
    let dir = world.stop().await;
    let world = World::ready_in(dir).await;
    assert_eq!(world.plane.rules(), [""; 0]);
}

#[tokio::test]
async fn rules_of_the_config_hold_as_long_as_they_stand_there() {
    let world = World::ready().await;
    post(&world, json!("ttl 5 -> drop")).await;
    let with = format!("{CONFIG}\n[[rule]]\ntext = \"ttl 4 -> drop; priority 1\"\n");
    std::fs::write(world.config_file(), &with).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(
        world.plane.rules(),
        ["ttl 4 -> drop; priority 1", "ttl 5 -> drop"]
    );
    let all = world.get("/v1/rules?origin=config").await.json();
    let id = all["items"][0]["id"].as_u64().unwrap();
    assert!(id >= 1_000_000_000);
    let path = format!("/v1/rules/{id}");
    assert_eq!(world.get(&path).await.json()["origin"], "config");
    let refused = world.send(Method::DELETE, &path, "").await;
    assert_problem(&refused, 409, "config file");
    let unknown = world.send(Method::DELETE, "/v1/rules/1999999999", "").await;
    assert_problem(&unknown, 404, "no rule 1999999999");
    let wrong = format!("{CONFIG}\n[[rule]]\ntext = \"ttl 4 -> dorp\"\n");
    std::fs::write(world.config_file(), wrong).unwrap();
    let refused = world.send(Method::POST, "/v1/reload", "").await;
    assert_problem(&refused, 422, "`drop`");
    std::fs::write(world.config_file(), CONFIG).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(world.plane.rules(), ["ttl 5 -> drop"]);
}
