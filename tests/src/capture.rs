//! Traffic of one interface in a pcap file, to look at when a scenario fails.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{Netns, eventually, process::Process};

/// A running `tcpdump`; ends when dropped. The file stays, unless it lies in the lab's directory.
#[derive(Debug)]
pub struct Capture {
    process: Option<Process>,
    file: PathBuf,
}

impl Capture {
    pub fn start(netns: &Netns, interface: &str, file: &Path) -> Self {
        let mut tcpdump = Command::new("tcpdump");
        tcpdump
            .args(["--immediate-mode", "-U", "-n", "-i", interface, "-w"])
            .arg(file)
            .args(["-Z", "root"]);
        let process = Process::start(netns, tcpdump, &file.with_extension("log"));
        // tcpdump writes the file's header once it listens.
        eventually("tcpdump listens", || {
            file.metadata().is_ok_and(|file| file.len() >= 24)
        });
        Self {
            process: Some(process),
            file: file.to_path_buf(),
        }
    }

    /// Ends the capture, and returns where it lies.
    pub fn stop(mut self) -> PathBuf {
        self.end();
        self.file.clone()
    }

    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.terminate(Signal::SIGINT);
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}
