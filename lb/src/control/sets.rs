//! Sources that are denied or allowed, of the config and set at run time, in memory and in the data plane. What is changed
//! here is on the disk already.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use sluice_ebpf::abi::{NO_VIP, SET_BOGONS};

use super::{
    Control, Dataplane, Event, Novelty, Page, Refused, chain,
    events::Events,
    held::{Held, Kept},
};
use crate::{
    book::SpecError,
    config::{Config, Mode, Stage},
    dataplane::{Purpose, SourceCounts, SourceSet},
    sources::{
        BOGONS, FIRST_CONFIG_ID, Kind, Members, SourceBook, SourceChange, SourceRecord,
        SourceRefusal, SourceSpec, SourceStep, bogons, fixed_set, last_free_set,
    },
    store::Change,
};

/// An entry, and what packets from its sources were counted; nothing of a single prefix, which shares its set.
#[derive(Clone, Debug)]
pub struct SourceInForce {
    pub record: Arc<SourceRecord>,
    pub counts: Option<SourceCounts>,
}

/// Which entries somebody asks for: a page by id, of those that match all of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceQuery {
    pub kind: Kind,
    /// Only higher ids.
    pub after: u64,
    /// No more than so many.
    pub most: usize,
    /// The one with this name, prefix or id.
    pub key: Option<String>,
    /// Those that hold this address.
    pub covers: Option<IpAddr>,
}

/// What the packets of a set's sources were counted, by the set's kind and name.
pub type SetFigures = Vec<(Kind, String, SourceCounts)>;

/// All entries that hold.
pub(super) struct Sets {
    pub(super) held: Held<SourceRecord>,
    /// Those of the config.
    config: Vec<Arc<SourceRecord>>,
    /// Whether a policy asks for the addresses that nobody has.
    wants_bogons: bool,
}

/// The label of what single prefixes counted.
const SINGLES: &str = "prefixes";

impl Sets {
    pub(super) fn new(book: SourceBook, config: &Config, events: Events) -> Self {
        let mut this = Self {
            held: Held::new(book, events),
            config: Vec::new(),
            wants_bogons: false,
        };
        this.take(config);
        this
    }

    /// Numbers that sets of the config have, as bits.
    pub(super) fn taken(&self) -> u64 {
        self.config
            .iter()
            .fold(0, |bits, record| bits | 1 << record.set)
    }

    /// Whether there is room for the sets of a config beside those set at run time.
    pub(super) fn fit_with(&self, config: &Config) -> Result<(), Refused> {
        let own = |spec: &&SourceSpec| fixed_set(spec).is_none();
        let wanted = config
            .sources
            .iter()
            .map(|list| &list.spec)
            .filter(own)
            .count();
        let taken = usize::try_from(self.held.book().taken().count_ones()).unwrap_or(usize::MAX);
        if wanted + taken > crate::sources::MOST_SETS {
            return Err(SourceRefusal::Sets.into());
        }
        Ok(())
    }

    /// Takes the sets of another config, and makes packets meet them.
    pub(super) fn follow(
        &mut self,
        config: &Config,
        plane: &mut impl Dataplane,
    ) -> Result<(), Refused> {
        self.take(config);
        self.apply(plane, |_| true);
        self.held
            .error()
            .map_or(Ok(()), |error| Err(Refused::Conflict(error)))
    }

    fn take(&mut self, config: &Config) {
        let (old, mut taken) = (std::mem::take(&mut self.config), self.held.book().taken());
        let held = |spec: &SourceSpec| {
            let same = |record: &&Arc<SourceRecord>| {
                (record.spec.kind, &record.spec.name) == (spec.kind, &spec.name)
            };
            old.iter().find(same).map(|record| record.set)
        };
        let specs = || config.sources.iter().map(|list| &list.spec);
        taken |= specs()
            .filter_map(held)
            .fold(0, |bits, set| bits | 1 << set);
        for spec in specs() {
            // From above, while those set at run time are taken from below.
            let set = fixed_set(spec)
                .or_else(|| held(spec))
                .or_else(|| last_free_set(taken));
            let Some(set) = set else {
                continue;
            };
            taken |= 1 << set;
            self.config.push(Arc::new(SourceRecord {
                id: config_id(spec),
                revision: 1,
                set,
                spec: spec.clone(),
                created_ms: 0,
                expires_ms: None,
            }));
        }
        let policies = config.policies.iter();
        self.wants_bogons = policies
            .map(|policy| policy.bogons)
            .any(|stage| stage != Stage::Off);
    }

    /// Holds what is on the disk now, and makes packets meet it; or everything stays as it was, and the disk follows.
    pub(super) fn hold(
        &mut self,
        book: SourceBook,
        plane: &mut impl Dataplane,
    ) -> Result<(), String> {
        let before = self.held.turn_to(book);
        let put = self.put(plane, |_| true);
        self.held.settle(put, before)
    }

