//! From a destination to its VIP.

use super::maps::{
    ADDRESS_ENTRIES, ADDRESSES, DISPLACEMENT_ENTRIES, DISPLACEMENTS, SERVICE_ENTRIES, SERVICES,
};
use crate::{
    abi::{AddressEntry, GENERATIONS, Generation, INLINE_SERVICES, MAX_VIP_LENGTHS, Settings},
    hide,
    vip::{address_hash, displacement_index, masked, service_hash, slot_index, takes},
};

/// An address with VIPs, and the generation of the index that it is of.
#[derive(Clone, Copy)]
pub struct Found {
    pub entry: &'static AddressEntry,
    active: u32,
}

/// The address or prefix with VIPs that holds `destination`; the longest prefix wins.
#[inline(always)]
#[must_use]
pub fn find_address(settings: &Settings, destination: [u64; 2], v6: bool) -> Option<Found> {
    let active = settings.active & (GENERATIONS - 1);
    let generation = generation(settings, active);
    let mut lengths = if v6 {
        generation.lengths_v6
    } else {
        generation.lengths_v4
    };
    for _ in 0..MAX_VIP_LENGTHS {
        if lengths == 0 {
            return None;
        }
        let length = (lengths as u8).wrapping_sub(1);
        // Most VIPs are single addresses; making a mask costs more than the rest of a miss.
        let prefix = if length == if v6 { 128 } else { 32 } {
            destination
        } else {
            masked(destination, length, v6)
        };
        let hash = address_hash(generation, prefix, length);
        let displacement = DISPLACEMENTS.get(
            active * DISPLACEMENT_ENTRIES.load()
                + displacement_index(hash, generation.address_displacement_mask),
        )?;
        let slot = slot_index(hash, *displacement, generation.address_mask);
        let entry = ADDRESSES.get(active * ADDRESS_ENTRIES.load() + slot)?;
        if entry.prefix[0] == prefix[0]
            && entry.prefix[1] == prefix[1]
            && entry.id != 0
            && entry.length == length
        {
            return Some(Found { entry, active });
        }
        lengths >>= 8;
    }
    None
}

#[inline(always)]
fn generation(settings: &Settings, active: u32) -> &Generation {
    let generations = settings.generations.as_ptr();
    // SAFETY: `active` is 0 or 1.
    unsafe { &*generations.add(hide(active as usize) & 1) }
}

/// The VIP of this address that takes packets of a protocol and port (host byte order); exact ones before wildcards.
#[inline(always)]
#[must_use]
pub fn find_service(settings: &Settings, found: &Found, protocol: u8, port: u16) -> Option<u16> {
    macro_rules! try_inline {
        ($($at:literal)*) => {$(
            if takes(&found.entry.services[$at], protocol, port) {
                return Some(found.entry.services[$at].vip);
            }
        )*};
    }
    const { assert!(INLINE_SERVICES == 4) };
    let address = found.entry;
    if address.more == 0 {
        try_inline!(0 1 2 3);
        return None;
    }
    let protocol = u32::from(protocol);
    find_hashed(settings, found.active, address.id << 8 | protocol, port)
        .or_else(|| find_hashed(settings, found.active, address.id << 8, port))
        .or_else(|| find_hashed(settings, found.active, address.id << 8 | protocol, 0))
        .or_else(|| find_hashed(settings, found.active, address.id << 8, 0))
}

#[inline(always)]
fn find_hashed(
    settings: &Settings,
    active: u32,
    address_and_protocol: u32,
    port: u16,
) -> Option<u16> {
    let generation = generation(settings, active);
    let hash = service_hash(generation, address_and_protocol, port);
    let displacement = DISPLACEMENTS.get(
        (active + GENERATIONS) * DISPLACEMENT_ENTRIES.load()
            + displacement_index(hash, generation.service_displacement_mask),
    )?;
    let slot = slot_index(hash, *displacement, generation.service_mask);
    let entry = SERVICES.get(active * SERVICE_ENTRIES.load() + slot)?;
    if entry.address_and_protocol == address_and_protocol && entry.port == port && entry.vip != 0 {
        Some(entry.vip)
    } else {
        None
    }
}
