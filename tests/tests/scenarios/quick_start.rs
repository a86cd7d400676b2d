//! "For real" of the README, word for word: its config, its commands, its limit and its query.

use std::{fs, net::SocketAddr, path::Path, thread::sleep, time::Duration};

use serde_json::Value;
use sluice_tests::{ApiConn, Frames, Lab, Prometheus, sluice_binary, within};

#[test]
fn the_readme_leads_from_a_config_to_a_limit_that_its_query_shows() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme).unwrap();
    let text = between(&readme, "\n## For real\n", "\n## ");

    // Its interface and its addresses are those of a lab. Where files lie is all that differs.
    let lab = Lab::new().backends(["b1", "b2"]).build();
    let node = lab.node();
    let etc = lab.dir().join("etc");
    fs::create_dir(&etc).unwrap();
    let here = |text: &str| text.replace("/etc/sluice", etc.to_str().unwrap());
    let dataplane = format!(
        "[dataplane]\npin_dir = {:?}\nstate_dir = {:?}\n",
        node.pin_dir(),
        node.state_dir()
    );
    let api = format!("[api]\nsocket = {:?}\n", node.socket());
    let config = here(between(text, "```toml\n", "```"))
        .replace("[dataplane]\n", &dataplane)
        .replace("[api]\n", &api);
    node.write_config(&config);

    let binary = sluice_binary().display();
    let token = format!("{binary} -c {} token", node.config_file().display());
    for line in text.lines().filter(|line| line.contains("(umask 077; ")) {
        let line = here(line).replace("sluice token", &token);
        node.netns().command("sh", &["-c", &line]);
    }
    let mut commands = text
        .lines()
        .filter_map(|line| line.strip_prefix("    sluice "))
        .map(|line| line.split('#').next().unwrap_or(line).trim());
    for command in commands.by_ref().take_while(|command| *command != "run") {
        lab.sluice(command).succeeds();
    }
    lab.daemon().start();
    within(
        Duration::from_secs(30),
        "both backends are up and resolved",
        || {
            let ready = |row: &Value| row["state"] == "up" && row["resolved"] == true;
            let rows = node.items("backends");
            rows.len() == 2 && rows.iter().all(ready)
        },
    );
    let vip: SocketAddr = "192.0.2.10:80".parse().unwrap();
    lab.client(0).who(vip).unwrap();

    let body = between(text, "http://localhost/v1/limits \\\n        --json '", "'");
    let mut api = ApiConn::open(&node.socket()).unwrap();
    let limit = api.send("POST", "/v1/limits", body).unwrap();
    assert_eq!(limit.status, 201);
    let limit = limit.json();
    let id = limit["id"].to_string();

    let scrape = here(between(text, "```yaml\n", "```"));
    let prometheus = Prometheus::start_with(&lab, &scrape);
    let query = between(text, "--data-urlencode 'query=", "'");
    // From so many hosts that the limit of the policy meets none of them.
    let prefix = limit["prefix"].as_str().unwrap().parse().unwrap();
    let frames: Vec<Vec<u8>> = Frames::sources(prefix, 200)
        .map(|source| node.frames().syn(source, vip))
        .collect();
    let uplink = lab.uplink_sender();
    within(
        Duration::from_secs(60),
        "the query shows what the limit drops",
        || {
            uplink.send_many(&frames).unwrap();
            sleep(Duration::from_millis(200));
            let samples = prometheus.query(query);
            samples
                .iter()
                .any(|sample| sample["metric"]["limit"] == id && rate(sample) > 0.0)
        },
    );

    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 5, "they were read: {commands:?}");
    for command in commands {
        lab.sluice(command).succeeds();
    }
    let drained = node.backend_row("10.0.0.11".parse().unwrap());
    // It depends on whether the one request went to it.
    let state = drained["state"].as_str().unwrap();
    assert!(["draining", "drained"].contains(&state), "{state}");
}

fn rate(sample: &Value) -> f64 {
    sample["value"][1].as_str().unwrap().parse().unwrap()
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text
        .split_once(from)
        .unwrap_or_else(|| panic!("the README has no {from:?}"));
    let (found, _) = rest
        .split_once(to)
        .unwrap_or_else(|| panic!("the README has no {to:?} after {from:?}"));
    found
}
