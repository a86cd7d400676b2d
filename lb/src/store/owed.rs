//! What a start finds to be done before any change is taken: at once if the disk takes it, else as soon as it does.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use super::{
    Medium, Store, StoreError,
    earlier::Earlier,
    tables::{self, Row, Unreadable},
};

#[derive(Debug)]
pub(super) enum Owed {
    /// The store cannot be read, for this reason: it is to stand elsewhere, and a new one in its place.
    SetAside(String),
    /// These rows cannot be read: they are to stand in a copy, and not in the store any more.
    Remove {
        rows: Vec<Unreadable>,
        copy: Option<PathBuf>,
    },
    /// What version 0.1 left is to stand in the store.
    TakeOver(Earlier),
}

impl<M: Medium> Store<M> {
    /// Tells what an operator should know of it.
    pub(super) fn owe(&mut self, owed: Owed) -> Vec<String> {
        self.owed.push_back(owed);
        let mut said = Vec::new();
        // Who writes finds out again why not, and tells it for as long as it is so.
        _ = self.settle(&mut said);
        let left = self.owed.back();
        said.extend(left.and_then(|owed| owed.told(self.medium.path())));
        said
    }

    /// Does what is owed, and opens the store. Adds what an operator should know.
    pub(super) fn settle(&mut self, said: &mut Vec<String>) -> Result<(), StoreError> {
        let mut owed = std::mem::take(&mut self.owed);
        let settled = self.settle_all(&mut owed, said);
        self.owed = owed;
        settled?;
        self.reopen()
    }

    fn settle_all(
        &mut self,
        owed: &mut VecDeque<Owed>,
        said: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        while let Some(first) = owed.front_mut() {
            said.extend(self.settle_one(first)?);
            owed.pop_front();
        }
        Ok(())
    }

    fn settle_one(&mut self, owed: &mut Owed) -> Result<Option<String>, StoreError> {
        let path = self.medium.path().to_owned();
        let told = owed.told(&path);
        match owed {
            Owed::SetAside(what) => {
                let aside = self.medium.set_aside();
                let aside = aside.map_err(|source| StoreError::Aside {
                    path,
                    what: what.clone(),
                    source,
                })?;
                Ok(told.map(|told| format!("{told}; it stands in {} now", aside.display())))
            }
            Owed::Remove { rows, copy } => {
                self.reopen()?;
                let aside = match copy {
                    Some(aside) => aside,
                    None => copy.insert(self.medium.copy_aside().map_err(|source| {
                        let what = format!("{} of its rows", rows.len());
                        StoreError::Aside { path, what, source }
                    })?),
                };
                let rows: Vec<Row> = rows.iter().map(Unreadable::without_value).collect();
                self.write(|transaction| tables::restore(transaction, &rows))
                    .map_err(|(error, _)| error)?;
                Ok(told.map(|told| format!("{told}; they stand in {}", aside.display())))
            }
            Owed::TakeOver(earlier) => {
                self.reopen()?;
                self.write(|transaction| tables::apply(transaction, &earlier.changes))
                    .map_err(|(error, _)| error)?;
                earlier.rename()?;
                Ok(told)
            }
        }
    }
}

impl Owed {
    /// What is so whether this is done or not.
    fn told(&self, path: &Path) -> Option<String> {
        let path = path.display();
        match self {
            Self::SetAside(what) => Some(format!(
                "{path} cannot be read ({what}), and the limits and drains in it are not in force: set again what must be"
            )),
            Self::Remove { rows, .. } => {
                let all: Vec<String> = rows.iter().map(ToString::to_string).collect();
                Some(format!(
                    "{} rows of {path} cannot be read, and are not in force: {}",
                    all.len(),
                    all.join(", ")
                ))
            }
            Self::TakeOver(_) => None,
        }
    }
}
