//! The connections of a listener: how many, how long each may be silent, and which goes when there are too many.
//!
//! A client that only holds connections open costs others nothing: the connection that has waited longest makes room
//! for a new one. One whose request is being answered is never closed for another.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// What each connection of a listener may cost.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Connections at a time.
    pub connections: usize,
    /// From the first byte of a request, or of a TLS handshake, to its last header.
    pub header_time: Duration,
    /// Without a request.
    pub idle_time: Duration,
    /// In which the client takes nothing of its answer.
    pub stall_time: Duration,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            connections: 1024,
            header_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            stall_time: Duration::from_secs(30),
        }
    }
}

/// All connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    open: Mutex<BTreeMap<u64, Arc<Connection>>>,
    next: AtomicU64,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Mutex<Phase>,
    close: Notify,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// A handshake or a request's head is being received.
    Receiving(Instant),
    Idle(Instant),
    Answering,
    /// The answer is made, and waits for the client to take all of it.
    Sending(Instant),
}

/// Keeps a connection in the list.
#[derive(Debug)]
pub(super) struct Open {
    all: Arc<Connections>,
    number: u64,
    pub(super) connection: Arc<Connection>,
}

/// Held while an answer is made.
#[derive(Debug)]
pub(super) struct Answering(Arc<Connection>);

impl Connections {
    pub(super) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            caps,
            open: Mutex::default(),
            next: AtomicU64::default(),
        })
    }

    /// Takes a new connection in; one that waits is closed for it if need be. `None`: all are busy.
    pub(super) fn open(self: &Arc<Self>, now: Instant) -> Option<Open> {
        let connection = Arc::new(Connection {
            phase: Mutex::new(Phase::Receiving(now)),
            close: Notify::new(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut open = lock(&self.open);
        if open.len() >= self.caps.connections {
            let waiting = open.iter().filter_map(|(number, connection)| {
                let since = lock(&connection.phase).waiting_since()?;
                Some((since, *number))
            });
            let (_, oldest) = waiting.min()?;
            if let Some(connection) = open.remove(&oldest) {
                connection.close.notify_one();
            }
        }
        open.insert(number, connection.clone());
        Some(Open {
            all: self.clone(),
            number,
            connection,
        })
    }

    /// Closes those whose time is over.
    pub(super) fn close_overdue(&self, now: Instant) {
        for connection in lock(&self.open).values() {
            let (since, most) = match *lock(&connection.phase) {
                Phase::Receiving(since) => (since, self.caps.header_time),
                Phase::Idle(since) => (since, self.caps.idle_time),
                Phase::Answering | Phase::Sending(_) => continue,
            };
            if now.saturating_duration_since(since) >= most {
                connection.close.notify_one();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.open).len()
    }
}

impl Connection {
    /// Returns when the connection must go.
    pub(super) async fn closed(&self) {
        self.close.notified().await;
    }

    /// Something came in.
    pub(super) fn received(&self) {
        let mut phase = lock(&self.phase);
        if let Phase::Idle(_) = *phase {
            *phase = Phase::Receiving(Instant::now());
        }
    }

    /// The handshake is done.
    pub(super) fn idle(&self) {
        *lock(&self.phase) = Phase::Idle(Instant::now());
    }

    /// All has gone out.
    pub(super) fn sent(&self) {
        let mut phase = lock(&self.phase);
        if let Phase::Sending(_) = *phase {
            *phase = Phase::Idle(Instant::now());
        }
    }

    /// A request is here.
    pub(super) fn answering(self: &Arc<Self>) -> Answering {
        *lock(&self.phase) = Phase::Answering;
        Answering(self.clone())
    }
}

impl Phase {
    fn waiting_since(self) -> Option<Instant> {
        match self {
            Self::Receiving(since) | Self::Idle(since) | Self::Sending(since) => Some(since),
            Self::Answering => None,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.all.open).remove(&self.number);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        *lock(&self.0.phase) = Phase::Sending(Instant::now());
    }
}

/// Each holder leaves whole values behind, also one that panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closing(open: &Open) -> bool {
        use futures_util::FutureExt;
        open.connection.closed().now_or_never().is_some()
    }

    fn two() -> Arc<Connections> {
        Connections::new(Caps {
            connections: 2,
            ..Caps::default()
        })
    }

    #[test]
    fn the_connection_that_waits_longest_makes_room() {
        let (all, start) = (two(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let first = all.open(at(0)).unwrap();
        let second = all.open(at(1)).unwrap();
        let answering = first.connection.answering();
        let third = all.open(at(2)).unwrap();
        assert!(!is_closing(&first) && is_closing(&second) && !is_closing(&third));
        drop(second);
        assert_eq!(all.count(), 2);

        let busy = third.connection.answering();
        assert!(all.open(at(3)).is_none(), "all are busy");
        drop((answering, busy));
        assert!(all.open(at(4)).is_some());
    }

    #[test]
    fn a_head_has_less_time_than_an_idle_connection() {
        let (all, start) = (two(), Instant::now());
        let (slow, idle) = (all.open(start).unwrap(), all.open(start).unwrap());
        idle.connection.idle();
        all.close_overdue(start + Duration::from_secs(9));
        assert!(!is_closing(&slow) && !is_closing(&idle));
        all.close_overdue(start + Duration::from_secs(11));
        assert!(is_closing(&slow) && !is_closing(&idle));
        drop(idle.connection.answering());
        all.close_overdue(start + Duration::from_secs(100));
        assert!(!is_closing(&idle), "its answer has not gone out");
        idle.connection.sent();
        idle.connection.received();
        all.close_overdue(Instant::now() + Duration::from_secs(11));
        assert!(is_closing(&idle));
    }
}
