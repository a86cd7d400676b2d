//! Steps of a reload that change how the daemon decides, by the keys in the file.

use std::{collections::BTreeMap, fmt};

use crate::config::{Config, Detect, Host, Policy, Pool, Pop};

pub(super) fn steps(before: &Config, after: &Config) -> Vec<String> {
    let mut steps = Vec::new();
    steps.extend(of_pop(&before.pop, &after.pop));
    steps.extend(of_host(&before.host, &after.host));
    for (old, new) in pairs(&before.pools, &after.pools, |pool| &pool.name) {
        steps.extend(of_pool(old, new));
    }
    for (old, new) in pairs(&before.policies, &after.policies, |policy| &policy.name) {
        steps.extend(of_policy(old, new));
    }
    steps.extend(of_detect(&before.detect, &after.detect));
    steps
}

fn of_pop(old: &Pop, new: &Pop) -> Option<String> {
    let keys = [("name", old.name != new.name), ("id", old.id != new.id)];
    change(&keys, "[pop]")
}

fn of_host(old: &Host, new: &Host) -> Option<String> {
    change(&[("protect", old != new)], "[host]")
}

/// Backends and slots are in lookup tables, which have steps of their own.
fn of_pool(old: &Pool, new: &Pool) -> Option<String> {
    let keys = [
        ("health", old.health != new.health),
        ("all_down", old.all_down != new.all_down),
        ("slow_start", old.slow_start != new.slow_start),
    ];
    change(&keys, format_args!("pool {}", new.name))
}

/// The rest is in what the data plane has of a policy.
fn of_policy(old: &Policy, new: &Policy) -> Option<String> {
    let keys = [
        ("detect", old.detect != new.detect),
        ("sanity", old.sanity != new.sanity),
        ("amplification", old.amplification != new.amplification),
        ("out_of_state", old.out_of_state != new.out_of_state),
        ("rules", old.rules != new.rules),
        ("syn", old.syn != new.syn),
        ("sources", old.sources != new.sources),
        ("bogons", old.bogons != new.bogons),
    ];
    change(&keys, format_args!("policy {}", new.name))
}

fn of_detect(old: &Detect, new: &Detect) -> Option<String> {
    let thresholds = |detect: &Detect| {
        (
            detect.floor_pps,
            detect.floor_bps,
            detect.factor,
            detect.cap,
        )
    };
    let keys = [
        ("mode", old.mode != new.mode),
        ("thresholds", thresholds(old) != thresholds(new)),
        ("hold", old.hold != new.hold),
        ("quiet", old.quiet != new.quiet),
        ("learn", old.learn != new.learn),
        ("sampling", old.sampling != new.sampling),
        ("webhook", old.webhook != new.webhook),
    ];
    change(&keys, "[detect]")
}

/// Those that are before and after, by name.
fn pairs<'a, T>(
    before: &'a [T],
    after: &'a [T],
    name: impl Fn(&'a T) -> &'a str,
) -> impl Iterator<Item = (&'a T, &'a T)> {
    let before: BTreeMap<&str, &T> = before.iter().map(|old| (name(old), old)).collect();
    after
        .iter()
        .filter_map(move |new| Some((*before.get(name(new))?, new)))
}

fn change(keys: &[(&str, bool)], of: impl fmt::Display) -> Option<String> {
    let changed = keys.iter().filter(|(_, differs)| *differs);
    let changed: Vec<&str> = changed.map(|(key, _)| *key).collect();
    (!changed.is_empty()).then(|| format!("change {} of {of}", changed.join(", ")))
}
