//! Whether the maps still hold what was put there: whoever may write maps can do so behind the daemon's back.

use std::{
    collections::BTreeMap,
    fs,
    hash::Hasher,
    io,
    ops::Bound::{Excluded, Unbounded},
};

use ahash::{AHasher, RandomState};
use sluice_ebpf::abi::{self, Challenge, GENERATIONS, SLOT_MOVED, Settings, VIP_MOVED};

use super::{
    Attached, Plane, TableKey, encode::Stages, plan::VipImage, registry::Region, sampler::lease,
    slots::Slots, steps::protected_rows,
};

/// What is remembered of the maps where the image of them does not tell.
#[derive(Debug)]
pub(super) struct Known {
    /// As they were written last, but for what others write.
    pub settings: Settings,
    index: Option<Index>,
    /// Sums of the lookup tables.
    tables: BTreeMap<TableKey, u64>,
    /// The last table that was looked at.
    last: Option<TableKey>,
}

/// The generation of the VIP index that packets use, and the sum of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Index {
    active: u32,
    sum: u64,
}

const SETTINGS_WORDS: usize = size_of::<Settings>() / 8;
/// Slots that one call looks at: some milliseconds.
const SLOTS_AT_ONCE: u64 = 1 << 20;

impl Known {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            index: None,
            tables: BTreeMap::new(),
            last: None,
        }
    }

    pub(super) fn note_table(&mut self, key: &TableKey, slots: &[u16]) {
        self.tables.insert(key.clone(), sum(slots.iter().copied()));
    }

    pub(super) fn forget_table(&mut self, key: &TableKey) {
        self.tables.remove(key);
    }
}

impl Plane {
    /// Compares the maps with what was put there, and tells what differs, in words. To be called every few seconds; large
    /// tables are looked at in turn.
    ///
    /// Settings and pins are put right at once; the rest by the next [`Plane::apply`].
    pub fn audit(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        self.audit_settings(&mut found);
        self.audit_rows(&mut found);
        self.audit_vips(&mut found);
        self.audit_index(&mut found);
        self.audit_protected(&mut found);
        self.audit_tables(&mut found);
        self.audit_pins(&mut found);
        found
    }

    /// Whether the program still runs there.
    #[must_use]
    pub fn is_attached(&self, attached: &Attached) -> bool {
        self.pins.is_attached(attached)
    }

    /// Remembers the index that packets were led to just now.
    pub(super) fn note_index(&mut self) {
        let active = self.settings.read(0).active % GENERATIONS;
        self.known.index = Some(self.index(active));
    }

    fn audit_settings(&self, found: &mut Vec<String>) {
        let held = self.settings.read(0);
        let wanted = Settings {
            // These are looked at together with what they lead to.
            active: held.active,
            generations: held.generations,
            vip_networks: held.vip_networks,
            exact: held.exact,
            exact_v6_lengths: held.exact_v6_lengths,
            rules: held.rules,
            sources: held.sources,
            sets_allow: held.sets_allow,
            sets_deny: held.sets_deny,
            sets_monitor: held.sets_monitor,
            // Detection writes it all the time.
            watching: held.watching,
            // Of a capture, which is another process.
            sampling_until: lease(held.sampling_until, self.jiffies_now(), self.hz()),
            ..self.known.settings
        };
        let [held, wanted]: [[u64; SETTINGS_WORDS]; 2] = bytemuck::cast([held, wanted]);
        let mut differs = false;
        for (at, (held, wanted)) in held.into_iter().zip(wanted).enumerate() {
            if held != wanted {
                self.settings.store_u64(0, at * 8, wanted);
                differs = true;
            }
        }
        if differs {
            found.push("settings".to_owned());
        }
    }

    fn audit_rows(&mut self, found: &mut Vec<String>) {
        for (name, policy) in &mut self.actual.policies {
            let Some(&number) = self.registry.policies.get(name) else {
                continue;
            };
            let held = self.arrays.policies.read(u32::from(number));
            if held != *policy {
                *policy = held;
                found.push(format!("policy {name}"));
            }
        }
        for (key, backend) in &mut self.actual.backends {
            let Some(&number) = self.registry.backends.get(key) else {
                continue;
            };
            let held = self.arrays.backends.read(u32::from(number));
            if held != *backend {
                *backend = held;
                found.push(format!("backend {} of pool {}", key.address, key.pool));
            }
        }
    }

    fn audit_vips(&mut self, found: &mut Vec<String>) {
        let names: Vec<String> = self.actual.vips.keys().cloned().collect();
        for name in names {
            let image = self.actual.vips.get(&name).cloned().flatten();
            if image.is_some_and(|image| !self.vip_is(&name, &image)) {
                self.actual.vips.insert(name.clone(), None);
                found.push(format!("VIP {name}"));
            }
        }
    }

