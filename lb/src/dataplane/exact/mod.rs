//! Exact limits: which sources they are for, kept in the tables that packets look them up in.
//!
//! Packets read while this writes. A limit is whole before anything leads to it, and nothing leads to it when its number
//! is freed; what leads to limits are single words. So a packet may miss a limit for some microseconds, but never meets
//! one that is not for it.
mod adopt;
mod audit;
mod cells;
mod limit;
#[cfg(test)]
mod tests;
mod tree;
mod v4;
mod v6;

use std::collections::BTreeMap;

use ipnet::IpNet;
use sluice_ebpf::abi::{
    Class, EXACT_ESTABLISHED, EXACT_V4, EXACT_V6, Limit, Limiter, MAX_CHAIN, MAX_EXACT_LENGTHS,
};

pub use adopt::Adoption;
pub(crate) use cells::SettingsWords;
pub(super) use cells::set_filtered;
pub use cells::{Cells, ExactTables};
pub use limit::ExactLimit;

use cells::Numbers;
use limit::{BYTES, LIMIT_WORDS, LINK, PACKETS, next_of};
use tree::{Change, Key, Tree};
use v6::V6;

/// Why the data plane does not take a limit. Nothing was changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExactError {
    #[error(
        "this prefix has a limit for the same VIP and class already, number {index}; replace that one"
    )]
    Taken { index: u32 },
    #[error("there is no exact limit number {index}")]
    Unknown { index: u32 },
    #[error("no packet can have a source in {prefix}; write IPv4 prefixes as IPv4")]
    Unfit { prefix: IpNet },
    #[error(
        "all {most} exact limits are in use; remove some, or raise `exact_limits` in [dataplane]"
    )]
    LimitsFull { most: u32 },
    #[error(
        "all {most} blocks for IPv4 prefixes longer than /24 are in use; limit the /24 instead, or raise `exact_limits` in [dataplane]"
    )]
    BlocksFull { most: u32 },
    #[error(
        "the hash bucket of this IPv6 prefix is full; limit a shorter or longer prefix, or raise `exact_limits` in [dataplane]"
    )]
    BucketFull,
    #[error(
        "exact limits of IPv6 prefixes have {MAX_EXACT_LENGTHS} lengths already, no more are possible; use one of {}",
        slashed(lengths)
    )]
    TooManyLengths { lengths: Vec<u8> },
    #[error(
        "addresses in {prefix} would meet more than {MAX_CHAIN} limits; remove one that covers them, or join the classes of some to `all`"
    )]
    TooDeep { prefix: IpNet },
}

/// What packets counted at one limit. In monitor mode, dropped ones are those that would have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactCounters {
    pub passed_packets: u64,
    pub passed_bytes: u64,
    pub dropped_packets: u64,
    pub dropped_bytes: u64,
}

/// All exact limits, and the tables that hold them. The only writer of these tables.
pub struct ExactLimits {
    tables: ExactTables,
    limits: BTreeMap<u32, ExactLimit>,
    v4_tree: Tree,
    v6_tree: Tree,
    v6: V6,
    free: Numbers,
    free_blocks: Numbers,
    /// Limits of the class `established`.
    established: usize,
    /// The part of the tables that is audited next.
    audited: usize,
}

impl ExactLimits {
    /// For tables that are all zero. `local_key` is that of `SETTINGS`.
    pub fn new(tables: ExactTables, local_key: [u64; 4]) -> Self {
        Self {
            free: Numbers::new(1..tables.limit_count()),
            free_blocks: Numbers::new(0..tables.block_count()),
            tables,
            limits: BTreeMap::new(),
            v4_tree: Tree::default(),
            v6_tree: Tree::default(),
            v6: V6::new(local_key),
            established: 0,
            audited: 0,
        }
    }

    /// Adds a limit, and tells its number. It acts on the next packet.
    pub fn insert(&mut self, limit: ExactLimit) -> Result<u32, ExactError> {
        let key = limit.key()?;
        self.check(&limit, key)?;
        let most = self.tables.limit_count() - 1;
        let index = self.free.take().ok_or(ExactError::LimitsFull { most })?;
        self.link(index, limit, key);
        Ok(index)
    }

