//! Makes the data plane hold what the detector wants: rules, limits for source networks, challenges, caps.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_ebpf::abi::Count;

use super::{Handle, Refused, RuleQuery, limits::now_ms};
use crate::{
    book::{Etag, Precondition, Record},
    config::{Class, Mode, Scope, SourceLimit},
    desired::{self, Tightened},
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
    /// Limits by mitigation.
    caps: BTreeMap<u64, Cap>,
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
    lease: Lease,
}

/// The limit of a mitigation.
#[derive(Debug)]
struct Cap {
    id: u64,
    /// As it was set: what an operator made of it since is not ours.
    etag: Etag,
    lease: Lease,
}

/// How long something holds: it ends by itself if nobody looks after it.
#[derive(Clone, Copy, Debug)]
struct Lease {
    renew_ms: u64,
    ends_ms: u64,
}

impl Lease {
    fn new(now_ms: u64, ttl_ms: u64) -> Self {
        Self {
            renew_ms: now_ms + ttl_ms / 2,
            ends_ms: now_ms + ttl_ms,
        }
    }

    /// Of what an earlier run set: it is set again at once.
    fn found(expires_ms: Option<u64>) -> Self {
        Self {
            renew_ms: 0,
            ends_ms: expires_ms.unwrap_or(u64::MAX),
        }
    }
}

/// What is wanted of a mitigation.
type Wanted = (Mitigation, Mode);

/// Mitigations that nothing could be done for, by id, and why.
type Unmade = BTreeMap<u64, String>;

impl Measures {
    /// Returns what of it could not be done.
    pub(super) async fn apply(&mut self, handle: &Handle, shared: &Shared) -> Unmade {
        let (wanted, ttl_ms): (Vec<Wanted>, u64) = {
            let detector = &shared.lock().detector;
            let wanted = detector
                .mitigations()
                .filter_map(|mitigation| Some((mitigation.clone(), detector.wanted(mitigation)?)));
            (
                wanted.collect(),
                detector.settings().times.hold_ms + GRACE_MS,
            )
        };
        if !self.adopted {
            self.adopted = self.adopt(handle, shared).await.is_ok();
        }
        let mut unmade = Unmade::new();
        self.rule(handle, &wanted, ttl_ms, &mut unmade).await;
        tighten(handle, &wanted, &mut unmade).await;
        self.cap(handle, &wanted, ttl_ms, &mut unmade).await;
        unmade
    }

    /// Knows what was set before the daemon, or this task, began anew: what no mitigation wants any more is removed.
    async fn adopt(&mut self, handle: &Handle, shared: &Shared) -> Result<(), Refused> {
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
                lease: Lease::found(rule.record.expires_ms),
            });
            held.ids.push(rule.record.id);
        }
        let limits = LimitQuery {
            comment: Some(COMMENT.to_owned()),
            most: usize::MAX,
            ..LimitQuery::default()
        };
        for limit in handle.limit_page(limits).await?.items {
            let record = &limit.record;
            let Some(mitigation) = of_comment(&record.spec.comment) else {
                continue;
            };
            let detector = &shared.lock().detector;
            let is_cap = |of: &Mitigation| is_cap(of, &record.spec);
            if detector.mitigation(mitigation).is_some_and(is_cap) {
                let cap = Cap {
                    id: record.id,
                    etag: record.etag(),
                    lease: Lease::found(record.expires_ms),
                };
                self.caps.insert(mitigation, cap);
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
    async fn rule(&mut self, handle: &Handle, wanted: &[Wanted], ttl_ms: u64, unmade: &mut Unmade) {
        let now_ms = now_ms();
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
            if held
                .as_ref()
                .is_some_and(|held| now_ms < held.lease.renew_ms)
            {
                continue;
            }
            let specs = rule_specs(mitigation, signature, mode, ttl_ms);
            match (set_rules(handle, specs).await, held) {
                (Ok(ids), _) => {
                    let held = Held {
                        ids,
                        mode,
                        lease: Lease::new(now_ms, ttl_ms),
                    };
                    self.rules.insert(id, held);
                }
                // What was set before still holds.
                (Err(_), Some(held)) if now_ms < held.lease.ends_ms => {
                    held.lease.renew_ms = now_ms + RETRY_MS;
                }
                (Err(why), _) => drop(unmade.insert(id, why)),
            }
        }
    }

    async fn cap(&mut self, handle: &Handle, wanted: &[Wanted], ttl_ms: u64, unmade: &mut Unmade) {
        let now_ms = now_ms();
        let caps: BTreeMap<u64, LimitSpec> = {
            let config = &handle.view().config;
            let cap = |(mitigation, _): &Wanted| {
                let name = mitigation.vip.as_ref()?;
                let vip = config.vips.iter().find(|vip| vip.name == *name)?;
                let spec = cap_limit(mitigation, everybody(vip.prefix), ttl_ms)?;
                Some((mitigation.id, spec))
            };
            wanted.iter().filter_map(cap).collect()
        };
        let over = self.caps.extract_if(.., |id, _| !caps.contains_key(id));
        for (_, cap) in over {
            remove_cap(handle, cap).await;
        }
        for (id, spec) in caps {
            let held = self.caps.get_mut(&id);
            if held.as_ref().is_some_and(|cap| now_ms < cap.lease.renew_ms) {
                continue;
            }
            // What an operator set for everybody stays.
            let unchanged = match &held {
                Some(cap) => Precondition::Is(vec![cap.etag.clone()]),
                None => Precondition::Absent,
            };
            match (handle.set_limit(spec, unchanged).await, held) {
                (Ok((limit, _)), _) => {
                    let cap = Cap {
                        id: limit.record.id,
                        etag: limit.record.etag(),
                        lease: Lease::new(now_ms, ttl_ms),
                    };
                    self.caps.insert(id, cap);
                }
                (Err(Refused::Precondition { .. }), _) => {
                    self.caps.remove(&id);
                    let why = "an operator set, changed or removed the limit for everybody";
                    unmade.insert(id, why.to_owned());
                }
                // What was set before still holds.
                (Err(_), Some(cap)) if now_ms < cap.lease.ends_ms => {
                    cap.lease.renew_ms = now_ms + RETRY_MS;
                }
                (Err(error), _) => drop(unmade.insert(id, error.to_string())),
            }
        }
    }
}

