//! Whether the tables of exact limits still hold what was put there.

use std::mem::take;

use sluice_ebpf::exact::V4_ENTRIES;

use super::{
    ExactError, ExactLimits,
    adopt::held,
    cells::Numbers,
    limit::{ExactLimit, LINK},
    tree::Tree,
    v4,
    v6::V6,
};

/// Calls of [`ExactLimits::audit`] that see all.
const PARTS: usize = 16;
const V4_PART: usize = V4_ENTRIES as usize / PARTS;

impl ExactLimits {
    /// Whether a part of the tables holds what it should; each call looks at another part, for some milliseconds.
    pub fn audit(&mut self, local_key: [u64; 4]) -> bool {
        let part = self.audited;
        self.audited = (part + 1) % PARTS;
        let v4 = part * V4_PART..(part + 1) * V4_PART;
        self.settings_fit()
            && v4::verify_part(&self.tables, &self.v4_tree, v4).is_some()
            && match part {
                0 => V6::verify(local_key, &self.tables, &self.v6_tree).is_some(),
                1 => self.rows_fit(),
                _ => true,
            }
    }

    fn rows_fit(&self) -> bool {
        let found = held(&self.tables);
        self.is_live(&found)
            && self.links_fit(&found)
            && found
                .iter()
                .all(|(index, limit, _)| self.get(*index) == Some(limit))
    }

    /// Makes the tables anew from what they should hold. Limits keep their numbers and counters, and are off meanwhile.
    ///
    /// Returns those that found no room; there are none unless the order of arrival decided who found it.
    pub fn rebuild(&mut self, local_key: [u64; 4]) -> Vec<(ExactLimit, ExactError)> {
        self.clear();
        (self.v4_tree, self.v6_tree) = (Tree::default(), Tree::default());
        self.v6 = V6::new(local_key);
        self.established = 0;
        let limits = take(&mut self.limits);
        let used = limits.keys().copied().collect();
        let all = 1..self.tables.limit_count();
        for index in all.clone() {
            self.tables.set_limit_word(index, LINK, 0);
        }
        self.free = Numbers::without(all, &used);
        self.free_blocks = Numbers::new(0..self.tables.block_count());
        let restored = limits
            .into_iter()
            .map(|(index, limit)| (limit, self.restore(index, limit)));
        restored
            .filter_map(|(limit, result)| Some((limit, result.err()?)))
            .collect()
    }
}
