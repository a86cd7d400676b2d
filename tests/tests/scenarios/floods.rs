//! Floods of every kind that the filter ends by itself, each with good TCP, UDP and QUIC-like clients beside it.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use sluice_tests::{
    Conn, DNS_V4, Flood, Frames, Good, Lab, LabBuilder, UDP_PORT, VIPS_V4, WEB_V4, within,
};

const ATTACKER: &str = "198.51.100.0/24";
const BOTNET: &str = "203.0.0.0/16";
/// Sources that are all different, and nobody's.
const SPOOFED: &str = "16.0.0.0/4";
const FRAMES: u32 = 8192;
const FIN: u8 = 1;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Every stage on.
const POLICY: &str = r#"
amplification = ["all"]
out_of_state = { pps = 100, burst = 100 }
"#;
const LIMITS: &str = r#"[
    { class = "udp", per = "network", pps = 50, burst = 100 },
    { class = "icmp", per = "network", pps = 20, burst = 20 },
    { class = "other", per = "network", pps = 100, burst = 200 },
    { class = "syn", per = "network", pps = 50, burst = 100 },
]"#;

/// Client 0 is good, and many. Client 1 is in the attacker's prefix.
fn lab() -> LabBuilder {
    Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, "2001:db8:bad::/48"])
        .config(|config| {
            let mut config = config.policy("enforce", LIMITS);
            config.extra += POLICY;
            config
        })
}

/// A flood; most of what comes must be dropped as `dropped` counts.
#[track_caller]
pub(crate) fn is_dropped(
    lab: &Lab,
    flood: impl FnOnce() -> Flood,
    dropped: impl Fn() -> u64,
    meanwhile: impl FnOnce(),
) {
    let (before, came_before) = (dropped(), lab.node().received());
    let flood = flood();
    within(Duration::from_secs(20), "the flood runs", || {
        flood.sent() > 3_000
    });
    meanwhile();
    let sent = flood.stop();
    let dropped = dropped() - before;
    let came = lab.node().received() - came_before;
    assert!(
        dropped > came / 10 * 9 && dropped <= sent,
        "{dropped} of {came} that came dropped, {sent} sent"
    );
}

/// The same, and nothing may be dropped for another reason than `reason`.
#[track_caller]
pub(crate) fn is_dropped_for(
    lab: &Lab,
    reason: &str,
    flood: impl FnOnce() -> Flood,
    meanwhile: impl FnOnce(),
) {
    let others = || {
        let mut drops = lab.node().drops();
        drops.remove(reason);
        drops
    };
    let before = others();
    is_dropped(lab, flood, || lab.node().dropped_for(reason), meanwhile);
    assert_eq!(
        others(),
        before,
        "what else was dropped in a flood of {reason}"
    );
}

/// The same for frames from the router, beside good clients.
#[track_caller]
fn withstands(lab: &Lab, good: &mut Good, reason: &str, frames: impl Iterator<Item = Vec<u8>>) {
    let flood = || lab.flood(frames.collect());
    is_dropped_for(lab, reason, flood, || three_rounds(good));
}

fn three_rounds(good: &mut Good) {
    for _ in 0..3 {
        good.go_on(3);
        // No faster than what a limit grants to the good.
        thread::sleep(Duration::from_millis(300));
    }
}

fn from(prefix: &str) -> impl Iterator<Item = SocketAddr> {
    let prefix: IpNet = prefix.parse().expect("a prefix");
    Frames::sources(prefix, FRAMES)
}

#[test]
fn acks_resets_and_fins_out_of_state_cost_good_clients_nothing() {
    let lab = lab().start();
    let mut good = Good::new(lab.client(0));
    for flags in [ACK, RST, FIN | ACK] {
        let frames = from(SPOOFED).map(|source| lab.node().frames().tcp(source, WEB_V4, flags));
        withstands(&lab, &mut good, "out_of_state", frames);
    }
}

#[test]
fn floods_of_udp_icmp_and_fragments_cost_good_clients_nothing() {
    let lab = lab().start();
    let mut good = Good::new(lab.client(0));
    let frames = lab.node().frames();
    let udp = from(ATTACKER).map(|source| frames.udp(source, DNS_V4, b"flood"));
    withstands(&lab, &mut good, "limit_network", udp);
    let echo = from(ATTACKER)
        .map(|source| frames.echo_request(source.ip(), WEB_V4.ip(), source.port(), 1, &[7; 56]));
    withstands(&lab, &mut good, "limit_network", echo);
    let later = from(ATTACKER).map(|source| {
        let whole = frames.udp(source, DNS_V4, &[7; 100]);
        let [_, later] = frames.fragments(&whole, 48);
        later
    });
    withstands(&lab, &mut good, "limit_network", later);
    let later = from(SPOOFED).map(|source| {
        let whole = frames.tcp(source, WEB_V4, ACK);
        let [_, later] = frames.fragments(&whole, 16);
        later
    });
    withstands(&lab, &mut good, "out_of_state", later);
    let tiny = from(SPOOFED).map(|source| {
        let whole = frames.tcp(source, WEB_V4, ACK);
        let [first, _] = frames.fragments(&whole, 16);
        first
    });
    withstands(&lab, &mut good, "fragment_tiny", tiny);
}

#[test]
fn what_makes_no_sense_costs_good_clients_nothing() {
    let lab = lab().start();
    let mut good = Good::new(lab.client(0));
    let frames = lab.node().frames();
    let null = from(SPOOFED).map(|source| frames.tcp(source, WEB_V4, 0));
    withstands(&lab, &mut good, "tcp_flags", null);
    let loopback = from("127.0.0.0/8").map(|source| frames.syn(source, WEB_V4));
    withstands(&lab, &mut good, "source_invalid", loopback);
    let from_vips = from(VIPS_V4).filter(|source| source.ip() == DNS_V4.ip());
    let from_vips = from_vips.map(|source| frames.syn(source, WEB_V4));
    withstands(&lab, &mut good, "source_vip", from_vips);
    let land = (1..8192).map(|port| frames.syn(SocketAddr::new(WEB_V4.ip(), port), WEB_V4));
    withstands(&lab, &mut good, "land", land);
}

