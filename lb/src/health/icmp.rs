//! Echo requests of all icmp checks, from one raw socket for each family.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ahash::RandomState;
use dashmap::DashMap;
use nix::sys::socket::{SockaddrStorage, recvfrom};
use sluice_ebpf::{checksum, packet};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::unix::AsyncFd, sync::oneshot, task::JoinHandle};

use crate::sys;

/// Sends echo requests, and tells who was answered.
pub(super) struct Pinger {
    v4: Arc<AsyncFd<OwnedFd>>,
    v6: Arc<AsyncFd<OwnedFd>>,
    waiting: Arc<Waiting>,
    next_token: AtomicU32,
    receivers: [JoinHandle<()>; 2],
}

/// Requests under way by token: who is to answer, and how that is told. Thousands of checks and both receivers change it
/// at the same time.
type Waiting = DashMap<u32, (IpAddr, oneshot::Sender<()>), RandomState>;

impl Pinger {
    /// Needs `CAP_NET_RAW`.
    pub(super) fn open() -> io::Result<Self> {
        let waiting = Arc::new(Waiting::default());
        let [v4, v6] = [Domain::IPV4, Domain::IPV6].map(open);
        let (v4, v6) = (Arc::new(v4?), Arc::new(v6?));
        let receivers = [(&v4, 4), (&v6, 6)].map(|(socket, version)| {
            tokio::spawn(receive(socket.clone(), version, waiting.clone()))
        });
        Ok(Self {
            v4,
            v6,
            waiting,
            next_token: AtomicU32::new(0),
            receivers,
        })
    }

    /// A request that was not sent yet; an answer to it is not missed from here on.
    pub(super) fn prepare(&self, address: IpAddr) -> Ping<'_> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        self.waiting.insert(token, (address, sender));
        Ping {
            pinger: self,
            token,
            address,
            answered,
        }
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.receivers.iter().for_each(JoinHandle::abort);
    }
}

/// One request; dropping it forgets it.
pub(super) struct Ping<'a> {
    pinger: &'a Pinger,
    token: u32,
    address: IpAddr,
    answered: oneshot::Receiver<()>,
}

impl Ping<'_> {
    /// The whole packet, for who sends it in another way.
    pub(super) fn packet(&self, source: IpAddr) -> Option<Vec<u8>> {
        packet(source, self.address, self.token)
    }

    /// Sends the request by the host's own routes.
    pub(super) fn send(&self) -> io::Result<()> {
        let v4 = self.address.is_ipv4();
        let socket = if v4 { &self.pinger.v4 } else { &self.pinger.v6 };
        let to = SocketAddr::new(self.address, 0).into();
        SockRef::from(socket.get_ref())
            .send_to(&request(v4, self.token), &to)
            .map(drop)
    }

    /// Waits for the answer.
    pub(super) async fn answered(mut self) -> io::Result<()> {
        (&mut self.answered)
            .await
            .map_err(|_gone| io::Error::other("the socket for echo requests was closed"))
    }
}

impl Drop for Ping<'_> {
    fn drop(&mut self) {
        self.pinger.waiting.remove(&self.token);
    }
}

fn open(family: Domain) -> io::Result<AsyncFd<OwnedFd>> {
    let protocol = if family == Domain::IPV4 {
        Protocol::ICMPV4
    } else {
        Protocol::ICMPV6
    };
    let socket = Socket::new(family, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    // Room for thousands of answers at once; the kernel caps it at net.core.rmem_max.
    socket.set_recv_buffer_size(1 << 20)?;
    sys::only_echo_replies(&socket, family == Domain::IPV4)?;
    sys::watched(socket)
}

async fn receive(socket: Arc<AsyncFd<OwnedFd>>, version: u8, waiting: Arc<Waiting>) {
    let mut buffer = [0; 256];
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        let received = ready.try_io(|socket| {
            Ok(recvfrom::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut buffer,
            )?)
        });
        // An error of the socket is of one request, and its check will time out.
        let Ok(Ok((length, Some(from)))) = received else {
            continue;
        };
        if let (Some(token), Some(from)) = (token(version, &buffer[..length]), address(&from)) {
            answer(&waiting, token, from);
        }
    }
}

fn answer(waiting: &Waiting, token: u32, from: IpAddr) {
    if let Some((_, (_, sender))) = waiting.remove_if(&token, |_, (address, _)| *address == from) {
        // Who asked may have given up meanwhile.
        let _sent = sender.send(());
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| IpAddr::from(from.ip()));
    v4.or_else(|| from.as_sockaddr_in6().map(|from| IpAddr::from(from.ip())))
}

