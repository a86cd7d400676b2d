//! `sluice mitigations`, `sluice mitigation` and `sluice talkers`.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use hyper::Method;
use serde_json::json;

use super::{
    Failed, Watch,
    client::{Client, encoded},
    output::{Ink, Output},
    table::{or_dash, table},
};
use crate::api::model::{MitigationItem, Page, TalkerRow, Talkers};

#[derive(Debug, Subcommand)]
pub(super) enum MitigationCommand {
    /// End a mitigation for good: none like it is raised again until it is allowed
    Revert { id: u64 },
    /// Take a reversal back: one like it may be raised again
    Allow { id: u64 },
}

/// Which mitigations to show.
#[derive(Debug, Args)]
pub(super) struct MitigationFilters {
    /// Of this VIP
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// Of this state
    #[arg(long, value_enum)]
    state: Option<StateArg>,
    #[command(flatten)]
    pub(super) watch: Watch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateArg {
    Active,
    Shadow,
    Refused,
    Reverted,
}

/// Whose packets to look at, and what makes the first.
#[derive(Debug, Args)]
pub(super) struct TalkerArgs {
    /// To this VIP only
    #[arg(long, value_name = "NAME")]
    vip: Option<String>,
    /// What makes the first of each list
    #[arg(long, value_enum, default_value_t = ByArg::Packets)]
    by: ByArg,
    /// How far back, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Rows of each list
    #[arg(long, value_name = "ROWS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    top: u64,
    #[command(flatten)]
    pub(super) watch: Watch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ByArg {
    Packets,
    Bytes,
    Dropped,
}

pub(super) async fn mitigations(
    filters: &MitigationFilters,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let mut path = "/v1/mitigations".to_owned();
    let state = filters.state.map(|state| match state {
        StateArg::Active => "active",
        StateArg::Shadow => "shadow",
        StateArg::Refused => "refused",
        StateArg::Reverted => "reverted",
    });
    let given = [("vip", filters.vip.as_deref()), ("state", state)];
    for (at, (name, value)) in given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .enumerate()
    {
        let joint = if at == 0 { '?' } else { '&' };
        let _written = write!(path, "{joint}{name}={}", encoded(value));
    }
    let answer: Page<MitigationItem> = client.list(&path).await?;
    output.show(&answer, |answer| {
        mitigations_table(output.ink, &answer.items)
    })
}

pub(super) async fn change(
    command: &MitigationCommand,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let (id, verb, done) = match command {
        MitigationCommand::Revert { id } => (
            id,
            "revert",
            format!(
                "mitigation {id} acts no more, and none like it is raised until `sluice mitigation allow {id}`"
            ),
        ),
        MitigationCommand::Allow { id } => (
            id,
            "allow",
            format!("one like mitigation {id} may be raised again"),
        ),
    };
    let path = format!("/v1/mitigations/{id}/{verb}");
    client.tell(Method::POST, &path).await?;
    output.show(&json!({ "id": id, "done": verb }), |_| done)
}

pub(super) async fn talkers(
    args: &TalkerArgs,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    let by = match args.by {
        ByArg::Packets => "packets",
        ByArg::Bytes => "bytes",
        ByArg::Dropped => "dropped",
    };
    let mut path = format!(
        "/v1/talkers?by={by}&seconds={}&limit={}",
        args.seconds, args.top
    );
    if let Some(vip) = &args.vip {
        let _written = write!(path, "&vip={}", encoded(vip));
    }
    let answer: Talkers = client.get(&path).await?;
    output.show(&answer, |answer| talking(output.ink, answer))
}

pub(super) fn mitigations_table(ink: Ink, items: &[MitigationItem]) -> String {
    let row = |item: &MitigationItem| {
        let state = match item.enforced {
            Some(false) if item.state.word() == "active" => "advised".to_owned(),
            _ => item.state.word().to_owned(),
        };
        let collateral = item.evidence.map_or_else(
            || "-".to_owned(),
            |evidence| format!("{:.3}%", evidence.predicted_collateral * 100.0),
        );
        let what = match &item.refusal {
            Some(why) => format!("{} (refused: {why})", item.what),
            None => item.what.clone(),
        };
        [
            item.id.to_string(),
            or_dash(item.vip.as_ref()),
            item.class.clone(),
            state,
            item.matched_packets.to_string(),
            collateral,
            what,
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    let header = [
        "ID",
        "VIP",
        "CLASS",
        "STATE",
        "MATCHED",
        "COLLATERAL",
        "WHAT",
    ];
    table(ink, header, &rows)
}

fn talking(ink: Ink, talkers: &Talkers) -> String {
    let mut text = format!(
        "{} samples, {} packets each\n",
        talkers.samples, talkers.packets_per_sample
    );
    let lists = [
        ("NETWORK", &talkers.networks),
        ("SOURCE PORT", &talkers.source_ports),
        ("DESTINATION PORT", &talkers.destination_ports),
        ("LENGTH", &talkers.lengths),
    ];
    for (name, rows) in lists {
        let _written = write!(text, "\n{}", talkers_table(ink, name, rows));
    }
    text
}

pub(super) fn talkers_table(ink: Ink, of: &str, rows: &[TalkerRow]) -> String {
    let row = |row: &TalkerRow| {
        [
            row.what.clone(),
            row.pps.to_string(),
            row.bps.to_string(),
            row.dropped_pps.to_string(),
            row.dropped_bps.to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    table(ink, [of, "PPS", "BPS", "DROPPED PPS", "DROPPED BPS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_mitigation_is_shown_with_why() {
        let item = json!({
            "id": 4, "vip": "web", "class": "udp", "measure": "rule", "what": "drop ttl 9", "state": "refused",
            "refusal": "the table is full", "enforced": false, "evidence": null,
            "rates": { "pps": 9, "bps": 9 }, "trigger": { "pps": 1, "bps": 1 },
            "created": "2026-01-01T00:00:00.000Z", "returns": 0, "matched_packets": 0
        });
        let shown = mitigations_table(Ink::Plain, &[serde_json::from_value(item).unwrap()]);
        let row: Vec<&str> = shown.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(row[..6], ["4", "web", "udp", "refused", "0", "-"]);
        assert!(
            shown
                .trim_end()
                .ends_with("drop ttl 9 (refused: the table is full)"),
            "{shown}"
        );
    }
}
