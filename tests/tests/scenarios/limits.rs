//! A flood is dropped where it comes from; good requests are served, and established flows not touched.

use std::{net::IpAddr, time::Duration};

use sluice_tests::{
    Conn, DNS_V4, DNS_V6, Downloads, Good, Lab, LabBuilder, WEB_V4, WEB_V6, eventually, within,
};

const ATTACKER: &str = "198.51.100.0/24";
const ATTACKER_V6: &str = "2001:db8:bad::/48";
const POLICY: &str = r#"[
    { class = "syn", per = "network", pps = 50, burst = 100 },
    { class = "udp", per = "network", pps = 50, burst = 100 },
]"#;

/// Client 0 is good, and many. Client 1 is in the attacker's prefix, and honest.
fn lab() -> LabBuilder {
    Lab::new()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, ATTACKER_V6])
}

/// Floods from a prefix meanwhile; returns how many frames were sent.
fn under_flood(lab: &Lab, prefix: &str, meanwhile: impl FnOnce()) -> u64 {
    let frames = lab.node().frames().flood(prefix.parse().unwrap(), 4096);
    let flood = lab.flood(frames);
    within(Duration::from_secs(10), "the flood runs", || {
        flood.sent() > 20_000
    });
    meanwhile();
    flood.stop()
}

/// Good clients go on under a flood from `prefix`, a hundred new ones are served, and the flood is dropped and counted.
fn withstands(lab: &Lab, prefix: &str) {
    let mut good = Good::new(lab.client(0));
    let downloads = Downloads::start(lab.client(0), &[WEB_V4, WEB_V6], 40, Duration::from_secs(4));
    let before = lab.node().dropped("enforce");
    let sent = under_flood(lab, prefix, || {
        good.go_on(25);
        let outcome = downloads.finish();
        assert_eq!((outcome.whole, outcome.broken), (40, vec![]));
    });
    let dropped = lab.node().dropped("enforce") - before;
    // What is missing was lost in the cable, or was within the limit. What is too much are the resets with which the
    // prefix's real hosts answer the answers to what was within it.
    assert!(
        dropped > sent * 3 / 4 && dropped <= sent + sent / 100,
        "{dropped} of {sent} dropped"
    );
}

#[test]
fn a_policy_holds_a_flood_from_one_network() {
    let lab = lab()
        .alone()
        .config(|config| config.policy("enforce", POLICY))
        .start();
    withstands(&lab, ATTACKER);
}

#[test]
fn a_policy_holds_an_ipv6_flood_from_one_network() {
    let lab = lab()
        .alone()
        .config(|config| config.policy("enforce", POLICY))
        .start();
    withstands(&lab, "2001:db8:bad:1::/64");
}

#[test]
fn a_limit_for_a_prefix_holds_a_flood_from_it() {
    let lab = lab().alone().start();
    for prefix in [ATTACKER, ATTACKER_V6] {
        let limit = format!("limit set --prefix {prefix} --class all --pps 100 --burst 10");
        lab.sluice(&limit).succeeds();
        withstands(&lab, prefix);
        let limits = lab.node().items("limits");
        let row = limits.iter().find(|row| row["prefix"] == prefix).unwrap();
        assert!(row["dropped_packets"].as_u64().unwrap() > 10_000, "{row}");
    }
}

#[test]
fn a_flood_from_random_sources_breaks_nothing() {
    // No source sends twice, so only wide networks can be told from the good ones: 16 of them flood here.
    let policy = r#"[{ class = "syn", per = "network", pps = 500, burst = 500 }]"#;
    let lab = lab()
        .alone()
        .config(|config| {
            let mut config = config.policy("enforce", policy);
            config.extra += "host_v4 = 8\nnetwork_v4 = 8\n";
            config
        })
        .start();
    let mut good = Good::new(lab.client(0));
    let downloads = Downloads::start(lab.client(0), &[WEB_V4, WEB_V6], 40, Duration::from_secs(4));

    let frames = lab
        .node()
        .frames()
        .syn_flood("16.0.0.0/4".parse().unwrap(), 1 << 16);
    let flood = lab.flood(frames);
    within(Duration::from_secs(10), "the flood runs", || {
        flood.sent() > 20_000
    });
    good.go_on(12);
    let outcome = downloads.finish();
    assert_eq!((outcome.whole, outcome.broken), (40, vec![]));
    assert!(flood.stop() > 100_000);
}

#[test]
fn a_flood_that_no_limit_meets_breaks_no_established_flow() {
    let lab = lab().alone().start();
    let mut conns: Vec<Conn> = (0..20)
        .map(|_| lab.client(0).connect(WEB_V4).unwrap())
        .collect();
    under_flood(&lab, ATTACKER, || {
        for _ in 0..10 {
            conns
                .iter_mut()
                .for_each(|conn| assert_eq!(conn.ask_who(), conn.backend()));
        }
    });
}

