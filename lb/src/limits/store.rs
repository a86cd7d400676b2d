//! All limits that the operator set, in memory and on the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    journal::{Journal, Line, VERSION},
    spec::{ClassWord, LimitError, LimitSpec},
};

/// A limit that was set. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRecord {
    pub id: u64,
    pub spec: LimitSpec,
    pub created: u64,
    /// From this second on it does not hold.
    pub expires: Option<u64>,
}

/// A file that could not be read in full. What could be read holds; the rest stands in the file put aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    pub file: PathBuf,
    pub aside: PathBuf,
    pub unreadable_lines: usize,
}

/// Why a change was not made. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot write the limits to {}", path.display())]
    Disk { path: PathBuf, source: io::Error },
    #[error("there is no limit {id}")]
    Unknown { id: u64 },
    #[error("limit {id} is for the same prefix, VIP and class already; change or remove that one")]
    Conflict { id: u64 },
    #[error(transparent)]
    Invalid(#[from] LimitError),
}

/// The limits by id. Ids count from 1, and are never used again.
///
/// At most one is for the same prefix, VIP and class: setting a second one replaces the first, which keeps its id.
pub struct LimitStore {
    journal: Journal,
    next_id: u64,
    records: BTreeMap<u64, LimitRecord>,
    ids: HashMap<Identity, u64>,
    /// When and which.
    expiries: BTreeSet<(u64, u64)>,
}

type Identity = (IpNet, Option<String>, ClassWord);

impl LimitStore {
    /// Reads what the state directory holds. Tell the operator of a corruption.
    pub fn open(directory: &Path, now: u64) -> Result<(Self, Option<Corruption>), StoreError> {
        let failed = |source: io::Error| StoreError::Disk {
            path: directory.to_owned(),
            source,
        };
        let (journal, lines, corruption) = Journal::open(directory, now).map_err(failed)?;
        let mut store = Self {
            journal,
            next_id: 1,
            records: BTreeMap::new(),
            ids: HashMap::new(),
            expiries: BTreeSet::new(),
        };
        for line in lines {
            store.apply(line);
        }
        if corruption.is_some() {
            // Lost lines may have used ids that no other line tells of; nobody sets a limit each second for years.
            store.next_id = store.next_id.max(now);
        }
        if !store.journal.is_whole() {
            store.rewrite()?;
        }
        Ok((store, corruption))
    }

    /// Sets a limit, and tells its record. On the disk when this returns.
    pub fn set(&mut self, spec: LimitSpec, now: u64) -> Result<LimitRecord, StoreError> {
        let mut records = self.set_all(vec![spec], now)?;
        records.pop().ok_or(StoreError::Unknown { id: 0 })
    }

    /// Sets many limits for the price of one, or none of them.
    pub fn set_all(
        &mut self,
        specs: Vec<LimitSpec>,
        now: u64,
    ) -> Result<Vec<LimitRecord>, StoreError> {
        let mut new_ids: HashMap<Identity, u64> = HashMap::new();
        let mut next_id = self.next_id;
        let mut records = Vec::with_capacity(specs.len());
        for spec in specs {
            spec.validate()?;
            let identity = identity(&spec);
            let known = self.ids.get(&identity).or_else(|| new_ids.get(&identity));
            let id = known.copied().unwrap_or(next_id);
            if id == next_id {
                new_ids.insert(identity, id);
                next_id += 1;
            }
            records.push(self.record(id, spec, now));
        }
        self.write(records.iter().cloned().map(Line::Set).collect())?;
        Ok(records)
    }

    /// Makes an existing limit be `spec`; it keeps its id.
    pub fn replace(
        &mut self,
        id: u64,
        spec: LimitSpec,
        now: u64,
    ) -> Result<LimitRecord, StoreError> {
        spec.validate()?;
        if !self.records.contains_key(&id) {
            return Err(StoreError::Unknown { id });
        }
        if let Some(other) = self.ids.get(&identity(&spec)).filter(|other| **other != id) {
            return Err(StoreError::Conflict { id: *other });
        }
        let record = self.record(id, spec, now);
        self.write(vec![Line::Set(record.clone())])?;
        Ok(record)
    }

