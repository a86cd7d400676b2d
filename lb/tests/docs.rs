//! The manual says what the code says: words, keys, commands and tests that it names are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sluice::metrics::names;
use sluice_ebpf::abi::{ABI_VERSION, DropReason, HOST_VIP, NO_BACKEND, Step};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn reference() -> String {
    read("lb/docs/reference.md")
}

/// The part of a page from this heading to the next of the same level.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no section {heading}"));
    let level = heading.split(' ').next().unwrap();
    rest.split_once(&format!("\n{level} "))
        .map_or(rest, |(section, _)| section)
}

/// First cells of a section's tables, but for headers and rules.
fn first_cells(section: &str) -> Vec<&str> {
    let lines: Vec<&str> = section.lines().collect();
    let is_row = |at: usize| lines[at].starts_with("| ") && !lines[at].starts_with("| ---");
    let is_header = |at: usize| {
        lines
            .get(at + 1)
            .is_some_and(|next| next.starts_with("| ---"))
    };
    (0..lines.len())
        .filter(|&at| is_row(at) && !is_header(at))
        .map(|at| lines[at].split('|').nth(1).unwrap().trim())
        .collect()
}

#[test]
fn every_drop_reason_is_explained_and_no_other() {
    let words: Vec<String> = DropReason::ALL
        .iter()
        .map(|reason| format!("`{}`", reason.word()))
        .collect();
    assert_eq!(first_cells(section(&reference(), "## Drop reasons")), words);
    let operations = read("lb/docs/operations.md");
    let advice = section(&operations, "## Drop reasons");
    for reason in DropReason::ALL {
        let word = reason.word();
        assert!(
            advice.contains(&format!("\n**{word}** - ")),
            "no advice for {word}"
        );
    }
}

#[test]
fn every_step_is_listed_and_no_other() {
    let page = reference();
    let listed: BTreeSet<&str> = first_cells(section(&page, "## Steps of `sluice explain`"))
        .into_iter()
        .collect();
    assert_eq!(listed, Step::ALL.iter().map(|step| step.word()).collect());
}

#[test]
fn every_metric_is_described_and_no_other() {
    let page = reference();
    let rows: BTreeSet<String> = section(&page, "## Metrics")
        .lines()
        .filter(|line| line.starts_with("| `sluice_"))
        .map(|line| line.split('|').take(4).collect::<Vec<_>>().join("|"))
        .collect();
    let expected = names::ALL.iter().map(|metric| {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let labels = if labels.is_empty() {
            String::new()
        } else {
            format!("{} ", labels.join(", "))
        };
        format!("| `{}` | {kind} | {labels}", metric.name)
    });
    assert_eq!(rows, expected.collect());
}

#[test]
fn every_config_key_is_in_the_table() {
    let (page, example) = (reference(), read("lb/sluice.example.toml"));
    let config = section(&page, "## Config");
    let mut table = "";
    let mut keys = 0;
    for line in example.lines() {
        if line.starts_with('[') {
            table = line;
        }
        let Some((key, _)) = line.trim_start_matches(['#', ' ']).split_once(" = ") else {
            continue;
        };
        if key.contains(|c: char| !c.is_ascii_lowercase() && !"_46".contains(c)) {
            continue;
        }
        let row = config
            .lines()
            .find(|row| row.starts_with(&format!("| `{table}`")))
            .unwrap_or_else(|| panic!("no row for {table}"));
        assert!(row.contains(&format!("`{key}`")), "no `{key}` of {table}");
        keys += 1;
    }
    assert!(keys > 40, "the example was read: {keys} keys");
}

#[test]
fn every_command_and_option_is_described() {
    let page = reference();
    let commands = section(&page, "## Commands");
    let mut found = Vec::new();
    describe(&mut Vec::new(), commands, &mut found);
    assert!(
        found.iter().any(|command| command == "limit set"),
        "{found:?}"
    );
    assert!(found.len() > 14, "{found:?}");
}

/// Looks for all options of a command, and for its subcommands and theirs.
fn describe(command: &mut Vec<String>, page: &str, found: &mut Vec<String>) {
    let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
        .args(&*command)
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let name = command.join(" ");
    for option in help
        .split([' ', '\n', ',', '[', ']', '='])
        .filter(|word| word.starts_with("--") && word.len() > 3)
    {
        assert!(page.contains(option), "no {option} of `sluice {name}`");
    }
    let subcommands: Vec<String> = help
        .split_once("Commands:\n")
        .map_or("", |(_, rest)| rest)
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|word| word != "help")
        .collect();
    if subcommands.is_empty() {
        assert!(
            page.contains(&format!("| `{name}")),
            "`sluice {name}` is not described"
        );
        found.push(name);
    }
    for subcommand in subcommands {
        command.push(subcommand);
        describe(command, page, found);
        command.pop();
    }
}

#[test]
fn every_pin_is_listed() {
    let (page, abi) = (reference(), read("lb-ebpf/src/abi.rs"));
    let pins = section(&page, "## Pins and the ABI");
    let maps = abi.split_once("pub mod maps {").unwrap().1;
    let names: Vec<&str> = maps
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split(':').next())
        .collect();
    assert!(names.len() > 20);
    for name in names {
        assert!(pins.contains(&format!("`{name}`")), "{name}");
    }
    assert!(pins.contains(&format!("`v{ABI_VERSION}`")));
}

#[test]
fn the_readme_says_how_many_vips_and_backends_have_numbers() {
    let grouped = |number: u16| format!("{},{:03}", number / 1000, number % 1000);
    // VIPs are numbered from 1, backends from 0.
    let (vips, backends) = (grouped(HOST_VIP - 1), grouped(NO_BACKEND));
    let said = format!("At most {vips} VIPs, {backends} backends");
    assert!(read("README.md").contains(&said), "{said}");
}

#[test]
fn promises_name_tests_that_exist() {
    let readme = read("README.md");
    let mut sources = String::new();
    for folder in ["tests", "lb", "lb-ebpf", "xtask"] {
        add_sources(&root().join(folder), &mut sources);
    }
    let named: Vec<&str> = readme
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() > 2 && !word.contains([' ', '/']))
        .collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        assert!(sources.contains(&format!("fn {name}(")), "no test {name}");
    }
}

fn add_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *sources += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "lb/docs/architecture.md",
        "lb/docs/operations.md",
        "lb/docs/performance.md",
        "lb/docs/reference.md",
    ];
    for page in pages {
        let text = read(page);
        let folder = root().join(page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root().join(page)
            } else {
                folder.join(file)
            };
            assert!(target.exists(), "{page}: {link}");
            if !anchor.is_empty() {
                let there = fs::read_to_string(target).unwrap();
                assert!(
                    there
                        .lines()
                        .any(|line| anchor_of(line) == Some(anchor.to_owned())),
                    "{page}: {link}"
                );
            }
        }
    }
}

/// The anchor that a heading gets.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading
        .to_lowercase()
        .replace(|c: char| !c.is_alphanumeric() && !" -_".contains(c), "");
    Some(kept.replace(' ', "-"))
}
