//! Builds the namespaces, cables, addresses and routes of a lab.

use std::{path::Path, process::Command, thread};

use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use ipnet::IpNet;
use sluice::objects::BENCH;

use crate::{
    BACK, FRONT, Mac, Netns, Segment, VIPS_V4, VIPS_V6,
    addresses::{ClientLink, ROUTER, backend_host, node_host, nth},
    netns::ip_batch,
    traces::Traces,
};

/// What is wanted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    /// Where the backends stand; the load balancers have an interface in `FRONT` and in this.
    pub(crate) backend_segment: Segment,
    pub(crate) backends: Vec<String>,
    /// The source prefixes of each client.
    pub(crate) clients: Vec<Vec<IpNet>>,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Topology {
    pub(crate) router: Netns,
    pub(crate) nodes: Vec<Netns>,
    pub(crate) backends: Vec<Netns>,
    pub(crate) clients: Vec<Netns>,
    /// Holds the links of the program on the router's ports.
    pub(crate) _pass: Ebpf,
}

/// Set before the interfaces come, for they copy the defaults. Settings of the machine may have been inherited, so all are set.
const SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    // A host answers ARP for its own addresses of that interface only: never for the VIPs on lo.
    ("ipv4/conf/all/arp_ignore", "1"),
    ("ipv4/conf/all/arp_announce", "2"),
    // Duplicate address detection would cost a second, in which IPv6 does not work.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // Sources and VIPs are whole prefixes that are routed to lo, and not addresses one by one.
    ("ipv4/ip_nonlocal_bind", "1"),
    ("ipv6/ip_nonlocal_bind", "1"),
];

const ROUTER_SYSCTLS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv4/fib_multipath_hash_policy", "1"),
    ("ipv6/fib_multipath_hash_policy", "1"),
];

/// Of a machine that has bridges show each frame to its firewall: the lab would pay for that, and the daemon for what it sends.
const BRIDGE_SYSCTLS: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
];

impl Plan {
    pub(crate) fn build(&self, traces: &Traces) -> Topology {
        let names = self.host_names();
        let namespaces: Vec<String> = names.iter().map(|name| traces.namespace(name)).collect();
        ip_batch(
            &namespaces
                .iter()
                .map(|name| format!("netns add {name}"))
                .collect::<Vec<_>>(),
        );
        let mut hosts = namespaces.into_iter().map(Netns::open);
        let router = hosts.next().expect("the router is the first");
        let nodes: Vec<Netns> = hosts.by_ref().take(self.nodes).collect();
        let backends: Vec<Netns> = hosts.by_ref().take(self.backends.len()).collect();
        let clients: Vec<Netns> = hosts.collect();

        let all = || nodes.iter().chain(&backends).chain(&clients);
        all().chain([&router]).for_each(|host| host.sysctl(SYSCTLS));
        router.sysctl(ROUTER_SYSCTLS);
        if router.run(|| Path::new("/proc/sys/net/bridge").exists()) {
            router.sysctl(BRIDGE_SYSCTLS);
        }
        router.ip(&self.cables(&nodes, &backends, &clients));
        router.ip(&self.router_routes());
        thread::scope(|scope| {
            scope.spawn(|| offloads_off(&router));
            for (index, node) in nodes.iter().enumerate() {
                scope.spawn(move || set_up(node, self.node_commands(index)));
            }
            for (index, backend) in backends.iter().enumerate() {
                scope.spawn(move || set_up(backend, self.backend_commands(index)));
            }
            for (index, client) in clients.iter().enumerate() {
                scope.spawn(move || set_up(client, self.client_commands(index)));
            }
        });
        let pass = self.attach_pass(&router);
        Topology {
            router,
            nodes,
            backends,
            clients,
            _pass: pass,
        }
    }

    /// The segments that a load balancer has an interface in.
    pub(crate) fn segments(&self) -> impl Iterator<Item = Segment> {
        [FRONT]
            .into_iter()
            .chain((self.backend_segment != FRONT).then_some(BACK))
    }

