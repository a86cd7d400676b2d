//! Waiting for something to become true, with a limit.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Waits up to ten seconds, long enough for a loaded machine.
///
/// # Panics
/// If `ready` still says no by then.
pub fn eventually(what: &str, ready: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, ready);
}

/// # Panics
/// If `ready` still says no after `limit`.
pub fn within(limit: Duration, what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
