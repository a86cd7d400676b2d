//! What it would take to hold another desired state, and what that would move: worked out, and nothing is touched.

use std::collections::BTreeMap;

use sluice_ebpf::abi::BACKEND_FORWARDS;

use super::{
    ApplyError, BackendKey, Desired, Step, Table, TableKey, maglev,
    plan::{Image, plan},
    slots::entries,
};

/// What the data plane holds, and what it would hold.
#[derive(Clone, Debug)]
pub struct Preview {
    actual: Image,
    wanted: Image,
}

/// What becomes of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipChange {
    Added,
    Removed,
    Changed,
}

/// Slots of a lookup table that would lead to another backend, and all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub slots: u32,
    pub of: u32,
}

impl Preview {
    pub(crate) fn new(actual: Image, desired: &Desired, hz: u32) -> Result<Self, ApplyError> {
        let wanted = Image::of(desired, hz)?;
        Ok(Self { actual, wanted })
    }

    /// As if a data plane held exactly what is desired.
    #[cfg(test)]
    pub(crate) fn between(actual: &Desired, wanted: &Desired) -> Result<Self, ApplyError> {
        Self::new(Image::of(actual, 100)?, wanted, 100)
    }

    /// In the order in which they would be taken.
    pub fn steps(&self) -> Vec<Step> {
        plan(&self.actual, &self.wanted)
    }

    /// VIPs that are not what they were, and what of each moves. Tables are built for this, some milliseconds each.
    pub fn vips(&self) -> BTreeMap<&str, (VipChange, Moved)> {
        let mut known = BTreeMap::new();
        let names = self.actual.vips.keys().chain(self.wanted.vips.keys());
        names
            .filter_map(|name| {
                let (before, after) = (self.actual.vips.get(name), self.wanted.vips.get(name));
                let change = match (before, after) {
                    (None, _) => VipChange::Added,
                    (_, None) => VipChange::Removed,
                    _ => VipChange::Changed,
                };
                // Of one that was adopted, and not put since, the table is not known.
                let table = |vip: Option<&Option<super::plan::VipImage>>| {
                    Some(vip?.as_ref()?.table.clone())
                };
                let tables = (table(before), table(after));
                let moved = *known
                    .entry(tables)
                    .or_insert_with_key(|(old, new)| self.moved(old.as_ref(), new.as_ref()));
                let is_same = before == after && moved.slots == 0;
                (!is_same).then_some((name.as_str(), (change, moved)))
            })
            .collect()
    }

    /// Whether a backend takes packets of flows that it has, before.
    pub fn forwarded(&self, key: &BackendKey) -> bool {
        forwards(&self.actual, key)
    }

    /// The same, afterwards.
    pub fn would_forward(&self, key: &BackendKey) -> bool {
        forwards(&self.wanted, key)
    }

    fn moved(&self, before: Option<&TableKey>, after: Option<&TableKey>) -> Moved {
        let before = before.and_then(|key| self.actual.tables.get(key));
        let after = after.and_then(|key| self.wanted.tables.get(key));
        match (before, after) {
            (Some(before), Some(after)) => moved(before, after),
            (None, None) => Moved { slots: 0, of: 0 },
            (Some(only), None) | (None, Some(only)) => Moved {
                slots: only.slots,
                of: only.slots,
            },
        }
    }

    pub(super) fn wanted(&self) -> &Image {
        &self.wanted
    }
}

fn forwards(image: &Image, key: &BackendKey) -> bool {
    let backend = image.backends.get(key);
    backend.is_some_and(|backend| backend.flags & BACKEND_FORWARDS != 0)
}

/// Compares what slots lead to: by address, for a flow does not mind by which way it gets there.
fn moved(before: &Table, after: &Table) -> Moved {
    let of = before.slots.max(after.slots);
    if before == after {
        return Moved { slots: 0, of };
    }
    let (old, new) = (Owners::of(before), Owners::of(after));
    let slots = (0..of).filter(|&slot| old.at(slot, of) != new.at(slot, of));
    Moved {
        slots: u32::try_from(slots.count()).unwrap_or(of),
        of,
    }
}

/// Who has each slot of a table.
struct Owners {
    slots: Vec<u16>,
    identities: Vec<u64>,
}

impl Owners {
    fn of(table: &Table) -> Self {
        let entries = entries(table);
        Self {
            slots: maglev::build(table.slots, &entries),
            identities: entries.iter().map(|entry| entry.identity).collect(),
        }
    }

    /// `of` parts of the table, whatever its size; `None` if it has no backends.
    fn at(&self, part: u32, of: u32) -> Option<u64> {
        let slot = u64::from(part) * self.slots.len() as u64 / u64::from(of.max(1));
        let index = self.slots.get(usize::try_from(slot).ok()?)?;
        self.identities.get(usize::from(*index)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Forward;

    fn table(slots: u32, backends: &[u8]) -> Table {
        let key = |last: &u8| BackendKey {
            pool: "web".into(),
            address: [10, 0, 0, *last].into(),
            forward: Forward::L2,
        };
        Table {
            slots,
            weights: backends.iter().map(|last| (key(last), 1)).collect(),
        }
    }

    #[test]
    fn a_share_moves_with_a_backend_and_little_else() {
        let of = 65_537;
        let nothing = Moved { slots: 0, of };
        assert_eq!(moved(&table(of, &[1, 2]), &table(of, &[1, 2])), nothing);
        let added = moved(&table(of, &[1, 2]), &table(of, &[1, 2, 3]));
        let third = of / 3;
        assert!((third..third + of / 50).contains(&added.slots), "{added:?}");
        let gone = moved(&table(of, &[1, 2, 3]), &table(of, &[1, 2]));
        assert_eq!(gone, added);
        let all = Moved { slots: of, of };
        assert_eq!(moved(&table(of, &[1]), &table(of, &[])), all);
        assert_eq!(moved(&table(of, &[1]), &table(of, &[2])), all);
        assert_eq!(moved(&table(of, &[]), &table(251, &[])), nothing);
    }

    #[test]
    fn the_way_to_a_backend_moves_nothing_and_another_size_moves_much() {
        let of = 1_021;
        let mut other_way = table(of, &[1, 2]);
        other_way.weights = std::mem::take(&mut other_way.weights)
            .into_iter()
            .map(|(key, weight)| {
                let forward = Forward::Gue;
                (BackendKey { forward, ..key }, weight)
            })
            .collect();
        assert_eq!(moved(&table(of, &[1, 2]), &other_way).slots, 0);
        let resized = moved(&table(251, &[1, 2]), &table(of, &[1, 2]));
        assert!(resized.of == of && resized.slots > of / 4, "{resized:?}");
    }
}
