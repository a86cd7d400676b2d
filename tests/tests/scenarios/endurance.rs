//! All that may change, over and over: the short form of `cargo xtask churn`, which tells in four minutes and more whether memory grows too.

use std::process::Command;

use sluice_tests::Turn;

#[test]
fn everything_changes_over_and_over_and_no_flow_breaks() {
    let _turn = Turn::shared();
    let status = Command::new(env!("CARGO_BIN_EXE_churn"))
        .args(["--seconds", "40"])
        .status()
        .expect("cargo built it");
    assert!(status.success(), "{status}");
}
