//! Finds what building and testing need, installs what is missing, and says in one line each what it found.

use anyhow::{Result, bail};

use crate::{
    machine::{self, Tools},
    objects::Toolchain,
};

/// What the machine is needed for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To compile.
    Build,
    /// To load programs and to make namespaces too.
    Lab,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Check,
    Install,
}

/// Makes the machine ready for `scope`, or fails and prints the commands that would.
///
/// Installs only as root and with apt: elsewhere the package names would be guesses.
pub(crate) fn setup(scope: Scope, mode: Mode) -> Result<()> {
    let may_install = mode == Mode::Install && machine::is_root() && machine::has("apt-get");
    let mut missing = Vec::new();
    for need in NEEDS {
        if scope == Scope::Build && need.scope == Scope::Lab {
            continue;
        }
        let mut found = (need.look)();
        if let (true, Err(why), Some(install)) = (may_install, &found, need.install) {
            println!("setup: {:12} {why}; installing", need.name);
            if let Err(error) = install() {
                println!("setup: {:12} installing failed: {error:#}", need.name);
            }
            found = (need.look)();
        }
        match found {
            Ok(what) => println!("setup: {:12} {what}", need.name),
            Err(why) => {
                println!("setup: {:12} MISSING: {why}", need.name);
                missing.push(need);
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("\nTo set this machine up (apt-get and mount as root):");
    for need in &missing {
        println!("    {}", (need.by_hand)());
    }
    let names: Vec<_> = missing.iter().map(|need| need.name).collect();
    bail!("this machine lacks: {}", names.join(", "))
}

struct Need {
    name: &'static str,
    scope: Scope,
    /// What was found, or what is wrong.
    look: fn() -> Result<String, String>,
    install: Option<fn() -> Result<()>>,
    /// The command for somebody to type.
    by_hand: fn() -> String,
}

/// In this order: the linker is tried with the compiler's LLVM.
const NEEDS: [Need; 7] = [
    Need {
        name: "compiler",
        scope: Scope::Build,
        look: find_compiler,
        install: Some(install_compiler),
        by_hand: || {
            format!(
                "apt-get install {}     # or: rustup component add rust-src",
                COMPILER_PACKAGES.join(" ")
            )
        },
    },
    Need {
        name: "linker",
        scope: Scope::Build,
        look: find_linker,
        install: Some(install_linker),
        by_hand: || {
            let settings = LINKER_SETTINGS.map(|(name, value)| format!("{name}={value}"));
            format!(
                "{} cargo {}",
                settings.join(" "),
                linker_arguments().join(" ")
            )
        },
    },
    Need {
        name: "kernel",
        scope: Scope::Lab,
        look: find_kernel,
        install: None,
        by_hand: || "# boot Linux 6.1 or newer, built with CONFIG_DEBUG_INFO_BTF=y".into(),
    },
    Need {
        name: "capabilities",
        scope: Scope::Lab,
        look: machine::capabilities,
        install: None,
        by_hand: || {
            "# call this task as root, outside of an unprivileged container: namespaces and BPF need it".into()
        },
    },
    Need {
        name: "bpffs",
        scope: Scope::Lab,
        look: find_bpffs,
        install: Some(|| machine::succeed("mount", &["-t", "bpf", "bpf", BPFFS], &[])),
        by_hand: || format!("mount -t bpf bpf {BPFFS}"),
    },
    Need {
        name: "lab tools",
        scope: Scope::Lab,
        look: find_lab_tools,
        install: Some(|| machine::apt_install(&LAB_TOOLS.missing_packages())),
        by_hand: || format!("apt-get install {}", LAB_TOOLS.missing_packages().join(" ")),
    },
    Need {
        name: "prometheus",
        scope: Scope::Lab,
        look: find_prometheus,
        install: Some(|| machine::apt_unpack("prometheus", &PROMETHEUS)),
        by_hand: || {
            "apt-get download prometheus && dpkg -x prometheus_*.deb prometheus && cp prometheus/usr/bin/* ~/.cargo/bin/"
                .into()
        },
    },
];

const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const LINKER_VERSION: &str = "0.10.3";
/// A linker built in a minute is worth more here than a fast one: it runs for a second.
const LINKER_SETTINGS: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
];
const BPFFS: &str = "/sys/fs/bpf";
const LAB_TOOLS: Tools = Tools(&[
    ("ip", "iproute2"),
    ("ethtool", "ethtool"),
    ("tcpdump", "tcpdump"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("scapy", "python3-scapy"),
    ("tshark", "tshark"),
    ("systemd-analyze", "systemd"),
]);

/// Both are of one package. Installed, it would start a service, now and at every boot; its programs are all that is
/// needed, and lie beside the linker.
const PROMETHEUS: [&str; 2] = ["prometheus", "promtool"];

fn find_compiler() -> Result<String, String> {
    let toolchain = Toolchain::find()
        .map_err(|tried| format!("none that can build for the kernel ({tried})"))?;
    Ok(format!(
        "{} with library source, {}",
        toolchain.version(),
        toolchain.sysroot.display()
    ))
}

/// Debian's compiler if its version will do, or else the library source of rustup's.
fn install_compiler() -> Result<()> {
    if machine::apt_has(
        COMPILER_PACKAGES[0],
        machine::version(env!("CARGO_PKG_RUST_VERSION")),
    )? {
        machine::apt_install(&COMPILER_PACKAGES)
    } else {
        // Where rustup's server cannot be reached, it would try for minutes.
        machine::succeed(
            "timeout",
            &["120", "rustup", "component", "add", "rust-src"],
            &[],
        )
    }
}

fn find_linker() -> Result<String, String> {
    let wanted = format!("bpf-linker {LINKER_VERSION}");
    let version = machine::output("bpf-linker", &["--version"])
        .ok_or_else(|| format!("no {wanted} in PATH or ~/.cargo/bin"))?;
    if version != wanted {
        return Err(format!("{version} is there, {wanted} is needed"));
    }
    let Ok(toolchain) = Toolchain::find() else {
        return Ok(format!("{version}, not tried for lack of a compiler"));
    };
    machine::try_linker(&toolchain)
        .map_err(|error| format!("{version} does not link: {error:#}"))?;
    Ok(format!("{version}, links with the compiler's LLVM"))
}

fn linker_arguments() -> [&'static str; 6] {
    [
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--force",
    ]
}

fn install_linker() -> Result<()> {
    machine::succeed("cargo", &linker_arguments(), &LINKER_SETTINGS)
}

fn find_kernel() -> Result<String, String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|error| format!("cannot tell its version: {error}"))?;
    let release = release.trim();
    if machine::version(release) < Some((6, 1)) {
        return Err(format!("Linux {release}, 6.1 or newer is needed"));
    }
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(format!("Linux {release} has no /sys/kernel/btf/vmlinux"));
    }
    Ok(format!("Linux {release} with BTF"))
}

fn find_bpffs() -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/mounts")
        .map_err(|error| format!("cannot read /proc/mounts: {error}"))?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if mounted {
        Ok(format!("mounted at {BPFFS}"))
    } else {
        Err(format!("not mounted at {BPFFS}"))
    }
}

fn find_lab_tools() -> Result<String, String> {
    let missing = LAB_TOOLS.missing();
    if missing.is_empty() {
        let bpftool = if machine::has("bpftool") {
            "bpftool too"
        } else {
            "without bpftool, which is optional"
        };
        return Ok(format!("{} ({bpftool})", LAB_TOOLS.names().join(", ")));
    }
    Err(format!("no {}", missing.join(", ")))
}

fn find_prometheus() -> Result<String, String> {
    let missing: Vec<_> = PROMETHEUS
        .into_iter()
        .filter(|program| !machine::has(program))
        .collect();
    if !missing.is_empty() {
        return Err(format!("no {} in PATH or ~/.cargo/bin", missing.join(", ")));
    }
    let said = machine::output("promtool", &["--version"])
        .ok_or_else(|| String::from("promtool does not run"))?;
    let version = said.split_whitespace().nth(2).unwrap_or("of some version");
    Ok(format!("{version} with promtool"))
}
