//! The data plane in the kernel, as the control loop asks for it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use sluice_ebpf::{
    abi::{ANY_VIP, RuleCounts, maps},
    exact::V6_WAYS,
};

use super::{Attachment, Dataplane, DropFigure, Failure, Figures, FlowFigures, Measured};
use crate::{
    config::{self, Config},
    dataplane::{
        Attached, BackendKey, Cells, Census, Desired, ExactCounters, ExactLimit, ExactLimits,
        ExactTables, LoadError, Need, Opened, Plane, Preview, RuleInForce, RuleMaps, RunStats,
        SetNames, SettingsWords, SourceCounts, SourceMaps, SourceSet, TableKey, lost_redirects,
    },
    disk::SaveError,
    limits::LimitSpec,
    net,
    rules::RuleSpec,
    sys::Mapped,
};

/// A plane, its exact limits, and what is remembered of both.
pub(super) struct Kernel {
    plane: Plane,
    config: config::Dataplane,
    attached: Vec<Attached>,
    /// Interfaces of the config that are not there.
    gone: Vec<String>,
    /// What does not get to its backends.
    lost_redirects: Vec<String>,
    /// Why the program could not be attached again; said once.
    unattached: Option<String>,
    program_id: Option<u32>,
    rules: RuleMaps,
    /// `None` until sets of sources are taken over.
    sources: Option<SourceMaps>,
    names: SetNames,
    /// Why the disk has other names of sets.
    names_unsaved: Option<SaveError>,
    /// What waits for the disk.
    unsaved: Vec<String>,
    /// `None` until limits are adopted.
    exact: Option<ExactLimits>,
    /// Lookup tables by VIP, but for those that drain.
    tables: BTreeMap<String, TableKey>,
    census: RefCell<Option<Counted>>,
    run_time: RunTime,
}

/// What the program takes for a packet.
#[derive(Default)]
struct RunTime {
    /// What the last figure was made from. A program that was just loaded has zeros, and each daemon loads its own.
    runs: u64,
    run_time_ns: u64,
    ns_per_packet: Option<f64>,
}

impl RunTime {
    /// Takes what the kernel measured so far. The figure changes once enough packets came, however many calls that takes.
    fn update(&mut self, now: RunStats) -> Option<f64> {
        let runs = now.runs.saturating_sub(self.runs);
        if runs >= RUNS_ENOUGH {
            let ns = now.run_time_ns.saturating_sub(self.run_time_ns);
            self.ns_per_packet = Some(ns as f64 / runs as f64);
            (self.runs, self.run_time_ns) = (now.runs, now.run_time_ns);
        }
        self.ns_per_packet
    }
}

const RUNS_ENOUGH: u64 = 64;

/// A census, when it was taken, and how long that took.
struct Counted {
    census: Census,
    at: Instant,
    took: Duration,
}

/// A census of a large flow table is used again for this many times as long as it took: counting never takes more than
/// a twentieth of the time, however often it is asked for.
const CENSUS_REUSE: u32 = 20;

impl Kernel {
    /// Loads the data plane, or takes over the one that is there.
    pub(super) fn open(
        config: &Config,
        secret: Option<[u8; 32]>,
    ) -> Result<(Self, Opened), LoadError> {
        let (mut plane, opened) = Plane::open(&config.dataplane, need(config), secret)?;
        let rules = plane.rules()?;
        let program_id = plane.run_stats().ok().map(|stats| stats.program_id);
        let kernel = Self {
            plane,
            rules,
            sources: None,
            names: SetNames::default(),
            names_unsaved: None,
            unsaved: Vec::new(),
            config: config.dataplane.clone(),
            attached: opened.interfaces.clone(),
            gone: Vec::new(),
            lost_redirects: Vec::new(),
            unattached: None,
            program_id,
            exact: None,
            tables: BTreeMap::new(),
            census: RefCell::new(None),
            run_time: RunTime::default(),
        };
        Ok((kernel, opened))
    }

