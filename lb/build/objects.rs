//! Finds a compiler for the kernel's side and builds the BPF objects with it: the one recipe, for `build.rs` and for `cargo xtask`.

use std::{
    env, fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

mod btf;

/// The programs of `lb-ebpf`, each an object of its own.
pub(crate) const OBJECTS: [&str; 5] = ["balancer", "explain", "decap", "backend", "bench"];

/// Builds the objects from `workspace` for a machine of `arch`, and returns the folder that holds them.
///
/// The bytes do not depend on where `workspace`, `target_dir` and the compiler lie: every path in them is replaced.
pub(crate) fn compile(
    toolchain: &Toolchain,
    workspace: &Path,
    target_dir: &Path,
    arch: &str,
) -> Result<PathBuf, String> {
    let mut rustflags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Ctarget-cpu=v3".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    // The last match wins, and `target_dir` often lies inside `workspace`.
    for (path, name) in [
        (workspace, "/sluice"),
        (&cargo_home(), "/cargo"),
        (&toolchain.sysroot, "/sysroot"),
        (target_dir, "/target"),
    ] {
        rustflags.push(format!("--remap-path-prefix={}={name}", path.display()));
    }

    let mut cargo = Command::new(&toolchain.cargo);
    for name in INHERITED {
        cargo.env_remove(name);
    }
    let status = toolchain
        .for_linker(&mut cargo, target_dir)
        .map_err(|error| format!("cannot prepare {}: {error}", target_dir.display()))?
        .current_dir(workspace)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\u{1f}"))
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
        .map_err(|error| format!("cannot run {}: {error}", toolchain.cargo.display()))?;
    if !status.success() {
        let compiler = toolchain.version();
        return Err(format!(
            "the data plane did not compile with {compiler}; if a tool is missing, `cargo xtask setup` installs it"
        ));
    }
    let built = target_dir.join("bpfel-unknown-none/bpf");
    for object in OBJECTS {
        put_in_order(&built.join(object)).map_err(|error| format!("{object}: {error}"))?;
    }
    Ok(built)
}

/// One that is in order already keeps its time of change, by which cargo tells whether it is fresh.
fn put_in_order(object: &Path) -> io::Result<()> {
    let mut bytes = fs::read(object)?;
    let before = bytes.clone();
    if btf::order_forward_types(&mut bytes).is_some() && bytes != before {
        fs::write(object, bytes)?;
    }
    Ok(())
}

/// A compiler whose sysroot holds the source of the core library, and whose LLVM `bpf-linker` can read.
pub(crate) struct Toolchain {
    pub(crate) sysroot: PathBuf,
    cargo: PathBuf,
    rustc: PathBuf,
    /// The LLVM library of this compiler.
    llvm: PathBuf,
}

impl Toolchain {
    /// The first that will do: `SLUICE_BPF_TOOLCHAIN` (a prefix that holds `bin/rustc`), the one that builds this
    /// workspace, rustup's nightly and stable, the system's. An error lists what is wrong with each.
    pub(crate) fn find() -> Result<Self, String> {
        let named = env::var_os("SLUICE_BPF_TOOLCHAIN").map(PathBuf::from);
        let active = sysroot(Command::new(
            env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
        ));
        let rustup = ["nightly", "stable"].iter().filter_map(|name| {
            let mut run = Command::new("rustup");
            run.args(["run", name, "rustc"]);
            sysroot(run)
        });
        let mut tried = Vec::new();
        for prefix in named
            .into_iter()
            .chain(active)
            .chain(rustup)
            .chain([PathBuf::from("/usr")])
        {
            match Self::at(&prefix) {
                Ok(toolchain) => return Ok(toolchain),
                Err(why) => tried.push(format!("{}: {why}", prefix.display())),
            }
        }
        tried.sort();
        tried.dedup();
        Err(tried.join("; "))
    }

    fn at(prefix: &Path) -> Result<Self, String> {
        let (cargo, rustc) = (prefix.join("bin/cargo"), prefix.join("bin/rustc"));
        if !cargo.exists() || !rustc.exists() {
            return Err("no bin/cargo and bin/rustc".into());
        }
        if !prefix
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
        {
            return Err("no library source".into());
        }
        let version = output(Command::new(&rustc).arg("-vV")).ok_or("its rustc does not run")?;
        let llvm = version
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: "))
            .ok_or("its rustc has no LLVM")?;
        if llvm.split('.').next() != Some(LLVM_MAJOR) {
            return Err(format!(
                "it has LLVM {llvm}, and bpf-linker reads LLVM {LLVM_MAJOR}"
            ));
        }
        let llvm = llvm_library(prefix)
            .ok_or_else(|| format!("no shared library of LLVM {LLVM_MAJOR}"))?;
        Ok(Self {
            sysroot: prefix.to_path_buf(),
            cargo,
            rustc,
            llvm,
        })
    }

    /// The compiler's version, as it says it itself.
    pub(crate) fn version(&self) -> String {
        output(Command::new(&self.rustc).arg("--version"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Lets `command` find `bpf-linker`, and `bpf-linker` the LLVM of this compiler; `scratch` may be created.
    ///
    /// The linker loads the first `libLLVM*` of any version that it meets in `LD_LIBRARY_PATH`. A folder with nothing else
    /// in it comes first, so that it never gets another version's.
    pub(crate) fn for_linker<'a>(
        &self,
        command: &'a mut Command,
        scratch: &Path,
    ) -> io::Result<&'a mut Command> {
        let folder = scratch.join("llvm");
        let link = folder.join("libLLVM.so");
        fs::create_dir_all(&folder)?;
        if fs::read_link(&link).ok().as_ref() != Some(&self.llvm) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&self.llvm, &link)?;
        }
        Ok(command
            .env("LD_LIBRARY_PATH", prepended(folder, "LD_LIBRARY_PATH"))
            .env("PATH", prepended(cargo_home().join("bin"), "PATH")))
    }
}

