//! A data plane in memory, for tests of what stands above it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use sluice_ebpf::{
    abi::{ChallengeStats, Count, DropReason, RuleCounts, VipStats},
    amplification::Preset,
};
use tokio::sync::watch;

use super::{Attachment, Dataplane, DropFigure, Failure, Figures, FlowFigures, Measured, Sources};
use crate::{
    config::Mode,
    dataplane::{
        BackendKey, Crowding, CrowdingByClass, Desired, ExactCounters, Preview, Purpose,
        SourceCounts, SourceSet,
    },
    health::Snapshot,
    limits::LimitSpec,
    net::{Resolutions, Wanted},
    rules::RuleSpec,
};

/// One VIP of one backend, which is this host.
pub(crate) const CONFIG: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["lo"]
[[pool]]
name = "web"
health = { kind = "none" }
backend = [{ address = "127.0.0.1", forward = "local" }]
[[vip]]
name = "site"
address = "192.0.2.10"
protocol = "tcp"
port = 80
pool = "web"
forward = "local"
"#;

/// Shares what it holds with the test.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    desired: Desired,
    interfaces: Vec<String>,
    fails: Option<&'static str>,
    warns: Option<&'static str>,
    panics: bool,
    /// No backend has flows.
    idle: bool,
    limits: BTreeMap<u32, LimitSpec>,
    ceased: BTreeSet<u32>,
    last_limit: u32,
    rules: Vec<(u64, RuleSpec)>,
    sources: Vec<SourceSet>,
    /// For so many limits, rules, or ranges of sources.
    room: Option<usize>,
}

/// What a loop watches, and by what health and next hops come to it. Nobody asks what it wants to be watched.
pub(crate) fn sources() -> (Sources, watch::Sender<Snapshot>, watch::Sender<Resolutions>) {
    let (health, health_receiver) = watch::channel(Snapshot::default());
    let (resolutions, resolutions_receiver) = watch::channel(Resolutions::default());
    let sources = Sources {
        health: health_receiver,
        targets: watch::channel(Arc::default()).0,
        resolutions: resolutions_receiver,
        wanted: watch::channel(Wanted::default()).0,
    };
    (sources, health, resolutions)
}

impl Fake {
    pub(crate) fn held(&self) -> Desired {
        self.0.lock().unwrap().desired.clone()
    }

    /// Those that act.
    pub(crate) fn limits(&self) -> Vec<LimitSpec> {
        let held = self.0.lock().unwrap();
        let acts = held
            .limits
            .iter()
            .filter(|(number, _)| !held.ceased.contains(number));
        acts.map(|(_, spec)| spec.clone()).collect()
    }

    /// How many there are, those that do not act any more included.
    pub(crate) fn limit_rows(&self) -> usize {
        self.0.lock().unwrap().limits.len()
    }

    /// Ends all flows, or has backends have some again.
    pub(crate) fn set_idle(&self, idle: bool) {
        self.0.lock().unwrap().idle = idle;
    }

    /// As packets meet them, by their text.
    pub(crate) fn rules(&self) -> Vec<String> {
        let held = self.0.lock().unwrap();
        held.rules
            .iter()
            .map(|(_, rule)| rule.to_string())
            .collect()
    }

    /// Numbers and purposes of the sets, and IPv4 ranges in each.
    pub(crate) fn sources(&self) -> Vec<(u8, Purpose, usize)> {
        let held = self.0.lock().unwrap();
        let sets = held.sources.iter();
        sets.map(|set| (set.number, set.purpose, set.members.v4().len()))
            .collect()
    }

    /// Numbers of the sets, and of the VIPs that they are for.
    pub(crate) fn source_vips(&self) -> Vec<(u8, Option<u16>)> {
        let held = self.0.lock().unwrap();
        held.sources
            .iter()
            .map(|set| (set.number, set.vip))
            .collect()
    }

