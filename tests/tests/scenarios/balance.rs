//! Which backend a flow goes to, and that it stays there.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use sluice_tests::{Conn, DNS_V4, DNS_V6, Lab, VIPS_V4, VIPS_V6, WEB_V4, WEB_V6, eventually};

#[test]
fn tcp_and_udp_flows_of_both_families_spread_over_all_backends() {
    let lab = Lab::new().start();
    for vip in [WEB_V4, WEB_V6, DNS_V4, DNS_V6] {
        let spread = lab.client(0).spread(vip, 90).unwrap();
        assert_eq!(spread.len(), 3, "{vip}: {spread:?}");
        assert!(
            spread.values().all(|&flows| flows >= 10),
            "{vip}: {spread:?}"
        );
    }
}

#[test]
fn every_packet_of_a_flow_reaches_the_same_backend() {
    let lab = Lab::new().start();
    let client = lab.client(0);
    for vip in [WEB_V4, WEB_V6] {
        let mut conns: Vec<Conn> = (0..10).map(|_| client.connect(vip).unwrap()).collect();
        for _ in 0..20 {
            conns
                .iter_mut()
                .for_each(|conn| assert_eq!(conn.ask_who(), conn.backend()));
        }
    }
    for vip in [DNS_V4, DNS_V6] {
        let flow = client.udp(vip).unwrap();
        let first = flow.ask(b"first").unwrap();
        assert!((0..50).all(|_| flow.ask(b"again").unwrap() == first));
    }
}

#[test]
fn weights_share_out_new_flows() {
    let lab = Lab::new()
        .config(|mut config| {
            let backends = &mut config.pools[0].backends;
            backends[0].extra = "weight = 3\n".to_owned();
            backends[2].extra = "weight = 0\n".to_owned();
            config
        })
        .start();
    let spread = lab.client(0).spread(WEB_V4, 200).unwrap();
    assert!(!spread.contains_key("b3"), "{spread:?}");
    // 150 to 50, give or take what is all but impossible.
    assert!((115..=180).contains(&spread["b1"]), "{spread:?}");
}

#[test]
fn a_source_hash_keeps_a_client_on_one_backend() {
    let lab = Lab::new()
        .config(|mut config| {
            config.vip("web4").extra = "hash = \"source\"\n".to_owned();
            config
        })
        .start();
    let client = lab.client(0);
    let mut used = BTreeSet::new();
    for host in 10..40 {
        let spread = client
            .source(client.address(WEB_V4, host))
            .spread(WEB_V4, 3)
            .unwrap();
        assert_eq!(spread.len(), 1, "{spread:?}");
        used.extend(spread.into_keys());
    }
    assert_eq!(used.len(), 3, "other clients go elsewhere");
}

#[test]
fn a_vip_may_be_a_prefix_with_every_port() {
    let lab = Lab::new()
        .config(|mut config| {
            let vip = config.vip("web4");
            vip.address = "192.0.2.64/26".to_owned();
            (vip.protocol, vip.port) = ("any", None);
            config
        })
        .start();
    for address in ["192.0.2.64", "192.0.2.100", "192.0.2.127"] {
        let to = |port| SocketAddr::new(address.parse().unwrap(), port);
        assert_eq!(lab.client(0).spread(to(80), 40).unwrap().len(), 3);
        assert_eq!(lab.client(0).spread(to(53), 40).unwrap().len(), 3);
    }
    assert!(
        lab.client(0)
            .udp_ask("192.0.2.63:53".parse().unwrap(), b"outside")
            .is_err()
    );
}

#[test]
fn a_drained_backend_keeps_its_flows_and_gets_no_new_ones() {
    let lab = Lab::new().start();
    let client = lab.client(0);
    let mut old: Vec<Conn> = (0..30).map(|_| client.connect(WEB_V4).unwrap()).collect();
    let drained = old[0].backend().to_owned();
    let name = format!("v4/{}", lab.backend(&drained).v4());

    lab.sluice(&format!("drain backend {name}")).succeeds();
    assert!(!client.spread(WEB_V4, 60).unwrap().contains_key(&drained));
    for conn in &mut old {
        assert_eq!(conn.ask_who(), conn.backend());
    }
    assert_eq!(
        lab.node().backend_row(lab.backend(&drained).v4())["state"],
        "draining"
    );

    lab.sluice(&format!("undrain backend {name}")).succeeds();
    assert!(client.spread(WEB_V4, 60).unwrap().contains_key(&drained));
}

#[test]
fn a_drained_vip_keeps_its_flows_and_gets_no_new_ones_and_so_do_all_of_a_drained_pop() {
    let lab = Lab::new().start();
    let client = lab.client(0);
    let mut old: Vec<Conn> = (0..10).map(|_| client.connect(WEB_V4).unwrap()).collect();
    for (what, others_take) in [("vip web4", true), ("pop", false)] {
        lab.sluice(&format!("drain {what}")).succeeds();
        let dropped = lab.node().dropped_for("no_backend");
        assert!(client.connect(WEB_V4).is_err(), "{what}");
        assert!(lab.node().dropped_for("no_backend") > dropped, "{what}");
        assert_eq!(client.connect(WEB_V6).is_ok(), others_take, "{what}");

        // It lasts, whatever becomes of the daemon.
        lab.daemon().kill9();
        lab.daemon().start();
        lab.wait_until_ready();
        let syn = format!("explain --from 198.51.100.7:4711 --to {WEB_V4} --json");
        assert_eq!(lab.sluice(&syn).json()["reason"], "no_backend", "{what}");
        for conn in &mut old {
            assert_eq!(conn.ask_who(), conn.backend());
        }

        lab.sluice(&format!("undrain {what}")).succeeds();
        old.push(client.connect(WEB_V4).unwrap());
        client.connect(WEB_V6).unwrap();
    }
    for conn in &mut old {
        assert_eq!(conn.ask_who(), conn.backend());
    }
}

