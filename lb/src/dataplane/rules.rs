//! Rules in the data plane: their numbers, their tables in two generations, and what they counted.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher,
    mem::offset_of,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, PerCpuArray, PerCpuValues},
    util::nr_cpus,
};
use sluice_ebpf::{
    abi::{
        Limiter, RULE_NUMBERS, RULES_ANY, RULES_CHALLENGE, RULES_ESTABLISHED, RULES_GENERATION,
        RuleCounts, RuleState, Settings, maps,
    },
    gcra,
    rules::RuleTables,
};

use super::{audit::hasher, error::LoadError, plane::mapped};
use crate::{
    rules::{Action, Placed, RuleSpec, TooMany, compile},
    sys::Mapped,
};

/// The maps that rules live in.
pub struct RuleMaps {
    settings: Mapped<Settings>,
    tables: Mapped<RuleTables>,
    states: Mapped<RuleState>,
    counts: PerCpuArray<MapData, [u64; 4]>,
    hz: u32,
    /// Numbers by id.
    numbers: BTreeMap<u64, u16>,
    /// Where the search for a free number goes on: one that was given back is used again as late as can be.
    next: u16,
    /// What was put there last.
    known: Option<Known>,
}

/// What packets do not change of all this.
struct Known {
    word: u32,
    /// Of the tables in use.
    sum: u64,
    /// By number.
    states: Vec<(u16, RuleState)>,
}

/// A rule that packets shall meet.
#[derive(Clone, Copy, Debug)]
pub struct RuleInForce<'a> {
    /// Never 0.
    pub id: u64,
    pub spec: &'a RuleSpec,
    /// The number of its VIP, if it is for one.
    pub vip: Option<u16>,
}

/// Why the data plane does not hold the rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("cannot use the counters of rules")]
    Counts(#[source] Box<aya::maps::MapError>),
}

/// What a burst in packets allows in bytes, for each.
const PACKET_BYTES: u64 = 1_500;

