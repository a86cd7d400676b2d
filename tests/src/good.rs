//! Good clients beside a flood: some that were there before it, and new ones.

use std::{
    io,
    net::SocketAddr,
    panic::resume_unwind,
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use crate::{Client, Conn, DNS_V4, DNS_V6, UDP_PORT, UdpFlow, WEB_V4, WEB_V6, quic::QuicLike};

/// Many clients, each in a network of its own, and what they have under way.
#[derive(Debug)]
pub struct Good {
    client: Client,
    vips: Vec<SocketAddr>,
    conns: Vec<Conn>,
    /// Long flows of datagrams, with the backend that answers them.
    flows: Vec<(UdpFlow, String)>,
    quic: Vec<QuicLike>,
    /// How many clients there were.
    clients: u32,
}

impl Good {
    /// What the lab's client must have to be so many.
    pub const PREFIXES: [&str; 2] = ["198.18.0.0/15", "3fff::/20"];

    /// Of the web and the DNS VIPs of both families.
    pub fn new(client: &Client) -> Self {
        Self::of(client, &[WEB_V4, WEB_V6, DNS_V4, DNS_V6])
    }

    /// Of these VIPs: TCP or UDP goes by the port.
    ///
    /// # Panics
    /// If one does not serve.
    pub fn of(client: &Client, vips: &[SocketAddr]) -> Self {
        let mut good = Self {
            client: client.clone(),
            vips: vips.to_vec(),
            conns: Vec::new(),
            flows: Vec::new(),
            quic: Vec::new(),
            clients: 0,
        };
        for &vip in vips {
            good.begin(vip)
                .unwrap_or_else(|error| panic!("{vip} in peace: {error}"));
        }
        good
    }

    /// The next of many clients.
    pub fn newcomer(&mut self, like: SocketAddr) -> Client {
        self.clients += 1;
        let network = self.clients % NETWORKS;
        self.client
            .source(self.client.address_in_network(like, network))
    }

    /// Connections that there are.
    pub fn conns(&self) -> usize {
        self.conns.len()
    }

    /// Connections live, flows stay where they were, and so many newcomers to each VIP are served.
    ///
    /// # Panics
    /// If not.
    pub fn go_on(&mut self, newcomers: usize) {
        for conn in &mut self.conns {
            assert_eq!(conn.ask_who(), conn.backend());
        }
        for (flow, backend) in &self.flows {
            for _ in 0..ASKED {
                let answer = flow.ask_again(b"good");
                assert_eq!(&answer.expect("a flow of datagrams lives"), backend);
            }
        }
        for quic in &mut self.quic {
            quic.fly().expect("a QUIC-like connection lives");
            let (asked, lost) = quic.asked_and_lost();
            assert!(lost * 10 <= asked + SPIKE, "{lost} of {asked} lost");
        }
        for vip in self.vips.repeat(newcomers) {
            self.visit(vip)
                .unwrap_or_else(|error| panic!("a newcomer to {vip}: {error}"));
        }
    }

    /// All go on over and over while `work` is done, with a newcomer to each VIP each time.
    ///
    /// # Panics
    /// If one does not.
    pub fn beside<T>(&mut self, work: impl FnOnce() -> T) -> T {
        // It hangs up when the work is done, or has panicked.
        let (line, ended) = channel::<()>();
        thread::scope(move |scope| {
            let good = scope.spawn(move || {
                while ended.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout) {
                    self.go_on(1);
                }
            });
            let done = work();
            drop(line);
            good.join().unwrap_or_else(|panic| resume_unwind(panic));
            done
        })
    }

    fn begin(&mut self, vip: SocketAddr) -> io::Result<()> {
        if vip.port() != UDP_PORT {
            for _ in 0..CONNS {
                let conn = self.newcomer(vip).connect(vip)?;
                self.conns.push(conn);
            }
            return Ok(());
        }
        for _ in 0..FLOWS {
            let flow = self.newcomer(vip).udp(vip)?;
            let backend = flow.ask_again(b"good")?;
            self.flows.push((flow, backend));
            let quic = QuicLike::connect(&self.newcomer(vip), vip)?;
            self.quic.push(quic);
        }
        Ok(())
    }

    fn visit(&mut self, vip: SocketAddr) -> io::Result<()> {
        let client = self.newcomer(vip);
        if vip.port() == UDP_PORT {
            client.udp(vip)?.ask_again(b"good")?;
        } else {
            assert_eq!(client.http_get(vip, "/health")?.body, b"ok");
        }
        Ok(())
    }
}

/// For each VIP of TCP.
const CONNS: usize = 5;
/// For each VIP of UDP, plain and like QUIC.
const FLOWS: usize = 3;
/// Questions in a row on a plain flow.
const ASKED: usize = 5;
/// What IPv4 clients have.
const NETWORKS: u32 = 512;
/// No faster than what a limit grants to the good.
const PAUSE: Duration = Duration::from_millis(300);
/// Ten times the datagrams that may be lost at once, beside one in ten.
const SPIKE: u32 = 40;
