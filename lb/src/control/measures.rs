//! Makes the data plane hold what the detector wants: rules, limits for source networks, challenges, caps.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_ebpf::abi::Count;

use super::{Handle, Refused, RuleQuery, limits::now_ms};
use crate::{
    book::Precondition,
    config::{Class, Mode, Scope, SourceLimit},
    desired::Tightened,
    detect::{
        as_rule,
        mitigation::{Measure, Mitigation},
        shared::Shared,
        signature::Signature,
    },
    limits::{ClassWord, LimitQuery, LimitSpec},
    rules::{self, Origin, RuleSpec},
};

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Measures {
    tightened: Tightened,
    /// Ids of the limits of each cap.
    caps: BTreeMap<u64, Vec<u64>>,
    /// Rules by mitigation.
    rules: BTreeMap<u64, Held>,
    /// Whether all that an earlier run set is known.
    adopted: bool,
}

/// Rules of a mitigation.
#[derive(Debug)]
struct Held {
    ids: Vec<u64>,
    mode: Mode,
    /// When they are to be set again: they end by themselves if nobody looks after them.
    renew_ms: u64,
    ends_ms: u64,
}

/// What is wanted of a mitigation.
type Wanted = (Mitigation, Mode);

/// Mitigations that nothing could be done for, by id, and why.
type Unmade = BTreeMap<u64, String>;

impl Measures {
    /// Returns what of it could not be done.
    pub(super) async fn apply(&mut self, handle: &Handle, shared: &Shared) -> Unmade {
        let (wanted, hold_ms): (Vec<Wanted>, u64) = {
            let detector = &shared.lock().detector;
            let wanted = detector
                .mitigations()
                .filter_map(|mitigation| Some((mitigation.clone(), detector.wanted(mitigation)?)));
            (wanted.collect(), detector.settings().times.hold_ms)
        };
        if !self.adopted {
            self.adopted = self.adopt(handle).await.is_ok();
        }
        let mut unmade = Unmade::new();
        self.rule(handle, &wanted, hold_ms, &mut unmade).await;
        self.tighten(handle, &wanted, &mut unmade).await;
        self.cap(handle, &wanted, &mut unmade).await;
        unmade
    }

    /// Knows what was set before the daemon, or this task, began anew: what no mitigation wants any more is removed.
    async fn adopt(&mut self, handle: &Handle) -> Result<(), Refused> {
        let rules = RuleQuery {
            origin: Some(Origin::Detection),
            most: usize::MAX,
            ..RuleQuery::default()
        };
        for rule in handle.rule_page(rules).await?.items {
            let Some(mitigation) = of_comment(&rule.record.spec.comment) else {
                continue;
            };
            let held = self.rules.entry(mitigation).or_insert_with(|| Held {
                ids: Vec::new(),
                mode: rule.record.spec.mode,
                renew_ms: 0,
                ends_ms: rule.record.expires_ms.unwrap_or(u64::MAX),
            });
            held.ids.push(rule.record.id);
        }
        let limits = LimitQuery {
            comment: Some(COMMENT.to_owned()),
            most: usize::MAX,
            ..LimitQuery::default()
        };
        for limit in handle.limit_page(limits).await?.items {
            let spec = &limit.record.spec;
            let everybody = spec.prefix.prefix_len() == 0;
            if let Some(mitigation) = of_comment(&spec.comment).filter(|_| everybody) {
                let ids = self.caps.entry(mitigation).or_default();
                ids.push(limit.record.id);
            }
        }
        Ok(())
    }

    /// Packets that fitted the rules of each mitigation so far.
    pub(super) async fn fitted(&self, handle: &Handle) -> BTreeMap<u64, Count> {
        if self.rules.is_empty() {
            return BTreeMap::new();
        }
        let counts = match handle.rule_counts().await {
            Ok(counts) => counts,
            Err(error) => {
                tracing::error!(%error, "what fits mitigations is not known");
                return BTreeMap::new();
            }
        };
        let fitted = |held: &Held| {
            let counts = held.ids.iter().filter_map(|id| counts.get(id));
            let parts = counts.flat_map(|counts| [counts.passed, counts.dropped]);
            parts.fold(Count::default(), |sum, part| Count {
                packets: sum.packets + part.packets,
                bytes: sum.bytes + part.bytes,
            })
        };
        let rules = self.rules.iter();
        rules.map(|(id, held)| (*id, fitted(held))).collect()
    }

