//! Finds attacks and decides what is done about them. A pure state machine: it is told the time, counters and samples,
//! and says what it decided and which mitigations it wants; then it is told which of them the data plane refused.

mod attacks;
mod decision;
mod mitigations;
mod rates;
mod respond;
mod search;
mod settings;

use std::collections::BTreeMap;

use sluice_ebpf::abi::CLASSES;

use super::{
    baseline::Baseline,
    header::Header,
    mitigation::Mitigation,
    recent::{Recent, Taken, VipIndex},
    trigger::{Rates, Trigger},
};
use crate::config::{Class, Stance};

pub use decision::{AttackSeen, Decision};
pub use rates::{Reading, VipReading};
pub use settings::{Settings, VipSettings};

use rates::Sums;
use respond::Response;

/// All that is known of attacks.
#[derive(Clone, Debug)]
pub struct Detector {
    settings: Settings,
    vips: BTreeMap<VipIndex, Vip>,
    /// What is spread over VIPs that are not attacked by themselves.
    all: Watched,
    recent: Recent,
    mitigations: BTreeMap<u64, Mitigation>,
    next_id: u64,
    last: Option<(u64, Reading)>,
}

#[derive(Clone, Debug)]
struct Vip {
    name: String,
    stance: Stance,
    watched: Watched,
}

/// A VIP, or all of them.
#[derive(Clone, Debug, Default)]
struct Watched {
    classes: [Watch; CLASSES],
    /// Up to here samples belong to an attack.
    attacked_until_ms: Option<u64>,
}

/// A class of a VIP.
#[derive(Clone, Debug, Default)]
struct Watch {
    trigger: Trigger,
    rates: Rates,
    /// What no rule stops, and what limits do not either.
    unruled: Rates,
    left: Rates,
    response: Option<Response>,
}

/// One VIP, or all.
type Scope = Option<VipIndex>;

