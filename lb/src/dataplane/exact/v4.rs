//! The IPv4 tables: the first 24 bits lead to a limit, or to a block for the last 8.

use std::{collections::HashSet, ops::Range};

use sluice_ebpf::exact::{BLOCK, BLOCK_ENTRIES, V4_ENTRIES, V4_FILTER_WORDS, v4_filter};

use super::{
    cells::{ExactTables, Numbers, set_filtered},
    tree::{Key, Tree},
};

/// Writes an entry of the first level.
fn set(tables: &mut ExactTables, at: usize, entry: u32) {
    set_filtered(&mut *tables.v4_filter, &mut *tables.v4, at, entry);
}

/// Whether a limit for this prefix needs a block that is not there yet.
pub(super) fn needs_block(tables: &ExactTables, key: Key) -> bool {
    key.length > LONGEST_DIRECT && tables.v4.get(range(key).0 >> 8) & BLOCK == 0
}

/// Leads the prefix's addresses that led to limit `old` to `new`.
///
/// What leads elsewhere belongs to a longer prefix inside of this one. `blocks` must have one if [`needs_block`].
pub(super) fn repoint(
    tables: &mut ExactTables,
    blocks: &mut Numbers,
    key: Key,
    old: u32,
    new: u32,
) {
    let (first, last) = range(key);
    if needs_block(tables, key) {
        let Some(block) = blocks.take() else { return };
        let entry = tables.v4.get(first >> 8);
        for at in 0..BLOCK_ENTRIES as usize {
            let is_inside = (first & 0xff..=last & 0xff).contains(&at);
            let value = if is_inside { new } else { entry };
            tables.blocks.set(start(block) + at, value);
        }
        set(tables, first >> 8, block | BLOCK);
        return;
    }
    for at in first >> 8..=last >> 8 {
        let entry = tables.v4.get(at);
        if entry == old {
            set(tables, at, new);
        } else if entry & BLOCK != 0 {
            let start = start(entry & !BLOCK);
            let (from, to) = if key.length > LONGEST_DIRECT {
                (first & 0xff, last & 0xff)
            } else {
                (0, BLOCK_ENTRIES as usize - 1)
            };
            for at in start + from..=start + to {
                if tables.blocks.get(at) == old {
                    tables.blocks.set(at, new);
                }
            }
        }
    }
}

/// Gives back the block that `key` lay in, if no prefix needs it any more.
pub(super) fn free_block(tables: &mut ExactTables, blocks: &mut Numbers, tree: &Tree, key: Key) {
    let whole = key.cut(LONGEST_DIRECT.min(key.length));
    if key.length <= LONGEST_DIRECT || tree.below(whole).next().is_some() {
        return;
    }
    let at = range(key).0 >> 8;
    let entry = tables.v4.get(at);
    if entry & BLOCK != 0 {
        // All 256 are alike by now.
        let value = tables.blocks.get(start(entry & !BLOCK));
        set(tables, at, value);
        blocks.give_back(entry & !BLOCK);
    }
}

/// The blocks in use, if the tables are what the tree says.
pub(super) fn verify(tables: &ExactTables, tree: &Tree) -> Option<HashSet<u32>> {
    verify_part(tables, tree, 0..V4_ENTRIES as usize)
}

/// As [`verify`], for a part of the first level.
pub(super) fn verify_part(
    tables: &ExactTables,
    tree: &Tree,
    part: Range<usize>,
) -> Option<HashSet<u32>> {
    let runs = runs(tree);
    let first = part.start;
    let mut deep = tree
        .iter()
        .filter(|(key, _)| key.length > LONGEST_DIRECT)
        .map(|(key, _)| range(key).0 >> 8)
        .skip_while(|at| *at < first)
        .peekable();
    let mut used = HashSet::new();
    let mut run = 0;
    let mut head_at = |address: usize| {
        while runs.get(run + 1).is_some_and(|next| next.0 <= address) {
            run += 1;
        }
        runs[run].1
    };
    for at in part {
        let entry = tables.v4.get(at);
        if entry != 0 && !is_filtered(tables, at) {
            return None;
        }
        if deep.peek() != Some(&at) {
            if entry != head_at(at << 8) {
                return None;
            }
            continue;
        }
        while deep.next_if_eq(&at).is_some() {}
        let block = entry & !BLOCK;
        let exists = entry & BLOCK != 0 && start(block) < tables.blocks.len();
        if !exists || !used.insert(block) {
            return None;
        }
        for low in 0..BLOCK_ENTRIES as usize {
            if tables.blocks.get(start(block) + low) != head_at(at << 8 | low) {
                return None;
            }
        }
    }
    Some(used)
}

#[expect(clippy::cast_possible_truncation, reason = "there are 2^24 entries")]
fn is_filtered(tables: &ExactTables, at: usize) -> bool {
    let (word, bit) = v4_filter(at as u32);
    tables.v4_filter.get(word as usize) & bit != 0
}

/// No address has a limit any more.
pub(super) fn clear(tables: &mut ExactTables) {
    for at in 0..V4_ENTRIES as usize {
        if tables.v4.get(at) != 0 {
            tables.v4.set(at, 0);
        }
    }
    for word in 0..V4_FILTER_WORDS as usize {
        tables.v4_filter.set(word, 0);
    }
}

/// The first limit of every address: each entry holds from its address up to that of the next.
fn runs(tree: &Tree) -> Vec<(usize, u32)> {
    let mut runs = vec![(0, 0)];
    let mut open: Vec<(usize, u32)> = Vec::new();
    let mut put = |from: usize, head: u32| {
        if let Some(run) = runs.last_mut().filter(|run| run.0 == from) {
            run.1 = head;
        } else {
            runs.push((from, head));
        }
    };
    for (key, group) in tree.iter() {
        let (first, last) = range(key);
        while let Some((end, _)) = open.pop_if(|(end, _)| *end < first) {
            put(end + 1, open.last().map_or(0, |outer| outer.1));
        }
        put(first, group.limits[0]);
        open.push((last, group.limits[0]));
    }
    while let Some((end, _)) = open.pop() {
        put(end + 1, open.last().map_or(0, |outer| outer.1));
    }
    runs
}

/// First and last address.
fn range(key: Key) -> (usize, usize) {
    let low = |bits: u128| (bits & u128::from(u32::MAX)) as usize;
    (low(key.bits), low(key.last()))
}

fn start(block: u32) -> usize {
    block as usize * BLOCK_ENTRIES as usize
}

/// A /24, in IPv6 terms: the longest prefix that needs no block.
const LONGEST_DIRECT: u8 = 96 + 24;
