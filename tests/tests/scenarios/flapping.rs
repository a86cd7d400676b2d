//! Backends that come and go faster than handshakes end.

use std::time::{Duration, Instant};

use sluice_tests::{ApiConn, Conn, Lab, WEB_V4, WEB_V6, eventually};

#[test]
fn a_backend_that_flaps_for_longer_than_tables_live_finds_room_and_breaks_no_flow() {
    // The pools `v4` and `v6` have a table each: room for three of both, and not one more.
    let lab = Lab::new()
        .config(|mut config| {
            config.dataplane = format!("lookup_slots = {}\n", 2 * 3 * 65_538);
            config
        })
        .start();
    let client = lab.client(0);
    let vips = [WEB_V4, WEB_V6].iter().cycle().take(30);
    let mut conns: Vec<Conn> = vips.map(|vip| client.connect(*vip).unwrap()).collect();
    let mut api = ApiConn::open(&lab.node().socket()).unwrap();
    let backend = lab.backend("b1");
    let names = [
        format!("v4/{}", backend.v4()),
        format!("v6/{}", backend.v6()),
    ];
    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < Duration::from_secs(8) {
        for method in ["PUT", "DELETE"] {
            for name in &names {
                let path = format!("/v1/drains/backend/{name}");
                let answer = api.send(method, &path, "").unwrap();
                assert!((200..300).contains(&answer.status), "{}", answer.json());
                changes += 1;
            }
            let new = client.connect([WEB_V4, WEB_V6][changes / 2 % 2]).unwrap();
            assert!(!new.backend().is_empty());
        }
    }
    println!("{changes} changes in {:?}", start.elapsed());
    assert!(changes > 60, "{changes}");
    let status = lab.sluice("status --json").succeeds().json();
    assert_eq!(status["warnings"].as_array().map(Vec::len), Some(0));
    for conn in &mut conns {
        assert_eq!(conn.ask_who(), conn.backend());
    }
    eventually("it takes new flows again", || {
        client.spread(WEB_V4, 30).unwrap().contains_key("b1")
    });
}
