//! Prefixes as keys, in an order in which each is followed by what it covers.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Bound::{self, Excluded, Included},
};

use ipnet::IpNet;

/// A prefix, IPv4 mapped. In order, each prefix is followed by what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) bits: u128,
    /// In IPv6 terms.
    pub(crate) length: u8,
}

impl Key {
    pub(crate) fn of(prefix: IpNet) -> Self {
        let length = match prefix {
            IpNet::V4(prefix) => prefix.prefix_len() + 96,
            IpNet::V6(prefix) => prefix.prefix_len(),
        };
        Self {
            bits: mapped_bits(prefix.network()),
            length,
        }
    }

    /// This prefix cut to `length`.
    pub(crate) fn cut(self, length: u8) -> Self {
        Self {
            bits: self.bits & !host_mask(length),
            length,
        }
    }

    /// Its last address.
    pub(crate) fn last(self) -> u128 {
        self.bits | host_mask(self.length)
    }

    pub(crate) fn covers(self, other: Self) -> bool {
        self.length <= other.length && other.cut(self.length).bits == self.bits
    }

    /// As words in memory.
    pub(crate) fn words(self) -> [u64; 2] {
        words_of(self.bits)
    }

    pub(crate) fn bits_of(words: [u64; 2]) -> u128 {
        u128::from_be_bytes(bytemuck::cast(words))
    }
}

/// An address as words in memory.
pub(crate) fn words_of(bits: u128) -> [u64; 2] {
    bytemuck::cast(bits.to_be_bytes())
}

fn host_mask(length: u8) -> u128 {
    u128::MAX.checked_shr(length.into()).unwrap_or(0)
}

/// Where in their order the prefixes inside of one stand, without itself.
pub(crate) fn inside(key: Key) -> (Bound<Key>, Bound<Key>) {
    let last = Key {
        bits: key.last(),
        length: 128,
    };
    // A full-length prefix is its own last one, and holds nothing.
    if key == last {
        return (Included(key), Excluded(key));
    }
    (Excluded(key), Included(last))
}

/// An address as it stands in memory, IPv4 mapped.
pub(crate) fn mapped_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}
