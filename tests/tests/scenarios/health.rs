//! Backends leave when they fail, and come back.

use std::{
    io,
    process::Command,
    time::{Duration, Instant},
};

use sluice_tests::{DNS_V4, Lab, LabBuilder, WEB_V4, WEB_V6, eventually, within};

const QUICK: &str = r#"{ kind = "http", port = 80, path = "/health", status = 200, interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#;

fn quick_lab() -> LabBuilder {
    Lab::new().config(|config| config.health(QUICK))
}

#[test]
fn a_backend_leaves_when_its_server_stops_and_returns_with_it() {
    let lab = quick_lab().start();
    let backend = lab.backend("b2");
    let is = |state: &str| {
        [backend.v4(), backend.v6()]
            .into_iter()
            .all(|address| lab.node().backend_row(address)["state"] == state)
    };
    backend.stop();
    eventually("b2 is down", || is("down"));
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert!(
            !lab.client(0).spread(vip, 40).unwrap().contains_key("b2"),
            "{vip}"
        );
    }
    backend.start();
    eventually("b2 is up", || is("up"));
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
    }
}

#[test]
fn one_failed_check_is_forgiven() {
    let lab = Lab::new()
        .config(|config| config.health(&QUICK.replace("fall = 2", "fall = 20")))
        .start();
    lab.backend("b1").stop();
    std::thread::sleep(Duration::from_millis(600));
    lab.backend("b1").start();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        lab.node().backend_row(lab.backend("b1").v4())["state"],
        "up"
    );
}

#[test]
fn a_daemon_without_descriptors_takes_no_backend_down() {
    let lab = quick_lab().start();
    let pid = lab.daemon().pid().to_string();
    let may_open = |files: &str| {
        let limit = format!("--nofile={files}:");
        let mut command = Command::new("prlimit");
        command.args(["--pid", &pid, &limit]);
        assert!(command.status().unwrap().success());
    };
    may_open("3");
    within(Duration::from_secs(10), "the log says so", || {
        lab.node().log().contains("a backend is not checked")
    });
    // Long enough for many checks, of which two would be too many.
    std::thread::sleep(Duration::from_secs(3));
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
    }
    may_open("1024");
    let log = lab.node().log();
    assert!(!log.contains("backend is down"), "{log}");

    let backend = lab.backend("b2");
    backend.stop();
    eventually("b2 is down", || {
        lab.node().backend_row(backend.v4())["state"] == "down"
    });
}

