//! What is drained gets no new flows, until that is ended, or the config loses it.

use super::*;
use crate::{control::Event, drains::DrainKind};

#[tokio::test]
async fn a_drain_is_in_the_tables_when_it_is_answered() {
    let world = World::ready().await;
    assert_eq!(world.weights(), [1, 5]);
    let path = "/v1/drains/backend/web/10.0.0.1";
    let answer = world.send(Method::PUT, path, "").await;
    assert_eq!((answer.status, answer.text()), (204, ""));
    assert_eq!(world.weights(), [5]);
    let state = &world.get("/v1/backends").await.json()["items"][0]["state"];
    assert_eq!(state, "draining");
    assert_eq!(world.send(Method::PUT, path, "").await.status, 204, "again");

    assert_eq!(world.send(Method::DELETE, path, "").await.status, 204);
    assert_eq!(world.weights(), [1, 5]);
    let again = world.send(Method::DELETE, path, "").await;
    assert_problem(&again, 404, "is not draining");
}

#[tokio::test]
async fn a_vip_drains_for_its_own_sake_or_its_pops() {
    let world = World::ready().await;
    let drains = async || {
        let leads_nowhere = world.plane.held().vips["site"].table.is_nowhere();
        let vips = world.get("/v1/vips").await.json();
        assert_eq!(vips["items"][0]["draining"], leads_nowhere);
        leads_nowhere
    };
    let metric = async || world.get("/metrics").await.text().to_owned();
    assert!(!drains().await);
    for path in ["/v1/drains/vip/site", "/v1/drains/pop/ams"] {
        assert_eq!(world.send(Method::PUT, path, "").await.status, 204);
        assert!(drains().await, "{path}");
        let pop = path.contains("pop");
        assert_eq!(world.get("/v1/status").await.json()["draining"], pop);
        let line = format!("\nsluice_pop_draining {}\n", u8::from(pop));
        assert!(metric().await.contains(&line));
        assert_eq!(world.send(Method::PUT, path, "").await.status, 204, "again");
        assert_eq!(world.send(Method::DELETE, path, "").await.status, 204);
        assert!(!drains().await, "{path}");
        let again = world.send(Method::DELETE, path, "").await;
        assert_problem(&again, 404, "is not draining");
    }
    assert_eq!(
        world.weights(),
        [1, 5],
        "its pool's table was there all the time"
    );
}

#[tokio::test]
async fn a_pops_drain_is_of_the_pop_whatever_its_name() {
    let world = World::ready().await;
    let drain = async |method, pop| {
        let path = format!("/v1/drains/pop/{pop}");
        world.send(method, &path, "").await
    };
    assert_eq!(drain(Method::PUT, "ams").await.status, 204);
    let renamed = CONFIG.replace("name = \"ams\"", "name = \"fra\"");
    std::fs::write(world.config_file(), renamed).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert!(world.plane.held().vips["site"].table.is_nowhere());
    assert_eq!(world.get("/v1/status").await.json()["draining"], true);
    assert_problem(&drain(Method::DELETE, "ams").await, 404, "the PoP `fra`");
    assert_eq!(drain(Method::DELETE, "fra").await.status, 204);
    assert!(!world.plane.held().vips["site"].table.is_nowhere());
}

const DRAINS: [&str; 2] = ["/v1/drains/vip/site", "/v1/drains/backend/web/10.0.0.1"];

/// The config, without what [`DRAINS`] names.
fn without_drained() -> String {
    let config = CONFIG.replace("{ address = \"10.0.0.1\" }, ", "");
    config.replace("name = \"site\"", "name = \"other\"")
}

