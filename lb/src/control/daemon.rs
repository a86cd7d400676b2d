//! The daemon from start to end: takes the lock, opens the data plane, runs the loop and the API.

use std::{
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use axum::Router;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::{
    net,
    signal::unix::{SignalKind, signal},
};

use super::{
    Control, Handle, Sources, Start, detection,
    keep::keep,
    kernel::Kernel,
    supervise::{Heart, Supervisor},
};
use crate::{
    api::{self, Access, AccessError, Api, Caps, SocketError},
    config::{self, Config, ConfigErrors, SecretError},
    dataplane::LoadError,
    log,
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
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(
        "cannot listen on {address}; `listen` in [api] must be an address of this machine with a free port"
    )]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
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
    config::check_interfaces(&config, |name| crate::net::if_index(name).is_ok())?;
    let state_dir = &config.dataplane.state_dir;
    let _lock = lock(state_dir)?;
    let socket = socket.unwrap_or_else(|| config.api.socket.clone());
    // Before the data plane: what cannot listen shall not touch it.
    let access = Access::load(config.api.remote.clone())?;
    let remote = config.api.remote.as_ref().map(|remote| remote.listen);
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

/// Where clients come in.
#[derive(Debug)]
struct Listeners {
    local: net::UnixListener,
    remote: Option<TcpListener>,
}

fn bind_remote(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let bound = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|source| DaemonError::Listen { address, source })
}

/// Runs the loop and the API over an open plane.
async fn serve(
    start: Start<Kernel>,
    listeners: Listeners,
    access: Access,
) -> Result<(), DaemonError> {
    raise_open_files();
    let config_file = start.config_file.clone();
    let pin_dir = start.config.dataplane.pin_dir.clone();
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Signals)?;

    let supervisor = Supervisor::default();
    let sources = Sources::start(&supervisor);
    let (control, handle) = Control::new(start, sources.clone(), supervisor.clone());
    let reopen = {
        let config_file = config_file.clone();
        move |config: Arc<Config>| match prepare(Config::clone(&config), &config_file) {
            Ok((start, _adopted)) => Ok(start),
            Err(error) => Err(super::chain(&error)),
        }
    };
    let mut control = tokio::spawn(keep(control, handle.clone(), sources, reopen));
    let api = Arc::new(Api::new(handle.clone(), config_file, access));
    listen(&supervisor, listeners, &api)?;
    detect(&supervisor, handle.clone(), pin_dir)?;
    let manager = Manager::from_environment();
    tokio::spawn(service::attend(manager.clone(), handle));
    tokio::spawn(log::tell_what_is_left_out());
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

/// Serves the API.
fn listen(
    supervisor: &Supervisor,
    listeners: Listeners,
    api: &Arc<Api>,
) -> Result<(), DaemonError> {
    let Listeners { local, remote } = listeners;
    let router = api::router(api.clone());
    let (log, control) = (api.events.clone(), api.control.clone());
    supervisor.run("events", move |heart| {
        let (log, events) = (log.clone(), control.events());
        async move {
            tokio::select! {
                () = log.follow(events) => Err("nothing tells events any more".into()),
                never = heart.beats() => match never {},
            }
        }
    });
    if let Some(listener) = remote {
        let (router, access) = (router.clone(), api.access.clone());
        let supervisor = supervisor.clone();
        thread::Builder::new()
            .name("api".into())
            .spawn(move || serve_remote(&supervisor, listener, router, access))
            .map_err(DaemonError::Thread)?;
    }
    let local = Arc::new(local);
    supervisor.run("API", move |heart| {
        let (local, router) = (local.clone(), router.clone());
        async move {
            tokio::select! {
                never = api::serve_local(&local, router, Caps::default()) => match never {},
                never = heart.beats() => match never {},
            }
        }
    });
    Ok(())
}

/// Detection has a thread of its own, so that looking for what tells an attack takes no time from the control loop.
fn detect(supervisor: &Supervisor, handle: Handle, pin_dir: PathBuf) -> Result<(), DaemonError> {
    let supervisor = supervisor.clone();
    let watch = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let start = move |heart: Heart| detection::run(handle.clone(), pin_dir.clone(), heart);
        match runtime {
            Ok(runtime) => {
                let ran = runtime.block_on(async { supervisor.run("detection", start).await });
                drop(ran);
            }
            Err(error) => tracing::error!(%error, "attacks are not detected; restart the daemon"),
        }
    };
    let spawned = thread::Builder::new().name("detection".into()).spawn(watch);
    spawned.map(drop).map_err(DaemonError::Thread)
}

/// Clients by TCP have a thread of their own, so that their handshakes take no time from the control loop.
fn serve_remote(
    supervisor: &Supervisor,
    listener: TcpListener,
    router: Router,
    access: Arc<Access>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let serve = move |heart: Heart| {
        let (listener, router, access) = (listener.try_clone(), router.clone(), access.clone());
        async move {
            let failed = |error: io::Error| error.to_string();
            let listener = net::TcpListener::from_std(listener.map_err(failed)?).map_err(failed)?;
            tokio::select! {
                never = api::serve_remote(&listener, router, access, Caps::default()) => match never {},
                never = heart.beats() => match never {},
            }
        }
    };
    match runtime {
        Ok(runtime) => {
            let served = runtime.block_on(async { supervisor.run("API by TCP", serve).await });
            drop(served);
        }
        Err(error) => tracing::error!(%error, "no API by TCP; restart the daemon"),
    }
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
