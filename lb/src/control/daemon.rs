//! The daemon from start to end: takes the lock, opens the data plane, runs the loop and the API.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    Start,
    kernel::Kernel,
    stuck,
    supervise::Supervisor,
    tasks::{Listeners, Parts, Tasks},
};
use crate::{
    api::{self, Access, AccessError, SocketError},
    config::{self, Config, ConfigErrors, SecretError},
    dataplane::LoadError,
    service::{Manager, capabilities},
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
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(
        "cannot listen on {address}; `listen` in [api] must be an address of this machine with a free port"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
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
    config::check_host(&config)?;
    let state_dir = &config.dataplane.state_dir;
    let _lock = lock(state_dir)?;
    let socket = socket.unwrap_or_else(|| config.api.socket.clone());
    // Before the data plane: what cannot listen shall not touch it.
    let access = Access::load(config.api.remote.clone())?;
    let remote = config.api.remote.as_ref().map(|remote| remote.listen);
    let bind_remote = |address| {
        api::bind_remote(address).map_err(|source| DaemonError::Listen { address, source })
    };
    let listeners = Listeners {
        remote: remote.map(bind_remote).transpose()?,
        local: api::bind(&socket)?,
    };
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
        listen = remote.map(tracing::field::display),
        interfaces = start.config.dataplane.interfaces.join(","),
        adopted,
        "running"
    );
    let result = serve(start, listeners, access).await;
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
    listeners: Listeners,
    access: Access,
) -> Result<(), DaemonError> {
    raise_open_files();
    let pin_dir = start.config.dataplane.pin_dir.clone();
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;

    let reopen = {
        let config_file = start.config_file.clone();
        move |config: Arc<Config>| match prepare(Config::clone(&config), &config_file) {
            Ok((start, _adopted)) => Ok(start),
            Err(error) => Err(super::chain(&error)),
        }
    };
    let manager = Manager::from_environment();
    let parts = Parts {
        listeners,
        access,
        manager: manager.clone(),
        pin_dir: Some(pin_dir),
    };
    let _watched = stuck::watch().inspect_err(|error| {
        tracing::warn!(%error, "cannot watch the main thread: if it is stuck, only the service manager notices");
    });
    let Tasks { api, mut control } = Tasks::start(&Supervisor::default(), start, reopen, parts);
    let result = loop {
        tokio::select! {
            _ = hangup.recv() => {
                let api = api.clone();
                // The loop logs how it ends.
                tokio::spawn(async move { api.reload().await });
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

/// As many as may be: checks and clients need one each, and the usual 1,024 are few.
fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot have more files open at a time; health checks and clients may fail");
    }
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
