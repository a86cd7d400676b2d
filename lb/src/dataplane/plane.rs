//! The loaded data plane: opened or adopted at start, then made to hold what is desired, step by step.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    mem::offset_of,
    path::Path,
};

use aya::{Ebpf, maps::Map, util::online_cpus};
use bytemuck::Pod;
use sluice_ebpf::{
    abi::{self, Generation, Settings, maps},
    cookie::Clock,
    decap::Prefix,
    flow::WAYS,
    gcra,
};

use super::{
    Attached, BackendKey, Desired, TableKey,
    audit::Known,
    encode,
    error::{ApplyError, LoadError},
    index::{self, Room},
    load::{self, Need, Sizes, Twin, jiffies_now},
    pins::{Pinned, Pins},
    plan::{Image, Step, plan},
    preview::Preview,
    registry::Registry,
    rules::RuleMaps,
    sketch::Sketch,
    slots::Slots,
    sources::{SourceError, SourceMaps, SourceSet},
    stats::Counters,
    steps::indexed,
    sweep::Sweep,
};
use crate::{config::Dataplane, cookie, disk::SaveError, sys::Mapped};

/// Handles to everything that is loaded. Dropping it leaves the data plane at work.
pub struct Plane {
    pub(super) object: Ebpf,
    pub(super) pins: Pins,
    /// Names of the maps that are pinned.
    pub(super) pinned_maps: Vec<&'static str>,
    pub(super) hz: u32,
    pub(super) settings: Mapped<Settings>,
    pub(super) arrays: Arrays,
    pub(super) flows: Mapped<[u64; WAYS]>,
    /// Ticks of silence after which a flow expires.
    pub(super) flow_idle: u16,
    pub(super) counters: Counters,
    pub(super) sketch: Sketch,
    pub(super) registry: Registry,
    unsaved: Option<SaveError>,
    pub(super) slots: Slots,
    pub(super) room: Room,
    pub(super) actual: Image,
    /// The table of each VIP, as far as it is known.
    pub(super) vip_tables: BTreeMap<String, TableKey>,
    pub(super) checksums: BTreeMap<TableKey, u64>,
    pub(super) sweep: Sweep,
    pub(super) known: Known,
    /// When it was opened, in jiffies.
    pub(super) opened: u64,
    /// No packet met it before: there are no flows.
    pub(super) is_new: bool,
}

/// Arrays that only the daemon writes.
#[derive(Debug)]
pub(super) struct Arrays {
    pub(super) displacements: Mapped<u32>,
    pub(super) addresses: Mapped<abi::AddressEntry>,
    pub(super) services: Mapped<abi::Service>,
    pub(super) vips: Mapped<abi::Vip>,
    pub(super) policies: Mapped<abi::Policy>,
    pub(super) challenges: Mapped<abi::Challenge>,
    pub(super) backends: Mapped<abi::Backend>,
    pub(super) protected: Mapped<Prefix>,
}

/// How the data plane was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// It was at work already, and still has its flows.
    pub adopted: bool,
    pub interfaces: Vec<Attached>,
    /// For the operator, a sentence each.
    pub warnings: Vec<String>,
}

impl Plane {
    /// Loads the data plane, or takes over the one that is pinned, and attaches it to the config's interfaces.
    ///
    /// `secret` keys the choice of backends; without one, each machine makes up its own. On an error everything is as
    /// it was.
    pub fn open(
        config: &Dataplane,
        need: Need,
        secret: Option<[u8; 32]>,
    ) -> Result<(Self, Opened), LoadError> {
        let hz = load::hz()?;
        let mut sizes = Sizes::new(config, need);
        let pins = Pins::open(&config.pin_dir)?;
        let pinned = pins.read(sizes.shapes().iter().map(|&(name, _)| name))?;
        let adopted = !pinned.shapes.is_empty() || !pinned.links.is_empty();
        // A start that was cut short leaves maps, but no links: nothing is lost with them.
        let adopted = adopted && !(pinned.links.is_empty() && is_partial(&sizes, &pinned));
        if adopted {
            sizes.keep(config, need, &pinned.shapes);
            check(&sizes, &pins, &pinned)?;
        } else {
            pins.clear()?;
        }
        let opened = Self::take(config, &sizes, pins.clone(), hz, adopted).and_then(|mut plane| {
            // What can fail goes before what changes something: a new data plane has no VIPs yet, and one that was
            // adopted goes on as it was told.
            let (interfaces, mut warnings) = plane.attach(config)?;
            plane.set_up(config, secret, adopted, &mut warnings)?;
            let opened = Opened {
                adopted,
                interfaces,
                warnings,
            };
            Ok((plane, opened))
        });
        if opened.is_err() && !adopted {
            pins.clear()?;
        }
        opened
    }

