//! The entries that were set, and how they change. They are few, however many prefixes they have.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sluice_ebpf::abi::{SET_ALLOW, SET_BOGONS, SET_DENY, SET_DENY_MONITOR};

use super::{Kind, SourceSpec};
use crate::{
    book::{Book, Precondition, Record, SpecError, Stamp, Step, Unmet},
    config::Mode,
};

/// An entry that was set. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRecord {
    pub id: u64,
    /// 1 when it is new, and one more with each change.
    pub revision: u64,
    /// The number of its set in the data plane; single prefixes of a kind, mode and VIP share one.
    pub set: u8,
    pub spec: SourceSpec,
    pub created_ms: u64,
    /// From then on it does not hold.
    pub expires_ms: Option<u64>,
}

/// Setting one with the name, or the prefix and VIP, of another of its kind replaces that, which keeps its id.
pub type SourceBook = Book<SourceRecord>;

/// A change of one entry.
#[derive(Clone, Debug)]
pub enum SourceChange {
    Set(SourceSpec, Precondition),
    Replace(u64, SourceSpec, Precondition),
    Remove(Kind, u64, Precondition),
}

/// What became of one entry.
pub type SourceStep = Step<SourceRecord>;

/// Why a change cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SourceRefusal {
    #[error("there is no such entry: {0}")]
    Unknown(String),
    #[error("this entry stands in the config file; change it there, and reload")]
    OfConfig,
    #[error(transparent)]
    Unmet(#[from] Unmet),
    #[error("entry {id} has this name or prefix already; change or remove that one")]
    Conflict { id: u64 },
    #[error("there are {MOST_SETS} sets already, those of the config among them; join some")]
    Sets,
    #[error(
        "{MOST_SINGLE} single prefixes are set already; put them into a file, and import that as a set"
    )]
    Singles,
    #[error(transparent)]
    Invalid(#[from] SpecError),
}

/// Entries of the config have ids from here on.
pub const FIRST_CONFIG_ID: u64 = 1_000_000_000;
/// Sets that have names, or are the single prefixes of a VIP, that there can be at a time.
pub const MOST_SETS: usize = 60;
/// Single prefixes of each kind, mode and VIP that there can be at a time.
pub const MOST_SINGLE: usize = 16_384;
/// Numbers of sets that are for whoever asks first, as bits.
const FREE: u64 = u64::MAX << (SET_ALLOW + 1);

impl Record for SourceRecord {
    fn stamp(&self) -> Stamp {
        Stamp {
            id: self.id,
            revision: self.revision,
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
        }
    }
}

impl SourceBook {
    /// Numbers in use that no kind of entry always has, as bits.
    pub fn taken(&self) -> u64 {
        let used = self.iter().fold(0, |bits, record| bits | 1 << record.set);
        used & FREE
    }

    /// Makes a change, or nothing of it. `taken` are numbers that sets of the config have, as bits.
    pub fn change(
        &mut self,
        change: SourceChange,
        taken: u64,
        now_ms: u64,
    ) -> Result<SourceStep, SourceRefusal> {
        match change {
            SourceChange::Set(spec, precondition) => {
                spec.validate()?;
                let before = self.find(&spec).cloned();
                precondition.check(before.as_ref().map(|before| before.etag()))?;
                self.write(before, spec, taken, now_ms)
            }
            SourceChange::Replace(id, spec, precondition) => {
                spec.validate()?;
                let before = self.known(spec.kind, id)?;
                precondition.check(Some(before.etag()))?;
                // What it is already it stays, its time included.
                if before.spec == spec {
                    return Ok(SourceStep::Same(before));
                }
                match self.find(&spec) {
                    Some(other) if other.id != id => Err(SourceRefusal::Conflict { id: other.id }),
                    _ => self.write(Some(before), spec, taken, now_ms),
                }
            }
            SourceChange::Remove(kind, id, precondition) => {
                precondition.check(Some(self.known(kind, id)?.etag()))?;
                let removed = self.remove(id);
                removed.ok_or_else(|| SourceRefusal::Unknown(id.to_string()))
            }
        }
    }

