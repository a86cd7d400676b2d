//! How much comes of each class, and what rules, limits and challenges leave of it.

use std::collections::BTreeMap;

use sluice_ebpf::abi::{CLASSES, Count};

use super::{ALL_CLASSES, Detector, Scope, Vip, Watched};
use crate::{
    config::Class,
    detect::{recent::VipIndex, trigger::Rates},
};

/// What was counted so far, read at one time.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub vips: Vec<VipReading>,
    /// Packets that fitted each mitigation's rule, by its id.
    pub fitted: BTreeMap<u64, Count>,
}

#[derive(Clone, Debug)]
pub struct VipReading {
    pub vip: VipIndex,
    /// All packets by class, whatever became of them afterwards.
    pub classes: [Count; CLASSES],
    /// Of these, what was stopped (or would have been) by anything but rules.
    pub stopped: Count,
    /// Of these, what rules dropped, whoever set them.
    pub ruled: Count,
}

/// What was stopped of a VIP.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stopped {
    by_others: Rates,
    by_rules: Rates,
}

/// What of a tick is of no one scope.
pub(super) struct Sums {
    /// Packets of each class that all VIPs get a second.
    pub(super) pps: [f64; CLASSES],
    /// What fits rules of mitigations, by id.
    pub(super) fitting: BTreeMap<u64, Rates>,
}

impl Reading {
    /// The rates of packets that fit rules of mitigations, by id.
    pub(super) fn fitting(&self, before: &Self, elapsed_ms: u64) -> BTreeMap<u64, Rates> {
        let rates = |(id, now): (&u64, &Count)| {
            let before = before.fitted.get(id);
            let rates = before.map(|before| per_second(now, before, elapsed_ms));
            (*id, rates.unwrap_or_default())
        };
        self.fitted.iter().map(rates).collect()
    }
}

impl Detector {
    /// Takes the rates of each class. Returns what was stopped of each VIP.
    pub(super) fn measure(
        &mut self,
        before: &Reading,
        now: &Reading,
        elapsed_ms: u64,
    ) -> BTreeMap<VipIndex, Stopped> {
        let rates = |now: &Count, before: &Count| per_second(now, before, elapsed_ms);
        let before: BTreeMap<VipIndex, &VipReading> =
            before.vips.iter().map(|vip| (vip.vip, vip)).collect();
        let mut stopped = BTreeMap::new();
        for reading in &now.vips {
            let (Some(vip), Some(before)) =
                (self.vips.get_mut(&reading.vip), before.get(&reading.vip))
            else {
                continue;
            };
            for (at, watch) in vip.watched.classes.iter_mut().enumerate() {
                watch.rates = rates(&reading.classes[at], &before.classes[at]);
            }
            let of_vip = Stopped {
                by_others: rates(&reading.stopped, &before.stopped),
                by_rules: rates(&reading.ruled, &before.ruled),
            };
            stopped.insert(reading.vip, of_vip);
        }
        stopped
    }

    /// What all VIPs that are not attacked by themselves get together.
    pub(super) fn sum_up(&mut self) {
        for class in ALL_CLASSES {
            let at = class as usize;
            let calm = self
                .vips
                .values()
                .filter(|vip| vip.watched.classes[at].trigger.attack().is_none());
            let sum = calm.fold(Rates::default(), |sum, vip| {
                sum.plus(vip.watched.classes[at].rates)
            });
            self.all.classes[at].rates = sum;
        }
    }

    /// What is left of a class's rates after rules, limits and challenges.
    pub(super) fn account(&mut self, scope: Scope, class: Class, stopped: Stopped, sums: &Sums) {
        let active = |vip: Option<&str>| {
            let rules = self.mitigations.values().filter(|mitigation| {
                mitigation.is_active()
                    && mitigation.vip.as_deref() == vip
                    && mitigation.class == class
            });
            let rates = rules.filter_map(|mitigation| sums.fitting.get(&mitigation.id));
            rates.fold(Rates::default(), |sum, rates| sum.plus(*rates))
        };
        // Which VIPs the packets were for that fit a rule for all is not counted: each has its part of them.
        let of_all = active(None).part(self.part_of_all(scope, class, sums));
        let by_rules = match self.name(scope) {
            Some(name) => of_all.plus(active(Some(name))),
            None => of_all,
        };
        let by_operator = stopped.by_rules.without(self.dropped(scope, sums));
        let Some(watched) = self.watched_mut(scope) else {
            return;
        };
        // What limits and the operator's rules stopped is not known by class: it is taken for what is attacked.
        let attacked = watched.classes[class as usize].trigger.attack().is_some();
        let of_attack = |rates: Rates| if attacked { rates } else { Rates::default() };
        let watch = &mut watched.classes[class as usize];
        watch.unruled = watch
            .rates
            .without(by_rules)
            .without(of_attack(by_operator));
        watch.left = watch.unruled.without(of_attack(stopped.by_others));
    }

    /// What rules of mitigations drop of a scope's packets.
    fn dropped(&self, scope: Scope, sums: &Sums) -> Rates {
        let name = self.name(scope);
        let rules = self.mitigations.values().filter_map(|mitigation| {
            let rates = *(sums.fitting)
                .get(&mitigation.id)
                .filter(|_| self.enforces(mitigation))?;
            match mitigation.vip.as_deref() {
                None => Some(rates.part(self.part_of_all(scope, mitigation.class, sums))),
                vip => (vip == name).then_some(rates),
            }
        });
        rules.fold(Rates::default(), Rates::plus)
    }

    /// The part of all packets of a class that a scope gets.
    fn part_of_all(&self, scope: Scope, class: Class, sums: &Sums) -> f64 {
        let rate = |watched: &Watched| watched.classes[class as usize].rates.pps as f64;
        let all = sums.pps[class as usize];
        let ours = self.watched_of(scope).map_or(0.0, rate);
        if all > 0.0 { ours / all } else { 0.0 }
    }

    /// Packets of a class that all VIPs get a second.
    pub(super) fn pps(&self, class: Class) -> f64 {
        let rate = |vip: &Vip| vip.watched.classes[class as usize].rates.pps as f64;
        self.vips.values().map(rate).sum()
    }
}

fn per_second(now: &Count, before: &Count, elapsed_ms: u64) -> Rates {
    let rate = |now: u64, before: u64| {
        now.saturating_sub(before).saturating_mul(1_000) / elapsed_ms.max(1)
    };
    Rates {
        pps: rate(now.packets, before.packets),
        bps: rate(now.bytes, before.bytes).saturating_mul(8),
    }
}