    /// Where rules are put. To be called once.
    pub fn rules(&mut self) -> Result<RuleMaps, LoadError> {
        RuleMaps::new(&mut self.object, self.hz)
    }

    /// Takes over the sets of sources, and makes packets meet these; the second value tells for which of them there is no
    /// room. To be called once.
    pub fn sources(
        &mut self,
        sets: &[SourceSet],
    ) -> Result<(SourceMaps, Vec<(u8, SourceError)>), LoadError> {
        SourceMaps::adopt(&mut self.object, sets)
    }

    /// Attaches to exactly the config's interfaces. The ones that stay lose no packet. The second value warns.
    pub fn attach(
        &mut self,
        config: &Dataplane,
    ) -> Result<(Vec<Attached>, Vec<String>), LoadError> {
        let program = load::program(&mut self.object)?;
        self.pins.attach(program, &config.interfaces, config.mode)
    }

    /// Makes the data plane hold `desired`, and returns the steps that this took.
    ///
    /// Starts from what it holds, so it can be called again at any time, also after an error.
    pub fn apply(&mut self, desired: &Desired) -> Result<Vec<Step>, ApplyError> {
        self.apply_at(desired, self.jiffies_now())
    }

    /// As [`Plane::apply`], at a time of the caller's choice: what was replaced is freed some seconds later.
    pub fn apply_at(&mut self, desired: &Desired, now: u64) -> Result<Vec<Step>, ApplyError> {
        self.free(now);
        let wanted = Image::of(desired, self.hz)?;
        let steps = plan(&self.actual, &wanted);
        let lacking = self.registry.lacking(&wanted, self.arrays.vips.len())?;
        self.number(&lacking)
            .and_then(|()| self.put_tables(&steps, &wanted, now))
            .inspect_err(|_| self.registry.give_back(&lacking))?;
        for step in &steps {
            self.take_step(step, &wanted, now)?;
        }
        let unused = self
            .registry
            .tables
            .keys()
            .filter(|key| !wanted.tables.contains_key(key));
        for key in unused.cloned().collect::<Vec<_>>() {
            self.remove_table(&key, now);
        }
        self.unsaved = self.registry.save().err();
        self.is_new = false;
        Ok(steps)
    }

    /// Why the disk does not tell all numbers as they are. Each [`Plane::apply`] tries again.
    pub fn unsaved(&self) -> Option<&SaveError> {
        self.unsaved.as_ref()
    }

    /// What applying `desired` would take and move, or why it would be refused. Changes nothing.
    pub fn preview(&self, desired: &Desired) -> Result<Preview, ApplyError> {
        let preview = Preview::new(self.actual.clone(), desired, self.hz)?;
        self.registry
            .lacking(preview.wanted(), self.arrays.vips.len())?;
        index::build(&indexed(preview.wanted(), |_| 1), self.room)?;
        let steps = preview.steps();
        let tables = steps.iter().filter_map(|step| match step {
            Step::PutTable(key) => Some(preview.wanted().tables[key].slots),
            _ => None,
        });
        if !self.slots.would_fit(self.in_use(), tables) {
            let slots = self.slots.len();
            return Err(ApplyError::Slots { slots });
        }
        Ok(preview)
    }

    /// The kernel's `jiffies` as they are now, give or take one.
    #[must_use]
    pub fn jiffies_now(&self) -> u64 {
        jiffies_now(self.hz)
    }

