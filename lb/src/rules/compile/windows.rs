//! Pieces of payload: for each a hash table of the values that rules look for there.

use std::collections::HashMap;

use sluice_ebpf::rules::{
    FIELD_WINDOW, WINDOW_BUCKETS, WINDOW_WAYS, WINDOWS, WORDS, Window, window_bucket,
};

use super::{
    Compiler, TooMany,
    rows::{Bitmap, set},
};
use crate::rules::Payload;

impl Compiler<'_> {
    pub(super) fn windows(&mut self) -> Result<(), TooMany> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut wanted: Vec<Vec<(usize, u64)>> = Vec::new();
        for (at, bit) in self.bits.iter().enumerate() {
            for (piece, value) in bit.components.payload.iter().flat_map(split) {
                let window = pieces.iter().position(|known| *known == piece);
                let window = window.unwrap_or_else(|| {
                    pieces.push(piece);
                    wanted.push(Vec::new());
                    pieces.len() - 1
                });
                wanted[window].push((at, value));
            }
        }
        if pieces.len() > WINDOWS {
            return Err(TooMany::Windows);
        }
        for (at, (piece, wanted)) in pieces.iter().zip(&wanted).enumerate() {
            self.window(at, piece, wanted)?;
        }
        Ok(())
    }

    fn window(&mut self, at: usize, piece: &Piece, wanted: &[(usize, u64)]) -> Result<(), TooMany> {
        let mut base = [0; WORDS];
        (0..self.bits.len()).for_each(|bit| set(&mut base, bit));
        for (bit, _) in wanted {
            base[bit / 64] &= !(1 << (bit % 64));
        }
        let mut by_value: HashMap<u64, Bitmap> = HashMap::new();
        for (bit, value) in wanted {
            // A rule that wants two values of one piece means nothing.
            let other = wanted
                .iter()
                .any(|(same, other)| same == bit && other != value);
            if !other {
                set(by_value.entry(*value).or_insert(base), *bit);
            }
        }
        let fits = |seed: &u64| {
            let mut used = vec![0; WINDOW_BUCKETS];
            by_value.keys().all(|value| {
                let bucket = &mut used[window_bucket(*seed, *value)];
                *bucket += 1;
                *bucket <= WINDOW_WAYS
            })
        };
        let seeds = (1..200u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let seed = seeds.into_iter().find(fits).ok_or(TooMany::Values)?;
        for (value, row) in &by_value {
            let entry = self.rows.entry(row)?;
            let bucket = window_bucket(seed, *value);
            let entries = &mut self.tables.window_entries[at][bucket];
            let way = entries
                .iter()
                .position(|entry| *entry == 0)
                .ok_or(TooMany::Values)?;
            entries[way] = entry;
            self.tables.window_values[at][bucket][way] = *value;
        }
        self.tables.windows[at] = Window {
            mask: piece.mask,
            seed,
            offset: piece.offset,
            bytes: piece.bytes,
            other: self.rows.entry(&base)?,
            pad: 0,
        };
        self.tables.fields |= FIELD_WINDOW << at;
        Ok(())
    }
}

/// At most 8 bytes of payload, as they stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    offset: u32,
    bytes: u32,
    mask: u64,
}

fn split(payload: &Payload) -> impl Iterator<Item = (Piece, u64)> + '_ {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_ne_bytes(word)
    };
    let chunks = payload.value.0.chunks(8).zip(payload.mask.0.chunks(8));
    (u32::from(payload.offset)..)
        .step_by(8)
        .zip(chunks)
        .map(move |(offset, (value, mask))| {
            let bytes = u32::try_from(value.len()).unwrap_or(8);
            let piece = Piece {
                offset,
                bytes,
                mask: word(mask),
            };
            (piece, word(value))
        })
}
