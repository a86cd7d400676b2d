//! The store's tables: what their keys and values are, and how they stand on the disk.
//!
//! A new kind of thing gets a table here, a [`Change`] for each way in which it changes, and a field in [`Contents`].
//! A change that an older daemon could not read raises [`FORMAT`].

use std::fmt;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
    WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Change, Contents, Failure};
use crate::{
    book::Record,
    sources::{Members, SourceRecord},
};

/// Single numbers by name.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// [`LimitRecord`](crate::limits::LimitRecord) as JSON, by id.
const LIMITS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("limits");
/// What drains, by [`Drain`](crate::drains::Drain) as text.
const DRAINS: TableDefinition<'_, &str, ()> = TableDefinition::new("drains");

/// [`RuleRecord`](crate::rules::RuleRecord) as JSON, by id.
const RULES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rules");
/// [`SourceRecord`] by id: the length of its JSON, that, and its members.
const SOURCES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("sources");
/// What detection knows, as it writes it.
const DETECTION: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("detection");

/// Rows of [`META`].
const FORMAT_ROW: &str = "format";
const NEXT_LIMIT_ID: &str = "next_limit_id";
const NEXT_RULE_ID: &str = "next_rule_id";
const NEXT_SOURCE_ID: &str = "next_source_id";

/// What this daemon writes, and the highest that it reads.
const FORMAT: u64 = 1;

/// A row as it stands on the disk; without a value: that there is none.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Meta(&'static str, Option<u64>),
    Limit(u64, Option<Vec<u8>>),
    Rule(u64, Option<Vec<u8>>),
    Source(u64, Option<Vec<u8>>),
    Drain(String, Option<()>),
    Kept(String, Option<Vec<u8>>),
}

/// A row that is whole and makes no sense.
#[derive(Clone, Debug)]
pub(super) enum Unreadable {
    Limit(u64),
    Rule(u64),
    Source(u64),
    Drain(String),
}

impl Unreadable {
    pub(super) fn without_value(&self) -> Row {
        match self {
            Self::Limit(id) => Row::Limit(*id, None),
            Self::Rule(id) => Row::Rule(*id, None),
            Self::Source(id) => Row::Source(*id, None),
            Self::Drain(name) => Row::Drain(name.clone(), None),
        }
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(id) => write!(f, "limit {id}"),
            Self::Rule(id) => write!(f, "rule {id}"),
            Self::Source(id) => write!(f, "denied or allowed sources {id}"),
            Self::Drain(name) => write!(f, "drain {name:?}"),
        }
    }
}

/// All that could be read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) contents: Contents,
    pub(super) unreadable: Vec<Unreadable>,
}

/// Reads everything; makes the tables if there are none.
pub(super) fn read(database: &Database) -> Result<Read, Failure> {
    match format(database)? {
        Some(FORMAT) => {}
        Some(other) => {
            return Err(Failure::Unreadable(format!(
                "it was written by another version: its format is {other}, and this one's {FORMAT}"
            )));
        }
        None => begin(database)?,
    }
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let mut read = Read::default();
    let Read {
        contents,
        unreadable,
    } = &mut read;
    let meta = transaction.open_table(META).map_err(redb::Error::from)?;
    let next = |name| {
        let next = meta.get(name).map_err(redb::Error::from)?;
        Ok::<u64, Failure>(next.map_or(1, |next| next.value().max(1)))
    };
    contents.next_limit_id = next(NEXT_LIMIT_ID)?;
    contents.next_rule_id = next(NEXT_RULE_ID)?;
    contents.next_source_id = next(NEXT_SOURCE_ID)?;
    rows(&transaction, LIMITS, |id, value| match record(id, value) {
        Some(limit) => contents.limits.push(limit),
        None => unreadable.push(Unreadable::Limit(id)),
    })?;
    rows(&transaction, DRAINS, |name, ()| match name.parse() {
        Ok(drain) => drop(contents.drains.insert(drain)),
        Err(_) => unreadable.push(Unreadable::Drain(name.to_owned())),
    })?;
    rows(&transaction, RULES, |id, value| match record(id, value) {
        Some(rule) => contents.rules.push(rule),
        None => unreadable.push(Unreadable::Rule(id)),
    })?;
    rows(&transaction, SOURCES, |id, value| match source(id, value) {
        Some(entry) => contents.sources.push(entry),
        None => unreadable.push(Unreadable::Source(id)),
    })?;
    rows(&transaction, DETECTION, |key, value| {
        contents.kept.insert(key.to_owned(), value.to_vec());
    })?;
    Ok(read)
}

/// Takes each row of a table. There is no table where nothing was ever written.
fn rows<K: redb::Key + 'static, V: redb::Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
    mut take: impl FnMut(K::SelfType<'_>, V::SelfType<'_>),
) -> Result<(), Failure> {
    let table = match transaction.open_table(table) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(redb::Error::from(error).into()),
    };
    for row in table.iter().map_err(redb::Error::from)? {
        let (key, value) = row.map_err(redb::Error::from)?;
        take(key.value(), value.value());
    }
    Ok(())
}

/// A record as JSON, if it makes sense.
fn record<R: Record + DeserializeOwned>(id: u64, bytes: &[u8]) -> Option<R> {
    let record: R = serde_json::from_slice(bytes).ok()?;
    (record.stamp().id == id).then_some(record)
}

fn json(record: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(record).map_err(|error| redb::Error::Corrupted(error.to_string()))
}