/// The LLVM that bpf-linker is built for.
const LLVM_MAJOR: &str = "22";

/// What cargo tells this build about the host; the inner build must not inherit it.
const INHERITED: [&str; 10] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTUP_TOOLCHAIN",
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "CARGO",
];

/// `libLLVM.so.22.1-rust-1.95.0-stable` in rustup's `lib`, `libLLVM.so.22.1` in Debian's `lib/x86_64-linux-gnu`.
fn llvm_library(prefix: &Path) -> Option<PathBuf> {
    let lib = prefix.join("lib");
    let multiarch = lib.join(format!("{}-linux-gnu", env::consts::ARCH));
    [
        lib.clone(),
        multiarch,
        lib.join(format!("llvm-{LLVM_MAJOR}/lib")),
        lib.join("lib64"),
    ]
    .iter()
    .find_map(|folder| {
        fs::read_dir(folder)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                let name = path
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default();
                name.strip_prefix("libLLVM").is_some_and(|rest| {
                    rest.trim_start_matches(['.', '-', 's', 'o'])
                        .starts_with(LLVM_MAJOR)
                }) && is_elf(path)
            })
    })
}

/// Beside the library lies a linker script with nearly its name.
fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut magic).is_ok())
        && magic == *b"\x7fELF"
}

pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    )
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    output(rustc.args(["--print", "sysroot"])).map(|path| PathBuf::from(path.trim()))
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).ok())
        .flatten()
}

fn prepended(first: PathBuf, variable: &str) -> std::ffi::OsString {
    let rest = env::var_os(variable).unwrap_or_default();
    let rest = env::split_paths(&rest).filter(|path| !path.as_os_str().is_empty());
    env::join_paths([first].into_iter().chain(rest))
        .expect("paths from such a variable fit into one")
}
