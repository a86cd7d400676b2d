//! Whose turn it is: some labs at a time, or a single one that wants the machine to itself.

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
    /// Waits while somebody is alone, or as many share as may.
    pub fn shared() -> Self {
        let mut state = lock();
        state.want_to_share += 1;
        while state.is_taken || state.sharing >= AT_ONCE {
            state = wait(state);
        }
        state.want_to_share -= 1;
        Self::one_more(state)
    }

    /// One more beside a shared turn, which waits for nobody: whoever needs two and waited for the second while holding the
    /// first could wait for ever.
    ///
    /// # Panics
    /// If the other is alone.
    pub fn beside(&self) -> Self {
        assert!(matches!(self._kind, Kind::Shared { .. }));
        Self::one_more(lock())
    }

    /// Waits until nobody shares, nor wants to: at each change the machine idles until the slowest lab is done, so there
    /// shall be one change for a whole run. Needs as many threads as there are tests.
    pub fn alone() -> Self {
        Self::alone_here(|| Some(wait_for_other_processes()))
    }

    /// The same for a process that this one starts, and that waits for others by itself.
    pub fn alone_for_a_child() -> Self {
        Self::alone_here(|| None)
    }

    fn alone_here(others: impl FnOnce() -> Option<Flock<File>>) -> Self {
        let mut state = lock();
        while state.is_taken || state.sharing > 0 || state.want_to_share > 0 {
            state = wait(state);
        }
        state.is_taken = true;
        drop(state);
        let here = Here(());
        Self {
            _kind: Kind::Alone {
                _others: others(),
                _here: here,
            },
        }
    }

    fn one_more(mut state: MutexGuard<'_, State>) -> Self {
        state.sharing += 1;
        Self {
            _kind: Kind::Shared { _here: Shared(()) },
        }
    }
}

/// Labs mostly wait, so more run beside each other than there are CPUs; but each starts a dozen processes.
const AT_ONCE: usize = 4;

#[derive(Debug)]
enum Kind {
    /// Beside others of this process.
    Shared { _here: Shared },
    /// Nobody else of this process; and of other processes nobody who wants that too.
    Alone {
        _others: Option<Flock<File>>,
        _here: Here,
    },
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
    want_to_share: usize,
    is_taken: bool,
}

static STATE: Mutex<State> = Mutex::new(State {
    sharing: 0,
    want_to_share: 0,
    is_taken: false,
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
