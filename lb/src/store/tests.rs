//! That what was answered is there, whatever happens to the disk.

use std::{fs, time::Instant};

use proptest::prelude::*;

use super::{
    shaky::{Luck, Shaky},
    *,
};
use crate::{
    limits::LimitSpec,
    rules::RuleRecord,
    sources::{Kind, Members, SourceRecord, SourceSpec},
};

fn record(id: u64, pps: u64) -> LimitRecord {
    let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(id).unwrap());
    let json = format!(r#"{{"prefix": "{address}", "pps": {pps}, "comment": "of a test"}}"#);
    LimitRecord {
        id,
        revision: 1,
        spec: LimitSpec::from_json(json.as_bytes()).unwrap(),
        created_ms: 1_700_000_000_000,
        expires_ms: None,
    }
}

fn set(id: u64, pps: u64) -> Change {
    Change::SetLimit(Arc::new(record(id, pps)))
}

fn drain(n: u8) -> Drain {
    let text = match n % 3 {
        0 => format!("vip web{n}"),
        1 => "pop".to_owned(),
        _ => format!("web/10.0.0.{n}"),
    };
    text.parse().unwrap()
}

/// What a store that took these changes holds.
fn apply(contents: &mut Contents, changes: &[Change]) {
    for change in changes {
        let gone = match change {
            Change::SetLimit(record) => Some(record.id),
            Change::RemoveLimit(id) => Some(*id),
            _ => None,
        };
        contents.limits.retain(|limit| Some(limit.id) != gone);
        match change {
            Change::SetLimit(record) => contents.limits.push(LimitRecord::clone(record)),
            Change::RemoveLimit(_) => {}
            Change::NextLimitId(next) => contents.next_limit_id = *next,
            Change::Drain(name) => drop(contents.drains.insert(name.clone())),
            Change::Undrain(name) => drop(contents.drains.remove(name)),
            Change::SetRule(record) => {
                contents.rules.retain(|rule| rule.id != record.id);
                contents.rules.push((**record).clone());
            }
            Change::RemoveRule(id) => contents.rules.retain(|rule| rule.id != *id),
            Change::NextRuleId(next) => contents.next_rule_id = *next,
            Change::SetSource(record) => {
                contents.sources.retain(|source| source.id != record.id);
                contents.sources.push((**record).clone());
            }
            Change::RemoveSource(id) => contents.sources.retain(|source| source.id != *id),
            Change::NextSourceId(next) => contents.next_source_id = *next,
            Change::Keep(key, Some(value)) => {
                contents.kept.insert(key.clone(), value.to_vec());
            }
            Change::Keep(key, None) => drop(contents.kept.remove(key)),
        }
    }
    contents.limits.sort_by_key(|limit| limit.id);
    contents.rules.sort_by_key(|rule| rule.id);
    contents.sources.sort_by_key(|source| source.id);
}

