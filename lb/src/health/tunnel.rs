//! Checks through the same tunnel as the data: their packets go to the VIP, inside `ipip` or `gue` to the backend, which
//! takes the tunnel off and answers from the VIP. A backend that lacks `sluice decap` fails such a check.
//!
//! The check's socket is an ordinary one of the kernel, to the VIP, with a mark. Marked packets are routed to a TUN
//! device of ours; what comes out of that is put into the backend's tunnel, which the source port tells. Answers come
//! straight from the backend to the socket.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use netlink_packet_route::rule::RuleAction;
use rtnetlink::{Error, Handle, LinkUnspec, RouteMessageBuilder};
use sluice_ebpf::{encap::GUE_PORT, packet};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::unix::AsyncFd, task::JoinHandle};

use super::icmp::Ping;
use crate::{net::if_index, sys};

/// How a check gets to its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// Whom the inner packet is for.
    pub vip: IpAddr,
    pub carrier: Carrier,
    /// The outer source; for GUE the kernel chooses.
    pub source: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Ipip,
    Gue,
}

/// Makes the device when a check needs it first, and again when it is gone.
#[derive(Default)]
pub(super) struct Tunnel(tokio::sync::Mutex<Option<Arc<Open>>>);

impl Tunnel {
    pub(super) async fn open(&self) -> io::Result<Arc<Open>> {
        let mut open = self.0.lock().await;
        if let Some(open) = open.as_ref().filter(|open| open.works()) {
            return Ok(open.clone());
        }
        *open = None;
        let made = Arc::new(Open::new().await?);
        *open = Some(made.clone());
        Ok(made)
    }
}

/// The device, and who sends what comes out of it.
pub(super) struct Open {
    ways: Arc<Ways>,
    broken: Arc<AtomicBool>,
    senders: Arc<Senders>,
    reader: JoinHandle<()>,
}

/// Of checks under way, by source port.
type Ways = Mutex<HashMap<u16, Way>>;

#[derive(Clone, Copy, Debug)]
struct Way {
    backend: IpAddr,
    via: Via,
}

const DEVICE: &str = "sluice-check";
/// Of the sockets of checks, and the number of the routing table for them.
const MARK: u32 = 0x51c7;
/// Before the main table, after the local one.
const RULE_PRIORITY: u32 = 5127;
/// Fits any path to a backend with its outer headers, and IPv6.
const MTU_BYTES: u32 = 1280;

impl Open {
    async fn new() -> io::Result<Self> {
        let device = sys::watched(sys::tun(DEVICE)?)?;
        route(if_index(DEVICE)?).await?;
        let senders = Arc::new(Senders::open()?);
        let ways = Arc::new(Ways::default());
        let broken = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(carry(device, senders.clone(), ways.clone(), broken.clone()));
        Ok(Self {
            ways,
            broken,
            senders,
            reader,
        })
    }

    fn works(&self) -> bool {
        !self.broken.load(Ordering::Relaxed)
    }

    /// Has a socket's packets go this way, until the guard is dropped. It is bound to a port for that.
    pub(super) fn lead(
        self: &Arc<Self>,
        socket: &tokio::net::TcpSocket,
        backend: IpAddr,
        via: Via,
    ) -> io::Result<Led> {
        SockRef::from(socket).set_mark(MARK)?;
        socket.bind(SocketAddr::new(source(backend, via.vip)?, 0))?;
        let port = socket.local_addr()?.port();
        lock(&self.ways).insert(port, Way { backend, via });
        Ok(Led {
            open: self.clone(),
            port,
        })
    }

    /// Sends an echo request, whose answer the pinger will have.
    pub(super) fn ping(&self, ping: &Ping<'_>, backend: IpAddr, via: Via) -> io::Result<()> {
        let packet = ping.packet(source(backend, via.vip)?);
        let packet = packet.ok_or(io::ErrorKind::AddrNotAvailable)?;
        self.senders.send(Way { backend, via }, &packet)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// While it lives, packets from a port go through a tunnel.
pub(super) struct Led {
    open: Arc<Open>,
    port: u16,
}

impl Drop for Led {
    fn drop(&mut self) {
        lock(&self.open.ways).remove(&self.port);
    }
}

fn lock(ways: &Ways) -> MutexGuard<'_, HashMap<u16, Way>> {
    ways.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The address of ours that the backend can answer to: the one by which we would ask it directly; of the VIP's family.
fn source(backend: IpAddr, vip: IpAddr) -> io::Result<IpAddr> {
    let towards = if backend.is_ipv4() == vip.is_ipv4() {
        backend
    } else {
        vip
    };
    let any: IpAddr = if vip.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Nothing is sent; the kernel only looks for the way.
    socket.connect((towards, GUE_PORT))?;
    Ok(socket.local_addr()?.ip())
}

/// Brings the device up, and routes marked packets to it. The routes go with the device; the rule stays, and leads
/// nowhere without them.
async fn route(index: u32) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = add_routes(&handle, index).await;
    connection.abort();
    result.map_err(io::Error::other)
}

async fn add_routes(handle: &Handle, index: u32) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(index).mtu(MTU_BYTES).up();
    handle.link().set(up.build()).execute().await?;
    let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .table_id(MARK);
    handle.route().add(v4.build()).replace().execute().await?;
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
        .output_interface(index)
        .table_id(MARK);
    handle.route().add(v6.build()).replace().execute().await?;
    let rule = || {
        handle
            .rule()
            .add()
            .fw_mark(MARK)
            .table_id(MARK)
            .priority(RULE_PRIORITY)
            .action(RuleAction::ToTable)
    };
    is_there(rule().v4().execute().await)?;
    is_there(rule().v6().execute().await)
}

