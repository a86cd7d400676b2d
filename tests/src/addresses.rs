//! Who has which address. Every lab has the same ones: namespaces keep them apart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::Mac;

pub const HTTP_PORT: u16 = 80;
pub const UDP_PORT: u16 = 53;

/// The router sends both to the load balancers; every backend has all of both on `lo`.
pub const VIPS_V4: &str = "192.0.2.0/24";
pub const VIPS_V6: &str = "2001:db8:1::/64";

pub const WEB_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), HTTP_PORT);
pub const WEB_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1)),
    HTTP_PORT,
);
pub const DNS_V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), UDP_PORT);
pub const DNS_V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x53)),
    UDP_PORT,
);

/// The segment of the load balancers' first interface, which the router reaches them by.
pub const FRONT: Segment = Segment(0);
/// The segment of their second interface, if they have two; the backends stand here then.
pub const BACK: Segment = Segment(1);

/// One of the PoP's Ethernet segments: a bridge in the router's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment(u8);

pub(crate) const ROUTER: u8 = 1;

/// Host number of load balancer `index`.
pub(crate) fn node_host(index: usize) -> u8 {
    small(2 + index)
}

/// Host number of backend `index`.
pub(crate) fn backend_host(index: usize) -> u8 {
    small(11 + index)
}

impl Segment {
    pub(crate) fn bridge(self) -> String {
        format!("pop{}", self.0)
    }

    /// What the load balancers call their interface here.
    pub(crate) fn node_interface(self) -> String {
        format!("eth{}", self.0)
    }

    /// What the router calls its port to load balancer `index`.
    pub(crate) fn node_port(self, index: usize) -> String {
        format!("l{index}s{}", self.0)
    }

    pub(crate) fn v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, self.0, host)
    }

    pub(crate) fn v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, self.0.into(), 0, 0, 0, host.into())
    }

    pub(crate) fn mac(self, host: u8) -> Mac {
        [2, 0, self.0, 0, 0, host]
    }

    /// For `ip`: everything else is behind the router.
    pub(crate) fn default_routes(self) -> [String; 2] {
        [
            format!("route replace default via {}", self.v4(ROUTER)),
            format!("route replace default via {}", self.v6(ROUTER)),
        ]
    }

    /// Of the router's end of the cable to `host`. A bridge port needs an address, though nobody talks to it.
    pub(crate) fn port_mac(self, host: u8) -> Mac {
        [2, 0, self.0, 0, 1, host]
    }
}

/// The cable between the router and client `index`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientLink {
    index: u8,
}

impl ClientLink {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index: small(index),
        }
    }

    /// What the router calls its end.
    pub(crate) fn port(self) -> String {
        format!("c{}", self.index)
    }

    pub(crate) fn v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 1, self.index, host)
    }

    pub(crate) fn v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 1, 0, self.index.into(), 0, 0, 0, host.into())
    }

    pub(crate) fn mac(self, host: u8) -> Mac {
        [2, 1, 0, 0, self.index, host]
    }

    /// The prefixes of a client of which nothing else is said.
    pub(crate) fn default_prefixes(self) -> Vec<IpNet> {
        [
            format!("100.64.{}.0/24", self.index),
            format!("2001:db8:c:{:x}::/64", self.index),
        ]
        .map(|prefix| prefix.parse().expect("a prefix"))
        .to_vec()
    }
}

/// The second address of the `index`th network (/24 or /48) of a prefix.
pub(crate) fn in_network(prefix: IpNet, index: u32) -> IpAddr {
    match prefix {
        IpNet::V4(_) => nth(prefix, (index << 8) + 2),
        IpNet::V6(prefix) => (u128::from(prefix.network()) + (u128::from(index) << 80) + 2)
            .to_be_bytes()
            .into(),
    }
}

/// The `index`th address of a prefix, counted from its network address.
pub(crate) fn nth(prefix: IpNet, index: u32) -> IpAddr {
    match prefix {
        IpNet::V4(prefix) => (u32::from(prefix.network()) + index).to_be_bytes().into(),
        IpNet::V6(prefix) => (u128::from(prefix.network()) + u128::from(index))
            .to_be_bytes()
            .into(),
    }
}

fn small(number: usize) -> u8 {
    number
        .try_into()
        .ok()
        .filter(|&n| n < 200)
        .expect("a lab has few hosts")
}
