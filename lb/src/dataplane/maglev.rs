//! Lookup tables: which backend each slot has, as a pure function of the backends, so that a fleet agrees.
//!
//! After Maglev (Eisenbud et al., NSDI 2016): each backend claims slots in an order of its own, all in turn. Unlike
//! there, a claim of a taken slot is lost instead of made again at once, and a backend stops at one percent above its
//! share. That keeps a slot with whoever claims it first, so that the others hardly notice when a backend leaves.

use sluice_ebpf::hash::seeded;

/// One backend of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Hash of what the backend is, equal on every machine. Not of its place in a list.
    pub identity: u64,
    /// Its share, from 1 to 1000.
    pub weight: u16,
}

/// The index into `entries` for each of `slots` (a prime); empty without entries. The order of `entries` has no part in it.
#[must_use]
pub fn build(slots: u32, entries: &[Entry]) -> Vec<u16> {
    let Some(mut turns) = Turns::new(slots, entries) else {
        return Vec::new();
    };
    let mut table = vec![FREE; slots as usize];
    let mut free = slots;
    loop {
        for claimant in &mut turns.claimants {
            claimant.credit += claimant.weight;
            while claimant.credit >= turns.price {
                claimant.credit -= turns.price;
                let slot = claimant.next;
                claimant.next += claimant.step;
                if claimant.next >= slots {
                    claimant.next -= slots;
                }
                let owner = &mut table[slot as usize];
                if *owner == FREE {
                    *owner = claimant.index;
                    claimant.room -= 1;
                    free -= 1;
                    if free == 0 {
                        return table;
                    }
                    if claimant.room == 0 {
                        // Takes no more turns.
                        claimant.weight = 0;
                        claimant.credit = 0;
                    }
                }
            }
        }
        turns.claimants.retain(|claimant| claimant.weight != 0);
    }
}

/// Tells tables apart that give any slot to another backend.
#[must_use]
pub fn checksum(table: &[u16], entries: &[Entry]) -> u64 {
    table.iter().fold(table.len() as u64, |sum, &index| {
        seeded(sum, entries[usize::from(index)].identity, 0)
    })
}

const FREE: u16 = u16::MAX;
const OFFSET_SEED: u64 = 0x6f66_6673_6574;
const STEP_SEED: u64 = 0x7374_6570;
/// A backend gets at most its share and a hundredth of it.
const SLACK: u64 = 100;

struct Turns {
    claimants: Vec<Claimant>,
    /// Credit that a claim costs: a power of two, so that it rarely changes with the set; at most the mean weight.
    price: u32,
}

struct Claimant {
    credit: u32,
    weight: u32,
    next: u32,
    step: u32,
    /// Slots that it may still take.
    room: u32,
    index: u16,
}

impl Turns {
    fn new(slots: u32, entries: &[Entry]) -> Option<Self> {
        let total: u64 = entries.iter().map(|entry| u64::from(entry.weight)).sum();
        let mean = total.checked_div(entries.len() as u64)?;
        let mut order: Vec<(u16, &Entry)> = (0..FREE).zip(entries).collect();
        order.sort_unstable_by_key(|(_, entry)| entry.identity);
        let claimants = order
            .into_iter()
            .filter(|(_, entry)| entry.weight != 0)
            .map(|(index, entry)| {
                let share = u64::from(slots) * u64::from(entry.weight);
                Claimant {
                    credit: 0,
                    weight: u32::from(entry.weight),
                    next: below(seeded(OFFSET_SEED, entry.identity, 0), slots),
                    step: below(seeded(STEP_SEED, entry.identity, 0), slots - 1) + 1,
                    room: low(share.saturating_mul(SLACK + 1).div_ceil(total * SLACK)),
                    index,
                }
            })
            .collect::<Vec<_>>();
        (!claimants.is_empty()).then(|| Self {
            claimants,
            price: 1 << mean.max(1).ilog2(),
        })
    }
}

fn below(hash: u64, size: u32) -> u32 {
    sluice_ebpf::hash::scale(hash >> 16, size)
}

/// At most the number of slots and one percent.
#[expect(clippy::cast_possible_truncation, reason = "shares of a u32 are u32")]
fn low(share: u64) -> u32 {
    share as u32
}

#[cfg(test)]
mod tests {
    use std::{
        hint::black_box,
        time::{Duration, Instant},
    };

    use proptest::prelude::*;

    use super::*;

    fn entries(count: u64, weight: impl Fn(u64) -> u16) -> Vec<Entry> {
        (0..count)
            .map(|n| Entry {
                identity: seeded(7, n, 0),
                weight: weight(n),
            })
            .collect()
    }

