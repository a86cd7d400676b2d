//! What the machine has, may do and can install: programs, capabilities, Debian packages, a linker that links.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::objects::{self, Toolchain};

/// Programs, each with the Debian package that holds it.
pub(crate) struct Tools(pub(crate) &'static [(&'static str, &'static str)]);

impl Tools {
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(program, _)| *program).collect()
    }

    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(program, _)| !has(program))
            .map(|(program, _)| *program)
            .collect()
    }

    pub(crate) fn missing_packages(&self) -> Vec<&'static str> {
        self.0
            .iter()
            .filter(|(program, _)| !has(program))
            .map(|(_, package)| *package)
            .collect()
    }
}

/// A command that also finds what `cargo install` put into its folder, and what lies in `sbin`.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", path());
    command
}

pub(crate) fn has(program: &str) -> bool {
    env::split_paths(&path()).any(|folder| folder.join(program).is_file())
}

/// What `program` prints, or nothing if it is absent or fails.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = command(program)
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `program`, of which only the errors are shown, and fails with its name and status.
pub(crate) fn succeed(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<()> {
    let status = command(program)
        .args(arguments)
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        status.success(),
        "`{program} {}`: {status}",
        arguments.join(" ")
    );
    Ok(())
}

pub(crate) fn is_root() -> bool {
    status_field("Uid:").is_some_and(|uids| uids.split_whitespace().nth(1) == Some("0"))
}

/// The capabilities that the lab needs, or the ones that lack.
pub(crate) fn capabilities() -> Result<String, String> {
    let effective = status_field("CapEff:")
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default();
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(_, bit)| effective >> bit & 1 == 0)
        .map(|(name, _)| *name)
        .collect();
    if !lacking.is_empty() {
        return Err(format!("no {}", lacking.join(", ")));
    }
    // A container may hold the capabilities and still be forbidden to make a namespace.
    if output("unshare", &["--net", "--mount", "true"]).is_none() {
        return Err("network and mount namespaces cannot be made".into());
    }
    let names: Vec<_> = CAPABILITIES.iter().map(|(name, _)| *name).collect();
    Ok(format!("{}; namespaces can be made", names.join(", ")))
}

/// The first two numbers of a version such as `6.1.0-13` or `1.96.0+dfsg1`.
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether apt offers `package` in `oldest` or a newer version; asks the mirrors if its lists do not.
pub(crate) fn apt_has(package: &str, oldest: Option<(u32, u32)>) -> Result<bool> {
    let offered = || {
        let policy = output("apt-cache", &["policy", package]).unwrap_or_default();
        let candidate = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .and_then(version);
        candidate.is_some() && candidate >= oldest
    };
    if offered() {
        return Ok(true);
    }
    apt_update()?;
    Ok(offered())
}

/// Installs packages; refreshes apt's lists only if they turn out to be empty or old.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    let mut arguments = vec![
        "-o",
        "DPkg::Lock::Timeout=120",
        "-qq",
        "install",
        "--yes",
        "--no-install-recommends",
    ];
    arguments.extend(packages);
    if succeed("apt-get", &arguments, &APT).is_ok() {
        return Ok(());
    }
    apt_update()?;
    succeed("apt-get", &arguments, &APT)
}

/// Puts programs of a package beside those that `cargo install` made, without installing it: nothing of it is started or
/// set up.
pub(crate) fn apt_unpack(package: &str, programs: &[&str]) -> Result<()> {
    let scratch = env::temp_dir().join(format!("sluice-{package}-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let unpacked = unpack(package, programs, &scratch);
    let _ = fs::remove_dir_all(&scratch);
    unpacked
}

fn unpack(package: &str, programs: &[&str], scratch: &Path) -> Result<()> {
    // As root, apt warns that its own user may not write here; that is fine.
    let download = || {
        command("apt-get")
            .args(["-qq", "download", package])
            .current_dir(scratch)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !download() {
        apt_update()?;
        ensure!(download(), "`apt-get download {package}` failed");
    }
    let archive = fs::read_dir(scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get downloaded no package {package}"))?;
    let root = scratch.join("root");
    let status = command("dpkg").arg("-x").args([&archive, &root]).status()?;
    ensure!(
        status.success(),
        "`dpkg -x {}`: {status}",
        archive.display()
    );
    let folder = objects::cargo_home().join("bin");
    fs::create_dir_all(&folder)?;
    for program in programs {
        let from = root.join("usr/bin").join(program);
        fs::copy(&from, folder.join(program))
            .with_context(|| format!("cannot copy {} to {}", from.display(), folder.display()))?;
    }
    Ok(())
}

/// Links a tiny program with the LLVM of `toolchain`: only this shows that the linker can load it.
pub(crate) fn try_linker(toolchain: &Toolchain) -> Result<()> {
    let scratch = env::temp_dir().join(format!("sluice-linker-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let (input, object) = (scratch.join("probe.ll"), scratch.join("probe.o"));
    let tried = fs::write(&input, PROBE).and_then(|()| {
        let mut linker = Command::new("bpf-linker");
        toolchain.for_linker(&mut linker, &scratch)?;
        linker
            .args(["--target=bpfel", "--export=probe", "--output"])
            .args([&object, &input])
            .output()
    });
    let linked = object.exists();
    let _ = fs::remove_dir_all(&scratch);
    let output = tried.context("it cannot be run")?;
    if linked && output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{}",
        said.lines()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing")
    );
}

/// Their numbers are in `linux/capability.h`.
const CAPABILITIES: [(&str, u32); 5] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

const APT: [(&str, &str); 1] = [("DEBIAN_FRONTEND", "noninteractive")];

const PROBE: &str = "target triple = \"bpfel\"\ndefine i32 @probe() { ret i32 0 }\n";

fn apt_update() -> Result<()> {
    succeed("apt-get", &["-qq", "update"], &APT)
}

fn path() -> OsString {
    let inherited = env::var_os("PATH").unwrap_or_default();
    let folders = [objects::cargo_home().join("bin")]
        .into_iter()
        .chain(env::split_paths(&inherited))
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    env::join_paths(folders).expect("folders of a PATH fit into one")
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_its_first_two_numbers() {
        assert_eq!(version("6.18.44-fc-v595"), Some((6, 18)));
        assert_eq!(version("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(version("1.95"), Some((1, 95)));
        assert_eq!(version("(none)"), None);
        assert!(version("6.1.0") >= Some((6, 1)) && version("5.15.2") < Some((6, 1)));
    }
}
