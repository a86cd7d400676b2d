//! Mitigations over a real socket.

use serde_json::json;

use super::tests::World;
use crate::detect::mitigation::Mitigation;

#[tokio::test]
async fn a_refused_mitigation_tells_why_and_is_not_in_force() {
    let world = World::ready().await;
    let mitigation = |id: u64, phase| {
        let mitigation = json!({
            "id": id, "vip": "site", "class": "udp", "measure": { "cap": { "pps": 9 } }, "evidence": null,
            "rates": { "pps": 9, "bps": 9 }, "trigger": { "pps": 1, "bps": 1 }, "created_ms": 0,
            "phase": phase, "returns": 0, "matched_packets": 0
        });
        serde_json::from_value::<Mitigation>(mitigation).unwrap()
    };
    let refused = json!({ "refused": { "at_ms": 0, "why": "the disk is full" } });
    let retried = json!({ "retried": { "why": "the table is full" } });
    let reverted = json!({ "reverted": { "at_ms": 0 } });
    let phases = [refused, retried, reverted].into_iter().zip(1..);
    let detection = world.handle.detection();
    (detection.lock().detector).adopt(phases.map(|(phase, id)| mitigation(id, phase)));

    let answer = world.get("/v1/mitigations?state=refused").await.json();
    let items = answer["items"].as_array().unwrap();
    let told = items
        .iter()
        .map(|item| [&item["refusal"], &item["enforced"]]);
    let expected = [
        [&json!("the disk is full"), &json!(false)],
        [&json!("the table is full"), &json!(false)],
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected, "{answer}");
    let metrics = world.get("/metrics").await;
    let line = "sluice_mitigation_active{vip=\"site\",rule=\"1\"} 0\n";
    assert!(metrics.text().contains(line), "{}", metrics.text());
}
