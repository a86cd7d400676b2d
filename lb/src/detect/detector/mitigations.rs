//! The mitigations: raised, in force, shadows, refused, reverted.

use std::collections::{BTreeMap, BTreeSet};

use super::{AttackSeen, Decision, Detector, Reading};
use crate::{
    config::{Class, Mode, Stance},
    detect::{
        life::Change,
        mitigation::{Measure, Mitigation, Phase},
        signature::{Evidence, MOST_RULES},
        trigger::Rates,
    },
};

impl Detector {
    pub fn mitigations(&self) -> impl Iterator<Item = &Mitigation> {
        self.mitigations.values()
    }

    pub fn mitigation(&self, id: u64) -> Option<&Mitigation> {
        self.mitigations.get(&id)
    }

    /// Whether a mitigation acts, and does not only count.
    pub fn enforces(&self, mitigation: &Mitigation) -> bool {
        mitigation.is_active() && self.wanted(mitigation) == Some(Mode::Enforce)
    }

    /// What the data plane is asked to do of a mitigation.
    pub fn wanted(&self, mitigation: &Mitigation) -> Option<Mode> {
        let acts = match mitigation.phase {
            Phase::Active { .. } | Phase::Retried { .. } => {
                self.stance(mitigation.vip.as_deref()) == Stance::Enforce
            }
            Phase::Shadow { .. } => false,
            Phase::Refused { .. } | Phase::Reverted { .. } => return None,
        };
        match mitigation.measure {
            Measure::Upstream => None,
            _ if acts => Some(Mode::Enforce),
            Measure::Rule(_) => Some(Mode::Monitor),
            _ => None,
        }
    }

    /// Takes what the data plane refused of what is wanted, and why; it holds all else. Puts right what was decided: what
    /// is not in force is not told to be.
    pub fn settle(
        &mut self,
        now_ms: u64,
        mut refused: BTreeMap<u64, String>,
        decisions: &mut Vec<Decision>,
    ) {
        decisions.retain(|decision| match decision {
            Decision::Raised(mitigation) | Decision::Rearmed(mitigation) => {
                !refused.contains_key(&mitigation.id)
            }
            _ => true,
        });
        let mut open = Vec::new();
        for (id, mitigation) in &mut self.mitigations {
            match refused.remove(id) {
                Some(why) => {
                    if mitigation.refuse(now_ms, why) {
                        decisions.push(Decision::Refused(mitigation.clone()));
                    }
                    open.push((mitigation.vip.clone(), mitigation.class));
                }
                None if mitigation.take(now_ms) => {
                    decisions.push(Decision::Raised(mitigation.clone()));
                }
                None => {}
            }
        }
        for (vip, class) in open {
            self.reconsider(vip.as_deref(), class, now_ms);
        }
    }

    /// Ends a mitigation, and raises none like it until [`Detector::allow`] is called with its id.
    pub fn revert(&mut self, id: u64, now_ms: u64) -> Option<&Mitigation> {
        let mitigation = self.mitigations.get_mut(&id)?;
        if !mitigation.is_reverted() {
            mitigation.phase = Phase::Reverted { at_ms: now_ms };
        }
        Some(mitigation)
    }

    /// Holds a mitigation as it was before it was reverted.
    pub fn put_back(&mut self, before: Mitigation) {
        self.mitigations.insert(before.id, before);
    }

    /// Takes a reversal back. The mitigation is raised anew if its attack goes on.
    pub fn allow(&mut self, id: u64) -> Option<Mitigation> {
        let reverted = self.mitigations.get(&id)?.is_reverted();
        reverted.then(|| self.mitigations.remove(&id)).flatten()
    }

    /// Forgets the mitigations of VIPs that the config does not name any more; but a reversal, for it holds when its VIP
    /// comes back.
    pub fn forget_vips_but(&mut self, config_names: impl Fn(&str) -> bool) -> Vec<Decision> {
        let is_gone = |mitigation: &Mitigation| {
            let vip = mitigation.vip.as_deref();
            !mitigation.is_reverted() && vip.is_some_and(|name| !config_names(name))
        };
        let gone = self.mitigations.extract_if(.., |_, it| is_gone(it));
        gone.map(|(_, mitigation)| Decision::Forgotten(mitigation))
            .collect()
    }

