//! Several load balancers in one PoP: they choose alike, so that a flow may come by any of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use sluice_tests::{
    Cables, Client, DNS_V4, DNS_V6, Downloads, Lab, Node, WEB_V4, WEB_V6, eventually, within,
};

/// How long a handshake goes by the tables that it began with.
const HANDSHAKE: Duration = Duration::from_secs(6);

#[test]
fn equal_configs_make_equal_tables_whatever_the_order() {
    let lab = Lab::new()
        .load_balancers(3)
        .backends(["b1", "b2", "b3", "b4"])
        .config(|mut config| {
            config.pools[0].backends[1].extra = "weight = 3\n".to_owned();
            config
        })
        .build();
    for (turn, node) in lab.nodes().iter().enumerate() {
        let mut config = lab.config();
        for pool in &mut config.pools {
            pool.backends.rotate_left(turn);
        }
        if turn == 1 {
            config.pools.reverse();
            config.vips.reverse();
        }
        node.write_config(&node.config_text(&config));
        node.daemon().start();
    }
    lab.wait_until_ready();
    let agree = || {
        let all: Vec<_> = lab.nodes().iter().map(checksums).collect();
        all[0].len() == 4 && all.iter().all(|node| *node == all[0])
    };
    eventually("all have the same tables", agree);

    // What the metric says is so: each gives a flow to the same backend.
    for vip in [DNS_V4, DNS_V6] {
        let client = lab.client(0);
        for port in 40_000..40_040 {
            let source = SocketAddr::new(client.address(vip, 2), port);
            let chosen: Vec<_> = (0..3)
                .map(|node| {
                    lab.route_vips_to(&[node]);
                    client.source_port(source).udp_ask(vip, b"who?").unwrap()
                })
                .collect();
            assert!(chosen.iter().all(|name| *name == chosen[0]), "{chosen:?}");
        }
    }

    let drained = format!("v4/{}", lab.backend("b2").v4());
    let before = checksums(lab.node());
    lab.sluice(&format!("drain backend {drained}")).succeeds();
    let after = checksums(lab.node());
    let differ = |vip: &str| before[vip] != after[vip];
    assert!(differ("web4") && differ("dns4"), "{before:?} {after:?}");
    assert!(!differ("web6") && !differ("dns6"), "{before:?} {after:?}");
    lab.sluice(&format!("undrain backend {drained}")).succeeds();
    assert!(agree(), "they are back where they were");
}

#[test]
fn flows_outlive_a_load_balancer_that_joins_leaves_or_dies() {
    let lab = Lab::new().load_balancers(3).clients(2).start();
    let [first, second, third] = lab.nodes() else {
        panic!("three were asked for");
    };
    lab.route_vips_to(&[0, 1]);
    third.daemon().stop();
    third.sluice("unload").succeeds();

    let downloads = Downloads::endless(lab.client(0), &[WEB_V4, WEB_V6], 200);
    with_new_flows(lab.client(1), || {
        third.daemon().start();
        wait_to_join(&lab);
        lab.route_vips_to(&[0, 1, 2]);
        eventually("the one that joined gets packets", || packets(third) > 0);

        lab.route_vips_to(&[0, 2]);
        second.daemon().stop();
        second.sluice("unload").succeeds();

        first.daemon().kill9();
        assert_eq!(lab.client(1).spread(WEB_V4, 40).unwrap().len(), 3);
        lab.set_cables(0, Cables::Pulled);
        // Until the router notices.
        thread::sleep(Duration::from_millis(500));
        lab.route_vips_to(&[2]);
        thread::sleep(Duration::from_secs(2));

        lab.set_cables(0, Cables::Plugged);
        first.daemon().start();
        second.daemon().start();
        wait_to_join(&lab);
        for nodes in [&[0, 1, 2][..], &[2, 0], &[1], &[1, 0], &[0, 1, 2]] {
            lab.route_vips_to(nodes);
            thread::sleep(Duration::from_millis(500));
        }
    });
    let outcome = downloads.finish();
    assert_eq!((outcome.whole, outcome.broken), (200, vec![]));
}

/// What an operator waits for before the router sends packets: all have the same tables, and for long enough.
fn wait_to_join(lab: &Lab) {
    lab.wait_until_ready();
    within(Duration::from_secs(20), "all have the same tables", || {
        let all: Vec<_> = lab.nodes().iter().map(checksums).collect();
        all.iter().all(|node| *node == all[0])
    });
    thread::sleep(HANDSHAKE);
}

/// Makes new connections all the time meanwhile, and each must work.
fn with_new_flows(client: &Client, meanwhile: impl FnOnce()) {
    let ends = AtomicBool::new(false);
    let flows = || {
        let mut made = 0;
        while !ends.load(Ordering::Relaxed) {
            for vip in [WEB_V4, WEB_V6] {
                let answer = client.http_get(vip, "/bytes/10000");
                let body = answer.unwrap_or_else(|error| panic!("flow {made} to {vip}: {error}"));
                assert_eq!(body.body.len(), 10_000);
                made += 1;
            }
        }
        made
    };
    let made = thread::scope(|scope| {
        let flows = scope.spawn(flows);
        meanwhile();
        ends.store(true, Ordering::Relaxed);
        flows.join().unwrap()
    });
    assert!(made > 100, "only {made} new flows");
}

fn checksums(node: &Node) -> BTreeMap<String, String> {
    let metrics = node.metrics();
    let checksum = |line: &str| {
        let rest = line.strip_prefix("sluice_table_checksum{vip=\"")?;
        let (vip, checksum) = rest.split_once("\"} ")?;
        Some((vip.to_owned(), checksum.to_owned()))
    };
    metrics.lines().filter_map(checksum).collect()
}

fn packets(node: &Node) -> u64 {
    let rows = node.items("vips");
    let packets = rows.iter().map(|vip| vip["packets"].as_u64().unwrap());
    packets.sum()
}
