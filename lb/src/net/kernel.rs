//! What we ask of the kernel over netlink, and what it tells us unasked, as the types of this module.
use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};
use rtnetlink::{Error, Handle, MulticastGroup, packet_core::NetlinkPayload, sys::AsyncSocket};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    link::Interface,
    tables::{Freshness, Neighbour, NeighbourKey, Route},
};

/// Two netlink sockets: one for questions, one for events, so that a flood of events cannot cost an answer.
pub(super) struct Kernel {
    handle: Handle,
    events: Pin<Box<dyn Stream<Item = Event> + Send + Sync>>,
    _connections: [Connection; 2],
}

/// What the kernel tells unasked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Link(Interface),
    LinkGone(u32),
    Neighbour(NeighbourKey, Neighbour),
    NeighbourGone(NeighbourKey),
    /// Routes to addresses in here may differ now.
    Route(IpNet),
    /// Rules or addresses changed, so that any route may differ now.
    AnyRoute,
    /// More came than fits the socket's buffer, and was dropped: all that we know may be old.
    Lost,
}

/// Why the kernel could not be asked. The cure is a new socket.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    #[error("the netlink socket is closed")]
    Closed,
    #[error("the kernel did not answer a netlink request in time")]
    Timeout,
    #[error(transparent)]
    Refused(#[from] Error),
}

/// How a request to look for a neighbour went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    Sent,
    TableFull,
}

const GROUPS: [MulticastGroup; 8] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];
/// The kernel answers in microseconds, and holds its lock for long only while many interfaces change.
const PATIENCE: Duration = Duration::from_secs(5);
/// Some thousand events; the kernel caps it at net.core.rmem_max.
const EVENT_BUFFER_BYTES: i32 = 4 << 20;

impl Kernel {
    /// Opens the sockets in the calling thread's network namespace. Needs a Tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (requests, handle, _) = rtnetlink::new_connection()?;
        let (mut multicast, _, events) = rtnetlink::new_multicast_connection(&GROUPS)?;
        multicast
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(EVENT_BUFFER_BYTES)?;
        let events =
            events.flat_map(|(message, _)| stream::iter(Event::from_payload(message.payload)));
        Ok(Self {
            handle,
            events: Box::pin(events),
            _connections: [
                Connection(tokio::spawn(requests)),
                Connection(tokio::spawn(multicast)),
            ],
        })
    }

    /// Waits for the next event. Nothing is lost if the future is dropped.
    pub(super) async fn next_event(&mut self) -> Result<Event, KernelError> {
        self.events.next().await.ok_or(KernelError::Closed)
    }

    pub(super) async fn links(&self) -> Result<Vec<Interface>, KernelError> {
        let links = self.handle.link().get().execute();
        in_time(
            links
                .map_ok(|message| Interface::from_message(&message))
                .try_collect(),
        )
        .await
    }

    pub(super) async fn neighbours(&self) -> Result<Vec<(NeighbourKey, Neighbour)>, KernelError> {
        let neighbours = self.handle.neighbours().get().execute();
        in_time(
            neighbours
                .try_filter_map(async |message| Ok(neighbour(&message)))
                .try_collect(),
        )
        .await
    }

    /// Asks which way the host itself would send to `address`.
    pub(super) async fn route(&self, address: IpAddr) -> Result<Route, KernelError> {
        let mut request = RouteMessage::default();
        (
            request.header.address_family,
            request.header.destination_prefix_length,
        ) = match address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        request
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let mut answers = Box::pin(self.handle.route().get(request).execute());
        match timeout(PATIENCE, answers.next())
            .await
            .map_err(|_elapsed| KernelError::Timeout)?
        {
            Some(Ok(message)) => Ok(route(address, &message)),
            // The kernel says in this way that there is no route, or that the route is a refusal.
            Some(Err(Error::NetlinkError(_))) => Ok(Route::None),
            Some(Err(error)) => Err(error.into()),
            None => Err(KernelError::Closed),
        }
    }

    /// Has the kernel resolve a neighbour as if the host itself sent to it: an unknown one is asked for, a stale one
    /// is verified. One that is being asked for already, or was confirmed lately, is left alone.
    pub(super) async fn probe(
        &self,
        (ifindex, address): NeighbourKey,
    ) -> Result<Probe, KernelError> {
        let request = self.handle.neighbours().add(ifindex, address);
        // `replace` only takes away the flag that refuses entries that exist: with `Use`, the kernel changes nothing
        // in the entry but its timers.
        let request = request
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        match timeout(PATIENCE, request.execute())
            .await
            .map_err(|_elapsed| KernelError::Timeout)?
        {
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENOBUFS => {
                Ok(Probe::TableFull)
            }
            // The interface is going; its event is on the way.
            Ok(()) | Err(Error::NetlinkError(_)) => Ok(Probe::Sent),
            Err(error) => Err(error.into()),
        }
    }
}

/// The task that moves a socket's bytes. Ends with its owner.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, KernelError> {
    let answer = timeout(PATIENCE, answer)
        .await
        .map_err(|_elapsed| KernelError::Timeout)?;
    Ok(answer?)
}