    /// Goes on with the lives of mitigations.
    pub(super) fn live(
        &mut self,
        now_ms: u64,
        reading: &Reading,
        fitting: &BTreeMap<u64, Rates>,
        decisions: &mut Vec<Decision>,
    ) {
        let times = self.settings.times;
        let mut gone = Vec::new();
        for (id, mitigation) in &mut self.mitigations {
            let rates = if let Measure::Rule(_) = mitigation.measure {
                if let Some(count) = reading.fitted.get(id) {
                    mitigation.matched_packets = count.packets;
                }
                fitting.get(id).copied().unwrap_or_default()
            } else {
                let watched = match &mitigation.vip {
                    None => Some(&self.all),
                    Some(name) => self
                        .vips
                        .values()
                        .find(|vip| vip.name == *name)
                        .map(|vip| &vip.watched),
                };
                let class = mitigation.class as usize;
                watched.map_or_else(Rates::default, |watched| watched.classes[class].unruled)
            };
            match mitigation.tick(now_ms, rates, &times) {
                Change::None => {}
                Change::Rearmed => decisions.push(Decision::Rearmed(mitigation.clone())),
                Change::Shadowed => decisions.push(Decision::Shadowed(mitigation.clone())),
                Change::Gone => {
                    decisions.push(Decision::Forgotten(mitigation.clone()));
                    gone.push(*id);
                }
            }
        }
        for id in gone {
            self.mitigations.remove(&id);
        }
    }

    /// Wants a measure; in place of one like it that was refused, which is told when the data plane takes it. Of rules a VIP
    /// has only so many.
    pub(super) fn raise(
        &mut self,
        seen: AttackSeen,
        measure: Measure,
        evidence: Option<Evidence>,
        now_ms: u64,
        decisions: &mut Vec<Decision>,
    ) {
        if let Measure::Rule(_) = measure {
            decisions.extend(self.forget_rules(seen.vip.as_deref(), MOST_RULES - 1));
        }
        let refused = self.mitigations.values().find_map(|mitigation| {
            let Phase::Refused { why, .. } = &mitigation.phase else {
                return None;
            };
            let like_it = mitigation.is_of(seen.vip.as_deref(), seen.class)
                && mitigation.measure.word() == measure.word();
            like_it.then(|| (mitigation.id, why.clone()))
        });
        let active = Phase::Active {
            since_ms: now_ms,
            seen_ms: now_ms,
        };
        let (id, phase) = match refused {
            Some((id, why)) => (id, Phase::Retried { why }),
            None => (self.next_id, active),
        };
        let mitigation = Mitigation {
            id,
            vip: seen.vip,
            class: seen.class,
            measure,
            evidence,
            rates: seen.rates,
            trigger: seen.trigger,
            created_ms: now_ms,
            phase,
            returns: 0,
            matched_packets: 0,
        };
        self.next_id = self.next_id.max(id + 1);
        self.mitigations.insert(id, mitigation.clone());
        if mitigation.is_active() {
            decisions.push(Decision::Raised(mitigation));
        }
    }

    /// Forgets rules that an earlier run left to VIPs beyond what each may have.
    pub fn forget_excess(&mut self) -> Vec<Decision> {
        let vips: BTreeSet<Option<String>> = self
            .mitigations
            .values()
            .map(|mitigation| mitigation.vip.clone())
            .collect();
        let excess = vips
            .iter()
            .flat_map(|vip| self.forget_rules(vip.as_deref(), MOST_RULES));
        excess.collect()
    }

    /// Forgets rules of a VIP until it has no more than `most`: shadows first, and the oldest of them.
    fn forget_rules(&mut self, vip: Option<&str>, most: usize) -> Vec<Decision> {
        let mut rules: Vec<&Mitigation> = self.rules(vip).collect();
        rules.sort_by_key(|rule| !matches!(rule.phase, Phase::Shadow { .. }));
        let excess = rules.len().saturating_sub(most);
        let ids: Vec<u64> = rules[..excess].iter().map(|rule| rule.id).collect();
        let forgotten = ids.iter().filter_map(|id| self.mitigations.remove(id));
        forgotten.map(Decision::Forgotten).collect()
    }

    /// Rules of a VIP that are in force, shadows, or asked for again.
    pub(super) fn rules<'a>(
        &'a self,
        vip: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Mitigation> {
        self.mitigations.values().filter(move |mitigation| {
            matches!(mitigation.measure, Measure::Rule(_))
                && (mitigation.is_held() || matches!(mitigation.phase, Phase::Retried { .. }))
                && mitigation.vip.as_deref() == vip
        })
    }

    pub(super) fn is_reverted(&self, vip: Option<&str>, class: Class, measure: &Measure) -> bool {
        self.mitigations
            .values()
            .any(|mitigation| mitigation.is_reverted() && mitigation.covers(vip, class, measure))
    }

    fn stance(&self, vip: Option<&str>) -> Stance {
        let Some(name) = vip else {
            return self.settings.stance;
        };
        let known = self.vips.values().find(|vip| vip.name == name);
        known.map_or(Stance::Off, |vip| vip.stance)
    }
}