    fn loads(table: &[u16], count: usize) -> Vec<u32> {
        let mut loads = vec![0; count];
        for &index in table {
            loads[usize::from(index)] += 1;
        }
        loads
    }

    #[test]
    fn shares_are_even() {
        let table = build(65_537, &entries(50, |_| 1));
        let loads = loads(&table, 50);
        let mean = 65_537.0 / 50.0;
        let most = f64::from(*loads.iter().max().unwrap()) / mean;
        let least = f64::from(*loads.iter().min().unwrap()) / mean;
        assert!(most <= 1.02, "{most}");
        assert!(least >= 0.93, "{least}");
    }

    #[test]
    fn shares_follow_weights() {
        for (slots, count, most_weight) in [(65_537, 50, 7), (65_537, 300, 3), (251, 5, 1000)] {
            let entries = entries(count, |n| u16::try_from(1 + n % most_weight).unwrap());
            let total: f64 = entries.iter().map(|e| f64::from(e.weight)).sum();
            let table = build(slots, &entries);
            for (load, entry) in loads(&table, entries.len()).into_iter().zip(&entries) {
                let share = f64::from(slots) * f64::from(entry.weight) / total;
                assert!(
                    f64::from(load) <= (share * 1.01).ceil(),
                    "{load} for {share}"
                );
            }
        }
    }

    #[test]
    fn a_heavy_backend_among_light_ones_is_no_trouble() {
        let entries = entries(1000, |n| if n == 3 { 1000 } else { 1 });
        let table = build(65_537, &entries);
        let heavy = loads(&table, 1000)[3];
        assert!((32_000..33_200).contains(&heavy), "{heavy}");
    }

    #[test]
    fn others_hardly_move_when_one_leaves() {
        let all = entries(50, |_| 1);
        let before = build(65_537, &all);
        let mut most = 0.0_f64;
        for gone in 0..50u16 {
            let mut rest = all.clone();
            let left = rest.remove(usize::from(gone)).identity;
            let after = build(65_537, &rest);
            let moved = before
                .iter()
                .zip(&after)
                .filter(|&(&was, &is)| {
                    let was = all[usize::from(was)].identity;
                    was != left && was != rest[usize::from(is)].identity
                })
                .count();
            let share = moved as f64 / 65_537.0;
            assert!(share <= 0.005, "{share} moved when {gone} left");
            most = most.max(share);
        }
        println!(
            "figure: slots of others that move when one of 50 leaves: at most {:.3}%",
            most * 100.0
        );
    }

    #[test]
    fn a_thousand_backends_are_quick() {
        let entries = entries(1000, |_| 1);
        let quickest = (0..5)
            .map(|_| {
                let start = Instant::now();
                black_box(build(65_537, black_box(&entries)));
                start.elapsed()
            })
            .min()
            .unwrap();
        println!("figure: table of 65,537 slots for 1,000 backends: {quickest:?}");
        // 5 ms where it is optimized; tests are not fully.
        let limit = Duration::from_millis(if cfg!(debug_assertions) { 40 } else { 5 });
        assert!(quickest < limit, "{quickest:?}");
    }

    #[test]
    fn nobody_and_somebody() {
        assert_eq!(build(65_537, &[]), Vec::<u16>::new());
        assert_eq!(build(65_537, &entries(1, |_| 1)), vec![0; 65_537]);
        assert_eq!(build(3, &entries(1, |_| 0)), Vec::<u16>::new());
    }

    #[test]
    fn checksums_tell_tables_apart() {
        let entries = entries(2, |_| 1);
        assert_ne!(
            checksum(&[0, 1, 0], &entries),
            checksum(&[0, 0, 1], &entries)
        );
        let turned = [entries[1], entries[0]];
        assert_eq!(checksum(&[0, 1], &entries), checksum(&[1, 0], &turned));
    }

    proptest! {
        #[test]
        fn the_order_has_no_part_in_it(
            list in prop::collection::vec((any::<u64>(), 1u16..=1000), 1..40).prop_map(|list| {
                let map: std::collections::BTreeMap<_, _> = list.into_iter().collect();
                map.into_iter().map(|(identity, weight)| Entry { identity, weight }).collect::<Vec<_>>()
            }).prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        ) {
            let (sorted, shuffled) = list;
            let by_identity = |entries: &[Entry]| -> Vec<u64> {
                build(1009, entries).iter().map(|&index| entries[usize::from(index)].identity).collect()
            };
            prop_assert_eq!(by_identity(&sorted), by_identity(&shuffled));
        }
    }
}
