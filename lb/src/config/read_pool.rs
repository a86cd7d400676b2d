//! Reads `[[pool]]` with its backends and health check.

use std::{collections::HashSet, net::IpAddr, time::Duration};

use super::{
    error::{grouped, quoted},
    keys,
    model::{Backend, Check, Forward, Health, Pool},
    section::{Field, Section},
};

/// A pool, and where its parts stand in the file.
pub(super) struct PlacedPool {
    pub(super) pool: Pool,
    /// Of each backend's address.
    pub(super) backends_at: Vec<usize>,
}

pub(super) const FORWARDS: &[(&str, Forward)] = &[
    ("l2", Forward::L2),
    ("ipip", Forward::Ipip),
    ("gue", Forward::Gue),
    ("local", Forward::Local),
];

/// One `[[pool]]`.
pub(super) fn pool(section: &Section<'_>) -> Option<PlacedPool> {
    let name = section
        .required("name", "\"web\"")
        .and_then(|field| field.name());
    let health = section.or("health", NO_CHECK, |field| {
        health(&field.table(&keys::HEALTH)?)
    });
    let backends = backends(section);
    let slots = slots(section, backends.as_ref().map_or(0, Vec::len));

    let (backends, backends_at) = backends?.into_iter().unzip();
    Some(PlacedPool {
        pool: Pool {
            name: name?.to_owned(),
            health: health?,
            slots: slots?,
            backends,
        },
        backends_at,
    })
}

const NO_CHECK: Health = Health {
    check: Check::None,
    interval: INTERVAL,
    timeout: TIMEOUT,
    rise: RISE,
    fall: FALL,
};
const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_millis(500);
const RISE: u32 = 2;
const FALL: u32 = 3;

fn backends(section: &Section<'_>) -> Option<Vec<(Backend, usize)>> {
    let Some(field) = section.get("backend") else {
        section
            .error(|| "this pool has no backends; add a [[pool.backend]] with an `address`".into());
        return None;
    };
    let tables = field.tables(&keys::BACKEND)?;
    if tables.is_empty() {
        field.error(|| "this pool has no backends; add one with an `address`".into());
    }
    let mut seen: HashSet<IpAddr> = HashSet::with_capacity(tables.len());
    let (mut backends, mut weightless, mut broken) =
        (Vec::with_capacity(tables.len()), true, tables.is_empty());
    for table in &tables {
        let forward = table.optional("forward", |field| field.word(FORWARDS, &[]));
        let weight = table.or("weight", 1, |field| field.integer(0..=1000));
        weightless &= weight == Some(0);
        let address = table
            .required("address", "\"192.0.2.10\"")
            .and_then(|field| Some((field, field.address()?)));
        let Some((field, address)) = address else {
            broken = true;
            continue;
        };
        if !seen.insert(address) {
            field.error(|| {
                format!(
                    "backend `{address}` is in this pool twice; to send it more, raise its `weight`"
                )
            });
        }
        match (weight, forward) {
            (Some(weight), Some(forward)) => backends.push((
                Backend {
                    address,
                    weight,
                    forward,
                },
                field.at,
            )),
            _ => broken = true,
        }
    }
    if weightless && !tables.is_empty() {
        section.error(|| "every backend of this pool has `weight = 0`, so no flow could go anywhere; give one a weight of 1 or more".into());
    }
    (!broken).then_some(backends)
}

/// Slots must be prime, or Maglev's permutations would not reach every slot.
fn slots(section: &Section<'_>, backends: usize) -> Option<u32> {
    let field = section.get("slots");
    let slots = section.or("slots", SLOTS, |field| field.integer(SLOTS_MIN..=SLOTS_MAX))?;
    let needed = u32::try_from(backends.saturating_mul(2)).unwrap_or(u32::MAX);
    if needed > SLOTS_MAX {
        section.error(|| {
            format!(
                "this pool has {} backends; {} is the most",
                grouped(backends as u64),
                grouped(u64::from(SLOTS_MAX / 2))
            )
        });
        return None;
    }
    let right = prime_from(slots.max(needed));
    if right == slots {
        return Some(slots);
    }
    let wrong = || {
        let (shown, right) = (grouped(slots.into()), grouped(right.into()));
        if slots < needed {
            format!(
                "`slots` is {shown}, too few for {backends} backends (twice as many, and a prime); write `slots = {right}`"
            )
        } else {
            format!("`slots` is {shown}, which is not a prime; the next one is {right}")
        }
    };
    match field {
        Some(field) => field.error(wrong),
        None => section.error(wrong),
    }
    None
}