#[test]
fn a_limit_acts_at_once_and_ends_when_it_is_removed() {
    let lab = lab().start();
    let flow = lab.client(1).udp(DNS_V4).unwrap();
    assert_eq!(flow.answers_to(20).unwrap(), 20);

    let limit = format!("limit set --prefix {ATTACKER} --class udp --pps 1 --burst 2 --json");
    let set = lab.sluice(&limit).succeeds().json();
    let answered = flow.answers_to(20).unwrap();
    assert!((1..=4).contains(&answered), "{answered} of 20 answered");
    assert_eq!(
        lab.client(0).udp(DNS_V4).unwrap().answers_to(20).unwrap(),
        20,
        "others are not limited"
    );
    lab.client(1).who(WEB_V4).expect("TCP is not limited");
    let limits = lab.node().items("limits");
    assert_eq!(limits.len(), 1);
    assert!(
        limits[0]["dropped_packets"].as_u64().unwrap() >= 16,
        "{limits:?}"
    );

    let id = set["id"]
        .as_str()
        .map_or_else(|| set["id"].to_string(), String::from);
    lab.sluice(&format!("limit remove {id}")).succeeds();
    assert_eq!(flow.answers_to(20).unwrap(), 20);
    assert!(lab.node().items("limits").is_empty());
}

#[test]
fn a_limit_may_be_for_one_vip() {
    let lab = lab().start();
    lab.sluice(&format!(
        "limit set --prefix {ATTACKER_V6} --vip dns6 --class all --pps 1 --burst 1"
    ))
    .succeeds();
    assert!(lab.client(1).udp(DNS_V6).unwrap().answers_to(20).unwrap() <= 3);
    let spread = lab.client(1).spread(WEB_V6, 30).unwrap();
    assert_eq!(spread.values().sum::<usize>(), 30);
}

#[test]
fn a_limit_that_monitors_counts_and_drops_nothing() {
    let lab = lab().start();
    lab.sluice(&format!(
        "limit set --prefix {ATTACKER} --class udp --pps 1 --burst 1 --mode monitor"
    ))
    .succeeds();
    assert_eq!(
        lab.client(1).udp(DNS_V4).unwrap().answers_to(50).unwrap(),
        50
    );
    assert_eq!(lab.node().dropped("enforce"), 0);
    let would = lab.node().dropped("monitor");
    assert!((45..=50).contains(&would), "{would}");
}

#[test]
fn a_policy_that_monitors_counts_and_drops_nothing() {
    let limits = r#"[{ class = "udp", per = "host", pps = 1, burst = 1 }]"#;
    let lab = lab()
        .config(move |config| config.policy("monitor", limits))
        .start();
    assert_eq!(
        lab.client(1).udp(DNS_V4).unwrap().answers_to(50).unwrap(),
        50
    );
    assert_eq!(lab.node().dropped("enforce"), 0);
    assert!(lab.node().dropped("monitor") >= 45);
}

#[test]
fn a_limit_ends_when_its_time_is_over() {
    let lab = lab().start();
    lab.sluice(&format!(
        "limit set --prefix {ATTACKER} --class udp --pps 1 --burst 1 --ttl 2s"
    ))
    .succeeds();
    let flow = lab.client(1).udp(DNS_V4).unwrap();
    assert!(flow.answers_to(20).unwrap() <= 3);
    eventually("the limit is gone", || {
        lab.node().items("limits").is_empty()
    });
    assert_eq!(flow.answers_to(20).unwrap(), 20);
}

#[test]
fn an_established_flow_of_a_limited_prefix_lives_on() {
    let lab = lab().alone().start();
    let client = lab.client(1);
    let mut conn = client.connect(WEB_V4).unwrap();
    // A flow is exempt when it has lived in peace for some seconds, or proved itself otherwise.
    for _ in 0..60 {
        conn.ask_who();
        std::thread::sleep(Duration::from_millis(100));
    }
    lab.sluice(&format!(
        "limit set --prefix {ATTACKER} --class all --pps 1 --burst 1"
    ))
    .succeeds();
    under_flood(&lab, ATTACKER, || {
        for _ in 0..100 {
            assert_eq!(conn.ask_who(), conn.backend());
        }
    });
    let other: IpAddr = "198.51.100.99".parse().unwrap();
    assert!(
        client
            .source(other)
            .udp(DNS_V4)
            .unwrap()
            .answers_to(20)
            .unwrap()
            <= 3,
        "new flows are limited"
    );
}
