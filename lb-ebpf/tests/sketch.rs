//! Whom the limiter's sketch hits, measured with the code that runs in the kernel, over a sketch of the default size.

use std::{cell::Cell as Word, collections::HashSet};

use sluice_ebpf::{
    abi::{Limiter, SKETCH_ROWS},
    gcra,
    sketch::{Cell, Hashes, Memory, least, raise},
};

/// Cells of a row less one, as the daemon sets it by default.
const MASK: u32 = (1 << 20) - 1;
const HZ: u32 = 250;
const KEY: [u64; 4] = [
    0x1b3f_9d2c_77e1_5a06,
    0xc4ce_b9fe_1a85_ec53,
    0x9e37_79b9_7f4a_7c15,
    0xd1b5_4a32_d192_ed03,
];

struct Sketch(Vec<Word<u64>>);

impl<'a> Memory for &'a Sketch {
    type Cell = CellAt<'a>;

    fn cell(&self, at: u32) -> Option<CellAt<'a>> {
        self.0.get(at as usize).map(CellAt)
    }
}

struct CellAt<'a>(&'a Word<u64>);

impl Cell for CellAt<'_> {
    fn read(&self) -> u64 {
        self.0.get()
    }

    fn exchange(&self, old: u64, new: u64) -> u64 {
        let found = self.read();
        if found == old {
            self.0.set(new);
        }
        found
    }
}

impl Sketch {
    fn new() -> Self {
        Self(vec![Word::new(0); (MASK as usize + 1) * SKETCH_ROWS])
    }

    /// A packet of a source network, as the data plane treats it once its gates are open.
    fn admits(&self, network: u32, jiffies: u64, limiter: &Limiter) -> bool {
        let now = gcra::time(jiffies);
        let cells = cells(network, jiffies);
        let Some(after) = gcra::admit(least(&self, &cells, now), now, limiter, 1) else {
            return false;
        };
        for cell in cells {
            raise(&self, cell, after, now);
        }
        true
    }

    fn would_admit(&self, network: u32, jiffies: u64, limiter: &Limiter) -> bool {
        let now = gcra::time(jiffies);
        gcra::admit(least(&self, &cells(network, jiffies), now), now, limiter, 1).is_some()
    }
}

fn cells(network: u32, jiffies: u64) -> [u32; SKETCH_ROWS] {
    // The third limiter (packets of a network) of the class `syn` of VIP 1.
    let what = 1 | 2 << 16;
    Hashes::v4(&KEY, network.into(), what, jiffies).cells(MASK)
}

/// Networks by number, each once, spread over all addresses.
fn network(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) & 0x00ff_ffff
}

/// The part of innocent networks that meet a drop while so many others send three times what they may.
fn collateral(attackers: u32) -> f64 {
    let limiter = gcra::limiter(20, 20, HZ);
    let sketch = Sketch::new();
    let start = 1u64 << 30;
    // Each network sends a packet every four jiffies, 60 a second; after two seconds all are at their limit.
    for tick in 0..500u64 {
        for number in 0..attackers {
            if u64::from(number) % 4 == tick % 4 {
                sketch.admits(network(number), start + tick, &limiter);
            }
        }
    }
    let end = start + 499;
    let held = (0..attackers).filter(|number| !sketch.would_admit(network(*number), end, &limiter));
    let held = held.count() as f64 / f64::from(attackers);
    assert!(held > 0.5, "the attackers are at their limits: {held}");
    let innocent = attackers..attackers + 1_000_000;
    let hit = innocent
        .clone()
        .filter(|number| !sketch.would_admit(network(*number), end, &limiter));
    hit.count() as f64 / f64::from(innocent.end - innocent.start)
}

#[test]
fn a_hundred_thousand_attacking_networks_harm_less_than_one_innocent_of_2000() {
    let all: HashSet<u32> = (0..1_100_000).map(network).collect();
    assert_eq!(all.len(), 1_100_000, "nobody is both");
    let part = collateral(100_000);
    println!("{:.4}% of innocent networks", part * 100.0);
    assert!(part < 0.0005, "{part}");
}

#[test]
fn one_network_at_its_limit_harms_nobody() {
    assert_eq!(collateral(1), 0.0);
}
