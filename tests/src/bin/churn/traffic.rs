//! Flows that last from the start to the end, and short ones that come all the time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sluice_tests::{Client, Conn, DNS_V4, DNS_V6, Lab, WEB_V4, WEB_V6};

pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    /// Answers on flows that last.
    lasting: AtomicU64,
    /// New flows that were answered.
    new: AtomicU64,
    /// New flows that went to a backend which had just failed.
    excused: AtomicU64,
    failures: Mutex<Vec<String>>,
    /// When a backend failed or came back last; what fails until it is noticed is no wonder.
    troubled: Mutex<Option<Instant>>,
}

const LASTING: usize = 60;
/// Four checks that fail, half a second each, and a busy machine. Shorter than the time between two failures, so that most
/// new flows have no excuse.
const NOTICED: Duration = Duration::from_secs(4);
/// The cables lose a frame when a ring of theirs is full, and UDP's clients ask again.
const UDP_TRIES: usize = 4;

impl Traffic {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let client = lab.client(0);
        let conns: Vec<Conn> = (0..LASTING)
            .map(|n| client.connect([WEB_V4, WEB_V6][n % 2]))
            .collect::<Result<_, _>>()
            .context("no way to a VIP")?;
        let lasting = {
            let shared = shared.clone();
            thread::spawn(move || shared.last(conns))
        };
        let mut threads = vec![lasting];
        for family in 0..2 {
            let (shared, client) = (shared.clone(), client.clone());
            threads.push(thread::spawn(move || shared.come_and_go(&client, family)));
        }
        Ok(Self { shared, threads })
    }

    /// A backend fails or comes back now.
    pub(crate) fn excuse(&self) {
        *lock(&self.shared.troubled) = Some(Instant::now());
    }

    /// What failed.
    pub(crate) fn stop(self) -> Vec<String> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads {
            if thread.join().is_err() {
                self.shared
                    .fail("a thread of the traffic panicked".to_owned());
            }
        }
        std::mem::take(&mut *lock(&self.shared.failures))
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        write!(
            f,
            "{LASTING} lasting flows answered {} times, {} new flows ({} at a backend that just failed), {} failures",
            shared.lasting.load(Ordering::Relaxed),
            shared.new.load(Ordering::Relaxed),
            shared.excused.load(Ordering::Relaxed),
            lock(&shared.failures).len()
        )
    }
}

impl Shared {
    fn last(&self, mut conns: Vec<Conn>) {
        while !self.is_stopped() {
            conns.retain_mut(|conn| match conn.try_who() {
                Ok(backend) if backend == conn.backend() => {
                    self.lasting.fetch_add(1, Ordering::Relaxed);
                    true
                }
                Ok(backend) => {
                    self.fail(format!("a flow moved from {} to {backend}", conn.backend()));
                    false
                }
                Err(error) => {
                    self.fail(format!("a flow to {} broke: {error}", conn.backend()));
                    false
                }
            });
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn come_and_go(&self, client: &Client, family: usize) {
        let (web, dns) = [(WEB_V4, DNS_V4), (WEB_V6, DNS_V6)][family];
        let mut n = 0_u64;
        while !self.is_stopped() {
            n += 1;
            let began = Instant::now();
            let outcome = if n.is_multiple_of(4) {
                let mut outcome = client.udp_ask(dns, b"churn");
                for _ in 1..UDP_TRIES {
                    outcome = outcome.or_else(|_lost| client.udp_ask(dns, b"churn"));
                }
                outcome
            } else {
                client.who(web)
            };
            match outcome {
                Ok(_) => self.new.fetch_add(1, Ordering::Relaxed),
                Err(_) if self.is_excused(began) => self.excused.fetch_add(1, Ordering::Relaxed),
                Err(error) => {
                    self.fail(format!("a new flow to {web} or {dns}: {error}"));
                    0
                }
            };
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether a flow that began then can have gone to a backend of which the daemon did not know yet that it failed.
    fn is_excused(&self, began: Instant) -> bool {
        lock(&self.troubled).is_some_and(|troubled| began < troubled + NOTICED)
    }

    fn fail(&self, what: String) {
        lock(&self.failures).push(what);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