#[tokio::test]
async fn a_drain_ends_when_a_reload_takes_away_what_drains() {
    let world = World::ready().await;
    for path in DRAINS {
        assert_eq!(world.send(Method::PUT, path, "").await.status, 204);
    }
    std::fs::write(world.config_file(), without_drained()).unwrap();
    let plan = world.get("/v1/plan").await.json();
    let steps = plan["steps"].as_array().unwrap();
    for step in ["end drain of vip site", "end drain of web/10.0.0.1"] {
        assert!(steps.contains(&json!(step)), "{steps:?}");
    }
    let reload = || world.send(Method::POST, "/v1/reload", "");
    world.plane.fail(Some("no room"));
    assert_problem(&reload().await, 500, "no room");
    world.plane.fail(None);
    assert_eq!(
        world.handle.view().drains.len(),
        2,
        "nothing was taken away"
    );

    let mut events = world.handle.events();
    assert_eq!(reload().await.status, 204);
    assert!(world.handle.view().drains.is_empty());
    for (kind, name) in [
        (DrainKind::Backend, "web/10.0.0.1"),
        (DrainKind::Vip, "site"),
    ] {
        let name = name.to_owned();
        assert_eq!(events.recv().await, Ok(Event::DrainEnded { kind, name }));
    }

    std::fs::write(world.config_file(), CONFIG).unwrap();
    assert_eq!(reload().await.status, 204);
    assert_eq!(world.weights(), [1, 5], "those that come back are others");
    assert!(!world.plane.held().vips["site"].table.is_nowhere());

    // Written after the ends of the drains.
    let limit = json!({ "prefix": "198.51.100.0/24", "pps": 10 }).to_string();
    assert_eq!(
        world.send(Method::POST, "/v1/limits", limit).await.status,
        201
    );
    let world = World::ready_in(world.stop().await).await;
    assert!(world.handle.view().drains.is_empty());
}

#[tokio::test]
async fn a_drain_ends_when_the_daemon_starts_without_what_drains() {
    let world = World::ready().await;
    for path in DRAINS {
        assert_eq!(world.send(Method::PUT, path, "").await.status, 204);
    }
    let world = World::start_in(world.stop().await, &without_drained(), BODY_TIME);
    assert!(world.handle.view().drains.is_empty());
    let limit = json!({ "prefix": "198.51.100.0/24", "pps": 10 }).to_string();
    assert_eq!(
        world.send(Method::POST, "/v1/limits", limit).await.status,
        201
    );
    let world = World::ready_in(world.stop().await).await;
    assert!(world.handle.view().drains.is_empty());
    assert_eq!(world.weights(), [1, 5]);
}

#[tokio::test]
async fn what_cannot_be_drained_is_refused() {
    let world = World::ready().await;
    for (name, status, part, field) in [
        ("backend/web/10.0.0.9", 404, "no backend web/10.0.0.9", None),
        ("backend/web", 400, "POOL/ADDRESS", Some("name")),
        ("vip/nosuch", 404, "no VIP `nosuch`", None),
        ("pop/fra", 404, "this is the PoP `ams`", None),
        ("moon/x", 404, "can be drained", Some("kind")),
    ] {
        let path = format!("/v1/drains/{name}");
        let answer = world.send(Method::PUT, &path, "").await;
        assert_problem(&answer, status, part);
        assert_eq!(answer.json().get("field"), field.map(Value::from).as_ref());
    }
    assert_eq!(world.weights(), [1, 5]);
}

#[tokio::test]
async fn a_drain_refuses_a_condition_that_it_would_not_look_at() {
    let world = World::ready().await;
    let path = "/v1/drains/backend/web/10.0.0.1";
    let refused = async |method: Method| {
        for (header, name) in [
            (header::IF_MATCH, "If-Match"),
            (header::IF_NONE_MATCH, "If-None-Match"),
        ] {
            let answer = world.send_if(method.clone(), path, "", header, "*").await;
            assert_problem(&answer, 400, "a drain takes no condition");
            assert_eq!(answer.json()["field"], name);
        }
    };
    refused(Method::PUT).await;
    assert_eq!(world.weights(), [1, 5]);
    assert_eq!(world.send(Method::PUT, path, "").await.status, 204);
    refused(Method::DELETE).await;
    assert_eq!(world.weights(), [5]);
}
