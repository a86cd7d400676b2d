//! Which number each VIP, policy and backend has in the maps, kept across restarts: flows are remembered by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sluice_ebpf::abi::NO_BACKEND;

use super::{ApplyError, BackendKey, TableKey};

/// A run of slots in `SLOTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Region {
    pub first: u32,
    pub slots: u32,
}

impl Region {
    /// As in `Vip::table`.
    pub(crate) fn word(self) -> u64 {
        u64::from(self.first) | u64::from(self.slots) << 32
    }

    pub(crate) fn from_word(word: u64) -> Self {
        let [a, b] = [word & u64::from(u32::MAX), word >> 32];
        Self {
            first: u32::try_from(a).unwrap_or(0),
            slots: u32::try_from(b).unwrap_or(0),
        }
    }
}

/// Numbers in use. A number is on disk before a packet can meet it.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    path: PathBuf,
    /// Kernel's ids of the maps that the numbers are about.
    maps: Vec<u32>,
    pub vips: BTreeMap<String, u16>,
    pub policies: BTreeMap<String, u16>,
    pub backends: BTreeMap<BackendKey, u16>,
    pub tables: BTreeMap<TableKey, Region>,
    /// Backend numbers that flows may still have, and when (in jiffies) they are free again.
    retired: BTreeMap<u16, u64>,
    changed: bool,
}

/// The file's format.
#[derive(Serialize, Deserialize)]
struct Stored {
    maps: Vec<u32>,
    vips: BTreeMap<String, u16>,
    policies: BTreeMap<String, u16>,
    backends: Vec<(BackendKey, u16)>,
    tables: Vec<(TableKey, Region)>,
    retired: Vec<u16>,
}

const FILE: &str = "numbers.json";

impl Registry {
    /// Numbers for new maps: none.
    pub(crate) fn new(state_dir: &Path, maps: Vec<u32>) -> Self {
        Self {
            path: state_dir.join(FILE),
            maps,
            changed: true,
            ..Self::default()
        }
    }

    /// The numbers that stand for these maps; `None` if the file is missing, broken, or about other maps.
    pub(crate) fn read(state_dir: &Path, maps: &[u32], now: u64) -> Option<Self> {
        let path = state_dir.join(FILE);
        let stored: Stored = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
        (stored.maps == maps).then(|| Self {
            path,
            maps: stored.maps,
            vips: stored.vips,
            policies: stored.policies,
            backends: stored.backends.into_iter().collect(),
            tables: stored.tables.into_iter().collect(),
            retired: stored
                .retired
                .into_iter()
                .map(|number| (number, now))
                .collect(),
            changed: false,
        })
    }

    /// Writes the file, if anything changed since.
    pub(crate) fn save(&mut self) -> Result<(), ApplyError> {
        if !self.changed {
            return Ok(());
        }
        self.write().map_err(|source| ApplyError::Registry {
            path: self.path.clone(),
            source,
        })?;
        self.changed = false;
        Ok(())
    }

