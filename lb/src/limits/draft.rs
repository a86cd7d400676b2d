//! Changes that are thought out, one after the other, and not made yet.

use std::{collections::HashMap, sync::Arc};

use super::{
    book::{Identity, LimitBook, identity},
    record::LimitRecord,
    spec::LimitSpec,
};
use crate::book::{Precondition, Record, SpecError, Stamp, Unmet};

/// What a book would be after some changes.
#[derive(Debug)]
pub struct Draft<'a> {
    book: &'a LimitBook,
    now_ms: u64,
    next_id: u64,
    /// What differs from the book; `None` is removed.
    records: HashMap<u64, Option<Arc<LimitRecord>>>,
    ids: HashMap<Identity, Option<u64>>,
}

/// What one limit is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    New(Arc<LimitRecord>),
    Changed(Arc<LimitRecord>),
    /// It is that already.
    Same(Arc<LimitRecord>),
    Removed(u64),
}

impl Step {
    /// The limit that it is about.
    pub fn id(&self) -> u64 {
        match self {
            Self::New(record) | Self::Changed(record) | Self::Same(record) => record.id,
            Self::Removed(id) => *id,
        }
    }
}

/// Why a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum LimitRefusal {
    #[error("there is no limit {id}")]
    Unknown { id: u64 },
    #[error("limit {id} is for the same prefix, VIP and class already; change or remove that one")]
    Conflict { id: u64 },
    #[error(transparent)]
    Unmet(#[from] Unmet),
    #[error(transparent)]
    Invalid(#[from] SpecError),
}

impl<'a> Draft<'a> {
    pub fn new(book: &'a LimitBook, now_ms: u64) -> Self {
        Self {
            book,
            now_ms,
            next_id: book.next_id(),
            records: HashMap::new(),
            ids: HashMap::new(),
        }
    }

    /// All ids below this one are used.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Sets a limit; one for the same prefix, VIP and class is replaced, and its time begins anew.
    pub fn set(
        &mut self,
        spec: LimitSpec,
        precondition: &Precondition,
    ) -> Result<Step, LimitRefusal> {
        spec.validate()?;
        let before = self.find(&spec);
        precondition.check(before.as_ref().map(|before| before.etag()))?;
        Ok(self.put(before, spec))
    }

    /// Sets many limits, or none of them.
    pub fn set_all(&mut self, specs: Vec<LimitSpec>) -> Result<Vec<Step>, LimitRefusal> {
        let mut places = HashMap::with_capacity(specs.len());
        for (at, spec) in specs.iter().enumerate() {
            spec.validate().map_err(|error| error.at(at))?;
            if let Some(other) = places.insert(identity(spec), at) {
                let message = format!("is for the same prefix, VIP and class as [{other}]");
                return Err(SpecError::whole(message).at(at).into());
            }
        }
        drop(places);
        let set = |spec: LimitSpec| {
            let before = self.find(&spec);
            self.put(before, spec)
        };
        Ok(specs.into_iter().map(set).collect())
    }

    /// Makes an existing limit be `spec`; it keeps its id. What it is already it stays, its time included.
    pub fn replace(
        &mut self,
        id: u64,
        spec: LimitSpec,
        precondition: &Precondition,
    ) -> Result<Step, LimitRefusal> {
        spec.validate()?;
        let before = self.get(id).ok_or(LimitRefusal::Unknown { id })?;
        precondition.check(Some(before.etag()))?;
        if before.spec == spec {
            return Ok(Step::Same(before));
        }
        match self.find(&spec) {
            Some(other) if other.id != id => Err(LimitRefusal::Conflict { id: other.id }),
            _ => Ok(self.put(Some(before), spec)),
        }
    }

    pub fn remove(&mut self, id: u64, precondition: &Precondition) -> Result<Step, LimitRefusal> {
        let before = self.get(id).ok_or(LimitRefusal::Unknown { id })?;
        precondition.check(Some(before.etag()))?;
        self.ids.insert(identity(&before.spec), None);
        self.records.insert(id, None);
        Ok(Step::Removed(id))
    }

    fn put(&mut self, before: Option<Arc<LimitRecord>>, spec: LimitSpec) -> Step {
        let stamp = before.as_ref().map(|before| before.stamp());
        let stamp = Stamp::next(stamp, self.next_id, spec.ttl_seconds, self.now_ms);
        let id = stamp.id;
        self.next_id = self.next_id.max(id + 1);
        let record = Arc::new(LimitRecord {
            id,
            revision: stamp.revision,
            spec,
            created_ms: stamp.created_ms,
            expires_ms: stamp.expires_ms,
        });
        if let Some(before) = &before {
            self.ids.insert(identity(&before.spec), None);
        }
        self.ids.insert(identity(&record.spec), Some(id));
        self.records.insert(id, Some(record.clone()));
        match before {
            None => Step::New(record),
            Some(_) => Step::Changed(record),
        }
    }

    fn get(&self, id: u64) -> Option<Arc<LimitRecord>> {
        match self.records.get(&id) {
            Some(changed) => changed.clone(),
            None => self.book.get(id).cloned(),
        }
    }

    fn find(&self, spec: &LimitSpec) -> Option<Arc<LimitRecord>> {
        match self.ids.get(&identity(spec)) {
            Some(id) => self.get((*id)?),
            None => self.book.find(spec).cloned(),
        }
    }
}
