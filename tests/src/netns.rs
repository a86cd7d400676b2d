//! Network namespaces, and running things in them.

use std::{
    fs::{self, File},
    io::Write,
    panic::resume_unwind,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// A named network namespace. Dropping this leaves it: the lab's traces are removed together.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    pub(crate) fn open(name: String) -> Self {
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).unwrap_or_else(|error| panic!("cannot open {path}: {error}"));
        Self { name, file }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own in this namespace. Sockets, threads and processes that it makes belong there for good.
    ///
    /// `ip netns exec` would do for processes, but it mounts a new /sys and so hides the pins in bpffs.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap_or_else(|error| {
                panic!("cannot enter {} (are you root?): {error}", self.name)
            });
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Runs a command to its end, and returns what it said.
    ///
    /// # Panics
    /// If it fails.
    pub fn command(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(|| Command::new(program).args(arguments).output());
        let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
        assert!(
            output.status.success(),
            "in {}: {program} {arguments:?}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Has an XDP program been attached to this interface?
    pub fn has_xdp(&self, interface: &str) -> bool {
        self.command("ip", &["link", "show", "dev", interface])
            .contains("xdp")
    }

    /// Runs many `ip` commands at the price of one process.
    pub(crate) fn ip(&self, lines: &[String]) {
        self.run(|| ip_batch(lines));
    }

    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) {
        self.run(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{key}");
                fs::write(&path, value)
                    .unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
            }
        });
    }
}

/// Runs `ip -batch` in the namespace of the calling thread.
pub(crate) fn ip_batch(lines: &[String]) {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run ip (install iproute2): {error}"));
    ip.stdin
        .take()
        .expect("stdin is piped")
        .write_all(lines.join("\n").as_bytes())
        .expect("ip reads its batch");
    let output = ip.wait_with_output().expect("ip ends");
    assert!(
        output.status.success(),
        "ip failed: {}of:\n{}",
        String::from_utf8_lossy(&output.stderr),
        lines.join("\n")
    );
}