    fn write(&self) -> io::Result<()> {
        let stored = Stored {
            maps: self.maps.clone(),
            vips: self.vips.clone(),
            policies: self.policies.clone(),
            backends: self
                .backends
                .iter()
                .map(|(key, &number)| (key.clone(), number))
                .collect(),
            tables: self
                .tables
                .iter()
                .map(|(key, &region)| (key.clone(), region))
                .collect(),
            retired: self.retired.keys().copied().collect(),
        };
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = self.path.with_extension("json.new");
        fs::write(&new, serde_json::to_vec(&stored)?)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &self.path)
    }

    /// The number of a VIP, and whether it is new. `room` counts number 0, which is no VIP.
    pub(crate) fn vip(&mut self, name: &str, room: u32) -> Result<(u16, bool), ApplyError> {
        let got = take(
            &mut self.vips,
            &name.to_owned(),
            1,
            room,
            &BTreeMap::new(),
            "VIPs",
        )?;
        self.changed |= got.1;
        Ok(got)
    }

    /// The number of a policy. `room` counts number 0, which limits nothing.
    pub(crate) fn policy(&mut self, name: &str, room: u32) -> Result<(u16, bool), ApplyError> {
        let none = BTreeMap::new();
        let got = take(
            &mut self.policies,
            &name.to_owned(),
            1,
            room,
            &none,
            "policies",
        )?;
        self.changed |= got.1;
        Ok(got)
    }

    /// The number of a backend.
    pub(crate) fn backend(&mut self, key: &BackendKey) -> Result<(u16, bool), ApplyError> {
        let room = u32::from(NO_BACKEND);
        let got = take(&mut self.backends, key, 0, room, &self.retired, "backends")?;
        self.changed |= got.1;
        Ok(got)
    }

    pub(crate) fn put_table(&mut self, key: TableKey, region: Region) {
        self.changed |= self.tables.insert(key, region) != Some(region);
    }

    pub(crate) fn remove_table(&mut self, key: &TableKey) -> Option<Region> {
        self.changed = true;
        self.tables.remove(key)
    }

    pub(crate) fn remove_vip(&mut self, name: &str) -> Option<u16> {
        self.changed = true;
        self.vips.remove(name)
    }

    pub(crate) fn remove_policy(&mut self, name: &str) -> Option<u16> {
        self.changed = true;
        self.policies.remove(name)
    }

    /// Forgets a backend. Its number is not used again before `free_at`.
    pub(crate) fn remove_backend(&mut self, key: &BackendKey, free_at: u64) -> Option<u16> {
        let number = self.backends.remove(key)?;
        self.retired.insert(number, free_at);
        self.changed = true;
        Some(number)
    }

    /// Numbers whose time is over. No flow may have them when [`Registry::free`] is called.
    pub(crate) fn due(&self, now: u64) -> BTreeSet<u16> {
        self.retired
            .iter()
            .filter(|&(_, &free_at)| free_at <= now)
            .map(|(&number, _)| number)
            .collect()
    }

    pub(crate) fn free(&mut self, numbers: &BTreeSet<u16>) {
        self.retired.retain(|number, _| !numbers.contains(number));
        self.changed |= !numbers.is_empty();
    }
}

/// The key's number, or the lowest that is free.
fn take<K: Ord + Clone>(
    numbers: &mut BTreeMap<K, u16>,
    key: &K,
    first: u16,
    room: u32,
    retired: &BTreeMap<u16, u64>,
    what: &'static str,
) -> Result<(u16, bool), ApplyError> {
    if let Some(&number) = numbers.get(key) {
        return Ok((number, false));
    }
    let used: BTreeSet<u16> = numbers.values().chain(retired.keys()).copied().collect();
    let number = (first..=u16::MAX)
        .take_while(|&number| u32::from(number) < room)
        .find(|number| !used.contains(number))
        .ok_or_else(|| ApplyError::Full {
            what,
            most: u64::from(room) - u64::from(first),
        })?;
    numbers.insert(key.clone(), number);
    Ok((number, true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Forward;

    fn key(last: u8) -> BackendKey {
        BackendKey {
            pool: "web".into(),
            address: [10, 0, 0, last].into(),
            forward: Forward::L2,
        }
    }

    #[test]
    fn numbers_survive_a_restart_and_only_for_their_maps() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(directory.path(), vec![7, 8]);
        assert_eq!(registry.vip("www", 2048).unwrap(), (1, true));
        assert_eq!(registry.backend(&key(1)).unwrap(), (0, true));
        assert_eq!(registry.backend(&key(2)).unwrap(), (1, true));
        registry.remove_backend(&key(1), 100);
        registry.save().unwrap();

        assert!(Registry::read(directory.path(), &[7, 9], 0).is_none());
        let mut again = Registry::read(directory.path(), &[7, 8], 50).unwrap();
        assert_eq!(again.vip("www", 2048).unwrap(), (1, false));
        assert_eq!(again.backend(&key(2)).unwrap(), (1, false));
        assert_eq!(again.backend(&key(3)).unwrap(), (2, true), "0 is retired");
    }

    #[test]
    fn a_retired_number_is_used_again_once_freed() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        registry.backend(&key(1)).unwrap();
        registry.remove_backend(&key(1), 100);
        assert!(registry.due(99).is_empty());
        let due = registry.due(100);
        registry.free(&due);
        assert_eq!(registry.backend(&key(2)).unwrap(), (0, true));
    }

    #[test]
    fn no_more_numbers_than_there_is_room() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        registry.vip("a", 3).unwrap();
        registry.vip("b", 3).unwrap();
        assert!(matches!(
            registry.vip("c", 3),
            Err(ApplyError::Full { most: 2, .. })
        ));
        registry.remove_vip("a");
        assert_eq!(registry.vip("c", 3).unwrap(), (1, true));
    }
}