    fn vip_is(&self, name: &str, image: &VipImage) -> bool {
        let Some(&number) = self.registry.vips.get(name) else {
            return false;
        };
        let held = self.arrays.vips.read(u32::from(number));
        let policy = image.policy.as_ref().map_or(Some(0), |policy| {
            self.registry.policies.get(policy).copied()
        });
        let table = self.registry.tables.get(&image.table);
        Some(held.policy) == policy
            && held.mtu_bytes == image.mtu_bytes
            && held.flags & !VIP_MOVED == image.flags
            && Stages::held(&held) == image.stages
            && held.answer == image.answer
            && constants(self.arrays.challenges.read(u32::from(number))) == image.challenge
            && Some(held.table) == table.map(|region| region.word())
    }

    fn audit_index(&mut self, found: &mut Vec<String>) {
        let Some(known) = self.known.index else {
            return;
        };
        if self.settings.read(0).active != known.active || self.index(known.active) != known {
            self.known.index = None;
            for vip in self.actual.vips.values_mut() {
                *vip = None;
            }
            found.push("the VIP index".to_owned());
        }
    }

    fn audit_protected(&mut self, found: &mut Vec<String>) {
        let Some(known) = &self.actual.protected else {
            return;
        };
        let array = &self.arrays.protected;
        let rows = (0..abi::MAX_PROTECTED).zip(protected_rows(known));
        if rows.into_iter().any(|(at, row)| array.read(at) != row) {
            self.actual.protected = None;
            found.push("the protected sources".to_owned());
        }
    }

    fn index(&self, active: u32) -> Index {
        let (entries, displacements) = (self.room.entries, self.room.displacements);
        let range = |at: u32, each: u32| at * each..(at + 1) * each;
        let mut hasher = hasher();
        let arrays = &self.arrays;
        arrays.addresses.hash(range(active, entries), &mut hasher);
        arrays.services.hash(range(active, entries), &mut hasher);
        for at in [active, active + GENERATIONS] {
            let range = range(at, displacements);
            arrays.displacements.hash(range, &mut hasher);
        }
        let settings = self.settings.read(0);
        let generation = settings.generations[active as usize];
        hasher.write(bytemuck::bytes_of(&generation));
        hasher.write_u64(settings.vip_networks);
        Index {
            active,
            sum: hasher.finish(),
        }
    }

    fn audit_tables(&mut self, found: &mut Vec<String>) {
        let tables = &self.registry.tables;
        let last = self.known.last.take();
        let rest = last.as_ref().map_or((Unbounded, Unbounded), |last| {
            (Excluded(last.clone()), Unbounded)
        });
        let first = last.iter().flat_map(|last| tables.range(..=last.clone()));
        let mut left = SLOTS_AT_ONCE;
        let mut wrong = Vec::new();
        for (key, &region) in tables.range(rest).chain(first) {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(u64::from(region.slots));
            let known = self.known.tables.get(key);
            if known.is_some_and(|&known| known != sum_of(&self.slots, region)) {
                wrong.push(key.clone());
            }
            self.known.last = Some(key.clone());
        }
        for key in wrong {
            self.actual.tables.remove(&key);
            found.push(format!("lookup table of pool {}", key.pool));
        }
    }

    /// Pins that are gone are made again: the next daemon could not adopt what it does not find.
    fn audit_pins(&self, found: &mut Vec<String>) {
        for name in &self.pinned_maps {
            let path = self.pins.directory.join(name);
            if path.exists() {
                continue;
            }
            let Some(map) = self.object.map(name) else {
                continue;
            };
            let pinned = fs::create_dir_all(&self.pins.directory)
                .and_then(|()| map.pin(&path).map_err(io::Error::other));
            match pinned {
                Ok(()) => found.push(format!("the pin {}", path.display())),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a map has lost its pin, and cannot be pinned again: the next start could not adopt it");
                }
            }
        }
    }
}

fn sum_of(slots: &Slots, region: Region) -> u64 {
    sum(slots.backends(region))
}

/// Of a table, whatever is marked in it.
fn sum(slots: impl Iterator<Item = u16>) -> u64 {
    let mut hasher = hasher();
    for slot in slots {
        hasher.write_u16(slot & !SLOT_MOVED);
    }
    hasher.finish()
}

/// Its keys do not matter: no sum leaves this process.
pub(super) fn hasher() -> AHasher {
    use std::hash::BuildHasher;
    RandomState::with_seeds(1, 2, 3, 4).build_hasher()
}

/// A challenge without what packets write.
fn constants(challenge: Challenge) -> Challenge {
    Challenge {
        rate: challenge.rate,
        again: challenge.again,
        hold: challenge.hold,
        ..Challenge::default()
    }
}
