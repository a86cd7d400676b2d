//! A whole lab: asked for in one expression, gone when dropped.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Once,
};

use aya::Ebpf;
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    BACK, Backend, Capture, Client, Config, Daemon, FRONT, Flood, Netns, Node, Output, RawSocket,
    Segment, Turn,
    addresses::{ClientLink, backend_host},
    eventually,
    topology::{Plan, vip_routes},
    traces::{Traces, remove_stale_labs},
};

/// Fields are dropped from top to bottom: processes, then the namespaces that they are in.
#[derive(Debug)]
pub struct Lab {
    config: Config,
    nodes: Vec<Node>,
    backends: Vec<Backend>,
    clients: Vec<Client>,
    router: Netns,
    _pass: Ebpf,
    traces: Traces,
    _turn: Turn,
}

/// Of one load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cables {
    Plugged,
    Pulled,
}

/// What a lab shall be. Without a word: one load balancer, backends `b1` to `b3`, one client.
#[must_use]
pub struct LabBuilder {
    plan: Plan,
    config: Box<dyn FnOnce(Config) -> Config>,
    turn: Box<dyn FnOnce() -> Turn>,
}

impl Lab {
    #[expect(
        clippy::new_ret_no_self,
        reason = "a lab is asked for first, and built by `start`"
    )]
    pub fn new() -> LabBuilder {
        LabBuilder {
            plan: Plan {
                nodes: 1,
                backend_segment: FRONT,
                backends: ["b1", "b2", "b3"].map(String::from).to_vec(),
                clients: Vec::new(),
            },
            config: Box::new(|config| config),
            turn: Box::new(Turn::shared),
        }
    }

    /// The config that the lab began with, to write a changed one.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// Writes a config for every load balancer; `reload` makes the daemons read it.
    pub fn write_config(&self, config: &Config) {
        self.nodes
            .iter()
            .for_each(|node| node.write_config(&node.config_text(config)));
    }

    /// Writes a config, and makes the first daemon read it.
    pub fn reload(&self, config: &Config) -> Output {
        self.write_config(config);
        self.daemon().reload()
    }

    /// The first, and mostly only, load balancer.
    pub fn node(&self) -> &Node {
        &self.nodes[0]
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn daemon(&self) -> Daemon<'_> {
        self.node().daemon()
    }

    /// Runs the command line on the first load balancer.
    pub fn sluice(&self, line: &str) -> Output {
        self.node().sluice(line)
    }

    pub fn client(&self, index: usize) -> &Client {
        &self.clients[index]
    }

    /// Makes one host all backends of a network: by its routes, and those of the load balancer, all these addresses are its
    /// own. They have a cable of their own: what a bridge does with a frame would count as work of who sent it.
    pub fn many_backends(&self, name: &str, network: &str) {
        let (node, host) = (self.node().netns(), self.backend(name).netns());
        let cable = format!(
            "link add many type veth peer name many netns {}",
            host.name()
        );
        node.ip(&[
            cable,
            "address add 10.255.0.1/30 dev many".into(),
            "link set many up".into(),
        ]);
        host.ip(&[
            "address add 10.255.0.2/30 dev many".into(),
            "link set many up".into(),
            format!("route add local {network} dev lo"),
        ]);
        node.ip(&[format!("route add {network} via 10.255.0.2")]);
    }

    pub fn backend(&self, name: &str) -> &Backend {
        self.backends
            .iter()
            .find(|backend| backend.name() == name)
            .unwrap_or_else(|| panic!("no backend {name}"))
    }

    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// The name of the backend with this address.
    pub fn backend_at(&self, address: IpAddr) -> &str {
        let found = self
            .backends
            .iter()
            .find(|backend| backend.v4() == address || backend.v6() == address);
        found
            .unwrap_or_else(|| panic!("no backend at {address}"))
            .name()
    }

    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// Has the router spread flows over these load balancers only, by their five-tuples.
    pub fn route_vips_to(&self, nodes: &[usize]) {
        self.router.ip(&vip_routes(nodes.iter().copied()));
    }

    /// Pulls a load balancer's cables, or puts them back.
    pub fn set_cables(&self, node: usize, state: Cables) {
        let state = match state {
            Cables::Plugged => "up",
            Cables::Pulled => "down",
        };
        let ports = self.nodes[node].port_names();
        let lines: Vec<_> = ports
            .map(|port| format!("link set {port} {state}"))
            .collect();
        self.router.ip(&lines);
    }

    /// The cable between the router and the first load balancer, at the router's end.
    pub fn uplink(&self) -> RawSocket {
        RawSocket::open(&self.router, &self.node().port_name())
    }

    /// The same, to send only: the highest rate is reached from here.
    pub fn uplink_sender(&self) -> RawSocket {
        RawSocket::sender(&self.router, &self.node().port_name())
    }

    /// Floods the first load balancer from its router, which is the fastest way.
    pub fn flood(&self, frames: Vec<Vec<u8>>) -> Flood {
        Flood::start(self.uplink_sender(), frames)
    }

    /// Sends frames as a flood does, but so few that nobody else feels it.
    pub fn trickle(&self, frames: Vec<Vec<u8>>) -> Flood {
        Flood::trickle(self.uplink_sender(), frames)
    }

    /// Config, logs, captures.
    pub fn dir(&self) -> PathBuf {
        self.traces.dir()
    }

    /// Writes what passes an interface to `<name>.pcap` in `into`, until the capture is dropped.
    pub fn capture(&self, netns: &Netns, interface: &str, into: &Path) -> Capture {
        Capture::start(
            netns,
            interface,
            &into.join(format!("{}-{interface}.pcap", netns.name())),
        )
    }

    fn start_daemons(self) -> Self {
        self.nodes.iter().for_each(|node| node.daemon().start());
        self.wait_until_ready();
        self
    }

    /// Waits until every backend of the config can be forwarded to.
    pub fn wait_until_ready(&self) {
        self.wait_until_ready_except("");
    }

    /// The same, whatever becomes of one backend.
    pub fn wait_until_ready_except(&self, name: &str) {
        let backends = || self.config.pools.iter().flat_map(|pool| &pool.backends);
        let wanted: Vec<&str> = backends()
            .filter(|backend| backend.name != name)
            .map(|backend| backend.address.as_str())
            .collect();
        let ready = |row: &Value| row["state"] == "up" && row["resolved"] == true;
        for node in &self.nodes {
            eventually("all backends are up and resolved", || {
                let rows = node.items("backends");
                wanted.iter().all(|address| {
                    rows.iter()
                        .any(|row| row["address"] == *address && ready(row))
                })
            });
        }
    }
}