    fn known(&self, kind: Kind, id: u64) -> Result<Arc<SourceRecord>, SourceRefusal> {
        match self.get(id).filter(|record| record.spec.kind == kind) {
            Some(record) => Ok(record.clone()),
            None if id >= FIRST_CONFIG_ID => Err(SourceRefusal::OfConfig),
            None => Err(SourceRefusal::Unknown(id.to_string())),
        }
    }

    fn write(
        &mut self,
        before: Option<Arc<SourceRecord>>,
        spec: SourceSpec,
        taken: u64,
        now_ms: u64,
    ) -> Result<SourceStep, SourceRefusal> {
        let set = match fixed_set(&spec).or_else(|| self.set_of(before.as_deref(), &spec)) {
            Some(set) => set,
            None => free_set(self.taken() | taken).ok_or(SourceRefusal::Sets)?,
        };
        let same = |record: &&Arc<SourceRecord>| record.set == set;
        if spec.name.is_none() && self.iter().filter(same).count() >= MOST_SINGLE {
            return Err(SourceRefusal::Singles);
        }
        let stamp = self.stamp(before.as_deref(), spec.ttl_seconds, now_ms);
        Ok(self.put(SourceRecord {
            id: stamp.id,
            revision: stamp.revision,
            set,
            spec,
            created_ms: stamp.created_ms,
            expires_ms: stamp.expires_ms,
        }))
    }

    /// The number that an entry has already: a named one for itself, a single prefix with others that are for the same.
    fn set_of(&self, before: Option<&SourceRecord>, spec: &SourceSpec) -> Option<u8> {
        if spec.name.is_some() {
            let named = before.filter(|before| before.spec.name.is_some());
            return named
                .map(|before| before.set)
                .filter(|set| FREE >> set & 1 != 0);
        }
        let group = |spec: &SourceSpec| {
            let single = spec.prefix.is_some();
            single.then(|| (spec.kind, spec.mode, spec.vip.clone()))
        };
        let wanted = group(spec);
        let same = self.iter().find(|record| group(&record.spec) == wanted);
        same.map(|record| record.set)
    }

    fn find(&self, spec: &SourceSpec) -> Option<&Arc<SourceRecord>> {
        self.iter().find(|record| is_same(&record.spec, spec))
    }
}

/// Whether one takes the place of the other: a name is of one entry, whatever VIP it is for.
fn is_same(one: &SourceSpec, other: &SourceSpec) -> bool {
    (one.kind, &one.name, one.prefix) == (other.kind, &other.name, other.prefix)
        && (one.name.is_some() || one.vip == other.vip)
}

/// The set of an entry, if it is not one of its own.
pub(crate) fn fixed_set(spec: &SourceSpec) -> Option<u8> {
    if spec.is_bogons() {
        return Some(SET_BOGONS);
    }
    if spec.name.is_some() || spec.vip.is_some() {
        return None;
    }
    Some(match (spec.kind, spec.mode) {
        (Kind::Allow, _) => SET_ALLOW,
        (Kind::Deny, Mode::Enforce) => SET_DENY,
        (Kind::Deny, Mode::Monitor) => SET_DENY_MONITOR,
    })
}

/// A number that no set has.
fn free_set(taken: u64) -> Option<u8> {
    let free = FREE & !taken;
    (free != 0)
        .then(|| free.trailing_zeros())
        .and_then(|set| u8::try_from(set).ok())
}

