//! An attack is seen within moments, told, held where it can be, and seen among the talkers.

use std::{
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use sluice_tests::{DNS_V4, Frames, Good, Lab, WEB_V4, within};

const ATTACKER: &str = "198.51.100.0/24";
const DETECT: &str = r#"
[detect]
mode = "enforce"
learn = "3s"
thresholds = { pps = 4_000, factor = 3, cap = 3 }
"#;

fn lab() -> Lab {
    Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, "2001:db8:bad::/48"])
        .config(|mut config| {
            config.extra.push_str(DETECT);
            config
        })
        .start()
}

/// Good clients for so long, so that there is peace to learn.
fn peace(lab: &Lab, time: Duration) {
    let client = lab.client(0);
    let end = Instant::now() + time;
    let mut request = 0;
    while Instant::now() < end {
        let source = client.source(client.address_in_network(DNS_V4, request));
        _ = source.udp_ask(DNS_V4, b"good");
        _ = source.http_get(WEB_V4, "/health");
        request += 1;
    }
}

fn mitigations(lab: &Lab) -> Vec<Value> {
    lab.node().items("mitigations")
}

/// Rules that detection has set.
fn rules(lab: &Lab) -> Vec<Value> {
    lab.node().items("rules --origin detection")
}

/// What they have dropped.
fn dropped(lab: &Lab) -> u64 {
    let dropped = |rule: &Value| rule["dropped_packets"].as_u64().unwrap();
    rules(lab).iter().map(dropped).sum()
}

#[test]
fn a_flood_is_found_within_a_second_told_and_held() {
    let lab = lab();
    peace(&lab, Duration::from_secs(10));
    assert!(mitigations(&lab).is_empty(), "peace is no attack");

    let dns: SocketAddr = DNS_V4;
    let frames = lab
        .node()
        .frames()
        .udp_flood(ATTACKER.parse().unwrap(), 4096);
    let flood = lab.flood(frames);
    let began = Instant::now();
    within(Duration::from_secs(5), "the attack is found", || {
        let metrics = lab.node().metrics();
        metrics.contains("sluice_attack_active{vip=\"dns4\",class=\"udp\"} 1")
    });
    let found = began.elapsed();
    println!("found after {found:?}");
    assert!(found < Duration::from_secs(1), "{found:?}");
    within(Duration::from_secs(10), "something acts against it", || {
        mitigations(&lab)
            .iter()
            .any(|item| item["enforced"] == true)
    });
    sleep(Duration::from_secs(1));
    let talkers = lab.sluice("talkers --vip dns4 --json").succeeds().json();
    assert_eq!(talkers["networks"][0]["what"], ATTACKER, "{talkers}");
    assert_eq!(
        talkers["destination_ports"][0]["what"],
        format!("udp {}", dns.port())
    );
    assert!(lab.node().dropped("enforce") > 1_000);

    let id = mitigations(&lab)
        .into_iter()
        .find(|item| item["enforced"] == true)
        .unwrap()["id"]
        .clone();
    lab.sluice(&format!("mitigation revert {id}")).succeeds();
    within(Duration::from_secs(5), "it is reverted", || {
        let items = mitigations(&lab);
        items.iter().any(|item| {
            item["id"] == id && item["state"] == "reverted" && item["enforced"] == false
        })
    });
    flood.stop();
}

/// So many honest datagrams a second, each from another host, however slow the machine is.
fn datagrams(lab: &Lab, time: Duration) {
    let frames: Vec<Vec<u8>> = Frames::sources("198.18.0.0/16".parse().unwrap(), 4096)
        .map(|from| lab.node().frames().udp(from, DNS_V4, b"good"))
        .collect();
    let socket = lab.uplink_sender();
    let end = Instant::now() + time;
    for part in frames.chunks(8).cycle() {
        if Instant::now() > end {
            return;
        }
        socket.send_many(part).unwrap();
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn detection_sets_a_rule_that_every_pulse_of_a_flood_meets_until_it_is_reverted() {
    let lab = lab();
    datagrams(&lab, Duration::from_secs(12));
    assert!(mitigations(&lab).is_empty(), "peace is no attack");
    let mut good = Good::new(lab.client(0));
    let frames = lab
        .node()
        .frames()
        .udp_flood(ATTACKER.parse().unwrap(), 4096);
    let mut pulse = || {
        let before = dropped(&lab);
        let flood = lab.flood(frames.clone());
        let began = Instant::now();
        within(Duration::from_secs(10), "a rule drops the flood", || {
            dropped(&lab) > before
        });
        let took = began.elapsed();
        good.beside(|| sleep(Duration::from_secs(1)));
        flood.stop();
        took
    };
    let first = pulse();
    let later = [(); 3].map(|()| {
        sleep(Duration::from_secs(2));
        pulse()
    });
    println!("a rule drops after {first:?}, then {later:?}");
    assert!(
        later.iter().all(|took| *took < Duration::from_millis(500)),
        "{later:?}"
    );

    let flood = lab.flood(frames);
    let set = rules(&lab);
    println!("{set:#?}");
    assert_eq!(set[0]["mode"], "enforce");
    assert_eq!(set[0]["vip"], "dns4");
    assert!(set[0]["expires"].is_string());
    let mitigation = mitigations(&lab)
        .into_iter()
        .find(|item| set[0]["comment"] == format!("mitigation {}", item["id"]))
        .unwrap();
    assert_eq!(mitigation["enforced"], true, "{mitigation}");
    good.go_on(12);
    assert!(lab.node().dropped_for("rule") > 1_000);

    let removed = lab.sluice(&format!("rule remove {}", set[0]["id"]));
    assert_eq!(removed.status, 1);
    assert!(
        removed.stderr.contains("mitigation revert"),
        "{}",
        removed.stderr
    );
    lab.sluice(&format!("mitigation revert {}", mitigation["id"]))
        .succeeds();
    within(Duration::from_secs(5), "the rule is gone", || {
        rules(&lab).iter().all(|rule| rule["id"] != set[0]["id"])
    });
    flood.stop();
}