impl Detector {
    /// `seed` is for choosing samples.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            vips: BTreeMap::new(),
            all: Watched::default(),
            recent: Recent::new(seed),
            mitigations: BTreeMap::new(),
            next_id: 1,
            last: None,
        }
    }

    /// Takes a config, of which `vips` are in the data plane. What is known of those that stay is kept; a VIP is known by
    /// its name.
    pub fn set(&mut self, settings: Settings, vips: &[VipSettings]) {
        self.settings = settings;
        let mut before: BTreeMap<String, (VipIndex, Watched)> = std::mem::take(&mut self.vips)
            .into_iter()
            .map(|(index, vip)| (vip.name, (index, vip.watched)))
            .collect();
        let mut same = Vec::new();
        for vip in vips {
            let watched = match before.remove(&vip.name) {
                Some((index, watched)) => {
                    if index == vip.index {
                        same.push(index);
                    }
                    watched
                }
                None => Watched::default(),
            };
            let known = Vip {
                name: vip.name.clone(),
                stance: vip.stance,
                watched,
            };
            self.vips.insert(vip.index, known);
        }
        self.recent.set_vips(vips.len(), |vip| same.contains(&vip));
        self.last = None;
    }

    /// What was learned before, of a VIP or (`None`) of all.
    pub fn learned(&mut self, vip: Option<&str>, class: Class, packets: Baseline, bits: Baseline) {
        let watched = match vip {
            None => Some(&mut self.all),
            Some(name) => self
                .vips
                .values_mut()
                .find(|vip| vip.name == name)
                .map(|vip| &mut vip.watched),
        };
        if let Some(watched) = watched {
            let trigger = &mut watched.classes[class as usize].trigger;
            (trigger.packets, trigger.bits) = (packets, bits);
        }
    }

    /// Mitigations of an earlier run.
    pub fn adopt(&mut self, mitigations: impl IntoIterator<Item = Mitigation>) {
        for mitigation in mitigations {
            self.next_id = self.next_id.max(mitigation.id.saturating_add(1));
            self.mitigations.insert(mitigation.id, mitigation);
        }
    }

    /// Takes a sample of a packet that no stage before the rules dropped.
    pub fn sample(&mut self, at_ms: u64, vip: VipIndex, header: Header) {
        if self.vips.contains_key(&vip) {
            self.recent.push(Taken { at_ms, vip, header });
        }
    }

    /// To be called every 100 ms, and [`Detector::settle`] when the data plane was asked. Tells what was decided.
    pub fn tick(&mut self, now_ms: u64, reading: Reading) -> Vec<Decision> {
        let before = self.last.replace((now_ms, reading.clone()));
        let Some((before_ms, before)) = before else {
            return Vec::new();
        };
        let elapsed_ms = now_ms.saturating_sub(before_ms);
        if elapsed_ms == 0 || elapsed_ms > STALLED_MS {
            return Vec::new();
        }
        let mut decisions = Vec::new();
        let stopped = self.measure(&before, &reading, elapsed_ms);
        let fitting = reading.fitting(&before, elapsed_ms);
        self.live(now_ms, &reading, &fitting, &mut decisions);
        let sums = Sums {
            pps: ALL_CLASSES.map(|class| self.pps(class)),
            fitting,
        };
        let scopes: Vec<Scope> = self.vips.keys().copied().map(Some).chain([None]).collect();
        for scope in scopes {
            self.watch(scope, now_ms, &mut decisions);
            for class in ALL_CLASSES {
                let stopped = scope.and_then(|vip| stopped.get(&vip)).copied();
                self.account(scope, class, stopped.unwrap_or_default(), &sums);
                self.respond(scope, class, now_ms, &mut decisions);
            }
        }
        let (vips, all) = (&self.vips, &self.all);
        self.recent.age(now_ms, |taken| {
            all.holds(taken)
                || vips
                    .get(&taken.vip)
                    .is_none_or(|vip| vip.watched.holds(taken))
        });
        decisions
    }

    /// What is known of each class of each VIP, and of all together.
    pub fn watched(&self) -> impl Iterator<Item = Seen<'_>> {
        let vips = self
            .vips
            .values()
            .map(|vip| (Some(vip.name.as_str()), &vip.watched));
        let scopes = vips.chain([(None, &self.all)]);
        scopes.flat_map(|(vip, watched)| {
            ALL_CLASSES.into_iter().map(move |class| {
                let watch = &watched.classes[class as usize];
                Seen {
                    vip,
                    class,
                    rates: watch.rates,
                    left: watch.left,
                    trigger: &watch.trigger,
                }
            })
        })
    }

    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    fn seen(&self, scope: Scope, class: Class) -> Option<AttackSeen> {
        let watch = &self.watched_of(scope)?.classes[class as usize];
        Some(AttackSeen {
            vip: self.name(scope).map(str::to_owned),
            class,
            rates: watch.rates,
            trigger: watch.trigger.level(&self.settings.thresholds)?,
        })
    }

    fn name(&self, scope: Scope) -> Option<&str> {
        scope
            .and_then(|vip| self.vips.get(&vip))
            .map(|vip| vip.name.as_str())
    }

    fn watched_of(&self, scope: Scope) -> Option<&Watched> {
        match scope {
            None => Some(&self.all),
            Some(vip) => self.vips.get(&vip).map(|vip| &vip.watched),
        }
    }

    fn watched_mut(&mut self, scope: Scope) -> Option<&mut Watched> {
        match scope {
            None => Some(&mut self.all),
            Some(vip) => self.vips.get_mut(&vip).map(|vip| &mut vip.watched),
        }
    }
}

/// What is known of a class.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// `None`: all VIPs.
    pub vip: Option<&'a str>,
    pub class: Class,
    pub rates: Rates,
    pub left: Rates,
    pub trigger: &'a Trigger,
}

impl Vip {
    /// By itself, in this class.
    fn is_attacked(&self, class: Class) -> bool {
        self.watched.classes[class as usize]
            .trigger
            .attack()
            .is_some()
    }
}

impl Watched {
    fn is_attacked(&self) -> bool {
        self.classes
            .iter()
            .any(|watch| watch.trigger.attack().is_some())
    }

    /// Whether a sample is from an attack, or the seconds before one was found.
    fn holds(&self, taken: &Taken) -> bool {
        let ended = self
            .attacked_until_ms
            .is_some_and(|until| taken.at_ms <= until);
        let since = |watch: &Watch| watch.trigger.attack().map(|attack| attack.since_ms);
        let since = self.classes.iter().filter_map(since).min();
        ended || since.is_some_and(|since| taken.at_ms + BEFORE_MS >= since)
    }
}

pub(super) const ALL_CLASSES: [Class; CLASSES] = [
    Class::Syn,
    Class::Udp,
    Class::Icmp,
    Class::Other,
    Class::Established,
];

/// After such a gap the rates mean nothing.
const STALLED_MS: u64 = 5_000;
/// So long before an attack was seen, samples are no longer peace's.
const BEFORE_MS: u64 = 1_000;
