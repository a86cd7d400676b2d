//! Compiles the data plane (`lb-ebpf`) for the kernel, so that `include_bytes!` can embed it.
//!
//! Cargo is called anew, because the target (`bpfel-unknown-none`) needs a core library built from source.
//! `cargo xtask setup` installs what this needs; here it is only found, never installed.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

const OBJECTS: [&str; 3] = ["balancer", "decap", "bench"];

/// What cargo tells this build about the host; the inner build must not inherit it.
const INHERITED: [&str; 9] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO",
];

fn main() {
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("lb/ is in the workspace")
        .to_path_buf();
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
        panic!("no Rust toolchain with library source found (tried {tried}); run `cargo xtask setup`, which says what is missing")
    });
    let built = compile(&toolchain, &workspace, &out.join("bpf"));
    for object in OBJECTS {
        let from = built.join(object);
        std::fs::copy(&from, out.join(format!("{object}.o")))
            .unwrap_or_else(|error| panic!("cannot copy {}: {error}", from.display()));
    }
}

/// Builds the kernel objects and returns the folder that holds them.
fn compile(toolchain: &Toolchain, workspace: &Path, target_dir: &Path) -> PathBuf {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target's architecture");
    let home = env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--remap-path-prefix={}=/sluice", workspace.display()),
        format!("--remap-path-prefix={}=/cargo", home.display()),
        format!(
            "--remap-path-prefix={}=/sysroot",
            toolchain.sysroot.display()
        ),
    ]
    .join("\u{1f}");

    let mut cargo = Command::new(&toolchain.cargo);
    for name in INHERITED {
        cargo.env_remove(name);
    }
    let status = cargo
        .current_dir(workspace)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags)
        .args([
            "build",
            "--package",
            "sluice-ebpf",
            "--bins",
            "--profile",
            "bpf",
            "--locked",
        ])
        .args([
            "-Zbuild-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(target_dir)
        .status()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", toolchain.cargo.display()));
    assert!(
        status.success(),
        "the data plane did not compile; if its linker is missing, run `cargo xtask setup`"
    );
    target_dir.join("bpfel-unknown-none/bpf")
}

/// A compiler whose sysroot holds the source of the core library.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
}

impl Toolchain {
    /// The first that will do: `SLUICE_BPF_TOOLCHAIN` (a prefix that holds `bin/rustc`), rustup's, the system's.
    fn find() -> Result<Self, String> {
        let named = env::var_os("SLUICE_BPF_TOOLCHAIN").map(PathBuf::from);
        let rustup = ["nightly", "stable"].iter().filter_map(|name| {
            let output = Command::new("rustup")
                .args(["run", name, "rustc", "--print", "sysroot"])
                .output()
                .ok()?;
            Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
        });
        let prefixes = named
            .into_iter()
            .chain(rustup)
            .chain([PathBuf::from("/usr")]);
        let mut tried = Vec::new();
        for prefix in prefixes {
            let (cargo, rustc) = (prefix.join("bin/cargo"), prefix.join("bin/rustc"));
            let source = prefix.join("lib/rustlib/src/rust/library/core/Cargo.toml");
            if cargo.exists() && rustc.exists() && source.exists() {
                return Ok(Self {
                    cargo,
                    rustc,
                    sysroot: prefix,
                });
            }
            tried.push(prefix.display().to_string());
        }
        Err(tried.join(", "))
    }
}
