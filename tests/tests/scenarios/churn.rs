//! All that may change, over and over: the short form of `cargo xtask churn`.

use std::process::Command;

use sluice_tests::Turn;

#[test]
fn no_flow_breaks_and_nothing_grows_while_everything_changes() {
    let _turn = Turn::shared();
    let status = Command::new(env!("CARGO_BIN_EXE_churn"))
        .args(["--seconds", "40"])
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
