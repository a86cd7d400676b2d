//! What is set at run time, on the disk: limits and drains, in one embedded store in the state directory.
//!
//! A change is on the disk when [`Store::commit`] returns, or was not made. After a write that failed, nobody knows
//! what the disk holds: the store is opened anew, and what the failed write may have left is taken back, before anything
//! else is written.

mod disk;
mod earlier;
mod owed;
mod tables;
mod writer;

#[cfg(test)]
pub(crate) mod shaky;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Builder, Database, StorageBackend, WriteTransaction};

use crate::{
    disk::advice,
    drains::{Drain, Drains},
    limits::LimitRecord,
    rules::RuleRecord,
    sources::SourceRecord,
};

pub use disk::{Allocated, Directory};
pub use earlier::take_over;
pub use writer::Writer;

use owed::Owed;
use tables::{Read, Row};

/// One change of one row. Many are written at once, all or none.
#[derive(Clone, Debug)]
pub enum Change {
    SetLimit(Arc<LimitRecord>),
    RemoveLimit(u64),
    /// All ids below this one were used.
    NextLimitId(u64),
    SetRule(Arc<RuleRecord>),
    RemoveRule(u64),
    /// As [`Change::NextLimitId`].
    NextRuleId(u64),
    SetSource(Arc<SourceRecord>),
    RemoveSource(u64),
    /// As [`Change::NextLimitId`].
    NextSourceId(u64),
    Drain(Drain),
    Undrain(Drain),
    /// What detection knows, by a key of its own; `None`: not any more.
    Keep(String, Option<Arc<[u8]>>),
}

/// Everything that the store holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// By id.
    pub limits: Vec<LimitRecord>,
    pub next_limit_id: u64,
    /// By id.
    pub rules: Vec<RuleRecord>,
    pub next_rule_id: u64,
    /// By id.
    pub sources: Vec<SourceRecord>,
    pub next_source_id: u64,
    pub drains: Drains,
    /// What detection knew.
    pub kept: BTreeMap<String, Vec<u8>>,
}

/// Why a change is not on the disk, or a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use {}{}", path.display(), advice(source))]
    Io { path: PathBuf, source: io::Error },
    #[error("the store {} fails: {what}", path.display())]
    Engine { path: PathBuf, what: String },
    #[error("{} cannot be read ({what}), and cannot be put aside{}", path.display(), advice(source))]
    Aside {
        path: PathBuf,
        what: String,
        source: io::Error,
    },
    #[error("the thread that writes to the disk ended; restart the daemon")]
    Ended,
}

/// The open store. It lies in a directory, but for tests.
#[derive(Debug)]
pub struct Store<M: Medium = Directory> {
    medium: M,
    /// `None` after a failure.
    database: Option<Database>,
    /// In its order. No change is taken before.
    owed: VecDeque<Owed>,
    /// What rows held before a write of which nobody knows how it ended.
    undo: Vec<Row>,
}

/// Where a store lies.
pub trait Medium: Send + 'static {
    type Backend: StorageBackend;

    fn path(&self) -> &Path;
    /// Whether a store was ever published.
    fn exists(&self) -> io::Result<bool>;
    fn open(&self) -> io::Result<Self::Backend>;
    /// An empty store that is not there yet.
    fn create(&self) -> io::Result<Self::Backend>;
    /// Puts there what was created.
    fn publish(&self) -> io::Result<()>;
    /// Moves all of it out of the way, and tells where to.
    fn set_aside(&self) -> io::Result<PathBuf>;
    /// Keeps a copy of all of it, and tells where.
    fn copy_aside(&self) -> io::Result<PathBuf>;
}

impl<M: Medium> Store<M> {
    /// Opens what is there, or begins a new store. Tells what it holds, and what an operator should know.
    ///
    /// A store that cannot be read is set aside, and said. Where it cannot be set aside, or a new one not be begun, no
    /// changes are taken until that can be done.
    pub fn open(medium: M) -> Result<(Self, Contents, Vec<String>), StoreError> {
        let mut store = Self {
            medium,
            database: None,
            owed: VecDeque::new(),
            undo: Vec::new(),
        };
        let (contents, owed) = match store.load() {
            Ok(read) if read.unreadable.is_empty() => (read.contents, None),
            Ok(read) => {
                let rows = read.unreadable;
                (read.contents, Some(Owed::Remove { rows, copy: None }))
            }
            Err(Failure::Unreadable(what)) => (Contents::default(), Some(Owed::SetAside(what))),
            Err(Failure::NotBegun(_)) => (Contents::default(), None),
            Err(failure) => return Err(failure.of(store.medium.path().to_owned())),
        };
        let warnings = owed.map_or_else(Vec::new, |owed| store.owe(owed));
        Ok((store, contents, warnings))
    }

