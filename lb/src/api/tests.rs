//! Every route and every error over a real socket, above a data plane in memory.

mod described;
mod drains;
mod events;
mod hostile;
mod plan;
mod reload;
mod remote;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, client::conn::http1, header, http::request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
    sync::watch,
    task::JoinHandle,
};

use super::{Access, Api, Caps, bind, guard::BODY_TIME, router, serve_local};
use crate::{
    config,
    control::{
        Control, Handle, Heart, Start, Supervisor,
        fake::{self, Fake},
    },
    desired,
    health::{Snapshot, State, Status},
    net::{NextHop, Reason, Resolution, Resolutions, Station},
    store::{Contents, Directory, Store, Writer},
};

pub(super) const CONFIG: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["lo"]
[[pool]]
name = "web"
health = { kind = "tcp", port = 80 }
backend = [{ address = "10.0.0.1" }, { address = "10.0.0.2", weight = 5, forward = "gue" }]
[[vip]]
name = "site"
address = "192.0.2.10"
protocol = "tcp"
port = 80
pool = "web"
forward = "ipip"
"#;

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) plane: Fake,
    pub(super) handle: Handle,
    tasks: Vec<JoinHandle<()>>,
    health: watch::Sender<Snapshot>,
    resolutions: watch::Sender<Resolutions>,
    api: Arc<Api>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    kind: String,
    pub(super) etag: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

impl World {
    /// A daemon with both backends up and resolved, and its tables applied.
    pub(super) async fn ready() -> Self {
        Self::ready_in(tempfile::tempdir().unwrap()).await
    }

    /// The same with the state that is there.
    pub(super) async fn ready_in(dir: TempDir) -> Self {
        let world = Self::start_in(dir, CONFIG, BODY_TIME);
        world.become_ready().await;
        world
    }

    async fn become_ready(&self) {
        let world = self;
        world.health([State::Up, State::Up]);
        let hop = Resolution::Resolved(NextHop {
            ifindex: 1,
            vlan: None,
            source_mac: [2; 6],
            destination_mac: [4; 6],
            station: Station::Backend,
            mtu_bytes: 1500,
            source: IpAddr::from([10, 0, 0, 254]),
        });
        let hops = [(address(1), hop), (address(2), hop)];
        world.resolutions.send_replace(Arc::new(hops.into()));
        while !world.handle.view().ready {
            tokio::task::yield_now().await;
        }
    }

    fn start(config: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), config, BODY_TIME)
    }

    fn start_in(dir: TempDir, config: &str, body_time: Duration) -> Self {
        let (store, contents, said) = Store::open(Directory::new(dir.path())).unwrap();
        assert_eq!(said, [""; 0]);
        let state = (contents, Writer::start(store).unwrap());
        Self::start_with(dir, config, body_time, state)
    }

    fn start_with(
        dir: TempDir,
        config: &str,
        body_time: Duration,
        (contents, writer): (Contents, Writer),
    ) -> Self {
        let config_file = dir.path().join("sluice.toml");
        std::fs::write(&config_file, config).unwrap();
        let plane = Fake::default();
        let (sources, health, resolutions) = fake::sources();
        let start = Start {
            plane: plane.clone(),
            config: config::load(&config_file).unwrap(),
            config_file: config_file.clone(),
            contents,
            writer,
            adopted: false,
            warnings: vec!["slow".into()],
        };
        let (control, handle) = Control::new(start, sources, Supervisor::default());
        let control = tokio::spawn(async move {
            control.run(Heart::default()).await;
        });
        let listener = bind(&dir.path().join("run/sluice.sock")).unwrap();
        let remote = handle.view().config.api.remote.clone();
        let access = Access::load(remote).unwrap();
        let api = Arc::new(Api {
            body_time,
            ..Api::new(handle.clone(), config_file, access)
        });
        let log = tokio::spawn(api.events.clone().follow(handle.events(), Heart::default()));
        let router = router(api.clone());
        let server = tokio::spawn(async move {
            serve_local(&listener, router, Caps::default(), &Heart::default()).await;
        });
        Self {
            tasks: vec![control, server, log],
            dir,
            plane,
            handle,
            health,
            resolutions,
            api,
        }
    }

    /// Ends the daemon, and leaves what it wrote.
    pub(super) async fn stop(self) -> TempDir {
        for task in self.tasks {
            task.abort();
            _ = task.await;
        }
        self.dir
    }

    fn health(&self, states: [State; 2]) {
        let statuses = states.into_iter().zip(1..).map(|(state, n)| {
            let status = Status {
                error: (state == State::Down).then(|| "refused".into()),
                ..Status::new(state, SystemTime::now())
            };
            (("web".to_owned(), address(n)), status)
        });
        self.health.send_replace(Arc::new(statuses.collect()));
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.dir.path().join("sluice.toml")
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "").await
    }

    pub(super) async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        exchange(self.connect().await, request, body).await
    }

    /// With a header that says when.
    pub(super) async fn send_if(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
        name: header::HeaderName,
        value: &str,
    ) -> Answer {
        let request = Request::builder().method(method).uri(path);
        exchange(self.connect().await, request.header(name, value), body).await
    }

    async fn connect(&self) -> UnixStream {
        let socket = self.dir.path().join("run/sluice.sock");
        UnixStream::connect(socket).await.unwrap()
    }

    /// Weights in the fake's table, by the last byte of the backend's address.
    fn weights(&self) -> Vec<u16> {
        let held = self.plane.held();
        held.tables
            .into_values()
            .flat_map(|table| table.weights.into_values())
            .collect()
    }
}

