//! The interfaces of this host by name, with their addresses, as they are at one moment.

use std::{collections::BTreeMap, io, net::IpAddr};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

/// What a config can name of an interface, or take from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterface {
    pub addresses: Vec<IpAddr>,
    /// Others find it at its addresses: it is up, and asks and answers by ARP or neighbour discovery, which loopback and
    /// dummy devices don't.
    pub answers: bool,
}

/// Lists them in the calling thread's network namespace.
pub fn host_interfaces() -> io::Result<BTreeMap<String, HostInterface>> {
    let mut interfaces: BTreeMap<String, HostInterface> = BTreeMap::new();
    for entry in getifaddrs()? {
        // Of an IPv4 address that has a label, this is the label: `eth0:1`.
        let name = entry.interface_name.split(':').next().unwrap_or_default();
        let interface = interfaces.entry(name.to_owned()).or_default();
        let silent = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_NOARP;
        interface.answers =
            entry.flags.contains(InterfaceFlags::IFF_UP) && !entry.flags.intersects(silent);
        interface
            .addresses
            .extend(entry.address.and_then(|address| {
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            }));
    }
    Ok(interfaces)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn nobody_finds_this_host_at_its_loopback() {
        let interfaces = host_interfaces().unwrap();
        let loopback = &interfaces["lo"];
        assert!(!loopback.answers);
        assert!(loopback.addresses.contains(&Ipv4Addr::LOCALHOST.into()));
    }
}
