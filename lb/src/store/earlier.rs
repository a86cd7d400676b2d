//! Takes over what version 0.1 kept in files of its own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{Change, Contents, Medium, Store, StoreError, owed::Owed};
use crate::{
    drains::Drains,
    limits::{LimitBook, LimitRecord, LimitSpec},
};

/// What is to be written, and the files that say so.
#[derive(Debug)]
pub(super) struct Earlier {
    pub(super) changes: Vec<Change>,
    files: Vec<PathBuf>,
}

/// Moves limits and drains of version 0.1 into the store, if there are any. Tells what an operator should know.
///
/// The files are renamed, not removed. A line that cannot be read is said. If the disk does not take them now, they are
/// in force all the same.
pub fn take_over<M: Medium>(
    directory: &Path,
    store: &mut Store<M>,
    contents: &mut Contents,
) -> Result<Vec<String>, StoreError> {
    let mut warnings = Vec::new();
    let mut changes = Vec::new();
    let limits = directory.join("limits.jsonl");
    let drains = directory.join("drains.json");
    let mut files = Vec::new();
    if let Some(text) = read(&limits).map_err(failed(&limits))? {
        let (book, unreadable) = limits_of(&text);
        changes.extend(book.iter().cloned().map(Change::SetLimit));
        changes.push(Change::NextLimitId(book.next_id()));
        contents.next_limit_id = book.next_id();
        contents.limits = book.iter().map(|record| (**record).clone()).collect();
        if unreadable > 0 {
            warnings.push(format!(
                "{unreadable} lines of {} cannot be read: set again the limits that are missing",
                aside(&limits).display()
            ));
        }
        files.push(limits);
    }
    if let Some(text) = read(&drains).map_err(failed(&drains))? {
        match serde_json::from_slice::<Stored>(&text) {
            Ok(stored) => {
                changes.extend(stored.backends.iter().cloned().map(Change::Drain));
                contents.drains = stored.backends;
            }
            Err(error) => warnings.push(format!(
                "{} cannot be read ({error}): drain again what must be",
                aside(&drains).display()
            )),
        }
        files.push(drains);
    }
    if !files.is_empty() {
        warnings.extend(store.owe(Owed::TakeOver(Earlier { changes, files })));
    }
    Ok(warnings)
}

impl Earlier {
    /// Nobody shall read them again.
    pub(super) fn rename(&mut self) -> Result<(), StoreError> {
        while let Some(file) = self.files.last() {
            fs::rename(file, aside(file)).map_err(failed(file))?;
            tracing::info!(file = %file.display(), "taken over into the store");
            self.files.pop();
        }
        Ok(())
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    |source| StoreError::Io { path, source }
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn aside(file: &Path) -> PathBuf {
    file.with_added_extension("taken-over")
}

/// A line of `limits.jsonl`.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Header { version: u32, next_id: u64 },
    Set(Record),
    Remove(u64),
}

/// Times are seconds since 1970.
#[derive(Deserialize)]
struct Record {
    id: u64,
    spec: LimitSpec,
    created: u64,
    expires: Option<u64>,
}

/// `drains.json`.
#[derive(Deserialize)]
struct Stored {
    backends: Drains,
}

/// The limits that hold after all lines, and how many lines cannot be read.
fn limits_of(text: &[u8]) -> (LimitBook, usize) {
    let mut book = LimitBook::new([], 1);
    let mut unreadable = 0;
    for line in text.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(Line::Header {
                version: 1,
                next_id,
            }) => book.use_ids_below(next_id),
            Ok(Line::Header { .. }) | Err(_) => unreadable += 1,
            Ok(Line::Remove(id)) => drop(book.remove(id)),
            Ok(Line::Set(record)) => {
                if let Some(other) = book.holder(&record.spec, record.id) {
                    book.remove(other);
                }
                book.put(Arc::new(LimitRecord {
                    id: record.id,
                    revision: 1,
                    spec: record.spec,
                    created_ms: record.created.saturating_mul(1000),
                    expires_ms: record.expires.map(|time| time.saturating_mul(1000)),
                }));
            }
        }
    }
    (book, unreadable)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Directory, shaky::Shaky},
        *,
    };

    /// Limit 3 and a backend that drains, and a line that is torn.
    fn leave_files(path: &Path) -> String {
        let spec = r#"{"prefix":"10.0.0.0/8","vip":null,"class":"all","pps":1,"bps":null,"burst":null,"mode":"enforce","ttl_seconds":null,"comment":""}"#;
        let lines = format!(
            "{{\"header\":{{\"version\":1,\"next_id\":7}}}}\n\
             {{\"set\":{{\"id\":3,\"spec\":{spec},\"created\":100,\"expires\":200}}}}\n\
             {{\"set\":{{\"id\":4,\"spec\":{},\"created\":100,\"expires\":null}}}}\n\
             {{\"remove\":4}}\n{{\"se",
            spec.replace("10.0", "11.0")
        );
        fs::write(path.join("limits.jsonl"), &lines).unwrap();
        let drains = r#"{"version":1,"backends":["web/10.0.0.1"]}"#;
        fs::write(path.join("drains.json"), drains).unwrap();
        lines
    }

    #[test]
    fn files_of_version_0_1_are_taken_over_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let lines = leave_files(path);
        let (mut store, mut contents, _) = Store::open(Directory::new(path)).unwrap();
        let said = take_over(path, &mut store, &mut contents).unwrap();
        assert!(said[0].starts_with("1 lines of "), "{said:?}");
        assert_eq!(contents.next_limit_id, 7);
        assert_eq!(contents.limits.len(), 1);
        assert_eq!(contents.limits[0].expires_ms, Some(200_000));
        assert_eq!(contents.drains.len(), 1);
        let aside = fs::read_to_string(path.join("limits.jsonl.taken-over")).unwrap();
        assert_eq!(aside, lines);
        drop(store);

        let (mut store, mut again, _) = Store::open(Directory::new(path)).unwrap();
        assert_eq!(again, contents);
        assert!(take_over(path, &mut store, &mut again).unwrap().is_empty());
        assert_eq!(again, contents);
    }

    #[test]
    fn what_a_full_disk_does_not_take_over_is_in_force_and_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        leave_files(path);
        let disk = Shaky::default();
        disk.fill_up(Some(0));
        let (mut store, mut contents, _) = Store::open(disk.clone()).unwrap();
        take_over(path, &mut store, &mut contents).unwrap();
        assert_eq!((contents.limits.len(), contents.drains.len()), (1, 1));
        store.commit(&[Change::RemoveLimit(3)]).unwrap_err();
        assert!(path.join("limits.jsonl").exists());

        disk.fill_up(None);
        store.commit(&[Change::RemoveLimit(3)]).unwrap();
        drop(store);
        assert!(!path.join("limits.jsonl").exists());
        let (mut store, mut again, _) = Store::open(disk).unwrap();
        assert!(take_over(path, &mut store, &mut again).unwrap().is_empty());
        assert_eq!((again.limits.len(), again.drains.len()), (0, 1));
    }
}
