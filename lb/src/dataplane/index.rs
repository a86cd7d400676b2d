//! The VIP index: built by the daemon, one generation while packets use the other.
//!
//! See [`sluice_ebpf::vip`] for what is looked up. Seeds are tried until the hash is free of collisions for the set.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use sluice_ebpf::{
    abi::{AddressEntry, Generation, INLINE_SERVICES, MAX_VIP_LENGTHS, NO_VIP, Service},
    hash::seeded,
    vip::{address_hash, displacement_index, masked, service_hash, slot_index},
};

use super::{encode::words, error::ApplyError};

/// One VIP as the index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub prefix: IpNet,
    /// 6, 17, or 0 for both.
    pub protocol: u8,
    /// Zero means all.
    pub port: u16,
    /// From 1.
    pub vip: u16,
}

/// What one generation holds. Places that are not listed must be zero.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub generation: Generation,
    pub addresses: Vec<AddressEntry>,
    pub services: Vec<Service>,
    pub address_displacements: Vec<u32>,
    pub service_displacements: Vec<u32>,
}

/// What a generation has room for; powers of two.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub entries: u32,
    pub displacements: u32,
}

/// Builds the index of these VIPs. The first VIP of an address answers for ICMP.
pub(crate) fn build(vips: &[Indexed], room: Room) -> Result<Index, ApplyError> {
    let mut generation = Generation {
        lengths_v4: lengths(vips, 4)?,
        lengths_v6: lengths(vips, 6)?,
        ..Generation::default()
    };
    let mut by_prefix: BTreeMap<IpNet, Vec<&Indexed>> = BTreeMap::new();
    for vip in vips {
        by_prefix.entry(vip.prefix.trunc()).or_default().push(vip);
    }
    let mut entries = Vec::new();
    let mut hashed = Vec::new();
    for (id, (prefix, vips)) in (1u32..).zip(&by_prefix) {
        let (entry, more) = address(id, prefix, vips);
        entries.push(entry);
        hashed.extend(more);
    }
    let addresses = place(&entries, room, |seed, entry| {
        let seeded = Generation {
            address_seed: seed,
            ..Generation::default()
        };
        address_hash(&seeded, entry.prefix, entry.length)
    })?;
    let services = place(&hashed, room, |seed, service| {
        let seeded = Generation {
            service_seed: seed,
            ..Generation::default()
        };
        service_hash(&seeded, service.address_and_protocol, service.port)
    })?;
    generation.address_seed = addresses.seed;
    generation.address_mask = addresses.mask;
    generation.address_displacement_mask = addresses.displacement_mask;
    generation.service_seed = services.seed;
    generation.service_mask = services.mask;
    generation.service_displacement_mask = services.displacement_mask;
    Ok(Index {
        generation,
        addresses: addresses.slots,
        services: services.slots,
        address_displacements: addresses.displacements,
        service_displacements: services.displacements,
    })
}

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Seeds that are tried. At half load or less, nearly every seed does.
const SEEDS: u64 = 64;

/// An address's entry, and its services if they are too many for that.
fn address(id: u32, prefix: &IpNet, vips: &[&Indexed]) -> (AddressEntry, Vec<Service>) {
    let mut services: Vec<Service> = vips
        .iter()
        .map(|vip| Service {
            address_and_protocol: id << 8 | u32::from(vip.protocol),
            port: vip.port,
            vip: vip.vip,
        })
        .collect();
    services.sort_by_key(|service| (service.port == 0, service.address_and_protocol & 0xff == 0));
    let first_of = |protocol| {
        vips.iter()
            .find(|vip| vip.protocol == protocol || vip.protocol == 0)
            .map_or(NO_VIP, |vip| vip.vip)
    };
    let v6 = matches!(prefix, IpNet::V6(_));
    let mut entry = AddressEntry {
        prefix: masked(words(prefix.addr()), prefix.prefix_len(), v6),
        id,
        length: prefix.prefix_len(),
        family: if v6 { 6 } else { 4 },
        icmp_vip: vips.first().map_or(NO_VIP, |vip| vip.vip),
        tcp_fragment_vip: first_of(TCP),
        udp_fragment_vip: first_of(UDP),
        more: u32::from(services.len() > INLINE_SERVICES),
        services: [Service::default(); INLINE_SERVICES],
    };
    for (to, service) in entry.services.iter_mut().zip(&services) {
        *to = *service;
    }
    (
        entry,
        if entry.more == 0 {
            Vec::new()
        } else {
            services
        },
    )
}

