//! Datagrams in fragments reach one backend, whole.

use std::{collections::BTreeSet, net::SocketAddr};

use sluice_tests::{DNS_V4, DNS_V6, Lab};

#[test]
fn a_fragmented_datagram_is_answered_by_the_backend_of_its_flow() {
    let lab = Lab::new().start();
    for vip in [DNS_V4, DNS_V6] {
        let mut used = BTreeSet::new();
        for _ in 0..30 {
            let flow = lab.client(0).udp(vip).unwrap();
            let backend = flow.ask(b"small").unwrap();
            assert_eq!(flow.ask(&[1; 5000]).unwrap(), backend, "{vip}");
            assert_eq!(flow.ask(&[2; 20_000]).unwrap(), backend, "{vip}");
            assert_eq!(flow.ask(b"small").unwrap(), backend, "{vip}");
            used.insert(backend);
        }
        assert_eq!(used.len(), 3, "{vip}");
    }
}

#[test]
fn a_new_flow_may_begin_with_a_fragment() {
    let lab = Lab::new().start();
    for vip in [DNS_V4, DNS_V6] {
        for _ in 0..20 {
            lab.client(0)
                .udp_ask(vip, &[3; 3000])
                .unwrap_or_else(|error| panic!("{vip}: {error}"));
        }
    }
}

#[test]
fn fragments_in_either_order_reach_one_backend() {
    let lab = Lab::new().start();
    let client = lab.client(0);
    for vip in [DNS_V4, DNS_V6] {
        for (index, last_first) in [false, true, false, true].into_iter().enumerate() {
            let port = 20_000 + u16::try_from(index).unwrap();
            let from = SocketAddr::new(client.address(vip, 77), port);
            let frame = client.frames().udp(from, vip, &[5; 2000]);
            let mut fragments = client.frames().fragments(&frame, 1200);
            if last_first {
                fragments.reverse();
            }
            let flow = client.source_port(from).udp(vip).unwrap();
            let raw = client.raw();
            fragments.iter().for_each(|fragment| raw.send(fragment));
            let answer = flow.answer_to(&[5; 2000]);
            answer.unwrap_or_else(|error| panic!("{vip}, last first: {last_first}: {error}"));
        }
    }
}

#[test]
fn fragments_for_the_host_itself_pass() {
    let lab = Lab::new().start();
    for address in [lab.node().v4(), lab.node().v6()] {
        let size = ["-s", "4000", "-c", "1", "-W", "2"];
        lab.client(0)
            .netns()
            .command("ping", &[size.as_slice(), &[&address.to_string()]].concat());
    }
}

#[test]
fn fragments_survive_a_tunnel() {
    let lab = Lab::new()
        .config(|config| config.forward("ipip"))
        .start_with_decap();
    for vip in [DNS_V4, DNS_V6] {
        // The kernel cuts at the client's MTU; where the tunnel leaves less, it is told so and cuts smaller.
        let flow = lab.client(0).udp(vip).unwrap();
        let answered = (0..4).any(|_| flow.ask(&[4; 4000]).is_ok());
        assert!(answered, "{vip}");
    }
}
