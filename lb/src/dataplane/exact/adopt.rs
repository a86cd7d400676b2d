//! Taking over tables that an earlier daemon filled, while packets use them.

use std::collections::{HashMap, HashSet};

use super::{
    ExactError, ExactLimits, LIMIT_WORDS,
    cells::{ExactTables, Numbers},
    limit::{ExactLimit, LINK},
    v4,
    v6::V6,
};
use sluice_ebpf::abi::MAX_CHAIN;

/// What became of the limits that were wanted.
#[derive(Debug)]
pub struct Adoption {
    /// For each, in the same order: its number, or why the data plane does not take it.
    pub indices: Vec<Result<u32, ExactError>>,
    /// The tables contradicted themselves, as after a crash amid a change, and were made anew.
    pub rebuilt: bool,
}

impl ExactLimits {
    /// Takes over what the tables hold, and makes it what is wanted.
    ///
    /// Limits that are there already keep their numbers and counters: those are found in the tables, so nobody
    /// needs to remember them. Tables that contradict themselves are made anew; exact limits are off meanwhile.
    pub fn adopt(
        tables: ExactTables,
        local_key: [u64; 4],
        wanted: &[ExactLimit],
    ) -> (Self, Adoption) {
        let found = held(&tables);
        let mut this = Self::new(tables, local_key);
        let rebuilt = !this.take_over(&found, local_key);
        if rebuilt {
            this = Self::new(this.tables, local_key);
            this.clear();
        }
        let staying = staying(&found, wanted);
        let numbers: HashSet<u32> = staying.iter().copied().flatten().collect();
        if rebuilt {
            let all = 1..this.tables.limit_count();
            this.free = Numbers::without(all.clone(), &numbers);
            for index in all.filter(|index| !numbers.contains(index)) {
                this.tables.set_limit_word(index, LINK, 0);
            }
        } else {
            let goes = |(index, ..): &&(u32, ExactLimit, u32)| !numbers.contains(index);
            for (index, ..) in found.iter().filter(goes) {
                // It was taken over, so it is there.
                _ = this.remove(*index);
            }
        }
        let mut indices: Vec<_> = staying
            .iter()
            .zip(wanted)
            .map(|(index, limit)| match index {
                Some(index) if rebuilt => Some(this.restore(*index, *limit)),
                Some(index) => Some(this.replace(*index, *limit)),
                None => None,
            })
            .collect();
        // New ones come last: the others have their numbers by now.
        let indices = indices
            .iter_mut()
            .zip(wanted)
            .map(|(index, limit)| index.take().unwrap_or_else(|| this.insert(*limit)))
            .collect();
        (this, Adoption { indices, rebuilt })
    }

    /// Fills the books from the tables; `false` if these contradict themselves.
    fn take_over(&mut self, found: &[(u32, ExactLimit, u32)], local_key: [u64; 4]) -> bool {
        let mut used = HashSet::with_capacity(found.len());
        for (index, limit, _) in found {
            let Ok(key) = limit.key() else { return false };
            let tree = if super::is_v6(limit) {
                &self.v6_tree
            } else {
                &self.v4_tree
            };
            let is_twice = tree.get(key).is_some_and(|group| {
                group
                    .limits
                    .iter()
                    .any(|known| self.limits[known].is_same(limit))
            });
            if is_twice || tree.deepest(key).1 >= MAX_CHAIN {
                return false;
            }
            self.note(*index, *limit, key);
            used.insert(*index);
        }
        if !self.is_live(found) || !self.links_fit(found) {
            return false;
        }
        let Some(blocks) = v4::verify(&self.tables, &self.v4_tree) else {
            return false;
        };
        let Some(v6) = V6::verify(local_key, &self.tables, &self.v6_tree) else {
            return false;
        };
        self.v6 = v6;
        self.free = Numbers::without(1..self.tables.limit_count(), &used);
        self.free_blocks = Numbers::without(0..self.tables.block_count(), &blocks);
        self.settings_fit()
    }

    /// Whether packets are told of what is there, and of nothing else.
    pub(super) fn settings_fit(&self) -> bool {
        self.tables.exact_bits() == self.wanted_bits()
            && self.tables.v6_lengths() == self.v6.padded_lengths()
    }

    /// Whether no more rows are in use than those that were found.
    pub(super) fn is_live(&self, found: &[(u32, ExactLimit, u32)]) -> bool {
        let live = (1..self.tables.limit_count())
            .filter(|index| self.tables.limits.get(*index as usize * LIMIT_WORDS + LINK) != 0);
        live.count() == found.len()
    }

    pub(super) fn links_fit(&self, found: &[(u32, ExactLimit, u32)]) -> bool {
        let next: HashMap<u32, u32> = found
            .iter()
            .map(|(index, _, next)| (*index, *next))
            .collect();
        [&self.v4_tree, &self.v6_tree].into_iter().all(|tree| {
            tree.iter().all(|(key, group)| {
                let above = tree.head_above(key);
                let after = group.limits.iter().skip(1).chain([&above]);
                group
                    .limits
                    .iter()
                    .zip(after)
                    .all(|(limit, after)| next.get(limit) == Some(after))
            })
        })
    }

    /// Puts a limit back under its number, with what it counted.
    pub(super) fn restore(&mut self, index: u32, limit: ExactLimit) -> Result<u32, ExactError> {
        let counted = self.tables.limit_words(index);
        self.tables.set_limit_word(index, LINK, 0);
        let checked = limit
            .key()
            .and_then(|key| self.check(&limit, key).map(|()| key));
        let key = match checked {
            Ok(key) => key,
            Err(wrong) => {
                self.free.give_back(index);
                return Err(wrong);
            }
        };
        self.link(index, limit, key);
        for (word, value) in counted.into_iter().enumerate().skip(LINK + 2) {
            self.tables.set_limit_word(index, word, value);
        }
        Ok(index)
    }

    /// Leads no packet to any limit.
    pub(super) fn clear(&mut self) {
        self.tables.set_exact_bits(0);
        V6::clear(&mut self.tables);
        v4::clear(&mut self.tables);
    }
}

/// Live limits of the table, with what they link to.
pub(super) fn held(tables: &ExactTables) -> Vec<(u32, ExactLimit, u32)> {
    (1..tables.limit_count())
        .filter(|index| tables.limits.get(*index as usize * LIMIT_WORDS + LINK) != 0)
        .filter_map(|index| {
            let (limit, next) = ExactLimit::from_words(tables.limit_words(index))?;
            Some((index, limit, next))
        })
        .collect()
}

/// For each wanted limit the number under which it is there already.
fn staying(found: &[(u32, ExactLimit, u32)], wanted: &[ExactLimit]) -> Vec<Option<u32>> {
    let mut numbers: HashMap<_, u32> = found
        .iter()
        .map(|(index, limit, _)| (identity(limit), *index))
        .collect();
    wanted
        .iter()
        .map(|limit| numbers.remove(&identity(limit)))
        .collect()
}

/// What tells one limit from all others.
fn identity(limit: &ExactLimit) -> (ipnet::IpNet, impl Eq + std::hash::Hash + use<>) {
    (limit.prefix.trunc(), limit.order())
}