    fn host_names(&self) -> Vec<String> {
        let mut names = vec!["router".to_owned()];
        names.extend((0..self.nodes).map(|index| format!("l{index}")));
        names.extend(self.backends.iter().cloned());
        names.extend((0..self.clients.len()).map(|index| format!("c{index}")));
        names
    }

    /// Run in the router's namespace: its bridges, and the cables to everybody.
    fn cables(&self, nodes: &[Netns], backends: &[Netns], clients: &[Netns]) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        for segment in self.segments() {
            let bridge = segment.bridge();
            lines.extend([
                format!(
                    "link add {bridge} address {} type bridge stp_state 0 forward_delay 0 mcast_snooping 0 ageing_time 1000000",
                    mac(segment.mac(ROUTER))
                ),
                format!("link set {bridge} up"),
                format!("address add {}/24 dev {bridge}", segment.v4(ROUTER)),
                format!("address add {}/64 dev {bridge} nodad", segment.v6(ROUTER)),
            ]);
            for (index, node) in nodes.iter().enumerate() {
                let (port, interface) = (segment.node_port(index), segment.node_interface());
                lines.extend(bridged(segment, &port, node_host(index), node, &interface));
                // XDP sees every frame on the cable, and would balance anew what the bridge floods because it forgot where a
                // backend is. A card would filter that.
                lines.push(format!("link set {port} type bridge_slave flood off"));
            }
        }
        for (index, backend) in backends.iter().enumerate() {
            lines.extend(bridged(
                self.backend_segment,
                &self.backends[index],
                backend_host(index),
                backend,
                "eth0",
            ));
        }
        for (index, client) in clients.iter().enumerate() {
            let link = ClientLink::new(index);
            lines.push(cable(
                &link.port(),
                link.mac(ROUTER),
                client,
                "eth0",
                link.mac(2),
            ));
            lines.push(format!("link set {} up", link.port()));
            lines.push(format!(
                "address add {}/24 dev {}",
                link.v4(ROUTER),
                link.port()
            ));
            lines.push(format!(
                "address add {}/64 dev {} nodad",
                link.v6(ROUTER),
                link.port()
            ));
        }
        lines
    }

    /// To the clients' sources, and to the VIPs: over all load balancers alike. Answers to spoofed sources get lost.
    fn router_routes(&self) -> Vec<String> {
        let mut lines = vec![
            "route add blackhole 0.0.0.0/0".to_owned(),
            "route add blackhole ::/0".to_owned(),
        ];
        for (index, prefixes) in self.clients.iter().enumerate() {
            let link = ClientLink::new(index);
            lines.extend(prefixes.iter().map(|prefix| match prefix {
                IpNet::V4(_) => {
                    format!("route add {prefix} via {} dev {}", link.v4(2), link.port())
                }
                IpNet::V6(_) => {
                    format!("route add {prefix} via {} dev {}", link.v6(2), link.port())
                }
            }));
        }
        lines.extend(vip_routes(0..self.nodes));
        lines
    }

    fn node_commands(&self, index: usize) -> Vec<String> {
        let host = node_host(index);
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(
            self.segments()
                .flat_map(|segment| addresses(segment, host, &segment.node_interface())),
        );
        lines.extend(FRONT.default_routes());
        lines
    }

    fn backend_commands(&self, index: usize) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(addresses(self.backend_segment, backend_host(index), "eth0"));
        lines.extend(self.backend_segment.default_routes());
        lines.extend(vips_on_lo());
        lines
    }

    fn client_commands(&self, index: usize) -> Vec<String> {
        let link = ClientLink::new(index);
        let mut lines = vec![
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("address add {}/24 dev eth0", link.v4(2)),
            format!("address add {}/64 dev eth0 nodad", link.v6(2)),
        ];
        for prefix in &self.clients[index] {
            lines.push(match prefix {
                IpNet::V4(_) => format!("route add local {prefix} dev lo"),
                IpNet::V6(_) => format!("route add local {prefix} dev lo"),
            });
        }
        let source = |v4: bool| {
            let prefix = self.clients[index]
                .iter()
                .find(|prefix| matches!(prefix, IpNet::V4(_)) == v4);
            prefix.map(|&prefix| nth(prefix, 2))
        };
        if let Some(source) = source(true) {
            lines.push(format!("address add {source}/32 dev lo"));
            lines.push(format!(
                "route add default via {} dev eth0 src {source}",
                link.v4(ROUTER)
            ));
        }
        if let Some(source) = source(false) {
            lines.push(format!("address add {source}/128 dev lo nodad"));
            lines.push(format!(
                "route add default via {} dev eth0 src {source}",
                link.v6(ROUTER)
            ));
        }
        lines
    }

    /// What XDP sends out of a veth vanishes unless its far end runs XDP too: there the receiving ring belongs to it.
    fn attach_pass(&self, router: &Netns) -> Ebpf {
        let mut programs = Ebpf::load(BENCH).expect("the bench object loads");
        let pass: &mut Xdp = programs
            .program_mut("pass")
            .expect("the bench object holds `pass`")
            .try_into()
            .expect("it is for XDP");
        pass.load()
            .expect("a program that passes everything is accepted");
        router.run(|| {
            for segment in self.segments() {
                for node in 0..self.nodes {
                    let port = segment.node_port(node);
                    pass.attach(&port, XdpMode::Driver)
                        .unwrap_or_else(|error| panic!("no XDP on {port}: {error}"));
                    // With a queue, a sender that is faster than the load balancer has to wait (Linux 6.16 and up);
                    // without, what does not fit into the 256 places of the cable is lost, a good frame like any other.
                    router.command("tc", &["qdisc", "add", "dev", &port, "root", "pfifo"]);
                }
            }
        });
        programs
    }
}

