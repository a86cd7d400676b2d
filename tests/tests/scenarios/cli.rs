//! The command line on a real load balancer: with its daemon, without it, and on a host where things are amiss.

use std::{collections::BTreeSet, fs, path::Path, process::Command, thread, time::Duration};

use nix::sys::signal::Signal;
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};
use serde_json::Value;
use sluice::cli::Cli;
use sluice_tests::{Lab, Node, WEB_V4, eventually, sluice_binary, within};

const QUIET: &str =
    r#"{ kind = "tcp", port = 80, interval = "500ms", timeout = "500ms", rise = 1, fall = 10 }"#;

/// Findings of `sluice doctor` of one check.
fn findings<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap().iter();
    all.filter(|finding| finding["check"] == check).collect()
}

fn states(report: &Value, check: &str) -> Vec<String> {
    let found = findings(report, check);
    assert!(!found.is_empty(), "nothing of {check}: {report}");
    let state = |finding: &&Value| finding["state"].as_str().unwrap().to_owned();
    found.iter().map(state).collect()
}

/// Commands that none of these lines is.
fn others<'l>(lines: impl IntoIterator<Item = &'l str>) -> BTreeSet<String> {
    let mut others = Cli::commands();
    for line in lines {
        others.retain(|command| !format!("{line} ").starts_with(&format!("{command} ")));
    }
    others
}