#[test]
fn no_connection_breaks_when_tables_switch_and_the_flow_table_is_full() {
    let lab = Lab::new().alone().start();
    let client = lab.client(0);
    let connect = || -> Vec<Conn> { (0..60).map(|_| client.connect(WEB_V4).unwrap()).collect() };
    let on_b1 = |conns: &[Conn]| conns.iter().filter(|conn| conn.backend() == "b1").count();
    let name = format!("v4/{}", lab.backend("b1").v4());

    // Many for each bucket of eight. The cable may lose some, so it is asked how many came.
    const FLOWS: u32 = 1 << 18;
    let flood = "16.0.0.0/12".parse().unwrap();
    let frames = lab.node().frames().udp_flood(flood, FLOWS);
    let cable = lab.uplink_sender();
    let came = || {
        let vips = lab.node().items("vips");
        let dns = vips.iter().find(|vip| vip["name"] == "dns4").unwrap();
        dns["packets"].as_u64().unwrap()
    };
    let mut parts = frames.chunks(1 << 14).cycle();
    while came() < u64::from(FLOWS) {
        cable.send_many(parts.next().unwrap()).unwrap();
    }
    lab.sluice(&format!("drain backend {name}")).succeeds();
    let mut conns = connect();
    assert!(on_b1(&conns) > 0, "what has no room follows the old table");

    // No handshake of that time is under way any more; the flood's flows live on, but make room.
    thread::sleep(Duration::from_secs(8));
    lab.sluice(&format!("undrain backend {name}")).succeeds();
    let fresh = connect();
    assert!(on_b1(&fresh) > 0, "new flows follow the new table");
    conns.extend(fresh);
    thread::sleep(Duration::from_secs(6));
    for conn in &mut conns {
        assert_eq!(conn.ask_who(), conn.backend());
    }
}

#[test]
fn an_added_backend_gets_new_flows_and_no_old_ones() {
    let lab = Lab::new().config(|config| config.without("b3")).start();
    let client = lab.client(0);
    let mut old: Vec<Conn> = (0..30).map(|_| client.connect(WEB_V4).unwrap()).collect();

    let all = lab.config().with(lab.backend("b3"));
    lab.reload(&all).succeeds();
    eventually("b3 is up", || {
        lab.node().backend_row(lab.backend("b3").v4())["state"] == "up"
    });
    for vip in [WEB_V4, WEB_V6, DNS_V4] {
        assert_eq!(client.spread(vip, 60).unwrap().len(), 3);
    }
    for conn in &mut old {
        assert_eq!(conn.ask_who(), conn.backend());
    }
}

#[test]
fn a_removed_backend_gets_nothing_after_sighup() {
    let lab = Lab::new().start();
    lab.write_config(&lab.config().without("b2"));
    lab.daemon().hup();
    eventually("b2 is gone", || lab.node().items("backends").len() == 4);
    for vip in [WEB_V4, WEB_V6, DNS_V4, DNS_V6] {
        let spread = lab.client(0).spread(vip, 60).unwrap();
        assert_eq!(spread.keys().collect::<Vec<_>>(), ["b1", "b3"], "{vip}");
    }
}

#[test]
fn a_flow_survives_when_the_router_moves_it_to_another_load_balancer() {
    let lab = Lab::new().load_balancers(2).start();
    let client = lab.client(0);
    let mut conns: Vec<Conn> = [WEB_V4, WEB_V6]
        .iter()
        .cycle()
        .take(40)
        .map(|&vip| client.connect(vip).unwrap())
        .collect();
    for node in lab.nodes() {
        lab.router().command(
            "ip",
            &["route", "replace", VIPS_V4, "via", &node.v4().to_string()],
        );
        lab.router().command(
            "ip",
            &[
                "-6",
                "route",
                "replace",
                VIPS_V6,
                "via",
                &node.v6().to_string(),
            ],
        );
        for conn in &mut conns {
            assert_eq!(conn.ask_who(), conn.backend());
        }
    }
}

#[test]
fn packets_are_counted_for_vips_and_backends() {
    let lab = Lab::new().start();
    let flow = lab.client(0).udp(DNS_V4).unwrap();
    let backend = flow.ask(b"1").unwrap();
    (0..9).for_each(|_| assert_eq!(flow.ask(b"1").unwrap(), backend));

    let vips = lab.node().items("vips");
    let vip = vips.iter().find(|vip| vip["name"] == "dns4").unwrap();
    // 20 bytes of IP, 8 of UDP, 1 of payload; whether a VIP's bytes are counted from Ethernet on is not said here.
    assert_eq!(vip["packets"], 10);
    assert!(vip["bytes"].as_u64().unwrap() >= 290);
    assert_eq!(vip["pool"], "v4");
    assert!(
        lab.node().backend_row(lab.backend(&backend).v4())["packets"]
            .as_u64()
            .unwrap()
            >= 10
    );
}
