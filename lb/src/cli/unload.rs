//! `sluice unload`.

use std::{os::unix::net::UnixStream, path::PathBuf};

use serde_json::json;

use super::{Failed, Global, client, output::Output};
use crate::dataplane;

/// Whether to mind a running daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Daemon {
    Respect,
    Ignore,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a daemon is running (it answers on {}), and would miss what it loaded; stop it first, or use --force",
    socket.display()
)]
struct Running {
    socket: PathBuf,
}

/// Detaches the program and removes all pins, of any version.
pub(super) fn unload(global: &Global, daemon: Daemon, output: Output) -> Result<(), Failed> {
    let socket = client::socket(global.socket.clone(), &global.config);
    if daemon == Daemon::Respect && UnixStream::connect(&socket).is_ok() {
        return Err(Running { socket }.into());
    }
    let pins = client::path_in(&global.config, "dataplane", "pin_dir")
        .unwrap_or_else(|| dataplane::DEFAULT_PINS.into());
    let removed = dataplane::unload(&pins)?;
    output.show(&json!({ "removed": removed }), |_| {
        if removed.is_empty() {
            format!("nothing was loaded under {}", pins.display())
        } else {
            format!(
                "unloaded; removed {} pins under {}",
                removed.len(),
                pins.display()
            )
        }
    })
}
