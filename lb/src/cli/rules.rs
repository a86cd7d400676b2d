//! `sluice rules` and `sluice rule`.

use std::{fs, io, path::Path};

use hyper::Method;
use serde_json::json;

use super::{
    Failed, OriginArg, RuleCommand, RuleFilters,
    client::{Client, ClientError, encoded},
    names::{self, Kind},
    output::{Ink, Output},
    table::{or_dash, table},
};
use crate::{
    api::model::{Page, RuleItem, RulePreview, RulesDone},
    book::SpecError,
    rules::RuleSpec,
};

pub(super) async fn show(
    filters: &RuleFilters,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let origin = filters.origin.map(|origin| match origin {
        OriginArg::Operator => "operator",
        OriginArg::Config => "config",
        OriginArg::Detection => "detection",
    });
    let pairs = [
        ("vip", filters.vip.as_deref()),
        ("origin", origin),
        ("comment", filters.comment.as_deref()),
    ];
    let given: Vec<String> = pairs
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", encoded(value?))))
        .collect();
    let path = if given.is_empty() {
        "/v1/rules".to_owned()
    } else {
        format!("/v1/rules?{}", given.join("&"))
    };
    let answer: Page<RuleItem> = client.list(&path).await?;
    if let Some(vip) = filters.vip.as_deref().filter(|_| answer.items.is_empty()) {
        names::check(vip, Kind::Vip, client).await?;
    }
    output.show(&answer, |answer| rules(output.ink, &answer.items))
}

pub(super) async fn change(
    command: RuleCommand,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    match command {
        RuleCommand::Add { text } => {
            let spec: RuleSpec = text.parse().map_err(|error: SpecError| error.to_string())?;
            let sent = client.send_json(Method::POST, "/v1/rules", &spec);
            let item: RuleItem = match sent.await {
                Ok(item) => item,
                Err(error) => {
                    let vip = spec.vip.as_deref().map(|vip| (vip, Kind::Vip));
                    return Err(names::explained(error, vip, client).await);
                }
            };
            output.show(&item, |item| rules(output.ink, std::slice::from_ref(item)))
        }
        RuleCommand::Preview { text } => {
            let spec: RuleSpec = text.parse().map_err(|error: SpecError| error.to_string())?;
            let told: RulePreview = client
                .send_json(Method::POST, "/v1/rules/preview", &spec)
                .await?;
            output.show(&told, preview)
        }
        RuleCommand::Import { file, skip_bad } => {
            let Lines { good, bad } = read(&file)?;
            if !bad.is_empty() && !skip_bad {
                let lines = bad.join("\n");
                return Err(format!(
                    "{lines}\nnothing is set; correct {}, or give --skip-bad",
                    if bad.len() == 1 {
                        "the line"
                    } else {
                        "the lines"
                    }
                )
                .into());
            }
            let (lines, rules): (Vec<usize>, Vec<RuleSpec>) = good.into_iter().unzip();
            let sent = client.send_json(Method::POST, "/v1/rules", &rules).await;
            let done: RulesDone = sent.map_err(|error| refused(&error, &file, &lines))?;
            for line in &bad {
                eprintln!("skipped: {line}");
            }
            let shown = json!({
                "created": done.created, "replaced": done.replaced, "ids": done.ids, "skipped": bad.len(),
            });
            output.show(&shown, |_| {
                let (created, replaced, skipped) = (done.created, done.replaced, bad.len());
                format!("{created} rules set, {replaced} replaced, {skipped} lines skipped")
            })
        }
        RuleCommand::Remove { id } => {
            client
                .tell(Method::DELETE, &format!("/v1/rules/{id}"))
                .await?;
            output.show(&json!({ "removed": id }), |_| format!("rule {id} removed"))
        }
    }
}

/// What stands in a file.
struct Lines {
    /// Each with the number of its line.
    good: Vec<(usize, RuleSpec)>,
    /// Why a line is no rule, and which one.
    bad: Vec<String>,
}

/// The rules of a file, one on each line. `#` begins a comment line.
fn read(file: &Path) -> Result<Lines, Failed> {
    let text = if file == Path::new("-") {
        io::read_to_string(io::stdin())
    } else {
        fs::read_to_string(file)
    };
    let text = text.map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let mut good: Vec<(usize, RuleSpec)> = Vec::new();
    let mut bad = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.parse::<RuleSpec>() {
            Ok(spec) => match good
                .iter()
                .find(|(_, known)| known.is_for_packets_of(&spec))
            {
                Some((first, _)) => bad.push(format!(
                    "{}:{number}: means the same packets as line {first}",
                    file.display()
                )),
                None => good.push((number, spec)),
            },
            Err(error) => bad.push(format!("{}:{number}: {error}", file.display())),
        }
    }
    Ok(Lines { good, bad })
}

/// A refusal of one of many names the line that it stands in.
fn refused(error: &ClientError, file: &Path, lines: &[usize]) -> Failed {
    let at = |field: &str| -> Option<usize> {
        let (index, _) = field.strip_prefix('[')?.split_once(']')?;
        lines.get(index.parse::<usize>().ok()?).copied()
    };
    let line = match error {
        ClientError::Refused(problem) => problem.field.as_deref().and_then(at),
        _ => None,
    };
    match line {
        Some(line) => format!("{}:{line}: {error}\nnothing is set", file.display()).into(),
        None => error.to_string().into(),
    }
}

fn preview(told: &RulePreview) -> String {
    let RulePreview {
        seconds,
        samples,
        matched_samples,
        matched_packets,
        matched_bytes,
        dropped_packets,
        ..
    } = told;
    format!(
        "in the last {seconds} s: about {matched_packets} packets, {matched_bytes} bytes, of which {dropped_packets} packets were dropped anyway\n\
         {matched_samples} of {samples} samples"
    )
}

fn rules(ink: Ink, items: &[RuleItem]) -> String {
    let row = |item: &RuleItem| {
        [
            item.id.to_string(),
            word(item.origin),
            or_dash(item.expires.as_ref()),
            item.matched_packets.to_string(),
            item.dropped_packets.to_string(),
            item.rule.clone(),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let header = ["ID", "ORIGIN", "EXPIRES", "MATCHED", "DROPPED", "RULE"];
    table(ink, header, &rows)
}

fn word(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