    /// What drivers can do changes, as when the other end of a veth gets a program.
    fn look_for_lost_redirects(&mut self, desired: &Desired) {
        let next_hops = desired.backends.values().filter_map(|state| state.next_hop);
        let egresses = next_hops.map(|next_hop| next_hop.ifindex).collect();
        let lost = lost_redirects(&self.attached, &egresses);
        for warning in &lost {
            if !self.lost_redirects.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
        self.lost_redirects = lost;
    }

    /// Nothing else waits for the disk. What it did not take is tried again each time.
    fn look_for_unsaved(&mut self) {
        if self.names_unsaved.is_some() {
            self.save_names();
        }
        let errors = self.plane.unsaved().into_iter().chain(&self.names_unsaved);
        let unsaved = errors.map(|error| {
            let why = super::chain(error);
            format!("a later start may not find the data plane as it is: {why}")
        });
        let unsaved: Vec<String> = unsaved.collect();
        for warning in &unsaved {
            if !self.unsaved.contains(warning) {
                tracing::warn!("{warning}");
            }
        }
        self.unsaved = unsaved;
    }

    fn exact_limit(&self, spec: &LimitSpec) -> Result<ExactLimit, Failure> {
        let vip = match &spec.vip {
            None => ANY_VIP,
            Some(name) => self
                .plane
                .vip_number(name)
                .ok_or_else(|| format!("there is no VIP {name}"))?,
        };
        Ok(spec.exact(vip, self.plane.hz()))
    }

    fn exact(&mut self) -> Result<&mut ExactLimits, Failure> {
        self.exact
            .as_mut()
            .ok_or_else(|| "the limits that are there were not taken over".into())
    }

    fn audit_limits(&mut self, found: &mut Vec<String>) {
        let Some(exact) = &mut self.exact else {
            return;
        };
        let local_key = self.plane.settings().local_key;
        if exact.audit(local_key) {
            return;
        }
        for (limit, error) in exact.rebuild(local_key) {
            tracing::error!(prefix = %limit.prefix, %error, "a limit has found no room again; remove it, and set it anew");
        }
        found.push("limits".to_owned());
    }

    /// Attaches again where the program is off: somebody took it off, or the interface is another than before.
    fn audit_interfaces(&mut self, found: &mut Vec<String>) {
        let names = &self.config.interfaces;
        let (there, gone): (Vec<String>, Vec<String>) = names
            .iter()
            .cloned()
            .partition(|name| net::if_index(name).is_ok());
        for name in gone.iter().filter(|name| !self.gone.contains(*name)) {
            tracing::error!(interface = %name, "the interface is gone; the program is attached again when it is back");
        }
        self.gone = gone;
        let runs = |name: &String| {
            let attached = self.attached.iter().find(|attached| attached.name == *name);
            attached.is_some_and(|attached| self.plane.is_attached(attached))
        };
        let off: Vec<&String> = there.iter().filter(|name| !runs(name)).collect();
        if off.is_empty() {
            self.attached
                .retain(|attached| there.contains(&attached.name));
            return;
        }
        let off: Vec<String> = off
            .into_iter()
            .map(|name| format!("XDP on {name}"))
            .collect();
        let config = config::Dataplane {
            interfaces: there,
            ..self.config.clone()
        };
        match self.plane.attach(&config) {
            Ok((attached, warnings)) => {
                self.unattached = None;
                self.attached = attached;
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                found.extend(off);
            }
            Err(error) => {
                let error = super::chain(&error);
                if self.unattached.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        "cannot attach again, and packets there are not balanced; take away what is in the way: it is tried again every few seconds"
                    );
                }
                self.unattached = Some(error);
            }
        }
    }

    fn save_names(&mut self) {
        self.names_unsaved = self.names.save(&self.config.state_dir).err();
    }

    fn exact_tables(&self) -> Result<ExactTables, LoadError> {
        Ok(ExactTables {
            settings: Box::new(SettingsWords::new(self.plane.map(maps::SETTINGS)?)),
            v4_filter: Box::new(self.plane.map::<[u32; 2]>(maps::EXACT_V4_FILTER)?),
            v4: Box::new(self.plane.map::<[u32; 2]>(maps::EXACT_V4)?),
            blocks: Box::new(self.plane.map::<[u32; 2]>(maps::EXACT_V4_BLOCKS)?),
            v6_filter: Box::new(self.plane.map::<u32>(maps::EXACT_V6_LENGTHS)?),
            v6: Box::new(self.plane.map::<[u64; V6_WAYS]>(maps::EXACT_V6)?),
            limits: Box::new(self.plane.map::<[u64; LIMIT_WORDS]>(maps::LIMITS)?),
        })
    }
}

