//! How this host reaches a backend: interface, MAC addresses and MTU, from the kernel's own tables and kept fresh.
//!
//! All sockets belong to the network namespace of the thread that opens them. [`Resolver::start`] opens its sockets
//! before it returns; only after a netlink failure are they opened again, by a thread of the runtime. A process that
//! moves single threads between namespaces must therefore run the resolver on a current-thread runtime.
mod host;
mod kernel;
mod link;
mod resolver;
mod tables;
mod xdp_features;

use std::net::IpAddr;

pub use host::{HostInterface, host_interfaces};
pub use link::{Interface, InterfacesError, VlanTag, if_index, if_name, interfaces};
pub use resolver::{Resolutions, Resolver, Wanted};
pub use xdp_features::{XdpFeatures, xdp_features};

/// What a frame needs to get to a backend, or to the router on the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface that the frame leaves by; for a VLAN device the one under it.
    pub ifindex: u32,
    /// The tag to put on, if the route leaves by a VLAN device.
    pub vlan: Option<u16>,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub station: Station,
    /// Of the interface or of the route, whichever is less. At most 65,535.
    pub mtu_bytes: u16,
    /// The source address that this host would choose. Unspecified if it has none of that family.
    pub source: IpAddr,
}

/// Who gets a frame that is sent to a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// Of whoever's destination address the packet in it is.
    Backend,
    /// It looks at that address, and sends the packet there.
    Router,
}

/// Whether a backend can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Resolved(NextHop),
    Unresolved(Reason),
}

/// Why nothing can be sent to a backend now. Each says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    #[error("no route to it; add one, or correct the backend's address")]
    NoRoute,
    #[error(
        "its next hop does not answer ARP or neighbour discovery; check that it is up and on the same network"
    )]
    NeighbourFailed,
    #[error(
        "waiting for its next hop to answer ARP or neighbour discovery; if this lasts, check that it is up"
    )]
    NeighbourIncomplete,
    #[error(
        "the kernel's neighbour table is full; raise net.ipv4.neigh.default.gc_thresh3 (net.ipv6.neigh.default.gc_thresh3 for IPv6) above the number of neighbours"
    )]
    NeighbourTableFull,
    #[error("the interface towards it is down; bring it up, or check the cable")]
    InterfaceDown,
    #[error(
        "the interface towards it is no Ethernet device with at most one VLAN tag; route it through one that is"
    )]
    NotEthernet,
    #[error(
        "it is an address of this host; use `forward = \"local\"`, or correct the backend's address"
    )]
    Local,
    /// A packet for the VIP would come back from there.
    #[error("it is behind a router, which `l2` cannot pass; use `ipip` or `gue`")]
    BehindRouter,
}
