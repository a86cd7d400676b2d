//! Established flows outlive everything that is done to the daemon and its config.

use std::{net::SocketAddr, time::Duration};

use sluice_tests::{Client, Conn, DNS_V4, Downloads, Lab, WEB_V4, WEB_V6, eventually};

const VIPS: [SocketAddr; 2] = [WEB_V4, WEB_V6];

/// Runs 200 downloads meanwhile and for a moment after, and none may break.
fn unharmed(client: &Client, meanwhile: impl FnOnce(&Downloads)) {
    let downloads = Downloads::endless(client, &VIPS, 200);
    meanwhile(&downloads);
    let outcome = downloads.finish();
    assert_eq!((outcome.whole, outcome.broken), (200, vec![]));
}

#[test]
fn downloads_survive_reloads_and_a_backend_added_and_drained() {
    let lab = Lab::new()
        .config(|config| config.without("b3"))
        .clients(2)
        .start();
    unharmed(lab.client(0), |downloads| {
        lab.daemon().reload().succeeds();
        let all = lab.config().with(lab.backend("b3"));
        lab.reload(&all).succeeds();
        let added = lab.backend("b3").v4();
        eventually("b3 is up", || {
            lab.node().backend_row(added)["state"] == "up"
        });
        assert!(lab.client(1).spread(WEB_V4, 60).unwrap().contains_key("b3"));

        let drained = lab.backend(&downloads.backends()[0]);
        for name in [
            format!("v4/{}", drained.v4()),
            format!("v6/{}", drained.v6()),
        ] {
            lab.sluice(&format!("drain backend {name}")).succeeds();
        }
        assert!(
            !lab.client(1)
                .spread(WEB_V4, 40)
                .unwrap()
                .contains_key(drained.name())
        );
        for _ in 0..10 {
            lab.daemon().hup();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn downloads_survive_twenty_kills_of_the_daemon() {
    let lab = Lab::new().start();
    unharmed(lab.client(0), |_| {
        for n in 0..20 {
            if n % 2 == 1 {
                // In the midst of a reload that makes other lookup tables, now sooner and now later.
                let mut config = lab.config();
                config.pools[0].backends[0].extra = format!("weight = {}\n", 2 + n);
                lab.write_config(&config);
                lab.daemon().hup();
                std::thread::sleep(Duration::from_millis(n * 3));
            }
            lab.daemon().kill9();
            lab.daemon().start();
        }
    });
    assert_eq!(lab.client(0).spread(WEB_V4, 60).unwrap().len(), 3);
}

#[test]
fn a_new_start_replaces_the_program_under_live_downloads() {
    let lab = Lab::new().start();
    let program = || {
        let link = lab
            .node()
            .netns()
            .command("ip", &["link", "show", "dev", "eth0"]);
        let (_, rest) = link
            .split_once("prog/xdp id ")
            .unwrap_or_else(|| panic!("no program: {link}"));
        rest.split_whitespace().next().unwrap().to_owned()
    };
    unharmed(lab.client(0), |_| {
        let before = program();
        lab.daemon().stop();
        assert_eq!(
            program(),
            before,
            "a daemon that ends leaves its program at work"
        );
        lab.daemon().start();
        assert_ne!(program(), before);
    });
}

#[test]
fn new_flows_are_balanced_while_no_daemon_runs() {
    let lab = Lab::new().start();
    lab.daemon().kill9();
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
    }
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    lab.daemon().start();
    assert_eq!(conn.ask_who(), conn.backend());
}

#[test]
fn what_was_set_at_run_time_survives_a_kill() {
    let lab = Lab::new().start();
    let drained = lab.backend("b1");
    lab.sluice(&format!("drain backend v4/{}", drained.v4()))
        .succeeds();
    lab.sluice("limit set --prefix 198.51.100.0/24 --class all --pps 100")
        .succeeds();
    lab.daemon().kill9();
    lab.daemon().start();
    lab.wait_until_ready_except("b1");
    assert_eq!(lab.node().backend_row(drained.v4())["state"], "drained");
    assert!(!lab.client(0).spread(WEB_V4, 40).unwrap().contains_key("b1"));
    let limits = lab.node().items("limits");
    assert_eq!(limits.len(), 1, "{limits:?}");
    assert_eq!(limits[0]["prefix"], "198.51.100.0/24");
}

#[test]
fn only_unload_takes_the_program_off() {
    let lab = Lab::new().start();
    let mut conn: Conn = lab.client(0).connect(WEB_V4).unwrap();
    lab.daemon().stop();
    assert_eq!(conn.ask_who(), conn.backend());
    assert!(lab.node().netns().has_xdp("eth0"));

    lab.sluice("unload").succeeds();
    assert!(!lab.node().netns().has_xdp("eth0"));
    assert!(
        !lab.node().pin_dir().exists() || lab.node().pin_dir().read_dir().unwrap().next().is_none()
    );

    lab.daemon().start();
    lab.wait_until_ready();
    assert_eq!(lab.client(0).spread(WEB_V4, 60).unwrap().len(), 3);
}
