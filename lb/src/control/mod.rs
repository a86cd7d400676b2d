//! The control loop: one task owns the state; others send it commands and read an immutable view.

mod control_loop;
mod daemon;

mod dataplane;
mod sources;
mod view;

#[cfg(test)]
pub(crate) mod fake;

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use crate::drains::BackendName;

pub(crate) use control_loop::chain;
pub use control_loop::{Control, Start};
pub use daemon::{DaemonError, run};

pub use dataplane::{Attachment, Dataplane, DropFigure, Failure, Figures, FlowCount, FlowFigures};
pub use sources::Sources;
pub use view::{Reload, View};

/// Speaks to the control loop.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    view: Arc<ArcSwap<View>>,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{message}")]
    Invalid {
        field: Option<&'static str>,
        message: String,
    },
    #[error("{0}")]
    NotAvailable(String),
    #[error("{0}")]
    Failed(String),
    #[error("the daemon is about to end")]
    Ended,
}

/// Whether a backend shall be drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draining {
    Begin,
    End,
}

type Reply<T> = oneshot::Sender<Result<T, Refused>>;

#[derive(Debug)]
enum Command {
    Drain(BackendName, Draining, Reply<()>),
    Reload(Reply<()>),
    Figures(Reply<Figures>),
}

impl Handle {
    /// The state as it was last published.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Drains a backend, or ends that. The data plane has it when this returns.
    pub async fn drain(&self, name: BackendName, draining: Draining) -> Result<(), Refused> {
        self.ask(|reply| Command::Drain(name, draining, reply))
            .await
    }

    /// Reads the config file again. Refused whole if anything in it is wrong.
    pub async fn reload(&self) -> Result<(), Refused> {
        self.ask(Command::Reload).await
    }

    /// All figures, read from the maps now.
    pub async fn figures(&self) -> Result<Figures, Refused> {
        self.ask(Command::Figures).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refused> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_closed| Refused::Ended)?;
        answer.await.map_err(|_closed| Refused::Ended)?
    }
}
