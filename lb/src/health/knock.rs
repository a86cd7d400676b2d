//! Checks by TCP of backends at their own addresses: all of them in one place.
//!
//! Most checks are of this kind, and one whose socket is waited for costs half as much again: it is registered, wakes this
//! thread by itself, and is taken off. So nothing waits for these. They begin together, and one system call looks at all that
//! are under way: soon after, and then again when twice the time has passed.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future, io, mem,
    net::SocketAddr,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use ahash::AHashMap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;
use tokio::time::sleep_until;

use super::{
    Load, Report,
    check::{CheckError, delay_ack, socket},
    course::Course,
};
use crate::sys;

/// All backends that are checked in this way.
pub(super) struct Knocks {
    backends: AHashMap<u64, Backend>,
    /// When each is checked next; the soonest is first. Those that were removed are still in it.
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    under_way: Vec<UnderWay>,
    /// Sockets for more checks, of IPv4 and IPv6: those that were used a moment ago, for a new one costs a good part of a check.
    free: [Vec<Socket>; 2],
    /// When checks began the last time.
    began: Instant,
    /// When those under way are looked at.
    look: Instant,
    load: Arc<Load>,
}

struct Backend {
    course: Course,
    at: SocketAddr,
    timeout: Duration,
}

/// A check whose SYN is sent.
struct UnderWay {
    id: u64,
    at: SocketAddr,
    socket: Socket,
    /// From here on no answer is one that failed.
    ends: Instant,
}

/// How soon checks are looked at, by when most are over.
const SOON: Duration = Duration::from_millis(1);
/// How much later than an answer it may be looked for at most.
const LATE: Duration = Duration::from_millis(32);
/// So many sockets of a family are kept.
const FREE: usize = 64;

impl Knocks {
    pub(super) fn new(load: Arc<Load>) -> Self {
        let now = Instant::now();
        Self {
            backends: AHashMap::new(),
            due: BinaryHeap::new(),
            under_way: Vec::new(),
            free: [Vec::new(), Vec::new()],
            began: now,
            look: now,
            load,
        }
    }

    pub(super) fn add(&mut self, mut course: Course, at: SocketAddr, timeout: Duration) {
        let id = course.id;
        self.due.push(Reverse((course.next(), id)));
        let backend = Backend {
            course,
            at,
            timeout,
        };
        self.backends.insert(id, backend);
    }

    pub(super) fn remove(&mut self, id: u64) {
        self.backends.remove(&id);
    }

    /// Makes checks until there is something to tell. Nothing is lost if this is dropped.
    pub(super) async fn next(&mut self) -> Vec<Report> {
        loop {
            let begin = self.due.peek().map(|Reverse((due, _))| *due);
            let look = (!self.under_way.is_empty()).then_some(self.look);
            match begin.into_iter().chain(look).min() {
                Some(time) => sleep_until(time.into()).await,
                None => future::pending().await,
            }
            let mut reports = Vec::new();
            self.look(&mut reports);
            self.begin(&mut reports);
            self.look = self.next_look();
            if !reports.is_empty() {
                return reports;
            }
        }
    }

    /// Ends checks that were answered, or whose time is over.
    fn look(&mut self, reports: &mut Vec<Report>) {
        let now = Instant::now();
        let under_way = self.under_way.iter();
        let mut sockets: Vec<_> = under_way
            .map(|check| PollFd::new(check.socket.as_fd(), PollFlags::POLLOUT))
            .collect();
        let looked = poll(&mut sockets, PollTimeout::ZERO);
        let answers: Vec<_> = sockets.iter().map(PollFd::revents).collect();
        for (check, answer) in mem::take(&mut self.under_way).into_iter().zip(answers) {
            let answer = answer.unwrap_or(PollFlags::empty());
            if !answer.is_empty() {
                let error = failure(&check.socket, answer).map(CheckError::Connect);
                self.end(check.id, error, reports);
                if answer == PollFlags::POLLOUT {
                    self.keep(check);
                }
            } else if check.ends <= now {
                let timeout = |backend: &Backend| CheckError::Timeout {
                    after: backend.timeout,
                    via: None,
                };
                let error = match looked {
                    Ok(_) => self.backends.get(&check.id).map(timeout),
                    // Whoever answered was not seen.
                    Err(error) => Some(CheckError::Blind(error.into())),
                };
                self.end(check.id, error, reports);
            } else {
                self.under_way.push(check);
            }
        }
    }

    /// Begins the checks that are due.
    fn begin(&mut self, reports: &mut Vec<Report>) {
        let now = Instant::now();
        while let Some(&Reverse((due, id))) = self.due.peek()
            && due <= now
        {
            self.due.pop();
            let Some(backend) = self.backends.get(&id) else {
                continue;
            };
            self.load.begins(due);
            let at = backend.at;
            match knock(self.free[family(at)].pop(), at) {
                Ok(socket) => {
                    self.began = Instant::now();
                    self.under_way.push(UnderWay {
                        id,
                        at,
                        socket,
                        ends: self.began + backend.timeout,
                    });
                }
                Err(error) => self.end(id, Some(CheckError::Connect(error)), reports),
            }
        }
    }

    /// Ends a connection, and keeps its socket for another.
    fn keep(&mut self, check: UnderWay) {
        let free = &mut self.free[family(check.at)];
        if free.len() < FREE && sys::disconnect(&check.socket).is_ok() {
            free.push(check.socket);
        }
    }

    /// So that an answer is known after twice the time that it took, and a timeout at its time.
    fn next_look(&self) -> Instant {
        let now = Instant::now();
        let next = now + now.duration_since(self.began).clamp(SOON, LATE);
        let ends = self.under_way.iter().map(|check| check.ends);
        ends.fold(next, Instant::min)
    }

    fn end(&mut self, id: u64, error: Option<CheckError>, reports: &mut Vec<Report>) {
        // It may have been removed meanwhile.
        let Some(backend) = self.backends.get_mut(&id) else {
            return;
        };
        reports.extend(backend.course.ended(error));
        self.due.push(Reverse((backend.course.next(), id)));
    }
}

fn family(of: SocketAddr) -> usize {
    usize::from(of.is_ipv6())
}

/// Sends a SYN, and does not wait for the answer.
fn knock(free: Option<Socket>, at: SocketAddr) -> io::Result<Socket> {
    let socket = match free {
        Some(socket) => delay_ack(socket)?,
        None => socket(at.ip())?,
    };
    match socket.connect(&at.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _under_way => Ok(socket),
    }
}

/// Why the answer is none that is wanted.
fn failure(socket: &Socket, answer: PollFlags) -> Option<io::Error> {
    if answer == PollFlags::POLLOUT {
        return None;
    }
    socket.take_error().unwrap_or_else(Some)
}
