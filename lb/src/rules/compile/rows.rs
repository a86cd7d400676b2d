//! Rows: which rules a value of a field leaves open, a bit for each. Equal ones are one, by number.

use std::collections::HashMap;

use sluice_ebpf::rules::{ROWS, SUMMARY_SHIFT, WORDS};

use super::TooMany;

pub(super) type Bitmap = [u64; WORDS];

/// All different rows, by their number.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) numbers: HashMap<Bitmap, u16, ahash::RandomState>,
}

impl Rows {
    /// The entry for a row: its number, and its summary.
    pub(super) fn entry(&mut self, row: &Bitmap) -> Result<u32, TooMany> {
        let next = self.numbers.len();
        let number = match self.numbers.get(row) {
            Some(number) => *number,
            None if next < ROWS => {
                let number = u16::try_from(next).map_err(|_large| TooMany::Classes)?;
                self.numbers.insert(*row, number);
                number
            }
            None => return Err(TooMany::Classes),
        };
        let words = row.iter().enumerate();
        let summary = words.fold(0u32, |summary, (at, word)| {
            summary | u32::from(*word != 0) << at
        });
        Ok(summary << SUMMARY_SHIFT | u32::from(number))
    }
}

pub(super) fn set(bitmap: &mut Bitmap, at: usize) {
    bitmap[at / 64] |= 1 << (at % 64);
}

pub(super) fn and(a: &Bitmap, b: &Bitmap) -> Bitmap {
    std::array::from_fn(|at| a[at] & b[at])
}
