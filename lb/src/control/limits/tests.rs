//! What is between the time of many limits and the last of them being taken out.

use super::*;
use crate::{book::Precondition, control::fake::Fake, limits::Draft};

const MANY: u64 = 2_000;

fn record(id: u64, expires_ms: Option<u64>) -> LimitRecord {
    let json = format!(r#"{{"prefix": "2001:db8::{id:x}", "pps": 1}}"#);
    LimitRecord {
        id,
        revision: 1,
        spec: LimitSpec::from_json(json.as_bytes()).unwrap(),
        created_ms: 0,
        expires_ms,
    }
}

/// One that stays, and many of which the first have been taken out since they expired.
fn expiring(plane: &mut Fake) -> Limits {
    let end = now_ms() + 300;
    let stays = std::iter::once(record(1, None));
    let book = LimitBook::new(stays.chain((2..=MANY).map(|id| record(id, Some(end)))), 1);
    let (mut limits, warnings) = Limits::adopt(book, plane, Events::new());
    assert_eq!((warnings, plane.limits().len()), (Vec::new(), 2_000));
    while now_ms() < end {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(limits.expire(plane));
    limits
}

fn set(limits: &mut Limits, plane: &mut Fake, spec: LimitSpec) -> u64 {
    let step = Draft::new(limits.book(), now_ms()).set(spec, &Precondition::Absent);
    let step = step.unwrap();
    limits.take(&step, plane).unwrap();
    step.id()
}

#[test]
fn what_expired_is_nowhere_before_it_is_taken_out() {
    let mut plane = Fake::default();
    let mut limits = expiring(&mut plane);
    assert_eq!(plane.limits(), [record(1, None).spec]);
    let query = LimitQuery {
        most: 10,
        ..LimitQuery::default()
    };
    let page = limits.page(&query, &plane);
    assert_eq!((page.items.len(), page.next), (1, None));
    assert!(matches!(
        limits.get(MANY, &plane),
        Err(Refused::NotFound(_))
    ));
    assert_eq!(limits.counts(&plane).len(), 1);

    let again = set(&mut limits, &mut plane, record(MANY, None).spec);
    assert_eq!(again, MANY + 1);
    assert_eq!(limits.get(again, &plane).unwrap().record.id, again);
    let mut forgotten = limits.corrections().len();
    while limits.expire(&mut plane) {
        forgotten += limits.corrections().len();
    }
    forgotten += limits.corrections().len();
    assert_eq!(forgotten as u64, MANY - 1);
    assert_eq!(limits.book().len(), 2);
    assert_eq!((plane.limits().len(), plane.limit_rows()), (2, 2));
}

#[test]
fn what_expired_makes_room() {
    let mut plane = Fake::default();
    let mut limits = expiring(&mut plane);
    plane.make_room_for(Some(plane.limit_rows()));
    for n in 1..=600 {
        set(&mut limits, &mut plane, record(MANY + n, None).spec);
    }
    assert_eq!(plane.limits().len(), 601);
}
