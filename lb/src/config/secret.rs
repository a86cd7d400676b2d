//! The secret that keys every hash.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Why a secret file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret {}: {source}; make one by {}", path.display(), recipe(path))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the secret {} must be a plain file; make one by {}", path.display(), recipe(path))]
    NotAFile { path: PathBuf },
    #[error("the secret {} does not hold exactly {SECRET_BYTES} bytes; make one by {}", path.display(), recipe(path))]
    Length { path: PathBuf },
}

/// The 32 bytes that a secret file holds.
pub fn read_secret(path: &Path) -> Result<[u8; SECRET_BYTES], SecretError> {
    let unreadable = |source: io::Error| SecretError::Unreadable {
        path: path.to_owned(),
        source,
    };
    // Before it is opened: opening a FIFO would wait, and a device gives other bytes each time.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut bytes = Vec::with_capacity(SECRET_BYTES + 1);
    File::open(path)
        .map_err(unreadable)?
        .take(SECRET_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    bytes
        .try_into()
        .map_err(|_bytes: Vec<u8>| SecretError::Length {
            path: path.to_owned(),
        })
}

const SECRET_BYTES: usize = 32;

fn recipe(path: &Path) -> String {
    format!("`head -c {SECRET_BYTES} /dev/urandom > {}`", path.display())
}
