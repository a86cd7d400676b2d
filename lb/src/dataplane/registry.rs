//! Which number each VIP, policy and backend has in the maps, kept across restarts: flows are remembered by number.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sluice_ebpf::abi::NO_BACKEND;

use super::{ApplyError, BackendKey, TableKey, load::POLICIES, plan::Image};
use crate::disk::{self, SaveError};

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

/// Numbers in use, and what the disk knows of them.
///
/// A VIP or backend whose number the disk does not tell would be mistaken for another after a crash, so its number is on
/// the disk before a packet can meet it. All else may be there later: a start compares lookup tables with what the maps
/// hold, a number that is free for longer than it must be harms nobody, and policies are written anew before their VIPs.
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
    /// Whether a start would believe what is on the disk. If not, it forgets all flows, and mistakes none.
    is_believed: bool,
    changed: bool,
}

/// Names that have no number yet, with one that is free for each.
#[derive(Debug)]
pub(crate) struct Lacking {
    pub policies: Vec<(String, u16)>,
    pub backends: Vec<(BackendKey, u16)>,
    pub vips: Vec<(String, u16)>,
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
            is_believed: true,
            changed: false,
        })
    }

    /// Writes the file, if anything changed since.
    pub(crate) fn save(&mut self) -> Result<(), SaveError> {
        if !self.changed {
            return Ok(());
        }
        disk::replace_json(&self.path, &self.stored())?;
        self.changed = false;
        self.is_believed = true;
        Ok(())
    }

    fn stored(&self) -> Stored {
        Stored {
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
        }
    }

    /// Numbers for all that is wanted and has none. `vips` counts number 0, which is no VIP.
    pub(crate) fn lacking(&self, wanted: &Image, vips: u32) -> Result<Lacking, ApplyError> {
        let (backends, none) = (u32::from(NO_BACKEND), BTreeMap::new());
        Ok(Lacking {
            policies: lacking(
                "policies",
                &wanted.policies,
                &self.policies,
                &none,
                1..POLICIES,
            )?,
            backends: lacking(
                "backends",
                &wanted.backends,
                &self.backends,
                &self.retired,
                0..backends,
            )?,
            vips: lacking("VIPs", &wanted.vips, &self.vips, &none, 1..vips)?,
        })
    }

    /// Packets may meet these numbers then. After an error they are to be given back.
    pub(crate) fn take(&mut self, lacking: &Lacking) -> Result<(), SaveError> {
        self.policies.extend(lacking.policies.iter().cloned());
        self.backends.extend(lacking.backends.iter().cloned());
        self.vips.extend(lacking.vips.iter().cloned());
        self.changed |= !lacking.is_empty();
        if self.is_believed && !(lacking.vips.is_empty() && lacking.backends.is_empty()) {
            self.save()?;
        }
        Ok(())
    }

    /// Undoes [`Registry::take`], for numbers that no packet has met.
    pub(crate) fn give_back(&mut self, lacking: &Lacking) {
        for (name, _) in &lacking.policies {
            self.policies.remove(name);
        }
        for (key, _) in &lacking.backends {
            self.backends.remove(key);
        }
        for (name, _) in &lacking.vips {
            self.vips.remove(name);
        }
        self.changed |= !lacking.is_empty();
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

impl Lacking {
    fn is_empty(&self) -> bool {
        self.policies.is_empty() && self.backends.is_empty() && self.vips.is_empty()
    }
}

/// The lowest numbers that are free, for those of `wanted` that have none.
fn lacking<K: Ord + Clone, V>(
    what: &'static str,
    wanted: &BTreeMap<K, V>,
    numbers: &BTreeMap<K, u16>,
    retired: &BTreeMap<u16, u64>,
    room: Range<u32>,
) -> Result<Vec<(K, u16)>, ApplyError> {
    let used: BTreeSet<u16> = numbers.values().chain(retired.keys()).copied().collect();
    let most = u64::from(room.end - room.start);
    let numbered = room.map_while(|number| u16::try_from(number).ok());
    let mut free = numbered.filter(|number| !used.contains(number));
    let without = wanted.keys().filter(|key| !numbers.contains_key(key));
    without
        .map(|key| {
            let number = free.next().ok_or(ApplyError::Full { what, most })?;
            Ok((key.clone(), number))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytemuck::Zeroable;

    use super::*;
    use crate::config::Forward;

    fn key(last: u16) -> BackendKey {
        let [high, low] = last.to_be_bytes();
        BackendKey {
            pool: "web".into(),
            address: [10, 0, high, low].into(),
            forward: Forward::L2,
        }
    }

    fn wanted(vips: &[&str], backends: impl IntoIterator<Item = u16>) -> Image {
        let backends = backends.into_iter();
        Image {
            vips: vips.iter().map(|name| ((*name).to_owned(), None)).collect(),
            backends: backends.map(|n| (key(n), Zeroable::zeroed())).collect(),
            ..Image::default()
        }
    }

    fn number(registry: &mut Registry, wanted: &Image) -> Lacking {
        let lacking = registry.lacking(wanted, 2048).unwrap();
        registry.take(&lacking).unwrap();
        lacking
    }

    #[test]
    fn numbers_survive_a_restart_and_only_for_their_maps() {
        let directory = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(directory.path(), vec![7, 8]);
        let lacking = number(&mut registry, &wanted(&["www"], [1, 2]));
        assert_eq!(lacking.vips, [("www".to_owned(), 1)]);
        assert_eq!(lacking.backends, [(key(1), 0), (key(2), 1)]);
        registry.remove_backend(&key(1), 100);
        registry.save().unwrap();

        assert!(Registry::read(directory.path(), &[7, 9], 0).is_none());
        let mut again = Registry::read(directory.path(), &[7, 8], 50).unwrap();
        let lacking = number(&mut again, &wanted(&["www"], [2, 3]));
        assert_eq!(lacking.vips, []);
        assert_eq!(lacking.backends, [(key(3), 2)], "0 is retired");
    }

    #[test]
    fn a_retired_number_is_used_again_once_freed() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        number(&mut registry, &wanted(&[], [1]));
        registry.remove_backend(&key(1), 100);
        assert!(registry.due(99).is_empty());
        let due = registry.due(100);
        registry.free(&due);
        let lacking = number(&mut registry, &wanted(&[], [2]));
        assert_eq!(lacking.backends, [(key(2), 0)]);
    }

    #[test]
    fn no_more_numbers_than_there_is_room() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        number(&mut registry, &wanted(&["a", "b"], []));
        assert!(matches!(
            registry.lacking(&wanted(&["c"], [1]), 3),
            Err(ApplyError::Full { most: 2, .. })
        ));
        registry.remove_vip("a");
        let lacking = registry.lacking(&wanted(&["c"], []), 3).unwrap();
        assert_eq!(lacking.vips, [("c".to_owned(), 1)]);
    }

    #[test]
    fn what_is_given_back_is_free_again() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        number(&mut registry, &wanted(&["a"], [1]));
        let refused = number(&mut registry, &wanted(&["a", "b"], [1, 2]));
        registry.give_back(&refused);
        let lacking = number(&mut registry, &wanted(&["a", "c"], [1, 3]));
        assert_eq!(lacking.vips, [("c".to_owned(), 2)]);
        assert_eq!(lacking.backends, [(key(3), 1)]);
    }

    #[test]
    fn a_number_waits_for_the_disk_where_a_start_would_miss_it() {
        let directory = tempfile::tempdir().unwrap();
        let in_the_way = directory.path().join("numbers.json.new");
        fs::create_dir(&in_the_way).unwrap();
        let mut registry = Registry::new(directory.path(), vec![7]);
        number(&mut registry, &wanted(&["www"], [1]));
        registry.save().unwrap_err();
        number(&mut registry, &wanted(&["www"], [1, 2]));
        fs::remove_dir(&in_the_way).unwrap();
        registry.save().unwrap();

        fs::create_dir(&in_the_way).unwrap();
        let mut tightened = wanted(&["www"], [1, 2]);
        tightened.policies.insert("+www".into(), Zeroable::zeroed());
        number(&mut registry, &tightened);
        for more in [wanted(&["www", "tls"], [1, 2]), wanted(&["www"], [1, 2, 3])] {
            let lacking = registry.lacking(&more, 2048).unwrap();
            registry.take(&lacking).unwrap_err();
            registry.give_back(&lacking);
        }
        fs::remove_dir(in_the_way).unwrap();
        number(&mut registry, &wanted(&["www"], [1, 2, 3]));
        let again = Registry::read(directory.path(), &[7], 0).unwrap();
        assert_eq!(again.backends, registry.backends);
    }

    /// It takes a second. With work that grows by the square of the keys it would take minutes, also on a machine that has
    /// nothing else to do.
    #[test]
    fn many_keys_get_their_numbers_at_once() {
        let mut registry = Registry::new(Path::new("/nonexistent"), vec![]);
        let mut wanted = wanted(&[], 0..30_000);
        wanted.vips = (0..30_000).map(|n| (format!("{n:05}"), None)).collect();
        let start = Instant::now();
        let lacking = registry.lacking(&wanted, 65_536).unwrap();
        registry.take(&lacking).unwrap();
        assert_eq!(lacking.backends.last(), Some(&(key(29_999), 29_999)));
        assert_eq!(lacking.vips.last(), Some(&("29999".to_owned(), 30_000)));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(60), "{took:?}");
    }
}
