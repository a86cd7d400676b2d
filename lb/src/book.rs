//! What is set at run time and is few, by id, in memory: what a change would lead to is tried on a copy.

mod condition;
pub(crate) mod json;
mod spec;

use std::{collections::BTreeMap, sync::Arc};

pub use condition::{Etag, IF_MATCH, IF_NONE_MATCH, NoEtags, Precondition, Unmet};
pub use json::BodyError;
pub use spec::SpecError;
pub(crate) use spec::take;

/// What was set.
pub trait Record {
    fn stamp(&self) -> Stamp;

    /// Names what it is now; any change gives it another.
    fn etag(&self) -> Etag {
        let Stamp { id, revision, .. } = self.stamp();
        Etag::new(id, revision)
    }
}

/// What each record has. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub id: u64,
    /// 1 when it is new, and one more with each change.
    pub revision: u64,
    pub created_ms: u64,
    /// From then on it does not hold.
    pub expires_ms: Option<u64>,
}

/// The records by id. Ids count from 1, and are never used again.
#[derive(Clone, Debug, PartialEq)]
pub struct Book<R> {
    records: BTreeMap<u64, Arc<R>>,
    next_id: u64,
}

/// What became of one record.
#[derive(Clone, Debug, PartialEq)]
pub enum Step<R> {
    New(Arc<R>),
    Changed(Arc<R>),
    /// It is that already.
    Same(Arc<R>),
    Removed(Arc<R>),
}

impl Stamp {
    /// Of what takes the place of `before`, whose id it keeps, or else is new. Its time begins now.
    pub fn next(before: Option<Self>, next_id: u64, ttl_seconds: Option<u64>, now_ms: u64) -> Self {
        let ttl_ms = ttl_seconds.map(|ttl| ttl.saturating_mul(1_000));
        Self {
            id: before.map_or(next_id, |before| before.id),
            revision: before.map_or(1, |before| before.revision + 1),
            created_ms: before.map_or(now_ms, |before| before.created_ms),
            expires_ms: ttl_ms.map(|ttl| now_ms.saturating_add(ttl)),
        }
    }
}

impl<R: Record> Book<R> {
    pub fn new(records: impl IntoIterator<Item = R>, next_id: u64) -> Self {
        let mut book = Self {
            records: BTreeMap::new(),
            next_id: next_id.max(1),
        };
        for record in records {
            book.put(record);
        }
        book
    }

    pub fn get(&self, id: u64) -> Option<&Arc<R>> {
        self.records.get(&id)
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<R>> {
        self.records.values()
    }

    /// All ids below this one are used.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.iter()
            .filter_map(|record| record.stamp().expires_ms)
            .min()
    }

    /// Takes out what does not hold any more.
    pub fn expire(&mut self, now_ms: u64) -> Vec<u64> {
        let is_over = |record: &mut Arc<R>| {
            let expires_ms = record.stamp().expires_ms;
            expires_ms.is_some_and(|time| time <= now_ms)
        };
        let expired = self.records.extract_if(.., |_, record| is_over(record));
        expired.map(|(id, _)| id).collect()
    }

    /// Ids of what one of both does not hold, or holds otherwise.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a
    where
        R: PartialEq,
    {
        let ids = self.records.keys().chain(other.records.keys()).copied();
        ids.filter(|id| self.get(*id) != other.get(*id))
    }

    /// The stamp of what takes the place of `before`.
    pub(crate) fn stamp(&self, before: Option<&R>, ttl_seconds: Option<u64>, now_ms: u64) -> Stamp {
        Stamp::next(before.map(Record::stamp), self.next_id, ttl_seconds, now_ms)
    }

    /// Holds a record, in place of the one with its id.
    pub(crate) fn put(&mut self, record: R) -> Step<R> {
        let (id, record) = (record.stamp().id, Arc::new(record));
        self.next_id = self.next_id.max(id.saturating_add(1));
        match self.records.insert(id, record.clone()) {
            None => Step::New(record),
            Some(_) => Step::Changed(record),
        }
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Step<R>> {
        self.records.remove(&id).map(Step::Removed)
    }
}

impl<R: Record> Step<R> {
    pub fn record(&self) -> &Arc<R> {
        match self {
            Self::New(record)
            | Self::Changed(record)
            | Self::Same(record)
            | Self::Removed(record) => record,
        }
    }

    pub fn id(&self) -> u64 {
        self.record().stamp().id
    }
}
