//! Each task of a daemon fails in turn: it is started again, and nothing else notices.

use std::{
    future::pending, net::SocketAddr, os::unix::net::UnixDatagram, path::PathBuf, time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    config,
    control::{
        TaskStatus,
        fake::{CONFIG, Fake},
        supervise::faults::Fault,
    },
    store::{Directory, Store, Writer},
};

const NAMES: [&str; 8] = [
    "API",
    "API by TCP",
    "control loop",
    "events",
    "health checks",
    "log",
    "resolver",
    "service manager",
];

struct Daemon {
    supervisor: Supervisor,
    plane: Fake,
    socket: PathBuf,
    remote: SocketAddr,
    _tasks: Tasks,
    _manager: UnixDatagram,
    _dir: TempDir,
}

impl Daemon {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With a data plane in which to look for attacks, if there is one.
    async fn start_with(pin_dir: Option<PathBuf>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sluice.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let plane = Fake::default();
        let open = {
            let (plane, directory) = (plane.clone(), dir.path().to_owned());
            move |config: Arc<Config>| {
                let store = Store::open(Directory::new(&directory));
                let (store, contents, _) = store.map_err(|error| error.to_string())?;
                Ok(Start {
                    plane: plane.clone(),
                    config: Config::clone(&config),
                    config_file: directory.join("sluice.toml"),
                    contents,
                    writer: Writer::start(store).map_err(|error| error.to_string())?,
                    adopted: true,
                    warnings: Vec::new(),
                })
            }
        };
        let socket = dir.path().join("run/sluice.sock");
        let remote = TcpListener::bind("127.0.0.1:0").unwrap();
        remote.set_nonblocking(true).unwrap();
        let notify = dir.path().join("notify");
        let supervisor = Supervisor::hasty();
        let start = open(Arc::new(config::load(&file).unwrap())).unwrap();
        let daemon = Self {
            plane,
            remote: remote.local_addr().unwrap(),
            _manager: UnixDatagram::bind(&notify).unwrap(),
            _tasks: Tasks::start(
                &supervisor,
                start,
                open,
                Parts {
                    listeners: Listeners {
                        local: api::bind(&socket).unwrap(),
                        remote: Some(remote),
                    },
                    access: Access::load(None).unwrap(),
                    manager: Manager::at(&notify),
                    pin_dir,
                },
            ),
            supervisor,
            socket,
            _dir: dir,
        };
        until("it is ready", || daemon.plane.held().vips.len() == 1).await;
        daemon
    }

    fn task(&self, name: &str) -> TaskStatus {
        let mut tasks = self.supervisor.tasks().into_iter();
        tasks.find(|task| task.name == name).unwrap()
    }

    fn restarts(&self) -> Vec<u64> {
        let tasks = self.supervisor.tasks();
        tasks.iter().map(|task| task.restarts).collect()
    }

    /// Through the socket, as often as it takes: who is asked may just be started again.
    async fn status(&self) -> Value {
        for _ in 0..100 {
            let stream = net::UnixStream::connect(&self.socket).await.unwrap();
            if let Some(answer) = ask(stream, "/v1/status").await {
                return serde_json::from_slice(&answer).unwrap();
            }
            sleep(Duration::from_millis(50)).await;
        }
        panic!("no answer");
    }

    async fn answers_by_tcp(&self) -> bool {
        let stream = net::TcpStream::connect(self.remote).await.unwrap();
        ask(stream, "/healthz").await.is_some()
    }
}

/// The body of a good answer.
async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> Option<Bytes> {
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "sluice");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.ok()?;
        let good = response.status().is_success();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        good.then_some(body)
    };
    timeout(Duration::from_secs(2), exchange).await.ok()?
}

async fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..1_000 {
        if is() {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 20 s: {what}");
}

#[tokio::test]
async fn each_task_that_panics_is_started_again_and_no_other() {
    let daemon = Daemon::start().await;
    let names: Vec<_> = daemon
        .supervisor
        .tasks()
        .iter()
        .map(|task| task.name)
        .collect();
    assert_eq!(names, NAMES);
    let held = daemon.plane.held();
    for (count, name) in NAMES.into_iter().enumerate() {
        daemon.supervisor.spoil(name, Fault::Panic);
        until(name, || daemon.task(name).restarts == 1).await;
        assert_eq!(
            daemon.task(name).error.as_deref(),
            Some("it panicked: a bug")
        );
        until(name, || daemon.task(name).running).await;
        let expected: Vec<u64> = (0..NAMES.len()).map(|n| u64::from(n <= count)).collect();
        assert_eq!(daemon.restarts(), expected, "{name}");
        let status = daemon.status().await;
        let shown = &status["tasks"][count];
        assert_eq!(shown["name"], name);
        assert_eq!(
            (&shown["restarts"], &shown["error"]),
            (&1.into(), &"it panicked: a bug".into())
        );
        assert_eq!(daemon.plane.held(), held, "{name}");
    }
    assert!(daemon.answers_by_tcp().await);
}

#[tokio::test]
async fn tasks_that_hang_are_started_again_and_those_beside_them_are_not() {
    let daemon = Daemon::start().await;
    let held = daemon.plane.held();
    for (turn, names) in [&NAMES[..4], &NAMES[4..]].into_iter().enumerate() {
        for name in names {
            daemon.supervisor.spoil(name, Fault::Hang);
        }
        for name in names {
            until(name, || daemon.task(name).restarts == 1).await;
            let error = daemon.task(name).error.unwrap();
            assert!(error.starts_with("it hung for"), "{name}: {error}");
            until(name, || daemon.task(name).running).await;
        }
        let expected: Vec<u64> = (0..NAMES.len())
            .map(|n| u64::from(n < 4 || turn == 1))
            .collect();
        assert_eq!(daemon.restarts(), expected);
        assert_eq!(daemon.plane.held(), held);
        assert_eq!(daemon.status().await["ready"], true);
        assert!(daemon.answers_by_tcp().await);
    }
}

#[tokio::test]
async fn detection_that_cannot_read_the_maps_is_started_again_and_no_other() {
    let pins = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(Some(pins.path().to_owned())).await;
    let restarts = || daemon.task("detection").restarts;
    until("it is started again", || restarts() > 1).await;
    daemon.supervisor.spoil("detection", Fault::Panic);
    until("it panics", || {
        daemon.task("detection").error.as_deref() == Some("it panicked: a bug")
    })
    .await;
    let panicked = restarts();
    until("it is started again", || restarts() > panicked).await;
    for task in daemon.supervisor.tasks() {
        assert_eq!(task.restarts > 0, task.name == "detection", "{task:?}");
    }
    assert_eq!(daemon.status().await["ready"], true);
    assert!(daemon.answers_by_tcp().await);
}

#[tokio::test]
async fn a_panic_on_a_thread_of_its_own_is_told() {
    async fn unlucky() -> Result<Infallible, String> {
        panic!("a bug")
    }
    let ended = apart("unlucky", unlucky).await;
    assert_eq!(ended, Err("its thread panicked".to_owned()));
}

#[tokio::test]
async fn a_thread_ends_when_nobody_waits_for_its_task() {
    let (begins, begun) = oneshot::channel();
    let (held, ended) = oneshot::channel::<()>();
    let idle = move || async move {
        let _held = held;
        begins.send(()).unwrap();
        pending::<Result<Infallible, String>>().await
    };
    let task = tokio::spawn(apart("idle", idle));
    begun.await.unwrap();
    task.abort();
    let ended = timeout(Duration::from_secs(5), ended).await;
    assert!(ended.expect("it ends").is_err());
}
