//! Datagrams in fragments reach one backend, whole, unless a policy wants none.

use std::{collections::BTreeSet, fs::File, net::SocketAddr, time::Duration};

use pcap_file::pcap::{PcapPacket, PcapWriter};
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

#[test]
fn a_policy_that_wants_no_fragments_drops_them_says_so_and_lets_the_rest_of_the_flow_be() {
    let lab = Lab::new()
        .config(|mut config| {
            config.extra += "[[policy]]\nname = \"whole\"\nfragments = \"enforce\"\n";
            config.vip("dns4").extra += "policy = \"whole\"\n";
            config
        })
        .start();
    let flow = lab.client(0).udp(DNS_V4).unwrap();
    let backend = flow.ask(b"small").unwrap();
    flow.ask(&[1; 3000]).unwrap_err();
    assert_eq!(flow.ask(b"small").unwrap(), backend);
    lab.client(0).udp_ask(DNS_V6, &[1; 3000]).unwrap();
    assert!(lab.node().dropped_for("fragment") >= 3);

    let frame = (lab.client(0).frames()).udp(flow.local_address(), DNS_V4, &[1; 2000]);
    let [first, _] = lab.client(0).frames().fragments(&frame, 1200);
    let file = lab.dir().join("fragment.pcap");
    let mut pcap = PcapWriter::new(File::create(&file).unwrap()).unwrap();
    let bytes = u32::try_from(first.len()).unwrap();
    pcap.write_packet(&PcapPacket::new(Duration::ZERO, bytes, &first))
        .unwrap();
    drop(pcap);
    let explain = format!("explain --json --pcap {}", file.display());
    let explained = lab.sluice(&explain).succeeds().json();
    assert_eq!(explained["reason"], "fragment");
    let step = "a fragment, and the VIP's policy wants none";
    assert!(
        explained["steps"]
            .as_array()
            .unwrap()
            .contains(&step.into())
    );

    let mut config = lab.config();
    config.extra = config.extra.replace("enforce", "monitor");
    lab.reload(&config).succeeds();
    assert_eq!(flow.ask(&[1; 3000]).unwrap(), backend);
    assert!(lab.node().dropped("monitor") >= 3);
    assert_eq!(lab.sluice(&explain).succeeds().json()["verdict"], "tx");
}