    /// Makes limit `index` be `limit`, and tells its number afterwards.
    ///
    /// For the same prefix, VIP and class it keeps its number, counters and what its sources used up. Else the new one
    /// begins afresh, and both stand for a moment: so there must be room for one more.
    pub fn replace(&mut self, index: u32, limit: ExactLimit) -> Result<u32, ExactError> {
        let old = self.get(index).ok_or(ExactError::Unknown { index })?;
        if !old.is_same(&limit) {
            let new = self.insert(limit)?;
            self.remove(index)?;
            return Ok(new);
        }
        let next = self.next(index);
        self.change_limiter(index, PACKETS, limit.packets);
        self.change_limiter(index, BYTES, limit.bytes);
        self.tables
            .set_limit_word(index, LINK, limit.link_word(next));
        self.limits.insert(index, limit);
        Ok(index)
    }

    /// Makes a limit act on no packet any more, at the cost of one word; what covers it does. It is still to be removed.
    pub fn cease(&mut self, index: u32) {
        let next = self.next(index);
        if let Some(limit) = self.limits.get_mut(&index) {
            limit.ceased = true;
            let word = limit.link_word(next);
            self.tables.set_limit_word(index, LINK, word);
        }
    }

    /// Takes a limit out, and tells what it counted. The next packet does not meet it.
    pub fn remove(&mut self, index: u32) -> Result<ExactCounters, ExactError> {
        let limit = *self.get(index).ok_or(ExactError::Unknown { index })?;
        let key = limit.key()?;
        let is_v6 = is_v6(&limit);
        let change = self.tree(is_v6).remove(key, index);
        let change = change.ok_or(ExactError::Unknown { index })?;
        if change.previous.is_some() {
            self.set_next(change.previous, change.next);
        } else if is_v6 && change.came_or_went {
            self.v6.remove(&mut self.tables, key, index);
        } else {
            self.lead(is_v6, key, &change);
        }
        self.set_tails(&change);
        if !is_v6 && change.came_or_went {
            let (tables, blocks) = (&mut self.tables, &mut self.free_blocks);
            v4::free_block(tables, blocks, &self.v4_tree, key);
        }
        // A packet that still holds the number finds a limit for no class.
        self.tables.set_limit_word(index, LINK, 0);
        self.limits.remove(&index);
        self.established -= usize::from(limit.class.bits() & ESTABLISHED != 0);
        self.tables.set_exact_bits(self.wanted_bits());
        let counters = self.counters(index);
        self.free.give_back(index);
        Ok(counters)
    }

    pub fn get(&self, index: u32) -> Option<&ExactLimit> {
        self.limits.get(&index)
    }

