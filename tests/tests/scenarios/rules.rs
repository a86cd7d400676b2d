//! Rules on a machine with traffic: floods that a rule names are dropped, and whatever else comes is served.

use std::{thread::sleep, time::Duration};

use sluice_tests::{DNS_V4, Good, Lab, LabBuilder, eventually, within};

const ATTACKER: &str = "198.51.100.0/24";

/// Client 0 is good; client 1 is in the attacker's prefix.
fn lab() -> LabBuilder {
    Lab::new()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, "2001:db8:bad::/48"])
}

fn add(lab: &Lab, rule: &str) -> serde_json::Value {
    let words = ["rule", "add", rule, "--json"];
    lab.node().sluice_words(&words).succeeds().json()
}

#[test]
fn a_flood_is_dropped_by_a_rule_and_others_are_served() {
    let lab = lab().alone().start();
    let mut good = Good::new(lab.client(0));
    let set = add(
        &lab,
        &format!("src {ATTACKER} -> drop; comment \"a flood\""),
    );
    let frames = lab.node().frames().flood(ATTACKER.parse().unwrap(), 4096);
    let flood = lab.flood(frames);
    within(Duration::from_secs(10), "the flood runs", || {
        flood.sent() > 20_000
    });
    good.go_on(3);
    let sent = flood.stop();
    let rules = lab.node().items("rules");
    assert_eq!(rules[0]["id"], set["id"]);
    let dropped = rules[0]["dropped_packets"].as_u64().unwrap();
    assert!(dropped > sent * 3 / 4, "{dropped} of {sent}");
    let for_rule = lab.node().dropped_for("rule");
    assert!(for_rule >= dropped, "{for_rule} of {dropped}");
    assert!(
        lab.node()
            .metrics()
            .contains("sluice_rule_dropped_packets_total{rule=\"1\"}")
    );

    lab.node().sluice("rule remove 1").succeeds();
    assert!(
        lab.client(1).is_served(),
        "without the rule, whoever is in that prefix is served"
    );
}

#[test]
fn a_preview_tells_what_a_rule_would_have_meant() {
    let lab = lab().alone().start();
    let preview = |rule: &str| {
        let words = ["rule", "preview", rule, "--json"];
        lab.node().sluice_words(&words).succeeds().json()
    };
    let number = |told: &serde_json::Value, what: &str| told[what].as_u64().unwrap();
    let nothing = preview("src 203.0.113.0/24 -> drop");
    assert_eq!(nothing["matched_packets"], 0, "{nothing}");

    let client = lab.client(0);
    let asked: u64 = 200;
    for _ in 0..asked {
        _ = client.udp_ask(DNS_V4, b"good");
        sleep(Duration::from_millis(5));
    }
    sleep(Duration::from_millis(300));
    let told = preview("dst 192.0.2.53/32; proto udp; dport 53; vip dns4 -> drop");
    let matched = number(&told, "matched_packets");
    assert!((asked / 2..=asked * 3 / 2).contains(&matched), "{told}");
    assert_eq!(told["dropped_packets"], 0, "{told}");

    let frames = lab
        .node()
        .frames()
        .udp_flood(ATTACKER.parse().unwrap(), 4096);
    let before = lab.node().received();
    let flood = lab.flood(frames);
    sleep(Duration::from_secs(5));
    flood.stop();
    sleep(Duration::from_millis(300));
    let came = lab.node().received() - before;
    let text = format!("src {ATTACKER}; proto udp -> drop");
    let told = preview(&text);
    println!("{came} came: {told}");
    let matched = number(&told, "matched_packets");
    assert!(
        (came / 2..=came * 3 / 2).contains(&matched),
        "{came} of {told}"
    );
    assert!(number(&told, "samples") <= 30_000, "{told}");
    let said = lab.node().sluice_words(&["rule", "preview", &text]);
    assert!(said.stdout.contains("packets"), "{}", said.stdout);
    let words = ["rule", "preview", "ttl 1; vip nowhere -> drop"];
    let refused = lab.node().sluice_words(&words);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("nowhere"), "{}", refused.stderr);
    assert_eq!(lab.node().items("rules").len(), 0, "nothing is set");
}

#[test]
fn a_rule_in_monitor_mode_counts_and_explain_names_it() {
    let lab = lab().start();
    add(&lab, "proto udp; dport 53 -> drop; monitor");
    assert!(lab.client(0).is_served());
    let rule = &lab.node().items("rules")[0];
    assert!(rule["dropped_packets"].as_u64().unwrap() >= 2, "{rule}");
    assert_eq!(lab.node().dropped("enforce"), 0);
    let explain = "explain --from 198.18.0.9:4000 --to 192.0.2.53:53 --protocol udp --json";
    let explained = lab.node().sluice(explain).succeeds().json();
    assert_eq!(explained["rule"], 1, "{explained}");
    assert_ne!(explained["verdict"], "drop");
}

#[test]
fn rules_survive_the_daemon_and_lines_that_are_none_are_named() {
    let lab = lab().start();
    let file = lab.node().state_dir().join("rules.txt");
    std::fs::write(
        &file,
        "# a comment\nttl 1 -> drop\nttl 1 -> dorp\nttl 2 -> drop\n",
    )
    .unwrap();
    let import = format!("rule import {}", file.display());
    let refused = lab.node().sluice(&import);
    assert!(
        refused.status == 1 && refused.stderr.contains(":3: column"),
        "{}",
        refused.stderr
    );
    assert_eq!(lab.node().items("rules").len(), 0);
    std::fs::write(&file, "ttl 1 -> drop\n\nttl 2; vip nowhere -> drop\n").unwrap();
    let refused = lab.node().sluice(&import);
    assert!(
        refused.status == 1
            && refused.stderr.contains("rules.txt:3: ")
            && refused.stderr.contains("nowhere"),
        "{}",
        refused.stderr
    );
    assert_eq!(lab.node().items("rules").len(), 0);
    std::fs::write(
        &file,
        "# a comment\nttl 1 -> drop\nttl 1 -> dorp\nttl 2 -> drop\nttl 1 -> pass\n",
    )
    .unwrap();
    lab.node()
        .sluice(&format!("{import} --skip-bad"))
        .succeeds();
    assert_eq!(lab.node().items("rules").len(), 2);
    add(&lab, &format!("src {ATTACKER}; proto udp -> drop"));
    let denied = || lab.client(1).udp_ask(DNS_V4, b"bad").is_err();
    assert!(denied());
    lab.node().daemon().kill9();
    assert!(denied(), "packets meet rules without the daemon");
    lab.node().daemon().start();
    eventually("the daemon has its rules", || {
        lab.node().items("rules").len() == 3
    });
    assert!(denied());
    assert!(lab.client(0).is_served());
    let counted = lab.node().items("rules");
    assert!(
        counted[2]["dropped_packets"].as_u64().unwrap() >= 2,
        "{counted:?}"
    );
}
