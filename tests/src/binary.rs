//! Finding the `sluice` binary under test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// `SLUICE_BIN`, or the one of this workspace in this profile, which cargo brings up to date first.
pub fn sluice() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| env::var_os("SLUICE_BIN").map_or_else(build, PathBuf::from))
}

/// A test binary gets the library of the `sluice` package built, but not its binary.
fn build() -> PathBuf {
    let exe = env::current_exe().expect("this process has a file");
    let profile_dir = exe
        .ancestors()
        .skip(1)
        .find(|dir| !dir.ends_with("deps") && !dir.ends_with("examples"))
        .expect("a binary lies in a directory");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set by the cargo that runs the test. A build script of a dependency is run anew when it changes.
    cargo.env_remove("CARGO_MANIFEST_DIR");
    // There are no examples; but with them cargo takes the features that tests have, and builds no dependency twice.
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args([
        "build",
        "--quiet",
        "--package",
        "sluice",
        "--package",
        "sluice-tests",
        "--bin",
        "sluice",
        "--examples",
    ]);
    cargo.arg("--target-dir").arg(
        profile_dir
            .parent()
            .expect("a profile's directory has a parent"),
    );
    if profile_dir.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo
        .status()
        .unwrap_or_else(|error| panic!("cannot run cargo (or set SLUICE_BIN): {error}"));
    assert!(status.success(), "the sluice binary did not build");
    profile_dir.join("sluice")
}
