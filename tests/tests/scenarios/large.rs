//! The largest that may be asked for: lists of a million prefixes, and a flow table of 2^26 flows.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sluice_tests::{DNS_V4, DNS_V6, Good, Lab, WEB_V4, WEB_V6, eventually};

use crate::scale::DEBUG_SLOWER;

/// A debug build takes twenty times as long for the same steps, so it gets a tenth.
const PREFIXES_V4: u32 = if cfg!(debug_assertions) {
    100_000
} else {
    1_000_000
};
const PREFIXES_V6: u32 = PREFIXES_V4 / 4;
const FLOWS: u32 = 1 << 26;
/// How long a question may take: somebody waits for its answer.
const QUICK: Duration = Duration::from_secs(1);
/// And a change of a whole list.
const SOON: Duration = Duration::from_secs(5);

/// Hosts of client 1, by the lists that they stand in.
const ALWAYS: u8 = 9;
const FIRST: u8 = 10;
const SECOND: u8 = 11;
const NEVER: u8 = 12;

/// A host's address of each family; in lists it is a network of its own.
fn addresses(host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(198, 51, 100, host).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0xbad, host.into(), 0, 0, 0, 2).into(),
    ]
}

/// One of many addresses of each family, all over the internet. Every fourth has an IPv6 network in the lists.
fn listed(n: u32) -> [IpAddr; 2] {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    [
        Ipv4Addr::from_bits(0x1000_0000 + mixed % (1 << 30)).into(),
        Ipv6Addr::from_bits(0x2600 << 112 | u128::from(mixed) << 80).into(),
    ]
}

/// Writes a list of some of these, and of some hosts.
fn write(lab: &Lab, name: &str, part: Range<u32>, hosts: [u8; 2]) -> PathBuf {
    let mut list = String::new();
    for n in part {
        let [v4, v6] = listed(n);
        _ = writeln!(list, "{v4}");
        if n % 4 == 0 {
            _ = writeln!(list, "{v6}/48");
        }
    }
    for [v4, v6] in hosts.map(addresses) {
        _ = write!(list, "{v4}\n{v6}/128\n");
    }
    let file = lab.node().state_dir().join(name);
    fs::write(&file, list).expect("the lab's directory is writable");
    file
}

/// Replaces the set by what stands in a file, and returns how long that took.
fn import(lab: &Lab, file: &Path) -> Duration {
    let begun = Instant::now();
    let command = format!("deny import all {} --json", file.display());
    let set = lab.sluice(&command).succeeds().json();
    let took = begun.elapsed();
    let lines = PREFIXES_V4 + PREFIXES_V6 + 4;
    assert_eq!(set["lines"].as_u64(), Some(lines.into()), "{set}");
    took
}

fn is_served(lab: &Lab, host: u8) -> bool {
    let vips = [DNS_V4, DNS_V6].into_iter().zip(addresses(host));
    vips.map(|(vip, from)| lab.client(1).source(from).udp(vip).expect("a socket"))
        .all(|flow| flow.ask_again(b"question").is_ok())
}

/// Whether a datagram of each family is dropped as denied, while nobody else is.
fn is_denied(lab: &Lab, host: u8) -> bool {
    let before = lab.node().dropped_for("deny");
    for (vip, from) in [DNS_V4, DNS_V6].into_iter().zip(addresses(host)) {
        let flow = lab.client(1).source(from).udp(vip).expect("a socket");
        flow.socket().send(b"question").expect("a route");
    }
    eventually("both have come", || {
        lab.node().dropped_for("deny") >= before + 2
    });
    lab.node().dropped_for("deny") == before + 2
}

/// Packets that went on to the backends of the DNS VIPs.
fn forwarded(lab: &Lab) -> u64 {
    let packets = |vip| {
        let series = format!("sluice_packets_total{{vip=\"{vip}\",verdict=\"tx\"}}");
        lab.node().metric(&series)
    };
    packets("dns4") + packets("dns6")
}

