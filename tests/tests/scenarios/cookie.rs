//! SYN cookies: load balancers answer SYNs, and the agent on a backend (`sluice backend`) makes connections of ACKs that show a
//! cookie, and of nothing else.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpSlice, TransportSlice};
use sluice::{
    backend::{Agent, Link},
    cookie::key,
};
use sluice_ebpf::{
    cookie::{self, Cookie, Offer, Terms},
    hash::Tuple,
    packet::mapped,
};
use sluice_tests::{
    Conn, Good, HTTP_PORT, Lab, LabBuilder, Netns, RawSocket, WEB_V4, WEB_V6, eventually, within,
};

use crate::challenge::{SPOOFED, connect_times, median};

/// Of the lab's secret file.
const SECRET: [u8; 32] = [7; 32];

const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\n\r\n";

const ALWAYS: &str = r#"{ mode = "always", defence = "cookie" }"#;
/// What it may take to connect, in the middle of many: a client that has to send anything again takes ten times as long.
const AT_ONCE: Duration = Duration::from_millis(10);
/// And at most: it sends its SYN again after a second.
const SOON: Duration = Duration::from_millis(900);

/// SYNs are treated like this, and every backend takes cookies.
fn start(syn: &'static str) -> Lab {
    with_agents(crate::challenge::lab(syn))
}

fn with_agents(builder: LabBuilder) -> Lab {
    let lab = builder.start();
    lab.backends().iter().for_each(|it| it.take_cookies());
    lab
}

#[test]
fn clients_connect_by_cookies_at_once_and_no_backend_sees_a_syn() {
    let lab = start(ALWAYS);
    let watched: Vec<RawSocket> = lab.backends().iter().map(|it| it.raw()).collect();
    for (vip, name) in [(WEB_V4, "web4"), (WEB_V6, "web6")] {
        let times = connect_times(lab.client(0), vip, 10..120);
        assert!(median(&times) < AT_ONCE && times[109] < SOON, "{times:?}");
        println!(
            "{name}: {:?} in the middle, {:?} at most",
            median(&times),
            times[109]
        );
        assert!(cookies(&lab, name, "sent") >= 110);
        assert!(cookies(&lab, name, "taken") >= 110);
        assert_eq!(cookies(&lab, name, "refused"), 0);
        let url = format!("http://{vip}/who");
        let curl = ["-sSf", "--max-time", "5", &url];
        let who = lab.client(0).netns().command("curl", &curl);
        let mut names = lab.backends().iter().map(|it| it.name());
        assert!(names.any(|name| name == who.trim()), "{who}");
    }
    assert_eq!(lab.node().dropped("enforce"), 0);
    for raw in watched {
        assert_eq!(syns_to_vips(&raw), 0);
    }
}

/// Windows, segments, timestamps: both kernels must have the same idea of a handshake that neither made.
#[test]
fn data_flow_both_ways_over_cookies_with_all_options() {
    let lab = start(ALWAYS);
    for vip in [WEB_V4, WEB_V6] {
        let client = lab.client(0);
        let mut conn = client.connect(vip).unwrap();
        moves_data(&mut conn);
        let backend = lab.backend(conn.backend()).netns();
        let (ours, theirs) = (
            ss(client.netns(), "dport = :80"),
            ss(backend, "sport = :80"),
        );
        let [sent, received] = scales(&ours);
        assert_eq!(sent, "7", "{ours}");
        assert_eq!(scales(&theirs), [received, sent], "{theirs}");
        for side in [&ours, &theirs] {
            assert!(side.contains(" ts ") && side.contains(" sack "), "{side}");
        }
    }
}

#[test]
fn cookies_work_behind_tunnels() {
    for forward in ["ipip", "gue"] {
        let lab = Lab::new()
            .config(move |config| {
                let mut config = config.policy("enforce", "[]").forward(forward);
                config.extra += &format!("syn = {ALWAYS}\n");
                config
            })
            .start_with_decap();
        lab.backends().iter().for_each(|it| it.take_cookies());
        for vip in [WEB_V4, WEB_V6] {
            moves_data(&mut lab.client(0).connect(vip).unwrap());
        }
        assert_eq!(lab.node().dropped("enforce"), 0, "{forward}");
    }
}

/// Only who shows a good cookie gets in, beside as much as the budget for what is out of state lets in.
#[test]
fn acks_without_a_good_cookie_are_dropped() {
    let lab = with_agents(Lab::new().config(|config| {
        let mut config = config.policy("enforce", "[]");
        config.extra += &format!("syn = {ALWAYS}\nout_of_state = {{ pps = 1, burst = 1 }}\n");
        config
    }));
    let raw = lab.client(0).raw();
    for port in 2000..2300 {
        let from = SocketAddr::new(lab.client(0).address(WEB_V4, 9), port);
        let guess = 77 * u32::from(port);
        raw.send(&segment(&lab, from, WEB_V4, 1001, guess, b"forged"));
    }
    eventually("nearly all are dropped", || {
        lab.node().dropped_for("cookie") >= 290
    });
    assert!(cookies(&lab, "web4", "refused") >= 290);
    for _ in 0..10 {
        lab.client(0).who(WEB_V4).unwrap();
    }
    assert_eq!(cookies(&lab, "web4", "taken"), 10);
}

