//! Pages of what was set, by id.

/// Some of what was asked for, and whether there is more.
#[derive(Clone, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Ask for what comes after this id; `None` if there is no more.
    pub next: Option<u64>,
}

impl<T> Page<T> {
    /// The first of what was found, at most so many, each with its id.
    pub(super) fn of(found: impl IntoIterator<Item = (u64, T)>, most: usize) -> Self {
        let mut found = found.into_iter();
        let (ids, items): (Vec<u64>, Vec<T>) = found.by_ref().take(most).unzip();
        let last = ids.last().copied();
        Self {
            items,
            next: last.filter(|_| found.next().is_some()),
        }
    }
}
