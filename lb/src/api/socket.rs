//! The Unix socket that the daemon listens on.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net},
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another daemon answers on {}; stop it, or set another `socket` in [api]", path.display())]
    InUse { path: PathBuf },
    #[error("{} is no socket; remove it, or set another `socket` in [api]", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
}

/// Listens on this path, for its owner and group only. A socket that a dead daemon left is replaced.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    if let Ok(there) = fs::symlink_metadata(path) {
        let path = path.to_owned();
        if !there.file_type().is_socket() {
            return Err(SocketError::NotASocket { path });
        }
        if net::UnixStream::connect(&path).is_ok() {
            return Err(SocketError::InUse { path });
        }
        fs::remove_file(&path).map_err(failed)?;
    }
    // Not changed after it was made: there would be a moment in which anybody could connect.
    let before = umask(Mode::from_bits_truncate(0o117));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(failed)
}