/// Makes changes, and tells what stood there before.
pub(super) fn apply(
    transaction: &WriteTransaction,
    changes: &[Change],
) -> Result<Vec<Row>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let mut limits = transaction.open_table(LIMITS)?;
    let mut drains = transaction.open_table(DRAINS)?;
    let mut rules = transaction.open_table(RULES)?;
    let mut sources = transaction.open_table(SOURCES)?;
    let mut kept = transaction.open_table(DETECTION)?;
    let mut before = Vec::with_capacity(changes.len());
    let owned = |value: Option<redb::AccessGuard<'_, &[u8]>>| value.map(|v| v.value().to_vec());
    for change in changes {
        before.push(match change {
            Change::SetLimit(record) => {
                let value = json(&**record)?;
                Row::Limit(record.id, owned(limits.insert(record.id, &*value)?))
            }
            Change::RemoveLimit(id) => Row::Limit(*id, owned(limits.remove(id)?)),
            Change::NextLimitId(next) => {
                let value = meta.insert(NEXT_LIMIT_ID, next)?;
                Row::Meta(NEXT_LIMIT_ID, value.map(|value| value.value()))
            }
            Change::Drain(drain) => {
                let name = drain.to_string();
                let value = drains.insert(&*name, ())?.map(|_| ());
                Row::Drain(name, value)
            }
            Change::Undrain(drain) => {
                let name = drain.to_string();
                let value = drains.remove(&*name)?.map(|_| ());
                Row::Drain(name, value)
            }
            Change::SetRule(record) => {
                let value = json(&**record)?;
                Row::Rule(record.id, owned(rules.insert(record.id, &*value)?))
            }
            Change::RemoveRule(id) => Row::Rule(*id, owned(rules.remove(id)?)),
            Change::NextRuleId(next) => {
                let value = meta.insert(NEXT_RULE_ID, next)?;
                Row::Meta(NEXT_RULE_ID, value.map(|value| value.value()))
            }
            Change::SetSource(record) => {
                let value = source_bytes(record)?;
                Row::Source(record.id, owned(sources.insert(record.id, &*value)?))
            }
            Change::RemoveSource(id) => Row::Source(*id, owned(sources.remove(id)?)),
            Change::NextSourceId(next) => {
                let value = meta.insert(NEXT_SOURCE_ID, next)?;
                Row::Meta(NEXT_SOURCE_ID, value.map(|value| value.value()))
            }
            Change::Keep(key, value) => {
                let before = match value {
                    Some(value) => owned(kept.insert(&**key, &**value)?),
                    None => owned(kept.remove(&**key)?),
                };
                Row::Kept(key.clone(), before)
            }
        });
    }
    Ok(before)
}

/// Makes rows be what they were.
pub(super) fn restore(
    transaction: &WriteTransaction,
    rows: &[Row],
) -> Result<Vec<Row>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let mut limits = transaction.open_table(LIMITS)?;
    let mut drains = transaction.open_table(DRAINS)?;
    let mut rules = transaction.open_table(RULES)?;
    let mut sources = transaction.open_table(SOURCES)?;
    let mut kept = transaction.open_table(DETECTION)?;
    // A row that changed twice was first what its first change found.
    for row in rows.iter().rev() {
        match row {
            Row::Meta(name, Some(value)) => drop(meta.insert(name, value)?),
            Row::Meta(name, None) => drop(meta.remove(name)?),
            Row::Limit(id, Some(value)) => drop(limits.insert(id, &**value)?),
            Row::Limit(id, None) => drop(limits.remove(id)?),
            Row::Drain(name, Some(())) => drop(drains.insert(&**name, ())?),
            Row::Drain(name, None) => drop(drains.remove(&**name)?),
            Row::Rule(id, Some(value)) => drop(rules.insert(id, &**value)?),
            Row::Rule(id, None) => drop(rules.remove(id)?),
            Row::Source(id, Some(value)) => drop(sources.insert(id, &**value)?),
            Row::Source(id, None) => drop(sources.remove(id)?),
            Row::Kept(key, Some(value)) => drop(kept.insert(&**key, &**value)?),
            Row::Kept(key, None) => drop(kept.remove(&**key)?),
        }
    }
    Ok(Vec::new())
}

/// A set of a million prefixes as JSON would be several times as long.
fn source_bytes(record: &SourceRecord) -> Result<Vec<u8>, redb::Error> {
    let json = json(record)?;
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes.extend(record.spec.members.to_bytes());
    Ok(bytes)
}

fn source(id: u64, bytes: &[u8]) -> Option<SourceRecord> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (json, members) = rest.split_at_checked(length)?;
    let mut record: SourceRecord = record(id, json)?;
    record.spec.members = Members::from_bytes(members)?.into();
    // The data plane has no more.
    (record.set < 64).then_some(record)
}

/// The format that was written; `None` in a database that nobody wrote to.
fn format(database: &Database) -> Result<Option<u64>, Failure> {
    let transaction = database.begin_read().map_err(redb::Error::from)?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let tables = transaction.list_tables().map_err(redb::Error::from)?;
            if tables.count() > 0 {
                return Err(Failure::Unreadable("it is another program's".into()));
            }
            return Ok(None);
        }
        Err(error) => return Err(redb::Error::from(error).into()),
    };
    let format = meta.get(FORMAT_ROW).map_err(redb::Error::from)?;
    let format = format.ok_or_else(|| Failure::Unreadable("it tells no format".into()))?;
    Ok(Some(format.value()))
}

fn begin(database: &Database) -> Result<(), Failure> {
    let transaction = database.begin_write().map_err(redb::Error::from)?;
    {
        let mut meta = transaction.open_table(META).map_err(redb::Error::from)?;
        meta.insert(FORMAT_ROW, FORMAT).map_err(redb::Error::from)?;
        transaction.open_table(LIMITS).map_err(redb::Error::from)?;
        transaction.open_table(DRAINS).map_err(redb::Error::from)?;
    }
    transaction.commit().map_err(redb::Error::from)?;
    Ok(())
}
