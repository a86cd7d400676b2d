//! Makes the data plane hold what the detector wants: rules, limits for source networks, caps.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Handle, Refused};
use crate::{
    config::{Class, Mode, Scope, SourceLimit},
    desired::Tightened,
    detect::{
        mitigation::{Measure, Mitigation},
        shared::Shared,
    },
    limits::{ClassWord, LimitSpec, Precondition},
};

/// What was done so far.
#[derive(Debug, Default)]
pub(super) struct Measures {
    tightened: Tightened,
    /// Ids of the limits of each cap.
    caps: BTreeMap<u64, Vec<u64>>,
}

impl Measures {
    pub(super) async fn apply(&mut self, handle: &Handle, shared: &Shared) {
        let wanted: Vec<(Mitigation, bool)> = {
            let state = shared.lock();
            let all = state.detector.mitigations();
            all.map(|mitigation| (mitigation.clone(), state.detector.enforces(mitigation)))
                .collect()
        };
        self.tighten(handle, &wanted).await;
        self.cap(handle, &wanted).await;
    }

    /// Limits for source networks stand in the policies of VIPs.
    async fn tighten(&mut self, handle: &Handle, wanted: &[(Mitigation, bool)]) {
        let mut tightened = Tightened::default();
        for (mitigation, enforces) in wanted {
            if let (Measure::PrefixLimits { pps }, Some(vip), true) =
                (&mitigation.measure, &mitigation.vip, enforces)
            {
                let limit = network_limit(mitigation.class, *pps);
                tightened.entry(vip.clone()).or_default().push(limit);
            }
        }
        if tightened != self.tightened {
            self.tightened.clone_from(&tightened);
            if let Err(error) = handle.tighten(tightened).await {
                tracing::error!(%error, "limits for source networks cannot be set");
            }
        }
    }

    async fn cap(&mut self, handle: &Handle, wanted: &[(Mitigation, bool)]) {
        let caps = wanted.iter().filter(|(_, enforces)| *enforces);
        let caps: Vec<(&Mitigation, u64)> = caps
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
            for limit in self.caps.remove(&id).unwrap_or_default() {
                // Its time may be over already.
                if let Err(error @ Refused::Disk(_)) =
                    handle.remove_limit(limit, Precondition::None).await
                {
                    tracing::error!(%error, limit, "a cap cannot be taken away; `sluice limit remove` does");
                }
            }
        }
        for (mitigation, pps) in caps {
            if self.caps.contains_key(&mitigation.id) {
                continue;
            }
            let mut ids = Vec::new();
            for prefix in ["0.0.0.0/0", "::/0"] {
                let Ok(prefix) = prefix.parse() else {
                    continue;
                };
                let spec = cap_limit(mitigation, prefix, pps);
                // What an operator set stays.
                match handle.set_limit(spec, Precondition::Absent).await {
                    Ok((limit, _)) => ids.push(limit.record.id),
                    Err(error) => {
                        tracing::error!(%error, %prefix, "a cap cannot be set");
                    }
                }
            }
            self.caps.insert(mitigation.id, ids);
        }
    }
}

/// What a cap or rule of a mitigation has as its comment, by which it is known again after a restart.
fn comment(id: u64) -> String {
    format!("{COMMENT}{id}")
}

const COMMENT: &str = "mitigation ";

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
