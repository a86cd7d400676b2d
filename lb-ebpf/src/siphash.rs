//! SipHash-1-3 (Aumasson and Bernstein, 2012), for what strangers get to see: a pseudo-random function, unlike the hashes of
//! [`crate::hash`], from whose output a key could be solved.

/// The hash of whole words and a last one, which holds what remains of the message, and its length in bytes in the top byte.
#[inline(always)]
#[must_use]
pub fn siphash<const N: usize>(key: &[u64; 2], words: [u64; N], last: u64) -> u64 {
    rounds::<N, 1, 3>(key, words, last)
}

#[inline(always)]
fn rounds<const N: usize, const C: usize, const D: usize>(
    key: &[u64; 2],
    words: [u64; N],
    last: u64,
) -> u64 {
    let mut state = State([
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ]);
    for word in words {
        state.absorb::<C>(word);
    }
    state.absorb::<C>(last);
    state.0[2] ^= 0xff;
    for _ in 0..D {
        state.round();
    }
    let [a, b, c, d] = state.0;
    a ^ b ^ c ^ d
}

struct State([u64; 4]);

impl State {
    #[inline(always)]
    fn absorb<const C: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        for _ in 0..C {
            self.round();
        }
        self.0[0] ^= word;
    }

    #[inline(always)]
    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32).wrapping_add(d);
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        d = d.rotate_left(21) ^ a;
        self.0 = [a, b, c.rotate_left(32), d];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    /// The paper's appendix A has it for 2-4, which differs in the numbers of rounds alone.
    #[test]
    fn the_vector_of_the_paper() {
        let hash = rounds::<1, 2, 4>(&KEY, [KEY[0]], KEY[1]);
        assert_eq!(hash, 0xa129_ca61_49be_45e5);
    }

    /// The standard library's hasher has 1-3 and zero for a key.
    #[test]
    fn as_the_standard_library_hashes() {
        use std::hash::Hasher;
        #[expect(deprecated, reason = "it is the only one with a known key")]
        let mut theirs = std::hash::SipHasher::new_with_keys(0, 0);
        theirs.write(&KEY[0].to_le_bytes());
        theirs.write(&[1, 2, 3]);
        let mut default = std::hash::DefaultHasher::new();
        default.write(&KEY[0].to_le_bytes());
        default.write(&[1, 2, 3]);
        let last = 0x03_0201 | 11 << 56;
        assert_eq!(
            rounds::<1, 2, 4>(&[0; 2], [KEY[0]], last),
            theirs.finish(),
            "2-4"
        );
        assert_eq!(siphash(&[0; 2], [KEY[0]], last), default.finish(), "1-3");
    }
}
