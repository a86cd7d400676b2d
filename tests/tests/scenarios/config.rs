//! A bad config is refused whole, and the running one stays.

use sluice_tests::{Lab, WEB_V4};

#[test]
fn a_bad_config_is_refused_with_its_line_and_the_running_one_stays() {
    let lab = Lab::new().start();
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    let good = lab.node().config_text(&lab.config());
    let before = lab.node().items("vips").len();
    let vip = format!("address = \"{}\"", WEB_V4.ip());
    let own = format!("address = \"{}\"", lab.node().v4());

    for (from, to, said) in [
        ("protocol = \"tcp\"", "protocoll = \"tcp\"", "protocol"),
        ("pool = \"v6\"", "pool = \"nobody\"", "nobody"),
        ("[[vip]]", "[[vip", "sluice.toml"),
        ("\"eth0\"", "\"eth7\"", "no interface `eth7`"),
        (&vip, &own, "this machine's own at eth0"),
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
fn a_plan_tells_what_a_reload_then_does_and_does_nothing_itself() {
    let lab = Lab::new().start();
    let plan = || lab.sluice("plan --json").succeeds().json();
    let text = lab.sluice("plan").succeeds().stdout;
    assert_eq!(text, "a reload would change nothing\n");
    assert_eq!(plan()["steps"].as_array().unwrap().len(), 0);

    let mut conns: Vec<_> = (0..30)
        .map(|_| lab.client(0).connect(WEB_V4).unwrap())
        .collect();
    let b1 = conns.iter().filter(|conn| conn.backend() == "b1").count() as u64;
    let live = || {
        let flows = lab.sluice("flows --json").succeeds().json();
        let items = flows["items"].as_array().unwrap().iter();
        let v4 = items.filter(|item| item["pool"] == "v4");
        v4.map(|item| item["flows"].as_u64().unwrap()).sum::<u64>()
    };
    sluice_tests::eventually("the flows are remembered", || live() >= 30);

    let checksum = || {
        let metrics = lab.node().metrics();
        let mut lines = metrics.lines().map(str::to_owned);
        lines.find(|line| line.starts_with("sluice_table_checksum{vip=\"web4\"}"))
    };
    let before = checksum();
    lab.write_config(&lab.config().without("b1"));
    let told = plan();
    let vips = told["vips"].as_array().unwrap().iter();
    let web4 = vips.clone().find(|vip| vip["name"] == "web4").unwrap();
    let share = web4["slots_moved"].as_f64().unwrap() / web4["slots"].as_f64().unwrap();
    assert!((0.3..0.37).contains(&share), "a third: {told}");
    let (stay, lost) = (&web4["flows_stay"], &web4["flows_lost"]);
    assert!(stay.as_u64().unwrap() >= 30 - b1, "{told}");
    assert!(lost.as_u64().unwrap() >= b1, "{told}");
    let steps: Vec<_> = told["steps"].as_array().unwrap().iter().collect();
    let last = steps.last().unwrap().as_str().unwrap();
    assert!(last.starts_with("remove backend"), "{told}");
    let text = lab.sluice("plan").succeeds().stdout;
    assert!(text.contains("VIP web4: 33."), "{text}");
    assert!(text.contains("live flows stay"), "{text}");
    assert_eq!(
        (checksum(), plan()["steps"].clone()),
        (before.clone(), told["steps"].clone())
    );
    assert_eq!(lab.client(0).spread(WEB_V4, 40).unwrap().len(), 3);

    lab.daemon().reload().succeeds();
    assert_ne!(checksum(), before);
    assert_eq!(plan()["steps"].as_array().unwrap().len(), 0, "it is done");
    for conn in conns.iter_mut().filter(|conn| conn.backend() != "b1") {
        assert_eq!(conn.ask_who(), conn.backend(), "it was told to stay");
    }

    let good = lab.node().config_text(&lab.config());
    lab.node()
        .write_config(&good.replacen("address", "adress", 1));
    let refused = lab.sluice("plan");
    assert_eq!(refused.status, 1);
    assert!(
        refused.stderr.contains("did you mean `address`?"),
        "{refused:?}"
    );
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
