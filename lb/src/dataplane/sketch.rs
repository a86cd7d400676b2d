//! How full the sketch of the policies' limits is, and what that may do to the innocent.

use std::collections::BTreeSet;

use aya::{
    Ebpf,
    maps::{Map, MapError},
};
use sluice_ebpf::{
    abi::{CLASSES, Limiter, Policy, SKETCH_PAGE_CELLS, SKETCH_PAGE_SHIFT, SKETCH_ROWS, maps},
    gcra,
};

use super::{
    error::{LoadError, ReadError},
    plane::Plane,
};
use crate::sys::ArrayReader;

/// What the sketch does to one class of packets, for the strictest of its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Crowding {
    /// Part of all cells whose source may not send now.
    pub fill_ratio: f64,
    /// The chance that the cells of a source which sends nothing are all of that kind: it would be dropped.
    pub collateral_probability: f64,
}

/// By number of the class.
pub type CrowdingByClass = [Crowding; CLASSES];

impl Plane {
    /// Estimates it from a sample of the sketch; the next call takes other pages. Classes without a limit have none.
    pub fn crowding(&self) -> Result<CrowdingByClass, ReadError> {
        let policies: Vec<Policy> = self
            .registry
            .policies
            .values()
            .map(|&number| self.arrays.policies.read(u32::from(number)))
            .collect();
        if bounds(&policies).iter().all(BTreeSet::is_empty) {
            return Ok(CrowdingByClass::default());
        }
        let now = self.jiffies_now();
        let pages = self.sketch.sample(now).map_err(|error| ReadError {
            map: maps::SKETCH,
            source: MapError::IoError(error),
        })?;
        Ok(crowding(&pages, &policies, now))
    }
}

/// Reads pages of the sketch.
pub(super) struct Sketch(ArrayReader);

impl Sketch {
    pub(super) fn new(object: &Ebpf) -> Result<Self, LoadError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Map {
            map: maps::SKETCH,
            source,
        };
        let Some(Map::Array(data)) = object.map(maps::SKETCH) else {
            return Err(failed("the program has no such array".into()));
        };
        let reader = ArrayReader::new(data).map_err(|error| failed(error.into()))?;
        if reader.value_words() != SKETCH_PAGE_CELLS {
            return Err(failed("its pages have another size".into()));
        }
        Ok(Self(reader))
    }

    /// Cells of pages that lie evenly over the sketch, from one that `turn` tells.
    fn sample(&self, turn: u64) -> std::io::Result<Vec<u64>> {
        let pages = self.0.entries();
        let sampled = pages.min(SAMPLED_PAGES);
        let stride = pages / sampled;
        let start = u32::try_from(turn % u64::from(stride)).unwrap_or_default();
        let mut cells = Vec::with_capacity(sampled as usize * SKETCH_PAGE_CELLS);
        for page in 0..sampled {
            cells.extend(self.0.read(page * stride + start, 1)?);
        }
        Ok(cells)
    }
}

/// How far ahead a source's arrival time is when it may not send: above the first, up to the second. What is further ahead
/// is of a limit that is not there any more.
type Bounds = (u64, u64);

/// Of every limiter of each class.
fn bounds(policies: &[Policy]) -> [BTreeSet<Bounds>; CLASSES] {
    let of_class = |class: usize| {
        let limiters = policies.iter().flat_map(|policy| policy.limiters[class]);
        let limiters = limiters
            .enumerate()
            .filter(|(_, limiter)| limiter.cost != 0);
        limiters.map(|(at, limiter)| bound(at, limiter)).collect()
    };
    std::array::from_fn(of_class)
}

fn bound(at: usize, limiter: Limiter) -> Bounds {
    // Limiters of packets and of bytes take turns.
    let amount = if at.is_multiple_of(2) {
        1
    } else {
        FULL_PACKET_BYTES
    };
    let cost = limiter.cost.saturating_mul(amount);
    (
        limiter.allowance.saturating_sub(cost),
        limiter.allowance.saturating_mul(2),
    )
}

/// Counts cells in each row of each page, as a packet would meet them: it reads a cell of every row of one page, and the
/// earliest of the four times counts.
fn crowding(cells: &[u64], policies: &[Policy], now: u64) -> CrowdingByClass {
    let now = gcra::time(now);
    let bounds = bounds(policies);
    let mut sums = bounds
        .each_ref()
        .map(|bounds| vec![Crowding::default(); bounds.len()]);
    let pages = cells.chunks_exact(SKETCH_PAGE_CELLS);
    let count = pages.len().max(1);
    for page in pages {
        let rows: Vec<Vec<u64>> = page
            .chunks_exact(ROW_CELLS)
            .map(|row| ahead(row, now))
            .collect();
        for (bounds, sums) in bounds.iter().zip(&mut sums) {
            for (&(over, lost), sum) in bounds.iter().zip(sums) {
                let (mut fill, mut all_over, mut all_lost) = (0.0, 1.0, 1.0);
                for row in &rows {
                    let (part_over, part_lost) = (part_above(row, over), part_above(row, lost));
                    fill += (part_over - part_lost) / SKETCH_ROWS as f64;
                    all_over *= part_over;
                    all_lost *= part_lost;
                }
                sum.fill_ratio += fill;
                sum.collateral_probability += all_over - all_lost;
            }
        }
    }
    sums.map(|sums| {
        let strictest = sums.into_iter().max_by(|a, b| {
            a.collateral_probability
                .total_cmp(&b.collateral_probability)
                .then(a.fill_ratio.total_cmp(&b.fill_ratio))
        });
        let sum = strictest.unwrap_or_default();
        Crowding {
            fill_ratio: sum.fill_ratio / count as f64,
            collateral_probability: sum.collateral_probability / count as f64,
        }
    })
}

