//! Finds attacks and decides what is done about them. A pure state machine: it is told the time, counters and samples,
//! and says what it decided and which mitigations it wants; then it is told which of them the data plane refused.

use std::{collections::BTreeMap, fmt};

use sluice_ebpf::abi::{CLASSES, Count};

use super::{
    baseline::Baseline,
    header::Header,
    ladder::{self, Situation},
    mitigation::{Change, Measure, Mitigation, Phase, Times},
    recent::{Recent, Taken, VipIndex},
    signature::{self, Found, MOST_RULES, NoSignature, Samples, Signature},
    trigger::{Lesson, Rates, TICK_MS, Thresholds, Trigger, Turn},
};
use crate::config::{self, Class, Mode, Stance};

/// How the detector is set.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// For what is spread over all VIPs.
    pub stance: Stance,
    pub thresholds: Thresholds,
    pub times: Times,
    pub cap_factor: f64,
}

impl Settings {
    /// As the config says.
    pub fn of(config: &config::Detect) -> Self {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            stance: config.mode,
            thresholds: Thresholds {
                floor: Rates {
                    pps: config.floor_pps,
                    bps: config.floor_bps,
                },
                factor: config.factor.into(),
                learn_ticks: ms(config.learn) / TICK_MS,
                quiet_ms: ms(config.quiet),
            },
            times: Times {
                hold_ms: ms(config.hold),
                quiet_ms: ms(config.quiet),
            },
            cap_factor: config.cap.into(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stance: Stance::default(),
            thresholds: Thresholds::default(),
            times: Times::default(),
            cap_factor: 10.0,
        }
    }
}

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
struct Stopped {
    by_others: Rates,
    by_rules: Rates,
}

/// Something that somebody should hear of.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    AttackBegan(AttackSeen),
    AttackEnded(AttackSeen),
    Raised(Mitigation),
    Rearmed(Mitigation),
    Shadowed(Mitigation),
    /// The data plane did not take it: it does nothing, and the next measure follows.
    Refused(Mitigation),
    /// A shadow saw nothing for long, or what was refused is not wanted any more.
    Forgotten(Mitigation),
    /// No rule: why, and the next measure follows.
    NoRule {
        seen: AttackSeen,
        why: NoSignature,
    },
}

impl Decision {
    /// The word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::AttackBegan(_) => "attack_began",
            Self::AttackEnded(_) => "attack_ended",
            Self::Raised(_) => "mitigation_raised",
            Self::Rearmed(_) => "mitigation_rearmed",
            Self::Shadowed(_) => "mitigation_shadowed",
            Self::Refused(_) => "mitigation_refused",
            Self::Forgotten(_) => "mitigation_forgotten",
            Self::NoRule { .. } => "no_rule",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AttackBegan(seen) => write!(
                f,
                "attack on {seen}: {}, where {} is the trigger",
                seen.rates, seen.trigger
            ),
            Self::AttackEnded(seen) => {
                write!(f, "the attack on {seen} is over; at most {}", seen.rates)
            }
            Self::Raised(mitigation) => {
                write!(f, "mitigation {}: {}", mitigation.id, mitigation.measure)
            }
            Self::Rearmed(mitigation) => write!(
                f,
                "mitigation {} again: its packets are back",
                mitigation.id
            ),
            Self::Shadowed(mitigation) => write!(
                f,
                "mitigation {} only counts: few packets fit it any more",
                mitigation.id
            ),
            Self::Refused(mitigation) => write!(
                f,
                "mitigation {} ({}) is refused and does nothing: {}",
                mitigation.id,
                mitigation.measure,
                mitigation.refusal().unwrap_or_default()
            ),
            Self::Forgotten(mitigation) => write!(f, "mitigation {} is forgotten", mitigation.id),
            Self::NoRule { seen, why } => write!(f, "no rule against the attack on {seen}: {why}"),
        }
    }
}

impl fmt::Display for AttackSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = config::class_words().nth(self.class as usize);
        match &self.vip {
            Some(vip) => write!(f, "{vip} ({})", class.unwrap_or_default()),
            None => write!(f, "many VIPs ({})", class.unwrap_or_default()),
        }
    }
}

/// An attack on a class of a VIP, or of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttackSeen {
    pub vip: Option<String>,
    pub class: Class,
    /// Now; at the end, the most that was seen.
    pub rates: Rates,
    pub trigger: Rates,
}

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

