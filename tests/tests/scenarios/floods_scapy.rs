//! Packets of an independent maker, scapy: what makes no sense or was not asked for meets the reason that it should.

use std::{path::Path, process::Command};

use serde_json::Value;
use sluice_tests::{DNS_V4, DNS_V6, Flood, Lab, WEB_V4, WEB_V6, within};

/// Writes the packets, and returns what should become of each.
fn made(file: &Path) -> Vec<String> {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/floods_scapy/packets.py");
    let addresses = [WEB_V4, DNS_V4, WEB_V6, DNS_V6].map(|vip| vip.ip().to_string());
    let output = Command::new("/usr/bin/python3")
        .args(["-W", "ignore"])
        .arg(&script)
        .arg(file)
        .args(addresses)
        .output()
        .expect("Debian's python3 is there");
    assert!(
        output.status.success(),
        "{} failed (is Debian's python3-scapy there?):\n{}",
        script.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let lines = String::from_utf8(output.stdout).expect("words");
    lines.lines().map(str::to_owned).collect()
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
    let expected = made(&file);
    assert!(expected.len() > 300);
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
            *expected != "any" && met != Some(expected)
        })
        .map(|(n, (expected, explained))| format!("{n}: {expected}, but {explained}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // The same as a flood: every packet is accounted for, and a good client is served.
    let frames: Vec<Vec<u8>> = frames(&file);
    assert_eq!(frames.len(), expected.len());
    let flood = Flood::start(lab.uplink_sender(), frames);
    within(std::time::Duration::from_secs(20), "the flood runs", || {
        flood.sent() > 5_000
    });
    for vip in [WEB_V4, WEB_V6] {
        let body = lab.client(0).http_get(vip, "/health");
        assert_eq!(body.expect("a good request is served").body, b"ok");
    }
    flood.stop();
    for reason in expected
        .iter()
        .filter(|word| !["tx", "any"].contains(&word.as_str()))
    {
        assert!(lab.node().dropped_for(reason) > 0, "nothing for {reason}");
    }
}

fn frames(file: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(file).expect("scapy wrote it");
    let mut reader = pcap_file::pcap::PcapReader::new(&bytes[..]).expect("a capture");
    std::iter::from_fn(|| {
        reader
            .next_packet()
            .map(|packet| packet.expect("a packet").data.into_owned())
    })
    .collect()
}
