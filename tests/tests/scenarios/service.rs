//! The daemon as a service: what it tells the service manager, with how few rights it works, and how it logs.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use sluice_tests::{Backend, Lab, Node, Output, WEB_V4, WEB_V6, eventually, sluice_binary, within};

/// What the unit file grants, and the daemon keeps.
const RIGHTS: [(&str, u64); 4] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

#[test]
fn the_service_manager_hears_when_it_is_ready_reloads_is_well_and_ends() {
    let lab = Lab::new()
        .config(|mut config| {
            // Nobody is there, so that the first tables wait for as long as they may.
            let mut nobody = config.pools[0].backends[0].clone();
            nobody.address = "10.0.0.99".to_owned();
            config.pools[0].backends.push(nobody);
            config
        })
        .build();
    let manager = Manager::new(&lab.dir());
    let begin = Instant::now();
    lab.daemon()
        .start_under(&["env", &manager.variable(), "WATCHDOG_USEC=2000000"]);
    assert_eq!(status(lab.node())["ready"], false);
    let waits = manager.hear("STATUS=");
    assert!(waits.contains("waits for health and next hops"), "{waits}");
    let ready = manager.hear("READY=1");
    assert!(begin.elapsed() > Duration::from_secs(3), "it waited");
    assert!(ready.contains("STATUS=forwards: 4 VIPs,"), "{ready}");
    assert_eq!(status(lab.node())["ready"], true);
    assert!(lab.node().netns().has_xdp("eth0"));
    for vip in [WEB_V4, WEB_V6] {
        lab.client(0).who(vip).unwrap();
    }
    if !ready.contains("6 of 7 backends up") {
        manager.hear("6 of 7 backends up");
    }

    lab.daemon().reload().succeeds();
    manager.hear("RELOADING=1\nMONOTONIC_USEC=");
    manager.hear("READY=1");
    lab.node().write_config("nonsense");
    lab.daemon().hup();
    manager.hear("RELOADING=1\nMONOTONIC_USEC=");
    manager.hear("READY=1");
    assert_eq!(status(lab.node())["last_reload"]["ok"], false);

    for _ in 0..5 {
        manager.hear("WATCHDOG=1");
    }
    lab.daemon().stop();
    manager.hear("STOPPING=1");
}

#[test]
fn all_works_with_the_few_rights_that_it_keeps() {
    let lab = Lab::new()
        .two_interfaces()
        .config(|mut config| {
            let [v4, v6] = &mut config.pools[..] else {
                panic!("two pools");
            };
            v4.health = check("icmp", "");
            v6.health = check("tcp", ", port = 80, via_tunnel = true");
            config.forward("ipip")
        })
        .build();
    lab.backends().iter().for_each(Backend::decap);
    let all = lab.node().config_text(&lab.config());
    let both = "[\"eth0\", \"eth1\"]";
    assert!(all.contains(both), "{all}");
    let one = all.replace(both, "[\"eth0\"]");
    let without_dns = |text: &str| {
        let (before, _) = text.split_once("\n[[vip]]\nname = \"dns4\"").unwrap();
        before.to_owned()
    };

    // With all of root's rights, which it gives up; then with as few as the unit file grants.
    let bounded = RIGHTS.map(|(name, _)| name.trim_start_matches("CAP_").to_lowercase());
    let bounding = format!("--bounding-set=-all,+{}", bounded.join(",+"));
    for words in [&[][..], &["setpriv", "--inh-caps=-all", &bounding]] {
        lab.node().write_config(&without_dns(&one));
        lab.daemon().start_under(words);
        lab.wait_until_ready();
        holds_only_what_is_promised(&lab);
        assert!(!lab.node().netns().has_xdp("eth1"));

        // A new interface and new VIPs; then back, and there again.
        for (text, there) in [(&all, true), (&without_dns(&one), false), (&all, true)] {
            lab.node().write_config(text);
            lab.daemon().reload().succeeds();
            assert_eq!(lab.node().netns().has_xdp("eth1"), there);
        }
        for vip in [WEB_V4, WEB_V6, sluice_tests::DNS_V4, sluice_tests::DNS_V6] {
            assert_eq!(lab.client(0).spread(vip, 60).unwrap().len(), 3, "{vip}");
        }

        let client = lab.client(0).address(WEB_V4, 2);
        let line = format!("limit set --prefix {client}/32 --class syn --pps 1000 --json");
        let limit = lab.sluice(&line).succeeds().json();
        lab.client(0).who(WEB_V4).unwrap();
        let matched = &lab.node().items("limits")[0]["matched_packets"];
        assert!(matched.as_u64().unwrap() > 0);
        lab.sluice(&format!("limit remove {}", limit["id"]))
            .succeeds();

        let failing = lab.backend("b2");
        failing.stop();
        let is = |state: &str| lab.node().backend_row(failing.v6())["state"] == state;
        eventually("the check through the tunnel fails", || is("down"));
        failing.start();
        eventually("b2 is back", || is("up"));

        // Crash and start: what is pinned is taken up, and the program replaced.
        lab.daemon().kill9();
        lab.daemon().start_under(words);
        lab.wait_until_ready();
        assert_eq!(status(lab.node())["adopted"], true);
        holds_only_what_is_promised(&lab);
        lab.daemon().stop();
        lab.sluice("unload").succeeds();
    }
}

