//! Checks that deny.toml allows the licence of every dependency, and that all come from cargo's registry; tells what a
//! binary must say of those in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::stages::{cargo, workspace};

/// Fails and names each dependency that deny.toml does not allow.
pub(crate) fn check() -> Result<()> {
    let path = workspace().join("deny.toml");
    let config =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let allowed = allow_list(&config).context("deny.toml has no `allow = [...]` for licences")?;
    let packages = dependencies()?;
    let refused: Vec<_> = packages
        .iter()
        .filter_map(|package| refusal(package, &allowed))
        .collect();
    ensure!(
        refused.is_empty(),
        "not allowed by deny.toml:\n    {}",
        refused.join("\n    ")
    );
    println!(
        "the licences and sources of {} packages are allowed",
        packages.len()
    );
    Ok(())
}

/// The packages of others that the daemon and the kernel's objects are made of, and their licence texts, each once.
pub(crate) fn notices() -> Result<String> {
    let linked = linked()?;
    let mut list = String::from("Sluice is made of these packages too:\n\n");
    let mut under: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in dependencies()? {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} v{}", field("name"), field("version"));
        if package["source"].is_null() || !linked.contains(&name) {
            continue;
        }
        list += &format!("    {name}, {}\n", field("license"));
        let folder = Path::new(field("manifest_path")).parent();
        for text in texts(folder.context("a manifest lies in a folder")?)? {
            under.entry(text).or_default().push(name.clone());
        }
    }
    let mut texts: Vec<_> = under.into_iter().collect();
    texts.sort_by(|(_, a), (_, b)| a.cmp(b));
    for (text, packages) in texts {
        list += &format!("\n==== {}\n\n{}\n", packages.join(", "), text.trim_end());
    }
    Ok(list)
}

/// Packages of which something is in what is built, as `NAME vVERSION`.
fn linked() -> Result<BTreeSet<String>> {
    let tree = ["tree", "--locked", "--edges", "normal,no-proc-macro"];
    let printed = ["--prefix", "none", "--format", "{p}"];
    let kernel = ["--package", "sluice-ebpf", "--target", "bpfel-unknown-none"];
    let mut linked = BTreeSet::new();
    for of in [&["--package", "sluice"][..], &kernel] {
        let output = cargo(&[&tree, &printed, of].concat())
            .output()
            .context("cannot run cargo")?;
        ensure!(
            output.status.success(),
            "`cargo tree`: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let lines = String::from_utf8_lossy(&output.stdout);
        let name = |line: &str| line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        linked.extend(lines.lines().map(name));
    }
    Ok(linked)
}

/// The licence texts in a package's folder.
fn texts(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if NOTICES.iter().any(|prefix| name.starts_with(prefix)) && entry.file_type()?.is_file() {
            texts.push(String::from_utf8_lossy(&fs::read(entry.path())?).into_owned());
        }
    }
    Ok(texts)
}

/// How the names of files begin that must go with a binary.
const NOTICES: &[&str] = &[
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];

/// What is compiled for a host or for the kernel; packages for other systems are never fetched.
fn dependencies() -> Result<Vec<Value>> {
    let host = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let output = cargo(&["metadata", "--format-version", "1", "--locked"])
        .args([
            "--filter-platform",
            &host,
            "--filter-platform",
            "bpfel-unknown-none",
        ])
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`cargo metadata`: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut metadata: Value =
        serde_json::from_slice(&output.stdout).context("`cargo metadata` prints no JSON")?;
    match metadata["packages"].take() {
        Value::Array(packages) if !packages.is_empty() => Ok(packages),
        _ => bail!("`cargo metadata` lists no packages"),
    }
}

fn refusal(package: &Value, allowed: &[&str]) -> Option<String> {
    let name = package["name"]
        .as_str()
        .unwrap_or("a package without a name");
    let licence = package["license"].as_str();
    if !licence.is_some_and(|expression| allows(expression, allowed)) {
        return Some(format!(
            "{name}: licence {}",
            licence.unwrap_or("not given")
        ));
    }
    match package["source"].as_str() {
        None => None,
        Some(source) if source.starts_with(REGISTRY) => None,
        Some(source) => Some(format!("{name}: comes from {source}")),
    }
}

/// How cargo writes sources that are neither git nor a folder. Another registry than its own would need a config that
/// this repository does not have.
const REGISTRY: &str = "registry+";

/// The strings in `allow = [...]`; the only list of that name in the file.
fn allow_list(config: &str) -> Option<Vec<&str>> {
    let (_, rest) = config.split_once("\nallow = [")?;
    let (list, _) = rest.split_once(']')?;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether an SPDX expression can be met with `allowed`. A `/` is how old packages write `OR`.
fn allows(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words, allowed);
        return words.next() == Some(")") && met;
    }
    let Some(licence) = words.next() else {
        return false;
    };
    if words.next_if_eq(&"WITH").is_none() {
        return allowed.contains(&licence);
    }
    words
        .next()
        .is_some_and(|exception| allowed.contains(&format!("{licence} WITH {exception}").as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_as_spdx_says() {
        let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"];
        for met in [
            "MIT",
            "GPL-2.0 OR MIT",
            "MIT/GPL-2.0",
            "(MIT OR GPL-2.0) AND Unicode-3.0",
            "GPL-2.0 AND BSL-1.0 OR MIT",
        ] {
            assert!(allows(met, &allowed), "{met}");
        }
        for unmet in [
            "GPL-2.0",
            "MIT AND GPL-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "(MIT",
            "MIT)",
            "MIT Apache-2.0",
            "",
        ] {
            assert!(!allows(unmet, &allowed), "{unmet}");
        }
    }

    #[test]
    fn a_package_from_elsewhere_or_without_a_licence_is_refused() {
        let package = |licence: Value, source: Value| serde_json::json!({ "name": "x", "license": licence, "source": source });
        assert_eq!(
            refusal(&package("MIT".into(), "registry+index".into()), &["MIT"]),
            None
        );
        assert_eq!(refusal(&package("MIT".into(), Value::Null), &["MIT"]), None);
        assert!(refusal(&package(Value::Null, "registry+index".into()), &["MIT"]).is_some());
        assert!(
            refusal(
                &package("MIT".into(), "git+https://example.org/x".into()),
                &["MIT"]
            )
            .is_some()
        );
    }

    #[test]
    fn the_list_is_read_from_the_file() {
        assert_eq!(
            allow_list("[licenses]\nallow = [\n    \"MIT\", # why\n    \"ISC\",\n]\n"),
            Some(vec!["MIT", "ISC"])
        );
    }
}