/// A VIP as the config has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipSettings {
    pub index: VipIndex,
    pub name: String,
    pub stance: Stance,
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

/// What is being done about an attack.
#[derive(Clone, Copy, Debug)]
struct Response {
    began_ms: u64,
    /// Samples from here on show what is left of it.
    samples_from_ms: u64,
    next_search_ms: u64,
    /// Whether more came through than may, in each of the last ticks.
    above: u8,
}

/// One VIP, or all.
type Scope = Option<VipIndex>;

/// What of a tick is of no one scope.
struct Sums {
    /// Packets of each class that all VIPs get a second.
    pps: [f64; CLASSES],
    /// What fits rules of mitigations, by id.
    fitting: BTreeMap<u64, Rates>,
}

/// Whose samples are looked at.
#[derive(Clone, Copy, Debug)]
enum Whose {
    Vip(VipIndex),
    /// Of VIPs that are not attacked by themselves.
    Calm,
    /// Of all that are.
    Attacked,
}

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

    /// Takes a config. What is known of VIPs that stay is kept; a VIP is known by its name.
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
        let gone = |mitigation: &Mitigation| match &mitigation.vip {
            Some(name) => !vips.iter().any(|vip| vip.name == *name),
            None => false,
        };
        self.mitigations.retain(|_, mitigation| !gone(mitigation));
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
        let rates = |now: &Count, before: &Count| per_second(now, before, elapsed_ms);
        let stopped = self.measure(&before, &reading, rates);
        let fitting: BTreeMap<u64, Rates> = reading
            .fitted
            .iter()
            .map(|(id, now)| {
                (
                    *id,
                    before
                        .fitted
                        .get(id)
                        .map_or_else(Rates::default, |b| rates(now, b)),
                )
            })
            .collect();
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

    /// Ends a mitigation, and raises none like it until [`Detector::allow`] is called with its id.
    pub fn revert(&mut self, id: u64, now_ms: u64) -> Option<&Mitigation> {
        let mitigation = self.mitigations.get_mut(&id)?;
        if !matches!(mitigation.phase, Phase::Reverted { .. }) {
            mitigation.phase = Phase::Reverted { at_ms: now_ms };
        }
        Some(mitigation)
    }

    /// Takes a reversal back. The mitigation is raised anew if its attack goes on.
    pub fn allow(&mut self, id: u64) -> Option<Mitigation> {
        let reverted = matches!(self.mitigations.get(&id)?.phase, Phase::Reverted { .. });
        reverted.then(|| self.mitigations.remove(&id)).flatten()
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

    fn stance(&self, vip: Option<&str>) -> Stance {
        let Some(name) = vip else {
            return self.settings.stance;
        };
        let known = self.vips.values().find(|vip| vip.name == name);
        known.map_or(Stance::Off, |vip| vip.stance)
    }

    /// Takes the rates of each class. Returns what was stopped of each VIP.
    fn measure(
        &mut self,
        before: &Reading,
        now: &Reading,
        rates: impl Fn(&Count, &Count) -> Rates,
    ) -> BTreeMap<VipIndex, Stopped> {
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

    /// Goes on with the lives of mitigations.
    fn live(
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

    /// Lets the triggers of a scope see this tick.
    fn watch(&mut self, scope: Scope, now_ms: u64, decisions: &mut Vec<Decision>) {
        if scope.is_none() {
            self.sum_up();
        }
        let thresholds = self.settings.thresholds;
        let (name, off) = match scope {
            Some(vip) => match self.vips.get(&vip) {
                Some(vip) => (Some(vip.name.clone()), vip.stance == Stance::Off),
                None => return,
            },
            None => (
                None,
                self.settings.stance == Stance::Off || self.vips.len() < 2,
            ),
        };
        let Some(watched) = self.watched_mut(scope) else {
            return;
        };
        let attacked = watched.is_attacked();
        let lesson = if attacked {
            Lesson::Skip
        } else {
            Lesson::Learn
        };
        let mut begins = false;
        for class in ALL_CLASSES {
            let watch = &mut watched.classes[class as usize];
            let peak = watch.trigger.attack().map(|attack| attack.peak);
            let turn = watch.trigger.tick(now_ms, watch.rates, lesson, &thresholds);
            let seen = |rates| AttackSeen {
                vip: name.clone(),
                class,
                rates,
                trigger: watch.trigger.level(&thresholds).unwrap_or_default(),
            };
            match turn {
                Turn::Begins => {
                    begins = true;
                    let since = watch
                        .trigger
                        .attack()
                        .map_or(now_ms, |attack| attack.since_ms);
                    if !off {
                        decisions.push(Decision::AttackBegan(seen(watch.rates)));
                        watch.response = Some(Response {
                            began_ms: now_ms,
                            samples_from_ms: since.saturating_sub(TICK_MS),
                            next_search_ms: now_ms,
                            // This tick and the one before decided it.
                            above: 1,
                        });
                    }
                }
                Turn::Ends => {
                    watched.attacked_until_ms = Some(now_ms);
                    if watch.response.take().is_some() {
                        decisions.push(Decision::AttackEnded(seen(peak.unwrap_or_default())));
                    }
                }
                Turn::Peace | Turn::GoesOn => {}
            }
        }
        if begins {
            for watch in &mut watched.classes {
                watch.trigger.forget_lately();
            }
        }
    }

    /// What all VIPs that are not attacked by themselves get together.
    fn sum_up(&mut self) {
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
    fn account(&mut self, scope: Scope, class: Class, stopped: Stopped, sums: &Sums) {
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
    fn pps(&self, class: Class) -> f64 {
        let rate = |vip: &Vip| vip.watched.classes[class as usize].rates.pps as f64;
        self.vips.values().map(rate).sum()
    }

    /// Raises what is needed against what still comes through.
    fn respond(&mut self, scope: Scope, class: Class, now_ms: u64, decisions: &mut Vec<Decision>) {
        let thresholds = self.settings.thresholds;
        let Some(watched) = self.watched_mut(scope) else {
            return;
        };
        let watch = &mut watched.classes[class as usize];
        let (Some(response), Some(level)) = (&mut watch.response, watch.trigger.level(&thresholds))
        else {
            return;
        };
        let above = watch.left.exceeds(level);
        response.above = (response.above << 1 | u8::from(above)) & 7;
        let above = above && response.above.count_ones() >= 2;
        // What is only held by limits is still looked at: a rule would spare the innocent among it.
        let unruled = watch.unruled.exceeds(level);
        if !(above || unruled) || now_ms < response.next_search_ms {
            return;
        }
        let response = *response;
        let whose = scope.map_or(Whose::Calm, Whose::Vip);
        let (attack, peace) = self.samples(whose, class, response.samples_from_ms);
        let mut found = self.find(whose, class, &attack, &peace, now_ms);
        let mut rules_of = scope;
        if let Err(NoSignature::FewSamples { .. }) = found
            && self.is_spread(class)
        {
            if self.raised_lately(class, now_ms) {
                return;
            }
            // The samples of one VIP among many may be too few, and those of all enough.
            let (attack, peace) = self.samples(Whose::Attacked, class, response.samples_from_ms);
            if let Ok(spread) = self.find(Whose::Attacked, class, &attack, &peace, now_ms) {
                found = Ok(spread);
                rules_of = None;
            }
        }
        let next_search_ms = match found {
            Ok(found) => {
                for Found {
                    signature,
                    evidence,
                } in found
                {
                    let Some(seen) = self.seen(scope, class) else {
                        break;
                    };
                    let seen = AttackSeen {
                        vip: self.name(rules_of).map(str::to_owned),
                        ..seen
                    };
                    let measure = Measure::Rule(signature);
                    decisions.extend(self.raise(seen, measure, Some(evidence), now_ms));
                }
                now_ms + SETTLE_MS
            }
            Err(NoSignature::FewSamples { .. }) if now_ms < response.began_ms + PATIENCE_MS => {
                now_ms
            }
            Err(why) => {
                let measure = self.climb(scope, class, &attack, &peace, now_ms);
                let acts = measure.as_ref().is_some_and(|m| *m != Measure::Upstream);
                if let Some(measure) = measure.filter(|_| above)
                    && let Some(seen) = self.seen(scope, class)
                {
                    let raised = self.raise(seen.clone(), measure, None, now_ms);
                    decisions.push(Decision::NoRule { seen, why });
                    decisions.extend(raised);
                }
                now_ms + if acts { STEP_MS } else { RETRY_MS }
            }
        };
        if let Some(watched) = self.watched_mut(scope)
            && let Some(response) = &mut watched.classes[class as usize].response
        {
            response.next_search_ms = next_search_ms;
            if next_search_ms > now_ms + RETRY_MS {
                response.samples_from_ms = now_ms;
                response.above = 0;
            }
        }
    }

    fn find(
        &self,
        whose: Whose,
        class: Class,
        attack: &[Header],
        peace: &[Header],
        now_ms: u64,
    ) -> Result<Vec<Found>, NoSignature> {
        let name = match whose {
            Whose::Vip(vip) => self.name(Some(vip)),
            Whose::Calm | Whose::Attacked => None,
        };
        let waits = |mitigation: &Mitigation| {
            let is_rule = matches!(mitigation.measure, Measure::Rule(_));
            is_rule && mitigation.is_of(name, class) && mitigation.waits(now_ms)
        };
        if self.mitigations.values().any(waits) {
            return Err(NoSignature::Refused);
        }
        let samples = Samples {
            attack,
            peace,
            innocent_share: self.innocent_share(whose, class),
        };
        let allowed = |signature: &Signature| {
            let measure = Measure::Rule(signature.clone());
            !self.is_reverted(name, class, &measure)
        };
        let found = signature::find(&samples, allowed)?;
        let active = self.rules(name).filter(|rule| rule.is_active()).count();
        if active + found.len() > MOST_RULES {
            return Err(NoSignature::NothingSafe);
        }
        Ok(found)
    }

    /// The part of what no rule stops that is as it was in peace.
    fn innocent_share(&self, whose: Whose, class: Class) -> f64 {
        let ours = self.vips.iter().filter(|(index, vip)| match whose {
            Whose::Vip(vip) => **index == vip,
            Whose::Calm => !vip.is_attacked(class),
            Whose::Attacked => vip.is_attacked(class),
        });
        let (usual, now) = ours.fold((0, 0), |(usual, now), (_, vip)| {
            let watch = &vip.watched.classes[class as usize];
            let usual_pps = watch.trigger.packets.usual();
            (usual + usual_pps, now + watch.unruled.pps)
        });
        usual as f64 / now.max(1) as f64
    }

    /// The next measure where there is no rule.
    fn climb(
        &self,
        scope: Scope,
        class: Class,
        attack: &[Header],
        peace: &[Header],
        now_ms: u64,
    ) -> Option<Measure> {
        let watch = &self.watched_of(scope)?.classes[class as usize];
        let name = self.name(scope);
        let situation = Situation {
            class,
            rates: watch.left,
            high_pps: watch.trigger.packets.high(),
            floor_pps: self.settings.thresholds.floor.pps,
            cap_factor: self.settings.cap_factor,
            attack,
            peace,
        };
        ladder::next(&situation, |measure| {
            // Measures other than rules are of one VIP.
            let local = scope.is_none() && *measure != Measure::Upstream;
            let was_tried = self.mitigations.values().any(|mitigation| {
                (mitigation.is_active() || mitigation.waits(now_ms))
                    && mitigation.is_of(name, class)
                    && mitigation.measure.word() == measure.word()
            });
            local || was_tried || self.is_reverted(name, class, measure)
        })
    }

    /// Wants a measure; in place of one like it that was refused, which is told when the data plane takes it.
    fn raise(
        &mut self,
        seen: AttackSeen,
        measure: Measure,
        evidence: Option<signature::Evidence>,
        now_ms: u64,
    ) -> Option<Decision> {
        self.make_room(seen.vip.as_deref());
        let refused = self.mitigations.values().find_map(|mitigation| {
            let Phase::Refused { why, .. } = &mitigation.phase else {
                return None;
            };
            let like_it = mitigation.is_of(seen.vip.as_deref(), seen.class)
                && mitigation.measure.word() == measure.word();
            like_it.then(|| (mitigation.id, why.clone()))
        });
        let (id, phase) = match refused {
            Some((id, why)) => (id, Phase::Retried { why }),
            None => {
                let phase = Phase::Active {
                    since_ms: now_ms,
                    seen_ms: now_ms,
                };
                (self.next_id, phase)
            }
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
        mitigation
            .is_active()
            .then_some(Decision::Raised(mitigation))
    }

    /// Has what is done about an attack decided anew at the next tick: what was refused leaves it as it was.
    fn reconsider(&mut self, vip: Option<&str>, class: Class, now_ms: u64) {
        let vips = self.vips.values_mut();
        let ours = vips.filter(|known| vip.is_none_or(|name| known.name == name));
        let all = vip.is_none().then_some(&mut self.all);
        let scopes = ours.map(|vip| &mut vip.watched).chain(all);
        let classes =
            scopes.filter_map(|watched| watched.classes[class as usize].response.as_mut());
        for response in classes {
            response.next_search_ms = now_ms;
            response.samples_from_ms = now_ms.saturating_sub(SETTLE_MS);
            response.above = 1;
        }
    }

    /// Whether several VIPs are attacked by themselves.
    fn is_spread(&self, class: Class) -> bool {
        let attacked = self.vips.values().filter(|vip| vip.is_attacked(class));
        attacked.count() > 1
    }

    /// Whether a rule for all VIPs is so new that its effect is not seen yet.
    fn raised_lately(&self, class: Class, now_ms: u64) -> bool {
        self.rules(None)
            .any(|rule| rule.class == class && now_ms < rule.created_ms + SETTLE_MS)
    }

    /// Forgets the oldest shadow where a VIP has as many rules as it may.
    fn make_room(&mut self, vip: Option<&str>) {
        let full = self.rules(vip).count() >= MOST_RULES;
        let shadow = self
            .rules(vip)
            .find(|rule| matches!(rule.phase, Phase::Shadow { .. }))
            .map(|rule| rule.id);
        if let Some(id) = shadow.filter(|_| full) {
            self.mitigations.remove(&id);
        }
    }

    /// Rules of a VIP that are in force, or shadows.
    fn rules<'a>(&'a self, vip: Option<&'a str>) -> impl Iterator<Item = &'a Mitigation> {
        self.mitigations.values().filter(move |mitigation| {
            matches!(mitigation.measure, Measure::Rule(_))
                && mitigation.is_in_force()
                && mitigation.vip.as_deref() == vip
        })
    }

    fn is_reverted(&self, vip: Option<&str>, class: Class, measure: &Measure) -> bool {
        self.mitigations.values().any(|mitigation| {
            matches!(mitigation.phase, Phase::Reverted { .. })
                && mitigation.covers(vip, class, measure)
        })
    }

    /// Samples of what still comes through, and of peace.
    fn samples(&self, whose: Whose, class: Class, from_ms: u64) -> (Vec<Header>, Vec<Header>) {
        let name = match whose {
            Whose::Vip(vip) => self.name(Some(vip)),
            Whose::Calm | Whose::Attacked => None,
        };
        let attacked = |vip: VipIndex| {
            let vip = self.vips.get(&vip);
            vip.is_some_and(|vip| vip.is_attacked(class))
        };
        let rules: Vec<&Signature> = self
            .rules(name)
            .filter(|rule| rule.is_active())
            .filter_map(|rule| match &rule.measure {
                Measure::Rule(signature) => Some(signature),
                _ => None,
            })
            .collect();
        let ours = |taken: &&Taken| match whose {
            Whose::Vip(vip) => taken.vip == vip,
            Whose::Calm => !attacked(taken.vip),
            Whose::Attacked => attacked(taken.vip),
        };
        let attack: Vec<Header> = self
            .recent
            .since(from_ms)
            .filter(ours)
            .map(|taken| taken.header)
            .filter(|header| header.is_of(class) && !rules.iter().any(|rule| rule.fits(header)))
            .collect();
        let all = match whose {
            Whose::Vip(vip) => self.recent.peace(vip).to_vec(),
            Whose::Calm | Whose::Attacked => self.recent.peace_of_all(MOST_PEACE),
        };
        (thinned(attack, MOST_ATTACK), peace_of(class, all))
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

/// Innocent packets of a class. Where peace had too few of it to tell a share, others stand for them, so that a rule which
/// fits a single one is refused.
fn peace_of(class: Class, all: Vec<Header>) -> Vec<Header> {
    let (mut of_class, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|header| header.is_of(class));
    let missing = FEWEST_PEACE.saturating_sub(of_class.len());
    of_class.extend(others.into_iter().take(missing));
    of_class
}

/// At most so many, evenly over time.
fn thinned(headers: Vec<Header>, most: usize) -> Vec<Header> {
    let step = headers.len().div_ceil(most).max(1);
    headers.into_iter().step_by(step).collect()
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
/// How long to wait for samples before something else is done.
const PATIENCE_MS: u64 = 300;
/// How long what was raised has to show itself in the counters.
const SETTLE_MS: u64 = 500;
/// How long a measure has before the next is taken.
const STEP_MS: u64 = 2_000;
/// When to look again if nothing could be done.
const RETRY_MS: u64 = 300;
const MOST_ATTACK: usize = 1_000;
const MOST_PEACE: usize = 4_096;
/// Fewer cannot show a share of a thousandth.
const FEWEST_PEACE: usize = 999;