/// Limits for source networks stand in the policies of VIPs, and so does that SYNs are challenged.
async fn tighten(handle: &Handle, wanted: &[Wanted], unmade: &mut Unmade) {
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
    if tightened != *handle.tightened()
        && let Err(error) = handle.tighten(tightened).await
    {
        unmade.extend(ids.into_iter().map(|id| (id, error.to_string())));
        return;
    }
    // A reload may take the room as well.
    let desired = &handle.view().desired;
    for (mitigation, _) in wanted {
        if let Measure::PrefixLimits { .. } = mitigation.measure
            && let Some(vip) = &mitigation.vip
            && desired::is_left_out(desired, vip)
        {
            let why = "no room for limits of one VIP, for there are too many policies";
            unmade.insert(mitigation.id, why.to_owned());
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

async fn remove_cap(handle: &Handle, cap: Cap) {
    let unchanged = Precondition::Is(vec![cap.etag]);
    // Its time may be over already, or it is an operator's now.
    if let Err(error @ Refused::Disk(_)) = handle.remove_limit(cap.id, unchanged).await {
        tracing::error!(%error, limit = cap.id, "a cap cannot be taken away; it ends within minutes");
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
/// Rules and caps of mitigations end so long after `hold` unless they are set again, which they are after half of both.
const GRACE_MS: u64 = 30_000;
/// What holds, but could not be set again, is tried again after this time.
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

/// All sources that can send to a VIP.
fn everybody(vip: IpNet) -> IpNet {
    match vip {
        IpNet::V4(_) => Ipv4Net::default().into(),
        IpNet::V6(_) => Ipv6Net::default().into(),
    }
}

/// The limit that a mitigation is, if it is a cap.
fn cap_limit(mitigation: &Mitigation, prefix: IpNet, ttl_ms: u64) -> Option<LimitSpec> {
    let Measure::Cap { pps } = mitigation.measure else {
        return None;
    };
    Some(LimitSpec {
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
        ttl_seconds: Some(ttl_ms.div_ceil(1_000)),
        comment: comment(mitigation.id),
    })
}

/// Whether a limit is what this mitigation set. Its comment alone does not tell: an operator may write the like.
fn is_cap(mitigation: &Mitigation, spec: &LimitSpec) -> bool {
    let cap = cap_limit(mitigation, everybody(spec.prefix), 0);
    // What `hold` was then is not known.
    let cap = cap.filter(|_| spec.ttl_seconds.is_some());
    cap.is_some_and(|cap| {
        *spec
            == LimitSpec {
                ttl_seconds: spec.ttl_seconds,
                ..cap
            }
    })
}

/// A tenth of a second's worth.
fn burst(pps: u64) -> u32 {
    u32::try_from((pps / 10).clamp(10, 10_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
