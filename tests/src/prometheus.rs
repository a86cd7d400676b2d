//! A real Prometheus that scrapes the load balancers of a lab, with the rules of `grafana/`.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{Lab, Netns, Node, process::Process, within};

/// Ends when dropped.
#[derive(Debug)]
pub struct Prometheus<'a> {
    netns: &'a Netns,
    _process: Process,
    _forwarders: Vec<Forwarder>,
}

const LISTEN: &str = "127.0.0.1:9090";

impl<'a> Prometheus<'a> {
    /// Starts one on the first load balancer; `l0`, `l1` and so on are the names of the instances. What is minutes in the
    /// rules is some scrapes here.
    pub fn start(lab: &'a Lab, scrape_interval: Duration) -> Self {
        let netns = lab.node().netns();
        let forwarders: Vec<Forwarder> = lab
            .nodes()
            .iter()
            .map(|node| Forwarder::start(netns, node))
            .collect();
        let config = config_text(&dir(lab), scrape_interval, &forwarders);
        Self::launch(lab, &config, forwarders)
    }

    /// Starts one on the first load balancer with this config: what it scrapes must listen by TCP.
    pub fn start_with(lab: &'a Lab, config: &str) -> Self {
        Self::launch(lab, config, Vec::new())
    }

    fn launch(lab: &'a Lab, text: &str, forwarders: Vec<Forwarder>) -> Self {
        let netns = lab.node().netns();
        let dir = dir(lab);
        let config = dir.join("prometheus.yml");
        fs::write(&config, text).expect("the directory is writable");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.join("data").display()
            ))
            .arg(format!("--web.listen-address={LISTEN}"))
            .arg("--log.level=warn");
        let prometheus = Self {
            netns,
            _process: Process::start(netns, command, &dir.join("prometheus.log")),
            _forwarders: forwarders,
        };
        within(Duration::from_secs(30), "Prometheus is ready", || {
            prometheus.get("/-/ready").is_ok()
        });
        prometheus
    }

    /// The samples that a query has now.
    ///
    /// # Panics
    /// If it makes no sense to Prometheus.
    pub fn query(&self, query: &str) -> Vec<Value> {
        let answer = self
            .get(&format!("/api/v1/query?query={}", percent_encoded(query)))
            .unwrap_or_else(|error| panic!("Prometheus does not answer: {error}"));
        let answer: Value = serde_json::from_str(&answer).expect("Prometheus answers JSON");
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let result = &answer["data"]["result"];
        result.as_array().expect("a vector").clone()
    }

    /// Names of the alerts that fire.
    pub fn alerts(&self) -> BTreeSet<String> {
        let firing = self.query(r#"ALERTS{alertstate="firing"}"#);
        let name = |sample: &Value| sample["metric"]["alertname"].as_str().map(str::to_owned);
        firing.iter().filter_map(name).collect()
    }

    fn get(&self, path: &str) -> io::Result<String> {
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let answer = self.netns.run(|| -> io::Result<String> {
            let mut stream = TcpStream::connect(LISTEN)?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).unwrap_or_default();
        // What it says of a query that it refuses is worth reading.
        if matches!(status, "200" | "400" | "422") {
            Ok(body.to_owned())
        } else {
            Err(io::Error::other(format!("status {status}")))
        }
    }
}

/// For all that Prometheus reads and writes.
fn dir(lab: &Lab) -> PathBuf {
    let dir = lab.dir().join("prometheus");
    fs::create_dir_all(&dir).expect("the lab's directory is writable");
    dir
}

/// The folder with dashboards and rules.
pub fn grafana_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../grafana")
}

fn config_text(dir: &Path, scrape_interval: Duration, forwarders: &[Forwarder]) -> String {
    let rules = hasty_rules(dir, scrape_interval);
    let every = milliseconds(scrape_interval);
    let mut text = format!(
        "global:\n  scrape_interval: {every}\n  scrape_timeout: {every}\n  evaluation_interval: {every}\n\
         rule_files: [{:?}]\nscrape_configs:\n  - job_name: sluice\n    static_configs:\n",
        rules.join("*.yml")
    );
    for (index, forwarder) in forwarders.iter().enumerate() {
        let _ = writeln!(
            text,
            "      - targets: [{:?}]\n        labels: {{ instance: l{index} }}",
            forwarder.address.to_string()
        );
    }
    text
}

/// The rules, but nobody waits as long: alerts come after two scrapes, rates are over ten.
fn hasty_rules(dir: &Path, scrape_interval: Duration) -> PathBuf {
    let wait = milliseconds(2 * scrape_interval);
    let window = format!("[{}]", milliseconds(10 * scrape_interval));
    let hasty = dir.join("rules");
    fs::create_dir_all(&hasty).expect("the directory is writable");
    for name in ["recording.yml", "alerts.yml"] {
        let path = grafana_dir().join("rules").join(name);
        let text =
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| {
            let indent = &line[..line.len() - line.trim_start().len()];
            if line.trim_start().starts_with("for: ") {
                format!("{indent}for: {wait}\n")
            } else {
                format!("{}\n", line.replace("[1m]", &window))
            }
        });
        fs::write(hasty.join(name), lines.collect::<String>()).expect("the directory is writable");
    }
    hasty
}

fn milliseconds(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

/// Makes a daemon's Unix socket a port of TCP, until dropped.
#[derive(Debug)]
struct Forwarder {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Forwarder {
    fn start(netns: &Netns, node: &Node) -> Self {
        let listener = netns.run(|| TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("the namespace has a loopback interface");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let stopped = Arc::new(AtomicBool::new(false));
        let (seen, socket) = (stopped.clone(), node.socket());
        thread::spawn(move || {
            for client in listener.incoming() {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                // A daemon that is down refuses; then the client's connection ends too.
                if let (Ok(client), Ok(daemon)) = (client, UnixStream::connect(&socket)) {
                    let _ = join(client, daemon);
                }
            }
        });
        Self { address, stopped }
    }
}

impl Drop for Forwarder {
    /// Its thread notices at the next connection, which may never come; then it ends with the process.
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

fn join(client: TcpStream, daemon: UnixStream) -> io::Result<()> {
    let (mut from_client, mut to_daemon) = (client.try_clone()?, daemon.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_daemon);
        let _ = to_daemon.shutdown(std::net::Shutdown::Both);
    });
    let (mut from_daemon, mut to_client) = (daemon, client);
    thread::spawn(move || {
        let _ = io::copy(&mut from_daemon, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
    Ok(())
}
