//! Makes answers from the control loop's view and the maps' figures.

use std::{
    net::IpAddr,
    path::Path,
    process,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use sluice_ebpf::abi::Count;

use super::{
    detection::whole,
    model::{
        AttackItem, BackendItem, Counted, DropItem, EventItem, FlowItem, Flows, InterfaceItem,
        LastReload, LimitItem, LimitSummary, MitigationItem, Page, RuleItem, RulePreview,
        SourceItem, StateWord, Status, TaskItem, Told, Verdicts, VipItem,
    },
};
use crate::{
    book::Record as _,
    config::{Backend, Forward, Mode, Pool},
    control::{
        self, DropFigure, Event, Figures, HealthChange, LimitInForce, RuleInForce, SourceInForce,
        TaskStatus, View,
    },
    dataplane::BackendKey,
    dataplane::SourceCounts,
    desired::{backend_drains, next_hop, pop_drains, vip_drains, ways},
    detect::{
        detector::{AttackSeen, Decision},
        minute::Replay,
        mitigation::Mitigation,
    },
    health::State,
    limits::LimitRecord,
    net::if_name,
    rules::RuleSpec,
    service::capabilities,
    sources::FIRST_CONFIG_ID,
};

pub(super) fn status(
    view: &View,
    figures: &Figures,
    tasks: Vec<TaskStatus>,
    config_file: &Path,
) -> Status {
    let config = &view.config;
    let backends = config
        .pools
        .iter()
        .flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    let up = backends
        .clone()
        .filter(|(pool, backend)| is_up(view, &pool.name, backend.address));

    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pop: config.pop.name.clone(),
        draining: pop_drains(&view.drains),
        pid: process::id(),
        uptime_seconds: view.started.elapsed().as_secs(),
        ready: view.ready,
        adopted: view.adopted,
        config_file: config_file.display().to_string(),
        config_hash: format!("{:016x}", view.config_hash),
        last_reload: LastReload {
            ok: view.last_reload.error.is_none(),
            error: view.last_reload.error.clone(),
            at: rfc3339(view.last_reload.at),
        },
        interfaces: view
            .attachments
            .iter()
            .map(|attachment| InterfaceItem {
                name: attachment.interface.clone(),
                mode: attachment.mode.into(),
            })
            .collect(),
        vips: config.vips.len(),
        backends_up: up.count(),
        backends: backends.count(),
        flows: figures.flows.proven + figures.flows.unproven,
        flow_capacity: figures.flows.capacity,
        program_id: view.program_id,
        capabilities: capabilities::held().to_vec(),
        tasks: tasks.into_iter().map(task).collect(),
        warnings: view.warnings.clone(),
    }
}

fn task(task: TaskStatus) -> TaskItem {
    TaskItem {
        name: task.name.into(),
        running: task.running,
        restarts: task.restarts,
        error: task.error,
        since: rfc3339(task.since),
    }
}

pub(super) fn vips(view: &View, figures: &Figures) -> Vec<VipItem> {
    let item = |vip: &crate::config::Vip| {
        let stats = figures.vips.get(&vip.name).copied().unwrap_or_default();
        let drops = figures
            .drops
            .iter()
            .filter(|drop| drop.vip.as_ref() == Some(&vip.name) && drop.mode == Mode::Enforce);
        let dropped = drops.fold(Counted::default(), |sum, drop| Counted {
            packets: sum.packets + drop.count.packets,
            bytes: sum.bytes + drop.count.bytes,
        });
        let challenges = figures.challenges.get(&vip.name);
        let [pass, tx, redirect] = [stats.pass, stats.tx, stats.redirect].map(counted);
        let pool = view.config.pools.iter().find(|pool| pool.name == vip.pool);
        let backends_up = pool.map_or(0, |pool| {
            let addresses = pool.backends.iter().map(|backend| backend.address);
            addresses
                .filter(|address| is_up(view, &pool.name, *address))
                .count()
        });
        VipItem {
            name: vip.name.clone(),
            prefix: vip.prefix.to_string(),
            protocol: word(vip.protocol),
            port: vip.port,
            pool: vip.pool.clone(),
            forward: word(vip.forward),
            policy: vip.policy.clone(),
            draining: vip_drains(&view.drains, &vip.name),
            packets: pass.packets + tx.packets + redirect.packets,
            bytes: pass.bytes + tx.bytes + redirect.bytes,
            dropped_packets: dropped.packets,
            verdicts: Verdicts {
                pass,
                tx,
                redirect,
                drop: dropped,
            },
            challenged_packets: challenges.map_or(0, |stats| stats.sent.packets),
            backends_up,
        }
    };
    view.config.vips.iter().map(item).collect()
}

