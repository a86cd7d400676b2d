//! Backends leave when they fail, and come back.

use sluice_tests::{DNS_V4, Lab, LabBuilder, WEB_V4, WEB_V6, eventually};

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
    std::thread::sleep(std::time::Duration::from_millis(600));
    lab.backend("b1").start();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(
        lab.node().backend_row(lab.backend("b1").v4())["state"],
        "up"
    );
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
