//! The kernel and its file systems.

use std::{fs, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::{sys::utsname::uname, unistd::geteuid};

use super::Report;
use crate::{control::chain, dataplane};

/// The oldest kernel that the program is made for.
const OLDEST: (u32, u32) = (6, 1);
const BTF: &str = "/sys/kernel/btf/vmlinux";
const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";

pub(super) fn check(pin_dir: &Path, report: &mut Report) {
    check_version(report);
    if geteuid().is_root() {
        report.ok("rights", None, "root");
    } else {
        report.warn(
            "rights",
            None,
            "not root",
            "run as root: without CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON much cannot be looked at",
        );
    }
    check_features(report);
    match dataplane::rehearse() {
        Ok(took) => report.ok(
            "program",
            None,
            format!("the kernel takes it, in {} ms", took.as_millis()),
        ),
        Err(error) => report.fail(
            "program",
            None,
            chain(&error).replace('\n', " "),
            "as root on Linux 6.1 or newer it should be taken",
        ),
    }
    if Path::new(BTF).exists() {
        report.ok("btf", None, BTF);
    } else {
        report.fail(
            "btf",
            None,
            format!("no {BTF}"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y; those of distributions have it",
        );
    }
    match fs::read_to_string(JIT).map(|text| text.trim().to_owned()) {
        Ok(off) if off == "0" => report.warn(
            "jit",
            None,
            "programs are interpreted, which is several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Ok(_) => report.ok("jit", None, "programs are compiled"),
        // A kernel that is always compiling has no such key in other namespaces than the first.
        Err(_) => {}
    }
    match dataplane::check_bpffs(pin_dir) {
        Ok(()) => report.ok("bpffs", None, pin_dir.display()),
        Err(error) => report.fail_for("bpffs", None, &chain(&error)),
    }
}

fn check_version(report: &mut Report) {
    let Ok(names) = uname() else {
        return;
    };
    let release = names.release().to_string_lossy();
    let (major, minor) = OLDEST;
    match version(&release) {
        Some(found) if found < OLDEST => report.fail(
            "kernel",
            None,
            format!("Linux {release}"),
            format!("use Linux {major}.{minor} or newer"),
        ),
        _ => report.ok("kernel", None, format!("Linux {release}")),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the program is made of, asked for one by one: so that it is known what is missing if the whole is refused.
fn check_features(report: &mut Report) {
    let mut missing = Vec::new();
    let mut unknown = None;
    let mut note = |name: &str, supported: Result<bool, String>| match supported {
        Ok(true) => {}
        Ok(false) => missing.push(name.to_owned()),
        Err(error) => unknown = Some(error),
    };
    note(
        "XDP programs",
        is_program_supported(ProgramType::Xdp).map_err(|error| chain(&error)),
    );
    for (name, kind) in [
        ("arrays", MapType::Array),
        ("arrays for each CPU", MapType::PerCpuArray),
        ("ring buffers", MapType::RingBuf),
    ] {
        note(name, is_map_supported(kind).map_err(|error| chain(&error)));
    }
    for (name, helper) in [
        ("bpf_jiffies64", BpfHelper::BPF_FUNC_jiffies64),
        ("bpf_xdp_adjust_head", BpfHelper::BPF_FUNC_xdp_adjust_head),
        ("bpf_redirect", BpfHelper::BPF_FUNC_redirect),
        ("bpf_xdp_load_bytes", BpfHelper::BPF_FUNC_xdp_load_bytes),
        ("bpf_ringbuf_reserve", BpfHelper::BPF_FUNC_ringbuf_reserve),
    ] {
        let supported = is_helper_supported(ProgramType::Xdp, helper);
        note(name, supported.map_err(|error| chain(&error)));
    }
    if !missing.is_empty() {
        report.fail(
            "features",
            None,
            format!("the kernel lacks {}", missing.join(", ")),
            "use Linux 6.1 or newer with CONFIG_BPF_SYSCALL=y",
        );
    } else if let Some(error) = unknown {
        report.warn(
            "features",
            None,
            format!("cannot be asked for: {error}"),
            "run as root",
        );
    } else {
        report.ok("features", None, "the kernel has all that the program uses");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_tells_its_version() {
        assert_eq!(version("6.18.0-rc1+"), Some((6, 18)));
        assert_eq!(version("6.1.0-31-amd64"), Some((6, 1)));
        assert_eq!(version("mine"), None);
    }
}
