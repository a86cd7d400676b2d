//! Good traffic that runs through the whole demo, and what became of it.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sluice_tests::{Client, Conn, DNS_V4, DNS_V6, WEB_V4, WEB_V6};

/// Connections that stay open from the first act to the last.
const LASTING: usize = 30;
/// Threads that ask again and again, each time by a new flow.
const ASKING: [SocketAddr; 8] = [
    WEB_V4, WEB_V6, WEB_V4, WEB_V6, WEB_V4, WEB_V6, DNS_V4, DNS_V6,
];
const BETWEEN_REQUESTS: Duration = Duration::from_millis(30);
/// UDP's clients ask again: before Linux 6.16, the lab's cables lose frames under a flood. The summary tells how often.
const UDP_TRIES: usize = 4;

/// Running clients; they stop when this is dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopped: AtomicBool,
    requests: AtomicU32,
    tally: Mutex<Tally>,
}

/// What became of the good traffic.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// New flows that were answered, by backend.
    pub(crate) served: BTreeMap<String, u64>,
    /// How many of them only when asked again.
    pub(crate) asked_again: u64,
    pub(crate) failures: Vec<String>,
    /// Answers on lasting connections.
    pub(crate) lasting_answers: u64,
    pub(crate) broken: Vec<String>,
    /// New flows that a drained backend answered.
    pub(crate) strays: Vec<String>,
    /// It gets no new flows from then on.
    drained: Option<(String, Instant)>,
}

impl Traffic {
    pub(crate) fn start(client: &Client) -> Result<Self> {
        let mut traffic = Self {
            shared: Arc::default(),
            threads: Vec::new(),
        };
        for number in 0..LASTING {
            let vip = [WEB_V4, WEB_V6][number % 2];
            let conn = client
                .connect(vip)
                .with_context(|| format!("no way to {vip}"))?;
            traffic.spawn(move |shared| shared.last(conn));
        }
        for vip in ASKING {
            let client = client.clone();
            traffic.spawn(move |shared| shared.ask(&client, vip));
        }
        Ok(traffic)
    }

    pub(crate) fn tally(&self) -> Tally {
        self.shared.tally().clone()
    }

    /// From now on, a new flow to this backend is a stray.
    pub(crate) fn is_drained(&self, backend: &str) {
        self.shared.tally().drained = Some((backend.to_owned(), Instant::now()));
    }

    /// Lets every client finish what it does, and returns what became of all.
    pub(crate) fn finish(mut self) -> Tally {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                self.shared.tally().broken.push("a client panicked".into());
            }
        }
        self.tally()
    }

    fn spawn(&mut self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared.clone();
        self.threads.push(thread::spawn(move || work(&shared)));
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

impl Tally {
    pub(crate) fn served(&self) -> u64 {
        self.served.values().sum()
    }

    pub(crate) fn alive(&self) -> usize {
        LASTING - self.broken.len().min(LASTING)
    }
}

impl Shared {
    /// Slow downloads on one connection, with a question now and then, all of it from one backend.
    fn last(&self, mut conn: Conn) {
        while self.goes_on() {
            let answer = conn
                .download("/slow/10000/500")
                .and_then(|_| conn.try_who());
            let mut tally = self.tally();
            match answer {
                Ok(who) if who == conn.backend() => tally.lasting_answers += 1,
                Ok(who) => {
                    let moved = format!("a connection to {} was answered by {who}", conn.backend());
                    return tally.broken.push(moved);
                }
                Err(error) => {
                    let broken = format!("a connection to {} broke: {error}", conn.backend());
                    return tally.broken.push(broken);
                }
            }
        }
    }

    fn ask(&self, client: &Client, vip: SocketAddr) {
        while self.goes_on() {
            let asked = Instant::now();
            let answer = self.once(client, vip);
            let mut tally = self.tally();
            match answer {
                Ok(backend) => {
                    let strays = matches!(&tally.drained, Some((drained, since)) if *drained == backend && asked > *since);
                    if strays {
                        tally.strays.push(format!("{vip} by {backend}"));
                    }
                    *tally.served.entry(backend).or_default() += 1;
                }
                Err(error) => tally.failures.push(format!("{vip}: {error}")),
            }
            drop(tally);
            thread::sleep(BETWEEN_REQUESTS);
        }
    }

    /// The name of the backend that answers a flow which nobody had before.
    fn once(&self, client: &Client, vip: SocketAddr) -> io::Result<String> {
        if vip == WEB_V4 || vip == WEB_V6 {
            return self.elsewhere(client, vip).who(vip);
        }
        let ask = || self.elsewhere(client, vip).udp_ask(vip, b"good");
        let mut answer = ask();
        let failed_at_first = answer.is_err();
        for _ in 1..UDP_TRIES {
            answer = answer.or_else(|_| ask());
        }
        if failed_at_first && answer.is_ok() {
            self.tally().asked_again += 1;
        }
        answer
    }

    /// The client at an address that it did not use before, in one of many networks: a five-tuple that comes again would be
    /// an old flow, and one network would meet the limits that are for attackers.
    fn elsewhere(&self, client: &Client, vip: SocketAddr) -> Client {
        const NETWORKS: u32 = 512;
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let (network, host) = (request % NETWORKS, 3 + request / NETWORKS % 250);
        let source = if vip.is_ipv4() {
            client.address(vip, (network << 8) + host)
        } else {
            client.address_in_network(vip, request)
        };
        client.source(source)
    }

    fn goes_on(&self) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("nothing panics with the lock")
    }
}