/// One request over a fresh connection.
async fn exchange<S>(stream: S, request: request::Builder, body: impl Into<Bytes>) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = request
        .header(header::HOST, "sluice")
        .body(Full::new(body.into()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let headers = response.headers().clone();
    let text = |name| {
        let value = headers.get(name);
        value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    };
    Answer {
        status: response.status().as_u16(),
        etag: text(header::ETAG),
        kind: text(header::CONTENT_TYPE),
        headers,
        body: response.into_body().collect().await.unwrap().to_bytes(),
    }
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(super) fn assert_problem(answer: &Answer, status: u16, part: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.kind, "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["status"], status);
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(part), "{detail}");
}

#[tokio::test]
async fn a_reload_reads_the_certificates_of_checks_anew() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    let rotate = || {
        let made = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
    };
    rotate();
    let check = format!("kind = \"https\", port = 443, ca_file = {file:?}");
    let config = CONFIG.replace("kind = \"tcp\", port = 80", &check);
    let world = World::start(&config);
    world.become_ready().await;
    let checks = || desired::targets(&world.handle.view().config);
    let before = checks();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(checks(), before, "checks go on undisturbed");
    rotate();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_ne!(checks(), before, "checks begin with what is there now");
}

#[tokio::test]
async fn status_tells_how_things_are() {
    let world = World::ready().await;
    let answer = world.get("/v1/status").await;
    assert_eq!(
        (answer.status, answer.kind.as_str()),
        (200, "application/json")
    );
    let status = answer.json();
    for (field, value) in [
        ("pop", json!("ams")),
        ("ready", json!(true)),
        ("adopted", json!(false)),
        ("vips", json!(1)),
        ("backends", json!(2)),
        ("backends_up", json!(2)),
        ("flows", json!(10)),
        ("flow_capacity", json!(1 << 20)),
        ("program_id", json!(7)),
        ("pid", json!(std::process::id())),
        ("warnings", json!(["slow"])),
        ("config_file", json!(world.config_file())),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    assert_eq!(status["last_reload"]["ok"], true);
}

#[tokio::test]
async fn what_the_data_plane_warns_of_is_told_for_as_long_as_it_is_so() {
    let world = World::ready().await;
    world.plane.warn(Some("the disk is full"));
    world.health([State::Down, State::Up]);
    while world.weights() != [5] {
        tokio::task::yield_now().await;
    }
    let warnings = world.get("/v1/status").await.json()["warnings"].take();
    assert_eq!(warnings, json!(["slow", "the disk is full"]));
    world.plane.warn(None);
    world.health([State::Up, State::Up]);
    while world.get("/v1/status").await.json()["warnings"] != json!(["slow"]) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn vips_backends_flows_and_drops_are_listed() {
    let world = World::ready().await;
    world.health([State::Up, State::Down]);
    while world.weights() != [1] {
        tokio::task::yield_now().await;
    }
    let vips = world.get("/v1/vips").await.json();
    let expected = json!({ "next": null, "items": [{
        "name": "site", "prefix": "192.0.2.10/32", "protocol": "tcp", "port": 80, "pool": "web", "forward": "ipip",
        "policy": null, "draining": false, "packets": 321, "bytes": 32100, "dropped_packets": 13,
        "verdicts": {
            "pass": { "packets": 1, "bytes": 100 }, "tx": { "packets": 20, "bytes": 2000 },
            "redirect": { "packets": 300, "bytes": 30000 }, "drop": { "packets": 13, "bytes": 1300 },
        },
        "challenged_packets": 30, "backends_up": 1,
    }] });
    assert_eq!(vips, expected);

    let backends = world.get("/v1/backends").await.json();
    let item = &backends["items"][1];
    for (field, value) in [
        ("pool", json!("web")),
        ("address", json!("10.0.0.2")),
        ("state", json!("down")),
        ("weight", json!(5)),
        ("forward", json!("gue")),
        ("flows", json!(5)),
        ("packets", json!(50)),
        ("bytes", json!(5000)),
        ("resolved", json!(true)),
        ("unresolved_reason", json!(null)),
        ("mac", json!("04:04:04:04:04:04")),
        ("interface", json!("lo")),
        ("error", json!("refused")),
    ] {
        assert_eq!(item[field], value, "{field}");
    }

    let flows = world.get("/v1/flows").await.json();
    let first = json!({ "pool": "web", "address": "10.0.0.1", "forward": "ipip", "flows": 5 });
    assert_eq!(flows["items"][0], first);
    assert_eq!(
        (&flows["proven"], &flows["unproven"]),
        (&json!(6), &json!(4))
    );

    let drops = world.get("/v1/drops").await.json();
    let last = json!({ "vip": "site", "reason": "limit_host", "mode": "monitor", "packets": 8, "bytes": 800 });
    assert_eq!(drops["items"][2], last);
}

#[tokio::test]
async fn a_backend_that_this_host_cannot_check_is_told_and_stays_up() {
    let world = World::ready().await;
    let unmade = Status {
        error: Some("this host cannot check it: connect: too many".into()),
        is_unmade: true,
        ..Status::new(State::Up, SystemTime::now())
    };
    world.health.send_modify(|health| {
        let status = Arc::make_mut(health).get_mut(&("web".to_owned(), address(1)));
        *status.unwrap() = unmade;
    });
    let warned = async || world.get("/v1/status").await.json()["warnings"].to_string();
    while !warned()
        .await
        .contains("not checked, and stay what they were: 1;")
    {
        tokio::task::yield_now().await;
    }
    assert!(warned().await.contains("web/10.0.0.1: this host cannot"));
    assert_eq!(world.weights(), [1, 5]);
    let backends = world.get("/v1/backends").await.json();
    assert_eq!(backends["items"][0]["state"], "up");
    let metrics = world.get("/metrics").await;
    for (n, unchecked) in [(1, 1), (2, 0)] {
        let line = format!(
            "\nsluice_backend_unchecked{{pool=\"web\",backend=\"10.0.0.{n}\"}} {unchecked}\n"
        );
        assert!(metrics.text().contains(&line), "{line}");
    }
}

#[tokio::test]
async fn without_bgp_there_are_no_peers_ready_or_not() {
    for world in [World::start(CONFIG), World::ready().await] {
        let answer = world.get("/v1/peers").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json(), json!({ "items": [], "next": null }));
    }
}

#[tokio::test]
async fn an_unresolved_backend_says_why() {
    let world = World::ready().await;
    let hops = [(address(1), Resolution::Unresolved(Reason::NoRoute))];
    world.resolutions.send_replace(Arc::new(hops.into()));
    while !world.weights().is_empty() {
        tokio::task::yield_now().await;
    }
    let items = world.get("/v1/backends").await.json();
    assert_eq!(items["items"][0]["resolved"], false);
    let reason = items["items"][0]["unresolved_reason"].as_str().unwrap();
    assert!(reason.contains("no route"), "{reason}");
}

#[tokio::test]
async fn a_reload_takes_a_good_config_and_refuses_a_bad_one_whole() {
    let world = World::ready().await;
    let bad = CONFIG.replace("weight = 5", "wieght = 5");
    std::fs::write(world.config_file(), bad).unwrap();
    let answer = world.send(Method::POST, "/v1/reload", "").await;
    assert_problem(&answer, 422, "did you mean `weight`?");
    assert_eq!(world.weights(), [1, 5]);
    let status = world.get("/v1/status").await.json();
    assert_eq!(status["last_reload"]["ok"], false);
    let metrics = world.get("/metrics").await;
    assert!(
        metrics
            .text()
            .contains("sluice_config_last_reload_success 0\n")
    );

    let hash = status["config_hash"].clone();
    std::fs::write(
        world.config_file(),
        CONFIG.replace("weight = 5", "weight = 7"),
    )
    .unwrap();
    let answer = world.send(Method::POST, "/v1/reload", "").await;
    assert_eq!(answer.status, 204);
    assert_eq!(world.weights(), [1, 7]);
    let status = world.get("/v1/status").await.json();
    assert_eq!(status["last_reload"]["ok"], true);
    assert_ne!(status["config_hash"], hash);
}

#[tokio::test]
async fn a_reload_cannot_change_what_is_set_at_start() {
    let world = World::ready().await;
    for (from, to, part) in [
        ("[dataplane]", "[dataplane]\nflows = 2_048", "sluice unload"),
        (
            "[[pool]]",
            "[api]\nsocket = \"/run/x.sock\"\n[[pool]]",
            "restart the daemon",
        ),
        ("[\"lo\"]", "[\"nosuch0\"]", "no interface `nosuch0`"),
    ] {
        std::fs::write(world.config_file(), CONFIG.replacen(from, to, 1)).unwrap();
        let answer = world.send(Method::POST, "/v1/reload", "").await;
        assert_problem(&answer, 422, part);
    }
}

#[tokio::test]
async fn a_config_that_the_data_plane_cannot_hold_is_taken_back() {
    let world = World::ready().await;
    std::fs::write(
        world.config_file(),
        CONFIG.replace("weight = 5", "weight = 7"),
    )
    .unwrap();
    world.plane.fail(Some("full"));
    let answer = world.send(Method::POST, "/v1/reload", "").await;
    assert_problem(&answer, 500, "full");
    world.plane.fail(None);
    assert_eq!(world.handle.view().config.pools[0].backends[1].weight, 5);
    assert_problem(&world.get("/v1/nothing").await, 404, "no such path");
}

#[tokio::test]
async fn maps_that_cannot_be_read_are_said() {
    let world = World::ready().await;
    world.plane.fail(Some("gone"));
    for path in [
        "/v1/status",
        "/v1/vips",
        "/v1/backends",
        "/v1/flows",
        "/v1/drops",
        "/metrics",
    ] {
        assert_problem(&world.get(path).await, 500, "cannot read the maps: gone");
    }
}

#[tokio::test]
async fn a_wrong_path_or_method_is_a_problem() {
    let world = World::ready().await;
    assert_problem(&world.get("/v1/nosuch").await, 404, "no such path");
    let answer = world.send(Method::POST, "/v1/status", "").await;
    assert_problem(&answer, 405, "does not take that method");
}

#[tokio::test]
async fn readiness_waits_for_the_first_tables() {
    let world = World::start(CONFIG);
    assert_eq!(world.get("/healthz").await.text(), "ok\n");
    assert_problem(&world.get("/readyz").await, 503, "yet");
    assert!(world.plane.held().vips.is_empty());
    let world = World::ready().await;
    assert_eq!(world.get("/readyz").await.text(), "ready\n");
}

#[tokio::test]
async fn without_any_news_the_tables_are_applied_after_a_while() {
    let world = World::start(CONFIG);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(world.handle.view().ready);
    assert_eq!(world.plane.held().vips.len(), 1);
    assert!(world.weights().is_empty());
}

#[tokio::test]
async fn metrics_are_text_for_prometheus() {
    let world = World::ready().await;
    let answer = world.get("/metrics").await;
    assert_eq!(answer.kind, "text/plain; version=0.0.4");
    let text = answer.text();
    for line in [
        "# TYPE sluice_packets_total counter",
        "sluice_packets_total{vip=\"site\",verdict=\"redirect\"} 300",
        "sluice_bytes_total{vip=\"site\",verdict=\"tx\"} 2000",
        "sluice_dropped_packets_total{vip=\"site\",reason=\"no_backend\"} 6",
        "sluice_dropped_bytes_total{vip=\"site\",reason=\"limit_host\"} 700",
        "sluice_monitored_packets_total{vip=\"site\",reason=\"limit_host\"} 8",
        "sluice_backend_packets_total{pool=\"web\",backend=\"10.0.0.1\"} 50",
        "sluice_backend_bytes_total{pool=\"web\",backend=\"10.0.0.2\"} 5000",
        "sluice_backend_up{pool=\"web\",backend=\"10.0.0.1\"} 1",
        "sluice_backend_flows{pool=\"web\",backend=\"10.0.0.1\"} 5",
        "sluice_backend_weight{pool=\"web\",backend=\"10.0.0.2\"} 5",
        "sluice_flow_table_capacity 1048576",
        "sluice_flow_table_entries{state=\"proven\"} 6",
        "sluice_flow_inserts_total 5",
        "sluice_flow_evictions_total{state=\"idle\"} 9",
        "sluice_flow_out_of_state_total{vip=\"site\"} 4",
        "sluice_challenges_total{vip=\"site\",event=\"sent\"} 30",
        "sluice_challenges_total{vip=\"site\",event=\"proved\"} 12",
        "sluice_cookies_total{vip=\"site\",event=\"sent\"} 31",
        "sluice_cookies_total{vip=\"site\",event=\"taken\"} 13",
        "sluice_table_checksum{vip=\"site\"} 0",
        "sluice_config_last_reload_success 1",
        "sluice_limiter_fill_ratio{class=\"syn\"} 0.25",
        "sluice_limiter_collateral_probability{class=\"syn\"} 0.00390625",
        "sluice_limiter_collateral_probability{class=\"established\"} 0",
        "sluice_limit_dropped_packets_total{limit=\"other\"} 0",
        "sluice_xdp_ns_per_packet 41.5",
        "sluice_pop_draining 0",
    ] {
        assert!(
            text.contains(&format!("{line}\n")),
            "{line} is not in\n{text}"
        );
    }
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_a_stale_one_is_replaced() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let listener = bind(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let error = bind(&path).unwrap_err().to_string();
    assert!(error.contains("another daemon answers"), "{error}");
    drop(listener);
    assert!(bind(&path).is_ok());

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let error = bind(&file).unwrap_err().to_string();
    assert!(error.contains("is no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

pub(super) const LIMIT: &str = r#"{"prefix": "198.51.100.0/24", "vip": "site", "class": "udp", "pps": 1000, "ttl_seconds": 600}"#;

#[tokio::test]
async fn a_limit_is_set_shown_replaced_and_removed() {
    let world = World::ready().await;
    let answer = world.send(Method::POST, "/v1/limits", LIMIT).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let limit = answer.json();
    for (field, value) in [
        ("id", json!(1)),
        ("prefix", json!("198.51.100.0/24")),
        ("vip", json!("site")),
        ("class", json!("udp")),
        ("pps", json!(1000)),
        ("bps", json!(null)),
        ("burst", json!(100)),
        ("mode", json!("enforce")),
        ("ttl_seconds", json!(600)),
        ("comment", json!("")),
        ("matched_packets", json!(13)),
        ("dropped_packets", json!(3)),
    ] {
        assert_eq!(limit[field], value, "{field}");
    }
    assert!(limit["created"].is_string() && limit["expires"].is_string());
    assert_eq!(world.plane.limits()[0].pps, Some(1000));
    let metrics = world.get("/metrics").await;
    assert!(
        metrics
            .text()
            .contains("sluice_limit_dropped_packets_total{limit=\"1\"} 3\n")
    );

    let again = world
        .send(Method::POST, "/v1/limits", LIMIT.replace("1000", "2000"))
        .await;
    assert_eq!((again.status, again.json()["id"].clone()), (200, json!(1)));
    let put = world
        .send(Method::PUT, "/v1/limits/1", LIMIT.replace("1000", "3000"))
        .await;
    assert_eq!((put.status, put.json()["pps"].clone()), (200, json!(3000)));
    assert_eq!(world.plane.limits()[0].pps, Some(3000));
    assert_eq!(world.get("/v1/limits/1").await.json()["pps"], 3000);
    assert_eq!(world.get("/v1/limits").await.json()["items"][0]["id"], 1);

    assert_eq!(
        world.send(Method::DELETE, "/v1/limits/1", "").await.status,
        204
    );
    assert!(world.plane.limits().is_empty());
    assert_eq!(
        world.get("/v1/limits").await.json(),
        json!({ "items": [], "next": null })
    );
}

#[tokio::test]
async fn a_wrong_limit_is_refused_and_its_field_named() {
    let world = World::ready().await;
    for (body, status, field) in [
        (
            r#"{"prefix": "198.51.100.1/24", "pps": 1}"#,
            422,
            json!("prefix"),
        ),
        (r#"{"prefix": "198.51.100.0/24"}"#, 422, json!("pps")),
        (
            r#"{"prefix": "198.51.100.0/24", "pps": 1, "vip": "nosuch"}"#,
            422,
            json!("vip"),
        ),
        (
            r#"{"prefix": "198.51.100.0/24", "pps": 1, "colour": 1}"#,
            422,
            json!("colour"),
        ),
        ("[", 400, json!(null)),
    ] {
        for (method, path) in [(Method::POST, "/v1/limits"), (Method::PUT, "/v1/limits/1")] {
            let answer = world.send(method, path, body).await;
            assert_problem(&answer, status, "");
            assert_eq!(answer.json()["field"], field, "{body}");
        }
    }
    let huge = vec![b' '; (1 << 20) + 1];
    let answer = world.send(Method::PUT, "/v1/limits/1", huge).await;
    assert_problem(&answer, 413, "longer than");
    for id in ["1", "x"] {
        let path = format!("/v1/limits/{id}");
        assert_problem(&world.get(&path).await, 404, "no limit");
        assert_problem(
            &world.send(Method::PUT, &path, LIMIT).await,
            404,
            "no limit",
        );
        assert_problem(
            &world.send(Method::DELETE, &path, "").await,
            404,
            "no limit",
        );
    }
    assert!(world.plane.limits().is_empty());
}

#[tokio::test]
async fn a_limit_for_the_packets_of_another_or_without_room_changes_nothing() {
    let world = World::ready().await;
    world.send(Method::POST, "/v1/limits", LIMIT).await;
    let other = LIMIT.replace("udp", "syn");
    world.send(Method::POST, "/v1/limits", other.clone()).await;
    let answer = world.send(Method::PUT, "/v1/limits/1", other).await;
    assert_problem(&answer, 409, "limit 2");

    world.plane.fail(Some("full"));
    let answer = world
        .send(Method::PUT, "/v1/limits/1", LIMIT.replace("1000", "7"))
        .await;
    assert_problem(&answer, 409, "full");
    let answer = world
        .send(Method::POST, "/v1/limits", LIMIT.replace("udp", "icmp"))
        .await;
    assert_problem(&answer, 409, "full");
    let items = world.get("/v1/limits").await.json();
    assert_eq!(items["items"].as_array().unwrap().len(), 2);
    assert_eq!(items["items"][0]["pps"], 1000);
}

#[tokio::test]
async fn a_limit_goes_when_its_time_is_over_and_waits_while_its_vip_is_gone() {
    let world = World::ready().await;
    let short = LIMIT.replace("600", "1");
    world
        .send(Method::POST, "/v1/limits", short.replace("udp", "icmp"))
        .await;
    world.send(Method::POST, "/v1/limits", LIMIT).await;
    assert_eq!(world.plane.limits().len(), 2);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.plane.limits().len(), 1);
    assert_eq!(
        world.get("/v1/limits").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );

    let renamed = CONFIG.replace("name = \"site\"", "name = \"other\"");
    std::fs::write(world.config_file(), renamed).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert!(world.plane.limits().is_empty());
    std::fs::write(world.config_file(), CONFIG).unwrap();
    assert_eq!(world.send(Method::POST, "/v1/reload", "").await.status, 204);
    assert_eq!(world.plane.limits().len(), 1);
}
