//! A backend: its servers, its cable, and taking tunnels off.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard},
};

use nix::sys::signal::Signal;

use crate::{Mac, Netns, RawSocket, Segment, binary, eventually, process::Process, server::Server};

#[derive(Debug)]
pub struct Backend {
    name: String,
    netns: Netns,
    segment: Segment,
    host: u8,
    dir: PathBuf,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    server: Option<Server>,
    decap: Option<Process>,
    agent: Option<Process>,
}

impl Backend {
    pub(crate) fn new(name: &str, netns: Netns, segment: Segment, host: u8, dir: &Path) -> Self {
        let this = Self {
            name: name.to_owned(),
            netns,
            segment,
            host,
            dir: dir.to_path_buf(),
            running: Mutex::default(),
        };
        this.start();
        this
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn v4(&self) -> IpAddr {
        self.segment.v4(self.host).into()
    }

    pub fn v6(&self) -> IpAddr {
        self.segment.v6(self.host).into()
    }

    pub fn mac(&self) -> Mac {
        self.segment.mac(self.host)
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Everything that comes to it or leaves it.
    pub fn raw(&self) -> RawSocket {
        RawSocket::open(&self.netns, "eth0")
    }

    /// Ends its servers: the host stays up, and refuses connections.
    pub fn stop(&self) {
        self.running().server = None;
    }

    pub fn start(&self) {
        let mut running = self.running();
        running.server = None;
        running.server = Some(Server::start(&self.netns, &self.name));
    }

    /// Pulls the cable: nothing answers, ARP and ND included.
    pub fn unplug(&self) {
        self.netns.command("ip", &["link", "set", "eth0", "down"]);
    }

    /// Puts the cable back in. A link that goes down takes its IPv6 addresses and all its routes along.
    pub fn plug(&self) {
        let mut lines = vec!["link set eth0 up".to_owned()];
        lines.push(format!("address replace {}/64 dev eth0 nodad", self.v6()));
        lines.extend(self.segment.default_routes());
        self.netns.ip(&lines);
    }

    /// Runs `sluice decap` here, which backends behind `ipip` and `gue` need.
    pub fn decap(&self) {
        let mut command = Command::new(binary::sluice());
        command.args(["decap", "--interface", "eth0"]);
        let process = Process::start(
            &self.netns,
            command,
            &self.dir.join(format!("decap-{}.log", self.name)),
        );
        self.running().decap = Some(process);
        eventually("decap is attached", || self.netns.has_xdp("eth0"));
    }

    /// Runs `sluice backend` here, which takes the load balancers' SYN cookies.
    pub fn take_cookies(&self) {
        let mut command = Command::new(binary::sluice());
        command
            .args(["backend", "--interface", "eth0", "--secret-file"])
            .arg(self.dir.join("secret"));
        let log = self.dir.join(format!("agent-{}.log", self.name));
        // What an earlier one said is not this one's word.
        let _ = std::fs::remove_file(&log);
        let process = Process::start(&self.netns, command, &log);
        self.running().agent = Some(process);
        eventually("the agent takes cookies", || {
            std::fs::read_to_string(&log).is_ok_and(|said| said.contains("taking SYN cookies"))
        });
    }

    /// Ends `sluice backend` as Ctrl-C does.
    pub fn take_no_cookies(&self) {
        let agent = self.running().agent.take().expect("it runs");
        agent.terminate(Signal::SIGINT);
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().expect("nothing panics with the lock")
    }
}
