//! The demo keeps its promises, and leaves nothing behind, however it ends.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sluice_tests::{Turn, eventually};

const PROMISES: usize = 9;

/// A demo that writes into a pipe.
fn demo() -> Child {
    Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--seconds", "15"])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Namespaces, pins, files and programs of a demo's lab.
fn traces(pid: u32) -> Vec<String> {
    let prefix = format!("sluice-lab-{pid}-");
    let mut traces: Vec<String> = ["/run/netns", "/sys/fs/bpf", "/tmp"]
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains(&prefix))
        .collect();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    traces.extend(
        processes
            .filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok())
            .filter(|line| line.contains(&prefix)),
    );
    traces
}

/// Sends a signal when the demo says `line`, and returns how it ended.
fn interrupted_at(line: &str, signal: Signal) -> (u32, ExitStatus) {
    let mut demo = demo();
    let mut says = BufReader::new(demo.stdout.take().unwrap()).lines();
    assert!(says.any(|said| said.unwrap().contains(line)), "{line}");
    assert!(!traces(demo.id()).is_empty(), "the lab can be seen");
    kill(Pid::from_raw(demo.id().try_into().unwrap()), signal).unwrap();
    // It may not end before it has said all.
    says.for_each(drop);
    (demo.id(), demo.wait().unwrap())
}

#[test]
fn the_demo_keeps_its_promises_and_leaves_nothing() {
    let _turn = Turn::alone_for_a_child();
    let mut demo = demo();
    let mut said = String::new();
    demo.stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    let status = demo.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    let (_, summary) = said.split_once("\nSummary\n").unwrap();
    assert_eq!(summary.matches("  kept ").count(), PROMISES, "{said}");
    assert!(!summary.contains("BROKEN"), "{said}");
    assert!(
        said.contains("good ") && said.contains("ns/packet"),
        "{said}"
    );
    assert_eq!(traces(demo.id()), [""; 0]);
}

#[test]
fn a_signal_ends_the_demo_and_its_lab() {
    let _turn = Turn::shared();
    for (line, signal) in [
        ("act 1:", Signal::SIGINT),
        ("now the flood comes", Signal::SIGTERM),
    ] {
        let (pid, status) = interrupted_at(line, signal);
        assert_eq!(status.code(), Some(130), "{signal}");
        assert_eq!(traces(pid), [""; 0], "{signal}");
    }
}

#[test]
fn clean_removes_what_a_killed_demo_left() {
    let _turn = Turn::shared();
    let (pid, status) = interrupted_at("act 1:", Signal::SIGKILL);
    assert_eq!(status.code(), None);
    // It fails if another lab runs at the same time, which it leaves alone.
    Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--clean")
        .output()
        .unwrap();
    eventually("nothing is left", || traces(pid).is_empty());
}
