//! `sluice limits`, `sluice limit set` and `sluice limit remove`.

use hyper::Method;
use serde_json::json;

use super::{
    ClassArg, Failed, LimitArgs, LimitCommand, ModeArg,
    client::Client,
    output::Output,
    table::{or_dash, table},
};
use crate::{
    api::model::{Items, LimitItem},
    config::Mode,
    limits::{ClassWord, LimitSpec},
};

pub(super) async fn show(client: &Client, output: Output) -> Result<(), Failed> {
    let answer: Items<LimitItem> = client.get("/v1/limits").await?;
    output.show(&answer, |answer| limits(&answer.items))
}

pub(super) async fn change(
    command: LimitCommand,
    client: &Client,
    output: Output,
) -> Result<(), Failed> {
    match command {
        LimitCommand::Set(args) => {
            let item: LimitItem = client
                .send_json(Method::POST, "/v1/limits", &spec(args))
                .await?;
            output.show(&item, |item| limits(std::slice::from_ref(item)))
        }
        LimitCommand::Remove { id } => {
            client
                .tell(Method::DELETE, &format!("/v1/limits/{id}"))
                .await?;
            output.show(&json!({ "removed": id }), |_| format!("limit {id} removed"))
        }
    }
}

fn spec(args: LimitArgs) -> LimitSpec {
    LimitSpec {
        prefix: args.prefix,
        vip: args.vip,
        class: match args.class {
            ClassArg::All => ClassWord::All,
            ClassArg::Syn => ClassWord::Syn,
            ClassArg::Udp => ClassWord::Udp,
            ClassArg::Icmp => ClassWord::Icmp,
            ClassArg::Other => ClassWord::Other,
            ClassArg::Established => ClassWord::Established,
        },
        pps: args.pps,
        bps: args.bps,
        burst: args.burst,
        mode: match args.mode {
            ModeArg::Enforce => Mode::Enforce,
            ModeArg::Monitor => Mode::Monitor,
        },
        ttl_seconds: args.ttl.map(|ttl| ttl.as_secs()),
        comment: args.comment,
    }
}

fn limits(items: &[LimitItem]) -> String {
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
    table(header, &rows)
}

fn word(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
