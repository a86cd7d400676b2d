//! Addresses and prefixes as a config writes them, and those that nothing can be sent to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{error::quoted, section::Field};

/// A prefix, or an address as a prefix of full length. Host bits are an error.
pub(super) fn prefix(field: &Field<'_>) -> Option<IpNet> {
    let text = field.string()?;
    if !text.contains('/') {
        return field
            .parsed::<IpAddr>(text, "an IP address or prefix", EXAMPLE)
            .map(IpNet::from);
    }
    let given: IpNet = field.parsed(text, "an IP prefix", EXAMPLE)?;
    let right = given.trunc();
    if given != right {
        field.error(|| {
            let address = given.addr();
            format!("{} has bits beyond its length; write \"{right}\", or \"{address}\" for the one address", quoted(text))
        });
        return None;
    }
    Some(right)
}

/// A range that neither a VIP nor a backend nor a source can be in.
#[derive(Clone, Copy)]
pub(super) struct Unfit {
    pub(super) range: IpNet,
    pub(super) what: &'static str,
}

/// The unfit range that `prefix` overlaps, if there is one.
pub(super) fn unfit_range(prefix: &IpNet) -> Option<Unfit> {
    let overlaps = |unfit: &&Unfit| unfit.range.contains(prefix) || prefix.contains(&unfit.range);
    UNFIT.iter().find(overlaps).copied()
}

const EXAMPLE: &str = "\"192.0.2.10\", \"192.0.2.0/24\" or \"2001:db8::/64\"";

const UNFIT: &[Unfit] = &[
    v4([0, 0, 0, 0], 8, "unspecified"),
    v4([127, 0, 0, 0], 8, LOOPBACK),
    v4([224, 0, 0, 0], 4, "multicast"),
    v4([255, 255, 255, 255], 32, "broadcast"),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, "unspecified"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, LOOPBACK),
    // The data plane takes these for IPv4.
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4-mapped"),
    // Only good with an interface, which a config cannot name; as VIPs they would take neighbour discovery from the host.
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, LINK_LOCAL),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
];

pub(super) const LOOPBACK: &str = "loopback";
pub(super) const LINK_LOCAL: &str = "link-local";

const fn v4(address: [u8; 4], length: u8, what: &'static str) -> Unfit {
    let [a, b, c, d] = address;
    Unfit {
        range: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)),
        what,
    }
}

const fn v6(address: [u16; 8], length: u8, what: &'static str) -> Unfit {
    let [a, b, c, d, e, f, g, h] = address;
    Unfit {
        range: IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(a, b, c, d, e, f, g, h),
            length,
        )),
        what,
    }
}
