//! A load balancer of the lab: its config, its daemon, and its command line.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    BACK, Config, FRONT, Frames, Mac, Netns, Segment, addresses::ROUTER, addresses::node_host,
    binary, eventually, process::Process, server::Server, topology::vips_on_lo,
};

#[derive(Debug)]
pub struct Node {
    index: usize,
    netns: Netns,
    /// Holds the config, the socket, the log and the state.
    dir: PathBuf,
    pin_dir: PathBuf,
    interfaces: Vec<String>,
    secret_file: PathBuf,
    process: Mutex<Option<Process>>,
    local: Mutex<Option<Server>>,
}

/// What a command said.
#[derive(Debug)]
pub struct Output {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The running daemon of a node, or the lack of it.
#[derive(Clone, Copy, Debug)]
pub struct Daemon<'a> {
    node: &'a Node,
}

impl Node {
    pub(crate) fn new(
        index: usize,
        netns: Netns,
        lab_dir: &Path,
        pin_dir: PathBuf,
        segments: &[Segment],
    ) -> Self {
        let dir = lab_dir.join(format!("l{index}"));
        fs::create_dir_all(dir.join("state")).expect("the lab's directory is writable");
        Self {
            index,
            netns,
            dir,
            pin_dir,
            interfaces: segments
                .iter()
                .map(|segment| segment.node_interface())
                .collect(),
            secret_file: lab_dir.join("secret"),
            process: Mutex::default(),
            local: Mutex::default(),
        }
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    pub fn daemon(&self) -> Daemon<'_> {
        Daemon { node: self }
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("sluice.toml")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("sluice.sock")
    }

    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn v4(&self) -> IpAddr {
        FRONT.v4(node_host(self.index)).into()
    }

    pub fn v6(&self) -> IpAddr {
        FRONT.v6(node_host(self.index)).into()
    }

    pub fn mac(&self) -> Mac {
        FRONT.mac(node_host(self.index))
    }

    /// The whole file that goes with `config` here.
    pub fn config_text(&self, config: &Config) -> String {
        format!(
            "[pop]\nname = \"lab\"\nid = 1\nsecret_file = {:?}\n\n\
             [dataplane]\ninterfaces = {:?}\nflows = {}\nexact_limits = {}\nsketch_cells = 65536\nsource_prefixes = {}\n\
             pin_dir = {:?}\nstate_dir = {:?}\n{}\n[api]\nsocket = {:?}\n{}\n{}",
            self.secret_file,
            self.interfaces,
            config.flows,
            config.exact_limits,
            config.source_prefixes,
            self.pin_dir,
            self.state_dir(),
            config.dataplane,
            self.socket(),
            config.api,
            config.toml()
        )
    }

    /// Replaces the file; the daemon does not know yet.
    pub fn write_config(&self, text: &str) {
        fs::write(self.config_file(), text).expect("the lab's directory is writable");
    }

    /// Runs the real command line on this load balancer: `sluice("drops --json")`. Blanks part its words.
    pub fn sluice(&self, line: &str) -> Output {
        self.sluice_words(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// The same for words that have blanks in them.
    pub fn sluice_words(&self, words: &[&str]) -> Output {
        let mut command = Command::new(binary::sluice());
        command.args(words).arg("-c").arg(self.config_file());
        let output = self.netns.run(|| command.output());
        output
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
            .into()
    }

    /// The rows of a `--json` table.
    pub fn items(&self, noun: &str) -> Vec<Value> {
        let answer = self.sluice(&format!("{noun} --json")).succeeds().json();
        answer["items"]
            .as_array()
            .unwrap_or_else(|| panic!("{noun} has no items: {answer}"))
            .clone()
    }

    /// The row of `sluice backends` for this address.
    ///
    /// # Panics
    /// If there is none.
    pub fn backend_row(&self, address: IpAddr) -> Value {
        let row = self
            .items("backends")
            .into_iter()
            .find(|row| row["address"] == address.to_string());
        row.unwrap_or_else(|| panic!("{address} is not among the backends"))
    }

    /// Packets that were dropped (`mode` "enforce"), or would have been ("monitor").
    pub fn dropped(&self, mode: &str) -> u64 {
        let rows = self.items("drops");
        rows.iter()
            .filter(|row| row["mode"] == mode)
            .filter_map(|row| row["packets"].as_u64())
            .sum()
    }

    /// Packets that were dropped for one reason.
    pub fn dropped_for(&self, reason: &str) -> u64 {
        self.drops().get(reason).copied().unwrap_or_default()
    }

    /// Packets of each reason for dropping.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        for row in self.items("drops") {
            let reason = row["reason"].as_str().expect("a word").to_owned();
            *drops.entry(reason).or_default() += row["packets"].as_u64().expect("a number");
        }
        drops
    }

