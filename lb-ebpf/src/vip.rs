//! The VIP index: from a destination to its VIP in two or three array reads, whatever the number of VIPs.
//!
//! Addresses are placed by "hash and displace" (Belazzougui, Botelho, Dietzfelbinger, 2009): a small table of
//! displacements makes the hash perfect for the set at hand, so a lookup reads one displacement and one entry, and
//! compares. The daemon builds a generation while packets use the other.

use crate::{
    abi::{Generation, Service},
    hash,
};

/// Hash of an address of a prefix of `length`, under this generation's seed.
#[inline(always)]
#[must_use]
pub fn address_hash(generation: &Generation, prefix: [u64; 2], length: u8) -> u64 {
    hash::seeded(
        generation.address_seed ^ length as u64,
        prefix[0] ^ prefix[1],
        prefix[1],
    )
}

/// Hash of a protocol and port of an address.
#[inline(always)]
#[must_use]
pub fn service_hash(generation: &Generation, address_and_protocol: u32, port: u16) -> u64 {
    hash::seeded(
        generation.service_seed,
        u64::from(address_and_protocol) | u64::from(port) << 32,
        0,
    )
}

/// Index of a hash's displacement.
#[inline(always)]
#[must_use]
pub const fn displacement_index(hash: u64, mask: u32) -> u32 {
    (hash >> 40) as u32 & mask
}

/// Index of a hash's slot, given its displacement.
#[inline(always)]
#[must_use]
pub const fn slot_index(hash: u64, displacement: u32, mask: u32) -> u32 {
    (hash as u32).wrapping_add(((hash >> 20) as u32 | 1).wrapping_mul(displacement)) & mask
}

/// `address` with all but the first `length` bits cleared. IPv4 is mapped; its lengths count from 0 to 32.
#[inline(always)]
#[must_use]
pub const fn masked(address: [u64; 2], length: u8, v6: bool) -> [u64; 2] {
    let bits = if v6 {
        length as u32
    } else {
        length as u32 + 96
    };
    [
        address[0] & mask64(bits),
        address[1] & mask64(bits.saturating_sub(64)),
    ]
}

/// Mask of the first `bits` of a word in network byte order; all of them from 64 on.
#[inline(always)]
const fn mask64(bits: u32) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else if bits == 0 {
        0
    } else {
        (u64::MAX << (64 - bits)).to_be()
    }
}

/// Whether a service takes packets of this protocol and port (host byte order).
#[inline(always)]
#[must_use]
pub const fn takes(service: &Service, protocol: u8, port: u16) -> bool {
    let wanted = service.address_and_protocol as u8;
    service.vip != 0
        && (wanted == protocol || wanted == 0)
        && (service.port == port || service.port == 0)
}
