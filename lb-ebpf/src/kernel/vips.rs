//! From a destination to its VIP.

use core::hint::cold_path;

use super::maps::{ADDRESSES, DISPLACEMENTS, SERVICES, settings};
use crate::{
    abi::{AddressEntry, GENERATIONS, Generation, INLINE_SERVICES, MAX_VIP_LENGTHS, Settings},
    hide,
    vip::{address_hash, displacement_index, masked, service_hash, slot_index, takes},
};

/// An address with VIPs, and the generation of the index that it is of.
#[derive(Clone, Copy)]
pub struct Found {
    pub entry: &'static AddressEntry,
    generation: &'static Generation,
}

/// The address or prefix with VIPs that holds `destination`; the longest prefix wins.
///
/// Most VIPs are single addresses; making a mask costs more than the rest of a miss.
#[inline(always)]
#[must_use]
pub fn find_address(settings: &'static Settings, destination: [u64; 2], v6: bool) -> Option<Found> {
    let generation = generation(settings);
    let (mut lengths, single) = lengths(generation, v6);
    if lengths as u8 == single + 1 {
        if let Some(at) = find(generation, destination, single)
            && let Some(entry) = holds(at, destination, single)
        {
            return Some(Found { entry, generation });
        }
        lengths >>= 8;
    }
    if lengths == 0 {
        return None;
    }
    cold_path();
    let at = sluice_find_prefix(destination[0], destination[1], v6);
    let entry = ADDRESSES.get(at.wrapping_sub(1))?;
    Some(Found { entry, generation })
}

/// The prefix that holds an address, shorter than the address itself: its place in `ADDRESSES` plus one, or zero.
///
/// A global function: the verifier follows it once, not once for each way to reach it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sluice_find_prefix(high: u64, low: u64, v6: bool) -> u32 {
    let Some(settings) = settings() else {
        return 0;
    };
    let generation = generation(settings);
    let (mut lengths, single) = lengths(generation, v6);
    for _ in 0..MAX_VIP_LENGTHS {
        if lengths == 0 {
            return 0;
        }
        let length = (lengths as u8).wrapping_sub(1);
        lengths >>= 8;
        if length == single {
            continue;
        }
        let prefix = masked([high, low], length, v6);
        if let Some(at) = find(generation, prefix, length)
            && holds(at, prefix, length).is_some()
        {
            return at + 1;
        }
    }
    0
}

/// The lengths of a family's prefixes, and that of a single address.
#[inline(always)]
fn lengths(generation: &Generation, v6: bool) -> (u64, u8) {
    if v6 {
        (generation.lengths_v6, 128)
    } else {
        (generation.lengths_v4, 32)
    }
}

/// The only place where a prefix can be.
#[inline(always)]
fn find(generation: &Generation, prefix: [u64; 2], length: u8) -> Option<u32> {
    let hash = address_hash(generation, prefix, length);
    let displacement = DISPLACEMENTS.get(
        generation.address_displacement_base
            + displacement_index(hash, generation.address_displacement_mask),
    )?;
    Some(generation.address_base + slot_index(hash, *displacement, generation.address_mask))
}

/// The entry at a place, if it is that of a prefix.
#[inline(always)]
fn holds(at: u32, prefix: [u64; 2], length: u8) -> Option<&'static AddressEntry> {
    let entry = ADDRESSES.get(at)?;
    (entry.prefix[1] == prefix[1]
        && entry.prefix[0] == prefix[0]
        && entry.id != 0
        && entry.length == length)
        .then_some(entry)
}

#[inline(always)]
fn generation(settings: &'static Settings) -> &'static Generation {
    let generations = settings.generations.as_ptr();
    // SAFETY: the mask leaves 0 or 1.
    unsafe { &*generations.add(hide(settings.active as usize) & (GENERATIONS as usize - 1)) }
}

/// The VIP of this address that takes packets of a protocol and port (host byte order); exact ones before wildcards.
#[inline(always)]
#[must_use]
pub fn find_service(found: &Found, protocol: u8, port: u16) -> Option<u16> {
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
    find_hashed(found.generation, address.id << 8 | protocol, port)
        .or_else(|| find_hashed(found.generation, address.id << 8, port))
        .or_else(|| find_hashed(found.generation, address.id << 8 | protocol, 0))
        .or_else(|| find_hashed(found.generation, address.id << 8, 0))
}

#[inline(always)]
fn find_hashed(generation: &Generation, address_and_protocol: u32, port: u16) -> Option<u16> {
    let hash = service_hash(generation, address_and_protocol, port);
    let displacement = DISPLACEMENTS.get(
        generation.service_displacement_base
            + displacement_index(hash, generation.service_displacement_mask),
    )?;
    let slot = slot_index(hash, *displacement, generation.service_mask);
    let entry = SERVICES.get(generation.service_base + slot)?;
    if entry.address_and_protocol == address_and_protocol && entry.port == port && entry.vip != 0 {
        Some(entry.vip)
    } else {
        None
    }
}
