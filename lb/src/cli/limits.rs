//! `sluice limits`, `sluice limit set` and `sluice limit remove`.

use hyper::Method;
use serde_json::json;

use super::{
    ClassArg, Failed, LimitArgs, LimitCommand, ModeArg,
    client::{Client, encoded},
    output::Output,
    table::{or_dash, table},
};
use crate::{
    api::model::{Items, LimitBody, LimitClass, LimitItem},
    config::Mode,
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
            let item = set(&body(args), client).await?;
            output.show(&item, |item| limits(std::slice::from_ref(item)))
        }
        LimitCommand::Remove { id } => {
            client
                .tell(Method::DELETE, &format!("/v1/limits/{}", encoded(&id)))
                .await?;
            output.show(&json!({ "removed": id }), |_| format!("limit {id} removed"))
        }
    }
}

/// Replaces the limit of the same prefix, VIP and class if there is one.
async fn set(body: &LimitBody, client: &Client) -> Result<LimitItem, Failed> {
    let refused = match client.send_json(Method::POST, "/v1/limits", body).await {
        Ok(item) => return Ok(item),
        Err(error) if error.status() == Some(409) => error,
        Err(error) => return Err(error.into()),
    };
    let there: Items<LimitItem> = client.get("/v1/limits").await?;
    let same = there.items.into_iter().find(|item| {
        (item.body.prefix, &item.body.vip, item.body.class)
            == (body.prefix.trunc(), &body.vip, body.class)
    });
    match same {
        Some(same) => {
            let path = format!("/v1/limits/{}", encoded(&same.id));
            Ok(client.send_json(Method::PUT, &path, body).await?)
        }
        None => Err(refused.into()),
    }
}

fn body(args: LimitArgs) -> LimitBody {
    LimitBody {
        prefix: args.prefix,
        vip: args.vip,
        class: match args.class {
            ClassArg::All => LimitClass::All,
            ClassArg::Syn => LimitClass::Syn,
            ClassArg::Udp => LimitClass::Udp,
            ClassArg::Icmp => LimitClass::Icmp,
            ClassArg::Other => LimitClass::Other,
            ClassArg::Established => LimitClass::Established,
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
            item.id.clone(),
            item.body.prefix.to_string(),
            item.body.vip.clone().unwrap_or_else(|| "any".into()),
            word(item.body.class),
            or_dash(item.body.pps),
            or_dash(item.body.bps),
            or_dash(item.body.burst),
            word(item.body.mode),
            or_dash(item.expires.as_ref()),
            item.matched_packets.to_string(),
            item.dropped_packets.to_string(),
            item.body.comment.clone(),
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