impl LabBuilder {
    pub fn load_balancers(mut self, count: usize) -> Self {
        self.plan.nodes = count;
        self
    }

    pub fn backends<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        self.plan.backends = names.into_iter().map(String::from).collect();
        self
    }

    /// So many clients with a /24 and a /64 each.
    pub fn clients(mut self, count: usize) -> Self {
        for _ in 0..count {
            let prefixes = ClientLink::new(self.plan.clients.len()).default_prefixes();
            self.plan.clients.push(prefixes);
        }
        self
    }

    /// One more client, which may use every address of these prefixes.
    pub fn client(mut self, prefixes: &[&str]) -> Self {
        let parse = |prefix: &&str| {
            prefix
                .parse::<IpNet>()
                .unwrap_or_else(|error| panic!("{prefix}: {error}"))
        };
        self.plan.clients.push(prefixes.iter().map(parse).collect());
        self
    }

    /// The load balancers get two interfaces: one to the router, one to the backends.
    pub fn two_interfaces(mut self) -> Self {
        self.plan.backend_segment = BACK;
        self
    }

    /// Has its [turn](Turn) before others: for what needs half a minute and more.
    pub fn first(mut self) -> Self {
        self.turn = Box::new(Turn::first);
        self
    }

    /// Has its [turn](Turn) beside others that mostly wait, and must keep their pace.
    pub fn quiet(mut self) -> Self {
        self.turn = Box::new(Turn::quiet);
        self
    }

    /// Waits for a [turn](Turn) alone: for floods.
    pub fn alone(mut self) -> Self {
        self.turn = Box::new(Turn::alone);
        self
    }

    /// Waits for nobody, because it shares this turn.
    pub fn beside(mut self, turn: &Turn) -> Self {
        let turn = turn.beside();
        self.turn = Box::new(|| turn);
        self
    }

    /// Changes the standard config: all backends in the pools `v4` and `v6`, four VIPs by `l2`.
    pub fn config(mut self, change: impl FnOnce(Config) -> Config + 'static) -> Self {
        self.config = Box::new(change);
        self
    }

    /// As `start`, but every backend takes tunnels off.
    pub fn start_with_decap(self) -> Lab {
        let lab = self.build();
        lab.backends.iter().for_each(Backend::decap);
        lab.start_daemons()
    }

    /// Builds the lab and starts the daemons; returns when all backends are ready.
    pub fn start(self) -> Lab {
        self.build().start_daemons()
    }

    /// Builds the lab with its config, but starts no daemon.
    pub fn build(mut self) -> Lab {
        static STALE: Once = Once::new();
        STALE.call_once(remove_stale_labs);
        if self.plan.clients.is_empty() {
            self = self.clients(1);
        }
        let Self { plan, config, turn } = self;
        let turn = turn();
        let traces = Traces::new();
        let topology = plan.build(&traces);
        let dir = traces.dir();
        fs::write(dir.join("secret"), [7; 32]).expect("the lab's directory is writable");

        let segments: Vec<Segment> = plan.segments().collect();
        let node = |(index, netns)| Node::new(index, netns, &dir, traces.pin_dir(index), &segments);
        let backend = |((index, netns), name): ((usize, Netns), &String)| {
            Backend::new(name, netns, plan.backend_segment, backend_host(index), &dir)
        };
        let backends: Vec<Backend> = topology
            .backends
            .into_iter()
            .enumerate()
            .zip(&plan.backends)
            .map(backend)
            .collect();
        let addresses: Vec<_> = backends
            .iter()
            .map(|backend| {
                (
                    backend.name().to_owned(),
                    backend.v4().to_string(),
                    backend.v6().to_string(),
                )
            })
            .collect();
        let lab = Lab {
            config: config(Config::standard(&addresses)),
            nodes: topology.nodes.into_iter().enumerate().map(node).collect(),
            backends,
            clients: topology
                .clients
                .into_iter()
                .zip(plan.clients)
                .enumerate()
                .map(|(index, (netns, prefixes))| Client::new(netns, index, prefixes))
                .collect(),
            router: topology.router,
            _pass: topology._pass,
            traces,
            _turn: turn,
        };
        lab.write_config(&lab.config);
        lab
    }
}
