//! `sluice limits` and `sluice limit`.

use std::{fs, io, path::Path};

use hyper::Method;
use serde_json::{Value, json};

use super::{
    ClassArg, Failed, LimitArgs, LimitCommand, LimitFilters, ModeArg,
    client::{Client, encoded},
    names::{self, Kind},
    output::{Ink, Output},
    table::{or_dash, table},
};
use crate::{
    api::model::{LimitItem, LimitsDone, Page},
    config::Mode,
    limits::{ClassWord, LimitSpec},
};

pub(super) async fn show(
    filters: &LimitFilters,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let answer: Page<LimitItem> = client.list(&path(filters)).await?;
    if let Some(vip) = filters.vip.as_deref().filter(|_| answer.items.is_empty()) {
        names::check(vip, Kind::Vip, client).await?;
    }
    output.show(&answer, |answer| limits(output.ink, &answer.items))
}

pub(super) async fn change(
    command: LimitCommand,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    match command {
        LimitCommand::Set(args) => {
            let spec = spec(args);
            let sent = client.send_json(Method::POST, "/v1/limits", &spec);
            let item: LimitItem = match sent.await {
                Ok(item) => item,
                Err(error) => {
                    let vip = spec.vip.as_deref().map(|vip| (vip, Kind::Vip));
                    return Err(names::explained(error, vip, client).await);
                }
            };
            output.show(&item, |item| limits(output.ink, std::slice::from_ref(item)))
        }
        LimitCommand::Import { file } => {
            let limits = read(&file)?;
            let done: LimitsDone = client
                .send_json(Method::POST, "/v1/limits", &limits)
                .await?;
            output.show(&done, |done| {
                let (created, replaced) = (done.created, done.replaced);
                format!("{created} limits set, {replaced} replaced")
            })
        }
        LimitCommand::Remove { id } => {
            client
                .tell(Method::DELETE, &format!("/v1/limits/{id}"))
                .await?;
            output.show(&json!({ "removed": id }), |_| format!("limit {id} removed"))
        }
    }
}

/// Where the limits that match are listed.
fn path(filters: &LimitFilters) -> String {
    let class = filters.class.map(class_word);
    let pairs = [
        ("vip", filters.vip.clone()),
        ("class", class.map(word)),
        ("mode", filters.mode.map(|mode| word(mode_of(mode)))),
        ("within", filters.within.map(|prefix| prefix.to_string())),
        ("covers", filters.covers.clone()),
        ("comment", filters.comment.clone()),
    ];
    let given: Vec<String> = pairs
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))))
        .collect();
    if given.is_empty() {
        "/v1/limits".into()
    } else {
        format!("/v1/limits?{}", given.join("&"))
    }
}

/// An array of limits, or one on each line. What is in them, the daemon checks.
fn read(file: &Path) -> Result<Vec<Value>, Failed> {
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let wrong = |error: serde_json::Error| format!("{}: {error}", file.display());
    if text.trim_start().starts_with('[') {
        return Ok(serde_json::from_str(&text).map_err(wrong)?);
    }
    let values = serde_json::Deserializer::from_str(&text).into_iter();
    Ok(values.collect::<Result<_, _>>().map_err(wrong)?)
}

fn spec(args: LimitArgs) -> LimitSpec {
    LimitSpec {
        prefix: args.prefix,
        vip: args.vip,
        class: class_word(args.class),
        pps: args.pps,
        bps: args.bps,
        burst: args.burst,
        mode: mode_of(args.mode),
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        comment: args.comment,
    }
}

fn class_word(class: ClassArg) -> ClassWord {
    match class {
        ClassArg::All => ClassWord::All,
        ClassArg::Syn => ClassWord::Syn,
        ClassArg::Udp => ClassWord::Udp,
        ClassArg::Icmp => ClassWord::Icmp,
        ClassArg::Other => ClassWord::Other,
        ClassArg::Established => ClassWord::Established,
    }
}

fn mode_of(mode: ModeArg) -> Mode {
    match mode {
        ModeArg::Enforce => Mode::Enforce,
        ModeArg::Monitor => Mode::Monitor,
    }
}

fn limits(ink: Ink, items: &[LimitItem]) -> String {
    let row = |item: &LimitItem| {
        [
            item.id.to_string(),
            item.prefix.to_string(),
            item.vip.clone().unwrap_or_else(|| "any".into()),
            word(item.class),
            or_dash(item.pps),
            or_dash(item.bps),
            item.burst.to_string(),
            word(item.mode),
            or_dash(item.expires.as_ref()),
            item.matched_packets.to_string(),
            item.dropped_packets.to_string(),
            item.comment.clone(),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let header = [
        "ID", "PREFIX", "VIP", "CLASS", "PPS", "BPS", "BURST", "MODE", "EXPIRES", "MATCHED",
        "DROPPED", "COMMENT",
    ];
    table(ink, header, &rows)
}

fn word(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
