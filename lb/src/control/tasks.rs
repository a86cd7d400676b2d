//! What a daemon consists of: tasks, each of which is started again if it fails, and takes no other with it.

use std::{convert::Infallible, io, net::TcpListener, path::PathBuf, sync::Arc, thread};

use axum::Router;
use tokio::{net, sync::oneshot, task::JoinHandle};

use super::{
    Control, Dataplane, Sources, Start, detection, keep::keep, supervise::Heart,
    supervise::Supervisor,
};
use crate::{
    api::{self, Access, Api, Caps},
    config::Config,
    log,
    service::{self, Manager},
};

/// Where clients come in.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) local: net::UnixListener,
    pub(super) remote: Option<TcpListener>,
}

/// What tasks are about, beside the state.
pub(super) struct Parts {
    pub(super) listeners: Listeners,
    pub(super) access: Access,
    pub(super) manager: Manager,
    /// Of the data plane in which attacks are looked for, if there is one.
    pub(super) pin_dir: Option<PathBuf>,
}

/// A daemon at work.
pub(super) struct Tasks {
    pub(super) api: Arc<Api>,
    /// Ends if nobody wants the control loop any more.
    pub(super) control: JoinHandle<()>,
}

impl Tasks {
    /// Starts all of them. `reopen` is what a control loop starts from that takes the place of another.
    pub(super) fn start<P: Dataplane + Send + 'static>(
        supervisor: &Supervisor,
        start: Start<P>,
        reopen: impl FnMut(Arc<Config>) -> Result<Start<P>, String> + Send + 'static,
        parts: Parts,
    ) -> Self {
        let Parts {
            listeners,
            access,
            manager,
            pin_dir,
        } = parts;
        let config_file = start.config_file.clone();
        let sources = Sources::start(supervisor);
        let (control, handle) = Control::new(start, sources.clone(), supervisor.clone());
        let control = tokio::spawn(keep(control, handle.clone(), sources, reopen));
        let api = Arc::new(Api::new(handle.clone(), config_file, access));
        tell_events(supervisor, &api);
        listen(supervisor, listeners, &api);
        if let Some(pin_dir) = pin_dir {
            let handle = handle.clone();
            // Looking for what tells an attack takes no time from the control loop.
            supervisor.run("detection", move |heart| {
                let (handle, pin_dir) = (handle.clone(), pin_dir.clone());
                apart("detection", move || detection::run(handle, pin_dir, heart))
            });
        }
        if manager.is_there() {
            supervisor.run("service manager", move |heart| {
                let (manager, handle) = (manager.clone(), handle.clone());
                ends(service::attend(manager, handle, heart))
            });
        }
        supervisor.run("log", |heart| beside(heart, log::tell_what_is_left_out()));
        Self { api, control }
    }
}

/// A task that beats by itself, and should not end.
async fn ends(task: impl Future<Output = ()>) -> Result<Infallible, String> {
    task.await;
    Err("it ended".into())
}

/// A task that cannot wait for ever where it should not, with a heart that beats as long as it is served.
pub(super) async fn beside(
    heart: Heart,
    task: impl Future<Output = ()>,
) -> Result<Infallible, String> {
    tokio::select! {
        ended = ends(task) => ended,
        never = heart.beats() => match never {},
    }
}

fn tell_events(supervisor: &Supervisor, api: &Api) {
    let (log, control) = (api.events.clone(), api.control.clone());
    supervisor.run("events", move |heart| {
        ends(log.clone().follow(control.events(), heart))
    });
}

fn listen(supervisor: &Supervisor, listeners: Listeners, api: &Arc<Api>) {
    let Listeners { local, remote } = listeners;
    let router = api::router(api.clone());
    if let Some(listener) = remote {
        let listener = Arc::new(listener);
        let (router, access) = (router.clone(), api.access.clone());
        supervisor.run("API by TCP", move |heart| {
            serve_remote(heart, listener.clone(), router.clone(), access.clone())
        });
    }
    let local = Arc::new(local);
    supervisor.run("API", move |heart| {
        let (local, router) = (local.clone(), router.clone());
        async move { Ok(api::serve_local(&local, router, Caps::default(), &heart).await) }
    });
}

/// Clients by TCP have a thread of their own, so that their handshakes take no time from the control loop.
async fn serve_remote(
    heart: Heart,
    listener: Arc<TcpListener>,
    router: Router,
    access: Arc<Access>,
) -> Result<Infallible, String> {
    let listener = listener.try_clone().map_err(failed)?;
    let serve = async move || {
        let listener = net::TcpListener::from_std(listener).map_err(failed)?;
        Ok(api::serve_remote(&listener, router, access, Caps::default(), &heart).await)
    };
    apart("api", serve).await
}

/// A task on a thread of its own, which ends when this is dropped.
async fn apart<F>(
    name: &str,
    task: impl FnOnce() -> F + Send + 'static,
) -> Result<Infallible, String>
where
    F: Future<Output = Result<Infallible, String>>,
{
    let (told, ended) = oneshot::channel();
    let (_ends, wanted) = oneshot::channel::<()>();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        runtime.block_on(async {
            tokio::select! {
                result = task() => result,
                _ = wanted => Err("it is not wanted any more".into()),
            }
        })
    };
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(move || told.send(run())).map_err(failed)?;
    match ended.await {
        Ok(result) => result,
        Err(_gone) => Err("its thread panicked".into()),
    }
}

fn failed(error: io::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests;