fn counted(count: Count) -> Counted {
    Counted {
        packets: count.packets,
        bytes: count.bytes,
    }
}

pub(super) fn backends(view: &View, figures: &Figures) -> Vec<BackendItem> {
    let items = view.config.pools.iter().flat_map(|pool| {
        pool.backends
            .iter()
            .map(|backend| backend_item(view, figures, pool, backend))
    });
    items.collect()
}

pub(super) fn flows(figures: &Figures) -> Flows {
    let item = |(key, flows): (&BackendKey, &u64)| FlowItem {
        pool: key.pool.clone(),
        address: key.address.to_string(),
        forward: word(key.forward),
        flows: *flows,
    };
    Flows {
        items: figures.flows.backends.iter().map(item).collect(),
        next: None,
        proven: figures.flows.proven,
        unproven: figures.flows.unproven,
        capacity: figures.flows.capacity,
    }
}

pub(super) fn drops<'a>(figures: impl Iterator<Item = &'a DropFigure>) -> Vec<DropItem> {
    let items = figures.map(|drop| DropItem {
        vip: drop.vip.clone(),
        reason: drop.reason.word().into(),
        mode: word(drop.mode),
        packets: drop.count.packets,
        bytes: drop.count.bytes,
    });
    items.collect()
}

/// A page of what is set at run time.
pub(super) fn page<T, I>(page: control::Page<T>, item: fn(T) -> I) -> Page<I> {
    Page {
        items: page.items.into_iter().map(item).collect(),
        next: page.next.map(|id| id.to_string()),
    }
}

pub(super) fn limit(limit: LimitInForce) -> LimitItem {
    let LimitInForce { record, counters } = limit;
    let spec = &record.spec;
    LimitItem {
        id: record.id,
        etag: record.etag().to_string(),
        burst: spec.burst_packets(),
        prefix: spec.prefix,
        vip: spec.vip.clone(),
        class: spec.class,
        pps: spec.pps,
        bps: spec.bps,
        mode: spec.mode,
        ttl_seconds: spec.ttl_seconds,
        comment: spec.comment.clone(),
        created: date(record.created_ms),
        expires: record.expires_ms.map(date),
        matched_packets: counters.passed_packets + counters.dropped_packets,
        dropped_packets: counters.dropped_packets,
    }
}

pub(super) fn rule(rule: RuleInForce) -> RuleItem {
    let RuleInForce { record, counts } = rule;
    let spec = &record.spec;
    RuleItem {
        id: record.id,
        rule: spec.to_string(),
        components: spec.components.clone(),
        vip: spec.vip.clone(),
        action: spec.action,
        mode: spec.mode,
        priority: spec.priority,
        established: spec.established,
        ttl_seconds: spec.ttl_seconds,
        comment: spec.comment.clone(),
        origin: spec.origin,
        etag: record.etag().to_string(),
        created: (record.created_ms > 0).then(|| date(record.created_ms)),
        expires: record.expires_ms.map(date),
        matched_packets: counts.passed.packets + counts.dropped.packets,
        matched_bytes: counts.passed.bytes + counts.dropped.bytes,
        dropped_packets: counts.dropped.packets,
        dropped_bytes: counts.dropped.bytes,
    }
}

pub(super) fn source(entry: SourceInForce) -> SourceItem {
    let SourceInForce { record, counts } = entry;
    let spec = &record.spec;
    let count = |of: fn(&SourceCounts) -> u64| counts.as_ref().map(of);
    SourceItem {
        id: record.id,
        kind: spec.kind,
        name: spec.name.clone(),
        prefix: spec.prefix,
        vip: spec.vip.clone(),
        mode: spec.mode,
        ranges_v4: spec.members.v4().len(),
        prefixes_v6: spec.members.v6().len(),
        ttl_seconds: spec.ttl_seconds,
        comment: spec.comment.clone(),
        of_config: record.id >= FIRST_CONFIG_ID,
        etag: record.etag().to_string(),
        created: (record.created_ms > 0).then(|| date(record.created_ms)),
        expires: record.expires_ms.map(date),
        matched_packets: count(|counts| counts.passed.packets + counts.dropped.packets),
        matched_bytes: count(|counts| counts.passed.bytes + counts.dropped.bytes),
        dropped_packets: count(|counts| counts.dropped.packets),
        dropped_bytes: count(|counts| counts.dropped.bytes),
    }
}

