//! Packets that come by one interface and leave by another.

use sluice_tests::{Config, DNS_V4, DNS_V6, Lab, WEB_V4, WEB_V6};

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
