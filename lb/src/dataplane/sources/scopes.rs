//! Sets that are for one VIP: which of them do not hold for each VIP.

use std::collections::BTreeMap;

use super::{SourceSet, SourceTables};
use crate::sys::Mapped;

/// Which sets are for which VIP, a bit each.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    /// Those that are not for all.
    all: u64,
    by_vip: BTreeMap<u16, u64>,
}

impl Scopes {
    pub(super) fn of<'a>(sets: impl IntoIterator<Item = &'a SourceSet>) -> Self {
        let mut scopes = Self::default();
        for set in sets {
            if let Some(vip) = set.vip {
                let bit = 1 << set.number;
                scopes.all |= bit;
                *scopes.by_vip.entry(vip).or_default() |= bit;
            }
        }
        scopes
    }

    /// Ends what does not hold by this, and lets nothing hold that did not before. `off` is `SOURCE_SETS_OFF`.
    pub(super) fn narrow(&self, off: &Mapped<u64>, tables: &mut SourceTables) {
        self.write(off, |held, off| held | off);
        if self.all != 0 {
            tables.set_of_vips(true);
        }
    }

    /// Makes just this hold. Tells whether it did already.
    pub(super) fn put(&self, off: &Mapped<u64>, tables: &mut SourceTables) -> bool {
        let same = self.write(off, |_, off| off);
        tables.set_of_vips(self.all != 0);
        same
    }

    fn write(&self, off: &Mapped<u64>, wanted: impl Fn(u64, u64) -> u64) -> bool {
        let mut same = true;
        // For numbers that no VIP has as well: one that comes finds what is right for it.
        for vip in (0..=u16::MAX).take_while(|vip| u32::from(*vip) < off.len()) {
            let held = off.load_u64(vip.into(), 0);
            let wanted = wanted(held, self.off(vip));
            if held != wanted {
                off.store_u64(vip.into(), 0, wanted);
                same = false;
            }
        }
        same
    }

    /// The sets that do not hold for a VIP.
    fn off(&self, vip: u16) -> u64 {
        self.all & !self.by_vip.get(&vip).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::Purpose;

    #[test]
    fn a_set_of_one_vip_is_off_for_all_others() {
        let set = |number, vip| SourceSet {
            number,
            name: String::new(),
            purpose: Purpose::Deny,
            vip,
            members: std::sync::Arc::default(),
        };
        let sets = [
            set(1, None),
            set(4, Some(7)),
            set(5, Some(7)),
            set(6, Some(8)),
        ];
        let scopes = Scopes::of(&sets);
        assert_eq!(scopes.off(7), 1 << 6);
        assert_eq!(scopes.off(8), 1 << 4 | 1 << 5);
        assert_eq!(scopes.off(9), 1 << 4 | 1 << 5 | 1 << 6);
    }
}