pub(super) fn preview(spec: &RuleSpec, replay: &Replay) -> RulePreview {
    RulePreview {
        rule: spec.to_string(),
        seconds: replay.ms.div_ceil(1_000),
        samples: replay.samples,
        matched_samples: replay.matched_samples,
        matched_packets: whole(replay.matched_packets),
        matched_bytes: whole(replay.matched_bytes),
        dropped_packets: whole(replay.dropped_packets),
    }
}

impl From<Event> for EventItem {
    fn from(event: Event) -> Self {
        match event {
            Event::LimitSet(record) => Self::LimitSet {
                limit: summary(&record),
            },
            Event::LimitsSet(ids) => {
                let (count, ids) = first_ids(&ids);
                Self::LimitsSet { count, ids }
            }
            Event::LimitRemoved(id) => Self::LimitRemoved { id },
            Event::LimitExpired(id) => Self::LimitExpired { id },
            Event::LimitsExpired(ids) => {
                let (count, ids) = first_ids(&ids);
                Self::LimitsExpired { count, ids }
            }
            Event::RuleSet(record) => Self::RuleSet {
                id: record.id,
                rule: record.spec.to_string(),
            },
            Event::RulesSet(ids) => {
                let (count, ids) = first_ids(&ids);
                Self::RulesSet { count, ids }
            }
            Event::RuleRemoved(id) => Self::RuleRemoved { id },
            Event::RuleExpired(id) => Self::RuleExpired { id },
            Event::RulesExpired(ids) => {
                let (count, ids) = first_ids(&ids);
                Self::RulesExpired { count, ids }
            }
            Event::SourceSet(record) => Self::SourceSet {
                id: record.id,
                kind: record.spec.kind,
                name: record.spec.name.clone(),
                prefix: record.spec.prefix,
                vip: record.spec.vip.clone(),
            },
            Event::SourceRemoved(id) => Self::SourceRemoved { id },
            Event::SourceExpired(id) => Self::SourceExpired { id },
            Event::SourcesExpired(ids) => {
                let (count, ids) = first_ids(&ids);
                Self::SourcesExpired { count, ids }
            }
            Event::DrainBegun { kind, name } => Self::DrainBegun { kind, name },
            Event::Drained { kind, name } => Self::Drained { kind, name },
            Event::DrainEnded { kind, name } => Self::DrainEnded { kind, name },
            Event::Health(HealthChange {
                pool,
                address,
                before,
                state,
                error,
            }) => Self::Health {
                pool,
                address: address.to_string(),
                before: word(before),
                state: word(state),
                error,
            },
            Event::ReloadDone { config_hash } => Self::ReloadDone {
                config_hash: format!("{config_hash:016x}"),
            },
            Event::ReloadRefused { error } => Self::ReloadRefused { error },
            Event::Healed { what } => Self::Healed { what },
            Event::Detection(decision) => decided(&decision),
            Event::MitigationReverted(id) => Self::MitigationReverted { id },
            Event::MitigationAllowed(id) => Self::MitigationAllowed { id },
        }
    }
}

fn decided(decision: &Decision) -> EventItem {
    match decision {
        Decision::Unjudged(seen) => EventItem::Unjudged(attack(seen)),
        Decision::AttackBegan(seen) => EventItem::AttackBegan(attack(seen)),
        Decision::AttackEnded(seen) => EventItem::AttackEnded(attack(seen)),
        Decision::NoRule { seen, why } => EventItem::NoRule {
            attack: attack(seen),
            why: why.to_string(),
        },
        Decision::Raised(raised) => EventItem::MitigationRaised {
            mitigation: mitigation(raised),
        },
        Decision::Rearmed(rearmed) => EventItem::MitigationRearmed {
            mitigation: mitigation(rearmed),
        },
        Decision::Shadowed(shadowed) => EventItem::MitigationShadowed {
            mitigation: mitigation(shadowed),
        },
        Decision::Refused(refused) => EventItem::MitigationRefused {
            mitigation: mitigation(refused),
        },
        Decision::Forgotten(forgotten) => EventItem::MitigationForgotten { id: forgotten.id },
    }
}

fn attack(seen: &AttackSeen) -> AttackItem {
    AttackItem {
        vip: seen.vip.clone(),
        class: word(seen.class),
        rates: seen.rates,
        trigger: seen.trigger,
    }
}

