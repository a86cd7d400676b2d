//! What a client can ask of a VIP.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Conn, DNS_V4, DNS_V6, Flood, Frames, Netns, RawSocket, Response, UDP_PORT, WEB_V4,
    addresses::{ClientLink, ROUTER, in_network, nth},
};

/// How long to wait for an answer. Long beside a SYN that is lost and sent anew after a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// A host that may use every address of its prefixes.
#[derive(Clone, Debug)]
pub struct Client {
    netns: Arc<Netns>,
    link: ClientLink,
    prefixes: Vec<IpNet>,
    source: Option<SocketAddr>,
}

impl Client {
    pub(crate) fn new(netns: Netns, index: usize, prefixes: Vec<IpNet>) -> Self {
        Self {
            netns: Arc::new(netns),
            link: ClientLink::new(index),
            prefixes,
            source: None,
        }
    }

    /// The same client, speaking from another of its addresses.
    #[must_use]
    pub fn source(&self, address: IpAddr) -> Self {
        self.source_port(SocketAddr::new(address, 0))
    }

    /// The same client, speaking from this address and port.
    #[must_use]
    pub fn source_port(&self, source: SocketAddr) -> Self {
        Self {
            source: Some(source),
            ..self.clone()
        }
    }

    /// The `index`th address of the first prefix of this family. Number 2 is used when none is asked for.
    pub fn address(&self, like: SocketAddr, index: u32) -> IpAddr {
        nth(self.prefix(like), index)
    }

    /// An address in the `index`th network (/24 or /48) of the first prefix of this family, if that is so big.
    pub fn address_in_network(&self, like: SocketAddr, index: u32) -> IpAddr {
        in_network(self.prefix(like), index)
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A keep-alive HTTP connection.
    pub fn connect(&self, vip: SocketAddr) -> io::Result<Conn> {
        let stream = self.netns.run(|| {
            let socket = self.socket(vip, Type::STREAM)?;
            socket.connect_timeout(&vip.into(), PATIENCE)?;
            Ok::<_, io::Error>(socket)
        })?;
        Conn::new(stream.into())
    }

    /// One request on a connection of its own.
    pub fn http_get(&self, vip: SocketAddr, path: &str) -> io::Result<Response> {
        self.connect(vip)?.get(path)
    }

    /// The name of the backend that answers a new connection.
    pub fn who(&self, vip: SocketAddr) -> io::Result<String> {
        Ok(self.connect(vip)?.backend().to_owned())
    }

    /// A UDP socket whose packets are one flow.
    pub fn udp(&self, vip: SocketAddr) -> io::Result<UdpFlow> {
        let socket = self.netns.run(|| {
            let socket = self.socket(vip, Type::DGRAM)?;
            socket.connect(&vip.into())?;
            Ok::<_, io::Error>(socket)
        })?;
        Ok(UdpFlow {
            socket: socket.into(),
        })
    }

    /// The name of the backend that answers a datagram of a new flow.
    pub fn udp_ask(&self, vip: SocketAddr, payload: &[u8]) -> io::Result<String> {
        self.udp(vip)?.ask(payload)
    }

    /// Whether the web and both DNS VIPs answer new flows.
    pub fn is_served(&self) -> bool {
        let web = self.http_get(WEB_V4, "/health").is_ok();
        // The lab's cables lose a frame when a ring of theirs is full, and UDP's clients ask again.
        let dns = [DNS_V4, DNS_V6].map(|vip| (0..3).any(|_| self.udp_ask(vip, b"good").is_ok()));
        web && dns == [true; 2]
    }

    /// How many of `count` new flows each backend got. TCP or UDP goes by the VIP's port.
    pub fn spread(&self, vip: SocketAddr, count: usize) -> io::Result<BTreeMap<String, usize>> {
        let mut spread = BTreeMap::new();
        for _ in 0..count {
            let backend = if vip.port() == UDP_PORT {
                self.udp_ask(vip, b"spread")?
            } else {
                self.who(vip)?
            };
            *spread.entry(backend).or_default() += 1;
        }
        Ok(spread)
    }

    /// Sends one ICMP echo request, and says how long its right answer took.
    pub fn ping(&self, to: IpAddr) -> io::Result<Duration> {
        static NEXT_ID: AtomicU16 = AtomicU16::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let from = self.source.map_or_else(
            || self.address(SocketAddr::new(to, 0), 2),
            |source| source.ip(),
        );
        let payload = b"sixteen bytes !!";
        let raw = self.raw();
        let start = Instant::now();
        raw.send(&self.frames().echo_request(from, to, id, 1, payload));
        let answer = raw.find(|frame| {
            (echo_reply(frame)? == (to, id, payload.to_vec())).then(|| start.elapsed())
        });
        answer.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, format!("no echo from {to}")))
    }

    /// Frames to the router. The source may be anything: nothing on the way filters it.
    pub fn raw(&self) -> RawSocket {
        RawSocket::open(&self.netns, "eth0")
    }

    /// Floods by way of the router.
    pub fn flood(&self, frames: Vec<Vec<u8>>) -> Flood {
        Flood::start(RawSocket::sender(&self.netns, "eth0"), frames)
    }

    pub fn frames(&self) -> Frames {
        Frames {
            from: self.link.mac(2),
            to: self.link.mac(ROUTER),
        }
    }

    fn prefix(&self, like: SocketAddr) -> IpNet {
        let prefix = self
            .prefixes
            .iter()
            .find(|prefix| prefix.addr().is_ipv4() == like.is_ipv4());
        *prefix.expect("the client has a prefix of each family")
    }

    fn socket(&self, vip: SocketAddr, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(vip), kind, None::<Protocol>)?;
        if let Some(source) = self.source {
            socket.set_reuse_address(true)?;
            socket.bind(&source.into())?;
        }
        Ok(socket)
    }
}

