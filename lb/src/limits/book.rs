//! All limits that hold, in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    record::LimitRecord,
    spec::{ClassWord, LimitSpec},
};

/// The limits by id. Ids count from 1, and are never used again.
///
/// At most one is for the same prefix, VIP and class: setting a second one replaces the first, which keeps its id.
#[derive(Debug)]
pub struct LimitBook {
    records: BTreeMap<u64, Arc<LimitRecord>>,
    ids: HashMap<Identity, u64>,
    /// When (in milliseconds) and which.
    expiries: BTreeSet<(u64, u64)>,
    /// Those whose time is over, and that are still to be taken out.
    expired: BTreeMap<u64, Arc<LimitRecord>>,
    next_id: u64,
}

pub(super) type Identity = (IpNet, Option<String>, ClassWord);

impl LimitBook {
    /// Of two for the same packets, the one that was set last holds.
    pub fn new(records: impl IntoIterator<Item = LimitRecord>, next_id: u64) -> Self {
        let mut book = Self {
            records: BTreeMap::new(),
            ids: HashMap::new(),
            expiries: BTreeSet::new(),
            expired: BTreeMap::new(),
            next_id: next_id.max(1),
        };
        for record in records {
            if let Some(other) = book.holder(&record.spec, record.id) {
                book.remove(other);
            }
            book.put(Arc::new(record));
        }
        book
    }

    pub fn get(&self, id: u64) -> Option<&Arc<LimitRecord>> {
        self.records.get(&id)
    }

    /// The limit that is about the same packets.
    pub fn find(&self, spec: &LimitSpec) -> Option<&Arc<LimitRecord>> {
        self.get(*self.ids.get(&identity(spec))?)
    }

    /// Another limit than `id` that is about the same packets, also if it expired.
    pub fn holder(&self, spec: &LimitSpec, id: u64) -> Option<u64> {
        let holder = self.ids.get(&identity(spec)).copied();
        holder.filter(|holder| *holder != id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<LimitRecord>> {
        self.records.values()
    }

    /// Those whose id is higher, by id.
    pub fn after(&self, id: u64) -> impl Iterator<Item = &Arc<LimitRecord>> {
        self.records
            .range(id.saturating_add(1)..)
            .map(|(_, record)| record)
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    pub fn use_ids_below(&mut self, next_id: u64) {
        self.next_id = self.next_id.max(next_id);
    }

    /// Holds a limit, in place of the one with its id. No other may be for the same packets.
    pub fn put(&mut self, record: Arc<LimitRecord>) {
        self.remove(record.id);
        self.use_ids_below(record.id.saturating_add(1));
        self.ids.insert(identity(&record.spec), record.id);
        self.expiries
            .extend(record.expires_ms.map(|time| (time, record.id)));
        self.records.insert(record.id, record);
    }

    pub fn remove(&mut self, id: u64) -> Option<Arc<LimitRecord>> {
        let record = self.records.remove(&id);
        let record = record.or_else(|| self.expired.remove(&id))?;
        self.ids.remove(&identity(&record.spec));
        if let Some(time) = record.expires_ms {
            self.expiries.remove(&(time, id));
        }
        Some(record)
    }

    /// When the next limit expires.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(time, _)| *time)
    }

    /// Ends limits whose time is over, the longest expired first, and no more than so many. From now on it is as if they
    /// were not there; [`LimitBook::take_expired`] takes them out.
    pub fn expire(&mut self, now_ms: u64, most: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        while ids.len() < most
            && let Some((time, id)) = self.expiries.first().copied()
            && time <= now_ms
        {
            self.expiries.pop_first();
            let record = self.records.remove(&id);
            self.expired.extend(record.map(|record| (id, record)));
            ids.push(id);
        }
        ids
    }

    /// Whether limits that expired are still to be taken out.
    pub fn has_expired(&self) -> bool {
        !self.expired.is_empty()
    }

    /// Takes out limits that expired, and no more than so many.
    pub fn take_expired(&mut self, most: usize) -> Vec<u64> {
        let expired: Vec<u64> = self.expired.keys().take(most).copied().collect();
        for id in &expired {
            self.remove(*id);
        }
        expired
    }
}

pub(super) fn identity(spec: &LimitSpec) -> Identity {
    (spec.prefix, spec.vip.clone(), spec.class)
}
