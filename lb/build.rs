//! Compiles the data plane (`lb-ebpf`) for the kernel, so that `include_bytes!` can embed it.
//!
//! Cargo is called anew, because the target (`bpfel-unknown-none`) needs a core library built from source.
//! `cargo xtask setup` installs what this needs; here it is only found, never installed.

#[path = "build/objects.rs"]
mod objects;

use std::{
    env,
    path::{Path, PathBuf},
};

use objects::{OBJECTS, Toolchain};

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("lb/ is in the workspace");
    for input in [
        "lb-ebpf/src",
        "lb-ebpf/Cargo.toml",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!("cargo::rerun-if-env-changed=SLUICE_BPF_TOOLCHAIN");

    let toolchain = Toolchain::find().unwrap_or_else(|tried| {
        panic!("no compiler for the kernel found ({tried}); `cargo xtask setup` installs one")
    });
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target's architecture");
    let built = objects::compile(&toolchain, workspace, &shared(&out).join("bpf"), &arch)
        .unwrap_or_else(|why| panic!("{why}"));
    for object in OBJECTS {
        let from = built.join(object);
        std::fs::copy(&from, out.join(format!("{object}.o")))
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
    }
}

/// Clippy runs this script in a folder of its own; beside all such folders (`<profile>/build/<package>/out`), the objects
/// are built once for both.
fn shared(out: &Path) -> &Path {
    out.ancestors().nth(3).unwrap_or(out)
}