#[test]
fn every_command_shows_or_changes_and_has_json() {
    let lab = Lab::new().start();
    let name = format!("v4/{}", lab.backend("b1").v4());
    let from = "explain --from 198.51.100.7:4711 --to 192.0.2.1:80";
    let man = format!("man {}", lab.dir().join("man").display());
    let frames = lab.dir().join("out.pcap");
    let frames = frames.display();
    let file = |name: &str, text: &str| {
        let file = lab.dir().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let limits = file("limits", r#"[{"prefix": "203.0.113.0/25", "pps": 10}]"#);
    let rules = file("rules", "ttl 7 -> drop\n");
    let sources = file("sources", "203.0.113.0/26\n");
    let capture = lab.dir().join("x.pcapng");
    let capture = format!("capture {} --duration 100ms", capture.display());
    let token = format!("token new --role read --file {}", file("tokens", ""));
    let lines = [
        "check",
        "status",
        "plan",
        "vips",
        "backends",
        "flows",
        "drops",
        "peers",
        "mitigations",
        "mitigations --state active",
        "talkers",
        "talkers --by bytes",
        "top --once",
        "top --once --rows 1",
        "limit set --prefix 203.0.113.0/24 --pps 10",
        "limits",
        "limits --vip web4",
        "limit remove 1",
        &format!("limit import {limits}"),
        "rules",
        "rules --origin operator",
        "rule add ttl=1->drop",
        "rule preview ttl=1->drop",
        &format!("rule import {rules}"),
        "rule remove 1",
        "deny add 203.0.113.9",
        "deny list",
        &format!("deny import list {sources}"),
        "deny remove list",
        "allow add 203.0.113.9",
        "allow list",
        &format!("allow import list {sources}"),
        "allow remove list",
        &format!("drain backend {name}"),
        &format!("undrain backend {name}"),
        "drain vip web4",
        "undrain vip web4",
        "drain pop",
        "undrain pop lab",
        "reload",
        from,
        &format!("{from} --out {frames}"),
        &format!("explain --pcap {frames}"),
        "completions bash",
        &man,
        "doctor",
        &capture,
        &token,
    ];
    for line in lines {
        // What is gone cannot be removed again.
        if line.contains(" remove ") {
            lab.sluice(&format!("{line} --json")).succeeds().json();
            continue;
        }
        let text = lab.sluice(line).succeeds();
        assert!(
            !text.stdout.contains('\u{1b}'),
            "no colours into a pipe: {line}"
        );
        if let Some(what) = line.strip_prefix("undrain") {
            lab.sluice(&format!("drain{what}")).succeeds();
        }
        lab.sluice(&format!("{line} --json")).succeeds().json();
    }
    // These need an attack, run until they are interrupted, or end it all.
    let elsewhere = [
        "backend",
        "decap",
        "mitigation allow",
        "mitigation revert",
        "run",
        "unload",
    ];
    let others = others(lines);
    assert!(others.iter().eq(&elsewhere), "{others:?}");

    let explained = lab.sluice(&format!("{from} --json")).succeeds().json();
    assert_eq!(
        (&explained["verdict"], &explained["vip"]),
        (&"tx".into(), &"web4".into())
    );
    let ack = lab.sluice("explain --from 198.51.100.7:4711 --to 192.0.2.1:80 --flags none --json");
    assert_eq!(ack.succeeds().json()["reason"], "tcp_flags");
}

#[test]
fn without_a_daemon_every_command_says_so_on_one_line() {
    let lab = Lab::new().build();
    let name = format!("v4/{}", lab.backend("b1").v4());
    let capture = format!("capture {}", lab.dir().join("x.pcapng").display());
    let lines = [
        ("status", "the daemon is not running"),
        ("plan", "the daemon is not running"),
        ("vips", "the daemon is not running"),
        ("vips --watch 1", "the daemon is not running"),
        ("backends", "the daemon is not running"),
        ("flows", "the daemon is not running"),
        ("drops", "the daemon is not running"),
        ("peers", "the daemon is not running"),
        ("top", "the daemon is not running"),
        ("limits --vip web4", "the daemon is not running"),
        ("mitigations --state active", "the daemon is not running"),
        ("mitigation revert 1", "the daemon is not running"),
        ("mitigation allow 1", "the daemon is not running"),
        ("talkers --by bytes", "the daemon is not running"),
        (
            "limit set --prefix 203.0.113.0/24 --pps 10",
            "the daemon is not running",
        ),
        ("limit import /dev/null", "the daemon is not running"),
        ("limit remove 1", "the daemon is not running"),
        ("rules", "the daemon is not running"),
        ("rule add ttl=1->drop", "the daemon is not running"),
        ("rule preview ttl=1->drop", "the daemon is not running"),
        ("rule import /dev/null", "the daemon is not running"),
        ("rule remove 1", "the daemon is not running"),
        ("deny list", "the daemon is not running"),
        ("deny add 203.0.113.9", "the daemon is not running"),
        ("deny import list /dev/null", "the daemon is not running"),
        ("deny remove list", "the daemon is not running"),
        ("allow list", "the daemon is not running"),
        ("allow add 203.0.113.9", "the daemon is not running"),
        ("allow import list /dev/null", "the daemon is not running"),
        ("allow remove list", "the daemon is not running"),
        (
            &format!("drain backend {name}"),
            "the daemon is not running",
        ),
        (
            &format!("undrain backend {name}"),
            "the daemon is not running",
        ),
        ("drain vip web4", "the daemon is not running"),
        ("undrain pop", "the daemon is not running"),
        ("reload", "the daemon is not running"),
        (
            "explain --from 198.51.100.7:1 --to 192.0.2.1:80",
            "nothing is loaded under",
        ),
        (&capture, "nothing is loaded under"),
    ];
    for (line, says) in lines {
        for json in ["", " --json"] {
            let output = lab.sluice(&format!("{line}{json}"));
            assert_eq!(output.status, 1, "{line}: {}", output.stdout);
            assert_eq!(output.stdout, "", "{line}");
            assert!(output.stderr.contains(says), "{line}: {}", output.stderr);
            assert_eq!(
                output.stderr.lines().count(),
                1,
                "{line}: {}",
                output.stderr
            );
        }
    }
    let others = others(lines.map(|(line, _)| line));
    let none_needed = [
        "backend",
        "check",
        "completions",
        "decap",
        "doctor",
        "man",
        "run",
        "token new",
        "unload",
    ];
    assert!(others.iter().eq(&none_needed), "{others:?}");
    lab.sluice("check").succeeds();
    lab.sluice("unload").succeeds();
    lab.sluice("completions fish").succeeds();
}

#[test]
fn a_name_that_nothing_has_is_answered_with_the_one_that_was_meant() {
    let lab = Lab::new().start();
    let address = lab.backend("b1").v4();
    let vips = lab.dir().join("x.pcapng");
    for (line, meant) in [
        (
            format!("drain backend v5/{address}"),
            format!("`v4/{address}`"),
        ),
        ("drain vip web5".into(), "`web".into()),
        ("limits --vip web5".into(), "`web".into()),
        (
            "limit set --prefix 203.0.113.0/24 --pps 1 --vip webb4".into(),
            "`web4`".into(),
        ),
        (
            format!("capture {} --vip wbe4", vips.display()),
            "`web4`".into(),
        ),
    ] {
        let output = lab.sluice(&line);
        assert_eq!(output.status, 1, "{line}");
        let said = &output.stderr;
        assert!(
            said.contains("did you mean") && said.contains(&meant),
            "{line}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
    }
}

#[test]
fn a_refusal_that_is_not_about_a_name_suggests_none() {
    let lab = Lab::new().start();
    for line in [
        "limit set --prefix 203.0.113.0/24 --pps 0",
        "limit set --prefix 203.0.113.0/24 --pps 0 --vip web4",
        "limit remove 4711",
        "drain pop elsewhere",
    ] {
        let output = lab.sluice(line);
        assert_eq!(output.status, 1, "{line}");
        let said = &output.stderr;
        assert!(
            !said.contains("mean") && !said.contains("`web"),
            "{line}: {said}"
        );
    }
}

#[test]
fn watching_shows_again_and_again() {
    let lab = Lab::new().start();
    let out = lab.dir().join("watched");
    let mut command = Command::new(sluice_binary());
    command
        .args(["vips", "--json", "--watch", "0.2", "-c"])
        .arg(lab.node().config_file())
        .stdout(fs::File::create(&out).unwrap());
    let mut child = lab.node().netns().run(|| command.spawn()).unwrap();
    eventually("it was shown several times", || {
        fs::read_to_string(&out).unwrap().lines().count() >= 3
    });
    child.kill().unwrap();
    child.wait().unwrap();
    for line in fs::read_to_string(&out).unwrap().lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn the_doctor_finds_nothing_amiss_in_a_good_lab_with_and_without_the_daemon() {
    let lab = Lab::new()
        .config(|config| config.forward("ipip").health(QUIET))
        .build();
    lab.backends().iter().for_each(sluice_tests::Backend::decap);
    let good = |when: &str| {
        let output = lab.sluice("doctor --json");
        let report = output.json();
        assert_eq!(
            (output.status, &report["ok"]),
            (0, &true.into()),
            "{when}: {report}"
        );
        for check in [
            "config", "kernel", "features", "program", "btf", "bpffs", "pins",
        ] {
            assert_eq!(
                states(&report, check),
                ["ok"; 1].repeat(states(&report, check).len()),
                "{when}: {check}"
            );
        }
        for check in ["interfaces", "rp_filter", "neighbours", "tunnel", "daemon"] {
            assert!(
                states(&report, check).iter().all(|state| state == "ok"),
                "{when}: {report}"
            );
        }
        assert_eq!(states(&report, "neighbours").len(), 6);
        assert_eq!(states(&report, "tunnel").len(), 6, "{when}");
        // The lab's cables take 1,500 bytes, and the tunnel adds to that.
        assert!(
            states(&report, "mtu").iter().all(|state| state == "warn"),
            "{when}"
        );
        let text = lab.sluice("doctor").succeeds().stdout;
        assert!(text.contains("0 failed"), "{text}");
        assert!(!text.contains('\u{1b}'));
    };
    good("before the first start");
    lab.daemon().start();
    lab.wait_until_ready();
    good("with a daemon");
    lab.daemon().stop();
    let report = lab.sluice("doctor --json").succeeds().json();
    assert!(
        states(&report, "pins").contains(&"warn".to_owned()),
        "nobody looks after it: {report}"
    );
}

#[test]
fn the_doctor_says_what_to_do_on_a_broken_host() {
    let lab = Lab::new()
        .config(|config| config.forward("gue").health(QUIET))
        .build();
    lab.backend("b1").decap();
    lab.backend("b3").unplug();
    lab.node()
        .netns()
        .command("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=1"]);
    let output = lab.sluice("doctor --json");
    let report = output.json();
    assert_eq!(
        (output.status, &report["ok"]),
        (1, &false.into()),
        "{report}"
    );

    let of = |check: &str, name: &str| {
        let address = lab.backend(name).v4().to_string();
        let all = findings(&report, check);
        let found = all
            .iter()
            .find(|finding| finding["subject"].as_str().unwrap().ends_with(&address));
        (*found.unwrap_or_else(|| panic!("{check} {name}: {report}"))).clone()
    };
    assert_eq!(of("tunnel", "b1")["state"], "ok", "{report}");
    let without_decap = of("tunnel", "b2");
    assert_eq!(without_decap["state"], "fail");
    assert!(
        without_decap["found"]
            .as_str()
            .unwrap()
            .contains("answers directly"),
        "{without_decap}"
    );
    assert!(
        without_decap["advice"]
            .as_str()
            .unwrap()
            .contains("sluice decap")
    );
    assert_eq!(of("neighbours", "b3")["state"], "fail");
    assert!(
        of("tunnel", "b3")["found"]
            .as_str()
            .unwrap()
            .contains("neither")
    );
    assert!(
        states(&report, "rp_filter").contains(&"warn".to_owned()),
        "{report}"
    );

    // Pins of another version, and a config that is wrong.
    let other = lab.node().pin_dir().join("v1");
    fs::create_dir_all(other.join("x")).unwrap();
    let config = fs::read_to_string(lab.node().config_file()).unwrap();
    lab.node()
        .write_config(&config.replace("[[vip]]", "[[vipp]]"));
    let output = lab.sluice("doctor --json");
    let report = output.json();
    fs::remove_dir(other.join("x")).unwrap();
    fs::remove_dir(&other).unwrap();
    assert_eq!(output.status, 1);
    assert_eq!(states(&report, "config"), ["fail"]);
    assert!(
        states(&report, "pins").contains(&"fail".to_owned()),
        "{report}"
    );
    assert_eq!(
        states(&report, "program"),
        ["ok"],
        "what does not hang on the config is looked at"
    );
}

/// The packets of a pcapng file: comment, length on the wire, bytes.
fn packets(file: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let bytes = fs::read(file).unwrap();
    let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            let comment = packet.options.iter().find_map(|option| match option {
                EnhancedPacketOption::Comment(text) => Some(text.to_string()),
                _ => None,
            });
            packets.push((comment.unwrap(), packet.original_len, packet.data.to_vec()));
        }
    }
    packets
}

/// What tshark says are the comments.
fn by_tshark(file: &Path) -> Vec<String> {
    let output = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(file)
        .args(["-T", "fields", "-e", "frame.comment"])
        .output()
        .unwrap_or_else(|error| panic!("cannot run tshark (run `cargo xtask setup`): {error}"));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn capture(node: &Node, file: &Path, arguments: &str) -> Value {
    let line = format!("capture {} {arguments} --json", file.display());
    node.sluice(&line).succeeds().json()
}

#[test]
fn a_capture_during_a_flood_is_bounded_and_says_why_each_packet_was_dropped() {
    let limits =
        r#"[{ class = "syn", per = "host", pps = 10 }, { class = "udp", per = "host", pps = 10 }]"#;
    let lab = Lab::new()
        .config(move |config| config.policy("enforce", limits))
        .start();
    let file = lab.dir().join("flood.pcapng");
    let frames = lab
        .node()
        .frames()
        .flood("203.0.113.7/32".parse().unwrap(), 1024);
    let flood = lab.flood(frames);
    within(Duration::from_secs(10), "the flood runs", || {
        flood.sent() > 20_000
    });

    let told = capture(lab.node(), &file, "--verdict drop --duration 2s --rate 500");
    let captured = told["captured"].as_u64().unwrap();
    assert!(
        (100..=2000).contains(&captured),
        "capped at 500 a second and a burst: {told}"
    );
    assert!(told["matched"].as_u64().unwrap() > 10 * captured, "{told}");
    assert!(told["over_rate"].as_u64().unwrap() > captured, "{told}");
    let all = packets(&file);
    assert_eq!(all.len() as u64, captured);
    for (comment, length, data) in &all {
        assert!(
            comment.starts_with("drop, reason limit_host, VIP "),
            "{comment}"
        );
        assert!(
            comment.ends_with("web4") || comment.ends_with("dns4"),
            "{comment}"
        );
        assert!(data.len() <= *length as usize && data.len() <= 256);
        let sliced = etherparse::SlicedPacket::from_ethernet(data).unwrap();
        assert!(sliced.transport.is_some(), "a frame as it came");
    }
    let expected: Vec<_> = all.iter().map(|(comment, ..)| comment.clone()).collect();
    assert_eq!(by_tshark(&file), expected);

    // Filters hold in the data plane: what is rare is found in the flood.
    let rare = lab.dir().join("rare.pcapng");
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            capture(
                lab.node(),
                &rare,
                "--prefix 198.18.0.0/15 --vip web4 --count 4 --duration 8s",
            )
        });
        thread::sleep(Duration::from_millis(500));
        let source = "198.18.1.2:4711".parse().unwrap();
        for _ in 0..4 {
            let syn = lab.node().frames().syn(source, WEB_V4);
            lab.uplink_sender().send_many(&[syn]).unwrap();
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(asked.join().unwrap()["captured"], 4);
    });
    let sent = flood.stop();
    assert!(sent > 50_000);
    for (comment, ..) in packets(&rare) {
        assert!(
            comment.starts_with("tx, VIP web4, backend v4/"),
            "{comment}"
        );
    }
    let every = lab.dir().join("every.pcapng");
    let told = capture(lab.node(), &every, "--reason no_backend --duration 200ms");
    assert_eq!(
        (&told["captured"], &told["matched"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn what_goes_into_a_tunnel_is_captured_in_it_and_found_by_its_client() {
    let lab = Lab::new()
        .config(|config| config.forward("gue"))
        .start_with_decap();
    let file = lab.dir().join("tunnel.pcapng");
    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            capture(
                lab.node(),
                &file,
                "--prefix 198.18.0.0/15 --count 1 --duration 8s",
            )
        });
        thread::sleep(Duration::from_millis(500));
        let syn = lab
            .node()
            .frames()
            .syn("198.18.1.2:4711".parse().unwrap(), WEB_V4);
        lab.uplink_sender().send_many(&[syn]).unwrap();
        assert_eq!(asked.join().unwrap()["captured"], 1);
    });
    let all = packets(&file);
    let sliced = etherparse::SlicedPacket::from_ethernet(&all[0].2).unwrap();
    let Some(etherparse::TransportSlice::Udp(outer)) = sliced.transport else {
        panic!("no GUE: {:?}", all[0]);
    };
    assert_eq!(outer.destination_port(), 6080);
}