/// Identifier and sequence number. The identifier changes with each token.
fn halves(token: u32) -> (u16, u16) {
    let [high, low] = [token >> 16, token & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
    (low, high)
}

fn request(v4: bool, token: u32) -> [u8; 16] {
    let (identifier, sequence) = halves(token);
    let mut message = [0; 16];
    message[0] = if v4 { 8 } else { 128 };
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..].copy_from_slice(b"sluice\0\0");
    if v4 {
        // For IPv6 the kernel does it, for it knows the addresses.
        let words: [u16; 8] = bytemuck::cast(message);
        let checksum = checksum::finish(words.map(u64::from).iter().sum());
        message[2..4].copy_from_slice(&checksum.to_ne_bytes());
    }
    message
}

/// A request with its IP header; none if the families differ.
fn packet(source: IpAddr, destination: IpAddr, token: u32) -> Option<Vec<u8>> {
    let mut message = request(source.is_ipv4(), token);
    let length = message.len().to_be_bytes();
    let length = [length[length.len() - 2], length[length.len() - 1]];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[3] = 20 + length[1];
            header[8] = TTL;
            header[9] = packet::ICMP;
            header[12..16].copy_from_slice(&source.octets());
            header[16..].copy_from_slice(&destination.octets());
            let words: [u16; 10] = bytemuck::cast(header);
            let checksum = checksum::finish(words.map(u64::from).iter().sum());
            header[10..12].copy_from_slice(&checksum.to_ne_bytes());
            Some([&header[..], &message].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&length);
            header[6] = packet::ICMPV6;
            header[7] = TTL;
            header[8..24].copy_from_slice(&source.octets());
            header[24..].copy_from_slice(&destination.octets());
            let addresses: [u16; 16] = bytemuck::cast([source.octets(), destination.octets()]);
            let words: [u16; 8] = bytemuck::cast(message);
            let pseudo = [
                u16::from_ne_bytes(length),
                u16::from(packet::ICMPV6).to_be(),
            ];
            let all = addresses.iter().chain(&words).chain(&pseudo);
            let checksum = checksum::finish(all.map(|word| u64::from(*word)).sum());
            message[2..4].copy_from_slice(&checksum.to_ne_bytes());
            Some([&header[..], &message].concat())
        }
        _ => None,
    }
}

const TTL: u8 = 64;

/// The token of an echo reply. IPv4 comes with its header, IPv6 without.
fn token(version: u8, received: &[u8]) -> Option<u32> {
    let message = match version {
        4 => received.get(usize::from(received.first()? & 15) * 4..)?,
        _ => received,
    };
    let (0 | 129, [i0, i1, s0, s1]) = (*message.first()?, message.get(4..8)?) else {
        return None;
    };
    Some(u32::from_be_bytes([*s0, *s1, *i0, *i1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_tells_the_token_of_its_request() {
        for token in [0, 1, 0xffff, 0x1_0000, 0xfedc_ba98, u32::MAX] {
            let mut reply = request(false, token);
            reply[0] = 129;
            assert_eq!(super::token(6, &reply), Some(token));
            let mut reply = request(true, token).to_vec();
            reply[0] = 0;
            let mut packet = vec![0x46; 24];
            packet.extend(reply);
            assert_eq!(super::token(4, &packet), Some(token));
        }
        assert_eq!(token(4, &request(true, 7)), None, "a request");
        assert_eq!(token(4, &[]), None);
        assert_eq!(token(6, &[129, 0, 0]), None);
    }

    #[test]
    fn a_request_sums_up_to_its_checksum() {
        let words: [u16; 8] = bytemuck::cast(request(true, 0x1234_5678));
        assert_eq!(checksum::fold(words.map(u64::from).iter().sum()), 0xffff);
    }

    #[test]
    fn packets_are_as_others_write_them() {
        use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
        let parse = |address: &str| address.parse::<IpAddr>().unwrap();
        let bytes = packet(parse("10.0.0.1"), parse("192.0.2.10"), 0x0001_0002).unwrap();
        let sliced = SlicedPacket::from_ip(&bytes).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else {
            panic!()
        };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(header.destination, [192, 0, 2, 10]);
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else {
            panic!()
        };
        let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else {
            panic!()
        };
        assert_eq!((echo.id, echo.seq), (2, 1));

        let (source, destination) = (parse("2001:db8::1"), parse("2001:db8::2"));
        let bytes = packet(source, destination, 7).unwrap();
        let sliced = SlicedPacket::from_ip(&bytes).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
            (sliced.net, sliced.transport)
        else {
            panic!()
        };
        let header = ip.header().to_header();
        assert!(icmp.is_checksum_valid(header.source, header.destination));
        assert!(matches!(icmp.icmp_type(), Icmpv6Type::EchoRequest(echo) if echo.id == 7));
        assert_eq!(packet(source, parse("192.0.2.1"), 7), None);
    }

    /// Works wherever tests are root.
    #[tokio::test]
    async fn this_host_answers_itself() {
        let Ok(pinger) = Pinger::open() else {
            return;
        };
        for address in ["127.0.0.1", "127.9.8.7"] {
            let ping = pinger.prepare(address.parse().unwrap());
            ping.send().unwrap();
            ping.answered().await.unwrap();
        }
        assert!(pinger.waiting.is_empty());
    }
}
