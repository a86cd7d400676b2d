//! Where the machine forbids what the lab needs, `cargo xtask test` says what lacks, and ends before it builds anything.

use std::process::{Command, Output};

/// Runs the lab's tests, of which none has such a name, as root without some capabilities.
fn test_without(capabilities: &str) -> Output {
    Command::new("setpriv")
        .arg(format!("--bounding-set={capabilities}"))
        .arg(env!("CARGO_BIN_EXE_xtask"))
        .args(["test", "no_test_has_this_name"])
        .output()
        .expect("setpriv is there, and tests are run by root")
}

#[test]
fn a_run_without_the_rights_that_it_needs_fails_and_names_them() {
    for (without, lacking) in [
        ("-bpf", "no CAP_BPF"),
        ("-net_admin", "no CAP_NET_ADMIN"),
        ("-net_admin,-bpf", "no CAP_NET_ADMIN, CAP_BPF"),
        (
            "-all",
            "no CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF",
        ),
    ] {
        let output = test_without(without);
        let [said, error] = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
        assert_eq!(output.status.code(), Some(1), "{without}: {said}{error}");
        let line = format!("setup: capabilities MISSING: {lacking}");
        assert!(said.lines().any(|told| told == line), "{without}: {said}");
        assert!(!said.contains("==="), "a stage was begun: {said}");
        assert_eq!(error.trim(), "error: this machine lacks: capabilities");
    }
}