    /// Signatures are rules: of those in force they drop, of shadows and of advice they count.
    async fn rule(
        &mut self,
        handle: &Handle,
        wanted: &[Wanted],
        hold_ms: u64,
        unmade: &mut Unmade,
    ) {
        let now_ms = now_ms();
        let ttl_ms = hold_ms + GRACE_MS;
        let wanted: BTreeMap<u64, (&Mitigation, &Signature, Mode)> = wanted
            .iter()
            .filter_map(|(mitigation, mode)| match &mitigation.measure {
                Measure::Rule(signature) => Some((mitigation.id, (mitigation, signature, *mode))),
                _ => None,
            })
            .collect();
        let over: Vec<u64> = self
            .rules
            .keys()
            .copied()
            .filter(|id| !wanted.contains_key(id))
            .collect();
        for id in over {
            let held = self.rules.remove(&id);
            for rule in held.into_iter().flat_map(|held| held.ids) {
                // Its time may be over already.
                if let Err(error @ Refused::Disk(_)) = handle
                    .remove_rule(rule, Origin::Detection, Precondition::None)
                    .await
                {
                    tracing::error!(%error, rule, "a rule of a mitigation cannot be taken away; it ends within minutes");
                }
            }
        }
        for (id, (mitigation, signature, mode)) in wanted {
            let held = self.rules.get_mut(&id).filter(|held| held.mode == mode);
            if held.as_ref().is_some_and(|held| now_ms < held.renew_ms) {
                continue;
            }
            let specs = rule_specs(mitigation, signature, mode, ttl_ms);
            match (set_rules(handle, specs).await, held) {
                (Ok(ids), _) => {
                    let held = Held {
                        ids,
                        mode,
                        renew_ms: now_ms + ttl_ms / 2,
                        ends_ms: now_ms + ttl_ms,
                    };
                    self.rules.insert(id, held);
                }
                // What was set before still holds.
                (Err(_), Some(held)) if now_ms < held.ends_ms => {
                    held.renew_ms = now_ms + RETRY_MS;
                }
                (Err(why), _) => drop(unmade.insert(id, why)),
            }
        }
    }

    /// Limits for source networks stand in the policies of VIPs, and so does that SYNs are challenged.
    async fn tighten(&mut self, handle: &Handle, wanted: &[Wanted], unmade: &mut Unmade) {
        let mut tightened = Tightened::default();
        let mut ids = Vec::new();
        for (mitigation, _) in wanted {
            let Some(vip) = &mitigation.vip else {
                continue;
            };
            match mitigation.measure {
                Measure::PrefixLimits { pps } => {
                    let limit = network_limit(mitigation.class, pps);
                    tightened.entry(vip.clone()).or_default().limits.push(limit);
                }
                Measure::Challenge => {
                    tightened.entry(vip.clone()).or_default().challenge = true;
                }
                Measure::Rule(_) | Measure::Cap { .. } | Measure::Upstream => continue,
            }
            ids.push(mitigation.id);
        }
        if tightened != self.tightened {
            self.tightened.clone_from(&tightened);
            if let Err(error) = handle.tighten(tightened).await {
                unmade.extend(ids.into_iter().map(|id| (id, error.to_string())));
            }
        }
    }

    async fn cap(&mut self, handle: &Handle, wanted: &[Wanted], unmade: &mut Unmade) {
        let caps: Vec<(&Mitigation, u64)> = wanted
            .iter()
            .filter_map(|(mitigation, _)| match mitigation.measure {
                Measure::Cap { pps } => Some((mitigation, pps)),
                _ => None,
            })
            .collect();
        let over: Vec<u64> = self
            .caps
            .keys()
            .copied()
            .filter(|id| !caps.iter().any(|(mitigation, _)| mitigation.id == *id))
            .collect();
        for id in over {
            remove_caps(handle, self.caps.remove(&id).unwrap_or_default()).await;
        }
        for (mitigation, pps) in caps {
            if self.caps.contains_key(&mitigation.id) {
                continue;
            }
            match set_caps(handle, mitigation, pps).await {
                Ok(ids) => drop(self.caps.insert(mitigation.id, ids)),
                Err(why) => drop(unmade.insert(mitigation.id, why)),
            }
        }
    }
}

