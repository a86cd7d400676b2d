//! That changes are thought out as they will be made.

use std::sync::Arc;

use super::*;
use crate::book::{Precondition, Record as _, Unmet};

fn spec(n: u32, pps: u64, ttl_seconds: Option<u64>) -> LimitSpec {
    let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
    let json = format!(r#"{{"prefix": "{address}", "pps": {pps}}}"#);
    LimitSpec {
        ttl_seconds,
        ..LimitSpec::from_json(json.as_bytes()).unwrap()
    }
}

fn make(book: &mut LimitBook, step: &Step) {
    match step {
        Step::New(record) | Step::Changed(record) => book.put(record.clone()),
        Step::Removed(id) => drop(book.remove(*id)),
        Step::Same(_) => {}
    }
}

/// Sets a limit at a time.
fn set(book: &mut LimitBook, spec: LimitSpec, now_ms: u64) -> Arc<LimitRecord> {
    let step = Draft::new(book, now_ms)
        .set(spec, &Precondition::None)
        .unwrap();
    make(book, &step);
    book.get(step.id()).unwrap().clone()
}

#[test]
fn a_limit_keeps_its_id_and_no_id_is_given_twice() {
    let mut book = LimitBook::new([], 1);
    for n in 1..=3 {
        assert_eq!(set(&mut book, spec(n, 10, None), 100).id, u64::from(n));
    }
    let again = set(&mut book, spec(2, 20, Some(50)), 200);
    let times = (again.created_ms, again.expires_ms);
    assert_eq!(
        (again.id, again.revision, times),
        (2, 2, (100, Some(50_200)))
    );
    let removed = Draft::new(&book, 0).remove(3, &Precondition::None).unwrap();
    make(&mut book, &removed);
    assert_eq!(set(&mut book, spec(3, 1, None), 300).id, 4);

    let records: Vec<LimitRecord> = book.iter().map(|record| (**record).clone()).collect();
    let mut again = LimitBook::new(records, 9);
    assert_eq!(again.len(), 3);
    assert_eq!(set(&mut again, spec(7, 1, None), 400).id, 9);
}

#[test]
fn changes_in_one_draft_see_each_other() {
    let mut book = LimitBook::new([], 1);
    set(&mut book, spec(1, 10, None), 0);
    let mut draft = Draft::new(&book, 50);
    let none = &Precondition::None;
    let new = draft.set(spec(2, 1, None), none).unwrap();
    assert!(matches!(&new, Step::New(record) if record.id == 2));
    let conflict = draft.replace(1, spec(2, 1, None), none).unwrap_err();
    assert!(matches!(conflict, LimitRefusal::Conflict { id: 2 }));
    draft.remove(2, none).unwrap();
    let unknown = draft.replace(2, spec(2, 2, None), none).unwrap_err();
    assert!(matches!(unknown, LimitRefusal::Unknown { id: 2 }));
    let moved = draft.replace(1, spec(2, 3, None), none).unwrap();
    assert!(matches!(&moved, Step::Changed(record) if record.revision == 2));
    // What it was for is free now.
    let new = draft.set(spec(1, 1, None), none).unwrap();
    assert!(matches!(&new, Step::New(record) if record.id == 3));
    assert_eq!(draft.next_id(), 4);
    assert_eq!(book.len(), 1, "nothing is made yet");
}

#[test]
fn replacing_a_limit_by_itself_changes_nothing() {
    let mut book = LimitBook::new([], 1);
    set(&mut book, spec(1, 10, Some(5)), 0);
    let step = Draft::new(&book, 1_000)
        .replace(1, spec(1, 10, Some(5)), &Precondition::None)
        .unwrap();
    let Step::Same(record) = step else {
        panic!("{step:?}");
    };
    assert_eq!((record.revision, record.expires_ms), (1, Some(5_000)));
    // Setting it begins its time anew.
    assert_eq!(
        set(&mut book, spec(1, 10, Some(5)), 1_000).expires_ms,
        Some(6_000)
    );
}

#[test]
fn a_stale_tag_refuses_any_change() {
    let mut book = LimitBook::new([], 1);
    let old = set(&mut book, spec(1, 10, None), 0).etag().to_string();
    let new = set(&mut book, spec(1, 20, None), 0).etag().to_string();
    assert_ne!(old, new);
    let weak = format!("W/{new}");
    for (tag, holds) in [(&*old, false), (&*new, true), (&*weak, false), ("*", true)] {
        let precondition: Precondition = tag.parse().unwrap();
        let mut draft = Draft::new(&book, 0);
        let replaced = draft.replace(1, spec(1, 30, None), &precondition).is_ok();
        let mut draft = Draft::new(&book, 0);
        let set = draft.set(spec(1, 30, None), &precondition).is_ok();
        let mut draft = Draft::new(&book, 0);
        let removed = draft.remove(1, &precondition).is_ok();
        assert_eq!([replaced, set, removed], [holds; 3], "{tag}");
    }
    let several: Precondition = format!("{old}, {new}").parse().unwrap();
    Draft::new(&book, 0).remove(1, &several).unwrap();
    for wrong in ["", "1-2", "\"1-2", "*, \"1-2\""] {
        wrong.parse::<Precondition>().unwrap_err();
    }
    let mut draft = Draft::new(&book, 0);
    let exists = draft
        .set(spec(1, 1, None), &Precondition::Absent)
        .unwrap_err();
    assert!(matches!(exists, LimitRefusal::Unmet(Unmet::Exists(_))));
    draft.set(spec(2, 1, None), &Precondition::Absent).unwrap();
    let missing = draft
        .set(spec(3, 1, None), &Precondition::Exists)
        .unwrap_err();
    assert!(matches!(missing, LimitRefusal::Unmet(Unmet::Missing)));
}

#[test]
fn many_limits_are_set_or_none() {
    let book = LimitBook::new([], 1);
    let mut draft = Draft::new(&book, 0);
    let without_rate = LimitSpec {
        pps: None,
        ..spec(2, 1, None)
    };
    for (wrong, field) in [(without_rate, "[1].pps"), (spec(1, 9, None), "[1]")] {
        let refused = draft.set_all(vec![spec(1, 1, None), wrong]).unwrap_err();
        let LimitRefusal::Invalid(error) = refused else {
            panic!("{refused}");
        };
        assert_eq!(error.field, field);
    }
    let steps = draft
        .set_all(vec![spec(1, 1, None), spec(2, 1, None)])
        .unwrap();
    assert_eq!(steps.iter().map(Step::id).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn an_array_names_the_limit_and_the_field_that_are_wrong() {
    let good = r#"{"prefix": "198.51.100.0/24", "pps": 1}"#;
    let list = LimitSpec::list_from_json(format!("[{good}, {good}]").as_bytes());
    assert_eq!(list.unwrap().len(), 2);
    assert!(LimitSpec::list_from_json(b"[]").unwrap().is_empty());
    for (second, field) in [
        (r#"{"prefix": "198.51.100.1/24", "pps": 1}"#, "[1].prefix"),
        (r#"{"prefix": "198.51.100.0/24"}"#, "[1].pps"),
        (
            r#"{"prefix": "198.51.100.0/24", "pps": 1, "x": 1}"#,
            "[1].x",
        ),
        ("7", "[1]"),
        ("", ""),
        (r#"{"prefix""#, ""),
    ] {
        let text = format!("[{good}, {second}]");
        let error = LimitSpec::list_from_json(text.as_bytes()).unwrap_err();
        assert_eq!(error.field(), field, "{second}");
    }
    let more = format!("[{good}] 1");
    LimitSpec::list_from_json(more.as_bytes()).unwrap_err();
}

#[test]
fn limits_expire_in_order() {
    let mut book = LimitBook::new([], 1);
    for (n, ttl) in [(1, Some(30)), (2, None), (3, Some(10))] {
        set(&mut book, spec(n, 1, ttl), 100);
    }
    assert_eq!(book.next_expiry_ms(), Some(10_100));
    assert!(book.expire(10_099, 9).is_empty());
    assert_eq!(book.expire(30_100, 1), [3]);
    assert_eq!(book.next_expiry_ms(), Some(30_100));
    assert_eq!(book.expire(30_100, 9), [1]);
    assert_eq!(book.next_expiry_ms(), None);
}

#[test]
fn what_expired_is_not_found_before_it_is_taken_out() {
    let mut book = LimitBook::new([], 1);
    for n in 1..=4 {
        set(&mut book, spec(n, 1, (n > 1).then_some(10)), 0);
    }
    assert_eq!(book.expire(10_000, 9), [2, 3, 4]);
    let ids = |book: &LimitBook| book.iter().map(|record| record.id).collect::<Vec<_>>();
    assert_eq!((ids(&book), book.len()), (vec![1], 1));
    assert!(book.get(2).is_none() && book.find(&spec(2, 1, None)).is_none());
    assert_eq!(book.holder(&spec(2, 1, None), 1), Some(2));
    let mut draft = Draft::new(&book, 10_000);
    draft.remove(2, &Precondition::None).unwrap_err();
    let step = draft.set(spec(3, 1, None), &Precondition::Absent);
    assert!(matches!(step, Ok(Step::New(new)) if new.id == 5));

    assert_eq!(book.take_expired(2), [2, 3]);
    assert!(book.has_expired());
    assert_eq!(book.holder(&spec(2, 1, None), 1), None);
    // What is set under the id of one that expired does hold.
    let revived = LimitRecord::clone(book.get(1).unwrap());
    book.put(Arc::new(LimitRecord {
        id: 4,
        spec: spec(4, 1, None),
        ..revived
    }));
    assert_eq!((ids(&book), book.has_expired()), (vec![1, 4], false));
}

#[test]
fn a_query_finds_what_matches_all_of_it() {
    let json = r#"{"prefix": "198.51.100.0/24", "vip": "web", "class": "udp", "bps": 9, "comment": "ticket 7"}"#;
    let record = LimitRecord {
        id: 1,
        revision: 1,
        spec: LimitSpec::from_json(json.as_bytes()).unwrap(),
        created_ms: 0,
        expires_ms: None,
    };
    let all = LimitQuery::default();
    let net = |text: &str| Some(text.parse().unwrap());
    for (query, matches) in [
        (all.clone(), true),
        (
            LimitQuery {
                vip: Some("web".into()),
                ..all.clone()
            },
            true,
        ),
        (
            LimitQuery {
                vip: Some("dns".into()),
                ..all.clone()
            },
            false,
        ),
        (
            LimitQuery {
                class: Some(ClassWord::Syn),
                ..all.clone()
            },
            false,
        ),
        (
            LimitQuery {
                within: net("198.51.0.0/16"),
                ..all.clone()
            },
            true,
        ),
        (
            LimitQuery {
                within: net("198.51.100.0/25"),
                ..all.clone()
            },
            false,
        ),
        (
            LimitQuery {
                covers: net("198.51.100.7/32"),
                ..all.clone()
            },
            true,
        ),
        (
            LimitQuery {
                covers: net("2001:db8::/32"),
                ..all.clone()
            },
            false,
        ),
        (
            LimitQuery {
                comment: Some("7".into()),
                ..all.clone()
            },
            true,
        ),
        (
            LimitQuery {
                comment: Some("ticket".into()),
                vip: Some("dns".into()),
                ..all
            },
            false,
        ),
    ] {
        assert_eq!(query.matches(&record), matches, "{query:?}");
    }
}