pub(super) fn mitigation(mitigation: &Mitigation) -> MitigationItem {
    MitigationItem {
        id: mitigation.id,
        vip: mitigation.vip.clone(),
        class: word(mitigation.class),
        measure: mitigation.measure.word().to_owned(),
        what: mitigation.measure.to_string(),
        state: mitigation.phase_word(),
        refusal: mitigation.refusal().map(str::to_owned),
        enforced: None,
        evidence: mitigation.evidence,
        rates: mitigation.rates,
        trigger: mitigation.trigger,
        created: date(mitigation.created_ms),
        returns: mitigation.returns,
        matched_packets: mitigation.matched_packets,
    }
}

/// An event that happens now, as `/v1/events` tells it.
pub(crate) fn told(event: Event) -> String {
    let told = Told {
        at: rfc3339(SystemTime::now()),
        what: EventItem::from(event),
    };
    serde_json::to_string(&told).unwrap_or_default()
}

/// How many they are, and the first of them.
fn first_ids(ids: &[u64]) -> (usize, Vec<u64>) {
    (ids.len(), ids[..ids.len().min(EVENT_IDS)].to_vec())
}

/// Events are kept, so none may be of any size.
const EVENT_IDS: usize = 1_000;

fn summary(record: &LimitRecord) -> LimitSummary {
    let spec = &record.spec;
    LimitSummary {
        id: record.id,
        prefix: spec.prefix,
        vip: spec.vip.clone(),
        class: spec.class,
        pps: spec.pps,
        bps: spec.bps,
        mode: spec.mode,
        expires: record.expires_ms.map(date),
        comment: spec.comment.clone(),
    }
}

fn date(ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(ms);
    humantime::format_rfc3339_millis(time).to_string()
}

fn backend_item(view: &View, figures: &Figures, pool: &Pool, backend: &Backend) -> BackendItem {
    let ways = ways(&view.config, &pool.name, backend);
    let keys = ways.iter().map(|forward| BackendKey {
        pool: pool.name.clone(),
        address: backend.address,
        forward: *forward,
    });
    let (mut flows, mut packets, mut bytes) = (0, 0, 0);
    for key in keys {
        let count = figures.backends.get(&key).copied().unwrap_or_default();
        packets += count.packets;
        bytes += count.bytes;
        flows += figures
            .flows
            .backends
            .get(&key)
            .copied()
            .unwrap_or_default();
    }
    let needs_next_hop = ways.iter().any(|forward| *forward != Forward::Local);
    let (next_hop, unresolved_reason) = match view.resolutions.get(&backend.address) {
        _ if !needs_next_hop => (None, None),
        Some(resolution) => match next_hop(&ways, resolution) {
            Ok(next_hop) => (Some(next_hop), None),
            Err(reason) => (None, Some(reason.to_string())),
        },
        None => (None, Some("not looked up yet".into())),
    };
    let health = view.health.get(&(pool.name.clone(), backend.address));
    BackendItem {
        pool: pool.name.clone(),
        address: backend.address.to_string(),
        state: up_and_state(view, pool, backend, flows).1,
        weight: backend.weight,
        forward: (!ways.is_empty()).then(|| {
            ways.iter()
                .map(|way| word(*way))
                .collect::<Vec<_>>()
                .join(",")
        }),
        flows,
        packets,
        bytes,
        resolved: unresolved_reason.is_none(),
        unresolved_reason,
        mac: next_hop.map(|next_hop| mac(next_hop.destination_mac)),
        interface: next_hop.map(|next_hop| if_name(next_hop.ifindex)),
        error: health.and_then(|status| status.error.clone()),
    }
}

/// Whether checks say that a backend is up, and its state. `flows` are its live ones.
pub(crate) fn up_and_state(
    view: &View,
    pool: &Pool,
    backend: &Backend,
    flows: u64,
) -> (bool, StateWord) {
    let drains = || backend_drains(&view.drains, &pool.name, backend.address);
    let health = health(view, &pool.name, backend.address);
    let word = match health {
        State::Down => StateWord::Down,
        _ if drains() && flows == 0 => StateWord::Drained,
        _ if drains() => StateWord::Draining,
        State::Up => StateWord::Up,
        State::Unknown => StateWord::Unknown,
    };
    (health == State::Up, word)
}

pub(crate) fn is_up(view: &View, pool: &str, address: IpAddr) -> bool {
    health(view, pool, address) == State::Up
}

fn health(view: &View, pool: &str, address: IpAddr) -> State {
    view.health
        .get(&(pool.to_owned(), address))
        .map_or(State::Unknown, |status| status.state)
}

/// The word that JSON has for it.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("no word but {other:?}"),
    }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
