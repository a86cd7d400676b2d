//! Child processes that end with their owner.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Netns, within};

/// Killed on drop.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts a command in a namespace; all it says is added to `log`.
    pub(crate) fn start(netns: &Netns, mut command: Command, log: &Path) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the lab's directory is writable");
        command
            .stdout(log.try_clone().expect("a log file can be shared"))
            .stderr(log);
        let child = netns.run(|| command.spawn());
        Self {
            child: child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        kill(pid, signal).unwrap_or_else(|error| panic!("cannot signal process {pid}: {error}"));
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self, signal: Signal) {
        self.signal(signal);
        within(
            std::time::Duration::from_secs(10),
            "the process ends when it is asked to",
            || !self.is_running(),
        );
    }

    /// `kill -9`: it gets no chance to do anything more.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may be gone already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