#[test]
fn a_tcp_check_needs_no_http() {
    let lab = Lab::new()
        .config(|config| {
            config.health(r#"{ kind = "tcp", port = 80, interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#)
        })
        .start();
    lab.backend("b3").stop();
    eventually("b3 is down", || {
        lab.node().backend_row(lab.backend("b3").v4())["state"] == "down"
    });
    assert!(!lab.client(0).spread(WEB_V4, 40).unwrap().contains_key("b3"));
}

#[test]
fn an_unplugged_backend_leaves_too() {
    let lab = quick_lab().start();
    let backend = lab.backend("b1");
    backend.unplug();
    eventually("b1 is down", || {
        lab.node().backend_row(backend.v4())["state"] == "down"
    });
    assert!(!lab.client(0).spread(WEB_V4, 40).unwrap().contains_key("b1"));
    backend.plug();
    eventually("b1 is up", || {
        lab.node().backend_row(backend.v4())["state"] == "up"
    });
    assert_eq!(lab.client(0).spread(WEB_V4, 60).unwrap().len(), 3);
}

#[test]
fn with_no_backend_left_packets_are_dropped_and_the_reason_is_said() {
    let lab = quick_lab().start();
    lab.backends().iter().for_each(sluice_tests::Backend::stop);
    eventually("all are down", || {
        lab.node()
            .items("backends")
            .iter()
            .all(|backend| backend["state"] == "down")
    });
    assert_eq!(lab.node().dropped_for("no_backend"), 0);
    assert!(lab.client(0).udp_ask(DNS_V4, b"anyone?").is_err());
    assert_eq!(lab.node().dropped_for("no_backend"), 1);

    lab.backends().iter().for_each(sluice_tests::Backend::start);
    eventually("they serve again", || {
        lab.client(0).udp_ask(DNS_V4, b"anyone?").is_ok()
    });
}

#[test]
fn a_backend_whose_mac_is_unknown_is_shown_and_gets_no_flows_until_it_is() {
    let lab = Lab::new()
        .config(|config| config.health(r#"{ kind = "none" }"#))
        .build();
    let backend = lab.backend("b3");
    backend.unplug();
    lab.daemon().start();
    eventually("the others are resolved", || {
        let rows = lab.node().items("backends");
        rows.iter().filter(|row| row["resolved"] == true).count() == 4
    });
    for address in [backend.v4(), backend.v6()] {
        let row = lab.node().backend_row(address);
        assert_eq!(
            (&row["resolved"], &row["mac"]),
            (&false.into(), &serde_json::Value::Null),
            "{row}"
        );
    }
    let spread = lab.client(0).spread(WEB_V4, 40).unwrap();
    assert_eq!(spread.keys().collect::<Vec<_>>(), ["b1", "b2"]);

    backend.plug();
    lab.wait_until_ready();
    assert_eq!(lab.client(0).spread(WEB_V4, 60).unwrap().len(), 3);
}

#[test]
fn an_echo_check_asks_the_host_and_not_the_server() {
    let lab = Lab::new()
        .config(|config| {
            config.health(
                r#"{ kind = "icmp", interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#,
            )
        })
        .start();
    let backend = lab.backend("b2");
    let state = |address| lab.node().backend_row(address)["state"].clone();
    backend.stop();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(
        (state(backend.v4()), state(backend.v6())),
        ("up".into(), "up".into())
    );
    backend.unplug();
    eventually("b2 is down", || {
        state(backend.v4()) == "down" && state(backend.v6()) == "down"
    });
    backend.plug();
    eventually("b2 is up", || {
        state(backend.v4()) == "up" && state(backend.v6()) == "up"
    });
}

#[test]
fn a_backend_in_doubt_is_checked_sooner() {
    let lab = Lab::new()
        .config(|config| {
            config.health(
                r#"{ kind = "tcp", port = 80, interval = "2s", fast_interval = "50ms", timeout = "200ms", rise = 5, fall = 5 }"#,
            )
        })
        .start();
    let backend = lab.backend("b1");
    backend.stop();
    let stopped = Instant::now();
    eventually("b1 is down", || {
        lab.node().backend_row(backend.v4())["state"] == "down"
    });
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}, and 10 s without");
}

/// For each way through a tunnel: checks get through, and a backend without decapsulation fails them.
fn is_checked_through_the_tunnel(change: fn(sluice_tests::Config) -> sluice_tests::Config) {
    for health in [
        r#"{ kind = "http", port = 80, path = "/health", body = "ok", interval = "200ms", timeout = "200ms", rise = 2, fall = 2, via_tunnel = true }"#,
        r#"{ kind = "icmp", interval = "200ms", timeout = "200ms", rise = 2, fall = 2, via_tunnel = true }"#,
    ] {
        let lab = Lab::new()
            .config(move |config| change(config.health(health)))
            .build();
        for name in ["b1", "b2"] {
            lab.backend(name).decap();
        }
        lab.daemon().start();
        lab.wait_until_ready_except("b3");
        let without = lab.backend("b3");
        for address in [without.v4(), without.v6()] {
            eventually("b3 is down", || {
                lab.node().backend_row(address)["state"] == "down"
            });
            let row = lab.node().backend_row(address);
            let error = row["error"].as_str().unwrap();
            assert!(
                error.contains("does the backend take the tunnel off"),
                "{error}"
            );
        }
        for vip in [WEB_V4, WEB_V6] {
            let spread = lab.client(0).spread(vip, 30).unwrap();
            assert_eq!(spread.keys().collect::<Vec<_>>(), ["b1", "b2"], "{vip}");
        }
        without.decap();
        lab.wait_until_ready();
    }
}

#[test]
fn a_check_through_ipip_shows_that_decapsulation_is_missing() {
    is_checked_through_the_tunnel(|config| config.forward("ipip"));
}

#[test]
fn a_check_through_gue_shows_that_decapsulation_is_missing() {
    is_checked_through_the_tunnel(|config| config.forward("gue"));
}

#[test]
fn a_check_goes_through_a_tunnel_of_the_other_family() {
    is_checked_through_the_tunnel(|config| config.forward("ipip").cross_families());
}

#[test]
fn a_draining_backend_is_drained_when_its_last_flow_is_gone() {
    let lab = Lab::new().start();
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    let backend = lab.backend(conn.backend());
    let idle = lab
        .backends()
        .iter()
        .find(|other| other.name() != backend.name())
        .unwrap();
    for address in [backend.v4(), idle.v4()] {
        lab.sluice(&format!("drain backend v4/{address}"))
            .succeeds();
    }
    let state = |address| lab.node().backend_row(address)["state"].clone();
    conn.ask_who();
    assert_eq!(state(backend.v4()), "draining");
    assert_eq!(state(idle.v4()), "drained");
    let told = |address| {
        let log = lab.node().log();
        log.lines().any(|line| {
            line.contains("its last live flow has ended") && line.contains(&format!("v4/{address}"))
        })
    };
    eventually("it is told", || told(idle.v4()));
    assert!(!told(backend.v4()));
    lab.sluice(&format!("undrain backend v4/{}", idle.v4()))
        .succeeds();
    assert_eq!(state(idle.v4()), "up");
}

/// A check that no server passes.
const HOPELESS: &str = r#"{ kind = "http", port = 80, path = "/missing", interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#;

fn all_are_down(lab: &Lab) -> bool {
    let rows = lab.node().items("backends");
    rows.iter().all(|backend| backend["state"] == "down")
}

#[test]
fn the_last_known_backends_serve_on_when_all_checks_fail() {
    let lab = quick_lab().start();
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    let keep = lab.config().pools("all_down = \"last_known\"");
    lab.reload(&keep.health(HOPELESS)).succeeds();
    eventually("all are down", || all_are_down(&lab));
    assert_eq!(conn.ask_who(), conn.backend());
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
    }
    assert_eq!(lab.node().dropped_for("no_backend"), 0);

    lab.reload(&lab.config().health(HOPELESS)).succeeds();
    assert!(lab.client(0).udp_ask(DNS_V4, b"anyone?").is_err());
    assert!(lab.node().dropped_for("no_backend") > 0);
}

#[test]
fn a_returning_backend_starts_slowly_and_moves_no_flow() {
    let lab = Lab::new()
        .config(|config| config.health(QUICK).pools("slow_start = \"12s\""))
        .start();
    let backend = lab.backend("b2");
    let is = |state: &str| lab.node().backend_row(backend.v4())["state"] == state;
    backend.stop();
    eventually("b2 is down", || is("down"));
    let mut others: Vec<_> = (0..20)
        .map(|_| lab.client(0).connect(WEB_V4).unwrap())
        .collect();
    backend.start();
    eventually("b2 is up", || is("up"));
    let share = || {
        let spread = lab.client(0).spread(WEB_V4, 300).unwrap();
        spread.get("b2").copied().unwrap_or_default()
    };
    // A ninth of 300 is 33; a third is 100.
    let first = share();
    assert!((10..66).contains(&first), "{first}");
    // Not by asking again and again: thousands of flows would fill buckets of the lab's small flow table.
    std::thread::sleep(Duration::from_secs(13));
    let whole = share();
    assert!(whole > 75, "{whole}");
    for conn in &mut others {
        assert_eq!(conn.ask_who(), conn.backend());
    }
}

#[test]
fn a_daemon_that_knows_nothing_yet_moves_nothing() {
    // The body never holds it, which is known after 20 s.
    const SLOW: &str = r#"{ kind = "http", port = 80, path = "/slow/100/20000", body = "never", interval = "30s", timeout = "25s" }"#;
    let lab = quick_lab().start();
    lab.daemon().kill9();
    lab.write_config(&lab.config().health(SLOW));
    lab.daemon().start();
    // Longer than tables wait for health.
    std::thread::sleep(Duration::from_secs(4));
    let rows = lab.node().items("backends");
    assert!(rows.iter().all(|row| row["state"] == "unknown"), "{rows:?}");
    for vip in [WEB_V4, WEB_V6] {
        assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
    }
}

#[test]
fn with_reset_clients_learn_at_once_that_nobody_serves() {
    let lab = Lab::new()
        .config(|config| config.health(QUICK).pools("all_down = \"reset\""))
        .start();
    for vip in [WEB_V4, WEB_V6] {
        let mut conn = lab.client(0).connect(vip).unwrap();
        let healthy = lab.config().pools("all_down = \"reset\"");
        lab.reload(&healthy.clone().health(HOPELESS)).succeeds();
        eventually("all are down", || all_are_down(&lab));
        let started = Instant::now();
        let refused = lab.client(0).connect(vip).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{vip}");
        let reset = conn.try_who().unwrap_err();
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset, "{vip}");
        assert!(started.elapsed() < Duration::from_secs(1));
        lab.reload(&healthy.health(QUICK)).succeeds();
        lab.wait_until_ready();
    }
    assert_eq!(lab.node().dropped_for("no_backend"), 0);
}
