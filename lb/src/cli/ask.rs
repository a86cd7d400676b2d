//! Commands that the daemon answers.

use hyper::Method;
use serde_json::json;

use super::{
    Command, DrainArgs, Failed, Watch,
    client::{Client, encoded},
    detection, limits,
    names::{self, Kind},
    output::{Ink, Output},
    plan, rules, sources,
    table::{or_dash, table},
    top,
};
use crate::{
    api::model::{
        BackendItem, DropItem, FlowItem, Flows, Page, PeerItem, Status, TaskItem, VipItem,
    },
    drains::DrainKind,
    sources::Kind as SourceKind,
};

pub(super) async fn ask(command: Command, client: Client, output: Output) -> Result<(), Failed> {
    match command {
        Command::Limit(command) => limits::change(command, &client, output).await,
        Command::Rule(command) => rules::change(command, &client, output).await,
        Command::Deny(sources::SourceCommand::List(_))
        | Command::Allow(sources::SourceCommand::List(_)) => show(&command, &client, output).await,
        Command::Deny(command) => sources::change(SourceKind::Deny, command, &client, output).await,
        Command::Allow(command) => {
            sources::change(SourceKind::Allow, command, &client, output).await
        }
        Command::Mitigation(command) => detection::change(&command, &client, output).await,
        Command::Drain(args) => {
            let name = drain(Method::PUT, &args, &client).await?;
            let done = format!("{name} gets no new flows; those that it has stay");
            output.show(&json!({ "draining": name }), |_| done)
        }
        Command::Undrain(args) => {
            let name = drain(Method::DELETE, &args, &client).await?;
            let done = format!("{name} is not draining any more");
            output.show(&json!({ "undrained": name }), |_| done)
        }
        Command::Reload => {
            client.tell(Method::POST, "/v1/reload").await?;
            output.show(&json!({ "reloaded": true }), |_| "config reloaded".into())
        }
        Command::Plan => plan::show(&client, output).await,
        Command::Top(args) => top::top(&args, &client, output).await,
        noun => show(&noun, &client, output).await,
    }
}

/// Shows, once or again and again.
async fn show(noun: &Command, client: &Client, output: Output) -> Result<(), Failed> {
    let Some(period) = noun.watch().and_then(Watch::period) else {
        return show_once(noun, client, output).await;
    };
    loop {
        output.clear()?;
        show_once(noun, client, output).await?;
        tokio::time::sleep(period).await;
    }
}

async fn show_once(noun: &Command, client: &Client, output: Output) -> Result<(), Failed> {
    let ink = output.ink;
    match noun {
        Command::Status(_) => {
            let answer: Status = client.get("/v1/status").await?;
            output.show(&answer, |answer| status(ink, answer))
        }
        Command::Vips(_) => {
            let answer: Page<VipItem> = client.list("/v1/vips").await?;
            output.show(&answer, |answer| vips(ink, &answer.items))
        }
        Command::Backends(_) => {
            let answer: Page<BackendItem> = client.list("/v1/backends").await?;
            output.show(&answer, |answer| backends(ink, &answer.items))
        }
        Command::Flows(_) => {
            let mut answer: Flows = client.get("/v1/flows").await?;
            if answer.next.take().is_some() {
                answer.items = client.list("/v1/flows").await?.items;
            }
            output.show(&answer, |answer| flows(ink, answer))
        }
        Command::Drops(_) => {
            let answer: Page<DropItem> = client.list("/v1/drops").await?;
            output.show(&answer, |answer| drops(ink, &answer.items))
        }
        Command::Peers(_) => {
            let answer: Page<PeerItem> = client.list("/v1/peers").await?;
            output.show(&answer, |answer| peers(ink, &answer.items))
        }
        Command::Limits(filters) => limits::show(filters, client, output).await,
        Command::Rules(filters) => rules::show(filters, client, output).await,
        Command::Deny(sources::SourceCommand::List(filters)) => {
            sources::show(SourceKind::Deny, filters, client, output).await
        }
        Command::Allow(sources::SourceCommand::List(filters)) => {
            sources::show(SourceKind::Allow, filters, client, output).await
        }
        Command::Mitigations(filters) => detection::mitigations(filters, client, output).await,
        Command::Talkers(args) => detection::talkers(args, client, output).await,
        _ => unreachable!("not the daemon's to answer"),
    }
}