    /// Puts records back as they were, to undo a change that the data plane refused.
    pub fn restore(&mut self, records: Vec<LimitRecord>) -> Result<(), StoreError> {
        for record in &records {
            let holder = self.ids.get(&identity(&record.spec));
            if let Some(other) = holder.filter(|other| **other != record.id) {
                return Err(StoreError::Conflict { id: *other });
            }
        }
        self.write(records.into_iter().map(Line::Set).collect())
    }

    /// Removes limits, all or none.
    pub fn remove(&mut self, ids: &[u64]) -> Result<(), StoreError> {
        if let Some(id) = ids.iter().find(|id| !self.records.contains_key(id)) {
            return Err(StoreError::Unknown { id: *id });
        }
        self.write(ids.iter().copied().map(Line::Remove).collect())
    }

    pub fn get(&self, id: u64) -> Option<&LimitRecord> {
        self.records.get(&id)
    }

    /// The limit that is about the same packets.
    pub fn find(&self, spec: &LimitSpec) -> Option<&LimitRecord> {
        self.get(*self.ids.get(&identity(spec))?)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &LimitRecord> {
        self.records.values()
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// When the next limit expires.
    pub fn next_expiry(&self) -> Option<u64> {
        self.expiries.first().map(|(time, _)| *time)
    }

    /// Limits that do not hold any more, the longest expired first. They stay until they are removed.
    pub fn expired(&self, now: u64) -> Vec<u64> {
        self.expiries
            .range(..=(now, u64::MAX))
            .map(|(_, id)| *id)
            .collect()
    }

    fn record(&self, id: u64, spec: LimitSpec, now: u64) -> LimitRecord {
        let expires = spec.ttl_seconds.map(|ttl| now.saturating_add(ttl));
        let created = self.get(id).map_or(now, |known| known.created);
        LimitRecord {
            id,
            spec,
            created,
            expires,
        }
    }

    /// First the disk, then the memory.
    fn write(&mut self, lines: Vec<Line>) -> Result<(), StoreError> {
        if lines.is_empty() {
            return Ok(());
        }
        let history = self.journal.lines.saturating_sub(self.records.len());
        if !self.journal.is_whole() || history > self.records.len() + HISTORY_LINES {
            self.rewrite()?;
        }
        self.journal
            .append(&lines)
            .map_err(|source| self.failed(source))?;
        for line in lines {
            self.apply(line);
        }
        Ok(())
    }

    fn rewrite(&mut self) -> Result<(), StoreError> {
        let header = Line::Header {
            version: VERSION,
            next_id: self.next_id,
        };
        let records = self.records.values().cloned().map(Line::Set);
        self.journal
            .rewrite(std::iter::once(header).chain(records))
            .map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Disk {
            path: self.journal.path().to_owned(),
            source,
        }
    }

    fn apply(&mut self, line: Line) {
        match line {
            Line::Header { next_id, .. } => self.next_id = self.next_id.max(next_id),
            Line::Remove(id) => self.forget(id),
            Line::Set(record) => {
                self.forget(record.id);
                self.next_id = self.next_id.max(record.id.saturating_add(1));
                if let Some(older) = self.ids.insert(identity(&record.spec), record.id) {
                    // Only in a file that lost the line which removed it.
                    self.forget(older);
                    self.ids.insert(identity(&record.spec), record.id);
                }
                self.expiries
                    .extend(record.expires.map(|time| (time, record.id)));
                self.records.insert(record.id, record);
            }
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(record) = self.records.remove(&id) {
            self.ids.remove(&identity(&record.spec));
            if let Some(time) = record.expires {
                self.expiries.remove(&(time, id));
            }
        }
    }
}

/// So many lines of history are never worth writing the file anew.
const HISTORY_LINES: usize = 1_000;

fn identity(spec: &LimitSpec) -> Identity {
    (spec.prefix, spec.vip.clone(), spec.class)
}