impl RuleMaps {
    /// Of a loaded program, whose clock ticks `hz` times a second. Rules that it holds keep their numbers.
    pub fn new(object: &mut Ebpf, hz: u32) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Map {
            map: maps::RULE_COUNTS,
            source,
        };
        let counts = match object.take_map(maps::RULE_COUNTS) {
            Some(Map::PerCpuArray(data)) => PerCpuArray::try_from(Map::PerCpuArray(data)),
            _ => return Err(failed("the program has no such map".into())),
        };
        let mut this = Self {
            settings: mapped(object, maps::SETTINGS)?,
            tables: mapped(object, maps::RULE_TABLES)?,
            states: mapped(object, maps::RULES)?,
            counts: counts.map_err(|error| failed(error.into()))?,
            hz,
            numbers: BTreeMap::new(),
            next: 0,
            known: None,
        };
        for number in 0..RULE_NUMBERS {
            let id = this.states.read(number.into()).id;
            if id != 0 {
                this.numbers.insert(id, number);
            }
        }
        Ok(this)
    }

    /// Makes packets meet exactly these, in this order. On an error they meet those from before.
    pub fn set(&mut self, rules: &[RuleInForce<'_>]) -> Result<(), RulesError> {
        let stay: BTreeSet<u64> = rules.iter().map(|rule| rule.id).collect();
        let mut numbers = self.numbers.clone();
        let mut placed = Vec::with_capacity(rules.len());
        let mut new = Vec::new();
        for rule in rules {
            let number = match numbers.get(&rule.id) {
                Some(number) => *number,
                None => {
                    let number = self.free_number(&numbers).ok_or(TooMany::Rules)?;
                    numbers.insert(rule.id, number);
                    new.push(number);
                    number
                }
            };
            placed.push(Placed {
                spec: rule.spec,
                number,
                vip: rule.vip,
            });
        }
        let compiled = compile(&placed)?;
        for number in new {
            self.forget(number)?;
        }
        let written = rules.iter().zip(&placed);
        let states = written
            .map(|(rule, placed)| (placed.number, self.write_state(rule, placed.number)))
            .collect();
        let generation = (self.settings.read(0).rules & RULES_GENERATION) ^ 1;
        let bytes = compiled.bytes();
        for part in compiled.parts() {
            // Parts begin and end with whole words, but for the last of the header.
            for at in (part.start / 8..part.end.div_ceil(8)).map(|word| word * 8) {
                let word = bytemuck::pod_read_unaligned(&bytes[at..at + 8]);
                self.tables.store_u64(generation, at, word);
            }
        }
        let established = rules.iter().any(|rule| rule.spec.established);
        let challenges = rules
            .iter()
            .any(|rule| rule.spec.action == Action::Challenge);
        let bits = [
            (!rules.is_empty(), RULES_ANY),
            (established, RULES_ESTABLISHED),
            (challenges, RULES_CHALLENGE),
        ];
        let bits = bits.into_iter().filter(|(given, _)| *given);
        let word = bits.fold(generation, |word, (_, bit)| word | bit);
        self.settings
            .store_u32(0, offset_of!(Settings, rules), word);
        self.known = Some(Known {
            word,
            sum: self.sum(word),
            states,
        });
        self.numbers = numbers;
        let gone: Vec<u64> = self
            .numbers
            .keys()
            .copied()
            .filter(|id| !stay.contains(id))
            .collect();
        for id in gone {
            if let Some(number) = self.numbers.remove(&id) {
                self.states
                    .store_u64(number.into(), offset_of!(RuleState, id), 0);
            }
        }
        Ok(())
    }

    /// Whether the maps hold what was put there last. If not, [`RuleMaps::set`] mends it.
    #[must_use]
    pub fn audit(&self) -> bool {
        let Some(known) = &self.known else {
            return true;
        };
        let holds = |(number, state): &(u16, RuleState)| {
            let held = self.states.read((*number).into());
            *state
                == RuleState {
                    packets_tat: 0,
                    bytes_tat: 0,
                    ..held
                }
        };
        self.settings.read(0).rules == known.word
            && known.states.iter().all(holds)
            && self.sum(known.word) == known.sum
    }

    /// Of the tables that packets are led to by this word; without rules they are led to none.
    fn sum(&self, word: u32) -> u64 {
        let mut hasher = hasher();
        if word & RULES_ANY != 0 {
            let generation = word & RULES_GENERATION;
            self.tables.hash(generation..generation + 1, &mut hasher);
        }
        hasher.finish()
    }

    /// What each rule counted, by id.
    pub fn counts(&self) -> Result<BTreeMap<u64, RuleCounts>, RulesError> {
        let numbers = self.numbers.iter();
        numbers
            .map(|(id, number)| {
                let values = self.counts.get(&u32::from(*number), 0);
                let values = values.map_err(|error| RulesError::Counts(Box::new(error)))?;
                let mut sum = [0u64; 4];
                for cpu in values.iter() {
                    sum.iter_mut().zip(cpu).for_each(|(sum, word)| *sum += word);
                }
                Ok((*id, bytemuck::cast(sum)))
            })
            .collect()
    }

    /// The rule that has a number.
    #[must_use]
    pub fn id(&self, number: u16) -> Option<u64> {
        let found = self.numbers.iter().find(|(_, other)| **other == number);
        found.map(|(id, _)| *id)
    }

    fn free_number(&mut self, taken: &BTreeMap<u64, u16>) -> Option<u16> {
        let taken: BTreeSet<u16> = taken.values().copied().collect();
        let all = RULE_NUMBERS;
        let number = (0..all)
            .map(|step| (self.next + step) % all)
            .find(|number| !taken.contains(number))?;
        self.next = (number + 1) % all;
        Some(number)
    }

    /// Begins the counters of a number anew.
    fn forget(&mut self, number: u16) -> Result<(), RulesError> {
        let failed = |error| RulesError::Counts(Box::new(error));
        let cpus = nr_cpus().map_err(|(_, error)| failed(error.into()))?;
        let zeros =
            PerCpuValues::try_from(vec![[0; 4]; cpus]).map_err(|error| failed(error.into()))?;
        self.states.write(number.into(), &RuleState::default());
        self.counts.set(number.into(), zeros, 0).map_err(failed)
    }

    /// Arrival times stay: a limit that is written again does not begin anew.
    fn write_state(&self, rule: &RuleInForce<'_>, number: u16) -> RuleState {
        let (packets, bytes) = match rule.spec.action {
            Action::Limit(limit) => {
                let burst = u64::from(limit.burst_packets());
                let packets = limit.pps.map(|pps| gcra::limiter(pps, burst, self.hz));
                let bytes = limit
                    .bps
                    .map(|bps| gcra::limiter(bps / 8, burst * PACKET_BYTES, self.hz));
                (packets.unwrap_or_default(), bytes.unwrap_or_default())
            }
            _ => <(Limiter, Limiter)>::default(),
        };
        let store = |offset: usize, value: u64| {
            self.states.store_u64(number.into(), offset, value);
        };
        store(offset_of!(RuleState, id), rule.id);
        for (at, limiter) in [
            (offset_of!(RuleState, packets), packets),
            (offset_of!(RuleState, bytes), bytes),
        ] {
            store(at + offset_of!(Limiter, allowance), limiter.allowance);
            store(at + offset_of!(Limiter, cost), limiter.cost);
        }
        RuleState {
            id: rule.id,
            packets,
            bytes,
            ..RuleState::default()
        }
    }
}