impl Event {
    fn from_payload(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<Self> {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            NetlinkPayload::Overrun(_) => return Some(Self::Lost),
            _ => return None,
        };
        match message {
            // A bridge reports on its ports in messages of its own family, which lack most of what an interface is.
            RouteNetlinkMessage::NewLink(m)
                if m.header.interface_family == AddressFamily::Unspec =>
            {
                Some(Self::Link(Interface::from_message(&m)))
            }
            RouteNetlinkMessage::DelLink(m)
                if m.header.interface_family == AddressFamily::Unspec =>
            {
                Some(Self::LinkGone(m.header.index))
            }
            RouteNetlinkMessage::NewNeighbour(m) => {
                neighbour(&m).map(|(key, value)| Self::Neighbour(key, value))
            }
            RouteNetlinkMessage::DelNeighbour(m) => {
                neighbour(&m).map(|(key, _)| Self::NeighbourGone(key))
            }
            RouteNetlinkMessage::NewRoute(m) | RouteNetlinkMessage::DelRoute(m) => {
                destination(&m).map(Self::Route)
            }
            RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => Some(Self::AnyRoute),
            _ => None,
        }
    }
}

/// None for what is no neighbour of ours: bridge forwarding entries and proxied addresses.
fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let freshness = match message.header.state {
        NeighbourState::Permanent | NeighbourState::Noarp => Freshness::Permanent,
        NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => {
            Freshness::Fresh
        }
        NeighbourState::Stale => Freshness::Stale,
        NeighbourState::Failed => Freshness::Failed,
        _ => Freshness::Asking,
    };
    Some((
        (message.header.ifindex, address?),
        Neighbour { freshness, mac },
    ))
}

fn route(address: IpAddr, message: &RouteMessage) -> Route {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return Route::Local,
        _ => return Route::None,
    }
    let (mut ifindex, mut next_hop, mut mtu_bytes) = (None, address, None);
    let mut source = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(gateway) => next_hop = ip(gateway).unwrap_or(next_hop),
            RouteAttribute::Via(RouteVia::Inet(v4)) => next_hop = IpAddr::V4(*v4),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => next_hop = IpAddr::V6(*v6),
            RouteAttribute::PrefSource(preferred) => source = ip(preferred).unwrap_or(source),
            RouteAttribute::Metrics(metrics) => {
                mtu_bytes = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu_bytes) => Some(*mtu_bytes),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    match ifindex {
        Some(ifindex) => Route::Via {
            neighbour: (ifindex, next_hop),
            source,
            mtu_bytes,
        },
        None => Route::None,
    }
}

/// The prefix that a route event is about. A default route carries no destination.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(destination) => Some(ip(destination)),
            _ => None,
        });
    let address = match (address, message.header.address_family) {
        (Some(address), _) => address?,
        (None, AddressFamily::Inet) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (None, AddressFamily::Inet6) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        (None, _) => return None,
    };
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.kind = kind;
        message.attributes = attributes;
        message
    }

    #[test]
    fn an_ipv4_route_may_go_through_an_ipv6_router() {
        let backend = IpAddr::from([10, 1, 0, 1]);
        let router: Ipv6Addr = "fe80::1".parse().unwrap();
        let message = reply(
            RouteType::Unicast,
            vec![
                RouteAttribute::Oif(3),
                RouteAttribute::Via(RouteVia::Inet6(router)),
                RouteAttribute::PrefSource(IpAddr::from([10, 0, 0, 9]).into()),
                RouteAttribute::Metrics(vec![RouteMetric::Advmss(1360), RouteMetric::Mtu(1400)]),
            ],
        );
        let expected = Route::Via {
            neighbour: (3, router.into()),
            source: IpAddr::from([10, 0, 0, 9]),
            mtu_bytes: Some(1400),
        };
        assert_eq!(route(backend, &message), expected);
    }

    #[test]
    fn only_unicast_routes_lead_anywhere() {
        let backend = IpAddr::from([10, 1, 0, 1]);
        assert_eq!(
            route(
                backend,
                &reply(RouteType::Local, vec![RouteAttribute::Oif(1)])
            ),
            Route::Local
        );
        assert_eq!(
            route(
                backend,
                &reply(RouteType::BlackHole, vec![RouteAttribute::Oif(1)])
            ),
            Route::None
        );
        assert_eq!(
            route(
                backend,
                &reply(RouteType::Unreachable, vec![RouteAttribute::Oif(1)])
            ),
            Route::None
        );
        assert_eq!(
            route(backend, &reply(RouteType::Unicast, vec![])),
            Route::None
        );
    }

    #[test]
    fn bridge_and_proxy_entries_are_no_neighbours() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 4;
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1])];
        assert_eq!(neighbour(&message), None);

        let address = IpAddr::from([10, 0, 0, 1]);
        message
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        let expected = Neighbour {
            freshness: Freshness::Fresh,
            mac: Some([2, 0, 0, 0, 0, 1]),
        };
        assert_eq!(neighbour(&message), Some(((4, address), expected)));

        message.header.flags = NeighbourFlags::Proxy;
        assert_eq!(neighbour(&message), None);
    }

    #[test]
    fn a_default_route_concerns_every_address_of_its_family() {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        assert_eq!(destination(&message), Some("::/0".parse().unwrap()));
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 8;
        message.attributes.push(RouteAttribute::Destination(
            IpAddr::from([10, 0, 0, 0]).into(),
        ));
        assert_eq!(destination(&message), Some("10.0.0.0/8".parse().unwrap()));
    }

    #[test]
    fn an_overrun_is_told() {
        assert_eq!(
            Event::from_payload(NetlinkPayload::Overrun(vec![])),
            Some(Event::Lost)
        );
    }
}