/// Opens a store of which nothing may be said.
fn open<M: Medium>(medium: M) -> (Store<M>, Contents) {
    let (store, contents, said) = Store::open(medium).unwrap();
    assert_eq!(said, [""; 0]);
    (store, contents)
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (1..40_u64, 1..1_000_u64).prop_map(|(id, pps)| set(id, pps)),
        2 => (1..40_u64).prop_map(Change::RemoveLimit),
        1 => (1..100_u64).prop_map(Change::NextLimitId),
        2 => (1..20_u64, 1..255_u8).prop_map(|(id, ttl)| Change::SetRule(Arc::new(RuleRecord {
            id,
            revision: 1,
            spec: format!("ttl {ttl} -> drop").parse().unwrap(),
            created_ms: 1,
            expires_ms: None,
        }))),
        1 => (1..20_u64).prop_map(Change::RemoveRule),
        1 => (1..100_u64).prop_map(Change::NextRuleId),
        2 => (1..20_u64, 1..=32_u8).prop_map(|(id, length)| Change::SetSource(Arc::new(SourceRecord {
            id,
            revision: 1,
            set: 4,
            spec: SourceSpec::named(Kind::Deny, "list", Arc::new(Members::of([
                ipnet::IpNet::new("192.0.2.0".parse().unwrap(), length).unwrap(),
                "2001:db8::/32".parse().unwrap(),
            ]))),
            created_ms: 1,
            expires_ms: None,
        }))),
        1 => (1..20_u64).prop_map(Change::RemoveSource),
        1 => (1..100_u64).prop_map(Change::NextSourceId),
        1 => ("[a-c]", prop::option::of(prop::collection::vec(any::<u8>(), 0..40)))
            .prop_map(|(key, value)| Change::Keep(key, value.map(Into::into))),
        1 => (1..5_u8).prop_map(|n| Change::Drain(drain(n))),
        1 => (1..5_u8).prop_map(|n| Change::Undrain(drain(n))),
    ]
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![
        Just(Luck::None),
        Just(Luck::All),
        any::<u64>().prop_map(Luck::Some)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_survives_a_crash_at_any_write(
        lives in prop::collection::vec(
            (prop::collection::vec(prop::collection::vec(change(), 1..12), 1..6), 1..60_usize, luck()),
            1..5,
        ),
    ) {
        let disk = Shaky::default();
        // What the store may hold: what was answered, and with what was under way when the power went, or without.
        let mut possible = vec![Contents::default()];
        for (writes, operations, luck) in lives {
            let (mut store, found) = open(disk.clone());
            prop_assert!(possible.contains(&found), "{found:?}\nis none of {possible:?}");
            possible = vec![found];
            disk.fail_after(operations);
            for changes in writes {
                let before = possible[0].clone();
                let mut after = before.clone();
                apply(&mut after, &changes);
                if store.commit(&changes).is_err() {
                    possible.push(after);
                    break;
                }
                possible = vec![after];
            }
            drop(store);
            disk.power_on(luck);
        }
        let (_, found) = open(disk);
        prop_assert!(possible.contains(&found), "{found:?}\nis none of {possible:?}");
    }

    #[test]
    fn what_was_refused_is_not_there_once_the_disk_works_again(
        rounds in prop::collection::vec((prop::collection::vec(change(), 1..12), 1..20_usize), 1..8),
    ) {
        let disk = Shaky::default();
        let (mut store, mut contents) = open(disk.clone());
        for (changes, operations) in rounds {
            disk.fail_after(operations);
            let refused = store.commit(&changes).is_err();
            if !refused {
                apply(&mut contents, &changes);
            }
            // The disk failed without losing what was written.
            disk.power_on(Luck::All);
            store.recover().unwrap();
            prop_assert!(store.is_sound());
            drop(store);
            let (again, found) = open(disk.clone());
            prop_assert_eq!(&found, &contents);
            store = again;
        }
    }

    #[test]
    fn a_file_that_rotted_is_read_right_or_set_aside(
        place in any::<prop::sample::Index>(),
        xor in 1..=255_u8,
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let disk = Shaky::default();
        let (mut store, mut contents) = open(disk.clone());
        for id in 1..200 {
            let changes = [set(id, id), Change::Drain(drain((id % 5) as u8))];
            store.commit(&changes).unwrap();
            apply(&mut contents, &changes);
        }
        drop(store);
        let mut bytes = disk.bytes();
        let at = place.index(bytes.len());
        bytes[at] ^= xor;
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let rotten = Shaky::with_bytes(bytes);
        let (mut store, found, said) = Store::open(rotten.clone()).unwrap();
        if said.is_empty() {
            prop_assert_eq!(&found, &contents);
        } else {
            prop_assert_eq!(rotten.asides(), 1, "{:?}", said);
            prop_assert_eq!(&found, &Contents::default());
        }
        store.commit(&[set(1_000, 1)]).unwrap();
        drop(store);
        let (_, again) = open(rotten);
        prop_assert_eq!(again.limits.len(), found.limits.len() + 1);
    }
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_room() {
    let disk = Shaky::default();
    let (mut store, mut contents) = open(disk.clone());
    let first = [set(1, 1), Change::Drain(drain(1))];
    store.commit(&first).unwrap();
    apply(&mut contents, &first);
    disk.fill_up(Some(0));
    let many: Vec<Change> = (0..100_000).map(|id| set(id, 7)).collect();
    let error = store.commit(&many).unwrap_err();
    assert!(
        crate::control::chain(&error).contains("make room"),
        "{error:?}"
    );
    assert!(!store.is_sound());
    // A small one still fits into what the file has.
    let small = [set(2, 2)];
    store.commit(&small).unwrap();
    apply(&mut contents, &small);
    drop(store);
    let (mut store, found) = open(disk.clone());
    assert_eq!(found, contents);
    disk.fill_up(None);
    store.commit(&many).unwrap();
}

#[test]
fn a_disk_that_is_full_from_the_start_takes_changes_later() {
    let disk = Shaky::default();
    disk.fill_up(Some(0));
    let (mut store, contents) = open(disk.clone());
    assert_eq!(contents, Contents::default());
    let error = store.commit(&[set(1, 1)]).unwrap_err();
    assert!(
        crate::control::chain(&error).contains("make room"),
        "{error:?}"
    );
    disk.fill_up(None);
    store.commit(&[set(2, 2)]).unwrap();
    drop(store);
    assert_eq!(open(disk).1.limits, [record(2, 2)]);
}

#[test]
fn a_beginning_that_was_cut_short_is_no_store() {
    let disk = Shaky::default();
    for operations in 1.. {
        disk.fail_after(operations);
        let (store, _) = open(disk.clone());
        let begun = store.is_sound();
        drop(store);
        disk.power_on(Luck::Some(0x5555 << operations));
        assert_eq!(disk.exists().unwrap(), begun, "after {operations}");
        if begun {
            assert!(operations > 3);
            assert_eq!(open(disk).1, Contents::default());
            return;
        }
    }
}

#[test]
fn a_store_that_cannot_be_set_aside_takes_nothing_until_it_can() {
    let disk = Shaky::with_bytes(b"not a database".to_vec());
    disk.get_stuck(true);
    let (mut store, contents, said) = Store::open(disk.clone()).unwrap();
    assert_eq!(contents, Contents::default());
    assert!(said[0].contains("cannot be read"), "{said:?}");
    let why = crate::control::chain(&store.commit(&[set(1, 1)]).unwrap_err());
    assert!(
        why.contains("cannot be put aside; make room on that disk"),
        "{why}"
    );
    assert_eq!(disk.bytes(), b"not a database");

    disk.get_stuck(false);
    disk.fill_up(Some(0));
    let why = crate::control::chain(&store.commit(&[set(1, 1)]).unwrap_err());
    assert!(why.contains("make room on that disk"), "{why}");
    assert!(!store.is_sound());
    disk.fill_up(None);
    store.commit(&[set(2, 2)]).unwrap();
    drop(store);
    assert_eq!(disk.asides(), 1);
    assert_eq!(open(disk).1.limits, [record(2, 2)]);
}

#[test]
fn rows_that_cannot_be_copied_stay_and_nothing_is_taken_until_they_can() {
    let disk = with_a_bad_row();
    disk.get_stuck(true);
    let (mut store, contents, said) = Store::open(disk.clone()).unwrap();
    assert_eq!(contents.limits, [record(1, 1), record(3, 3)]);
    assert!(said[0].contains("limit 2"), "{said:?}");
    store.commit(&[set(4, 4)]).unwrap_err();
    drop(store);
    let (mut store, contents, said) = Store::open(disk.clone()).unwrap();
    assert_eq!(contents.limits.len(), 2);
    assert!(said[0].contains("limit 2"), "it is still there: {said:?}");
    disk.get_stuck(false);
    store.commit(&[set(4, 4)]).unwrap();
    drop(store);
    assert_eq!(disk.asides(), 1);
    assert_eq!(open(disk).1.limits.len(), 3);
}

#[test]
fn a_store_that_cannot_be_read_for_now_is_not_taken_for_an_empty_one() {
    let disk = Shaky::default();
    let (mut store, _) = open(disk.clone());
    store.commit(&[set(1, 1)]).unwrap();
    drop(store);
    disk.break_down(true);
    Store::open(disk.clone()).unwrap_err();
    assert_eq!(disk.asides(), 0);
    disk.break_down(false);
    assert_eq!(open(disk).1.limits.len(), 1);
}

#[test]
fn a_file_of_another_kind_or_version_is_set_aside_and_said() {
    let newer = || {
        let disk = Shaky::default();
        drop(open(disk.clone()));
        let database = Builder::new().create_with_backend(disk.clone()).unwrap();
        let transaction = database.begin_write().unwrap();
        let meta = redb::TableDefinition::<&str, u64>::new("meta");
        transaction
            .open_table(meta)
            .unwrap()
            .insert("format", 2)
            .unwrap();
        transaction.commit().unwrap();
        drop(database);
        disk.bytes()
    };
    let other = || {
        let disk = Shaky::default();
        let database = Builder::new().create_with_backend(disk.clone()).unwrap();
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("limits");
        transaction.open_table(table).unwrap();
        transaction.commit().unwrap();
        drop(database);
        disk.bytes()
    };
    for (bytes, part) in [
        (newer(), "its format is 2"),
        (other(), "another program's"),
        (b"not a database at all".to_vec(), "cannot be read"),
        (vec![0; 100_000], "cannot be read"),
        (Vec::new(), "it is empty"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state.redb");
        fs::write(&file, &bytes).unwrap();
        let (mut store, contents, said) = Store::open(Directory::new(directory.path())).unwrap();
        assert_eq!(contents, Contents::default());
        assert!(said[0].contains(part), "{said:?}");
        let aside = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().contains("unreadable"))
            .unwrap();
        assert!(said[0].contains(aside.to_str().unwrap()), "{said:?}");
        assert!(fs::read(aside).unwrap().len() >= bytes.len());
        store.commit(&[set(1, 1)]).unwrap();
        drop(store);
        assert_eq!(open(Directory::new(directory.path())).1.limits.len(), 1);
    }
}

/// With limits 1 and 3, and a row of limit 2 that makes no sense.
fn with_a_bad_row() -> Shaky {
    let disk = Shaky::default();
    let (mut store, _) = open(disk.clone());
    store.commit(&[set(1, 1), set(2, 2), set(3, 3)]).unwrap();
    let rows = [Row::Limit(2, Some(b"{}".to_vec()))];
    store
        .write(|transaction| tables::restore(transaction, &rows))
        .unwrap();
    disk
}

#[test]
fn a_row_that_makes_no_sense_costs_only_itself() {
    let disk = with_a_bad_row();
    let (store, contents, said) = Store::open(disk.clone()).unwrap();
    assert_eq!(contents.limits, [record(1, 1), record(3, 3)]);
    assert!(said[0].contains("limit 2"), "{said:?}");
    assert_eq!(disk.asides(), 1);
    drop(store);
    assert_eq!(open(disk).1, contents);
}

#[test]
fn a_hundred_thousand_limits_are_written_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(Directory::new(directory.path()));
    let changes: Vec<Change> = (1..=100_000).map(|id| set(id, 1)).collect();
    let start = Instant::now();
    store.commit(&changes).unwrap();
    println!("written: {:?}", start.elapsed());
    let start = Instant::now();
    for id in 1..=200 {
        store.commit(&[set(id * 331, 2)]).unwrap();
    }
    println!("one more: {:?}", start.elapsed() / 200);
    drop(store);
    let start = Instant::now();
    let (_, contents) = open(Directory::new(directory.path()));
    println!("opened: {:?}", start.elapsed());
    assert_eq!(contents.limits.len(), 100_000);
}