const SLOTS: u32 = 65_537;
const SLOTS_MIN: u32 = 11;
/// A prime, so that there is one at or above every allowed number.
const SLOTS_MAX: u32 = 1_048_573;

fn prime_from(number: u32) -> u32 {
    let is_prime = |number: u32| {
        number >= 2
            && (2..)
                .take_while(|d| d * d <= number)
                .all(|d| !number.is_multiple_of(d))
    };
    (number..)
        .find(|candidate| is_prime(*candidate))
        .unwrap_or(SLOTS_MAX)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Tcp,
    Http,
}

const KINDS: &[(&str, Kind)] = &[
    ("none", Kind::None),
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
];

fn health(section: &Section<'_>) -> Option<Health> {
    let interval = section.or("interval", INTERVAL, |field| {
        field.duration(INTERVAL_MIN..=INTERVAL_MAX)
    });
    let timeout = timeout(section, interval.unwrap_or(INTERVAL_MAX));
    let count = |key, default| section.or(key, default, |field| field.integer(1..=COUNT_MAX));
    let (rise, fall) = (count("rise", RISE), count("fall", FALL));

    let kind = section
        .required("kind", "\"tcp\"")
        .and_then(|field| field.word(KINDS, &["https", "icmp"]));
    let port = match kind? {
        Kind::None => {
            unused(section, &["port"], "`tcp` and `http`");
            None
        }
        Kind::Tcp | Kind::Http => section
            .required("port", "80")
            .and_then(|field| field.integer(1..=u16::MAX)),
    };
    if kind? != Kind::Http {
        unused(section, &["path", "host", "status"], "`http`");
    }
    let check = match kind? {
        Kind::None => Check::None,
        Kind::Tcp => Check::Tcp { port: port? },
        Kind::Http => {
            let path = section.or("path", "/".to_owned(), |field| path(&field));
            let host = section.optional("host", |field| host(&field));
            let status = section.or("status", 200, |field| field.integer(100..=599));
            Check::Http {
                port: port?,
                path: path?,
                host: host?,
                status: status?,
            }
        }
    };
    Some(Health {
        check,
        interval: interval?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
    })
}

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
const COUNT_MAX: u32 = 1_000;
const PATH_BYTES: usize = 1_024;

fn timeout(section: &Section<'_>, interval: Duration) -> Option<Duration> {
    let Some(field) = section.get("timeout") else {
        return Some(TIMEOUT.min(interval / 2));
    };
    let timeout = field.duration(TIMEOUT_MIN..=INTERVAL_MAX)?;
    if timeout > interval {
        field.error(|| {
            let (timeout, interval) = (humantime::format_duration(timeout), humantime::format_duration(interval));
            format!("`timeout` is {timeout}, longer than the `interval` of {interval}; a check must end before the next begins")
        });
        return None;
    }
    Some(timeout)
}

fn unused(section: &Section<'_>, keys: &[&'static str], kinds: &str) {
    for key in keys {
        if let Some(field) = section.get(key) {
            field.error(|| format!("`{key}` is only for checks of kind {kinds}; remove it"));
        }
    }
}

fn path(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    if !text.starts_with('/')
        || text.len() > PATH_BYTES
        || !text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        field.error(|| {
            format!("`path` is {}; it must begin with `/` and hold no spaces; write it like \"/healthz\"", quoted(text))
        });
        return None;
    }
    Some(text.to_owned())
}

fn host(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if text.is_empty() || text.len() > 255 || !text.bytes().all(fits) {
        field.error(|| {
            format!(
                "`host` is {}, not a host name; write it like \"www.example.com\"",
                quoted(text)
            )
        });
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_prime_is_found_up_to_the_largest_table() {
        assert_eq!(prime_from(11), 11);
        assert_eq!(prime_from(65_536), 65_537);
        assert_eq!(prime_from(1_048_572), SLOTS_MAX);
        assert_eq!(prime_from(SLOTS_MAX), SLOTS_MAX);
    }
}