#[test]
fn carpet_bombing_over_a_network_of_vips_costs_good_clients_nothing() {
    let lab = lab()
        .config(|config| {
            let mut config = config.policy("enforce", LIMITS);
            config.extra += POLICY;
            let mut all = config.vip("dns4").clone();
            all.name = "all4".to_owned();
            all.address = VIPS_V4.to_owned();
            config.vips.push(all);
            config
        })
        .start();
    let mut good = Good::new(lab.client(0));
    let frames = lab.node().frames();
    let carpet = from(ATTACKER)
        .zip((0..=u8::MAX).cycle())
        .map(|(source, last)| {
            let to = SocketAddr::new(IpAddr::from([192, 0, 2, last]), UDP_PORT);
            frames.udp(source, to, b"flood")
        });
    let carpet: Vec<_> = carpet.collect();
    let dropped = || lab.node().dropped_for("limit_network");
    let meanwhile = || {
        good.go_on(3);
        for last in [9, 77, 200] {
            let to = SocketAddr::new(IpAddr::from([192, 0, 2, last]), UDP_PORT);
            let flow = good.newcomer(to).udp(to).expect("a socket");
            let answer = flow.ask_again(b"good");
            answer.unwrap_or_else(|error| panic!("{to} does not serve: {error}"));
        }
    };
    is_dropped(&lab, || lab.flood(carpet), dropped, meanwhile);
}

/// Bots that are real hosts: their connections are proven, and only the class `established` holds them.
#[test]
fn a_botnet_with_real_handshakes_costs_good_clients_nothing() {
    let lab = lab()
        .client(&[BOTNET])
        .config(|config| {
            let mut limits = LIMITS.to_owned();
            let established = r#"{ class = "established", per = "network", pps = 50, burst = 50 }"#;
            limits.insert_str(limits.len() - 1, established);
            let mut config = config.policy("enforce", &limits);
            config.extra += POLICY;
            config
        })
        .start();
    let mut good = Good::new(lab.client(0));
    let bots = lab.client(2);
    let mut conns: Vec<(SocketAddr, Conn)> = (0..32)
        .map(|network| SocketAddr::new(bots.address_in_network(WEB_V4, network * 8), 40_000))
        .map(|source| (source, bots.source_port(source).connect(WEB_V4)))
        .map(|(source, conn)| (source, conn.expect("a handshake")))
        .collect();
    // Flows are proven by some seconds of peace.
    for _ in 0..30 {
        for (_, conn) in &mut conns {
            conn.ask_who();
        }
        good.go_on(0);
        thread::sleep(Duration::from_millis(200));
    }
    within(Duration::from_secs(10), "all flows are proven", || {
        let proven = lab
            .node()
            .metric(r#"sluice_flow_table_entries{state="proven"}"#);
        proven >= (conns.len() + good.conns()) as u64
    });

    let frames = lab.node().frames();
    let acks = conns
        .iter()
        .map(|(source, _)| frames.tcp(*source, WEB_V4, ACK));
    let flood = || lab.flood(acks.collect());
    let dropped = || lab.node().dropped_for("limit_network");
    is_dropped(&lab, flood, dropped, || three_rounds(&mut good));
}

/// SSH of a host whose address is a VIP that takes every port, with everything on and under attack from the same network.
#[test]
fn the_host_itself_is_reached_under_every_flood() {
    let lab = Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&[ATTACKER, "2001:db8:bad::/48"])
        .config(|config| {
            let none = r#"[
                { class = "syn", per = "network", pps = 1, burst = 1 },
                { class = "other", per = "network", pps = 1, burst = 1 },
                { class = "udp", per = "network", pps = 1, burst = 1 },
            ]"#;
            let mut config = config.policy("enforce", none);
            config.extra += POLICY;
            let web = config.vip("web4");
            (web.port, web.forward) = (None, "local".to_owned());
            config
        })
        .start();
    let node = lab.node();
    node.serve_locally();
    let (ssh, bgp) = (22, 179);
    for port in [ssh, bgp] {
        let listener = node
            .netns()
            .run(|| TcpListener::bind(("0.0.0.0", port)))
            .expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                stream.write_all(b"host").expect("a short greeting");
            }
        });
    }
    let frames = node.frames();
    let flood = from(ATTACKER).flat_map(|source| {
        [
            frames.tcp(source, WEB_V4, ACK),
            frames.syn(source, WEB_V4),
            frames.udp(source, DNS_V4, b"flood"),
        ]
    });
    let flood = lab.flood(flood.collect());
    within(Duration::from_secs(20), "the flood runs", || {
        flood.sent() > 10_000
    });
    for address in [WEB_V4.ip(), node.v4()] {
        for port in [ssh, bgp] {
            for _ in 0..5 {
                let to = SocketAddr::new(address, port);
                let mut greeting = Vec::new();
                let stream = lab
                    .client(1)
                    .netns()
                    .run(|| std::net::TcpStream::connect(to));
                stream
                    .and_then(|mut stream| stream.read_to_end(&mut greeting))
                    .unwrap_or_else(|error| panic!("{to}: {error}"));
                assert_eq!(greeting, b"host", "{to}");
            }
        }
    }
    lab.wait_until_ready();
    assert!(flood.stop() > 10_000);
    assert!(node.dropped_for("limit_network") > 5_000);
}