impl Dataplane for Kernel {
    fn apply(&mut self, desired: &Desired) -> Result<Vec<String>, Failure> {
        let steps = self.plane.apply(desired)?;
        let tables = desired
            .vips
            .iter()
            .filter(|(_, vip)| !vip.table.is_nowhere())
            .map(|(name, vip)| (name.clone(), vip.table.clone()))
            .collect();
        if tables != self.tables {
            // A backend that leaves is told drained by its flows: none of them may be younger than their count.
            self.census.take();
            self.tables = tables;
        }
        self.look_for_lost_redirects(desired);
        self.look_for_unsaved();
        Ok(steps.iter().map(ToString::to_string).collect())
    }

    fn preview(&self, desired: &Desired) -> Result<Preview, Failure> {
        Ok(self.plane.preview(desired)?)
    }

    fn sweep(&mut self) {
        self.plane.sweep();
        self.plane.set_clock();
    }

    fn audit(&mut self) -> Vec<String> {
        let mut found = self.plane.audit();
        self.audit_limits(&mut found);
        if !self.rules.audit() {
            found.push("rules".to_owned());
        }
        let local_key = self.plane.settings().local_key;
        if let Some(sources) = &mut self.sources
            && !sources.audit(local_key)
        {
            found.push("sets of sources".to_owned());
        }
        self.audit_interfaces(&mut found);
        found
    }

    fn in_tables(&self) -> BTreeSet<BackendKey> {
        self.plane.in_tables()
    }

    fn figures(&self) -> Result<Figures, Failure> {
        let drops = self.plane.drops()?.into_iter().map(|drop| DropFigure {
            vip: Some(drop.vip).filter(|vip| !vip.is_empty()),
            reason: drop.reason,
            mode: drop.mode,
            count: drop.count,
        });
        let checksums = self.plane.table_checksums();
        Ok(Figures {
            vips: self.plane.vip_stats()?,
            drops: drops.collect(),
            amplified: self.plane.amplified()?,
            challenges: self.plane.challenges()?,
            backends: self.plane.backend_stats()?,
            flow_stats: self.plane.flow_stats()?,
            flows: self.flows(),
            checksums: self
                .tables
                .iter()
                .filter_map(|(vip, table)| Some((vip.clone(), *checksums.get(table)?)))
                .collect(),
        })
    }

    fn flows(&self) -> FlowFigures {
        let mut counted = self.census.borrow_mut();
        let fresh = |counted: &Counted| counted.at.elapsed() < counted.took * CENSUS_REUSE;
        let counted = match counted.take() {
            Some(known) if fresh(&known) => counted.insert(known),
            _ => {
                let at = Instant::now();
                let census = self.plane.flows_per_backend();
                let took = at.elapsed();
                counted.insert(Counted { census, at, took })
            }
        };
        FlowFigures {
            backends: counted.census.by_backend.clone(),
            proven: counted.census.proven,
            unproven: counted.census.unproven,
            capacity: counted.census.capacity,
        }
    }

    fn measure(&mut self) -> Result<Measured, Failure> {
        let figures = self.figures()?;
        let crowding = self.plane.crowding()?;
        let run_stats = self.plane.run_stats()?;
        Ok(Measured {
            figures,
            crowding,
            xdp_ns_per_packet: self.run_time.update(run_stats),
        })
    }

    fn attachments(&self) -> Vec<Attachment> {
        let attachment = |attached: &Attached| Attachment {
            interface: attached.name.clone(),
            mode: attached.mode.word(),
        };
        self.attached.iter().map(attachment).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let unsaved = self.unsaved.iter();
        self.lost_redirects.iter().chain(unsaved).cloned().collect()
    }

    fn set_interfaces(&mut self, names: &[String]) -> Result<(), Failure> {
        self.config.interfaces = names.to_vec();
        let (attached, warnings) = self.plane.attach(&self.config)?;
        self.attached = attached;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    fn program_id(&self) -> Option<u32> {
        self.program_id
    }

    fn vip_numbers(&self) -> BTreeMap<String, u16> {
        self.plane.numbers_of_vips()
    }

    fn has_vip(&self, name: &str) -> bool {
        self.plane.vip_number(name).is_some()
    }

    fn adopt_limits(&mut self, specs: &[LimitSpec]) -> Vec<Result<u32, Failure>> {
        let failed = |error: &Failure| {
            let why = super::chain(&**error);
            specs.iter().map(|_| Err(why.clone().into())).collect()
        };
        let tables = match self.exact_tables() {
            Ok(tables) => tables,
            Err(error) => return failed(&error.into()),
        };
        let wanted: Result<Vec<_>, _> = specs.iter().map(|spec| self.exact_limit(spec)).collect();
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => return failed(&error),
        };
        let local_key = self.plane.settings().local_key;
        let (exact, adoption) = ExactLimits::adopt(tables, local_key, &wanted);
        if adoption.rebuilt {
            tracing::warn!("the tables of limits contradicted themselves, and were made anew");
        }
        self.exact = Some(exact);
        let results = adoption.indices.into_iter();
        results.map(|result| Ok(result?)).collect()
    }