    /// Writes all of these changes, or none. They are on the disk when this returns.
    pub fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.recover()?;
        self.write(|transaction| tables::apply(transaction, changes))
            .map_err(|(error, undo)| {
                self.undo = undo;
                error
            })
    }

    /// Does what is owed since the start. After a failure: opens the store anew, and makes it hold what it held before.
    pub fn recover(&mut self) -> Result<(), StoreError> {
        let mut said = Vec::new();
        let settled = self.settle(&mut said);
        for told in said {
            tracing::warn!("{told}");
        }
        settled?;
        let undo = std::mem::take(&mut self.undo);
        if !undo.is_empty() {
            let restored = self.write(|transaction| tables::restore(transaction, &undo));
            restored.map_err(|(error, _)| {
                self.undo = undo;
                error
            })?;
        }
        Ok(())
    }

    /// Whether the disk is known to hold what was committed, and nothing else.
    pub fn is_sound(&self) -> bool {
        self.database.is_some() && self.owed.is_empty() && self.undo.is_empty()
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        match self.load() {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.of(self.medium.path().to_owned())),
        }
    }

    /// Opens the database, and reads all of it; begins one if there is none.
    fn load(&mut self) -> Result<Read, Failure> {
        self.close();
        let (database, read) = if self.medium.exists().map_err(Failure::Io)? {
            let backend = self.medium.open().map_err(Failure::Io)?;
            if backend.len().map_err(Failure::Io)? == 0 {
                return Err(Failure::Unreadable("it is empty".into()));
            }
            read(backend)?
        } else {
            self.begin()
                .map_err(|failure| Failure::NotBegun(Box::new(failure)))?
        };
        self.database = Some(database);
        Ok(read)
    }

    /// Nobody meets a store of which there is only a part.
    fn begin(&self) -> Result<(Database, Read), Failure> {
        let begun = read(self.medium.create().map_err(Failure::Io)?)?;
        self.medium.publish().map_err(Failure::Io)?;
        Ok(begun)
    }

    /// Fills a transaction, and commits it. If it fails, the rows before come with the error unless they are untouched.
    fn write(
        &mut self,
        fill: impl FnOnce(&WriteTransaction) -> Result<Vec<Row>, redb::Error>,
    ) -> Result<(), (StoreError, Vec<Row>)> {
        let mut before = Vec::new();
        let written = catch_unwind(AssertUnwindSafe(|| {
            let Some(database) = &self.database else {
                return Err(Failure::Engine("it is not open".into()));
            };
            let transaction = database.begin_write().map_err(redb::Error::from)?;
            let rows = fill(&transaction)?;
            before = rows;
            transaction.commit().map_err(redb::Error::from)?;
            Ok(())
        }));
        let written = written.unwrap_or_else(|panic| Err(Failure::Engine(said(&*panic))));
        written.map_err(|failure| {
            self.close();
            (failure.of(self.medium.path().to_owned()), before)
        })
    }

    fn close(&mut self) {
        let database = self.database.take();
        // After a failure there is nothing that closing it could still do.
        _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// Makes the tables too, if the backend is empty.
fn read(backend: impl StorageBackend) -> Result<(Database, Read), Failure> {
    let read = catch_unwind(AssertUnwindSafe(|| {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create_with_backend(backend)
            .map_err(|error| Failure::from(redb::Error::from(error)))?;
        let read = tables::read(&database)?;
        Ok((database, read))
    }));
    read.unwrap_or_else(|panic| Err(Failure::Unreadable(said(&*panic))))
}

impl Default for Contents {
    fn default() -> Self {
        Self {
            limits: Vec::new(),
            next_limit_id: 1,
            rules: Vec::new(),
            next_rule_id: 1,
            sources: Vec::new(),
            next_source_id: 1,
            drains: Drains::new(),
            kept: BTreeMap::new(),
        }
    }
}

/// How the engine failed.
#[derive(Debug)]
enum Failure {
    Io(io::Error),
    /// What is there makes no sense.
    Unreadable(String),
    /// Nothing is there, and for this reason nothing can be.
    NotBegun(Box<Self>),
    Engine(String),
}

impl Failure {
    fn of(self, path: PathBuf) -> StoreError {
        match self {
            Self::Io(source) => StoreError::Io { path, source },
            Self::Unreadable(what) | Self::Engine(what) => StoreError::Engine { path, what },
            Self::NotBegun(why) => why.of(path),
        }
    }
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error)
                if [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof]
                    .contains(&error.kind()) =>
            {
                Self::Unreadable(error.to_string())
            }
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_) => Self::Unreadable(error.to_string()),
            error => Self::Engine(error.to_string()),
        }
    }
}

const CACHE_BYTES: usize = 4 << 20;

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the engine gave up").to_owned()
}