/// The same from above, where the sets of the config are.
pub(crate) fn last_free_set(taken: u64) -> Option<u8> {
    let last = (FREE & !taken).checked_ilog2()?;
    u8::try_from(last).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Members;

    fn single(kind: Kind, prefix: &str) -> SourceSpec {
        SourceSpec::single(kind, prefix.parse().unwrap())
    }

    fn named(name: &str) -> SourceSpec {
        let members = Members::of(["192.0.2.0/24".parse().unwrap()]);
        SourceSpec::named(Kind::Deny, name, Arc::new(members))
    }

    fn set(book: &mut SourceBook, spec: SourceSpec) -> Result<SourceStep, SourceRefusal> {
        book.change(SourceChange::Set(spec, Precondition::None), 1 << 63, 1_000)
    }

    #[test]
    fn an_entry_with_the_same_name_or_prefix_replaces_the_one_before() {
        let mut book = SourceBook::new([], 1);
        assert_eq!(
            set(&mut book, single(Kind::Deny, "192.0.2.1/32"))
                .unwrap()
                .id(),
            1
        );
        assert_eq!(
            set(&mut book, single(Kind::Allow, "192.0.2.1/32"))
                .unwrap()
                .id(),
            2
        );
        let SourceStep::New(record) = set(&mut book, named("list")).unwrap() else {
            panic!("it is new");
        };
        assert_eq!((record.id, record.set), (3, 4));
        let again = SourceSpec {
            ttl_seconds: Some(5),
            ..named("list")
        };
        let SourceStep::Changed(record) = set(&mut book, again).unwrap() else {
            panic!("it was there");
        };
        assert_eq!((record.id, record.set, record.revision), (3, 4, 2));
        assert_eq!(book.next_expiry_ms(), Some(6_000));
        assert_eq!(book.expire(6_000), [3]);
        let remove = |id| SourceChange::Remove(Kind::Allow, id, Precondition::None);
        assert!(
            book.change(remove(1), 0, 0).is_err(),
            "it is of the other kind"
        );
        book.change(remove(2), 0, 0).unwrap();
        let records: Vec<SourceRecord> = book.iter().map(|record| (**record).clone()).collect();
        assert_eq!(SourceBook::new(records, 4), book);
    }

    #[test]
    fn single_prefixes_of_a_vip_share_a_set_of_their_own() {
        let mut book = SourceBook::new([], 1);
        let of = |prefix: &str, vip: Option<&str>| SourceSpec {
            vip: vip.map(str::to_owned),
            ..single(Kind::Deny, prefix)
        };
        let mut number = |spec: SourceSpec| match set(&mut book, spec).unwrap() {
            SourceStep::New(record) | SourceStep::Changed(record) => (record.id, record.set),
            SourceStep::Same(_) | SourceStep::Removed(_) => panic!("it is set"),
        };
        assert_eq!(number(of("192.0.2.1/32", None)), (1, SET_DENY));
        assert_eq!(number(of("192.0.2.1/32", Some("web"))), (2, 4));
        assert_eq!(number(of("192.0.2.2/32", Some("web"))), (3, 4));
        assert_eq!(number(of("192.0.2.2/32", Some("dns"))), (4, 5));
        assert_eq!(
            number(of("192.0.2.1/32", Some("web"))),
            (2, 4),
            "it is replaced"
        );
        assert_eq!(number(named("list")), (5, 6));
        let monitored = SourceSpec {
            mode: Mode::Monitor,
            ..of("192.0.2.2/32", Some("dns"))
        };
        assert_eq!(number(monitored), (4, 7), "another mode is another set");
    }

    #[test]
    fn there_are_as_many_sets_as_there_are_bits() {
        let mut book = SourceBook::new([], 1);
        for n in 0..MOST_SETS - 1 {
            set(&mut book, named(&format!("list{n}"))).unwrap();
        }
        // One is the config's.
        let refused = set(&mut book, named("another")).unwrap_err();
        assert!(matches!(refused, SourceRefusal::Sets));
        let SourceStep::New(bogons) = set(&mut book, named("bogons")).unwrap() else {
            panic!("it is new");
        };
        assert_eq!(bogons.set, SET_BOGONS);
    }
}
