//! Limits over a real socket: conditions, pages, many at once, time, restarts and a disk that fails.

use std::time::{Duration, Instant, SystemTime};

use hyper::{Method, header};
use serde_json::{Value, json};

use super::tests::{CONFIG, LIMIT, World, assert_problem};
use crate::control::Event;

fn limit(n: u32, more: &str) -> String {
    let prefix = std::net::Ipv4Addr::from_bits(0x0b00_0000 + n);
    format!(r#"{{"prefix": "{prefix}", "pps": 100{more}}}"#)
}

fn limits(numbers: std::ops::Range<u32>, more: &str) -> String {
    let all: Vec<String> = numbers.map(|n| limit(n, more)).collect();
    format!("[{}]", all.join(","))
}

async fn post(world: &World, body: impl Into<axum::body::Bytes>) -> super::tests::Answer {
    world.send(Method::POST, "/v1/limits", body).await
}

async fn ids(world: &World, path: &str) -> Vec<u64> {
    let answer = world.get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let items = answer.json()["items"].take();
    let id = |item: &Value| item["id"].as_u64().unwrap();
    items.as_array().unwrap().iter().map(id).collect()
}

#[tokio::test]
async fn a_stale_tag_changes_nothing() {
    let world = World::ready().await;
    let old = post(&world, LIMIT).await;
    assert_eq!(old.json()["etag"], old.etag);
    let new = world
        .send(Method::PUT, "/v1/limits/1", LIMIT.replace("1000", "2000"))
        .await;
    assert_ne!(old.etag, new.etag);
    assert_eq!(world.get("/v1/limits/1").await.etag, new.etag);
    let (path, body) = ("/v1/limits/1", LIMIT.replace("1000", "3000"));
    for (method, path) in [
        (Method::PUT, path),
        (Method::DELETE, path),
        (Method::POST, "/v1/limits"),
    ] {
        let answer = world
            .send_if(method, path, body.clone(), header::IF_MATCH, &old.etag)
            .await;
        assert_problem(&answer, 412, "was changed meanwhile");
        assert_eq!(answer.json()["field"], "If-Match");
        assert_eq!(world.plane.limits()[0].pps, Some(2000));
    }
    let bad = world
        .send_if(Method::PUT, path, body.clone(), header::IF_MATCH, "7")
        .await;
    assert_problem(&bad, 400, "If-Match");
    assert_eq!(bad.json()["field"], "If-Match");
    let only_new = world
        .send_if(
            Method::POST,
            "/v1/limits",
            body.clone(),
            header::IF_NONE_MATCH,
            "*",
        )
        .await;
    assert_problem(&only_new, 412, "If-None-Match");
    assert_eq!(only_new.json()["field"], "If-None-Match");
    let bad = world
        .send_if(
            Method::POST,
            "/v1/limits",
            LIMIT,
            header::IF_NONE_MATCH,
            &new.etag,
        )
        .await;
    assert_problem(&bad, 400, "only `*`");
    assert_eq!(bad.json()["field"], "If-None-Match");
    let array = format!("[{LIMIT}]");
    let many = world
        .send_if(
            Method::POST,
            "/v1/limits",
            array,
            header::IF_MATCH,
            &new.etag,
        )
        .await;
    assert_problem(&many, 400, "takes no condition");
    assert_eq!(many.json()["field"], "If-Match");

    let put = world
        .send_if(Method::PUT, path, body, header::IF_MATCH, &new.etag)
        .await;
    assert_eq!((put.status, put.json()["pps"].clone()), (200, json!(3000)));
    let gone = world
        .send_if(Method::DELETE, path, "", header::IF_MATCH, &put.etag)
        .await;
    assert_eq!(gone.status, 204);
}

#[tokio::test]
async fn the_same_put_twice_is_as_good_as_once() {
    let world = World::ready().await;
    post(&world, LIMIT).await;
    let body = LIMIT.replace("1000", "2000");
    let first = world.send(Method::PUT, "/v1/limits/1", body.clone()).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let second = world.send(Method::PUT, "/v1/limits/1", body).await;
    assert_eq!(first.json(), second.json());
    assert_eq!(first.etag, second.etag);
}

#[tokio::test]
async fn many_limits_come_in_pages_and_by_filters() {
    let world = World::ready().await;
    let answer = post(&world, limits(0..25, "")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["created"], 25);
    post(&world, LIMIT).await;
    post(
        &world,
        limit(99, r#", "mode": "monitor", "comment": "ticket 7""#),
    )
    .await;

    let mut path = "/v1/limits?limit=10".to_owned();
    let mut all = Vec::new();
    loop {
        let page = ids(&world, &path).await;
        assert!(page.len() <= 10);
        all.extend(page);
        let next = world.get(&path).await.json()["next"].take();
        let Some(next) = next.as_str() else { break };
        path = format!("/v1/limits?limit=10&after={next}");
    }
    assert_eq!(all, (1..=27).collect::<Vec<u64>>());

    for (filter, expected) in [
        ("vip=site", vec![26]),
        ("class=udp", vec![26]),
        ("mode=monitor", vec![27]),
        ("comment=ticket%207", vec![27]),
        ("within=11.0.0.0/30", vec![1, 2, 3, 4]),
        ("covers=198.51.100.7", vec![26]),
        ("within=11.0.0.0/8&mode=monitor", vec![27]),
        ("vip=nosuch", vec![]),
    ] {
        assert_eq!(
            ids(&world, &format!("/v1/limits?{filter}")).await,
            expected,
            "{filter}"
        );
    }
    for (query, field) in [
        ("colour=red", "colour"),
        ("class=red", "class"),
        ("mode=", "mode"),
        ("within=red", "within"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=x", "limit"),
        ("after=x", "after"),
        ("vip=a&vip=b", "vip"),
    ] {
        let answer = world.get(&format!("/v1/limits?{query}")).await;
        assert_problem(&answer, 400, "");
        assert_eq!(answer.json()["field"], field, "{query}");
    }
}

#[tokio::test]
async fn other_lists_have_pages_and_filters_too() {
    let world = World::ready().await;
    let count = async |path: &str| {
        let answer = world.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()["items"].as_array().unwrap().len()
    };
    for (path, expected) in [
        ("/v1/vips?name=site", 1),
        ("/v1/vips?pool=nosuch", 0),
        ("/v1/backends?state=up", 2),
        ("/v1/backends?pool=web&state=down", 0),
        ("/v1/backends?limit=1", 1),
        ("/v1/backends?after=1", 1),
        ("/v1/flows?pool=web&limit=1", 1),
        ("/v1/drops?mode=monitor", 1),
        ("/v1/drops?reason=limit_host&vip=site", 2),
    ] {
        assert_eq!(count(path).await, expected, "{path}");
    }
    assert_eq!(world.get("/v1/backends?limit=1").await.json()["next"], "1");
    assert_problem(&world.get("/v1/vips?colour=1").await, 400, "colour");
}

#[tokio::test]
async fn a_batch_with_one_wrong_limit_sets_none() {
    let world = World::ready().await;
    post(&world, limit(3, "")).await;
    for (last, status, field) in [
        (limit(3, r#", "vip": "nosuch""#), 422, json!("[3].vip")),
        (limit(3, r#", "colour": 1"#), 422, json!("[3].colour")),
        (limit(2, ""), 422, json!("[3]")),
        ("1".to_owned(), 422, json!("[3]")),
    ] {
        let body = format!("[{},{last}]", limits(0..3, "").trim_matches(['[', ']']));
        let answer = post(&world, body).await;
        assert_problem(&answer, status, "");
        assert_eq!(answer.json()["field"], field);
        assert_eq!(world.plane.limits().len(), 1);
    }
    // The data plane has room for some of them.
    world.plane.make_room_for(Some(3));
    let answer = post(&world, limits(0..5, r#", "comment": "new""#)).await;
    assert_problem(&answer, 409, "full");
    world.plane.make_room_for(None);
    assert_eq!(world.plane.limits().len(), 1);
    assert_eq!(world.plane.limits()[0].comment, "");
    assert_eq!(ids(&world, "/v1/limits").await, [1]);
    assert_eq!(post(&world, limits(0..5, "")).await.json()["replaced"], 1);
    let world = World::ready_in(world.stop().await).await;
    assert_eq!(world.plane.limits().len(), 5);
    assert_eq!(
        post(&world, limit(9, "")).await.json()["id"],
        10,
        "no id twice"
    );
}

#[tokio::test]
async fn what_was_refused_by_the_data_plane_is_not_there_after_a_restart() {
    let world = World::ready().await;
    post(&world, limit(1, "")).await;
    world.plane.fail(Some("full"));
    assert_problem(&post(&world, limit(2, "")).await, 409, "full");
    let put = world.send(Method::PUT, "/v1/limits/1", limit(7, "")).await;
    assert_problem(&put, 409, "full");
    world.plane.fail(None);
    let world = World::ready_in(world.stop().await).await;
    assert_eq!(ids(&world, "/v1/limits").await, [1]);
    assert_eq!(world.plane.limits()[0].prefix.to_string(), "11.0.0.1/32");
}

#[tokio::test]
async fn a_restart_keeps_limits_and_drains() {
    let world = World::ready().await;
    post(&world, LIMIT).await;
    let before = post(&world, LIMIT).await;
    let drains = [
        "/v1/drains/backend/web/10.0.0.1",
        "/v1/drains/vip/site",
        "/v1/drains/pop/ams",
    ];
    for drain in drains {
        assert_eq!(world.send(Method::PUT, drain, "").await.status, 204);
    }
    let world = World::ready_in(world.stop().await).await;
    let after = world.get("/v1/limits/1").await;
    assert_eq!((after.json(), &after.etag), (before.json(), &before.etag));
    assert_eq!(world.plane.limits().len(), 1);
    assert_eq!(world.handle.view().drains.len(), 3);
    for drain in drains {
        assert_eq!(world.send(Method::DELETE, drain, "").await.status, 204);
    }
    let world = World::ready_in(world.stop().await).await;
    assert!(world.handle.view().drains.is_empty());
}

/// How long after its time a limit is still there.
async fn late(world: &World, expires: &Value) -> Duration {
    let expires = humantime::parse_rfc3339(expires.as_str().unwrap()).unwrap();
    while !world.plane.limits().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    SystemTime::now()
        .duration_since(expires)
        .expect("not before its time")
}

#[tokio::test]
async fn limits_expire_on_time_also_over_a_restart() {
    let world = World::ready().await;
    let mut events = world.handle.events();
    let short = limit(1, r#", "ttl_seconds": 1"#);
    let set = post(&world, short.clone()).await.json();
    let busy = async {
        // Who asks all the time does not put it off.
        loop {
            world.get("/v1/limits").await;
        }
    };
    let late_by = tokio::select! {
        late = late(&world, &set["expires"]) => late,
        () = busy => unreachable!(),
    };
    assert!(late_by < Duration::from_millis(50), "{late_by:?}");
    assert!(matches!(events.recv().await, Ok(Event::LimitSet(_))));
    assert_eq!(events.recv().await, Ok(Event::LimitExpired(1)));

    let set = post(&world, short.replace(": 1}", ": 2}")).await.json();
    let world = World::ready_in(world.stop().await).await;
    assert_eq!(world.plane.limits().len(), 1);
    let late_by = late(&world, &set["expires"]).await;
    assert!(late_by < Duration::from_millis(50), "{late_by:?}");

    // One whose time is over while no daemon runs.
    post(&world, short).await;
    let dir = world.stop().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let world = World::ready_in(dir).await;
    assert!(ids(&world, "/v1/limits").await.is_empty());
    assert!(world.plane.limits().is_empty());
}

#[tokio::test]
async fn many_limits_that_expire_together_are_few_events() {
    const MANY: u32 = 5_000;
    let world = World::ready().await;
    let all = limits(0..MANY, r#", "ttl_seconds": 2"#);
    assert_eq!(post(&world, all).await.status, 200);
    let last = world.get(&format!("/v1/limits/{MANY}")).await.json();
    let mut events = world.handle.events();
    let late_by = late(&world, &last["expires"]).await;
    println!("figure: {MANY} limits that expire together: the last {late_by:?} late");
    assert!(late_by < Duration::from_millis(500), "{late_by:?}");
    let (mut told, mut expired) = (0, Vec::new());
    while expired.len() < MANY as usize {
        match events.recv().await.unwrap() {
            Event::LimitExpired(id) => expired.push(id),
            Event::LimitsExpired(ids) => expired.extend(ids.iter()),
            other => panic!("{other:?}"),
        }
        told += 1;
    }
    assert!(expired.into_iter().eq(1..=u64::from(MANY)));
    assert!(told < 50, "{told}");
}

#[tokio::test]
async fn every_change_is_told() {
    let world = World::ready().await;
    let mut events = world.handle.events();
    post(&world, LIMIT).await;
    post(&world, limits(0..3, "")).await;
    world.send(Method::DELETE, "/v1/limits/1", "").await;
    let drain = "/v1/drains/backend/web/10.0.0.1";
    world.send(Method::PUT, drain, "").await;
    world.send(Method::DELETE, drain, "").await;
    world.send(Method::POST, "/v1/reload", "").await;
    std::fs::write(world.config_file(), "x").unwrap();
    world.send(Method::POST, "/v1/reload", "").await;
    std::fs::write(world.config_file(), CONFIG).unwrap();
    for word in [
        "limit_set",
        "limits_set",
        "limit_removed",
        "drain_begun",
        "drain_ended",
        "reload_done",
        "reload_refused",
    ] {
        assert_eq!(events.recv().await.unwrap().word(), word);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_limits_are_set_at_once() {
    let world = World::ready().await;
    let body = limits(
        0..100_000,
        r#", "ttl_seconds": 3600, "comment": "of a feed""#,
    );
    let start = Instant::now();
    let answer = post(&world, body).await;
    let took = start.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["created"], 100_000);
    println!("100,000 limits: {took:?}");
    assert_eq!(world.plane.limits().len(), 100_000);
    let page = world.get("/v1/limits?limit=10&after=99990").await.json();
    assert_eq!(page["next"], json!(null));
    assert_eq!(page["items"].as_array().unwrap().len(), 10);
    assert!(took < Duration::from_secs(20), "{took:?}");
}
