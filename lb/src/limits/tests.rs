//! That the store loses nothing which was answered, and says so when a file did.

use std::{fs, time::Instant};

use super::{LimitSpec, LimitStore, StoreError};

fn spec(n: u32, pps: u64, ttl_seconds: Option<u64>) -> LimitSpec {
    let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
    let json = format!(r#"{{"prefix": "{address}", "pps": {pps}}}"#);
    LimitSpec {
        ttl_seconds,
        ..LimitSpec::from_json(json.as_bytes()).unwrap()
    }
}

fn content(store: &LimitStore) -> Vec<(u64, u64)> {
    let figures = |record: &super::LimitRecord| (record.id, record.spec.pps.unwrap());
    store.iter().map(figures).collect()
}

#[test]
fn a_restart_keeps_limits_and_never_gives_an_id_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, corruption) = LimitStore::open(directory.path(), 100).unwrap();
    assert_eq!(corruption, None);
    for n in 1..=3 {
        assert_eq!(store.set(spec(n, 10, None), 100).unwrap().id, u64::from(n));
    }
    let again = store.set(spec(2, 20, Some(50)), 200).unwrap();
    assert_eq!(
        (again.id, again.created, again.expires),
        (2, 100, Some(250))
    );
    store.remove(&[3]).unwrap();
    let conflict = store.replace(1, spec(2, 1, None), 300).unwrap_err();
    assert!(matches!(conflict, StoreError::Conflict { id: 2 }));
    store.replace(1, spec(9, 90, None), 300).unwrap();
    for _ in 0..2 {
        let (reopened, corruption) = LimitStore::open(directory.path(), 400).unwrap();
        assert_eq!(corruption, None);
        assert_eq!(content(&reopened), [(1, 90), (2, 20)]);
        store = reopened;
    }
    // Also after the lines that used the ids are gone.
    for round in 0..2_000 {
        store.set(spec(2, round + 1, None), 500).unwrap();
    }
    let text = fs::read_to_string(directory.path().join("limits.jsonl")).unwrap();
    assert!(text.lines().count() < 1_500, "history is dropped");
    let (mut store, _) = LimitStore::open(directory.path(), 600).unwrap();
    assert_eq!(store.set(spec(4, 1, None), 600).unwrap().id, 4);
}

#[test]
fn limits_expire_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = LimitStore::open(directory.path(), 0).unwrap();
    store
        .set_all(
            vec![spec(1, 1, Some(30)), spec(2, 1, None), spec(3, 1, Some(10))],
            100,
        )
        .unwrap();
    assert_eq!(store.next_expiry(), Some(110));
    assert!(store.expired(109).is_empty());
    assert_eq!(store.expired(130), [3, 1]);
    store.remove(&[3]).unwrap();
    store.set(spec(1, 1, None), 120).unwrap();
    assert_eq!(store.next_expiry(), None);
}

#[test]
fn a_file_torn_at_any_byte_gives_what_stands_before() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = LimitStore::open(directory.path(), 1_000).unwrap();
    for n in 1..=4 {
        store.set(spec(n, u64::from(n), None), 1_000).unwrap();
    }
    store.remove(&[2]).unwrap();
    let whole = fs::read(directory.path().join("limits.jsonl")).unwrap();
    let states: [&[(u64, u64)]; 7] = [
        &[],
        &[],
        &[(1, 1)],
        &[(1, 1), (2, 2)],
        &[(1, 1), (2, 2), (3, 3)],
        &[(1, 1), (2, 2), (3, 3), (4, 4)],
        &[(1, 1), (3, 3), (4, 4)],
    ];
    for cut in 0..=whole.len() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.jsonl");
        fs::write(&file, &whole[..cut]).unwrap();
        let (mut store, corruption) = LimitStore::open(directory.path(), 2_000).unwrap();
        let ends_line = |at: &usize| whole.get(*at) == Some(&b'\n');
        let complete = (0..cut).chain(Some(cut)).filter(ends_line).count();
        assert_eq!(content(&store), states[complete], "cut at {cut}");
        let at_a_line = cut > 0 && (whole[cut - 1] == b'\n' || ends_line(&cut));
        assert_eq!(corruption.is_none(), at_a_line, "cut at {cut}");
        if let Some(corruption) = corruption {
            assert_eq!(fs::read(&corruption.aside).unwrap(), whole[..cut]);
            assert_eq!(store.set(spec(7, 7, None), 2_000).unwrap().id, 2_000);
        } else {
            store.set(spec(7, 7, None), 2_000).unwrap();
        }
        let (reopened, corruption) = LimitStore::open(directory.path(), 3_000).unwrap();
        assert_eq!(corruption, None);
        assert_eq!(content(&reopened), content(&store));
    }
}

#[test]
fn a_line_that_rotted_costs_only_itself() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("limits.jsonl");
    let (mut store, _) = LimitStore::open(directory.path(), 1_000).unwrap();
    for n in 1..=3 {
        store.set(spec(n, u64::from(n), None), 1_000).unwrap();
    }
    let rotten = fs::read_to_string(&file)
        .unwrap()
        .replace("\"id\":2", "\"id\":~");
    fs::write(&file, rotten).unwrap();
    let (store, corruption) = LimitStore::open(directory.path(), 2_000).unwrap();
    assert_eq!(corruption.unwrap().unreadable_lines, 1);
    assert_eq!(content(&store), [(1, 1), (3, 3)]);
}

#[test]
fn a_hundred_thousand_limits_are_written_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = LimitStore::open(directory.path(), 0).unwrap();
    let specs = (0..100_000).map(|n| spec(n, 1, Some(60))).collect();
    let start = Instant::now();
    store.set_all(specs, 0).unwrap();
    println!("set: {:?}", start.elapsed());
    let start = Instant::now();
    let (reopened, _) = LimitStore::open(directory.path(), 0).unwrap();
    println!("opened: {:?}", start.elapsed());
    assert_eq!(reopened.len(), 100_000);
    assert!(start.elapsed().as_secs() < 10);
}
