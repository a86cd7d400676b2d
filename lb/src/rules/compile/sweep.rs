//! From ranges that rules want of a field to intervals of values that are alike for all of them.

use sluice_ebpf::rules::WORDS;

use super::{
    Bit, Compiler,
    rows::{Bitmap, set},
};

/// What a rule wants of a field: ranges, in order or not; `None`: anything.
pub(super) type Wanted = Option<Vec<(u128, u128)>>;

impl Compiler<'_> {
    /// The bitmaps of a field's values: from where on, and which. `None` if no rule looks at it.
    pub(super) fn sweep(
        &self,
        wanted: impl Fn(&Bit<'_>) -> Wanted,
    ) -> Option<(Bitmap, Vec<(u128, Bitmap)>)> {
        let mut base = [0; WORDS];
        let mut events = Vec::new();
        for (at, bit) in self.bits.iter().enumerate() {
            match wanted(bit) {
                None => set(&mut base, at),
                Some(ranges) => {
                    for (low, high) in ranges {
                        events.push((low, at));
                        events.extend(high.checked_add(1).map(|end| (end, at)));
                    }
                    // So that the field counts as looked at, also by a rule of another family.
                    events.push((0, usize::MAX));
                }
            }
        }
        if events.is_empty() {
            return None;
        }
        events.sort_unstable();
        let mut now = base;
        let mut intervals: Vec<(u128, Bitmap)> = vec![(0, base)];
        for (position, at) in events {
            if at != usize::MAX {
                // Ranges of one rule have gaps between them: it begins or ends here.
                now[at / 64] ^= 1 << (at % 64);
            }
            match intervals.last_mut() {
                Some(last) if last.0 == position => last.1 = now,
                _ => intervals.push((position, now)),
            }
        }
        intervals.dedup_by(|later, earlier| later.1 == earlier.1);
        Some((base, intervals))
    }
}
