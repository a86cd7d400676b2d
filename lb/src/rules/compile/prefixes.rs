//! Sources and destinations: blocks for parts of IPv4 networks, sorted intervals for IPv6.

use ipnet::IpNet;
use sluice_ebpf::rules::{BLOCK, BLOCKS, FIELD_DESTINATION, FIELD_SOURCE, INTERVALS, Interval};

use super::{Bit, Compiler, TooMany, rows::Bitmap};
use crate::rules::Components;

impl Compiler<'_> {
    pub(super) fn prefixes(&mut self) -> Result<(), TooMany> {
        type Of = fn(&Components) -> Option<IpNet>;
        let fields: [(u32, Of); 2] = [
            (FIELD_SOURCE, |c| c.source),
            (FIELD_DESTINATION, |c| c.destination),
        ];
        for (field, (flag, of)) in fields.into_iter().enumerate() {
            let family = |v4: bool| {
                move |bit: &Bit<'_>| {
                    let prefix = of(&bit.components)?;
                    let (first, last) = ends(prefix);
                    Some(if prefix.addr().is_ipv4() == v4 {
                        vec![(first, last)]
                    } else {
                        Vec::new()
                    })
                }
            };
            let (Some((_, v4)), Some((_, v6))) =
                (self.sweep(family(true)), self.sweep(family(false)))
            else {
                continue;
            };
            self.tables.fields |= flag;
            let v4 = self.with_entries(&v4)?;
            for cell in 0..1usize << 16 {
                self.tables.prefixes[field][cell] = self.cell(&v4, (cell as u128) << 16, 16)?;
            }
            let v6 = self.with_entries(&v6)?;
            if v6.len() > INTERVALS {
                return Err(TooMany::Classes);
            }
            self.tables.intervals[field] = u32::try_from(v6.len()).unwrap_or(u32::MAX);
            for (at, (start, entry)) in v6.iter().enumerate() {
                self.tables.starts[field][at] = Interval {
                    high: half(start >> 64),
                    low: half(*start),
                    entry: u64::from(*entry),
                };
            }
        }
        Ok(())
    }

    fn with_entries(&mut self, intervals: &[(u128, Bitmap)]) -> Result<Vec<(u128, u32)>, TooMany> {
        let entries = intervals
            .iter()
            .map(|(start, row)| Ok((*start, self.rows.entry(row)?)));
        entries.collect()
    }

    /// The entry for the 2^`bits` addresses from `first` on: a block if they are not all the same.
    fn cell(&mut self, intervals: &[(u128, u32)], first: u128, bits: u32) -> Result<u32, TooMany> {
        let last = first + ((1 << bits) - 1);
        let from = intervals.partition_point(|(start, _)| *start <= first) - 1;
        let differs = intervals
            .get(from + 1)
            .is_some_and(|(start, _)| *start <= last);
        if !differs {
            return Ok(intervals[from].1);
        }
        let block = self.blocks;
        if block == BLOCKS {
            return Err(TooMany::Blocks);
        }
        self.blocks += 1;
        for at in 0..256usize {
            let next = first + ((at as u128) << (bits - 8));
            self.tables.blocks[block][at] = self.cell(intervals, next, bits - 8)?;
        }
        Ok(BLOCK | u32::try_from(block).map_err(|_large| TooMany::Blocks)?)
    }
}

/// The first and the last address of a prefix.
fn ends(prefix: IpNet) -> (u128, u128) {
    match prefix {
        IpNet::V4(prefix) => (
            u32::from(prefix.network()).into(),
            u32::from(prefix.broadcast()).into(),
        ),
        IpNet::V6(prefix) => (prefix.network().into(), prefix.broadcast().into()),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
const fn half(number: u128) -> u64 {
    number as u64
}