/// Sets all rules of a mitigation, or none. Returns their ids.
async fn set_rules(handle: &Handle, specs: Vec<RuleSpec>) -> Result<Vec<u64>, String> {
    if specs.is_empty() {
        return Err("no rule can say that".to_owned());
    }
    let set = handle.set_rules(specs).await;
    let set = set.map_err(|error| error.to_string())?;
    Ok(set.iter().map(|(rule, _)| rule.record.id).collect())
}

/// Caps both families, or none. Where an operator set a limit for everybody, that stays.
async fn set_caps(handle: &Handle, mitigation: &Mitigation, pps: u64) -> Result<Vec<u64>, String> {
    let mut ids = Vec::new();
    for everybody in [IpNet::from(Ipv4Net::default()), Ipv6Net::default().into()] {
        let spec = cap_limit(mitigation, everybody, pps);
        match handle.set_limit(spec, Precondition::Absent).await {
            Ok((limit, _)) => ids.push(limit.record.id),
            Err(Refused::Precondition { .. }) => {}
            Err(error) => {
                remove_caps(handle, ids).await;
                return Err(error.to_string());
            }
        }
    }
    if ids.is_empty() {
        return Err("limits for everybody are set already, and stay".to_owned());
    }
    Ok(ids)
}

async fn remove_caps(handle: &Handle, ids: Vec<u64>) {
    for limit in ids {
        // Its time may be over already.
        if let Err(error @ Refused::Disk(_)) = handle.remove_limit(limit, Precondition::None).await
        {
            tracing::error!(%error, limit, "a cap cannot be taken away; `sluice limit remove` does");
        }
    }
}

/// What a cap or rule of a mitigation has as its comment, by which it is known again after a restart.
fn comment(id: u64) -> String {
    format!("{COMMENT}{id}")
}

/// The mitigation that a rule or cap is of.
fn of_comment(comment: &str) -> Option<u64> {
    comment.strip_prefix(COMMENT)?.parse().ok()
}

const COMMENT: &str = "mitigation ";
/// Rules of mitigations end so long after `hold` unless they are set again, which they are after half of both.
const GRACE_MS: u64 = 30_000;
/// Rules that hold, but could not be set again, are tried again after this time.
const RETRY_MS: u64 = 5_000;
/// Behind those of the operator: what these let pass stays so.
const RULE_PRIORITY: u16 = 1_000;

fn rule_specs(
    mitigation: &Mitigation,
    signature: &Signature,
    mode: Mode,
    ttl_ms: u64,
) -> Vec<RuleSpec> {
    let all = as_rule::rules(signature, mitigation.class).into_iter();
    all.map(|components| RuleSpec {
        vip: mitigation.vip.clone(),
        mode,
        priority: RULE_PRIORITY,
        established: mitigation.class == Class::Established,
        ttl_seconds: Some(ttl_ms.div_ceil(1_000)),
        comment: comment(mitigation.id),
        origin: Origin::Detection,
        ..RuleSpec::new(components, rules::Action::Drop)
    })
    .collect()
}

fn network_limit(class: Class, pps: u64) -> SourceLimit {
    SourceLimit {
        class,
        per: Scope::Network,
        pps: Some(pps),
        bps: None,
        burst: burst(pps),
    }
}

fn cap_limit(mitigation: &Mitigation, prefix: IpNet, pps: u64) -> LimitSpec {
    LimitSpec {
        prefix,
        vip: mitigation.vip.clone(),
        class: match mitigation.class {
            Class::Syn => ClassWord::Syn,
            Class::Udp => ClassWord::Udp,
            Class::Icmp => ClassWord::Icmp,
            Class::Other => ClassWord::Other,
            Class::Established => ClassWord::Established,
        },
        pps: Some(pps),
        bps: None,
        burst: Some(burst(pps)),
        mode: Mode::Enforce,
        ttl_seconds: None,
        comment: comment(mitigation.id),
    }
}

/// A tenth of a second's worth.
fn burst(pps: u64) -> u32 {
    u32::try_from((pps / 10).clamp(10, 10_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
