//! Thousands of checks a second on one core, on time.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use sluice::{
    config::{Check, Health, HttpCheck, Statuses, Tls},
    health::{Checker, State, Target},
};
use sluice_tests::Turn;
use tokio::sync::{mpsc, watch};

const BACKENDS: u32 = 4000;
const SECONDS: u64 = if cfg!(debug_assertions) { 3 } else { 5 };
const PORT: u16 = 8080;

#[test]
fn four_thousand_tcp_checks_a_second_keep_their_time_on_one_core() {
    measure("tcp", Check::Tcp { port: PORT });
}

#[test]
fn four_thousand_http_checks_a_second_keep_their_time_on_one_core() {
    measure(
        "http",
        Check::Http(HttpCheck {
            tls: Tls::Off,
            port: PORT,
            path: "/".into(),
            host: None,
            status: Statuses::new(vec![200..=299]),
            body: Some("ok".into()),
        }),
    );
}

#[test]
fn four_thousand_echo_checks_a_second_keep_their_time_on_one_core() {
    measure("icmp", Check::Icmp);
}

/// Each backend is a loopback address of a namespace of its own; the server is real. All of loopback's work for both
/// ends is counted for the checks, because it is done when they send.
fn measure(name: &'static str, check: Check) {
    // A core is measured, and its thread is known by its name.
    let _turn = Turn::alone();
    // The namespace goes with the threads in it.
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests are run by root");
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.expect("ip runs").success());
        let accepted = serve();
        let (_targets, targets) = watch::channel(Arc::new(targets(&check)));
        let (transitions, mut seen) = mpsc::channel(BACKENDS as usize);
        let before = health_threads();
        let checker = Checker::start(targets, transitions, Arc::default()).unwrap();
        let thread = loop {
            let new = health_threads().into_iter().find(|id| !before.contains(id));
            if let Some(new) = new {
                break new;
            }
        };

        let all_up = || {
            let snapshot = checker.snapshot().borrow().clone();
            let up = snapshot.values().filter(|status| status.state == State::Up);
            up.count() == BACKENDS as usize
        };
        let started = Instant::now();
        while !all_up() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "not all are up"
            );
            thread::sleep(Duration::from_millis(50));
        }
        let _start = checker.load().take_lateness();
        while seen.try_recv().is_ok() {}
        let (checks, cpu, at) = (checker.load().checks(), cpu_ms(thread), Instant::now());
        thread::sleep(Duration::from_secs(SECONDS));
        let (checks, cpu) = (checker.load().checks() - checks, cpu_ms(thread) - cpu);
        let late = checker.load().take_lateness();
        let ms = at.elapsed().as_millis();
        println!(
            "figure: {name}: {checks} checks in {ms} ms ({} connections), {}.{}% of a core, {} us each, the latest {late:?} late",
            accepted.load(Ordering::Relaxed),
            u128::from(cpu) * 100 / ms,
            u128::from(cpu) * 1000 / ms % 10,
            cpu * 1000 / checks
        );
        assert!(seen.try_recv().is_err(), "the state of one changed");
        let expected = u64::from(BACKENDS) * SECONDS;
        assert!(checks >= expected * 95 / 100, "{checks} of {expected}");
        assert!(u128::from(cpu) < ms, "{cpu} ms of CPU in {ms} ms");
        assert!(late < Duration::from_millis(500), "{late:?}");
    };
    thread::spawn(inside).join().unwrap();
}

fn targets(check: &Check) -> Vec<Target> {
    let health = Health {
        check: check.clone(),
        interval: Duration::from_secs(1),
        // What is not up yet is asked no more often: twice the checks are more than a core does in a debug build.
        fast_interval: Duration::from_secs(1),
        jitter: Duration::from_millis(100),
        // A busy machine is no reason to fail.
        timeout: Duration::from_secs(1),
        rise: 2,
        fall: 3,
        via_tunnel: false,
    };
    let target = |n| Target {
        pool: "web".into(),
        address: IpAddr::V4(Ipv4Addr::from_bits(0x7f01_0000 + n)),
        health: health.clone(),
        via: None,
    };
    (0..BACKENDS).map(target).collect()
}

/// Answers every connection, on two threads.
fn serve() -> Arc<AtomicU64> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    for _ in 0..2 {
        let (listener, accepted) = (listener.try_clone().unwrap(), accepted.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.fetch_add(1, Ordering::Relaxed);
                answer(stream);
            }
        });
    }
    accepted
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    // One that only connects resets, and reads nothing.
    if matches!(stream.read(&mut request), Ok(1..)) {
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
}

/// Ids of the threads of this process that check.
fn health_threads() -> Vec<u32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let ids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let name = fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        name.is_ok_and(|name| name.trim() == "health")
    })
    .collect()
}

/// What a thread has used, to 10 ms.
fn cpu_ms(thread: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * 10
}
