//! The Internet checksum (RFC 1071, RFC 1624), inline: the kernel's helper costs four times as much.
//!
//! Sums are of 16-bit words as they stand in memory; a sum of network-order words stays in network order.

/// Adds the halves of a sum until it fits 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = ((sum & 0xffff_ffff) + (sum >> 32)) as u32;
    // The upper half gets both halves' sum, and the carry of the lower one's.
    (sum.wrapping_add(sum.rotate_right(16)) >> 16) as u16
}

/// The checksum field for words that sum up to `sum`.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The sum of the four 16-bit words of `word`.
#[inline(always)]
#[must_use]
pub const fn sum64(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The checksum field after one 16-bit word under it went from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    finish(!checksum as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|&w| u32::from(w)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn replacing_a_word_is_right_for_every_value() {
        for checksum_of in [0u16, 1, 0x00ff, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            for new in 0..=u16::MAX {
                let before = plain(&[checksum_of, 0x0800, 0x1234]);
                let after = replace(before, 0x0800, new);
                assert_eq!(
                    after,
                    plain(&[checksum_of, new, 0x1234]),
                    "{checksum_of:#x} {new:#x}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn wide_sums_equal_narrow_ones(words in prop::collection::vec(any::<u64>(), 1..8)) {
            let wide = finish(words.iter().map(|&w| sum64(w)).sum());
            let narrow: Vec<u16> = words.iter().flat_map(|w| [*w as u16, (w >> 16) as u16, (w >> 32) as u16, (w >> 48) as u16]).collect();
            prop_assert_eq!(wide, plain(&narrow));
        }
    }
}