/// The prefix lengths of a family, longest first.
fn lengths(vips: &[Indexed], family: u8) -> Result<u64, ApplyError> {
    let lengths: BTreeSet<u8> = vips
        .iter()
        .filter(|vip| (family == 4) == matches!(vip.prefix, IpNet::V4(_)))
        .map(|vip| vip.prefix.prefix_len())
        .collect();
    if lengths.len() > MAX_VIP_LENGTHS {
        return Err(ApplyError::Lengths {
            family,
            most: MAX_VIP_LENGTHS,
        });
    }
    // The shortest is pushed to the top first.
    Ok(lengths
        .iter()
        .fold(0, |packed, &length| packed << 8 | (u64::from(length) + 1)))
}

/// A table without collisions.
struct Placed<T> {
    seed: u64,
    mask: u32,
    displacement_mask: u32,
    slots: Vec<T>,
    displacements: Vec<u32>,
}

fn place<T: Copy + Default>(
    items: &[T],
    room: Room,
    hash: impl Fn(u64, &T) -> u64,
) -> Result<Placed<T>, ApplyError> {
    let most = u64::from(room.entries / 2);
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    if u64::from(count) > most {
        return Err(ApplyError::Full {
            what: "VIP addresses or services",
            most,
        });
    }
    let slots = (count * 2).next_power_of_two();
    let groups = (count / 2).next_power_of_two().min(room.displacements);
    (0..SEEDS)
        .map(|n| seeded(n, 0x7669_7073, 0))
        .find_map(|seed| {
            let hashes: Vec<u64> = items.iter().map(|item| hash(seed, item)).collect();
            let displacements = displace(&hashes, slots - 1, groups - 1)?;
            let mut table = vec![T::default(); slots as usize];
            for (item, &hash) in items.iter().zip(&hashes) {
                let displacement = displacements[displacement_index(hash, groups - 1) as usize];
                table[slot_index(hash, displacement, slots - 1) as usize] = *item;
            }
            Some(Placed {
                seed,
                mask: slots - 1,
                displacement_mask: groups - 1,
                slots: table,
                displacements,
            })
        })
        .ok_or(ApplyError::Index)
}

