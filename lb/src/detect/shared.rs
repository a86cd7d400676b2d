//! What the task that detects attacks shares with who asks about them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{
    baseline::{Baseline, Kept},
    detector::{ALL_CLASSES, Decision, Detector, Settings, VipSettings},
    minute::Minute,
    mitigation::Mitigation,
    recent::VipIndex,
    talkers::Talkers,
};
use crate::config::{Class, Config, Mode, Stage, Stance};

/// The detector, the talkers, and which number each VIP has.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Debug)]
pub struct State {
    pub detector: Detector,
    pub talkers: Talkers,
    pub minute: Minute,
    pub vips: BTreeMap<String, VipIndex>,
    /// Decisions that the webhook never took.
    pub webhook_lost: u64,
    /// What was learned of VIPs that the config did not name yet when it was read.
    learned: BTreeMap<(Option<String>, u8), Learned>,
}

/// What a row on the disk holds of one class of a VIP, or of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    pub packets: Kept,
    pub bits: Kept,
}

/// Rows on the disk begin like this, and go on with what they are about.
const MITIGATION: &str = "mitigation/";
const BASELINE: &str = "baseline/";

impl Shared {
    /// From rows that were kept. Those that make no sense are left out, and told.
    pub fn new(kept: &BTreeMap<String, Vec<u8>>, seed: u64) -> (Self, Vec<String>) {
        let mut detector = Detector::new(Settings::default(), seed);
        let (mut learned, mut warnings) = (BTreeMap::new(), Vec::new());
        for (key, value) in kept {
            let taken = if key.starts_with(MITIGATION) {
                let mitigation = serde_json::from_slice::<Mitigation>(value);
                mitigation
                    .map(|mitigation| detector.adopt([mitigation]))
                    .is_ok()
            } else {
                match (baseline_of(key), serde_json::from_slice(value)) {
                    (Some(of), Ok(row)) => {
                        learned.insert(of, row);
                        true
                    }
                    _ => false,
                }
            };
            if !taken {
                warnings.push(format!(
                    "what detection knew as `{key}` cannot be read, and is forgotten"
                ));
            }
        }
        let state = State {
            detector,
            talkers: Talkers::default(),
            minute: Minute::default(),
            vips: BTreeMap::new(),
            webhook_lost: 0,
            learned,
        };
        (Self(Arc::new(Mutex::new(state))), warnings)
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // What panics in the middle of a tick is in doubt, but better than nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a config, and the numbers that its VIPs have in the data plane. Those that have none yet are no less the
    /// config's: after a start on fresh maps none has, until health is known. Tells what is forgotten.
    pub fn set(&mut self, config: &Config, vips: &BTreeMap<String, VipIndex>) -> Vec<Decision> {
        let settings: Vec<VipSettings> = config
            .vips
            .iter()
            .filter_map(|vip| {
                Some(VipSettings {
                    index: *vips.get(&vip.name)?,
                    name: vip.name.clone(),
                    stance: stance(config, vip),
                })
            })
            .collect();
        self.detector.set(Settings::of(&config.detect), &settings);
        self.vips.clone_from(vips);
        let known =
            |name: &Option<String>| name.as_ref().is_none_or(|name| vips.contains_key(name));
        let learned = std::mem::take(&mut self.learned);
        for (of, row) in learned {
            if known(&of.0) {
                let class = ALL_CLASSES[usize::from(of.1) % ALL_CLASSES.len()];
                let (packets, bits) = (Baseline::of(&row.packets), Baseline::of(&row.bits));
                self.detector.learned(of.0.as_deref(), class, packets, bits);
            } else {
                self.learned.insert(of, row);
            }
        }
        let is_named = |name: &str| config.vips.iter().any(|vip| vip.name == name);
        let mut forgotten = self.detector.forget_vips_but(is_named);
        forgotten.extend(self.detector.forget_excess());
        forgotten
    }

    /// What was learned, as rows for the disk.
    pub fn baselines(&self) -> Vec<(String, Vec<u8>)> {
        let row = |seen: super::detector::Seen<'_>| {
            let learned = Learned {
                packets: seen.trigger.packets.keep(),
                bits: seen.trigger.bits.keep(),
            };
            let value = serde_json::to_vec(&learned).ok()?;
            Some((baseline_key(seen.vip, seen.class), value))
        };
        let known = self.detector.watched();
        known
            .filter(|seen| seen.trigger.packets.ticks() > 0)
            .filter_map(row)
            .collect()
    }
}

/// The key of a mitigation's row.
pub fn mitigation_key(id: u64) -> String {
    format!("{MITIGATION}{id}")
}

fn baseline_key(vip: Option<&str>, class: Class) -> String {
    // No name of a VIP has a slash in it.
    format!("{BASELINE}{}/{}", class as u8, vip.unwrap_or_default())
}

fn baseline_of(key: &str) -> Option<(Option<String>, u8)> {
    let (class, name) = key.strip_prefix(BASELINE)?.split_once('/')?;
    let class = class.parse().ok().filter(|class| *class < 5)?;
    Some((Some(name.to_owned()).filter(|name| !name.is_empty()), class))
}

