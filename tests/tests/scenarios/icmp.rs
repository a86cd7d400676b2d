//! Echo is answered for VIPs, and errors reach the backend that they concern.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice, icmpv4};
use sluice_tests::{Conn, Lab, RawSocket, WEB_V4, WEB_V6, within};

#[test]
fn echo_to_a_vip_is_answered_by_the_load_balancer() {
    let lab = Lab::new().start();
    // No backend could do it: neither runs a server, nor is there a cable.
    lab.backends()
        .iter()
        .for_each(sluice_tests::Backend::unplug);
    for vip in [WEB_V4, WEB_V6] {
        lab.client(0).ping(vip.ip()).unwrap();
    }
}

#[test]
fn echo_to_any_other_address_passes_to_the_host() {
    let lab = Lab::new().start();
    lab.client(0).ping(lab.node().v4()).unwrap();
    lab.client(0).ping(lab.node().v6()).unwrap();
    // Routed here, but neither a VIP nor the host's own.
    assert!(lab.client(0).ping("192.0.2.200".parse().unwrap()).is_err());
}

#[test]
fn a_packet_too_big_reaches_the_backend_of_its_flow_and_no_other() {
    let lab = Lab::new().start();
    for vip in [WEB_V4, WEB_V6] {
        let conns: Vec<Conn> = (0..12)
            .map(|_| lab.client(0).connect(vip).unwrap())
            .collect();
        for conn in &conns {
            let watched: Vec<(&str, RawSocket)> = lab
                .backends()
                .iter()
                .map(|backend| (backend.name(), backend.raw()))
                .collect();
            send_too_big(&lab, vip, conn.local_address());
            let reached: Vec<&str> = watched
                .iter()
                .filter(|(_, raw)| {
                    std::iter::from_fn(|| raw.receive(Duration::from_millis(100)))
                        .any(|frame| is_too_big(&frame))
                })
                .map(|(name, _)| *name)
                .collect();
            assert_eq!(reached, [conn.backend()], "{vip}");
        }
    }
}

#[test]
fn a_big_packet_that_a_tunnel_cannot_take_makes_its_sender_send_smaller_ones() {
    for families in ["one", "two"] {
        let lab = Lab::new()
            .config(move |config| {
                let config = config.forward("ipip");
                if families == "two" {
                    config.cross_families()
                } else {
                    config
                }
            })
            .start_with_decap();
        for vip in [WEB_V4, WEB_V6] {
            let client = lab.client(0);
            let mut conn = client.connect(vip).unwrap();
            let raw = client.raw();
            assert_eq!(conn.post(500_000).unwrap().body, b"500000");
            let told = raw.find(|frame| is_too_big(frame).then_some(()));
            assert!(
                told.is_some(),
                "{vip} over {families}: nobody said that it was too big"
            );
            let route = client
                .netns()
                .command("ip", &["route", "get", &vip.ip().to_string()]);
            // An outer header is 20 or 40 bytes.
            assert!(
                route.contains("mtu 1480") || route.contains("mtu 1460"),
                "{vip}: {route}"
            );
            assert_eq!(conn.ask_who(), conn.backend());
        }
    }
}

#[test]
fn a_vip_may_have_a_smaller_mtu() {
    let lab = Lab::new()
        .config(|mut config| {
            config = config.forward("gue");
            config.vip("web4").extra = "mtu = 1400\n".to_owned();
            config
        })
        .start_with_decap();
    let client = lab.client(0);
    let mut conn = client.connect(WEB_V4).unwrap();
    assert_eq!(conn.post(200_000).unwrap().body, b"200000");
    // 1400 less 20 of IP and 8 of UDP.
    within(Duration::from_secs(1), "the client knows", || {
        client
            .netns()
            .command("ip", &["route", "get", &WEB_V4.ip().to_string()])
            .contains("mtu 1372")
    });
}

/// From a router behind the client, about an answer of the VIP; IPv4 quotes no more than it must: 8 bytes after the IP header.
fn send_too_big(lab: &Lab, vip: SocketAddr, client: SocketAddr) {
    const ETHERNET_BYTES: usize = 14;
    let frames = lab.client(0).frames();
    let answer = frames.syn(vip, client);
    let quoted_bytes = if vip.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let quoted = &answer[ETHERNET_BYTES..ETHERNET_BYTES + quoted_bytes];
    let router: IpAddr = if vip.is_ipv4() {
        "203.0.113.1"
    } else {
        "2001:db8:ffff::1"
    }
    .parse()
    .unwrap();
    lab.client(0)
        .raw()
        .send(&frames.too_big(router, vip.ip(), 1300, quoted));
}

fn is_too_big(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return false;
    };
    match packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => matches!(
            icmp.icmp_type(),
            Icmpv4Type::DestinationUnreachable(
                icmpv4::DestUnreachableHeader::FragmentationNeeded { .. }
            )
        ),
        Some(TransportSlice::Icmpv6(icmp)) => {
            matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { .. })
        }
        _ => false,
    }
}
