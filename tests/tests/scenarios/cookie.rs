//! The agent on a backend (`sluice backend`): makes connections of ACKs that show a SYN cookie, and of nothing else.

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use etherparse::{PacketBuilder, SlicedPacket, TcpSlice, TransportSlice};
use sluice::{
    backend::{Agent, Link},
    cookie::key,
};
use sluice_ebpf::{
    cookie::{self, Cookie, Offer, Terms},
    hash::Tuple,
    packet::mapped,
};
use sluice_tests::{HTTP_PORT, Lab, RawSocket};

/// Of the lab's secret file.
const SECRET: [u8; 32] = [7; 32];

const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\n\r\n";

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
