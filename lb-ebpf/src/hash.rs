//! Keyed hashes: an attacker who does not know the key cannot aim at a slot, bucket or cell.
//!
//! Two or three rounds of xor, multiply by a secret odd number, and shift. Not cryptographic: nobody outside sees its
//! output, and what collides costs a balanced flow or a cell, never memory. 7 ns where SipHash-1-3 takes 16.

const FINISH: u64 = 0xd6e8_feb8_6659_fd93;

/// One round: a bijection of `value` for every key.
#[inline(always)]
fn round(value: u64, key: u64, multiplier: u64) -> u64 {
    let x = (value ^ key).wrapping_mul(multiplier | 1);
    x ^ (x >> 32)
}

#[inline(always)]
fn finish(x: u64) -> u64 {
    let x = x.wrapping_mul(FINISH);
    x ^ (x >> 32)
}

/// Hash of two words, a bijection of each.
#[inline(always)]
#[must_use]
pub fn hash2(key: &[u64; 4], a: u64, b: u64) -> u64 {
    let x = round(a, key[0], key[1]);
    finish(round(x ^ b, key[2], key[3]))
}

/// Hash of a hash and another word, which need not be spread once more.
#[inline(always)]
#[must_use]
pub fn again(key: &[u64; 4], hash: u64, word: u64) -> u64 {
    round(hash ^ word, key[0], key[1])
}

/// Hash of four words.
#[inline(always)]
#[must_use]
pub fn hash4(key: &[u64; 4], words: [u64; 4]) -> u64 {
    let x = round(words[0], key[0], key[1]);
    let x = round(x ^ words[1], key[1], key[2]);
    let x = round(x ^ words[2], key[2], key[3]);
    finish(round(x ^ words[3], key[3], key[0]))
}

/// An IPv6 destination as one word. Keyed: or else who knows a VIP could compute an address that looks like it.
#[inline(always)]
#[must_use]
pub fn fold(key: &[u64; 4], destination: [u64; 2]) -> u64 {
    round(destination[0], key[3], key[1]) ^ destination[1]
}

/// Unkeyed mix for tables whose seed the daemon chose to be free of collisions.
#[inline(always)]
#[must_use]
pub fn seeded(seed: u64, a: u64, b: u64) -> u64 {
    let x = (a ^ seed).wrapping_mul(FINISH | 1);
    let x = (x ^ (x >> 32) ^ b).wrapping_mul(0x9fb2_1c65_1e98_df25);
    x ^ (x >> 32)
}

/// The flow's hash: its bucket, tag, slot and tunnel source all come from it.
///
/// `source` and `destination` are words in network byte order; IPv4 uses only the last 32 bits of each.
#[inline(always)]
#[must_use]
pub fn flow(key: &[u64; 4], tuple: &Tuple) -> u64 {
    let rest = u64::from(tuple.ports) | u64::from(tuple.protocol) << 32;
    if tuple.v6 {
        let destination = fold(key, tuple.destination);
        hash4(key, [tuple.source[0], tuple.source[1], destination, rest])
    } else {
        hash2(key, v4_pair(tuple), rest)
    }
}

/// Hash of source and VIP address only, for VIPs that keep a client on one backend.
#[inline(always)]
#[must_use]
pub fn source(key: &[u64; 4], tuple: &Tuple) -> u64 {
    flow(
        key,
        &Tuple {
            ports: 0,
            protocol: 0,
            ..*tuple
        },
    )
}

#[inline(always)]
fn v4_pair(tuple: &Tuple) -> u64 {
    (tuple.source[1] >> 32) | (tuple.destination[1] & 0xffff_ffff_0000_0000)
}

/// A five-tuple, in the direction from client to VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Words as they stand in memory: network byte order, IPv4 mapped.
    pub source: [u64; 2],
    pub destination: [u64; 2],
    /// Source port in the lower half, destination in the upper, each in network byte order.
    pub ports: u32,
    pub protocol: u8,
    pub v6: bool,
}

/// The slot that a flow's hash gives in a table of `slots`. Told by the flow's tag alone, so that who reads the flow table
/// can tell it as well.
#[inline(always)]
#[must_use]
pub fn slot(hash: u64, slots: u32) -> u32 {
    scale(hash >> 32, slots)
}

/// `hash` scaled to `0..size` without division (Lemire, "Fast random integer generation", 2019).
#[inline(always)]
#[must_use]
pub fn scale(hash: u64, size: u32) -> u32 {
    (((hash & 0xffff_ffff) * size as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: [u64; 4] = [
        0x1234_5678_9abc_def0,
        0x0fed_cba9_8765_4321,
        0x5555_aaaa_3333_cccc,
        0x9e37_79b9_7f4a_7c15,
    ];

    proptest! {
        #[test]
        fn every_input_bit_moves_about_half_of_the_output(a: u64, b: u64, bit in 0u32..128) {
            let (a2, b2) = if bit < 64 { (a ^ 1 << bit, b) } else { (a, b ^ 1 << (bit - 64)) };
            let moved = (hash2(&KEY, a, b) ^ hash2(&KEY, a2, b2)).count_ones();
            prop_assert!((8..=56).contains(&moved), "{moved} bits");
        }

        #[test]
        fn scale_stays_below_its_size(hash: u64, size in 1u32..) {
            prop_assert!(scale(hash, size) < size);
        }
    }

    /// Chi-square over 256 buckets, for inputs that an attacker would choose: counters in one field.
    #[test]
    fn counters_spread_evenly() {
        for shift in [0, 8, 16, 32, 40] {
            for word in 0..4 {
                for output in [0, 12, 32, 56] {
                    let mut counts = [0u32; 256];
                    for n in 0..65_536u64 {
                        let mut words = [0u64; 4];
                        words[word] = n << shift;
                        counts[(hash4(&KEY, words) >> output & 0xff) as usize] += 1;
                    }
                    let chi: f64 = counts
                        .iter()
                        .map(|&c| (f64::from(c) - 256.0).powi(2) / 256.0)
                        .sum();
                    // 255 degrees of freedom: 400 is 9 standard deviations away. Less than even is no harm here.
                    assert!(
                        chi < 400.0,
                        "shift {shift} word {word} output {output}: {chi}"
                    );
                }
            }
        }
    }
}
