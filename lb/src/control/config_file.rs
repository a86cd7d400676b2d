//! The config file, as reloads and plans read it: on a thread of its own, for what it names may be large or slow.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{Refused, off_thread};
use crate::config::{self, Config};

/// Read by one at a time, in the order in which they come.
#[derive(Clone, Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    turn: Arc<Mutex<()>>,
}

/// Nobody else reads while this lives.
#[derive(Debug)]
pub(super) struct Turn {
    path: PathBuf,
    held: Arc<OwnedMutexGuard<()>>,
}

/// What was read. The next turn begins when this is dropped, so when it is in force.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) config: Result<Config, Refused>,
    _held: Arc<OwnedMutexGuard<()>>,
}

impl ConfigFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            turn: Arc::default(),
        }
    }

    pub(super) async fn turn(&self) -> Turn {
        Turn {
            path: self.path.clone(),
            held: Arc::new(self.turn.clone().lock_owned().await),
        }
    }
}

impl Turn {
    pub(super) async fn read(self) -> Reading {
        let Self { path, held } = self;
        let load = {
            // Who asked may be gone meanwhile. A file that never ends takes one thread, not one for each who asks.
            let held = held.clone();
            move || {
                let _held = held;
                config::load(&path)
            }
        };
        let loaded = off_thread(load).await;
        Reading {
            config: loaded.and_then(|config| Ok(config?)),
            _held: held,
        }
    }
}