    /// Every limit with its number, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &ExactLimit)> {
        self.limits.iter().map(|(index, limit)| (*index, limit))
    }

    pub fn len(&self) -> usize {
        self.limits.len()
    }

    pub fn is_empty(&self) -> bool {
        self.limits.is_empty()
    }

    /// What packets counted at a limit so far.
    pub fn read(&self, index: u32) -> Option<ExactCounters> {
        self.get(index).map(|_| self.counters(index))
    }

    /// Whether the tables have room for a limit, its number aside.
    fn check(&self, limit: &ExactLimit, key: Key) -> Result<(), ExactError> {
        let (is_v6, tree) = if is_v6(limit) {
            (true, &self.v6_tree)
        } else {
            (false, &self.v4_tree)
        };
        let group = tree.get(key);
        if let Some(group) = group {
            let same = |index: &&u32| self.get(**index).is_some_and(|known| known.is_same(limit));
            if let Some(index) = group.limits.iter().find(same) {
                return Err(ExactError::Taken { index: *index });
            }
        }
        let (deepest, depth) = tree.deepest(key);
        if depth >= MAX_CHAIN {
            let held = tree
                .get(deepest)
                .and_then(|group| self.get(group.limits[0]));
            let prefix = held.map_or(limit.prefix, |held| held.prefix);
            return Err(ExactError::TooDeep { prefix });
        }
        if is_v6 && group.is_none() {
            return self.v6.check(&self.tables, key);
        }
        if !is_v6 && self.free_blocks.are_gone() && v4::needs_block(&self.tables, key) {
            return Err(ExactError::BlocksFull {
                most: self.tables.block_count(),
            });
        }
        Ok(())
    }

    /// Writes a limit that was checked, and leads packets to it.
    fn link(&mut self, index: u32, limit: ExactLimit, key: Key) {
        let is_v6 = is_v6(&limit);
        let change = self.note(index, limit, key);
        self.write_limit(index, &limit, key, change.next);
        if change.previous.is_some() {
            self.set_next(change.previous, index);
        } else if is_v6 && change.came_or_went {
            self.v6.add(&mut self.tables, key, index);
        } else {
            self.lead(is_v6, key, &change);
        }
        self.set_tails(&change);
        self.tables.set_exact_bits(self.wanted_bits());
    }

    /// Enters a limit into the books alone.
    fn note(&mut self, index: u32, limit: ExactLimit, key: Key) -> Change {
        let is_v6 = is_v6(&limit);
        let order = |index: &u32| self.get(*index).map(ExactLimit::order);
        let tree = if is_v6 { &self.v6_tree } else { &self.v4_tree };
        let at = tree.get(key).map_or(0, |group| {
            group
                .limits
                .partition_point(|known| order(known) < Some(limit.order()))
        });
        self.limits.insert(index, limit);
        self.established += usize::from(limit.class.bits() & ESTABLISHED != 0);
        self.tree(is_v6).insert(key, at, index)
    }

    fn write_limit(&mut self, index: u32, limit: &ExactLimit, key: Key, next: u32) {
        let words: [u64; LIMIT_WORDS] = bytemuck::cast(Limit {
            prefix: key.words(),
            packets: limit.packets,
            bytes: limit.bytes,
            ..Limit::default()
        });
        for (word, value) in words.into_iter().enumerate() {
            self.tables.set_limit_word(index, word, value);
        }
        self.tables
            .set_limit_word(index, LINK, limit.link_word(next));
    }

    /// Changes a limiter that packets may be using: whatever mix they see is never stricter than both.
    fn change_limiter(&mut self, index: u32, at: usize, new: Limiter) {
        let old_allowance = self.tables.limit_words(index)[at + 1];
        let most = old_allowance.max(new.allowance);
        self.tables.set_limit_word(index, at + 1, most);
        self.tables.set_limit_word(index, at, new.cost);
        self.tables.set_limit_word(index, at + 1, new.allowance);
    }

    /// Leads the addresses of a prefix to another first limit.
    fn lead(&mut self, is_v6: bool, key: Key, change: &Change) {
        let (old, new) = (change.old_head, change.new_head);
        if is_v6 {
            self.v6.repoint(&mut self.tables, key, old, new);
        } else {
            v4::repoint(&mut self.tables, &mut self.free_blocks, key, old, new);
        }
    }

    fn set_tails(&mut self, change: &Change) {
        for tail in &change.tails {
            self.set_next(Some(*tail), change.new_head);
        }
    }

    fn set_next(&mut self, index: Option<u32>, next: u32) {
        let limit = index.and_then(|index| Some((index, *self.get(index)?)));
        if let Some((index, limit)) = limit {
            self.tables
                .set_limit_word(index, LINK, limit.link_word(next));
        }
    }

    fn next(&self, index: u32) -> u32 {
        next_of(self.tables.limits.get(index as usize * LIMIT_WORDS + LINK))
    }

    fn wanted_bits(&self) -> u32 {
        let bit = |bit, is_wanted| if is_wanted { bit } else { 0 };
        bit(EXACT_V4, !self.v4_tree.is_empty())
            | bit(EXACT_V6, !self.v6_tree.is_empty())
            | bit(EXACT_ESTABLISHED, self.established > 0)
    }

    fn counters(&self, index: u32) -> ExactCounters {
        let limit: Limit = bytemuck::cast(self.tables.limit_words(index));
        ExactCounters {
            passed_packets: limit.passed_packets,
            passed_bytes: limit.passed_bytes,
            dropped_packets: limit.dropped_packets,
            dropped_bytes: limit.dropped_bytes,
        }
    }

    fn tree(&mut self, is_v6: bool) -> &mut Tree {
        if is_v6 {
            &mut self.v6_tree
        } else {
            &mut self.v4_tree
        }
    }
}

const ESTABLISHED: u8 = 1 << Class::Established as u8;

fn is_v6(limit: &ExactLimit) -> bool {
    matches!(limit.prefix, IpNet::V6(_))
}

fn slashed(lengths: &[u8]) -> String {
    let words: Vec<String> = lengths.iter().map(|length| format!("/{length}")).collect();
    words.join(", ")
}