    /// Whether any of them is for one VIP.
    pub(super) fn are_of_vips(&self) -> bool {
        self.all().any(|record| record.spec.vip.is_some())
    }

    /// Makes packets meet what there is; of sets for one VIP those whose VIP stays there.
    pub(super) fn apply(&mut self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) {
        let put = self.put(plane, stays);
        self.held.note(put);
    }

    fn put(&self, plane: &mut impl Dataplane, stays: impl Fn(&str) -> bool) -> Result<(), String> {
        plane
            .set_sources(&self.wanted(plane, stays))
            .map_err(|error| chain(&*error))
    }

    fn all(&self) -> impl Iterator<Item = &Arc<SourceRecord>> {
        self.held.book().iter().chain(&self.config)
    }

    /// The sets as packets are to meet them.
    fn wanted(&self, plane: &impl Dataplane, stays: impl Fn(&str) -> bool) -> Vec<SourceSet> {
        let numbers = plane.vip_numbers();
        let vip_number = |name: &String| {
            let there = numbers.get(name).filter(|_| stays(name));
            there.copied().unwrap_or(NO_VIP)
        };
        let mut singles: BTreeMap<u8, (&SourceSpec, Vec<_>)> = BTreeMap::new();
        let mut sets = Vec::new();
        for record in self.all() {
            let spec = &record.spec;
            match spec.prefix {
                Some(prefix) => {
                    let entry = singles.entry(record.set);
                    entry.or_insert_with(|| (spec, Vec::new())).1.push(prefix);
                }
                None => sets.push(SourceSet {
                    number: record.set,
                    name: set_name(spec),
                    purpose: purpose(spec),
                    vip: spec.vip.as_ref().map(vip_number),
                    members: spec.members.clone(),
                }),
            }
        }
        sets.extend(
            singles
                .into_iter()
                .map(|(number, (spec, prefixes))| SourceSet {
                    number,
                    name: set_name(spec),
                    purpose: purpose(spec),
                    vip: spec.vip.as_ref().map(vip_number),
                    members: Arc::new(Members::of(prefixes)),
                }),
        );
        if self.wants_bogons && !sets.iter().any(|set| set.number == SET_BOGONS) {
            sets.push(SourceSet {
                number: SET_BOGONS,
                name: format!("deny {BOGONS}"),
                purpose: Purpose::Bogons,
                vip: None,
                members: Arc::new(bogons()),
            });
        }
        sets
    }

    pub(super) fn page(&self, query: &SourceQuery, plane: &impl Dataplane) -> Page<SourceInForce> {
        let counts = plane.source_counts();
        let mut all: Vec<&Arc<SourceRecord>> = self.all().collect();
        all.sort_by_key(|record| record.id);
        let found = all
            .into_iter()
            .filter(|record| record.id > query.after && query.matches(record))
            .map(|record| (record.id, in_force(record, &counts)));
        Page::of(found, query.most)
    }

    /// The entry with this id, name or prefix.
    pub(super) fn get(
        &self,
        kind: Kind,
        key: &str,
        plane: &impl Dataplane,
    ) -> Result<SourceInForce, Refused> {
        let found = self
            .all()
            .find(|record| record.spec.kind == kind && is_named(record, key));
        match found {
            Some(record) => Ok(in_force(record, &plane.source_counts())),
            None => Err(SourceRefusal::Unknown(key.to_owned()).into()),
        }
    }

    /// What each set counted.
    pub(super) fn figures(&self, plane: &impl Dataplane) -> SetFigures {
        let mut counts = plane.source_counts();
        let mut figures: BTreeMap<(Kind, String), SourceCounts> = BTreeMap::new();
        for record in self.all() {
            let name = record.spec.name.as_deref().unwrap_or(SINGLES);
            let sum = figures
                .entry((record.spec.kind, name.to_owned()))
                .or_default();
            if let Some(more) = counts.remove(&record.set) {
                sum.passed.packets += more.passed.packets;
                sum.passed.bytes += more.passed.bytes;
                sum.dropped.packets += more.dropped.packets;
                sum.dropped.bytes += more.dropped.bytes;
            }
        }
        if let Some(counts) = counts.remove(&SET_BOGONS) {
            figures.insert((Kind::Deny, BOGONS.to_owned()), counts);
        }
        let figures = figures.into_iter();
        figures
            .map(|((kind, name), counts)| (kind, name, counts))
            .collect()
    }

    /// Takes out what does not hold any more. The disk follows.
    pub(super) fn expire(&mut self, plane: &mut impl Dataplane) {
        if self.held.expire() {
            self.apply(plane, |_| true);
        }
    }

