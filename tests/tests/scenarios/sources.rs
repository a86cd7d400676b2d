//! Sources that are denied or allowed, on a machine with traffic.

use std::{fmt::Write as _, net::Ipv4Addr, path::PathBuf, time::Duration};

use sluice_tests::{DNS_V4, DNS_V6, Good, Lab, LabBuilder, WEB_V4, eventually, within};

use writer::Writer;

#[path = "../../../lb/src/sources/geo/writer.rs"]
mod writer;

const ATTACKER: &str = "198.51.100.0/24";
const ATTACKER_V6: &str = "2001:db8:bad::/48";

/// Client 0 is good; client 1 is in the attacker's prefixes.
fn lab() -> LabBuilder {
    Lab::new()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, ATTACKER_V6])
}

fn write(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let file = lab.node().state_dir().join(name);
    std::fs::write(&file, text).unwrap();
    file
}

fn is_denied(lab: &Lab, client: usize) -> bool {
    let client = lab.client(client);
    [DNS_V4, DNS_V6]
        .iter()
        .all(|vip| client.udp_ask(*vip, b"bad").is_err())
}

#[test]
fn a_flood_from_a_list_is_dropped_and_others_are_served() {
    let lab = lab().alone().start();
    let mut good = Good::new(lab.client(0));
    let mut list = format!("; a DROP list\n{ATTACKER} ; SBL1\n{ATTACKER_V6} ; SBL2\n");
    for n in 0..10_000u32 {
        _ = writeln!(list, "{}", Ipv4Addr::from_bits(0xcb00_7100 + n * 7));
    }
    let file = write(&lab, "drop.txt", &list);
    let import = format!(
        "deny import drop {} --comment nightly --json",
        file.display()
    );
    let set = lab.node().sluice(&import).succeeds().json();
    assert_eq!(
        (set["lines"].as_u64(), set["skipped"].as_u64()),
        (Some(10_002), Some(0))
    );
    let frames = lab.node().frames().flood(ATTACKER.parse().unwrap(), 4096);
    let flood = lab.flood(frames);
    within(Duration::from_secs(10), "the flood runs", || {
        flood.sent() > 20_000
    });
    good.go_on(3);
    let sent = flood.stop();
    let dropped = lab.node().dropped_for("deny");
    assert!(dropped > sent * 3 / 4, "{dropped} of {sent}");
    let listed = lab.node().sluice("deny list --json").succeeds().json();
    assert_eq!(listed["items"][0]["name"], "drop");
    assert!(listed["items"][0]["dropped_packets"].as_u64().unwrap() >= dropped);
    assert!(
        lab.node()
            .metrics()
            .contains("sluice_set_dropped_packets_total{kind=\"deny\",set=\"drop\"}")
    );

    // Replaced by a list without the attacker's IPv4 prefix.
    let file = write(
        &lab,
        "drop.txt",
        &format!("{ATTACKER_V6}\n203.0.113.0/24\n"),
    );
    lab.node()
        .sluice(&format!("deny import drop {}", file.display()))
        .succeeds();
    let bad = lab.client(1);
    assert!((0..3).any(|_| bad.udp_ask(DNS_V4, b"now").is_ok()));
    assert!(bad.udp_ask(DNS_V6, b"still").is_err());
    lab.node().sluice("deny remove drop").succeeds();
    assert!(lab.client(1).is_served());
}