/// What is done for a VIP: what its policy says, or else `[detect]`; and no more than to advise where a policy only counts, or
/// its rules drop nothing.
fn stance(config: &Config, vip: &crate::config::Vip) -> Stance {
    let policy = vip
        .policy
        .as_ref()
        .and_then(|name| config.policies.iter().find(|policy| policy.name == *name));
    let wanted = policy.and_then(|policy| policy.detect);
    let wanted = wanted.unwrap_or(config.detect.mode);
    let acts = policy.is_none_or(|it| it.mode == Mode::Enforce && it.rules == Stage::Enforce);
    match wanted {
        Stance::Enforce if !acts => Stance::Advise,
        _ => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{
        mitigation::{Measure, Phase},
        signature::Signature,
        trigger::Rates,
    };

    const CONFIG: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["eth0"]
[detect]
mode = "enforce"
[[policy]]
name = "web"
mode = "MODE"
detect = "DETECT"
[[pool]]
name = "web"
health = { kind = "none" }
backend = [{ address = "10.0.0.1" }]
[[vip]]
name = "web"
address = "192.0.2.10"
protocol = "tcp"
pool = "web"
forward = "ipip"
policy = "web"
"#;

    fn config(mode: &str, detect: &str) -> Config {
        let text = CONFIG.replace("MODE", mode).replace("DETECT", detect);
        crate::config::parse(&text, "sluice.toml").unwrap()
    }

    #[test]
    fn a_policy_that_only_counts_has_detection_advise() {
        let stance_of = |mode, detect| {
            let config = config(mode, detect);
            stance(&config, &config.vips[0])
        };
        assert_eq!(stance_of("enforce", "enforce"), Stance::Enforce);
        assert_eq!(stance_of("monitor", "enforce"), Stance::Advise);
        assert_eq!(stance_of("monitor", "off"), Stance::Off);
        for (rules, expected) in [
            (Stage::Enforce, Stance::Enforce),
            (Stage::Monitor, Stance::Advise),
            (Stage::Off, Stance::Advise),
        ] {
            let mut config = config("enforce", "enforce");
            config.policies[0].rules = rules;
            assert_eq!(stance(&config, &config.vips[0]), expected, "{rules:?}");
        }
    }

    /// What an earlier run kept: a mitigation of `web` in each of these phases, by id.
    fn kept(phases: &[Phase]) -> BTreeMap<String, Vec<u8>> {
        let row = |(id, phase): (u64, &Phase)| {
            let mitigation = Mitigation {
                id,
                vip: Some("web".into()),
                class: Class::Udp,
                measure: Measure::Rule(Signature(Vec::new())),
                evidence: None,
                rates: Rates::default(),
                trigger: Rates::default(),
                created_ms: 0,
                phase: phase.clone(),
                returns: 0,
                matched_packets: 0,
            };
            let value = serde_json::to_vec(&mitigation).unwrap();
            (mitigation_key(id), value)
        };
        (1..).zip(phases).map(row).collect()
    }

    fn ids(state: &State) -> Vec<u64> {
        let ids = state.detector.mitigations().map(|mitigation| mitigation.id);
        ids.collect()
    }

    const REVERTED: Phase = Phase::Reverted { at_ms: 1 };
    const SHADOW: Phase = Phase::Shadow { since_ms: 1 };
    const ACTIVE: Phase = Phase::Active {
        since_ms: 1,
        seen_ms: 1,
    };

    #[test]
    fn a_vip_that_the_data_plane_does_not_have_yet_keeps_its_mitigations() {
        let (shared, _) = Shared::new(&kept(&[REVERTED, SHADOW, ACTIVE]), 1);
        let config = config("enforce", "enforce");
        let mut state = shared.lock();
        for vips in [BTreeMap::new(), BTreeMap::from([("web".to_owned(), 1)])] {
            assert_eq!(state.set(&config, &vips), []);
            assert_eq!(ids(&state), [1, 2, 3]);
        }
    }

    #[test]
    fn of_a_vip_that_is_gone_only_reversals_stay() {
        let (shared, _) = Shared::new(&kept(&[REVERTED, SHADOW, ACTIVE]), 1);
        let mut config = config("enforce", "enforce");
        config.vips.clear();
        let mut state = shared.lock();
        let told = state.set(&config, &BTreeMap::new());
        let told: Vec<String> = told.iter().map(Decision::to_string).collect();
        let forgotten = |id| format!("mitigation {id} is forgotten");
        assert_eq!(told, [2, 3].map(forgotten));
        assert_eq!(ids(&state), [1]);
    }

    #[test]
    fn an_earlier_run_leaves_a_vip_no_more_than_four_rules() {
        let phases = [ACTIVE, SHADOW, ACTIVE, SHADOW, REVERTED, SHADOW, SHADOW];
        let (shared, _) = Shared::new(&kept(&phases), 1);
        let config = config("enforce", "enforce");
        let mut state = shared.lock();
        let told = state.set(&config, &BTreeMap::new());
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(ids(&state), [1, 3, 5, 6, 7]);
    }
}