/// While SYNs of forged sources come at the highest rate, no backend gets one, new clients connect as in peace, and
/// those that were there go on.
#[test]
fn a_flood_of_forged_syns_is_answered_with_cookies_and_keeps_nobody_out() {
    let syn = r#"{ mode = "auto", defence = "cookie", above_pps = 2_000, hold = "2s" }"#;
    let builder = crate::challenge::lab(syn).alone();
    let lab = with_agents(builder.client(&Good::PREFIXES));
    let client = lab.client(0);
    let mut good = Good::new(client);
    assert_eq!(cookies(&lab, "web4", "sent"), 0, "no flood");

    let frames = lab.node().frames();
    let forged = frames.syn_flood(SPOOFED.parse().unwrap(), 8192);
    let flood = lab.flood(forged);
    within(Duration::from_secs(5), "SYNs are answered", || {
        cookies(&lab, "web4", "sent") > 10_000
    });
    let watched: Vec<RawSocket> = lab.backends().iter().map(|it| it.raw()).collect();
    let seen_by_backends = || watched.iter().map(syns_to_vips).sum::<usize>();
    // None for a while: what waits in a queue of a busy machine comes late.
    let mut looks = 0;
    eventually("SYNs from before the defence have all come", || {
        looks = if seen_by_backends() == 0 {
            looks + 1
        } else {
            0
        };
        looks == 10
    });
    let v4 = good.beside(|| connect_times(client, WEB_V4, 10..110));
    good.go_on(1);
    let syns = seen_by_backends();
    let rate = flood.packets_per_second();
    let sent = flood.stop();
    println!(
        "figure: 100 new connections by cookies under {sent} forged SYNs, {} of them answered, {rate:.0} a second: {:?} in the middle, {:?} at most",
        cookies(&lab, "web4", "sent"),
        median(&v4),
        v4[99]
    );
    let late = v4.iter().filter(|time| **time > SOON);
    assert!(late.count() <= 1, "{v4:?}");
    assert!(median(&v4) < AT_ONCE, "{v4:?}");
    assert_eq!(syns, 0);

    within(Duration::from_secs(10), "it ends", || {
        let sent = cookies(&lab, "web4", "sent");
        client.who(WEB_V4).unwrap();
        cookies(&lab, "web4", "sent") == sent
    });
}

#[test]
fn a_cookie_of_one_load_balancer_is_good_at_another() {
    let lab = with_agents(crate::challenge::lab(ALWAYS).load_balancers(2));
    let raw = lab.client(0).raw();
    for (first, second, port) in [(0, 1, 2001), (1, 0, 2002)] {
        let from = SocketAddr::new(lab.client(0).address(WEB_V4, 9), port);
        lab.route_vips_to(&[first]);
        raw.send(&lab.client(0).frames().syn(from, WEB_V4));
        let isn = raw.find(|frame| {
            let tcp = tcp_of(frame, port)?;
            (tcp.syn() && tcp.ack()).then(|| tcp.sequence_number())
        });
        let ack = isn.expect("the SYN is answered").wrapping_add(1);
        lab.route_vips_to(&[second]);
        raw.send(&segment(&lab, from, WEB_V4, 2, ack, REQUEST));
        assert_eq!(answer_to(&raw, port), Some(true), "{first} to {second}");
    }
    for node in lab.nodes() {
        let metrics = node.metrics();
        assert!(
            metrics.contains("sluice_cookies_total{vip=\"web4\",event=\"taken\"} 1\n"),
            "{metrics}"
        );
    }
}

/// Three megabytes to the client, two from it.
fn moves_data(conn: &mut Conn) {
    let body = conn.get("/bytes/3000000").unwrap().body;
    let sent: Vec<u8> = (0..3_000_000usize)
        .map(|place| (place % 251).to_le_bytes()[0])
        .collect();
    assert!(body == sent, "data are not what was sent");
    assert_eq!(conn.post(2_000_000).unwrap().status, 200);
}

fn ss(netns: &Netns, filter: &str) -> String {
    netns.command("ss", &["-tinoH", "state", "established", filter])
}

/// What windows are shifted by, as `ss` tells: of those that are sent to the host, and of its own.
fn scales(said: &str) -> [&str; 2] {
    let both = said.split_once("wscale:").expect("it tells scales").1;
    let both = both.split_once(' ').expect("and more").0;
    both.split_once(',').expect("two").into()
}

/// What the metrics say of cookies.
fn cookies(lab: &Lab, vip: &str, event: &str) -> u64 {
    let series = format!("sluice_cookies_total{{vip=\"{vip}\",event=\"{event}\"}}");
    lab.node().metric(&series)
}

