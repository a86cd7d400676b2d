//! The VIP index of the test's world: a seed without collisions, so that every displacement stays zero.

use ipnet::IpNet;
use sluice_ebpf::{
    abi::{AddressEntry, Generation, INLINE_SERVICES, NO_VIP, Service as Entry},
    packet::mapped,
    vip::{address_hash, masked, service_hash, slot_index},
};

use crate::{
    packet::{TCP, UDP},
    world::Service,
};

/// Slots of a generation, as the program has them by default.
const SLOTS: u32 = 2048;

/// One generation of the index, and its entries by slot.
pub(crate) struct Index {
    pub(crate) generation: Generation,
    pub(crate) addresses: Vec<(u32, AddressEntry)>,
    pub(crate) services: Vec<(u32, Entry)>,
}

impl Index {
    /// VIPs are numbered in the order of `services`, from 1.
    pub(crate) fn new(services: &[Service]) -> Self {
        let mut prefixes: Vec<IpNet> = services.iter().map(|service| service.prefix).collect();
        prefixes.sort();
        prefixes.dedup();
        let (mut addresses, mut more) = (vec![], vec![]);
        for (prefix, id) in prefixes.iter().zip(1..) {
            let mut here: Vec<(u16, &Service)> = (1..)
                .zip(services)
                .filter(|(_, service)| service.prefix == *prefix)
                .collect();
            here.sort_by_key(|(_, service)| (service.port == 0, service.protocol == 0));
            let entries: Vec<Entry> = here.iter().map(|(vip, s)| entry(id, *vip, s)).collect();
            let mut address = address_entry(*prefix, id, &here);
            if entries.len() > INLINE_SERVICES {
                address.more = 1;
                more.extend(entries);
            } else {
                address.services[..entries.len()].copy_from_slice(&entries);
            }
            addresses.push(address);
        }
        let mut generation = Generation {
            lengths_v4: lengths(&prefixes, false),
            lengths_v6: lengths(&prefixes, true),
            address_mask: SLOTS - 1,
            service_mask: SLOTS - 1,
            ..Generation::default()
        };
        let addresses = place(&addresses, |seed, address| {
            generation.address_seed = seed;
            address_hash(&generation, address.prefix, address.length)
        });
        let services = place(&more, |seed, service| {
            generation.service_seed = seed;
            service_hash(&generation, service.address_and_protocol, service.port)
        });
        Self {
            generation,
            addresses,
            services,
        }
    }
}

fn entry(address: u32, vip: u16, service: &Service) -> Entry {
    Entry {
        address_and_protocol: address << 8 | u32::from(service.protocol),
        port: service.port,
        vip,
    }
}

fn address_entry(prefix: IpNet, id: u32, here: &[(u16, &Service)]) -> AddressEntry {
    // What comes without ports can be told by its protocol only.
    let of = |protocol| {
        here.iter()
            .rev()
            .find(|(_, service)| [0, protocol].contains(&service.protocol))
            .map_or(NO_VIP, |(vip, _)| *vip)
    };
    AddressEntry {
        prefix: words(prefix.network()),
        id,
        length: prefix.prefix_len(),
        family: if prefix.network().is_ipv4() { 4 } else { 6 },
        icmp_vip: here[0].0,
        tcp_fragment_vip: of(TCP),
        udp_fragment_vip: of(UDP),
        ..AddressEntry::default()
    }
}

/// An address as it stands in memory, IPv4 mapped.
pub(crate) fn words(address: std::net::IpAddr) -> [u64; 2] {
    let words = match address {
        std::net::IpAddr::V4(address) => mapped(u32::from_ne_bytes(address.octets())),
        std::net::IpAddr::V6(address) => bytemuck::cast(address.octets()),
    };
    let v6 = address.is_ipv6();
    masked(words, if v6 { 128 } else { 32 }, v6)
}

fn lengths(prefixes: &[IpNet], v6: bool) -> u64 {
    let mut lengths: Vec<u8> = prefixes
        .iter()
        .filter(|prefix| prefix.network().is_ipv6() == v6)
        .map(IpNet::prefix_len)
        .collect();
    lengths.sort();
    lengths.dedup();
    // The longest is asked first: it lies in the lowest byte.
    lengths
        .iter()
        .fold(0, |list, length| list << 8 | u64::from(length + 1))
}

/// Finds a seed under which no two entries share a slot.
fn place<T: Copy>(entries: &[T], mut hash: impl FnMut(u64, &T) -> u64) -> Vec<(u32, T)> {
    for seed in 1.. {
        let mut placed: Vec<(u32, T)> = entries
            .iter()
            .map(|entry| (slot_index(hash(seed, entry), 0, SLOTS - 1), *entry))
            .collect();
        placed.sort_by_key(|(slot, _)| *slot);
        if placed.windows(2).all(|pair| pair[0].0 != pair[1].0) {
            return placed;
        }
    }
    unreachable!("a seed is found long before they run out")
}
