//! A real Prometheus reads the metrics; dashboards have data, and alerts fire when they should and only then.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
use serde_json::Value;
use sluice::metrics::names;
use sluice_tests::{
    Config, DNS_V4, DNS_V6, Frames, Lab, Prometheus, WEB_V4, WEB_V6, grafana_dir, within,
};

/// What a policy drops here, and what another only counts. Hosts that send twice a second are over it.
const POLICIES: &str = r#"
[[policy]]
name = "strict"
mode = "enforce"
detect = "advise"
limits = [{ class = "syn", per = "host", pps = 1, burst = 1 }]
syn = { mode = "auto", monitor = true }

[[policy]]
name = "watch"
mode = "monitor"
limits = [{ class = "udp", per = "host", pps = 1, burst = 1 }]
amplification = ["all"]

[detect]
mode = "enforce"
learn = "3s"
thresholds = { pps = 4_000, factor = 3, cap = 3 }
"#;

/// How often Prometheus scrapes: no more often than a machine under a flood can answer in time.
const BESIDE_A_FLOOD: Duration = Duration::from_millis(500);
const IN_PEACE: Duration = Duration::from_millis(200);

fn with_policies(mut config: Config) -> Config {
    config.extra += POLICIES;
    config.vip("web4").extra += "policy = \"strict\"\n";
    config.vip("dns4").extra += "policy = \"watch\"\n";
    config
}

/// Runs a program of Prometheus' package, and returns what it says.
fn promtool(arguments: &[&str], input: Option<&str>) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments);
    if let Some(file) = input {
        command.stdin(fs::File::open(file).unwrap());
    }
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run promtool (`cargo xtask setup`): {error}"));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    said
}

fn files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(grafana_dir().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut files: Vec<String> = paths
        .filter(|path| path.is_file())
        .map(|path| path.display().to_string())
        .collect();
    files.sort();
    files
}

#[test]
fn rules_pass_their_tests() {
    let rules = files("rules");
    let mut arguments = vec!["check", "rules"];
    arguments.extend(rules.iter().map(String::as_str));
    promtool(&arguments, None);
    let tests = files("rules/tests");
    let mut arguments = vec!["test", "rules"];
    arguments.extend(tests.iter().map(String::as_str));
    promtool(&arguments, None);
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let lab = Lab::new().start();
    lab.client(0).connect(WEB_V4).unwrap();
    promtool_takes_the_metrics(&lab);
}

fn promtool_takes_the_metrics(lab: &Lab) {
    let file = lab.dir().join("metrics.txt");
    // The unit in the name of this one is what it is about: there is no base unit that says it as well.
    let metrics = lab.node().metrics();
    let lines = metrics
        .lines()
        .filter(|line| !line.contains(names::XDP_NS_PER_PACKET.name));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    fs::write(&file, text).unwrap();
    let said = promtool(&["check", "metrics"], Some(&file.display().to_string()));
    assert_eq!(said, "");
}

/// A Prometheus whose alerts are watched.
struct Watch<'a> {
    prometheus: Prometheus<'a>,
    scrape_interval: Duration,
}

impl<'a> Watch<'a> {
    fn start(lab: &'a Lab, scrape_interval: Duration) -> Self {
        Self {
            prometheus: Prometheus::start(lab, scrape_interval),
            scrape_interval,
        }
    }

    /// Waits until these alerts fire; no other may, neither meanwhile nor in six scrapes after.
    fn only_these_fire(&self, expected: &[&str], allowed: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(ToString::to_string).collect();
        let may = |alert: &String| expected.contains(alert) || allowed.contains(&alert.as_str());
        let start = Instant::now();
        let mut since = None;
        loop {
            let alerts = self.prometheus.alerts();
            assert!(alerts.iter().all(may), "{alerts:?} instead of {expected:?}");
            if alerts.is_superset(&expected) {
                let since = *since.get_or_insert_with(Instant::now);
                if since.elapsed() > 6 * self.scrape_interval {
                    return;
                }
            } else {
                since = None;
            }
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "{alerts:?} instead of {expected:?}"
            );
            sleep(self.scrape_interval / 2);
        }
    }

    /// Waits until none fires any more.
    fn all_calm_down(&self) {
        within(Duration::from_secs(60), "all alerts end", || {
            self.prometheus.alerts().is_empty()
        });
    }
}

fn honest_traffic(lab: &Lab) {
    let client = lab.client(0);
    client.http_get(WEB_V6, "/health").unwrap();
    let _lost = (
        client.udp_ask(DNS_V4, b"good"),
        client.udp_ask(DNS_V6, b"good"),
    );
}

/// Queries of all panels, as Grafana would ask them.
fn panels() -> Vec<(String, String)> {
    let mut panels = Vec::new();
    for file in files("dashboards") {
        let board: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                let query = query
                    .replace("$__rate_interval", "5s")
                    .replace("$instance", ".*")
                    .replace("$vip", ".*");
                assert!(!query.contains('$'), "{query}");
                panels.push((panel["title"].to_string(), query));
            }
        }
    }
    assert!(panels.len() > 30);
    panels
}

fn every_panel_has_data(prometheus: &Prometheus<'_>) {
    let panels = panels();
    let mut empty = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        empty.clear();
        for (title, query) in &panels {
            if prometheus.query(query).is_empty() {
                empty.push(format!("{title}: {query}"));
            }
        }
        if empty.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "no data:\n{}", empty.join("\n"));
        sleep(Duration::from_millis(500));
    }
}

