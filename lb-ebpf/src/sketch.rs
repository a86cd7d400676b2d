//! The limiter's sketch: where a source's cells are, and how four of them make one arrival time.
//!
//! Four rows of a page: a source is over its limit only if its cells in all of them say so. What is dropped writes
//! nothing; what passes raises only the cells below it (count-min with conservative update: Estan, Varghese, 2002).

use crate::{
    abi::{GROUP_SHIFT, SKETCH_PAGE_SHIFT, SKETCH_ROWS},
    gcra, hash,
};

/// Seeds of the sketch change with jiffies shifted by this: some 17 minutes at 250 Hz.
const SEED_SHIFT: u32 = 18;

/// Two hashes of a source host or network, for one limiter of one VIP: they tell its group and its cells.
#[derive(Clone, Copy)]
pub struct Hashes(u64, u64);

impl Hashes {
    /// `source` is masked already: to a word for IPv4, to two for IPv6.
    #[inline(always)]
    #[must_use]
    pub fn v4(key: &[u64; 4], source: u64, what: u64, jiffies: u64) -> Self {
        let first = hash::hash2(key, source | what << 32, jiffies >> SEED_SHIFT);
        Self::of(key, first)
    }

    #[inline(always)]
    #[must_use]
    pub fn v6(key: &[u64; 4], source: [u64; 2], what: u64, jiffies: u64) -> Self {
        let [high, low] = source;
        let first = hash::hash4(key, [high, low, what, jiffies >> SEED_SHIFT]);
        Self::of(key, first)
    }

    #[inline(always)]
    fn of(key: &[u64; 4], first: u64) -> Self {
        let second = (first ^ key[2]).wrapping_mul(key[3] | 1);
        Self(first, second ^ second >> 32)
    }

    /// The source's group, which it shares with many others. `mask` is the number of cells of a row less one.
    #[inline(always)]
    #[must_use]
    pub fn group(self, mask: u32) -> u32 {
        self.0 as u32 & mask >> GROUP_SHIFT
    }

    /// A cell in each row of the source's page: four lines of memory, but one address to translate.
    #[inline(always)]
    #[must_use]
    pub fn cells(self, mask: u32) -> [u32; SKETCH_ROWS] {
        let page = (self.0 >> 32) as u32 & mask >> SKETCH_PAGE_SHIFT;
        let row = |row: u32| {
            let cell =
                (self.1 >> (row * SKETCH_PAGE_SHIFT)) as u32 & ((1 << SKETCH_PAGE_SHIFT) - 1);
            (page * SKETCH_ROWS as u32 + row) << SKETCH_PAGE_SHIFT | cell
        };
        [row(0), row(1), row(2), row(3)]
    }
}

/// Where cells are.
pub trait Memory {
    type Cell: Cell;

    fn cell(&self, at: u32) -> Option<Self::Cell>;
}

/// A word that all CPUs share.
pub trait Cell {
    fn read(&self) -> u64;
    /// Writes `new` if `old` is there. Returns what was there.
    fn exchange(&self, old: u64, new: u64) -> u64;
}

/// The earliest arrival time of four cells, but not before now: times in the past are all the same, and what is far
/// ahead is of another clock.
#[inline(always)]
pub fn least<M: Memory>(memory: &M, cells: &[u32; SKETCH_ROWS], now: u64) -> u64 {
    let ahead = |row: usize| {
        let Some(cell) = memory.cell(cells[row]) else {
            return 0;
        };
        let ahead = cell.read().wrapping_sub(now);
        if ahead > gcra::FAR { 0 } else { ahead }
    };
    let low = |a: u64, b: u64| if a < b { a } else { b };
    now.wrapping_add(low(low(ahead(0), ahead(1)), low(ahead(2), ahead(3))))
}

/// Raises a cell that is below `to`; three tries.
#[inline(always)]
pub fn raise<M: Memory>(memory: &M, cell: u32, to: u64, now: u64) {
    let Some(cell) = memory.cell(cell) else {
        return;
    };
    let wanted = to.wrapping_sub(now);
    let mut old = cell.read();
    for _ in 0..3 {
        let ahead = old.wrapping_sub(now);
        if ahead >= wanted && ahead <= gcra::FAR {
            return;
        }
        let found = cell.exchange(old, to);
        if found == old {
            return;
        }
        old = found;
    }
}