    pub(crate) fn make_room_for(&self, entries: Option<usize>) {
        self.0.lock().unwrap().room = entries;
    }

    /// Whoever asks for figures next finds a bug.
    pub(crate) fn panic_next(&self) {
        self.0.lock().unwrap().panics = true;
    }

    /// From now on nothing can be applied, until this is called with `None`.
    pub(crate) fn fail(&self, with: Option<&'static str>) {
        self.0.lock().unwrap().fails = with;
    }

    /// From now on an operator is to know this.
    pub(crate) fn warn(&self, of: Option<&'static str>) {
        self.0.lock().unwrap().warns = of;
    }
}

impl Dataplane for Fake {
    fn apply(&mut self, desired: &Desired) -> Result<Vec<String>, Failure> {
        let mut held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        held.desired = desired.clone();
        Ok(Vec::new())
    }

    fn preview(&self, desired: &Desired) -> Result<Preview, Failure> {
        let held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        Ok(Preview::between(&held.desired, desired)?)
    }

    fn in_tables(&self) -> BTreeSet<BackendKey> {
        let held = self.0.lock().unwrap();
        let tables = held.desired.tables.values();
        tables
            .flat_map(|table| table.weights.keys().cloned())
            .collect()
    }

    /// Every VIP and backend has some of everything.
    fn figures(&self) -> Result<Figures, Failure> {
        let mut held = self.0.lock().unwrap();
        let panics = std::mem::take(&mut held.panics);
        let held = held;
        if panics {
            drop(held);
            panic!("a bug");
        }
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        let mut figures = Figures::default();
        let count = |packets| Count {
            packets,
            bytes: packets * 100,
        };
        for name in held.desired.vips.keys() {
            let stats = VipStats {
                pass: count(1),
                tx: count(20),
                redirect: count(300),
                out_of_state: 4,
                inserts: 5,
            };
            figures.vips.insert(name.clone(), stats);
            figures.checksums.insert(name.clone(), 0xfeed);
            let challenges = ChallengeStats {
                sent: count(30),
                proved: 12,
                cookies: count(31),
                taken: 13,
                ..ChallengeStats::default()
            };
            figures.challenges.insert(name.clone(), challenges);
            for (reason, mode, packets) in [
                (DropReason::NoBackend, Mode::Enforce, 6),
                (DropReason::LimitHost, Mode::Enforce, 7),
                (DropReason::LimitHost, Mode::Monitor, 8),
            ] {
                figures.drops.push(DropFigure {
                    vip: Some(name.clone()),
                    reason,
                    mode,
                    count: count(packets),
                });
            }
        }
        figures
            .amplified
            .push((Preset::Dns, Mode::Enforce, count(11)));
        for key in held.desired.backends.keys() {
            figures.backends.insert(key.clone(), count(50));
        }
        drop(held);
        figures.flows = self.flows();
        figures.flow_stats.evicted_idle = 9;
        Ok(figures)
    }

    fn flows(&self) -> FlowFigures {
        let held = self.0.lock().unwrap();
        let mut flows = FlowFigures {
            capacity: 1 << 20,
            ..FlowFigures::default()
        };
        for key in held.desired.backends.keys().filter(|_| !held.idle) {
            flows.backends.insert(key.clone(), 5);
            flows.proven += 3;
            flows.unproven += 2;
        }
        flows
    }

    fn measure(&mut self) -> Result<Measured, Failure> {
        let mut crowding = CrowdingByClass::default();
        crowding[0] = Crowding {
            fill_ratio: 0.25,
            collateral_probability: 0.00390625,
        };
        Ok(Measured {
            figures: self.figures()?,
            crowding,
            xdp_ns_per_packet: Some(41.5),
        })
    }

    fn attachments(&self) -> Vec<Attachment> {
        let held = self.0.lock().unwrap();
        let attach = |interface: &String| Attachment {
            interface: interface.clone(),
            mode: "native",
        };
        held.interfaces.iter().map(attach).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let held = self.0.lock().unwrap();
        held.warns.iter().map(ToString::to_string).collect()
    }