fn every_metric_is_there(prometheus: &Prometheus<'_>) {
    for metric in names::ALL {
        let samples = prometheus.query(metric.name);
        let sample = samples
            .first()
            .unwrap_or_else(|| panic!("{} has no sample", metric.name));
        let labels: BTreeSet<&str> = sample["metric"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .filter(|label| !["__name__", "instance", "job"].contains(label))
            .collect();
        // Prometheus knows no empty labels.
        let may = BTreeSet::from_iter(metric.labels.iter().copied());
        assert!(labels.is_subset(&may), "{}: {labels:?}", metric.name);
    }
}

#[test]
fn dashboards_have_data_and_attack_alerts_fire_under_attack() {
    // What `sysctl kernel.bpf_stats_enabled=1` does, for as long as this is held.
    let _measuring = enable_stats(Stats::RunTime).unwrap();
    let lab = Lab::new().alone().config(with_policies).start();
    // Of a limit that is not for the honest.
    lab.sluice("limit set --prefix 16.1.0.0/16 --class udp --pps 10 --burst 10")
        .succeeds();
    // Whether detection finds a rule of its own depends on what peace it sees.
    lab.node()
        .sluice_words(&["rule", "add", "src 16.1.0.0/16; ttl 1 -> drop"])
        .succeeds();
    // There is no set either, and panels ask for one.
    lab.node().sluice("deny add 16.2.0.0/16").succeeds();
    let watch = Watch::start(&lab, BESIDE_A_FLOOD);
    let prometheus = &watch.prometheus;
    // So long that there is peace to tell an attack by.
    for _ in 0..20 {
        honest_traffic(&lab);
        assert_eq!(prometheus.alerts(), BTreeSet::new());
        sleep(Duration::from_millis(500));
    }

    let maker = lab.node().frames();
    let prefix = "16.0.0.0/8".parse().unwrap();
    let mut frames = maker.flood(prefix, 1 << 17);
    // Answers of character generators, which nobody asked for.
    frames.extend(Frames::sources(prefix, 1 << 12).map(|source| {
        let source = SocketAddr::new(source.ip(), 19);
        maker.udp(source, DNS_V4, &[b'x'; 400])
    }));
    let flood = lab.flood(frames);
    let attack = [
        "SluiceUnderAttack",
        "SluiceLimiterCrowded",
        "SluiceFlowTableFull",
        "SluiceAttackSeen",
    ];
    watch.only_these_fire(&attack, &[]);
    every_panel_has_data(prometheus);
    every_metric_is_there(prometheus);
    promtool_takes_the_metrics(&lab);
    flood.stop();
    within(Duration::from_secs(60), "the attack is over", || {
        let alerts = prometheus.alerts();
        !alerts.contains("SluiceUnderAttack") && !alerts.contains("SluiceLimiterCrowded")
    });
}

#[test]
fn alerts_tell_of_backends_that_fail() {
    let quick = r#"{ kind = "http", port = 80, path = "/health", status = 200, interval = "500ms", timeout = "500ms", rise = 1, fall = 3 }"#;
    let lab = Lab::new()
        .quiet()
        .backends(["b1", "b2", "b3"])
        .config(move |config| config.health(quick))
        .start();
    let watch = Watch::start(&lab, IN_PEACE);
    watch.only_these_fire(&[], &[]);

    lab.backend("b1").stop();
    watch.only_these_fire(&["SluiceBackendDown"], &[]);
    lab.backend("b2").stop();
    let degraded = ["SluiceBackendDown", "SluicePoolDegraded"];
    watch.only_these_fire(&degraded, &[]);
    lab.backend("b3").stop();
    let down = ["SluiceBackendDown", "SluicePoolDegraded", "SluicePoolDown"];
    watch.only_these_fire(&down, &[]);
    let frames = lab
        .node()
        .frames()
        .syn_flood("198.18.0.0/24".parse().unwrap(), 64);
    let flood = lab.trickle(frames);
    let unserved = [&down[..], &["SluicePacketsWithoutBackend"]].concat();
    watch.only_these_fire(&unserved, &[]);
    flood.stop();
    lab.backends().iter().for_each(|backend| backend.start());
    watch.all_calm_down();
}

#[test]
fn alerts_tell_of_daemons_and_configs() {
    let lab = Lab::new().quiet().load_balancers(2).start();
    let other = &lab.nodes()[1];
    let watch = Watch::start(&lab, IN_PEACE);
    watch.only_these_fire(&[], &[]);

    let good = other.config_text(&lab.config());
    other.write_config("nonsense");
    // Not `sluice reload`: that would look for the socket's name in the file.
    other.daemon().hup();
    watch.only_these_fire(&["SluiceConfigReloadFailed"], &[]);

    other.write_config(&other.config_text(&lab.config().without("b1")));
    other.daemon().reload().succeeds();
    let differ = ["SluiceTablesDiffer"];
    // The one before ends when Prometheus has seen the reload.
    watch.only_these_fire(&differ, &["SluiceConfigReloadFailed"]);
    other.write_config(&good);
    other.daemon().reload().succeeds();
    watch.all_calm_down();

    other.daemon().stop();
    watch.only_these_fire(&["SluiceDown"], &[]);
    other.sluice("unload").succeeds();
    let mut generic = lab.config();
    generic.dataplane += "mode = \"generic\"\n";
    other.write_config(&other.config_text(&generic));
    other.daemon().start();
    let starting = [
        "SluiceDown",
        "SluiceTablesDiffer",
        "SluiceBackendDown",
        "SluicePoolDegraded",
        "SluicePoolDown",
    ];
    watch.only_these_fire(&["SluiceGenericMode"], &starting);
}
