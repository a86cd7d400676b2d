//! Whose turn it is: some labs at a time, or a single one that wants the machine to itself.

use std::{
    fs::File,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use nix::fcntl::{Flock, FlockArg};

/// The right to use the machine, until dropped.
#[derive(Debug)]
pub struct Turn {
    kind: Kind,
    /// Kept from other processes.
    others: Option<Flock<File>>,
}

impl Turn {
    /// Before those that share, and beside them: who needs long and begins late is waited for by all.
    pub fn first() -> Self {
        Self::of(Kind::First)
    }

    /// Beside others: what mostly waits, whatever the others cost.
    pub fn shared() -> Self {
        Self::of(Kind::Shared)
    }

    /// One more beside a shared turn, which waits for nobody: whoever needs two and waited for the second while holding the
    /// first could wait for ever.
    ///
    /// # Panics
    /// If the other is not shared.
    pub fn beside(&self) -> Self {
        assert_eq!(self.kind, Kind::Shared);
        Self::begin(lock(), Kind::Shared)
    }

    /// Beside others of this kind only: for what mostly waits, and must keep its pace.
    pub fn quiet() -> Self {
        Self::of(Kind::Quiet)
    }

    /// With nobody else of this process; and of other processes nobody who wants that too. For floods.
    pub fn alone() -> Self {
        let mut turn = Self::of(Kind::Alone);
        turn.others = Some(wait_for_other_processes());
        turn
    }

    /// The same for a process that this one starts, and that waits for others by itself.
    pub fn alone_for_a_child() -> Self {
        Self::of(Kind::Alone)
    }

    /// Waits until all of the kinds before have had their turns: at each change the machine idles until the slowest lab is
    /// done, so there shall be one change for a whole run. Needs as many threads as there are tests.
    fn of(kind: Kind) -> Self {
        let mut state = lock();
        state.waiting[kind as usize] += 1;
        while !state.may_begin(kind) {
            state = CHANGED.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting[kind as usize] -= 1;
        Self::begin(state, kind)
    }

    fn begin(mut state: MutexGuard<'_, State>, kind: Kind) -> Self {
        state.running[kind as usize] += 1;
        drop(state);
        // Who waited for those that have begun now.
        CHANGED.notify_all();
        Self { kind, others: None }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock().running[self.kind as usize] -= 1;
        CHANGED.notify_all();
    }
}

/// In the order of their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    First,
    Shared,
    Quiet,
    Alone,
}

const KINDS: usize = 4;

impl Kind {
    /// Who may run beside it.
    fn beside(self) -> &'static [Self] {
        match self {
            Self::First | Self::Shared => &[Self::First, Self::Shared],
            Self::Quiet => &[Self::Quiet],
            Self::Alone => &[],
        }
    }
}

/// Labs mostly wait, so more run beside each other than there are CPUs; but each starts a dozen processes.
const AT_ONCE: usize = 6;

#[derive(Debug)]
struct State {
    waiting: [usize; KINDS],
    running: [usize; KINDS],
}

impl State {
    fn may_begin(&self, kind: Kind) -> bool {
        let beside: usize = kind
            .beside()
            .iter()
            .map(|it| self.running[*it as usize])
            .sum();
        let running: usize = self.running.iter().sum();
        let waiting_before: usize = self.waiting[..kind as usize].iter().sum();
        running == beside && running < AT_ONCE && waiting_before == 0
    }
}

static STATE: Mutex<State> = Mutex::new(State {
    waiting: [0; KINDS],
    running: [0; KINDS],
});
static CHANGED: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock is on bpffs itself, so that there is no file to leave behind.
fn wait_for_other_processes() -> Flock<File> {
    let bpffs = File::open("/sys/fs/bpf").expect("bpffs is mounted at /sys/fs/bpf");
    Flock::lock(bpffs, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .expect("a directory can be locked")
}