    /// Whether an entry may be there beside what the config has.
    fn check(&self, spec: &SourceSpec) -> Result<(), SourceRefusal> {
        let same = |record: &Arc<SourceRecord>| {
            spec.name.is_some() && (record.spec.kind, &record.spec.name) == (spec.kind, &spec.name)
        };
        if self.config.iter().any(same) {
            return Err(SourceRefusal::OfConfig);
        }
        Ok(())
    }
}

impl Kept for SourceRecord {
    const UNMET: &str = "packets do not meet all sets of sources";

    fn set(record: &Arc<Self>) -> Change {
        Change::SetSource(record.clone())
    }

    fn remove(id: u64) -> Change {
        Change::RemoveSource(id)
    }

    fn expired(id: u64) -> Event {
        Event::SourceExpired(id)
    }

    fn many_expired(ids: Arc<[u64]>) -> Event {
        Event::SourcesExpired(ids)
    }
}

impl SourceQuery {
    fn matches(&self, record: &SourceRecord) -> bool {
        record.spec.kind == self.kind
            && self.key.as_ref().is_none_or(|key| is_named(record, key))
            && self
                .covers
                .is_none_or(|address| record.spec.members.contains(address))
    }
}

impl<P: Dataplane> Control<P> {
    /// Whether a change may be asked for now.
    pub(super) fn check_source(&self, change: &SourceChange) -> Result<(), SourceRefusal> {
        let spec = match change {
            SourceChange::Set(spec, _) | SourceChange::Replace(_, spec, _) => spec,
            SourceChange::Remove(..) => return Ok(()),
        };
        self.check_vip(spec.vip.as_deref())
            .map_err(|message| SpecError::of("vip", message))?;
        self.sets.check(spec)
    }

    /// What became of an entry, for who asked for it.
    pub(super) fn source_changed(&self, step: &SourceStep) -> Option<(SourceInForce, Novelty)> {
        let counts = self.plane.source_counts();
        match step {
            SourceStep::New(record) => Some((in_force(record, &counts), Novelty::New)),
            SourceStep::Changed(record) | SourceStep::Same(record) => {
                Some((in_force(record, &counts), Novelty::Replaced))
            }
            SourceStep::Removed(_) => None,
        }
    }

    pub(super) fn tell_source(&self, step: &SourceStep) {
        match step {
            SourceStep::New(record) | SourceStep::Changed(record) => {
                self.events.tell(Event::SourceSet(record.clone()));
            }
            SourceStep::Same(_) => {}
            SourceStep::Removed(record) => self.events.tell(Event::SourceRemoved(record.id)),
        }
    }
}

fn purpose(spec: &SourceSpec) -> Purpose {
    if spec.is_bogons() {
        return Purpose::Bogons;
    }
    match (spec.kind, spec.mode) {
        (Kind::Allow, _) => Purpose::Allow,
        (Kind::Deny, Mode::Enforce) => Purpose::Deny,
        (Kind::Deny, Mode::Monitor) => Purpose::Monitor,
    }
}

/// As `sluice explain` tells it.
fn set_name(spec: &SourceSpec) -> String {
    let name = spec.name.as_deref().unwrap_or(SINGLES);
    let vip = spec.vip.as_ref().map(|vip| format!(" for {vip}"));
    format!("{} {name}{}", spec.kind.word(), vip.unwrap_or_default())
}

fn is_named(record: &SourceRecord, key: &str) -> bool {
    record.spec.name.as_deref() == Some(key)
        || key.parse() == Ok(record.id)
        || record.spec.prefix.is_some_and(|prefix| {
            key.parse() == Ok(prefix) || key.parse::<IpAddr>().ok().map(Into::into) == Some(prefix)
        })
}

/// It comes from the name, so that it is the same after a reload.
fn config_id(spec: &SourceSpec) -> u64 {
    let name = format!(
        "{} {}",
        spec.kind.word(),
        spec.name.as_deref().unwrap_or_default()
    );
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    FIRST_CONFIG_ID + hash % FIRST_CONFIG_ID
}

fn in_force(record: &Arc<SourceRecord>, counts: &BTreeMap<u8, SourceCounts>) -> SourceInForce {
    let counts = record
        .spec
        .name
        .is_some()
        .then(|| counts.get(&record.set).copied().unwrap_or_default());
    SourceInForce {
        record: record.clone(),
        counts,
    }
}

impl From<SourceRefusal> for Refused {
    fn from(refusal: SourceRefusal) -> Self {
        match refusal {
            SourceRefusal::Unknown(_) => Self::NotFound(refusal.to_string()),
            SourceRefusal::Conflict { .. }
            | SourceRefusal::OfConfig
            | SourceRefusal::Sets
            | SourceRefusal::Singles => Self::Conflict(refusal.to_string()),
            SourceRefusal::Unmet(unmet) => unmet.into(),
            SourceRefusal::Invalid(invalid) => invalid.into(),
        }
    }
}