/// A flow of datagrams.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
}

impl UdpFlow {
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Sends a datagram, and returns the name of the backend that answered it.
    pub fn ask(&self, payload: &[u8]) -> io::Result<String> {
        self.socket.send(payload)?;
        self.answer_to(payload)
    }

    /// Asks anew until there is an answer, as resolvers do. Before Linux 6.16, the lab's cables lose frames under a flood.
    pub fn ask_again(&self, payload: &[u8]) -> io::Result<String> {
        let first = self.ask(payload);
        (1..3).fold(first, |answer, _| answer.or_else(|_| self.ask(payload)))
    }

    /// Waits for the answer to a datagram that was sent, by whatever way. The payload must have come back unharmed.
    pub fn answer_to(&self, payload: &[u8]) -> io::Result<String> {
        self.socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut buffer = vec![0; 65536];
        let bytes = self.socket.recv(&mut buffer)?;
        let answer = buffer[..bytes]
            .strip_suffix(payload)
            .and_then(|name| name.strip_suffix(b" "));
        let name = answer.ok_or_else(|| io::Error::other("the answer is not to what was asked"))?;
        Ok(String::from_utf8_lossy(name).into_owned())
    }

    /// Sends datagrams at once, and counts the answers until none comes for half a second.
    pub fn answers_to(&self, count: usize) -> io::Result<usize> {
        self.socket
            .set_read_timeout(Some(Duration::from_millis(500)))?;
        for _ in 0..count {
            self.socket.send(b"burst")?;
        }
        let mut buffer = [0; 100];
        Ok((0..count)
            .take_while(|_| self.socket.recv(&mut buffer).is_ok())
            .count())
    }

    pub fn local_address(&self) -> SocketAddr {
        self.socket
            .local_addr()
            .expect("a connected socket has an address")
    }
}

/// Sender, id and payload, if the frame is an echo reply whose checksums are right.
fn echo_reply(frame: &[u8]) -> Option<(IpAddr, u16, Vec<u8>)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    match (packet.net?, packet.transport?) {
        (etherparse::NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
                return None;
            };
            let header = ip.header().to_header();
            let right = icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum()
                && header.calc_header_checksum() == header.header_checksum;
            right.then(|| {
                (
                    ip.header().source_addr().into(),
                    echo.id,
                    icmp.payload().to_vec(),
                )
            })
        }
        (etherparse::NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let Icmpv6Type::EchoReply(echo) = icmp.icmp_type() else {
                return None;
            };
            let right = icmp.is_checksum_valid(ip.header().source(), ip.header().destination());
            right.then(|| {
                (
                    ip.header().source_addr().into(),
                    echo.id,
                    icmp.payload().to_vec(),
                )
            })
        }
        _ => None,
    }
}
