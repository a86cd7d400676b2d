//! Takes over what version 0.1 kept in files of its own.

use std::{fs, io, path::Path, sync::Arc};

use serde::Deserialize;

use super::{Change, Contents, Medium, Store, StoreError};
use crate::{
    drains::Drains,
    limits::{LimitBook, LimitRecord, LimitSpec},
};

/// Moves limits and drains of version 0.1 into the store, if there are any. Tells what an operator should know.
///
/// The files are renamed, not removed. A line that cannot be read is said.
pub fn take_over<M: Medium>(
    directory: &Path,
    store: &mut Store<M>,
    contents: &mut Contents,
) -> Result<Vec<String>, StoreError> {
    let mut warnings = Vec::new();
    let mut changes = Vec::new();
    let limits = directory.join("limits.jsonl");
    let drains = directory.join("drains.json");
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| StoreError::Io { path, source }
    };
    let mut found = Vec::new();
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
        found.push(limits);
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
        found.push(drains);
    }
    if found.is_empty() {
        return Ok(warnings);
    }
    store.commit(&changes)?;
    for file in found {
        fs::rename(&file, aside(&file)).map_err(failed(&file))?;
        tracing::info!(file = %file.display(), "taken over into the store");
    }
    Ok(warnings)
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn aside(file: &Path) -> std::path::PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".taken-over");
    name.into()
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
    use super::{super::Directory, *};

    #[test]
    fn files_of_version_0_1_are_taken_over_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
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
}
