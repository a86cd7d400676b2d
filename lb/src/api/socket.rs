//! The sockets that the daemon listens on.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net,
    },
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
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
    listener(path).map_err(failed)
}

/// For its owner alone from the first moment, then for the group too. No umask: that is of all threads.
fn listener(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux makes the file with the mode that the socket has.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Listens on an address.
pub fn bind_remote(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // Once more, for more may wait: a SYN that finds no room comes again a second later.
    SockRef::from(&listener).listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connections that may wait to be taken.
const BACKLOG: i32 = 1024;
