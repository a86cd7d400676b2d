//! A book that the control loop holds, what the disk holds otherwise, and whether packets meet it.

use std::{collections::BTreeSet, sync::Arc};

use super::{Event, events::Events, limits::now_ms};
use crate::{
    book::{Book, Record, Step},
    store::Change,
};

/// How a record stands on the disk, and what is told of it.
pub(super) trait Kept: Record + PartialEq {
    /// What is wrong where the data plane does not hold them all.
    const UNMET: &str;

    fn set(record: &Arc<Self>) -> Change;

    fn remove(id: u64) -> Change;

    fn expired(id: u64) -> Event;

    fn many_expired(ids: Arc<[u64]>) -> Event;
}

pub(super) struct Held<R> {
    book: Book<R>,
    /// Those that stand on the disk otherwise than here: their time is over, or the data plane refused them.
    differing: BTreeSet<u64>,
    /// Why the data plane does not hold them.
    error: Option<String>,
    events: Events,
}

impl<R: Kept> Held<R> {
    pub(super) fn new(book: Book<R>, events: Events) -> Self {
        Self {
            book,
            differing: BTreeSet::new(),
            error: None,
            events,
        }
    }

    pub(super) fn book(&self) -> &Book<R> {
        &self.book
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.clone()
    }

    /// Holds what is on the disk now. Returns what was held before, for [`Held::settle`].
    pub(super) fn turn_to(&mut self, book: Book<R>) -> Book<R> {
        let before = std::mem::replace(&mut self.book, book);
        self.expire();
        before
    }

    /// Packets meet what is held now; or it is again what it was before, and the disk follows.
    pub(super) fn settle(
        &mut self,
        put: Result<(), String>,
        before: Book<R>,
    ) -> Result<(), String> {
        if put.is_ok() {
            self.error = None;
        } else {
            let tried = std::mem::replace(&mut self.book, before);
            self.differing.extend(self.book.differing(&tried));
        }
        put
    }

    /// Packets meet what is held, or do not; that is said once.
    pub(super) fn note(&mut self, put: Result<(), String>) {
        let error = put.err().map(|why| format!("{}: {why}", R::UNMET));
        if let Some(error) = &error
            && self.error.as_ref() != Some(error)
        {
            tracing::error!("{error}");
        }
        self.error = error;
    }

    /// Takes out what does not hold any more, and tells whether there was any. The disk follows.
    pub(super) fn expire(&mut self) -> bool {
        let expired = self.book.expire(now_ms());
        // What ended before, and was held again, was told then.
        let news = expired.iter().copied();
        let news: Vec<u64> = news.filter(|id| self.differing.insert(*id)).collect();
        let event = match *news.as_slice() {
            [] => return !expired.is_empty(),
            [id] => R::expired(id),
            _ => R::many_expired(news.as_slice().into()),
        };
        tracing::info!(ids = ?news, "{}", event.word());
        self.events.tell(event);
        true
    }

    /// What makes the disk hold what is here.
    pub(super) fn corrections(&mut self) -> Vec<(u64, Change)> {
        let differing = std::mem::take(&mut self.differing);
        let change = |id: u64| match self.book.get(id) {
            Some(record) => (id, R::set(record)),
            None => (id, R::remove(id)),
        };
        differing.into_iter().map(change).collect()
    }

    pub(super) fn has_corrections(&self) -> bool {
        !self.differing.is_empty()
    }

    /// The disk holds these otherwise than they are here.
    pub(super) fn differ(&mut self, ids: impl IntoIterator<Item = u64>) {
        self.differing.extend(ids);
    }
}

/// What a step changes on the disk.
pub(super) fn written<R: Kept>(step: &Step<R>) -> Option<Change> {
    match step {
        Step::New(record) | Step::Changed(record) => Some(R::set(record)),
        Step::Same(_) => None,
        Step::Removed(record) => Some(R::remove(record.stamp().id)),
    }
}