/// A displacement for each group under which no two hashes meet, if there is one.
fn displace(hashes: &[u64], mask: u32, group_mask: u32) -> Option<Vec<u32>> {
    let mut groups = vec![Vec::new(); group_mask as usize + 1];
    for &hash in hashes {
        groups[displacement_index(hash, group_mask) as usize].push(hash);
    }
    let mut order: Vec<usize> = (0..groups.len()).collect();
    // The largest while there is most room.
    order.sort_by_key(|&group| std::cmp::Reverse(groups[group].len()));
    let mut displacements = vec![0; groups.len()];
    let mut taken = vec![false; mask as usize + 1];
    for group in order {
        displacements[group] = (0..=mask).find(|&displacement| {
            let slots = || {
                groups[group]
                    .iter()
                    .map(move |&hash| slot_index(hash, displacement, mask) as usize)
            };
            let distinct: BTreeSet<usize> = slots().collect();
            distinct.len() == groups[group].len() && slots().all(|slot| !taken[slot])
        })?;
        for &hash in &groups[group] {
            taken[slot_index(hash, displacements[group], mask) as usize] = true;
        }
    }
    Some(displacements)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use sluice_ebpf::vip::takes;

    use super::*;

    const ROOM: Room = Room {
        entries: 4096,
        displacements: 1024,
    };

    /// The lookup as `kernel/vips.rs` does it, over slices.
    #[expect(clippy::cast_possible_truncation, reason = "lengths are bytes")]
    fn find(index: &Index, destination: IpAddr, protocol: u8, port: u16) -> Option<u16> {
        let v6 = destination.is_ipv6();
        let generation = &index.generation;
        let mut lengths = if v6 {
            generation.lengths_v6
        } else {
            generation.lengths_v4
        };
        while lengths != 0 {
            let length = (lengths as u8) - 1;
            let prefix = masked(words(destination), length, v6);
            let hash = address_hash(generation, prefix, length);
            let displacement = index.address_displacements
                [displacement_index(hash, generation.address_displacement_mask) as usize];
            let slot = slot_index(hash, displacement, generation.address_mask);
            let entry = &index.addresses[slot as usize];
            if entry.prefix == prefix && entry.id != 0 && entry.length == length {
                return find_service(index, entry, protocol, port);
            }
            lengths >>= 8;
        }
        None
    }

    fn find_service(index: &Index, entry: &AddressEntry, protocol: u8, port: u16) -> Option<u16> {
        if entry.more == 0 {
            return entry
                .services
                .iter()
                .find(|service| takes(service, protocol, port))
                .map(|service| service.vip);
        }
        let generation = &index.generation;
        let protocol = u32::from(protocol);
        let both = entry.id << 8;
        [
            (both | protocol, port),
            (both, port),
            (both | protocol, 0),
            (both, 0),
        ]
        .into_iter()
        .find_map(|(key, port)| {
            let hash = service_hash(generation, key, port);
            let displacement = index.service_displacements
                [displacement_index(hash, generation.service_displacement_mask) as usize];
            let slot = slot_index(hash, displacement, generation.service_mask);
            let found = index.services[slot as usize];
            (found.address_and_protocol == key && found.port == port && found.vip != 0)
                .then_some(found.vip)
        })
    }

    /// What the lookup shall find: longest prefix first, then port before protocol.
    fn expected(vips: &[Indexed], destination: IpAddr, protocol: u8, port: u16) -> Option<u16> {
        let longest = vips
            .iter()
            .filter(|vip| vip.prefix.contains(&destination))
            .map(|vip| vip.prefix.prefix_len())
            .max()?;
        vips.iter()
            .filter(|vip| vip.prefix.contains(&destination) && vip.prefix.prefix_len() == longest)
            .filter(|vip| vip.protocol == 0 || vip.protocol == protocol)
            .filter(|vip| vip.port == 0 || vip.port == port)
            .min_by_key(|vip| (vip.port == 0, vip.protocol == 0))
            .map(|vip| vip.vip)
    }

    fn prefixes() -> impl Strategy<Value = IpNet> {
        let v4_lengths = prop::sample::select(vec![8u8, 16, 24, 28, 31, 32]);
        let v6_lengths = prop::sample::select(vec![32u8, 48, 64, 127, 128]);
        prop_oneof![
            (0u32..64, v4_lengths).prop_map(|(low, length)| {
                let address = Ipv4Addr::from(0x0a00_0000 | low);
                IpNet::new(address.into(), length).unwrap().trunc()
            }),
            (0u128..64, v6_lengths).prop_map(|(low, length)| {
                let address = Ipv6Addr::from(0x2001_0db8 << 96 | low);
                IpNet::new(address.into(), length).unwrap().trunc()
            }),
        ]
    }

    fn vips() -> impl Strategy<Value = Vec<Indexed>> {
        let protocols = prop::sample::select(vec![0u8, TCP, UDP]);
        prop::collection::btree_set((prefixes(), protocols, 0u16..6), 0..200).prop_map(|set| {
            (1..)
                .zip(set)
                .map(|(vip, (prefix, protocol, port))| Indexed {
                    prefix,
                    protocol,
                    port,
                    vip,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn lookups_find_the_most_specific_vip(
            vips in vips(),
            low in prop::collection::vec((0u32..66, any::<bool>(), prop::sample::select(vec![TCP, UDP]), 0u16..7), 50),
        ) {
            let index = build(&vips, ROOM).unwrap();
            for (low, v6, protocol, port) in low {
                let destination = if v6 {
                    IpAddr::from(Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(low)))
                } else {
                    IpAddr::from(Ipv4Addr::from(0x0a00_0000 | low))
                };
                prop_assert_eq!(
                    find(&index, destination, protocol, port),
                    expected(&vips, destination, protocol, port)
                );
            }
        }
    }

    #[test]
    fn a_full_generation_is_built() {
        let vips: Vec<Indexed> = (0..2047)
            .map(|n: u16| Indexed {
                prefix: IpNet::from(IpAddr::from(Ipv4Addr::from(0xc633_0000 + u32::from(n) * 7))),
                protocol: TCP,
                port: 443,
                vip: n + 1,
            })
            .collect();
        let index = build(&vips, ROOM).unwrap();
        for vip in &vips {
            assert_eq!(find(&index, vip.prefix.addr(), TCP, 443), Some(vip.vip));
        }
    }

    #[test]
    fn more_lengths_than_a_packet_tries_are_refused() {
        let vips: Vec<Indexed> = (1..=9)
            .map(|n: u8| Indexed {
                prefix: IpNet::new(Ipv4Addr::new(10, n, 0, 0).into(), 15 + n)
                    .unwrap()
                    .trunc(),
                protocol: 0,
                port: 0,
                vip: u16::from(n),
            })
            .collect();
        assert!(matches!(
            build(&vips, ROOM),
            Err(ApplyError::Lengths { family: 4, .. })
        ));
    }
}
