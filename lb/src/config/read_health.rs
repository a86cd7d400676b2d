//! Reads `[pool.health]`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    error::quoted,
    health::{Check, Health, HttpCheck, Statuses, Tls},
    outside::Outside,
    section::{Field, Section},
};

/// Of a pool that says nothing.
pub(super) const NO_CHECK: Health = Health {
    check: Check::None,
    interval: INTERVAL,
    fast_interval: FAST_INTERVAL,
    jitter: JITTER,
    timeout: TIMEOUT,
    rise: RISE,
    fall: FALL,
    via_tunnel: false,
};
const INTERVAL: Duration = Duration::from_secs(1);
const FAST_INTERVAL: Duration = Duration::from_millis(500);
const JITTER: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_millis(500);
const RISE: u32 = 2;
const FALL: u32 = 3;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    None,
    Icmp,
    Tcp,
    Http,
    Https,
}

const KINDS: &[(&str, Kind)] = &[
    ("none", Kind::None),
    ("icmp", Kind::Icmp),
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
    ("https", Kind::Https),
];

/// A `[pool.health]` table.
pub(super) fn health(section: &Section<'_>, outside: Outside) -> Option<Health> {
    let interval = section.or("interval", INTERVAL, |field| {
        field.duration(INTERVAL_MIN..=INTERVAL_MAX)
    });
    let longest = interval.unwrap_or(INTERVAL_MAX);
    let timeout = section.or("timeout", TIMEOUT.min(longest / 2), |field| {
        let timeout = field.duration(TIMEOUT_MIN..=INTERVAL_MAX)?;
        within(
            &field,
            ("timeout", timeout),
            longest,
            "a check must end before the next begins",
        )
    });
    let fast_interval = section.or("fast_interval", longest / 2, |field| {
        let fast = field.duration(INTERVAL_MIN..=INTERVAL_MAX)?;
        within(
            &field,
            ("fast_interval", fast),
            longest,
            "it is for checks in quicker succession",
        )
    });
    let jitter = section.or("jitter", longest / 10, |field| {
        let jitter = field.duration(Duration::ZERO..=INTERVAL_MAX)?;
        within(
            &field,
            ("jitter", jitter),
            longest,
            "a check must begin before the next is due",
        )
    });
    let count = |key, default| section.or(key, default, |field| field.integer(1..=COUNT_MAX));
    let (rise, fall) = (count("rise", RISE), count("fall", FALL));
    let via_tunnel = section.or("via_tunnel", false, |field| field.boolean());

    let kind = section
        .required("kind", "\"tcp\"")
        .and_then(|field| field.word(KINDS));
    Some(Health {
        check: check(section, kind?, outside)?,
        interval: interval?,
        fast_interval: fast_interval?,
        jitter: jitter?,
        timeout: timeout?,
        rise: rise?,
        fall: fall?,
        via_tunnel: via_tunnel?,
    })
}

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
const COUNT_MAX: u32 = 1_000;
const PATH_BYTES: usize = 1_024;
const BODY_BYTES: usize = 1_024;

fn within(
    field: &Field<'_>,
    (key, value): (&str, Duration),
    interval: Duration,
    why: &str,
) -> Option<Duration> {
    if value > interval {
        field.error(|| {
            let (value, interval) = (
                humantime::format_duration(value),
                humantime::format_duration(interval),
            );
            format!("`{key}` is {value}, longer than the `interval` of {interval}; {why}")
        });
        return None;
    }
    Some(value)
}

fn check(section: &Section<'_>, kind: Kind, outside: Outside) -> Option<Check> {
    if kind == Kind::None {
        unused(
            section,
            &["via_tunnel"],
            "`icmp`, `tcp`, `http` and `https`",
        );
    }
    if matches!(kind, Kind::None | Kind::Icmp) {
        unused(section, &["port"], "`tcp`, `http` and `https`");
    }
    if !matches!(kind, Kind::Http | Kind::Https) {
        unused(
            section,
            &["path", "host", "status", "body"],
            "`http` and `https`",
        );
    }
    if kind != Kind::Https {
        unused(section, &["ca_file"], "`https`");
    }
    let port = || {
        let example = if kind == Kind::Https { "443" } else { "80" };
        section
            .required("port", example)
            .and_then(|field| field.integer(1..=u16::MAX))
    };
    let tls = match kind {
        Kind::None => return Some(Check::None),
        Kind::Icmp => return Some(Check::Icmp),
        Kind::Tcp => return Some(Check::Tcp { port: port()? }),
        Kind::Http => Some(Tls::Off),
        Kind::Https => section.or("ca_file", Tls::Unverified, |field| ca_file(&field, outside)),
    };
    let port = port();
    let path = section.or("path", "/".to_owned(), |field| path(&field));
    let host = section.optional("host", |field| host(&field));
    let status = section.or("status", Statuses::new(vec![200..=200]), |field| {
        statuses(&field)
    });
    let body = section.optional("body", |field| body(&field));
    Some(Check::Http(HttpCheck {
        tls: tls?,
        port: port?,
        path: path?,
        host: host?,
        status: status?,
        body: body?,
    }))
}

fn unused(section: &Section<'_>, keys: &[&'static str], kinds: &str) {
    for key in keys {
        if let Some(field) = section.get(key) {
            field.error(|| format!("`{key}` is only for checks of kind {kinds}; remove it"));
        }
    }
}

fn ca_file(field: &Field<'_>, outside: Outside) -> Option<Tls> {
    match outside.ca(&field.absolute_path()?) {
        Ok(ca) => Some(Tls::Verified(ca)),
        Err(wrong) => {
            field.error(|| wrong);
            None
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

fn body(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    if text.is_empty() || text.len() > BODY_BYTES {
        field.error(|| {
            format!("`body` must have 1 to 1_024 bytes, and has {}; write a part of what a good answer holds", text.len())
        });
        return None;
    }
    Some(text.to_owned())
}

/// A status, a range of them, or a list of both.
fn statuses(field: &Field<'_>) -> Option<Statuses> {
    let parts = if field.is_array() {
        field.array()?
    } else {
        vec![*field]
    };
    if parts.is_empty() {
        field
            .error(|| "`status` is empty, so no answer would be good; write `status = 200`".into());
        return None;
    }
    let ranges: Vec<Option<_>> = parts.iter().map(status).collect();
    Some(Statuses::new(ranges.into_iter().collect::<Option<_>>()?))
}

fn status(field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    let Some(text) = field.text() else {
        let status = field.integer(100..=599)?;
        return Some(status..=status);
    };
    let range = text.split_once('-').and_then(|(low, high)| {
        let (low, high): (u16, u16) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        (100 <= low && low <= high && high <= 599).then_some(low..=high)
    });
    if range.is_none() {
        field.error(|| {
            format!(
                "`status` is {}, not a range of 100 to 599; write it like 200, \"200-299\" or [204, \"300-399\"]",
                quoted(text)
            )
        });
    }
    range
}
