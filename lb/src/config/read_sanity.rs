//! Reads `sanity` of a policy: one word for all checks, or a table with a word for each.

use sluice_ebpf::abi::Check;

use super::{
    keys,
    model::{Sanity, Stage},
    section::Field,
};

/// What a policy does about each check. Checks that a table does not name are as they are without it.
pub(super) fn sanity(field: &Field<'_>) -> Option<Sanity> {
    let mut sanity = Sanity::default();
    if field.text().is_some() {
        let stage = field.word(STAGES)?;
        let of_all = sanity.0.iter_mut().filter(|held| **held != Stage::Off);
        of_all.for_each(|held| *held = stage);
        return Some(sanity);
    }
    let table = field.table(&keys::SANITY)?;
    let mut good = true;
    for (held, check) in sanity.0.iter_mut().zip(Check::ALL) {
        match table.or(check.word(), *held, |field| field.word(STAGES)) {
            Some(stage) => *held = stage,
            None => good = false,
        }
    }
    good.then_some(sanity)
}

/// The words for what a stage of the filter does.
pub(super) const STAGES: &[(&str, Stage)] = &[
    ("enforce", Stage::Enforce),
    ("monitor", Stage::Monitor),
    ("off", Stage::Off),
];
