//! Whose turn it is: many labs at a time, or a single one that wants the machine to itself.

use std::{
    fs::File,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use nix::fcntl::{Flock, FlockArg};

/// The right to use the machine, until dropped.
#[derive(Debug)]
pub struct Turn {
    _kind: Kind,
}

impl Turn {
    /// Waits while somebody is alone or wants to be: whoever measures shall not wait until there is nothing else to do.
    pub fn shared() -> Self {
        let mut state = lock();
        while state.is_taken || state.want_it > 0 {
            state = wait(state);
        }
        state.sharing += 1;
        Self {
            _kind: Kind::Shared { _here: Shared(()) },
        }
    }

    /// Waits until the others are done.
    pub fn alone() -> Self {
        let mut state = lock();
        state.want_it += 1;
        while state.is_taken || state.sharing > 0 {
            state = wait(state);
        }
        state.want_it -= 1;
        state.is_taken = true;
        drop(state);
        let here = Here(());
        Self {
            _kind: Kind::Alone {
                _others: wait_for_other_processes(),
                _here: here,
            },
        }
    }
}

#[derive(Debug)]
enum Kind {
    /// Beside others of this process.
    Shared { _here: Shared },
    /// Nobody else of this process; and of other processes nobody who wants that too.
    Alone { _others: Flock<File>, _here: Here },
}

#[derive(Debug)]
struct Shared(());

#[derive(Debug)]
struct Here(());

impl Drop for Shared {
    fn drop(&mut self) {
        lock().sharing -= 1;
        CHANGED.notify_all();
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        lock().is_taken = false;
        CHANGED.notify_all();
    }
}

#[derive(Debug)]
struct State {
    sharing: usize,
    is_taken: bool,
    /// To be alone.
    want_it: usize,
}

static STATE: Mutex<State> = Mutex::new(State {
    sharing: 0,
    is_taken: false,
    want_it: 0,
});
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait(state: MutexGuard<'static, State>) -> MutexGuard<'static, State> {
    CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner)
}

/// The lock is on bpffs itself, so that there is no file to leave behind.
fn wait_for_other_processes() -> Flock<File> {
    let bpffs = File::open("/sys/fs/bpf").expect("bpffs is mounted at /sys/fs/bpf");
    Flock::lock(bpffs, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .expect("a directory can be locked")
}