/// The router's routes to the VIPs, over these load balancers alike, in the place of those before.
pub(crate) fn vip_routes(nodes: impl Iterator<Item = usize> + Clone) -> [String; 2] {
    let nexthops = |address: fn(u8) -> String| -> String {
        let hop = |index| {
            let via = address(node_host(index));
            format!(" nexthop via {via} dev {}", FRONT.bridge())
        };
        nodes.clone().map(hop).collect()
    };
    [
        format!(
            "route replace {VIPS_V4}{}",
            nexthops(|host| FRONT.v4(host).to_string())
        ),
        format!(
            "route replace {VIPS_V6}{}",
            nexthops(|host| FRONT.v6(host).to_string())
        ),
    ]
}

/// So that a host answers for every VIP, as a backend of direct server return does.
pub(crate) fn vips_on_lo() -> [String; 2] {
    [
        format!("route add local {VIPS_V4} dev lo"),
        format!("route add local {VIPS_V6} dev lo"),
    ]
}

fn bridged(segment: Segment, port: &str, host: u8, netns: &Netns, interface: &str) -> [String; 2] {
    [
        cable(
            port,
            segment.port_mac(host),
            netns,
            interface,
            segment.mac(host),
        ),
        format!("link set {port} master {} up", segment.bridge()),
    ]
}

fn cable(port: &str, port_mac: Mac, netns: &Netns, interface: &str, interface_mac: Mac) -> String {
    format!(
        "link add {port} address {} type veth peer name {interface} address {} netns {}",
        mac(port_mac),
        mac(interface_mac),
        netns.name()
    )
}

fn addresses(segment: Segment, host: u8, interface: &str) -> [String; 3] {
    [
        format!("link set {interface} up"),
        format!("address add {}/24 dev {interface}", segment.v4(host)),
        format!("address add {}/64 dev {interface} nodad", segment.v6(host)),
    ]
}

fn set_up(host: &Netns, commands: Vec<String>) {
    host.ip(&commands);
    offloads_off(host);
}

/// A veth leaves checksums and segmentation to a card that does not exist; XDP would send such packets on as they are.
fn offloads_off(host: &Netns) {
    const EACH: &str = "for i in $(ls /proc/sys/net/ipv4/conf); do case $i in all|default|lo|pop*) ;; *) \
                        ethtool -K $i tx off tso off gso off gro off >/dev/null || exit 1;; esac; done";
    let output = host
        .run(|| Command::new("sh").args(["-c", EACH]).output())
        .expect("sh runs");
    assert!(
        output.status.success(),
        "in {} (install ethtool): {}",
        host.name(),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
