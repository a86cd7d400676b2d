//! Reads `[detect]`: when traffic is an attack, and what is done about it.

use std::time::Duration;

use hyper::Uri;

use super::{
    keys,
    model::{Detect, Stance},
    section::{Field, Section},
};

/// `[detect]`, which may be absent.
pub(super) fn detect(file: &Section<'_>) -> Option<Detect> {
    let Some(field) = file.get("detect") else {
        return Some(Detect::default());
    };
    let section = field.table(&keys::DETECT)?;
    let default = Detect::default();
    let mode = section.or("mode", default.mode, |field| stance(&field));
    let thresholds = section.optional("thresholds", |field| {
        let table = field.table(&keys::THRESHOLDS)?;
        let pps = table.or("pps", default.floor_pps, |field| field.integer(1..=PPS_MAX));
        let bps = table.or("bps", default.floor_bps, |field| field.integer(1..=BPS_MAX));
        let factor = table.or("factor", default.factor, |field| field.integer(2..=1_000));
        let cap = table.or("cap", default.cap, |field| field.integer(2..=10_000));
        let (factor, cap) = (factor?, cap?);
        if cap < factor {
            field.error(|| {
                format!("`cap` is {cap}, less than `factor` ({factor}); a cap holds what is above the trigger")
            });
            return None;
        }
        Some((pps?, bps?, factor, cap))
    });
    let duration = |key, default, range: std::ops::RangeInclusive<Duration>| {
        section.or(key, default, |field| field.duration(range))
    };
    let hold = duration("hold", default.hold, SECOND..=30 * MINUTE);
    let quiet = duration("quiet", default.quiet, SECOND..=30 * MINUTE);
    let learn = duration("learn", default.learn, SECOND..=1_440 * MINUTE);
    let sampling = section.or("sampling", default.sampling, |field| {
        field.integer(100..=SAMPLING_MAX)
    });
    let webhook = section.optional("webhook", |field| webhook(&field));
    let (floor_pps, floor_bps, factor, cap) = thresholds?.unwrap_or((
        default.floor_pps,
        default.floor_bps,
        default.factor,
        default.cap,
    ));
    Some(Detect {
        mode: mode?,
        floor_pps,
        floor_bps,
        factor,
        cap,
        hold: hold?,
        quiet: quiet?,
        learn: learn?,
        sampling: sampling?,
        webhook: webhook?,
    })
}

/// In `[detect]`, and in a policy.
pub(super) fn stance(field: &Field<'_>) -> Option<Stance> {
    const STANCES: &[(&str, Stance)] = &[
        ("off", Stance::Off),
        ("advise", Stance::Advise),
        ("enforce", Stance::Enforce),
    ];
    field.word(STANCES)
}

fn webhook(field: &Field<'_>) -> Option<String> {
    let text = field.string()?;
    let url: Option<Uri> = text.parse().ok();
    let fits =
        |url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some();
    if !url.as_ref().is_some_and(fits) {
        field.error(|| {
            format!(
                "`webhook` is \"{text}\"; it must be a URL like \"https://alerts.example/sluice\""
            )
        });
        return None;
    }
    Some(text.to_owned())
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const PPS_MAX: u64 = 100_000_000;
const BPS_MAX: u64 = 10_000_000_000_000;
const SAMPLING_MAX: u32 = 10_000;
