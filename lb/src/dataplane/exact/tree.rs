//! Which prefixes of one family have limits, and which of them cover which.
//!
//! A change costs the logarithm of all prefixes, and a step for each prefix inside the one that changes.

use std::collections::BTreeMap;

pub(super) use crate::dataplane::prefix::{Key, inside, words_of};

/// The limits of one prefix.
#[derive(Debug)]
pub(super) struct Group {
    /// Length of the closest prefix that covers this one.
    parent: Option<u8>,
    /// How many limits an address of this prefix meets: these, and those of all that cover it.
    depth: usize,
    /// By number, in the order in which packets try them; never empty.
    pub(super) limits: Vec<u32>,
}

/// What a change of the tree means for the tables.
#[derive(Debug)]
pub(super) struct Change {
    /// Before it in its prefix.
    pub(super) previous: Option<u32>,
    /// After it: in its prefix, or the first of the closest that covers it, or 0.
    pub(super) next: u32,
    /// The first limit of this prefix's addresses before and after.
    pub(super) old_head: u32,
    pub(super) new_head: u32,
    /// Last limits of prefixes right below this one, if they must be linked to the new head.
    pub(super) tails: Vec<u32>,
    /// The prefix came with its first limit, or went with its last.
    pub(super) came_or_went: bool,
}

#[derive(Debug, Default)]
pub(super) struct Tree {
    groups: BTreeMap<Key, Group>,
}

impl Tree {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub(super) fn get(&self, key: Key) -> Option<&Group> {
        self.groups.get(&key)
    }

    /// Every prefix, with its limits, in order of [`Key`].
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &Group)> {
        self.groups.iter().map(|(key, group)| (*key, group))
    }

    /// Prefixes inside `key`, without itself.
    pub(super) fn below(&self, key: Key) -> impl Iterator<Item = (Key, &Group)> {
        self.groups
            .range(inside(key))
            .map(|(key, group)| (*key, group))
    }

    /// The prefix that `key` is or that it covers whose addresses meet most limits, and how many these are.
    pub(super) fn deepest(&self, key: Key) -> (Key, usize) {
        let own = match self.groups.get(&key) {
            Some(group) => group.depth,
            None => self
                .covering(key)
                .and_then(|key| self.groups.get(&key))
                .map_or(0, |group| group.depth),
        };
        self.below(key)
            .map(|(key, group)| (key, group.depth))
            .fold(
                (key, own),
                |most, one| if one.1 > most.1 { one } else { most },
            )
    }

    /// First limit of whatever covers `key`, itself excluded.
    pub(super) fn head_above(&self, key: Key) -> u32 {
        self.covering(key)
            .and_then(|key| self.groups.get(&key))
            .map_or(0, |group| group.limits[0])
    }

    /// Adds a limit at a place of its prefix.
    pub(super) fn insert(&mut self, key: Key, at: usize, index: u32) -> Change {
        let parent = self.covering(key);
        let (above, depth_above) = parent
            .and_then(|parent| self.groups.get(&parent))
            .map_or((0, 0), |group| (group.limits[0], group.depth));
        let parent = parent.map(|parent| parent.length);
        let group = self.groups.entry(key).or_insert_with(|| Group {
            parent,
            depth: depth_above,
            limits: Vec::with_capacity(1),
        });
        let came_or_went = group.limits.is_empty();
        let old_head = group.limits.first().copied().unwrap_or(above);
        group.limits.insert(at, index);
        group.depth += 1;
        let mut change = Change {
            previous: at.checked_sub(1).map(|before| group.limits[before]),
            next: group.limits.get(at + 1).copied().unwrap_or(above),
            old_head,
            new_head: group.limits[0],
            tails: Vec::new(),
            came_or_went,
        };
        let parent_of_children = if came_or_went {
            parent
        } else {
            Some(key.length)
        };
        for (_, group) in self.groups.range_mut(inside(key)) {
            group.depth += 1;
            if group.parent == parent_of_children {
                group.parent = Some(key.length);
                if at == 0 {
                    change.tails.extend(group.limits.last());
                }
            }
        }
        change
    }

    /// Takes a limit out; `None` if it is not there.
    pub(super) fn remove(&mut self, key: Key, index: u32) -> Option<Change> {
        let above = self.head_above(key);
        let group = self.groups.get_mut(&key)?;
        let at = group.limits.iter().position(|limit| *limit == index)?;
        let old_head = group.limits[0];
        group.limits.remove(at);
        group.depth -= 1;
        let parent = group.parent;
        let mut change = Change {
            previous: at.checked_sub(1).map(|before| group.limits[before]),
            next: group.limits.get(at).copied().unwrap_or(above),
            old_head,
            new_head: group.limits.first().copied().unwrap_or(above),
            tails: Vec::new(),
            came_or_went: group.limits.is_empty(),
        };
        if change.came_or_went {
            self.groups.remove(&key);
        }
        for (_, group) in self.groups.range_mut(inside(key)) {
            group.depth -= 1;
            if group.parent == Some(key.length) {
                if change.came_or_went {
                    group.parent = parent;
                }
                if at == 0 {
                    change.tails.extend(group.limits.last());
                }
            }
        }
        Some(change)
    }

    /// The closest prefix that covers `key`, itself excluded.
    ///
    /// It stands before `key` in order, and so does all between the two, which it covers too.
    fn covering(&self, key: Key) -> Option<Key> {
        let (mut candidate, mut group) = self
            .groups
            .range(..key)
            .next_back()
            .map(|(key, group)| (*key, group))?;
        while !candidate.covers(key) {
            candidate = candidate.cut(group.parent?);
            group = self.groups.get(&candidate)?;
        }
        Some(candidate)
    }
}
