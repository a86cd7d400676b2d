//! A reload loses nothing: what comes in is counted, frame by frame, where it leaves.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::Value;
use sluice_tests::{Config, Lab, Netns, UDP_PORT, eventually};

/// Frames of one batch, and what lies between two: 16,000 a second, which the cables of the lab carry.
const BATCH: usize = 16;
const PAUSE: Duration = Duration::from_millis(1);
const RELOADS: usize = 30;

/// Weights, a policy and a VIP that come and go.
fn changed(mut config: Config, turn: usize) -> Config {
    if turn.is_multiple_of(2) {
        config.pools[0].backends[0].extra = "weight = 5\n".to_owned();
    }
    if turn.is_multiple_of(3) {
        let mut more = config.vips[2].clone();
        (more.name, more.port) = ("more".to_owned(), Some(5353));
        config.vips.push(more);
    }
    if turn.is_multiple_of(5) {
        config = config.policy(
            "enforce",
            r#"[{ class = "udp", per = "network", pps = 1000000, burst = 1000000 }]"#,
        );
    }
    config
}

fn count_datagrams(netns: &Netns) {
    let rules = format!(
        "add table inet count; add chain inet count in {{ type filter hook prerouting priority 0; }}; add rule inet count in udp dport {UDP_PORT} counter"
    );
    netns.command("nft", &[&rules]);
}

fn counted(netns: &Netns) -> u64 {
    let listed = netns.command("nft", &["-j", "list", "chain", "inet", "count", "in"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let entries = listed["nftables"].as_array().unwrap().iter();
    let mut expressions = entries.filter_map(|entry| entry["rule"]["expr"].as_array());
    let expressions = expressions.next().unwrap().iter();
    let mut counters = expressions.filter_map(|one| one["counter"]["packets"].as_u64());
    counters.next().unwrap()
}

#[test]
fn thirty_reloads_under_load_lose_not_one_packet() {
    let lab = Lab::new().alone().start();
    lab.backends()
        .iter()
        .for_each(|backend| count_datagrams(backend.netns()));
    let frames = lab
        .node()
        .frames()
        .udp_flood("198.18.0.0/15".parse().unwrap(), 4096);
    let cable = lab.uplink_sender();
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            for batch in frames.chunks(BATCH).cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                sent += cable.send_many(batch).unwrap();
                thread::sleep(PAUSE);
            }
            sent as u64
        });
        for turn in 0..RELOADS {
            lab.reload(&changed(lab.config(), turn)).succeeds();
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
        sending.join().unwrap()
    });
    let came = || {
        let vips = lab.node().items("vips");
        let dns = vips.iter().find(|vip| vip["name"] == "dns4").unwrap();
        dns["packets"].as_u64().unwrap()
    };
    let arrived = || -> u64 {
        let backends = lab.backends().iter();
        backends.map(|backend| counted(backend.netns())).sum()
    };
    println!("{sent} sent during {RELOADS} reloads, {} came", came());
    eventually("all that was sent came", || came() == sent);
    eventually("all that came arrived", || arrived() == sent);
    assert!(lab.node().items("drops").is_empty());
}

#[test]
fn a_daemon_that_reads_a_slow_list_does_all_else_and_ends_at_once() {
    let lab = Lab::new().start();
    let list = lab.node().state_dir().join("list");
    mkfifo(&list, Mode::S_IRWXU).unwrap();
    let mut config = lab.config();
    config.extra = format!("[[deny]]\nname = \"list\"\nfile = {list:?}\n");
    lab.write_config(&config);
    let reader = || {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let mut file = None;
        eventually("the list is read", || {
            file = options.open(&list).ok();
            file.is_some()
        });
        file.unwrap()
    };
    let denies = |address: &str| {
        let list = format!("deny list --covers {address}");
        !lab.node().items(&list).is_empty()
    };
    lab.daemon().hup();
    let mut file = reader();
    // More than the ten beats after which a task is thought to hang.
    lab.daemon().hup();
    thread::sleep(Duration::from_secs(12));
    let set = lab.sluice("limit set --prefix 203.0.113.0/24 --class udp --pps 10");
    set.succeeds();
    file.write_all(b"192.0.2.0/24\n").unwrap();
    drop(file);
    eventually("the first list is in force", || denies("192.0.2.1"));
    reader().write_all(b"198.51.100.0/24\n").unwrap();
    eventually("the second list is in force", || denies("198.51.100.1"));
    assert!(!denies("192.0.2.1"));
    let status = lab.sluice("status --json").succeeds().json();
    let mut tasks = status["tasks"].as_array().unwrap().iter();
    assert!(tasks.all(|task| task["restarts"] == 0), "{status}");

    lab.daemon().hup();
    let _file = reader();
    let begun = Instant::now();
    lab.daemon().stop();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}
