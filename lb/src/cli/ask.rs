//! Commands that the daemon answers.

use hyper::Method;
use serde_json::json;

use super::{
    Command, DrainArgs, DrainKind, Failed,
    client::{Client, encoded},
    limits,
    output::Output,
    table::{or_dash, table},
};
use crate::api::model::{BackendItem, DropItem, FlowItem, Flows, Page, Status, VipItem};

pub(super) async fn ask(command: Command, client: Client, output: Output) -> Result<(), Failed> {
    match command {
        Command::Status => {
            let answer: Status = client.get("/v1/status").await?;
            output.show(&answer, status)
        }
        Command::Vips => {
            let answer: Page<VipItem> = client.list("/v1/vips").await?;
            output.show(&answer, |answer| vips(&answer.items))
        }
        Command::Backends => {
            let answer: Page<BackendItem> = client.list("/v1/backends").await?;
            output.show(&answer, |answer| backends(&answer.items))
        }
        Command::Flows => {
            let mut answer: Flows = client.get("/v1/flows").await?;
            if answer.next.take().is_some() {
                answer.items = client.list("/v1/flows").await?.items;
            }
            output.show(&answer, flows)
        }
        Command::Drops => {
            let answer: Page<DropItem> = client.list("/v1/drops").await?;
            output.show(&answer, |answer| drops(&answer.items))
        }
        Command::Limits(args) => limits::show(&args, &client, output).await,
        Command::Limit(command) => limits::change(command, &client, output).await,
        Command::Drain(args) => {
            client.tell(Method::PUT, &drain_path(&args)).await?;
            let done = format!("{} gets no new flows; those that it has stay", args.name);
            output.show(&json!({ "draining": args.name }), |_| done)
        }
        Command::Undrain(args) => {
            client.tell(Method::DELETE, &drain_path(&args)).await?;
            let done = format!("{} is not draining any more", args.name);
            output.show(&json!({ "undrained": args.name }), |_| done)
        }
        Command::Reload => {
            client.tell(Method::POST, "/v1/reload").await?;
            output.show(&json!({ "reloaded": true }), |_| "config reloaded".into())
        }
        _ => unreachable!("not the daemon's to answer"),
    }
}

fn drain_path(args: &DrainArgs) -> String {
    let kind = match args.kind {
        DrainKind::Backend => "backend",
        DrainKind::Vip => "vip",
        DrainKind::Pop => "pop",
    };
    format!("/v1/drains/{kind}/{}", encoded(&args.name))
}

fn status(status: &Status) -> String {
    let interfaces: Vec<_> = status
        .interfaces
        .iter()
        .map(|interface| format!("{} ({})", interface.name, interface.mode))
        .collect();
    let ready = match (status.ready, status.adopted) {
        (false, _) => "not ready yet",
        (true, false) => "ready",
        (true, true) => "ready; took over from an earlier daemon",
    };
    let reload = match &status.last_reload.error {
        None => format!("taken {}", status.last_reload.at),
        Some(error) => format!(
            "REFUSED {}, the one before is in force: {error}",
            status.last_reload.at
        ),
    };
    let uptime = std::time::Duration::from_secs(status.uptime_seconds);
    let mut lines = vec![
        format!("sluice      {}, pid {}", status.version, status.pid),
        format!("state       {ready}"),
        format!("pop         {}", status.pop),
        format!("up          {}", humantime::format_duration(uptime)),
        format!(
            "config      {} ({})",
            status.config_file, status.config_hash
        ),
        format!("            {reload}"),
        format!("interfaces  {}", interfaces.join(", ")),
        format!("vips        {}", status.vips),
        format!(
            "backends    {} of {} up",
            status.backends_up, status.backends
        ),
        format!("flows       {} of {}", status.flows, status.flow_capacity),
        format!("rights      {}", status.capabilities.join(", ")),
    ];
    let warnings = status.warnings.iter();
    lines.extend(warnings.map(|warning| format!("warning     {warning}")));
    lines.join("\n")
}

fn vips(items: &[VipItem]) -> String {
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            [
                item.name.clone(),
                item.prefix.clone(),
                item.protocol.clone(),
                item.port
                    .map_or_else(|| "all".into(), |port| port.to_string()),
                item.pool.clone(),
                item.forward.clone(),
                or_dash(item.policy.as_ref()),
                item.backends_up.to_string(),
                item.packets.to_string(),
                item.dropped_packets.to_string(),
            ]
        })
        .collect();
    let header = [
        "VIP", "ADDRESS", "PROTOCOL", "PORT", "POOL", "FORWARD", "POLICY", "UP", "PACKETS",
        "DROPPED",
    ];
    table(header, &rows)
}

fn backends(items: &[BackendItem]) -> String {
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            let note = item.unresolved_reason.as_ref().or(item.error.as_ref());
            [
                item.pool.clone(),
                item.address.clone(),
                item.state.clone(),
                item.weight.to_string(),
                or_dash(item.forward.as_ref()),
                item.flows.to_string(),
                item.packets.to_string(),
                or_dash(item.mac.as_ref()),
                or_dash(item.interface.as_ref()),
                note.cloned().unwrap_or_default(),
            ]
        })
        .collect();
    let header = [
        "POOL",
        "BACKEND",
        "STATE",
        "WEIGHT",
        "FORWARD",
        "FLOWS",
        "PACKETS",
        "NEXT HOP",
        "INTERFACE",
        "NOTE",
    ];
    table(header, &rows)
}

fn flows(flows: &Flows) -> String {
    let row = |item: &FlowItem| {
        [
            item.pool.clone(),
            item.address.clone(),
            item.forward.clone(),
            item.flows.to_string(),
        ]
    };
    let rows: Vec<_> = flows.items.iter().map(row).collect();
    let Flows {
        proven,
        unproven,
        capacity,
        ..
    } = flows;
    let table = table(["POOL", "BACKEND", "FORWARD", "FLOWS"], &rows);
    format!("{table}\nproven {proven}, unproven {unproven}, room for {capacity}\n")
}

fn drops(items: &[DropItem]) -> String {
    let row = |item: &DropItem| {
        [
            or_dash(item.vip.as_ref()),
            item.reason.clone(),
            item.mode.clone(),
            item.packets.to_string(),
            item.bytes.to_string(),
        ]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    table(["VIP", "REASON", "MODE", "PACKETS", "BYTES"], &rows)
}
