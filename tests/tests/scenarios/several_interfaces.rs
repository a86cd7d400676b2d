//! Packets that come by one interface and leave by another.

use sluice_tests::{Config, DNS_V4, DNS_V6, Lab, WEB_V4, WEB_V6, eventually};

#[test]
fn l2_is_redirected_to_the_interface_of_the_backends() {
    crosses(&Lab::new().two_interfaces().start());
}

#[test]
fn tunnels_are_redirected_to_the_interface_of_the_backends() {
    let config = |config: Config| config.forward("ipip").cross_families();
    crosses(
        &Lab::new()
            .two_interfaces()
            .config(config)
            .start_with_decap(),
    );
}

#[test]
fn several_load_balancers_share_both_segments() {
    let lab = Lab::new()
        .load_balancers(2)
        .two_interfaces()
        .clients(2)
        .start();
    crosses(&lab);
    let packets = |node: &sluice_tests::Node| -> u64 {
        node.items("vips")
            .iter()
            .map(|vip| vip["packets"].as_u64().unwrap())
            .sum()
    };
    assert!(
        lab.nodes().iter().all(|node| packets(node) > 0),
        "the router used both"
    );
}

/// What comes in by eth0 is handed to the driver of eth9. A veth takes that if its other end has a program, or GRO.
#[test]
fn an_interface_that_cannot_send_to_its_backends_is_told_until_it_can() {
    let lab = Lab::new().build();
    let host = lab.node().netns();
    for line in [
        "link add eth9 type veth peer name far9",
        "link set eth9 up",
        "link set far9 up",
        "address add 10.99.0.1/24 dev eth9",
        "neigh add 10.99.0.9 lladdr 02:00:00:00:99:09 dev eth9 nud permanent",
    ] {
        host.command("ip", &line.split(' ').collect::<Vec<_>>());
    }
    lab.node().write_config(&format!(
        "{}{BEHIND_ETH9}",
        lab.node().config_text(&lab.config())
    ));
    let doctor = lab.sluice("doctor").stdout;
    assert!(
        doctor.contains("backends behind eth9 are lost")
            && doctor.contains("-> name eth9 in `interfaces` too"),
        "{doctor}"
    );

    lab.daemon().start();
    lab.wait_until_ready();
    let warned = || {
        let status = lab.sluice("status --json").succeeds().json();
        status["warnings"]
            .to_string()
            .contains("behind eth9 are lost")
    };
    eventually("it is in the status", warned);
    assert!(lab.node().log().contains("behind eth9 are lost"));
    host.command("ethtool", &["-K", "far9", "gro", "on"]);
    eventually("the warning is gone", || !warned());
}

const BEHIND_ETH9: &str = r#"
[[pool]]
name = "far"
backend = [{ address = "10.99.0.9" }]
[[vip]]
name = "far"
address = "203.0.113.9"
protocol = "tcp"
pool = "far"
forward = "l2"
"#;

fn crosses(lab: &Lab) {
    for node in lab.nodes() {
        assert!(node.netns().has_xdp("eth0") && node.netns().has_xdp("eth1"));
    }
    for vip in [WEB_V4, WEB_V6, DNS_V4, DNS_V6] {
        let spread = lab.client(0).spread(vip, 60).unwrap();
        assert_eq!(spread.len(), 3, "{vip}: {spread:?}");
    }
    let mut conn = lab.client(0).connect(WEB_V4).unwrap();
    assert_eq!(conn.post(1000).unwrap().body, b"1000");
    assert_eq!(conn.download("/bytes/1000000").unwrap(), 1_000_000);
}