/// How far ahead of now each cell is, in order.
fn ahead(row: &[u64], now: u64) -> Vec<u64> {
    let ahead = |cell: &u64| {
        let ahead = cell.wrapping_sub(now);
        if ahead > gcra::FAR { 0 } else { ahead }
    };
    let mut row: Vec<u64> = row.iter().map(ahead).collect();
    row.sort_unstable();
    row
}

fn part_above(sorted: &[u64], bound: u64) -> f64 {
    let below = sorted.partition_point(|&ahead| ahead <= bound);
    (sorted.len() - below) as f64 / sorted.len() as f64
}

const ROW_CELLS: usize = 1 << SKETCH_PAGE_SHIFT;
/// A system call each. With 64 pages, a chance of one in 10,000 is found to some percent.
const SAMPLED_PAGES: u32 = 64;
/// Limits of bits are asked for a packet as large as they mostly are.
const FULL_PACKET_BYTES: u64 = 1500;

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use sluice_ebpf::abi::Class;

    use super::*;

    const NOW: u64 = 1 << 33;
    const SYN: usize = Class::Syn as usize;

    fn policy(class: usize, rate: u64, burst: u64) -> Policy {
        let mut policy = Policy::zeroed();
        policy.limiters[class][0] = gcra::limiter(rate, burst, 250);
        policy
    }

    /// A page of which `full` cells of each row are at the end of this limiter's allowance.
    fn page(full: usize, limiter: Limiter) -> Vec<u64> {
        let over = gcra::time(NOW) + limiter.allowance;
        let row = |_| (0..ROW_CELLS).map(move |cell| if cell < full { over } else { 0 });
        (0..SKETCH_ROWS).flat_map(row).collect()
    }

    #[test]
    fn an_empty_sketch_harms_nobody() {
        let policies = [policy(SYN, 100, 10)];
        let found = crowding(&page(0, policies[0].limiters[SYN][0]), &policies, NOW);
        assert_eq!(found, CrowdingByClass::default());
    }

    #[test]
    fn the_chance_is_the_product_of_the_rows() {
        let policies = [policy(SYN, 100, 10)];
        let limiter = policies[0].limiters[SYN][0];
        let half = crowding(&page(ROW_CELLS / 2, limiter), &policies, NOW)[SYN];
        assert_eq!(
            (half.fill_ratio, half.collateral_probability),
            (0.5, 1.0 / 16.0)
        );
    }

    #[test]
    fn a_full_page_does_not_hide_behind_empty_ones() {
        let policies = [policy(SYN, 100, 10)];
        let limiter = policies[0].limiters[SYN][0];
        let pages = [page(ROW_CELLS, limiter), page(0, limiter)].concat();
        let found = crowding(&pages, &policies, NOW)[SYN];
        assert_eq!((found.fill_ratio, found.collateral_probability), (0.5, 0.5));
    }

    #[test]
    fn each_class_is_asked_with_its_own_limits() {
        // What a source owes at a small limit is little at a large one.
        let mut policy = policy(SYN, 1000, 10);
        policy.limiters[Class::Udp as usize][0] = gcra::limiter(1000, 10_000, 250);
        let limiter = policy.limiters[SYN][0];
        let found = crowding(&page(ROW_CELLS, limiter), &[policy], NOW);
        assert_eq!(found[SYN].collateral_probability, 1.0);
        assert_eq!(found[Class::Udp as usize], Crowding::default());
        assert_eq!(found[Class::Icmp as usize], Crowding::default());
    }

    #[test]
    fn the_data_plane_would_decide_the_same() {
        let limiter = gcra::limiter(1000, 100, 250);
        let (over, lost) = bound(0, limiter);
        let now = gcra::time(NOW);
        for (ahead, admitted) in [
            (0, true),
            (over, true),
            (over + 1, false),
            (lost, false),
            (lost + 1, true),
        ] {
            let answer = gcra::admit(now + ahead, now, &limiter, 1);
            assert_eq!(answer.is_some(), admitted, "{ahead} ahead");
        }
    }

    #[test]
    fn old_cells_of_a_clock_that_wrapped_are_free() {
        let policies = [policy(SYN, 100, 10)];
        let pages = vec![gcra::time(NOW) - 1; SKETCH_PAGE_CELLS];
        assert_eq!(crowding(&pages, &policies, NOW), CrowdingByClass::default());
    }
}