/// An earlier daemon may have left the rule.
fn is_there(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(Error::NetlinkError(refused)) if refused.raw_code() == -libc::EEXIST => Ok(()),
        result => result,
    }
}

/// Puts what the kernel sends to the device into the tunnels, until the device is gone.
async fn carry(
    device: AsyncFd<OwnedFd>,
    senders: Arc<Senders>,
    ways: Arc<Ways>,
    broken: Arc<AtomicBool>,
) {
    let mut packet = vec![0; 2048];
    loop {
        let Ok(mut ready) = device.readable().await else {
            break;
        };
        match ready.try_io(|device| Ok(nix::unistd::read(device.get_ref(), &mut packet)?)) {
            Ok(Ok(length)) => {
                let packet = &packet[..length];
                let way = port(packet).and_then(|port| lock(&ways).get(&port).copied());
                if let Some(way) = way {
                    // A packet that cannot be sent is one that gets lost: the check will tell.
                    let _sent = senders.send(way, packet);
                }
            }
            Ok(Err(_gone)) => break,
            Err(_would_block) => {}
        }
    }
    broken.store(true, Ordering::Relaxed);
}

/// The source port of a TCP packet that the kernel made.
fn port(packet: &[u8]) -> Option<u16> {
    let (protocol, at) = match packet.first()? >> 4 {
        4 => (*packet.get(9)?, usize::from(packet[0] & 15) * 4),
        _ => (*packet.get(6)?, 40),
    };
    let bytes = packet.get(at..at + 2)?;
    (protocol == packet::TCP).then(|| u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Sockets that put outer headers on.
struct Senders {
    gue_v4: UdpSocket,
    gue_v6: UdpSocket,
    /// By outer source, and whether the inner packet is IPv6.
    ipip: Mutex<HashMap<(IpAddr, bool), Arc<Socket>>>,
}

impl Senders {
    fn open() -> io::Result<Self> {
        let udp = |any: IpAddr| {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Self {
            gue_v4: udp(Ipv4Addr::UNSPECIFIED.into())?,
            gue_v6: udp(Ipv6Addr::UNSPECIFIED.into())?,
            ipip: Mutex::default(),
        })
    }

    fn send(&self, Way { backend, via }: Way, packet: &[u8]) -> io::Result<()> {
        match via.carrier {
            Carrier::Gue => {
                let socket = match backend {
                    IpAddr::V4(_) => &self.gue_v4,
                    IpAddr::V6(_) => &self.gue_v6,
                };
                socket.send_to(packet, (backend, GUE_PORT)).map(drop)
            }
            Carrier::Ipip => {
                let socket = self.ipip(via.source, via.vip.is_ipv6())?;
                let to = SocketAddr::new(backend, 0).into();
                socket.send_to(packet, &to).map(drop)
            }
        }
    }

    fn ipip(&self, source: IpAddr, inner_v6: bool) -> io::Result<Arc<Socket>> {
        let mut sockets = self
            .ipip
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(socket) = sockets.get(&(source, inner_v6)) {
            return Ok(socket.clone());
        }
        let protocol = if inner_v6 { packet::IPV6 } else { packet::IPIP };
        let protocol = Some(Protocol::from(i32::from(protocol)));
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Socket::new(
            Domain::for_address(SocketAddr::new(source, 0)),
            kind,
            protocol,
        )?;
        // The source is not ours, as it is not for the data.
        if source.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
        // It only sends: what comes in tunnels to this host is not for it.
        socket.set_recv_buffer_size(0)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        let socket = Arc::new(socket);
        sockets.insert((source, inner_v6), socket.clone());
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_tells_whose_packet_it_is() {
        let mut v4 = vec![0; 40];
        (v4[0], v4[9]) = (0x45, 6);
        v4[20..22].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(port(&v4), Some(0x1234));
        let mut v6 = vec![0; 60];
        (v6[0], v6[6]) = (0x60, 6);
        v6[40..42].copy_from_slice(&[0x12, 0x34]);
        assert_eq!(port(&v6), Some(0x1234));
        // What the kernel itself says on a new device.
        v6[6] = 58;
        assert_eq!(port(&v6), None);
        for length in 0..v4.len() {
            let _none = port(&v4[..length]);
        }
        assert_eq!(port(&[]), None);
    }
}