    /// Ticks of the kernel's clock in a second.
    #[must_use]
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// What can change at run time.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings.read(0)
    }

    /// Tells packets which exact limits exist: `EXACT_*` bits of [`abi`], and the IPv6 prefix lengths by their bit.
    pub fn set_exact(&self, bits: u32, v6_lengths: [u8; abi::MAX_EXACT_LENGTHS]) {
        let [low, high]: [u64; 2] = bytemuck::cast(v6_lengths);
        let lengths = offset_of!(Settings, exact_v6_lengths);
        self.settings.store_u64(0, lengths, low);
        self.settings.store_u64(0, lengths + 8, high);
        self.settings
            .store_u32(0, offset_of!(Settings, exact), bits);
    }

    /// An array of the data plane, by its name, in our memory. For arrays that can be mapped.
    pub fn map<T: Pod>(&self, name: &'static str) -> Result<Mapped<T>, LoadError> {
        mapped(&self.object, name)
    }

    /// Checksums of the lookup tables: equal on two machines if they choose alike.
    #[must_use]
    pub fn table_checksums(&self) -> &BTreeMap<TableKey, u64> {
        &self.checksums
    }

    /// Slots in use by lookup tables, and all there are.
    #[must_use]
    pub fn slots_used(&self) -> (u64, u32) {
        let used = self
            .registry
            .tables
            .values()
            .map(|region| u64::from(region.slots))
            .sum();
        (used, self.slots.len())
    }

    /// Backends that some lookup table leads to.
    #[must_use]
    pub fn in_tables(&self) -> BTreeSet<BackendKey> {
        let regions = self.registry.tables.values();
        let numbers: BTreeSet<u16> = regions
            .flat_map(|region| self.slots.backends(*region))
            .collect();
        let backends = self.registry.backends.iter();
        backends
            .filter(|(_, number)| numbers.contains(number))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Numbers of VIPs in the data plane.
    #[must_use]
    pub fn numbers_of_vips(&self) -> BTreeMap<String, u16> {
        let numbers = self.registry.vips.iter();
        numbers
            .map(|(name, number)| (name.clone(), *number))
            .collect()
    }

    /// The number of a VIP, if it has one.
    #[must_use]
    pub fn vip_number(&self, name: &str) -> Option<u16> {
        self.registry.vips.get(name).copied()
    }

    fn take(
        config: &Dataplane,
        sizes: &Sizes,
        pins: Pins,
        hz: u32,
        adopted: bool,
    ) -> Result<Self, LoadError> {
        let mut object = load::load(sizes, &pins.directory, Twin::Forwarding)?;
        let ids = map_ids(&object)?;
        let now = jiffies_now(hz);
        let found = adopted
            .then(|| Registry::read(&config.state_dir, &ids, now))
            .flatten();
        let is_new = found.is_none();
        let registry = found.unwrap_or_else(|| Registry::new(&config.state_dir, ids));
        let arrays = Arrays {
            displacements: mapped(&object, maps::DISPLACEMENTS)?,
            addresses: mapped(&object, maps::ADDRESSES)?,
            services: mapped(&object, maps::SERVICES)?,
            vips: mapped(&object, maps::VIPS)?,
            policies: mapped(&object, maps::POLICIES)?,
            challenges: mapped(&object, maps::CHALLENGES)?,
            backends: mapped(&object, maps::BACKENDS)?,
            protected: mapped(&object, maps::PROTECTED)?,
        };
        let settings: Mapped<Settings> = mapped(&object, maps::SETTINGS)?;
        Ok(Self {
            known: Known::new(settings.read(0)),
            settings,
            flows: mapped(&object, maps::FLOWS)?,
            slots: Slots::new(mapped(&object, maps::SLOTS)?),
            flow_idle: sizes.flow_idle_ticks(hz),
            counters: Counters::new(&mut object)?,
            sketch: Sketch::new(&object)?,
            object,
            pins,
            pinned_maps: sizes.shapes().iter().map(|&(name, _)| name).collect(),
            hz,
            arrays,
            registry,
            unsaved: None,
            room: Room {
                entries: sizes.index_entries(),
                displacements: sizes.displacements(),
            },
            actual: Image::default(),
            vip_tables: BTreeMap::new(),
            checksums: BTreeMap::new(),
            sweep: Sweep::default(),
            opened: now,
            is_new,
        })
    }

    /// Writes what comes from the config, and reads what the maps hold.
    fn set_up(
        &mut self,
        config: &Dataplane,
        secret: Option<[u8; 32]>,
        adopted: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), LoadError> {
        if adopted && self.is_new {
            warnings.push(format!(
                "{} does not tell the numbers of what is loaded: the flow table is cleared, and flows may move to other backends",
                config.state_dir.display()
            ));
            self.forget();
        }
        self.put_settings(config, secret, adopted, warnings)?;
        self.known = Known::new(self.settings());
        self.actual = self.held();
        self.vip_tables = self.held_vip_tables();
        Ok(())
    }

    /// Writes the settings that come from the config.
    fn put_settings(
        &self,
        config: &Dataplane,
        secret: Option<[u8; 32]>,
        adopted: bool,
        warnings: &mut Vec<String>,
    ) -> Result<(), LoadError> {
        let mut settings = self.settings.read(0);
        let old_key = settings.flow_key;
        if !adopted {
            settings.local_key = random_key()?;
            let [a, b, ..] = random_key()?;
            settings.challenge_key = [a, b];
        }
        match secret {
            Some(secret) => {
                settings.flow_key = key(secret);
                settings.cookie_key = cookie::key(&secret);
            }
            None if !adopted => settings.flow_key = random_key()?,
            None => {}
        }
        if adopted && settings.flow_key != old_key {
            warnings.push("the secret changed: flows may move to other backends".to_owned());
        }
        (settings.tunnel_source_v4, settings.tunnel_spread_v4) =
            encode::tunnel_v4(config.tunnel_source_v4);
        (settings.tunnel_source_v6, settings.tunnel_spread_v6) =
            encode::tunnel_v6(config.tunnel_source_v6);
        let cpus = online_cpus().map_err(|(_, error)| LoadError::Cpus(error))?;
        settings.cpus = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
        settings.challenge_answers =
            gcra::limiter(ANSWERS_PER_SECOND, ANSWERS_PER_SECOND / 10, self.hz);
        settings.clock = cookie::clock(self.hz);
        self.settings.write(0, &settings);
        Ok(())
    }

    /// Follows the time of day, which somebody may set. To be called every few seconds.
    pub fn set_clock(&mut self) {
        let clock = cookie::clock(self.hz);
        let offset = offset_of!(Settings, clock) + offset_of!(Clock, offset);
        self.settings.store_u64(0, offset, clock.offset);
        self.known.settings.clock = clock;
    }

    /// Makes an adopted data plane whose numbers mean nothing to us an empty one.
    fn forget(&self) {
        let mut settings = self.settings.read(0);
        settings.generations = [Generation::default(); 2];
        self.settings.write(0, &settings);
        clear(&self.arrays.vips);
        clear(&self.arrays.backends);
        clear(&self.flows);
    }

    /// What the maps hold, as far as the numbers tell.
    fn held(&self) -> Image {
        let read = |(name, &number): (&String, &u16)| {
            (name.clone(), self.arrays.policies.read(u32::from(number)))
        };
        Image {
            policies: self.registry.policies.iter().map(read).collect(),
            backends: self
                .registry
                .backends
                .iter()
                .map(|(key, &number)| (key.clone(), self.arrays.backends.read(u32::from(number))))
                .collect(),
            tables: BTreeMap::new(),
            vips: self
                .registry
                .vips
                .keys()
                .map(|name| (name.clone(), None))
                .collect(),
            protected: None,
        }
    }

    /// Which table each VIP uses, as the maps tell.
    fn held_vip_tables(&self) -> BTreeMap<String, TableKey> {
        let tables = &self.registry.tables;
        let table = |number: u16| {
            let word = self.arrays.vips.read(u32::from(number)).table;
            tables.iter().find(|(_, region)| region.word() == word)
        };
        self.registry
            .vips
            .iter()
            .filter_map(|(name, &number)| Some((name.clone(), table(number)?.0.clone())))
            .collect()
    }
}

