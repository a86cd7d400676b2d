//! The daemon from start to end: takes the lock, opens the data plane, runs the loop and the API.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::Mutex,
};

use super::{Control, Dataplane, Handle, Sources, Start, sources::supervised};
use crate::{
    api::{self, Api, SocketError},
    config::{self, Config, ConfigErrors, SecretError},
    drains::DrainStore,
    net,
};

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(
        "another daemon uses the state directory {}; stop it, or set another `state_dir` in [dataplane]",
        path.display()
    )]
    Locked { path: PathBuf },
    #[error("cannot use the state directory {}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error("the control loop ended; restart the daemon (packets are forwarded meanwhile)")]
    Ended,
}

/// Runs the daemon until it is told to end by SIGTERM or SIGINT. The data plane stays and forwards.
pub async fn run(config_file: &Path, socket: Option<PathBuf>) -> Result<(), DaemonError> {
    let mut config = config::load(config_file)?;
    config::check_interfaces(&config, |name| net::if_index(name).is_ok())?;
    if let Some(socket) = socket {
        config.api.socket = socket;
    }
    todo!("open the plane")
}

/// Runs the loop and the API over an open plane.
async fn serve<P: Dataplane + Send + 'static>(start: Start<P>) -> Result<(), DaemonError> {
    let listener = api::bind(&start.config.api.socket)?;
    let socket = start.config.api.socket.clone();
    let config_file = start.config_file.clone();
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;

    let (control, handle) = Control::new(start, Sources::start());
    let mut control = tokio::spawn(control.run());
    listen(listener, socket.clone(), config_file, handle.clone());
    let result = loop {
        tokio::select! {
            _ = hangup.recv() => {
                let handle = handle.clone();
                // The loop logs how it ends.
                tokio::spawn(async move { handle.reload().await });
            }
            _ = interrupt.recv() => break Ok(()),
            _ = terminate.recv() => break Ok(()),
            _ = &mut control => break Err(DaemonError::Ended),
        }
    };
    let _gone = fs::remove_file(&socket);
    if result.is_ok() {
        tracing::info!("ends; the data plane stays and forwards, until `sluice unload`");
    }
    result
}

/// Serves the API. If that ends, a new socket is made.
fn listen(listener: UnixListener, socket: PathBuf, config_file: PathBuf, control: Handle) {
    let first = Arc::new(Mutex::new(Some(listener)));
    supervised("API", move || {
        let (first, socket) = (first.clone(), socket.clone());
        let router = api::router(Api {
            control: control.clone(),
            config_file: config_file.clone(),
        });
        async move {
            let listener = match first.lock().await.take() {
                Some(listener) => listener,
                None => api::bind(&socket).map_err(|error| super::chain(&error))?,
            };
            match axum::serve(listener, router).await {
                Ok(()) => Err("the server ended".into()),
                Err(error) => Err(error.to_string()),
            }
        }
    });
}

/// Held as long as the daemon runs, so that no other writes the same state.
#[derive(Debug)]
struct Lock(#[expect(dead_code, reason = "held, not read")] Flock<File>);

fn lock(state_dir: &Path) -> Result<Lock, DaemonError> {
    let failed = |source| DaemonError::State {
        path: state_dir.to_owned(),
        source,
    };
    fs::create_dir_all(state_dir).map_err(failed)?;
    let file = File::options()
        .create(true)
        .append(true)
        .open(state_dir.join("lock"))
        .map_err(failed)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Lock(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Err(DaemonError::Locked {
            path: state_dir.to_owned(),
        }),
        Err((_, error)) => Err(failed(error.into())),
    }
}