/// Begins or ends a drain, and returns the name of what drains.
async fn drain(method: Method, args: &DrainArgs, client: &Client) -> Result<String, Failed> {
    let name = match &args.name {
        Some(name) => name.clone(),
        // Of a PoP alone it may be left out, and a daemon has one.
        None => client.get::<Status>("/v1/status").await?.pop,
    };
    let path = format!("/v1/drains/{}/{}", args.kind.word(), encoded(&name));
    let Err(error) = client.tell(method, &path).await else {
        return Ok(name);
    };
    let named = match args.kind {
        DrainKind::Backend => Some((name.as_str(), Kind::Backend)),
        DrainKind::Vip => Some((name.as_str(), Kind::Vip)),
        DrainKind::Pop => None,
    };
    Err(names::explained(error, named, client).await)
}

fn status(ink: Ink, status: &Status) -> String {
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
            "{} {}, the one before is in force: {error}",
            ink.bad("REFUSED"),
            status.last_reload.at
        ),
    };
    let draining = match status.draining {
        true => format!(", {}: no new flows", ink.doubtful("draining")),
        false => String::new(),
    };
    let uptime = std::time::Duration::from_secs(status.uptime_seconds);
    let mut lines = vec![
        format!("sluice      {}, pid {}", status.version, status.pid),
        format!("state       {ready}"),
        format!("pop         {}{draining}", status.pop),
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
    let running = status.tasks.iter().filter(|task| task.running).count();
    lines.push(format!(
        "tasks       {running} of {} run",
        status.tasks.len()
    ));
    let ended = status.tasks.iter().filter(|task| task.restarts > 0);
    lines.extend(ended.map(|task| format!("            {}", restarted(ink, task))));
    let warnings = status.warnings.iter();
    lines.extend(warnings.map(|warning| format!("{}     {warning}", ink.doubtful("warning"))));
    lines.join("\n")
}

/// A task that ended at least once.
fn restarted(ink: Ink, task: &TaskItem) -> String {
    let state = if task.running {
        format!("runs again since {}", task.since)
    } else {
        ink.bad("IS STARTED AGAIN SOON")
    };
    let times = match task.restarts {
        1 => "once".to_owned(),
        many => format!("{many} times"),
    };
    let error = task.error.as_deref().unwrap_or_default();
    format!("{} {state}; it ended {times}: {error}", task.name)
}

fn vips(ink: Ink, items: &[VipItem]) -> String {
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
                String::from(if item.draining { "draining" } else { "" }),
            ]
        })
        .collect();
    let header = [
        "VIP", "ADDRESS", "PROTOCOL", "PORT", "POOL", "FORWARD", "POLICY", "UP", "PACKETS",
        "DROPPED", "NOTE",
    ];
    table(ink, header, &rows)
}

fn backends(ink: Ink, items: &[BackendItem]) -> String {
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            let note = item.unresolved_reason.as_ref().or(item.error.as_ref());
            [
                item.pool.clone(),
                item.address.clone(),
                item.state.word().to_owned(),
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
    table(ink, header, &rows)
}

fn flows(ink: Ink, flows: &Flows) -> String {
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
    let table = table(ink, ["POOL", "BACKEND", "FORWARD", "FLOWS"], &rows);
    format!("{table}\nproven {proven}, unproven {unproven}, room for {capacity}\n")
}

fn drops(ink: Ink, items: &[DropItem]) -> String {
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
    table(ink, ["VIP", "REASON", "MODE", "PACKETS", "BYTES"], &rows)
}

fn peers(ink: Ink, items: &[PeerItem]) -> String {
    if items.is_empty() {
        return "no peers: this version of Sluice does not speak BGP yet".into();
    }
    let row = |item: &PeerItem| {
        let state = if item.up { "up" } else { "down" };
        [item.address.to_string(), state.to_owned()]
    };
    let rows: Vec<_> = items.iter().map(row).collect();
    table(ink, ["PEER", "STATE"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_a_table_or_else_one_line_that_says_why_not() {
        let none = peers(Ink::Plain, &[]);
        assert!(none.contains("does not speak BGP") && !none.contains('\n'));
        let peer = |last, up| PeerItem {
            address: [192, 0, 2, last].into(),
            up,
        };
        let two = peers(Ink::Plain, &[peer(1, true), peer(254, false)]);
        assert_eq!(
            two,
            "PEER         STATE\n192.0.2.1    up\n192.0.2.254  down\n"
        );
    }
}
