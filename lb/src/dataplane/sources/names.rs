//! What the numbers of sets stand for: in a file beside the registry, for `sluice explain`, which needs no daemon.

use std::{collections::BTreeMap, fs, path::Path};

use super::SourceSet;
use crate::disk::{self, SaveError};

/// Names of sets by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetNames(BTreeMap<u8, String>);

impl SetNames {
    pub fn of(sets: &[SourceSet]) -> Self {
        let names = sets.iter().map(|set| (set.number, set.name.clone()));
        Self(names.collect())
    }

    /// What was written last; nothing if there is no such file.
    pub fn read(state_dir: &Path) -> Self {
        let text = fs::read(state_dir.join(FILE)).unwrap_or_default();
        Self(serde_json::from_slice(&text).unwrap_or_default())
    }

    pub fn save(&self, state_dir: &Path) -> Result<(), SaveError> {
        if *self == Self::read(state_dir) {
            return Ok(());
        }
        disk::replace_json(&state_dir.join(FILE), &self.0)
    }

    /// Those whose bits are set.
    pub fn within(&self, sets: u64) -> Vec<String> {
        (0..64)
            .filter(|number| sets >> number & 1 != 0)
            .map(|number| match self.0.get(&number) {
                Some(name) => name.clone(),
                None => format!("set {number}"),
            })
            .collect()
    }
}

const FILE: &str = "sets.json";
