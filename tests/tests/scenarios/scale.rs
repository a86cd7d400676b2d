//! Many VIPs and backends: how long a reload takes, and what the daemon needs for them.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use sluice_tests::{Lab, Node};

/// Tests run in a debug build on a shared machine; the release build's figures are in the performance page.
pub(crate) const DEBUG_SLOWER: u32 = if cfg!(debug_assertions) { 6 } else { 1 };

/// No checks, as an inline table.
const UNCHECKED: &str = r#"{ kind = "none" }"#;

/// `vips` VIPs over `pools` pools of `backends` backends each, all of them in [`BACKENDS`].
fn many(node: &Node, vips: usize, pools: usize, backends: usize, health: &str) -> String {
    let standard = node.config_text(&empty());
    let mut text = standard;
    for pool in 0..pools {
        let _ = write!(
            text,
            "\n[[pool]]\nname = \"pool{pool}\"\nhealth = {health}\n"
        );
        for backend in 0..backends {
            let number = pool * backends + backend;
            let _ = write!(
                text,
                "[[pool.backend]]\naddress = \"10.{}.{}.{}\"\n",
                100 + number / 62_500,
                number / 250 % 250,
                number % 250 + 1
            );
        }
    }
    for vip in 0..vips {
        let _ = write!(
            text,
            "\n[[vip]]\nname = \"vip{vip}\"\naddress = \"203.0.{}.{}\"\nprotocol = \"tcp\"\nport = {}\npool = \"pool{}\"\nforward = \"ipip\"\n",
            113 + vip / 250,
            vip % 250 + 1,
            1 + vip % 60_000,
            vip % pools
        );
    }
    text
}

/// What holds the first 4,000 backends.
const BACKENDS: &str = "10.100.0.0/19";

/// No pools, no VIPs: the rest of the file.
fn empty() -> sluice_tests::Config {
    sluice_tests::Config {
        pools: Vec::new(),
        vips: Vec::new(),
        extra: String::new(),
        exact_limits: 16_384,
        source_prefixes: 16_384,
        flows: 65_536,
        dataplane: String::new(),
        api: String::new(),
    }
}

#[test]
fn a_thousand_vips_and_four_thousand_backends_need_little_memory() {
    let lab = Lab::new().alone().backends(["b1"]).build();
    lab.many_backends("b1", BACKENDS);
    let node = lab.node();
    let checked =
        r#"{ kind = "tcp", port = 80, interval = "5s", timeout = "2s", rise = 1, fall = 3 }"#;
    node.write_config(&many(node, 1000, 40, 100, checked));
    node.daemon().start();
    sluice_tests::within(
        Duration::from_secs(60),
        "all VIPs stand, all backends are up",
        || {
            let status = node.sluice("status --json").json();
            status["vips"] == 1000 && status["backends_up"] == 4000
        },
    );
    std::thread::sleep(Duration::from_secs(3));
    let (anonymous, resident) = node.daemon().memory_mib();
    println!(
        "figure: daemon with 1,000 VIPs, 4,000 checked backends: {anonymous} MiB of its own, {resident} MiB with mapped tables"
    );
    assert!(anonymous < 60, "{anonymous} MiB");
}

#[test]
fn a_reload_of_a_thousand_vips_is_quick() {
    let lab = Lab::new().alone().build();
    let node = lab.node();
    node.write_config(&many(node, 1000, 1, 100, UNCHECKED));
    node.daemon().start();
    sluice_tests::eventually("all VIPs stand", || {
        node.sluice("status --json").json()["vips"] == 1000
    });
    let mut took = Vec::new();
    for backends in [99, 100, 98] {
        node.write_config(&many(node, 1000, 1, backends, UNCHECKED));
        let start = Instant::now();
        node.daemon().reload().succeeds();
        took.push(start.elapsed());
    }
    println!("figure: reload of 1,000 VIPs x 100 backends: {took:?}");
    let slowest = took.iter().max().expect("three reloads");
    assert!(*slowest < Duration::from_secs(1) * DEBUG_SLOWER, "{took:?}");
}

#[test]
fn a_scrape_of_a_thousand_vips_and_four_thousand_backends_is_quick() {
    let lab = Lab::new().alone().build();
    let node = lab.node();
    let mut text = many(node, 1000, 40, 100, UNCHECKED);
    text += "\n[[policy]]\nname = \"some\"\nmode = \"enforce\"\nlimits = [{ class = \"syn\", per = \"host\", pps = 100, burst = 100 }]\n";
    let text = text.replacen("[[vip]]\n", "[[vip]]\npolicy = \"some\"\n", 1);
    node.write_config(&text);
    node.daemon().start();
    sluice_tests::within(Duration::from_secs(60), "all VIPs stand", || {
        node.sluice("status --json").json()["ready"] == true
    });
    let mut took: Vec<Duration> = (0..21)
        .map(|_| {
            let start = Instant::now();
            let text = node.metrics();
            let took = start.elapsed();
            let series = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
            // Packets for no VIP are counted too.
            assert_eq!(series("sluice_packets_total{"), 3003);
            assert_eq!(series("sluice_backend_packets_total{"), 4000);
            took
        })
        .collect();
    took.sort_unstable();
    println!(
        "figure: scrape of 1,000 VIPs, 4,000 backends: median {:?}, slowest {:?}",
        took[10], took[20]
    );
    assert!(
        took[10] < Duration::from_millis(50) * DEBUG_SLOWER,
        "{took:?}"
    );
}