#[test]
fn one_capture_at_a_time_and_none_stays_when_it_is_killed() {
    let lab = Lab::new().start();
    let file = lab.dir().join("first.pcapng");
    let mut command = Command::new(sluice_binary());
    command
        .arg("capture")
        .arg(&file)
        .arg("-c")
        .arg(lab.node().config_file());
    let mut first = lab.node().netns().run(|| command.spawn()).unwrap();
    eventually("the first has begun", || file.exists());
    let second = lab.sluice("capture - --duration 1s");
    assert_eq!(second.status, 1);
    assert!(
        second.stderr.contains("another capture is under way"),
        "{}",
        second.stderr
    );

    // Killed, it leaves its file readable, and a capture after it does not see its packets.
    lab.client(0).who(WEB_V4).unwrap();
    eventually("packets are in the file", || {
        fs::metadata(&file).unwrap().len() > 500
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(first.id()).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    first.wait().unwrap();
    assert!(!packets(&file).is_empty());
    let stranger = "198.18.1.3:4711".parse().unwrap();
    let syn = lab.node().frames().syn(stranger, WEB_V4);
    lab.uplink_sender().send_many(&[syn]).unwrap();
    let third = lab.dir().join("third.pcapng");
    let told = capture(
        lab.node(),
        &third,
        "--duration 300ms --prefix 198.18.1.3/32",
    );
    assert_eq!(told["captured"], 0, "{told}");
}