/// An array of a loaded object in our memory.
pub(super) fn mapped<T: Pod>(object: &Ebpf, name: &'static str) -> Result<Mapped<T>, LoadError> {
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| LoadError::Map { map: name, source };
    let Some(Map::Array(map)) = object.map(name) else {
        return Err(failed("the program has no such array".into()));
    };
    let info = map.info().map_err(|error| failed(error.into()))?;
    if info.value_size() as usize != size_of::<T>() {
        return Err(failed("its values have another size".into()));
    }
    Mapped::new(map.fd(), info.max_entries()).map_err(|error| failed(error.into()))
}

/// The kernel's ids of the maps that numbers are about.
fn map_ids(object: &Ebpf) -> Result<Vec<u32>, LoadError> {
    [
        maps::VIPS,
        maps::POLICIES,
        maps::BACKENDS,
        maps::SLOTS,
        maps::FLOWS,
    ]
    .into_iter()
    .map(|name| {
        let Some(Map::Array(map)) = object.map(name) else {
            return Err(LoadError::Map {
                map: name,
                source: "the program has no such array".into(),
            });
        };
        let info = map.info().map_err(|error| LoadError::Map {
            map: name,
            source: error.into(),
        })?;
        Ok(info.id())
    })
    .collect()
}

fn is_partial(sizes: &Sizes, pinned: &Pinned) -> bool {
    sizes
        .shapes()
        .iter()
        .any(|(name, _)| !pinned.shapes.contains_key(name))
}

/// Whether what is pinned is what we would make.
pub(super) fn check(sizes: &Sizes, pins: &Pins, pinned: &Pinned) -> Result<(), LoadError> {
    for (map, expected) in sizes.shapes() {
        match pinned.shapes.get(map) {
            None => {
                return Err(LoadError::MapMissing {
                    map,
                    path: pins.directory.clone(),
                });
            }
            Some(&actual) if actual != expected => {
                return Err(LoadError::Shape {
                    map,
                    actual,
                    expected,
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn clear<T: Pod>(array: &Mapped<T>) {
    for index in 0..array.len() {
        array.write(index, &T::zeroed());
    }
}

/// Resets that are looked at as answers to challenges. Each is a guess, of which 3 in 65,536 are right: so many a second forge the
/// proof of one source a second, and one proof is good for some hundred SYNs.
const ANSWERS_PER_SECOND: u64 = 20_000;

fn random_key() -> Result<[u64; 4], LoadError> {
    let mut bytes = [0; 32];
    File::open(Path::new("/dev/urandom"))
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(LoadError::Random)?;
    Ok(key(bytes))
}

fn key(bytes: [u8; 32]) -> [u64; 4] {
    let words: [[u8; 8]; 4] = bytemuck::cast(bytes);
    words.map(u64::from_le_bytes)
}