    fn insert_limit(&mut self, spec: &LimitSpec) -> Result<u32, Failure> {
        let limit = self.exact_limit(spec)?;
        Ok(self.exact()?.insert(limit)?)
    }

    fn replace_limit(&mut self, number: u32, spec: &LimitSpec) -> Result<u32, Failure> {
        let limit = self.exact_limit(spec)?;
        Ok(self.exact()?.replace(number, limit)?)
    }

    fn cease_limit(&mut self, number: u32) {
        if let Some(exact) = &mut self.exact {
            exact.cease(number);
        }
    }

    fn remove_limit(&mut self, number: u32) -> Result<(), Failure> {
        self.exact()?.remove(number)?;
        Ok(())
    }

    fn limit_counters(&self, number: u32) -> Option<ExactCounters> {
        self.exact.as_ref()?.read(number)
    }

    fn set_rules(&mut self, rules: &[(u64, &RuleSpec)]) -> Result<(), Failure> {
        let rules: Vec<RuleInForce<'_>> = rules
            .iter()
            .map(|(id, spec)| RuleInForce {
                id: *id,
                spec,
                vip: spec
                    .vip
                    .as_deref()
                    .and_then(|vip| self.plane.vip_number(vip)),
            })
            .collect();
        Ok(self.rules.set(&rules)?)
    }

    fn set_sources(&mut self, sets: &[SourceSet]) -> Result<(), Failure> {
        self.names = SetNames::of(sets);
        self.save_names();
        if let Some(sources) = &mut self.sources {
            return Ok(sources.set(sets)?);
        }
        let (sources, refused) = self.plane.sources(sets)?;
        self.sources = Some(sources);
        match refused.first() {
            Some((_, error)) => Err((*error).into()),
            None => Ok(()),
        }
    }

    fn source_counts(&self) -> BTreeMap<u8, SourceCounts> {
        self.sources
            .as_ref()
            .map(SourceMaps::counts)
            .unwrap_or_default()
    }

    fn rule_counts(&self) -> BTreeMap<u64, RuleCounts> {
        self.rules.counts().unwrap_or_else(|error| {
            tracing::error!(
                error = super::chain(&error),
                "counters of rules are not shown"
            );
            BTreeMap::new()
        })
    }
}

/// What the config needs of maps whose sizes are chosen for it.
fn need(config: &Config) -> Need {
    let tables: BTreeMap<_, u32> = config
        .vips
        .iter()
        .filter_map(|vip| {
            let pool = config.pools.iter().find(|pool| pool.name == vip.pool)?;
            Some(((&pool.name, vip.forward), pool.slots))
        })
        .collect();
    Need {
        vips: u32::try_from(config.vips.len()).unwrap_or(u32::MAX),
        slots: tables
            .values()
            .fold(0, |sum, slots| sum.saturating_add(*slots)),
    }
}

const LIMIT_WORDS: usize = size_of::<sluice_ebpf::abi::Limit>() / 8;

impl Cells<u32> for Mapped<u32> {
    fn len(&self) -> usize {
        Self::len(self) as usize
    }

    fn get(&self, at: usize) -> u32 {
        self.load_u32(index(at), 0)
    }

    fn set(&mut self, at: usize, value: u32) {
        self.store_u32(index(at), 0, value);
    }
}

impl Cells<u32> for Mapped<[u32; 2]> {
    fn len(&self) -> usize {
        Self::len(self) as usize * 2
    }

    fn get(&self, at: usize) -> u32 {
        self.load_u32(index(at / 2), at % 2 * 4)
    }

    fn set(&mut self, at: usize, value: u32) {
        self.store_u32(index(at / 2), at % 2 * 4, value);
    }
}

impl<const WORDS: usize> Cells<u64> for Mapped<[u64; WORDS]> {
    fn len(&self) -> usize {
        Self::len(self) as usize * WORDS
    }

    fn get(&self, at: usize) -> u64 {
        self.load_u64(index(at / WORDS), at % WORDS * 8)
    }

    fn set(&mut self, at: usize, value: u64) {
        self.store_u64(index(at / WORDS), at % WORDS * 8, value);
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("arrays have fewer than 2^32 values")
}