#[test]
fn a_list_with_a_bad_line_is_refused_whole_or_without_that_line() {
    let lab = lab().start();
    let mut list = String::new();
    for n in 0..2_000u32 {
        _ = writeln!(list, "{}", Ipv4Addr::from_bits(0x0b00_0000 + n * 300));
        if n == 1_000 {
            list += "198.51.100.0/24 # one\nnonsense\n";
        }
    }
    let file = write(&lab, "list.txt", &list);
    let import = format!("deny import list {}", file.display());
    let refused = lab.node().sluice(&import);
    assert!(
        refused.status == 1 && refused.stderr.contains("line 1003: \"nonsense\""),
        "{}",
        refused.stderr
    );
    assert!(lab.client(1).is_served(), "nothing of it is taken");
    let taken = lab
        .node()
        .sluice(&format!("{import} --skip-bad --json"))
        .succeeds();
    assert_eq!(taken.json()["skipped"], 1);
    assert!(lab.client(1).udp_ask(DNS_V4, b"bad").is_err());
    let explain = "explain --from 198.51.100.9:4000 --to 192.0.2.53:53 --protocol udp --json";
    let explained = lab.node().sluice(explain).succeeds().json();
    assert_eq!(explained["reason"], "deny", "{explained}");
    assert_eq!(explained["sets"][0], "deny list", "{explained}");
}

#[test]
fn entries_survive_the_daemon_and_end_when_their_time_is_over() {
    let lab = lab().start();
    let node = lab.node();
    node.sluice(&format!("deny add {ATTACKER} {ATTACKER_V6}"))
        .succeeds();
    assert!(is_denied(&lab, 1));
    node.sluice("allow add 198.51.100.0/24").succeeds();
    assert!(
        (0..3).any(|_| lab.client(1).udp_ask(DNS_V4, b"friend").is_ok()),
        "what is allowed counts for more"
    );
    node.sluice("allow remove 198.51.100.0/24").succeeds();
    node.daemon().kill9();
    assert!(is_denied(&lab, 1), "packets meet sets without the daemon");
    node.daemon().start();
    eventually("the daemon has its entries", || {
        node.items("deny list").len() == 2
    });
    assert!(is_denied(&lab, 1));
    assert!(lab.client(0).is_served());
    node.sluice("deny remove 1 2").succeeds();
    assert!(lab.client(1).is_served());
    node.sluice(&format!("deny add {ATTACKER} {ATTACKER_V6} --ttl 3s"))
        .succeeds();
    assert!(is_denied(&lab, 1));
    eventually("their time is over", || node.items("deny list").is_empty());
    assert!(lab.client(1).is_served());
}

#[test]
fn sets_of_the_config_follow_a_reload_and_a_bad_file_is_refused() {
    let lab = lab().start();
    let file = write(
        &lab,
        "scanners.txt",
        &format!("{ATTACKER}\n{ATTACKER_V6}\n"),
    );
    let mut config = lab.config();
    config.extra += &format!("\n[[deny]]\nname = \"scanners\"\nfile = {file:?}\n");
    lab.reload(&config).succeeds();
    assert!(is_denied(&lab, 1));
    write(&lab, "scanners.txt", &format!("{ATTACKER}\nnonsense\n"));
    let refused = lab.reload(&config);
    assert!(refused.stderr.contains("line 2"), "{}", refused.stderr);
    assert!(is_denied(&lab, 1), "those from before hold");
    let refused = lab.node().sluice("deny remove scanners");
    assert!(refused.stderr.contains("config file"), "{}", refused.stderr);
    lab.reload(&lab.config()).succeeds();
    assert!(lab.client(1).is_served());
}

/// A database of countries and one of systems. Client 1 is in KP and in AS64500, unless the countries know nothing of it.
fn databases(lab: &Lab, is_known: bool) -> [PathBuf; 2] {
    let mut country = Writer::new("Test-Country", 24, 6);
    let mut asn = Writer::new("Test-ASN", 28, 6);
    let (good, bad) = (country.country("AQ"), country.country("KP"));
    let system = asn.asn(64_500);
    for network in Good::PREFIXES {
        country.put(network.parse().unwrap(), good);
    }
    country.put("192.0.2.128/25".parse().unwrap(), bad);
    for network in [ATTACKER, ATTACKER_V6] {
        let network = network.parse().unwrap();
        asn.put(network, system);
        if is_known {
            country.put(network, bad);
        }
    }
    country.alias("2002::/16".parse().unwrap());
    [("country.mmdb", country), ("asn.mmdb", asn)].map(|(name, database)| {
        let file = lab.node().state_dir().join(name);
        std::fs::write(&file, database.bytes()).unwrap();
        file
    })
}

