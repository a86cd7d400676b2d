//! A bad config is refused whole, and the running one stays.

use sluice_tests::{Lab, WEB_V4};

#[test]
fn a_bad_config_is_refused_with_its_line_and_the_running_one_stays() {
    let lab = Lab::new().start();
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    let good = lab.node().config_text(&lab.config());
    let before = lab.node().items("vips").len();

    for (from, to, said) in [
        ("protocol = \"tcp\"", "protocoll = \"tcp\"", "protocol"),
        ("pool = \"v6\"", "pool = \"nobody\"", "nobody"),
        ("[[vip]]", "[[vip", "sluice.toml"),
    ] {
        lab.node().write_config(&good.replacen(from, to, 1));
        let checked = lab.sluice("check");
        assert_eq!(checked.status, 1, "{checked:?}");
        assert!(
            checked.stderr.contains("sluice.toml") && checked.stderr.contains(said),
            "{checked:?}"
        );

        let reloaded = lab.daemon().reload();
        assert_eq!(reloaded.status, 1, "{reloaded:?}");
        assert!(reloaded.stderr.contains(said), "{reloaded:?}");
        assert_eq!(lab.node().items("vips").len(), before);
        assert_eq!(lab.client(0).spread(WEB_V4, 40).unwrap().len(), 3);
    }
    assert_eq!(conn.ask_who(), conn.backend());

    lab.reload(&lab.config().without("b1")).succeeds();
    assert!(!lab.client(0).spread(WEB_V4, 40).unwrap().contains_key("b1"));
}

#[test]
fn a_bad_config_is_refused_on_sighup_too() {
    let lab = Lab::new().start();
    let good = lab.node().config_text(&lab.config());
    lab.node()
        .write_config(&good.replacen("address", "adress", 1));
    lab.daemon().hup();
    sluice_tests::eventually("the refusal is in the log", || {
        lab.node().log().contains("adress")
    });
    assert!(lab.daemon().is_running());
    assert_eq!(lab.client(0).spread(WEB_V4, 40).unwrap().len(), 3);
}

#[test]
fn a_daemon_does_not_start_with_a_bad_config_or_a_missing_interface() {
    let lab = Lab::new().build();
    let good = lab.node().config_text(&lab.config());
    lab.sluice("check").succeeds();
    for (from, to) in [("address", "adress"), ("eth0", "eth7")] {
        lab.node().write_config(&good.replacen(from, to, 1));
        let run = lab.sluice("run");
        assert_eq!(run.status, 1, "{run:?}");
        assert!(run.stderr.contains(to), "{run:?}");
        assert!(!lab.node().netns().has_xdp("eth0"));
    }
}
