//! Files of the state directory that are replaced as a whole, and what to do when the disk refuses.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// Why a file does not hold what it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}{}", path.display(), advice(source))]
pub struct SaveError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// Makes a file hold this as JSON. Whoever reads it meets it as it was or as it is, also after a crash.
pub(crate) fn replace_json(path: &Path, value: &impl Serialize) -> Result<(), SaveError> {
    let new = path.with_added_extension("new");
    let replaced = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        fs::write(&new, serde_json::to_vec(value)?)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, path)
    };
    replaced().map_err(|source| {
        // Half a file would only take room.
        _ = fs::remove_file(&new);
        let path = path.to_owned();
        SaveError { path, source }
    })
}

/// To be added to what says that a disk failed so.
pub(crate) fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; make room on that disk",
        io::ErrorKind::QuotaExceeded => "; raise the quota, or make room",
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_replaced_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/numbers.json");
        replace_json(&path, &1).unwrap();
        let in_the_way = directory.path().join("state/numbers.json.new");
        fs::create_dir(&in_the_way).unwrap();
        let error = replace_json(&path, &2).unwrap_err();
        assert_eq!(error.path, path);
        assert_eq!(fs::read(&path).unwrap(), b"1");
        fs::remove_dir(in_the_way).unwrap();
        replace_json(&path, &3).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
    }
}
