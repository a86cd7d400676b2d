//! What a lab leaves on the machine, and taking it away: also when the lab's process died without doing so.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PREFIX: &str = "sluice-lab-";
const NAMESPACES: &str = "/run/netns";
const PINS: &str = "/sys/fs/bpf";
const STATE: &str = "/tmp";

/// The name that everything of one lab begins with; all of it is removed on drop.
#[derive(Debug)]
pub(crate) struct Traces {
    id: String,
}

impl Traces {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{PREFIX}{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let traces = Self { id };
        fs::create_dir(traces.dir())
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", traces.dir().display()));
        traces
    }

    /// For the config, the socket, state and logs.
    pub(crate) fn dir(&self) -> PathBuf {
        Path::new(STATE).join(&self.id)
    }

    /// For the pins of load balancer `node`. Its parent is there; it is not made.
    pub(crate) fn pin_dir(&self, node: usize) -> PathBuf {
        let parent = Path::new(PINS).join(&self.id);
        fs::create_dir_all(&parent).unwrap_or_else(|error| {
            panic!(
                "cannot make {} (is bpffs mounted?): {error}",
                parent.display()
            )
        });
        parent.join(format!("l{node}"))
    }

    pub(crate) fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.id)
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

/// Removes what labs of processes that are no more have left.
pub fn remove_stale_labs() {
    let mut stale: Vec<String> = [NAMESPACES, PINS, STATE]
        .into_iter()
        .flat_map(entries)
        .filter_map(|name| lab_of_dead_process(&name))
        .collect();
    stale.sort();
    stale.dedup();
    for id in stale {
        end_processes(&id);
        remove(&id);
    }
}

/// `sluice-lab-123-0-b1` to `sluice-lab-123-0`, if there is no process 123.
fn lab_of_dead_process(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, lab) = (parts.next()?, parts.next()?);
    pid.parse::<u32>().ok()?;
    (!Path::new("/proc").join(pid).exists()).then(|| format!("{PREFIX}{pid}-{lab}"))
}

/// Ends the daemons that a killed lab left: whatever runs in its namespaces.
fn end_processes(id: &str) {
    for namespace in namespaces(id) {
        let Ok(output) = process::Command::new("ip")
            .args(["netns", "pids", &namespace])
            .output()
        else {
            continue;
        };
        for pid in String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            // It may have ended meanwhile, which is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Runs on drop, perhaps of a lab that was never finished: what is not there is no error, and nothing panics.
fn remove(id: &str) {
    for namespace in namespaces(id) {
        let path = Path::new(NAMESPACES).join(namespace);
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&path);
    }
    let _ = fs::remove_dir_all(Path::new(PINS).join(id));
    let _ = fs::remove_dir_all(Path::new(STATE).join(id));
}

fn namespaces(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    entries(NAMESPACES)
        .into_iter()
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn entries(dir: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