#[test]
fn a_country_is_denied_as_its_database_tells_by_config_and_by_command() {
    let lab = lab().start();
    let node = lab.node();
    let [country, asn] = databases(&lab, true);
    let mut config = lab.config();
    config.extra += &format!(
        "\n[geo]\ndatabases = [{country:?}]\n[[deny]]\nname = \"kp\"\ncountries = [\"KP\"]\n"
    );
    lab.reload(&config).succeeds();
    assert!(is_denied(&lab, 1));
    assert!(lab.client(0).is_served());
    databases(&lab, false);
    lab.reload(&config).succeeds();
    assert!(lab.client(1).is_served(), "the file was read again");
    databases(&lab, true);
    lab.reload(&config).succeeds();
    std::fs::remove_file(&country).unwrap();
    let refused = lab.reload(&config);
    let missing = format!("cannot read {}: No such file", country.display());
    assert!(refused.stderr.contains(&missing), "{}", refused.stderr);
    assert!(is_denied(&lab, 1), "the set from before holds");
    lab.reload(&lab.config()).succeeds();
    assert!(lab.client(1).is_served());

    let [country, asn] = [&country, &asn].map(|file| file.display().to_string());
    let import = |rest: &str| node.sluice(&format!("deny import places {rest}"));
    let refused = import(&format!("--mmdb {asn} --country KP"));
    assert!(
        refused.status == 1 && refused.stderr.contains("Test-ASN"),
        "{}",
        refused.stderr
    );
    assert_eq!(import("--country KP").status, 2, "there is no database");
    import(&format!("--mmdb {asn} --asn AS64500")).succeeds();
    assert!(is_denied(&lab, 1));
    assert!(lab.client(0).is_served());
    databases(&lab, true);
    import(&format!(
        "--mmdb {country} --mmdb {asn} --country aq --asn 64500"
    ))
    .succeeds();
    assert!(is_denied(&lab, 0) && is_denied(&lab, 1));
}

#[test]
fn a_set_of_one_vip_denies_nothing_to_others() {
    let lab = lab().start();
    let node = lab.node();
    node.sluice(&format!("deny add {ATTACKER} {ATTACKER_V6} --vip dns4"))
        .succeeds();
    let bad = lab.client(1);
    let is_answered = |vip| (0..3).any(|_| bad.udp_ask(vip, b"query").is_ok());
    let is_dropped = |vip| bad.udp_ask(vip, b"query").is_err();
    assert!(is_dropped(DNS_V4));
    assert!(is_answered(DNS_V6), "its prefix is denied for another VIP");
    assert!(bad.http_get(WEB_V4, "/health").is_ok());
    let explain = "explain --from 198.51.100.9:4000 --to 192.0.2.53:53 --protocol udp --json";
    let explained = node.sluice(explain).succeeds().json();
    assert_eq!(
        explained["sets"][0], "deny prefixes for dns4",
        "{explained}"
    );
    let refused = node.sluice("deny add 192.0.2.1 --vip nowhere");
    assert!(
        refused.stderr.contains("no VIP `nowhere`"),
        "{}",
        refused.stderr
    );

    node.sluice(&format!("deny add {ATTACKER}")).succeeds();
    node.sluice(&format!("allow add {ATTACKER} --vip web4"))
        .succeeds();
    assert!(bad.http_get(WEB_V4, "/health").is_ok());
    assert!(is_dropped(DNS_V4));
    node.daemon().kill9();
    node.daemon().start();
    eventually("the daemon has its entries", || {
        node.items("deny list").len() == 3
    });
    assert!(bad.http_get(WEB_V4, "/health").is_ok());
    assert!(is_dropped(DNS_V4));
    node.sluice(&format!("deny remove {ATTACKER} {ATTACKER_V6}"))
        .succeeds();
    assert!(node.items("deny list").is_empty());
    assert!(lab.client(1).is_served());
}
