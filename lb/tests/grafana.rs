//! Dashboards, rules and the exporter speak of the same metrics and labels.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use sluice::metrics::names::{self, Metric};

/// Labels that Prometheus adds.
const SCRAPE_LABELS: [&str; 2] = ["instance", "job"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn grafana() -> PathBuf {
    repository().join("grafana")
}

fn files(folder: &str) -> Vec<(String, String)> {
    let folder = grafana().join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.display().to_string(), text)
        })
        .collect();
    files.sort();
    files
}

fn dashboards() -> Vec<(String, Value)> {
    let parse = |(name, text): (String, String)| {
        let board = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, board)
    };
    files("dashboards").into_iter().map(parse).collect()
}

/// Every query of a dashboard, with the legend that goes with it: of its panels and of its variables.
fn queries(board: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let panels = board["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
        .map(|target| (text(&target["expr"]), text(&target["legendFormat"])));
    let variables = board["templating"]["list"].as_array().unwrap();
    let variables = variables
        .iter()
        .filter(|variable| variable["type"] == "query")
        .map(|variable| (text(&variable["query"]["query"]), String::new()));
    targets.chain(variables).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Names of ours in a query, each with the labels that its selector names.
fn selectors(query: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(at) = rest.find(is_word) {
        let begin = &rest[at..];
        let end = begin.find(|c| !is_word(c)).unwrap_or(begin.len());
        let (word, after) = begin.split_at(end);
        let inside = after
            .strip_prefix('{')
            .and_then(|after| after.split_once('}'));
        if word.starts_with("sluice_") {
            let labels = inside.map_or_else(Vec::new, |(inside, _)| matched(inside));
            found.push((word, labels));
        }
        rest = inside.map_or(after, |(_, rest)| rest);
    }
    found
}

/// Labels before `=`, `!=`, `=~` and `!~`.
fn matched(matchers: &str) -> Vec<&str> {
    // Outside of quotes are the even parts.
    let outside = matchers.split('"').step_by(2);
    outside
        .map(|part| part.trim_matches([',', ' ', '=', '!', '~']))
        .filter(|label| !label.is_empty())
        .collect()
}

/// Labels of `by (...)`.
fn groupings(query: &str) -> Vec<&str> {
    let lists = query.split("by (").skip(1);
    lists
        .filter_map(|list| list.split(')').next())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .collect()
}

/// Labels in `{{...}}` of a legend, or of an annotation.
fn templated(text: &str) -> Vec<&str> {
    let parts = text.split("{{").skip(1);
    parts
        .filter_map(|part| part.split("}}").next())
        .map(str::trim)
        .collect()
}

fn metric(name: &str, of: &str) -> &'static Metric {
    names::ALL
        .iter()
        .find(|metric| metric.name == name)
        .unwrap_or_else(|| panic!("{of}: there is no metric {name}"))
}

/// Checks a query's names and labels; returns the names.
fn check<'a>(query: &'a str, legend: &str, of: &str) -> BTreeSet<&'a str> {
    let mut known = BTreeSet::from(SCRAPE_LABELS);
    let mut used = BTreeSet::new();
    for (name, labels) in selectors(query) {
        let metric = metric(name, of);
        for label in labels {
            let has = metric.labels.contains(&label) || SCRAPE_LABELS.contains(&label);
            assert!(has, "{of}: {name} has no label {label}");
        }
        known.extend(metric.labels);
        used.insert(name);
    }
    let recorded = query.contains(":sluice_");
    for label in groupings(query).into_iter().chain(templated(legend)) {
        assert!(
            recorded || known.contains(label),
            "{of}: nothing in `{query}` has a label {label}"
        );
    }
    used
}

#[test]
fn dashboards_ask_for_metrics_and_labels_that_exist_and_for_every_metric() {
    let boards = dashboards();
    assert!(boards.len() >= 2);
    let mut shown = BTreeSet::new();
    for (name, board) in &boards {
        for (query, legend) in queries(board) {
            let used = check(&query, &legend, name);
            assert!(!used.is_empty(), "{name}: `{query}` asks for nothing");
            shown.extend(used.into_iter().map(str::to_owned));
        }
    }
    let all: BTreeSet<String> = names::ALL.iter().map(|metric| metric.name.into()).collect();
    assert_eq!(shown, all);
}

#[test]
fn dashboards_are_provisioned_whole() {
    let mut uids = BTreeSet::new();
    for (name, board) in dashboards() {
        assert!(uids.insert(board["uid"].as_str().unwrap().to_owned()));
        let mut ids = BTreeSet::new();
        for panel in board["panels"].as_array().unwrap() {
            let id = panel["id"].as_u64().unwrap();
            assert!(ids.insert(id), "{name}: two panels {id}");
            if panel["type"] == "row" {
                continue;
            }
            for target in panel["targets"].as_array().unwrap() {
                for source in [&panel["datasource"], &target["datasource"]] {
                    assert_eq!(source["uid"], "${datasource}", "{name}: panel {id}");
                }
            }
        }
    }
}

#[test]
fn rules_use_metrics_and_labels_that_exist() {
    let files = files("rules");
    let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
    let mut rules = 0;
    for (name, text) in &files {
        for expr in text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("expr: "))
        {
            check(expr, "", name);
            for word in expr.split(|c| !is_word(c)) {
                let recorded =
                    !word.contains(":sluice_") || all.contains(&format!("record: {word}"));
                assert!(recorded, "{name}: nothing records {word}");
            }
            rules += 1;
        }
        let labels: BTreeSet<&str> = names::ALL
            .iter()
            .flat_map(|metric| metric.labels)
            .copied()
            .chain(SCRAPE_LABELS)
            .collect();
        for template in templated(text) {
            if let Some(label) = template.strip_prefix("$labels.") {
                assert!(labels.contains(label), "{name}: no label {label}");
            }
        }
    }
    assert!(rules > 10, "the rules were read: {rules}");
}

#[test]
fn every_alert_is_described_and_tested() {
    let readme = fs::read_to_string(grafana().join("README.md")).unwrap();
    let tests: String = files("rules/tests")
        .into_iter()
        .map(|(_, text)| text)
        .collect();
    let scenarios = repository().join("tests/tests/scenarios/observability.rs");
    let scenarios = fs::read_to_string(scenarios).unwrap();
    let (_, alerts) = files("rules")
        .into_iter()
        .find(|(name, _)| name.ends_with("alerts.yml"))
        .unwrap();
    let alerts: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        assert!(readme.contains(&format!("| `{alert}` |")), "{alert}");
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
        assert!(scenarios.contains(&format!("\"{alert}\"")), "{alert}");
    }
}

#[test]
fn the_readme_asks_what_the_panel_that_it_names_asks() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("their panel \"").unwrap();
    let (title, rest) = rest.split_once('"').unwrap();
    let (_, rest) = rest.split_once("--data-urlencode 'query=").unwrap();
    let (asked, _) = rest.split_once('\'').unwrap();
    let boards = dashboards();
    let panel = boards
        .iter()
        .flat_map(|(_, board)| board["panels"].as_array().unwrap())
        .find(|panel| panel["title"] == title)
        .unwrap_or_else(|| panic!("no panel is called {title}"));
    let shown = panel["targets"][0]["expr"].as_str().unwrap();
    let shown = shown
        .replace("{instance=~\"$instance\"}", "")
        .replace("$__rate_interval", "1m");
    assert_eq!(asked, shown);
}