    fn set_interfaces(&mut self, names: &[String]) -> Result<(), Failure> {
        self.0.lock().unwrap().interfaces = names.to_vec();
        Ok(())
    }

    fn program_id(&self) -> Option<u32> {
        Some(7)
    }

    fn vip_numbers(&self) -> BTreeMap<String, u16> {
        let names = self.held().vips.into_keys();
        names.zip(1..).collect()
    }

    fn has_vip(&self, name: &str) -> bool {
        self.0.lock().unwrap().desired.vips.contains_key(name)
    }

    fn adopt_limits(&mut self, specs: &[LimitSpec]) -> Vec<Result<u32, Failure>> {
        specs.iter().map(|spec| self.insert_limit(spec)).collect()
    }

    fn insert_limit(&mut self, spec: &LimitSpec) -> Result<u32, Failure> {
        let mut held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        if held.room.is_some_and(|room| held.limits.len() >= room) {
            return Err("full".into());
        }
        held.last_limit += 1;
        let number = held.last_limit;
        held.limits.insert(number, spec.clone());
        Ok(number)
    }

    fn replace_limit(&mut self, number: u32, spec: &LimitSpec) -> Result<u32, Failure> {
        let mut held = self.0.lock().unwrap();
        if let Some(error) = held.fails {
            return Err(error.into());
        }
        held.limits.insert(number, spec.clone()).unwrap();
        held.ceased.remove(&number);
        Ok(number)
    }

    fn cease_limit(&mut self, number: u32) {
        self.0.lock().unwrap().ceased.insert(number);
    }

    fn remove_limit(&mut self, number: u32) -> Result<(), Failure> {
        let mut held = self.0.lock().unwrap();
        held.limits.remove(&number).unwrap();
        held.ceased.remove(&number);
        Ok(())
    }

    fn set_rules(&mut self, rules: &[(u64, &RuleSpec)]) -> Result<(), Failure> {
        let mut held = self.0.lock().unwrap();
        if held.room.is_some_and(|room| rules.len() > room) {
            return Err("there is no room for these rules".into());
        }
        let rules = rules.iter().map(|(id, spec)| (*id, RuleSpec::clone(spec)));
        held.rules = rules.collect();
        Ok(())
    }

    fn set_sources(&mut self, sets: &[SourceSet]) -> Result<(), Failure> {
        let mut held = self.0.lock().unwrap();
        let ranges = sets.iter().map(|set| set.members.v4().len()).sum::<usize>();
        if held.room.is_some_and(|room| ranges > room) {
            return Err("there is no room for these sources".into());
        }
        held.sources = sets.to_vec();
        Ok(())
    }

    fn source_counts(&self) -> BTreeMap<u8, SourceCounts> {
        let count = |packets| Count {
            packets,
            bytes: packets * 100,
        };
        let counts = SourceCounts {
            passed: count(1),
            dropped: count(5),
        };
        let held = self.0.lock().unwrap();
        held.sources
            .iter()
            .map(|set| (set.number, counts))
            .collect()
    }

    fn rule_counts(&self) -> BTreeMap<u64, RuleCounts> {
        let count = |packets| Count {
            packets,
            bytes: packets * 100,
        };
        let counts = RuleCounts {
            passed: count(10),
            dropped: count(3),
        };
        let held = self.0.lock().unwrap();
        held.rules.iter().map(|(id, _)| (*id, counts)).collect()
    }

    fn limit_counters(&self, number: u32) -> Option<ExactCounters> {
        self.0.lock().unwrap().limits.get(&number)?;
        Some(ExactCounters {
            passed_packets: 10,
            passed_bytes: 1000,
            dropped_packets: 3,
            dropped_bytes: 300,
        })
    }
}
