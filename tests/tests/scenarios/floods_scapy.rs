//! Packets of an independent maker, scapy: what makes no sense or was not asked for meets the reason that it should, and
//! floods as they are captured end where they are to, beside good clients.

use std::{
    collections::BTreeSet, fs, net::SocketAddr, path::Path, process::Command, thread,
    time::Duration,
};

use serde_json::Value;
use sluice_ebpf::amplification::Preset;
use sluice_tests::{Client, DNS_V4, DNS_V6, Good, Lab, WEB_V4, WEB_V6, within};

use crate::floods::{is_dropped, is_dropped_for};

/// Runs a script of scapy's, which writes to `to`, and returns what it says.
fn made(script: &str, to: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/scenarios/floods_scapy")
        .join(script);
    let addresses = [WEB_V4, DNS_V4, WEB_V6, DNS_V6].map(|vip| vip.ip().to_string());
    let output = Command::new("/usr/bin/python3")
        .args(["-W", "ignore"])
        .arg(&script)
        .arg(to)
        .args(addresses)
        .output()
        .expect("Debian's python3 is there");
    assert!(
        output.status.success(),
        "{} failed (is Debian's python3-scapy there?):\n{}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("words")
}

#[test]
fn packets_of_another_maker_meet_the_reasons_that_they_should() {
    let lab = Lab::new()
        .config(|config| {
            let mut config = config.policy("enforce", "[]");
            config.extra += "amplification = [\"all\"]\n";
            config
        })
        .start();
    let file = lab.dir().join("scapy.pcap");
    let said = made("packets.py", &file);
    let expected: Vec<&str> = said.lines().collect();
    assert!(expected.len() > 300);
    meet(&lab, &file, &expected);

    // The same as a flood: every packet is accounted for, and a good client is served.
    let frames: Vec<Vec<u8>> = frames(&file);
    assert_eq!(frames.len(), expected.len());
    let flood = lab.flood(frames);
    within(Duration::from_secs(20), "the flood runs", || {
        flood.sent() > 5_000
    });
    for vip in [WEB_V4, WEB_V6] {
        let body = lab.client(0).http_get(vip, "/health");
        assert_eq!(body.expect("a good request is served").body, b"ok");
    }
    flood.stop();
    for reason in expected.iter().filter(|word| !["tx", "any"].contains(word)) {
        assert!(lab.node().dropped_for(reason) > 0, "nothing for {reason}");
    }
}

/// Has each packet of a file explained: it must end as expected.
#[track_caller]
fn meet(lab: &Lab, file: &Path, expected: &[&str]) {
    let explained = lab.sluice(&format!("explain --json --pcap {}", file.display()));
    let explained: Vec<Value> = explained
        .succeeds()
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("an object on each line"))
        .collect();
    assert_eq!(explained.len(), expected.len());
    let wrong: Vec<String> = expected
        .iter()
        .zip(&explained)
        .enumerate()
        .filter(|(_, (expected, explained))| {
            let met = explained["reason"]
                .as_str()
                .or_else(|| explained["verdict"].as_str());
            **expected != "any" && met != Some(expected)
        })
        .map(|(n, (expected, explained))| format!("{n}: {expected}, but {explained}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whose replies were asked for.
const RESOLVERS: [&str; 2] = ["203.0.113.53", "2001:db8:53::53"];

#[test]
fn replies_from_every_port_of_each_preset_are_dropped_beside_good_clients() {
    let lab = Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&["203.0.113.0/24", "2001:db8:53::/64"])
        .config(|config| {
            let mut config = config.policy("enforce", "[]");
            config.extra += &format!(
                "amplification = {{ presets = [\"all\"], replies_from = {RESOLVERS:?} }}\n"
            );
            config
        })
        .start();
    let file = lab.dir().join("reflected.pcap");
    let said = made("reflected.py", &file);
    let of: Vec<&str> = said.lines().collect();
    let reason = |of: &&str| if *of == "tx" { "tx" } else { "amplification" };
    meet(&lab, &file, &of.iter().map(reason).collect::<Vec<_>>());

    let frames = frames(&file).into_iter().zip(&of);
    let (asked_for, unasked): (Vec<_>, Vec<_>) = frames.partition(|(_, of)| **of == "tx");
    let ports = unasked
        .iter()
        .map(|(frame, of)| (**of, frame[12] == 8, source_port(frame)));
    let presets = Preset::ALL.iter().flat_map(|preset| {
        let ports = preset.ports().iter();
        ports.flat_map(|port| [true, false].map(|v4| (preset.word(), v4, *port)))
    });
    assert_eq!(
        ports.collect::<BTreeSet<_>>(),
        presets.collect::<BTreeSet<_>>()
    );

    let mut good = Good::new(lab.client(0));
    let resolvers = RESOLVERS.map(|address| {
        let source = SocketAddr::new(address.parse().expect("an address"), 53);
        let vip = if source.is_ipv4() { DNS_V4 } else { DNS_V6 };
        let flow = lab.client(1).source_port(source).udp(vip);
        flow.expect("its address is the client's")
    });
    let (reply, _) = &asked_for[0];
    let flood = || lab.flood(unasked.into_iter().map(|(frame, _)| frame).collect());
    is_dropped_for(&lab, "amplification", flood, || {
        for _ in 0..3 {
            good.go_on(1);
            for resolver in &resolvers {
                let answer = resolver.ask_again(&reply[ETHERNET_IPV4_UDP..]);
                answer.expect("a reply that was asked for comes through");
            }
        }
    });
    for preset in Preset::ALL {
        let word = preset.word();
        let series =
            format!("sluice_amplified_packets_total{{preset=\"{word}\",mode=\"enforce\"}}");
        assert!(lab.node().metric(&series) > 30, "{word}");
    }
}

const ETHERNET_IPV4_UDP: usize = 14 + 20 + 8;

fn source_port(udp: &[u8]) -> u16 {
    let at = if udp[12] == 8 { 14 + 20 } else { 14 + 40 };
    u16::from_be_bytes([udp[at], udp[at + 1]])
}

/// What stands between captured floods and the backends.
const POLICIES: &str = r#"
[[policy]]
name = "web4"
limits = [
    { class = "syn", per = "network", pps = 50, burst = 50 },
    { class = "icmp", per = "network", pps = 20, burst = 20 },
]
out_of_state = { pps = 10, burst = 10 }

[[policy]]
name = "dns4"
limits = [
    { class = "udp", per = "network", pps = 50, burst = 50 },
    { class = "other", per = "network", pps = 50, burst = 50 },
]

[[policy]]
name = "web6"
syn = { mode = "auto", above_pps = 1_000, hold = "1s" }

[[policy]]
name = "dns6"
limits = [{ class = "udp", per = "host", pps = 50, burst = 50 }]
"#;

#[test]
fn captured_floods_end_where_they_should_beside_good_clients() {
    let lab = Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .client(&["198.51.100.0/24", "2001:db8:bad::/48"])
        .config(|mut config| {
            config.extra += POLICIES;
            for vip in &mut config.vips {
                vip.extra += &format!("policy = \"{}\"\n", vip.name);
            }
            config
        })
        .start();
    let node = lab.node();
    node.sluice("deny add 192.88.99.0/24").succeeds();
    let rule = "dst 192.0.2.53/32; proto udp; sport 53; length > 512 -> drop";
    node.sluice_words(&["rule", "add", rule]).succeeds();
    made("captured.py", &lab.dir());

    let mut good = Good::new(lab.client(0));
    let attacker = lab.client(1);
    let captured = |name: &str| {
        println!("{name}");
        let frames = frames(&lab.dir().join(name).with_extension("pcap"));
        rewritten(frames, attacker)
    };
    let mut meanwhile = || {
        good.go_on(1);
        thread::sleep(Duration::from_millis(300));
        good.go_on(1);
    };
    for (name, reason) in [
        ("syn_network", "limit_network"),
        ("udp_network", "limit_network"),
        ("icmp_network", "limit_network"),
        ("fragments", "limit_network"),
        ("udp_host_v6", "limit_host"),
        ("ack", "out_of_state"),
        ("push", "out_of_state"),
        ("rst", "out_of_state"),
        ("dns_replies", "rule"),
        ("ntp_replies", "deny"),
    ] {
        let flood = || attacker.flood(captured(name));
        is_dropped_for(&lab, reason, flood, &mut meanwhile);
    }
    // Good clients' resets to challenges are dropped meanwhile.
    let flood = || attacker.flood(captured("syn_unsummed"));
    let unsummed = || node.dropped_for("syn_checksum");
    is_dropped(&lab, flood, unsummed, &mut meanwhile);
    let flood = || attacker.flood(captured("syn_anywhere"));
    let event = |event: &str| {
        let series = format!("sluice_challenges_total{{vip=\"web6\",event=\"{event}\"}}");
        node.metric(&series)
    };
    // Who is not there never proves itself.
    let unanswered = || event("sent") - event("proved");
    is_dropped(&lab, flood, unanswered, &mut meanwhile);
    assert!(node.dropped_for("challenge_answer") > 0);
}

/// Captured frames, for the cable between a client and its router.
fn rewritten(mut frames: Vec<Vec<u8>>, client: &Client) -> Vec<Vec<u8>> {
    let cable = client.frames();
    for frame in &mut frames {
        frame[..12].copy_from_slice(&[cable.to, cable.from].concat());
    }
    frames
}

fn frames(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).expect("scapy wrote it");
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).expect("a capture");
    std::iter::from_fn(|| {
        reader
            .next_packet()
            .map(|packet| packet.expect("a packet").data.into_owned())
    })
    .collect()
}
