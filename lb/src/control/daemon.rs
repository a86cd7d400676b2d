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

use super::{Control, Handle, Sources, Start, kernel::Kernel, sources::supervised};
use crate::{
    api::{self, Api, SocketError},
    config::{self, Config, ConfigErrors, SecretError},
    dataplane::LoadError,
    log, net,
    service::{self, Manager, capabilities},
    store::{self, Directory, Store, StoreError, Writer},
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
    Store(#[from] StoreError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error("the control loop ended; restart the daemon (packets are forwarded meanwhile)")]
    Ended,
}

/// Runs the daemon until it is told to end by SIGTERM or SIGINT. The data plane stays and forwards.
///
/// `socket` overrides the config's.
pub async fn run(config_file: &Path, socket: Option<PathBuf>) -> Result<(), DaemonError> {
    let config = config::load(config_file)?;
    config::check_interfaces(&config, |name| net::if_index(name).is_ok())?;
    let state_dir = &config.dataplane.state_dir;
    let _lock = lock(state_dir)?;
    let socket = socket.unwrap_or_else(|| config.api.socket.clone());
    // Before the data plane: what cannot listen shall not touch it.
    let listener = api::bind(&socket)?;
    // Before the first thread, which would keep what this one gives up.
    let reduced = capabilities::reduce();
    let (mut start, adopted) = match prepare(config, config_file) {
        Ok(prepared) => prepared,
        Err(error) => {
            let _gone = fs::remove_file(&socket);
            return Err(error);
        }
    };
    if let Err(error) = reduced {
        let warning = format!(
            "cannot give up the rights of root that are not needed ({error}): the daemon runs with more than it should; a system call filter may be in the way of `capset`"
        );
        start.warnings.push(warning);
    }
    for warning in &start.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %socket.display(),
        interfaces = start.config.dataplane.interfaces.join(","),
        adopted,
        "running"
    );
    let result = serve(start, listener, &socket).await;
    let _gone = fs::remove_file(&socket);
    result
}

/// Opens everything that the loop starts from.
fn prepare(config: Config, config_file: &Path) -> Result<(Start<Kernel>, bool), DaemonError> {
    let state_dir = &config.dataplane.state_dir;
    let secret_file = config.pop.secret_file.as_deref();
    let secret = secret_file.map(config::read_secret).transpose()?;
    let (mut store, mut contents, mut said) = Store::open(Directory::new(state_dir))?;
    said.extend(store::take_over(state_dir, &mut store, &mut contents)?);
    let writer = Writer::start(store).map_err(|source| DaemonError::State {
        path: state_dir.clone(),
        source,
    })?;
    let (plane, opened) = Kernel::open(&config, secret)?;
    let mut warnings = opened.warnings;
    warnings.extend(said);
    let start = Start {
        plane,
        config,
        config_file: config_file.to_owned(),
        contents,
        writer,
        adopted: opened.adopted,
        warnings,
    };
    Ok((start, opened.adopted))
}

/// Runs the loop and the API over an open plane.
async fn serve(
    start: Start<Kernel>,
    listener: UnixListener,
    socket: &Path,
) -> Result<(), DaemonError> {
    let config_file = start.config_file.clone();
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;

    let (control, handle) = Control::new(start, Sources::start());
    let mut control = tokio::spawn(control.run());
    listen(listener, socket.to_owned(), config_file, handle.clone());
    let manager = Manager::from_environment();
    tokio::spawn(service::attend(manager.clone(), handle.clone()));
    tokio::spawn(log::tell_what_is_left_out());
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
    manager.tell("STOPPING=1");
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