#[test]
fn the_log_is_json_if_asked_for_and_a_flood_in_it_is_cut_short() {
    let lab = Lab::new().build();
    lab.daemon()
        .start_under(&["env", "SLUICE_LOG_FORMAT=json", "SLUICE_LOG=debug"]);
    lab.wait_until_ready();
    lab.node().write_config("nonsense");
    let begin = Instant::now();
    for _ in 0..60 {
        assert_eq!(by_socket(lab.node(), "reload").status, 1);
    }
    assert!(begin.elapsed() < Duration::from_secs(60));
    let left_out = || -> u64 {
        let lines = messages(lab.node()).into_iter();
        lines.filter_map(|line| line["left_out"].as_u64()).sum()
    };
    within(
        Duration::from_secs(20),
        "it says how many it left out",
        || {
            let lines = messages(lab.node());
            let refused = |line: &&Value| {
                let message = line["message"].as_str().unwrap_or_default();
                message.starts_with("config refused") && line.get("left_out").is_none()
            };
            let refused = lines.iter().filter(refused).count() as u64;
            refused + left_out() == 60
        },
    );
    assert!(left_out() > 0, "60 in {:?}", begin.elapsed());
    for line in messages(lab.node()) {
        let has = |key: &str| line[key].is_string();
        assert!(has("timestamp") && has("level") && has("target"), "{line}");
    }

    lab.daemon().stop();
    let refused = lab.sluice("run --log-format json");
    assert_eq!(refused.status, 1);
    let last = refused.stderr.lines().last().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["level"], "ERROR", "{last}");
}

#[test]
fn the_unit_file_grants_what_the_daemon_keeps_and_systemd_takes_it() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/sluice.service");
    let unit = fs::read_to_string(file).unwrap();
    let granted = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    let mut granted: Vec<_> = granted.split_whitespace().collect();
    granted.sort_unstable();
    let mut kept = RIGHTS.map(|(name, _)| name);
    kept.sort_unstable();
    assert_eq!(granted, kept);

    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("sluice.service");
    let binary = sluice_binary().to_str().unwrap();
    fs::write(&copy, unit.replace("/usr/local/bin/sluice", binary)).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        let output = command.args(arguments).arg(&copy).output();
        let output = output.unwrap_or_else(|error| {
            panic!("cannot run systemd-analyze (run `cargo xtask setup`): {error}")
        });
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    assert_eq!(analyze(&["verify"]), (true, String::new()));
    // In tenths: 10 is nothing, 100 is bare.
    let (good, said) = analyze(&["security", "--offline=yes", "--threshold=30"]);
    assert!(good, "{said}");
}

fn holds_only_what_is_promised(lab: &Lab) {
    let mask = RIGHTS.iter().fold(0, |mask, (_, bit)| mask | 1 << bit);
    let wanted = [
        ("CapInh", 0),
        ("CapPrm", mask),
        ("CapEff", mask),
        ("CapAmb", 0),
    ];
    let tasks = fs::read_dir(format!("/proc/{}/task", lab.daemon().pid())).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim_start_matches(':').trim().to_owned()
        };
        for (name, mask) in wanted {
            assert_eq!(
                u64::from_str_radix(&field(name), 16).unwrap(),
                mask,
                "{status}"
            );
        }
        assert_eq!(field("NoNewPrivs"), "1");
        threads += 1;
    }
    assert!(threads > 1, "checks have a thread of their own");
    let names: Vec<_> = RIGHTS.iter().map(|(name, _)| Value::from(*name)).collect();
    assert_eq!(status(lab.node())["capabilities"], Value::from(names));
}

fn status(node: &Node) -> Value {
    by_socket(node, "status --json").succeeds().json()
}

/// Whatever the config says.
fn by_socket(node: &Node, line: &str) -> Output {
    node.sluice(&format!("{line} --socket {}", node.socket().display()))
}

fn messages(node: &Node) -> Vec<Value> {
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    node.log().lines().map(parse).collect()
}

fn check(kind: &str, more: &str) -> String {
    format!(
        r#"{{ kind = "{kind}"{more}, interval = "500ms", timeout = "500ms", rise = 1, fall = 4 }}"#
    )
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Stands in for systemd.
struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Manager {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { path, socket }
    }

    fn variable(&self) -> String {
        format!("NOTIFY_SOCKET={}", self.path.display())
    }

    /// The next message with this in it; others are passed over.
    fn hear(&self, what: &str) -> String {
        let mut buffer = [0; 1000];
        let begin = Instant::now();
        loop {
            let bytes = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("no {what}: {error}"));
            let told = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
            if told.contains(what) {
                return told;
            }
            assert!(begin.elapsed() < PATIENCE, "no {what}, but {told}");
        }
    }
}