    /// Frames that came by the cable to the router, which loses some when they come faster than they are taken.
    pub fn received(&self) -> u64 {
        let path = "/sys/class/net/eth0/statistics/rx_packets";
        let name = self.netns.name();
        let read = self
            .netns
            .command("ip", &["netns", "exec", name, "cat", path]);
        read.trim().parse().expect("a number")
    }

    /// Makes this host answer for the VIPs itself, for `forward = "local"`.
    pub fn serve_locally(&self) {
        self.netns.ip(&vips_on_lo());
        *self.local.lock().expect("nothing panics with the lock") =
            Some(Server::start(&self.netns, &format!("l{}", self.index)));
    }

    /// Sends straight to this load balancer, as its router would.
    pub fn frames(&self) -> Frames {
        Frames {
            from: FRONT.mac(ROUTER),
            to: self.mac(),
        }
    }

    /// What the router calls its port to this load balancer.
    pub(crate) fn port_name(&self) -> String {
        FRONT.node_port(self.index)
    }

    /// What the router calls its ports to this load balancer.
    pub(crate) fn port_names(&self) -> impl Iterator<Item = String> {
        let segments = [FRONT, BACK].into_iter().take(self.interfaces.len());
        segments.map(|segment| segment.node_port(self.index))
    }

    /// What `/metrics` says.
    ///
    /// # Panics
    /// If the daemon does not answer.
    pub fn metrics(&self) -> String {
        let mut socket = UnixStream::connect(self.socket()).expect("the daemon listens");
        socket
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
            .expect("the daemon reads");
        let mut answer = String::new();
        socket
            .read_to_string(&mut answer)
            .expect("the daemon answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    }

    /// The value of a series, which is named as in `/metrics`; 0 while there is none.
    pub fn metric(&self, series: &str) -> u64 {
        let metrics = self.metrics();
        let value = metrics
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a number"))
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("sluice.log")
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("nothing panics with the lock")
    }
}

impl Daemon<'_> {
    /// Starts it, and waits until it answers.
    ///
    /// # Panics
    /// If it does not answer, with what it said instead.
    pub fn start(self) {
        self.start_under(&[]);
    }

    /// The same, by a command that ends in becoming the daemon: `env NAME=VALUE`, `setpriv`.
    pub fn start_under(self, words: &[&str]) {
        let words = words.iter().map(OsStr::new);
        let mut words = words.chain([binary::sluice().as_os_str()]);
        let mut command = Command::new(words.next().expect("the daemon itself is one"));
        command.args(words);
        command.arg("run").arg("-c").arg(self.node.config_file());
        let mut process = Process::start(&self.node.netns, command, &self.node.log_file());
        eventually("the daemon answers", || {
            assert!(
                process.is_running(),
                "the daemon ended at once:\n{}",
                self.node.log()
            );
            self.node.sluice("status --json").status == 0
        });
        *self.node.process() = Some(process);
    }

    /// Ends it as a crash would.
    pub fn kill9(self) {
        self.take().kill();
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    pub fn stop(self) {
        self.take().terminate(Signal::SIGTERM);
    }

    /// SIGHUP: read the config again.
    pub fn hup(self) {
        self.node
            .process()
            .as_ref()
            .expect("the daemon runs")
            .signal(Signal::SIGHUP);
    }

    /// `sluice reload`: as SIGHUP, but answers when it is done.
    pub fn reload(self) -> Output {
        self.node.sluice("reload")
    }

    pub fn pid(self) -> u32 {
        self.node.process().as_ref().expect("the daemon runs").id()
    }

    /// What it has used of CPUs since it started.
    pub fn cpu(self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the daemon runs");
        // A thread that ends meanwhile has no figure any more.
        let ns = tasks.flatten().filter_map(|task| -> Option<u64> {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse().ok()
        });
        Duration::from_nanos(ns.sum())
    }

    /// What it holds of memory, in MiB: its own, and all with mapped tables.
    pub fn memory_mib(self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the daemon runs");
        let mib = |name: &str| -> u64 {
            let field = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = field.and_then(|field| field.split_whitespace().next()?.parse::<u64>().ok());
            kib.expect("a number of KiB") / 1024
        };
        (mib("RssAnon:"), mib("VmRSS:"))
    }

    pub fn is_running(self) -> bool {
        self.node
            .process()
            .as_mut()
            .is_some_and(Process::is_running)
    }

    fn take(self) -> Process {
        self.node.process().take().expect("the daemon runs")
    }
}

impl Drop for Node {
    /// What the daemon said is worth most when a scenario failed.
    fn drop(&mut self) {
        let log = self.log();
        if std::thread::panicking() && !log.is_empty() {
            eprintln!("--- the daemon on l{} said:\n{log}---", self.index);
        }
    }
}

impl Output {
    /// # Panics
    /// If the command failed.
    pub fn succeeds(self) -> Self {
        assert_eq!(self.status, 0, "{}{}", self.stdout, self.stderr);
        self
    }

    /// # Panics
    /// If it did not print JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

impl From<process::Output> for Output {
    fn from(output: process::Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