/// SYNs to the web VIPs among what came so far.
fn syns_to_vips(raw: &RawSocket) -> usize {
    let mut count = 0;
    while let Some(frame) = raw.receive(Duration::from_millis(50)) {
        let Ok(packet) = SlicedPacket::from_ethernet(&frame) else {
            continue;
        };
        let to: IpAddr = match packet.net {
            Some(NetSlice::Ipv4(ip)) => ip.header().destination_addr().into(),
            Some(NetSlice::Ipv6(ip)) => ip.header().destination_addr().into(),
            _ => continue,
        };
        if let Some(TransportSlice::Tcp(tcp)) = packet.transport {
            let syn = tcp.syn() && !tcp.ack();
            count += usize::from(syn && [WEB_V4.ip(), WEB_V6.ip()].contains(&to));
        }
    }
    count
}

#[test]
fn an_ack_with_a_cookie_is_a_connection_and_one_without_is_none() {
    let lab = Lab::new().build();
    let backend = lab.backend("b1");
    let key = key(&SECRET);
    let mut agent = Agent::load(&[key], &[], 7, Link::Ethernet).unwrap();
    backend.netns().run(|| agent.attach("eth0")).unwrap();

    let to = SocketAddr::new(backend.v4(), HTTP_PORT);
    let raw = lab.client(0).raw();
    let cases = [
        (4001, 0, 0, true),
        (4002, 0, 1, false),
        (4003, 0, 1 << 8, false),
        (4004, 1, 0, true),
        (4005, 2, 0, false),
    ];
    for (port, epochs_ago, wrong, expected) in cases {
        let from = SocketAddr::new(lab.client(0).address(to, 77), port);
        let isn = cookie_of(&key, from, to, 1000, epochs_ago) ^ wrong;
        raw.send(&segment(&lab, from, to, 1001, isn.wrapping_add(1), REQUEST));
        assert_eq!(answer_to(&raw, port), Some(expected), "{port}");
    }
    let stats = agent.stats().unwrap();
    assert_eq!((stats.accepted, stats.refused), (2, 0), "{stats:?}");
}

#[test]
fn the_command_takes_cookies_until_it_is_interrupted() {
    let lab = Lab::new().build();
    let backend = lab.backend("b1");
    let to = SocketAddr::new(backend.v4(), HTTP_PORT);
    let raw = lab.client(0).raw();
    let shows = |port| {
        let from = SocketAddr::new(lab.client(0).address(to, 77), port);
        let isn = cookie_of(&key(&SECRET), from, to, 1000, 0);
        raw.send(&segment(&lab, from, to, 1001, isn.wrapping_add(1), REQUEST));
        answer_to(&raw, port)
    };
    assert_eq!(shows(4001), Some(false));
    backend.take_cookies();
    assert_eq!(shows(4002), Some(true));
    // Who shakes hands with the backend itself is not bothered.
    assert_eq!(lab.client(0).who(to).unwrap(), "b1");
    backend.take_no_cookies();
    assert_eq!(shows(4003), Some(false));
}

fn cookie_of(
    key: &[u64; 2],
    from: SocketAddr,
    to: SocketAddr,
    client_isn: u32,
    epochs_ago: u32,
) -> u32 {
    let word = |address: SocketAddr| match address.ip() {
        IpAddr::V4(v4) => mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(_) => panic!("IPv4 only"),
    };
    let tuple = Tuple {
        source: word(from),
        destination: word(to),
        ports: u32::from(from.port().to_be()) | u32::from(to.port().to_be()) << 16,
        protocol: 6,
        v6: false,
    };
    let terms = Terms {
        timestamps: false,
        server_scale: 7,
    };
    let offer = Offer {
        mss: 1460,
        window_scale: 5,
        sack: true,
        ecn: false,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let epoch = cookie::epoch(now.as_millis().try_into().unwrap()) - epochs_ago;
    let offer = offer.pack(false);
    let hash = cookie::hash(key, &tuple, client_isn, cookie::bound(terms, offer, epoch));
    Cookie::new(hash, offer).isn
}

/// An ACK with data.
fn segment(
    lab: &Lab,
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    ack: u32,
    data: &[u8],
) -> Vec<u8> {
    let frames = lab.client(0).frames();
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else {
        panic!("IPv4 only");
    };
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(frames.from, frames.to)
        .ipv4(source.octets(), destination.octets(), 64)
        .tcp(from.port(), to.port(), sequence, 64240)
        .ack(ack)
        .psh()
        .write(&mut frame, data)
        .unwrap();
    frame
}

/// Whether what comes to this port is an acknowledgement (or a reset, or nothing).
fn answer_to(raw: &RawSocket, port: u16) -> Option<bool> {
    raw.find(|frame| {
        let tcp = tcp_of(frame, port)?;
        (!tcp.syn()).then(|| tcp.ack() && !tcp.rst())
    })
}

fn tcp_of(frame: &[u8], port: u16) -> Option<TcpSlice<'_>> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Tcp(tcp) if tcp.destination_port() == port => Some(tcp),
        _ => None,
    }
}
