//! Datagrams to the service manager, as `sd_notify(3)` describes them.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// The service manager that started this process, if one did that wants to know how it is.
#[derive(Clone, Debug, Default)]
pub struct Manager {
    socket: Option<SocketAddr>,
    watchdog: Option<Duration>,
}

/// A reload is under way until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Reloading(Manager);

impl Manager {
    /// The one that the environment names.
    #[must_use]
    pub fn from_environment() -> Self {
        let socket = env::var_os("NOTIFY_SOCKET")
            .filter(|name| !name.is_empty())
            .and_then(|name| match address(&name) {
                Ok(address) => Some(address),
                Err(error) => {
                    tracing::warn!(%error, socket = ?name, "cannot tell the service manager anything: NOTIFY_SOCKET is no address of a Unix socket");
                    None
                }
            });
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        // Of another process if that was handed down by mistake.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| ours && usec > 0);
        Self {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(path: &std::path::Path) -> Self {
        Self {
            socket: SocketAddr::from_pathname(path).ok(),
            watchdog: None,
        }
    }

    #[must_use]
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// It restarts us if it hears nothing for so long.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Says that the config is being read again.
    pub fn reloading(self) -> Reloading {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()));
        Reloading(self)
    }

    /// Never waits: if the manager does not read, it misses this.
    pub fn tell(&self, state: &str) {
        let Some(socket) = &self.socket else {
            return;
        };
        let send = || {
            let datagram = UnixDatagram::unbound()?;
            datagram.set_nonblocking(true)?;
            datagram.send_to_addr(state.as_bytes(), socket)
        };
        if let Err(error) = send() {
            tracing::warn!(%error, state, "cannot tell the service manager");
        }
    }
}

impl Drop for Reloading {
    fn drop(&mut self) {
        self.0.tell("READY=1");
    }
}

fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives_by_a_path_and_by_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("@sluice-test-{}", process::id());
        for name in [path.as_os_str(), OsStr::new(&name)] {
            let address = address(name).unwrap();
            let listener = UnixDatagram::bind_addr(&address).unwrap();
            let manager = Manager {
                socket: Some(address),
                watchdog: None,
            };
            drop(manager.reloading());
            let mut buffer = [0; 100];
            let mut next = || {
                let bytes = listener.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..bytes]).into_owned()
            };
            assert!(next().starts_with("RELOADING=1\nMONOTONIC_USEC="));
            assert_eq!(next(), "READY=1");
        }
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let address = address(dir.path().join("notify").as_os_str()).unwrap();
        let manager = Manager {
            socket: Some(address.clone()),
            watchdog: None,
        };
        manager.tell("READY=1");
        let _deaf = UnixDatagram::bind_addr(&address).unwrap();
        for _ in 0..10_000 {
            manager.tell("WATCHDOG=1");
        }
        Manager::default().tell("READY=1");
    }

    #[test]
    fn only_paths_and_abstract_names_are_addresses() {
        assert!(address(OsStr::new("vsock:2:1234")).is_err());
        assert!(address(OsStr::new("relative")).is_err());
    }
}
