//! Each way to a backend carries TCP and UDP of both families.

use std::net::SocketAddr;

use sluice_tests::{Config, DNS_V4, DNS_V6, Lab, PoolBackend, WEB_V4, WEB_V6};

#[test]
fn l2_carries_everything() {
    carries_everything(&Lab::new().start());
}

#[test]
fn ipip_of_one_family_carries_everything() {
    carries_everything(
        &Lab::new()
            .config(|config| config.forward("ipip"))
            .start_with_decap(),
    );
}

#[test]
fn ipip_of_two_families_carries_everything() {
    let config = |config: Config| config.forward("ipip").cross_families();
    carries_everything(&Lab::new().config(config).start_with_decap());
}

#[test]
fn gue_of_one_family_carries_everything() {
    carries_everything(
        &Lab::new()
            .config(|config| config.forward("gue"))
            .start_with_decap(),
    );
}

#[test]
fn gue_of_two_families_carries_everything() {
    let config = |config: Config| config.forward("gue").cross_families();
    carries_everything(&Lab::new().config(config).start_with_decap());
}

#[test]
fn generic_mode_carries_everything() {
    let config = |mut config: Config| {
        config.dataplane += "mode = \"generic\"\n";
        config.forward("ipip")
    };
    let lab = Lab::new().config(config).start_with_decap();
    let status = lab.sluice("status --json").succeeds().json();
    assert_eq!(status["interfaces"][0]["mode"], "generic", "{status}");
    carries_everything(&lab);
}

#[test]
fn local_hands_packets_to_the_hosts_own_stack() {
    let lab = Lab::new().build();
    lab.node().serve_locally();
    let mut config = lab.config().forward("local");
    for pool in &mut config.pools {
        let address = if pool.name == "v4" {
            lab.node().v4()
        } else {
            lab.node().v6()
        };
        pool.backends = vec![PoolBackend {
            name: "l0".to_owned(),
            address: address.to_string(),
            extra: String::new(),
        }];
    }
    lab.write_config(&config);
    lab.daemon().start();
    for vip in [WEB_V4, WEB_V6, DNS_V4, DNS_V6] {
        assert_eq!(
            lab.client(0)
                .spread(vip, 5)
                .unwrap()
                .into_keys()
                .collect::<Vec<_>>(),
            ["l0"],
            "{vip}"
        );
    }
}

#[test]
fn backends_of_one_pool_may_be_reached_in_different_ways() {
    let lab = Lab::new()
        .config(|mut config| {
            for pool in &mut config.pools {
                pool.backends[1].extra = "forward = \"ipip\"\n".to_owned();
                pool.backends[2].extra = "forward = \"gue\"\n".to_owned();
            }
            config
        })
        .start_with_decap();
    carries_everything(&lab);
}

fn carries_everything(lab: &Lab) {
    let client = lab.client(0);
    for vip in [WEB_V4, WEB_V6] {
        carries_tcp(lab, vip);
    }
    for vip in [DNS_V4, DNS_V6] {
        let spread = client.spread(vip, 40).unwrap();
        assert_eq!(spread.len(), 3, "{vip}: {spread:?}");
        // Of odd and even lengths, for the checksum.
        let flow = client.udp(vip).unwrap();
        for bytes in [0, 1, 2, 17, 1000, 1001] {
            flow.ask(&vec![0xff; bytes])
                .unwrap_or_else(|error| panic!("{vip}: {bytes} bytes: {error}"));
        }
    }
}

fn carries_tcp(lab: &Lab, vip: SocketAddr) {
    let spread = lab.client(0).spread(vip, 40).unwrap();
    assert_eq!(spread.len(), 3, "{vip}: {spread:?}");
    let mut conn = lab.client(0).connect(vip).unwrap();
    assert_eq!(conn.post(1000).unwrap().body, b"1000");
    assert_eq!(conn.download("/bytes/2000000").unwrap(), 2_000_000);
    assert_eq!(conn.ask_who(), conn.backend());
}