#[test]
fn large_lists_are_imported_replaced_under_a_flood_and_removed() {
    let lab = Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&["198.51.100.0/24", "2001:db8:bad::/48"])
        .config(|mut config| {
            // When one list replaces another, there must be room for the IPv6 prefixes of both.
            config.source_prefixes = 1 << 21;
            config
        })
        .start();
    let daemon = lab.daemon();
    let half = PREFIXES_V4 / 2;
    let first = write(&lab, "first.txt", 0..PREFIXES_V4, [ALWAYS, FIRST]);
    let second = write(
        &lab,
        "second.txt",
        half..half + PREFIXES_V4,
        [ALWAYS, SECOND],
    );
    let (before_mib, _) = daemon.memory_mib();
    assert!(is_served(&lab, ALWAYS));

    let imported = import(&lab, &first);
    let (own_mib, _) = daemon.memory_mib();
    assert!(is_denied(&lab, ALWAYS) && is_denied(&lab, FIRST));
    assert!(is_served(&lab, SECOND) && is_served(&lab, NEVER));

    // Whoever stands in both lists is out at every moment.
    let frames = lab.node().frames();
    let flood = (half..PREFIXES_V4).step_by(16).flat_map(|n| {
        let vips = [DNS_V4, DNS_V6].into_iter().zip(listed(n));
        vips.map(|(vip, from)| frames.udp((from, 4000).into(), vip, b"flood"))
    });
    let mut good = Good::of(lab.client(0), &[WEB_V4, WEB_V6]);
    let let_in = forwarded(&lab);
    let flood = lab.flood(flood.collect());
    let replaced = good.beside(|| import(&lab, &second));
    let rate = flood.packets_per_second();
    let sent = flood.stop();
    assert!(sent > 10_000, "{sent}");
    assert_eq!(forwarded(&lab), let_in, "packets of {sent} were let in");
    assert!(is_denied(&lab, ALWAYS) && is_denied(&lab, SECOND));
    assert!(is_served(&lab, FIRST) && is_served(&lab, NEVER));

    let begun = Instant::now();
    lab.sluice("deny remove all").succeeds();
    let removed = begun.elapsed();
    for host in [ALWAYS, FIRST, SECOND, NEVER] {
        assert!(is_served(&lab, host), "{host}");
    }
    println!(
        "figure: a list of {PREFIXES_V4} IPv4 and {PREFIXES_V6} IPv6 prefixes: imported in {imported:?}, replaced in {replaced:?} under {rate:.0} denied packets a second, removed in {removed:?}; {own_mib} MiB of the daemon's own, {before_mib} before, {} after",
        daemon.memory_mib().0
    );
    assert!(imported.max(replaced).max(removed) < SOON);
}

#[test]
fn a_flow_table_of_2_26_flows_is_told_quickly_and_adopted() {
    let lab = Lab::new()
        .alone()
        .config(|mut config| {
            config.flows = FLOWS;
            config
        })
        .build();
    let begun = Instant::now();
    lab.daemon().start();
    lab.wait_until_ready();
    let started = begun.elapsed();
    let mut conn = lab.client(0).connect(WEB_V4).expect("a connection");
    let all_tell = || {
        let mut took = Vec::new();
        let mut ask = |noun: &str| {
            let begun = Instant::now();
            let answer = lab.sluice(&format!("{noun} --json")).succeeds().json();
            took.push(begun.elapsed());
            answer
        };
        let (status, flows) = (ask("status"), ask("flows"));
        assert_eq!(status["flow_capacity"], FLOWS);
        assert_eq!(flows["capacity"], FLOWS);
        let begun = Instant::now();
        let capacity = lab.node().metric("sluice_flow_table_capacity");
        took.push(begun.elapsed());
        assert_eq!(capacity, u64::from(FLOWS));
        let slowest = took.iter().max().expect("three answers");
        assert!(*slowest < QUICK * DEBUG_SLOWER, "{took:?}");
        (status, flows, took)
    };
    let (status, ..) = all_tell();
    assert_eq!(status["adopted"], false);
    // When tables have changed, all flows are counted anew.
    let mut backends = lab.backends().iter().map(|backend| backend.name());
    let unused = backends.find(|name| *name != conn.backend());
    let fewer = lab.config().without(unused.expect("there are three"));
    lab.reload(&fewer).succeeds();
    let (.., took) = all_tell();

    lab.daemon().kill9();
    let begun = Instant::now();
    lab.daemon().start();
    let restarted = begun.elapsed();
    let (status, flows, _) = all_tell();
    assert_eq!(status["adopted"], true);
    let known = ["proven", "unproven"].map(|state| flows[state].as_u64().expect("a number"));
    assert_eq!(known.iter().sum::<u64>(), 1, "{flows}");
    assert_eq!(conn.ask_who(), conn.backend());
    println!(
        "figure: a flow table of {FLOWS} flows: start {started:?}, restart {restarted:?}; status, flows and metrics after a reload {took:?}"
    );
}
