//! The tables against a model that knows nothing of tables, read the way packets read them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes and random numbers are cut on purpose"
)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

use bytemuck::Zeroable;
use ipnet::IpNet;
use proptest::prelude::*;
use sluice_ebpf::{
    abi::{ANY_VIP, Limiter, MAX_EXACT_LENGTHS, Settings},
    exact, flow, vip,
};

use super::{tree::words_of, *};
use crate::{
    config::Mode,
    dataplane::{prefix::mapped_bits, shared::Shared},
    limits::ClassWord,
};

const KEY: [u64; 4] = [0x1234_5678_9abc_def1, 77, 0x5555_aaaa_3333_cccc, 99];

#[derive(Clone, Copy)]
struct Sizes {
    limits: usize,
    blocks: usize,
    buckets: usize,
}

const SMALL: Sizes = Sizes {
    limits: 513,
    blocks: 64,
    buckets: 256,
};

fn tables(sizes: Sizes) -> ExactTables {
    ExactTables {
        settings: Box::new(vec![0u32; size_of::<Settings>() / 4]),
        v4_filter: Box::new(vec![0u32; exact::V4_FILTER_WORDS as usize]),
        v4: Box::new(vec![0u32; exact::V4_ENTRIES as usize]),
        blocks: Box::new(vec![0u32; sizes.blocks * 256]),
        v6_filter: Box::new(vec![0u32; exact::V6_FILTER_ENTRIES as usize]),
        v6: Box::new(vec![0u64; sizes.buckets * 8]),
        limits: Box::new(vec![0u64; sizes.limits * LIMIT_WORDS]),
    }
}

/// Number of the limit that a packet meets, step by step as `kernel/limits.rs` finds it.
fn meets(tables: &ExactTables, source: IpAddr, vip: u16, class: u8) -> Option<u32> {
    let address = words_of(mapped_bits(source));
    let has = if source.is_ipv6() { EXACT_V6 } else { EXACT_V4 };
    let bits = tables.exact_bits();
    if bits & has == 0 || class == Class::Established as u8 && bits & EXACT_ESTABLISHED == 0 {
        return None;
    }
    let mut next = match source {
        IpAddr::V4(address) => find_v4(tables, address),
        IpAddr::V6(_) => find_v6(tables, address).unwrap_or(0),
    };
    for _ in 0..MAX_CHAIN {
        if next == 0 {
            return None;
        }
        let limit: Limit = bytemuck::cast(tables.limit_words(next));
        if (limit.vip == ANY_VIP || limit.vip == vip) && limit.classes >> class & 1 != 0 {
            return Some(next);
        }
        next = limit.next;
    }
    None
}

fn find_v4(tables: &ExactTables, address: Ipv4Addr) -> u32 {
    let address = address.to_bits();
    let index = exact::v4_index(address);
    let (word, bit) = exact::v4_filter(index);
    if tables.v4_filter.get(word as usize) & bit == 0 {
        return 0;
    }
    let entry = tables.v4.get(index as usize);
    if entry & exact::BLOCK == 0 {
        return entry;
    }
    let at = (entry & !exact::BLOCK) * exact::BLOCK_ENTRIES + (address & 0xff);
    tables.blocks.get(at as usize)
}

fn find_v6(tables: &ExactTables, source: [u64; 2]) -> Option<u32> {
    let settings = Settings {
        local_key: KEY,
        ..Settings::zeroed()
    };
    let filter = exact::v6_filter_index(&settings, source) as usize;
    let lengths = tables.v6_filter.get(filter);
    for at in 0..MAX_EXACT_LENGTHS {
        if lengths >> at & 1 == 0 {
            continue;
        }
        let length = tables.v6_lengths()[at];
        let prefix = vip::masked(source, length, true);
        let hash = exact::v6_hash(&settings, prefix, length);
        let bucket = hash as usize & (tables.bucket_count() - 1);
        for way in 0..exact::V6_WAYS {
            let entry = tables.v6.get(bucket * exact::V6_WAYS + way);
            let limit: Limit = bytemuck::cast(tables.limit_words(entry as u32));
            if (entry >> 32) as u32 == flow::tag(hash) && limit.prefix == prefix {
                return Some(entry as u32);
            }
        }
    }
    None
}

/// The same from the list of limits alone.
fn expected(exact: &ExactLimits, source: IpAddr, vip: u16, class: u8) -> Option<u32> {
    exact
        .iter()
        .filter(|(_, limit)| !limit.ceased && limit.prefix.contains(&source))
        .filter(|(_, limit)| limit.vip == ANY_VIP || limit.vip == vip)
        .filter(|(_, limit)| limit.class.bits() >> class & 1 != 0)
        .max_by_key(|(_, limit)| {
            let is_single = limit.class != ClassWord::All;
            (limit.prefix.prefix_len(), limit.vip != ANY_VIP, is_single)
        })
        .map(|(index, _)| index)
}

fn limit(prefix: &str, vip: u16, class: ClassWord) -> ExactLimit {
    ExactLimit {
        prefix: prefix.parse().unwrap(),
        vip,
        class,
        mode: Mode::Enforce,
        packets: Limiter {
            cost: 5,
            allowance: 50,
        },
        bytes: Limiter::default(),
        ceased: false,
    }
}

fn all(prefix: &str) -> ExactLimit {
    limit(prefix, ANY_VIP, ClassWord::All)
}

/// Everything the tables hold, but not the whole first level: that is looked at by lookups.
fn snapshot(exact: &ExactLimits) -> (Vec<u32>, Vec<u64>) {
    let t = &exact.tables;
    let mut words: Vec<u32> = (0..t.settings.len()).map(|at| t.settings.get(at)).collect();
    words.extend((0..t.blocks.len()).map(|at| t.blocks.get(at)));
    words.extend((0..t.v6_filter.len()).map(|at| t.v6_filter.get(at)));
    words.extend((0..t.v4.len()).step_by(251).map(|at| t.v4.get(at)));
    let mut long: Vec<u64> = (0..t.v6.len()).map(|at| t.v6.get(at)).collect();
    long.extend((0..t.limits.len()).map(|at| t.limits.get(at)));
    (words, long)
}

fn check_lookups(exact: &ExactLimits, random: &[u128]) -> Result<(), TestCaseError> {
    let edges = exact.iter().flat_map(|(_, limit)| {
        let (first, last) = (limit.prefix.network(), limit.prefix.broadcast());
        let before = mapped_bits(first).wrapping_sub(1);
        let after = mapped_bits(last).wrapping_add(1);
        let family = |bits: u128| match first {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        [first, last, family(before), family(after)]
    });
    let random = random.iter().flat_map(|bits| {
        [
            IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32)),
            IpAddr::V6(Ipv6Addr::from_bits(*bits)),
        ]
    });
    for source in edges.chain(random).collect::<Vec<_>>() {
        for vip in [1, 2, 3] {
            for class in 0..5 {
                let (met, wanted) = (
                    meets(&exact.tables, source, vip, class),
                    expected(exact, source, vip, class),
                );
                prop_assert_eq!(met, wanted, "{} vip {} class {}", source, vip, class);
            }
        }
    }
    Ok(())
}

#[derive(Clone, Debug)]
enum Operation {
    Insert(ExactLimit),
    Cease(prop::sample::Index),
    Remove(prop::sample::Index),
    Replace(prop::sample::Index, ExactLimit),
}

fn a_limit() -> impl Strategy<Value = ExactLimit> {
    let v4_length = prop_oneof![
        1 => 0u8..8,
        3 => prop::sample::select(vec![8u8, 16, 20, 23]),
        6 => prop::sample::select(vec![24u8, 25, 28, 31, 32])
    ];
    let v4 = (
        prop::sample::select(vec![0x0a00_0000u32, 0x0a01_0280, 0xffff_ffff]),
        0u32..512,
        v4_length,
    )
        .prop_map(|(base, low, length)| {
            IpNet::new(IpAddr::V4(Ipv4Addr::from_bits(base ^ low)), length).unwrap()
        });
    let v6 = (
        prop::sample::select(vec![0x2001_0db8u128 << 96, 0x2001_0db9 << 96 | 7 << 64]),
        0u128..4,
        prop::sample::select(vec![
            0u8, 12, 16, 17, 25, 31, 32, 33, 40, 47, 48, 56, 63, 64, 65, 96, 127, 128,
        ]),
    )
        .prop_map(|(base, low, length)| {
            let bits = base ^ low << 64 ^ low;
            IpNet::new(IpAddr::V6(Ipv6Addr::from_bits(bits)), length).unwrap()
        });
    let vip = prop::sample::select(vec![1, 2, ANY_VIP]);
    let class = prop::sample::select(ClassWord::ALL.to_vec());
    (prop_oneof![v4, v6], vip, class, 1u64..1000).prop_map(|(prefix, vip, class, cost)| {
        ExactLimit {
            prefix: prefix.trunc(),
            vip,
            class,
            mode: if cost & 1 == 0 {
                Mode::Enforce
            } else {
                Mode::Monitor
            },
            packets: Limiter {
                cost,
                allowance: cost * 10,
            },
            bytes: Limiter::default(),
            ceased: false,
        }
    })
}

fn an_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => a_limit().prop_map(Operation::Insert),
        1 => any::<prop::sample::Index>().prop_map(Operation::Cease),
        2 => any::<prop::sample::Index>().prop_map(Operation::Remove),
        1 => (any::<prop::sample::Index>(), a_limit()).prop_map(|(at, limit)| Operation::Replace(at, limit)),
    ]
}

/// Applies it, and tells whether the tables refused it.
fn apply(exact: &mut ExactLimits, operation: &Operation) -> bool {
    let numbers: Vec<u32> = exact.iter().map(|(index, _)| index).collect();
    match operation {
        Operation::Insert(limit) => exact.insert(*limit).is_err(),
        _ if numbers.is_empty() => false,
        Operation::Cease(at) => {
            exact.cease(*at.get(&numbers));
            false
        }
        Operation::Remove(at) => exact.remove(*at.get(&numbers)).is_err(),
        Operation::Replace(at, limit) => exact.replace(*at.get(&numbers), *limit).is_err(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn packets_meet_the_most_specific_limit(
        operations in prop::collection::vec(an_operation(), 1..120),
        random in prop::collection::vec(any::<u128>(), 20),
    ) {
        let mut exact = ExactLimits::new(tables(SMALL), KEY);
        for (step, operation) in operations.iter().enumerate() {
            apply(&mut exact, operation);
            if step % 20 == 0 {
                check_lookups(&exact, &random)?;
            }
        }
        check_lookups(&exact, &random)?;
        prop_assert!(is_sound(&mut exact));
        // A second daemon finds the tables as the first one left them, and the same limits under the same numbers.
        let acting = exact.iter().filter(|(_, limit)| !limit.ceased);
        let held: Vec<(u32, ExactLimit)> = acting.map(|(index, limit)| (index, *limit)).collect();
        let wanted: Vec<ExactLimit> = held.iter().map(|(_, limit)| *limit).collect();
        let numbers: Vec<_> = held.iter().map(|(index, _)| Ok(*index)).collect();
        let (mut exact, adoption) = ExactLimits::adopt(exact.tables, KEY, &wanted);
        prop_assert!(!adoption.rebuilt);
        prop_assert_eq!(adoption.indices, numbers);
        prop_assert_eq!(exact.len(), wanted.len());
        for operation in &operations {
            apply(&mut exact, operation);
        }
        check_lookups(&exact, &random)?;
        for (index, _) in exact.iter().map(|(index, limit)| (index, *limit)).collect::<Vec<_>>() {
            exact.remove(index).unwrap();
        }
        prop_assert!((0..exact.tables.v4.len()).all(|at| exact.tables.v4.get(at) == 0));
        prop_assert!((0..exact.tables.v6.len()).all(|at| exact.tables.v6.get(at) == 0));
        prop_assert!((0..exact.tables.v6_filter.len()).all(|at| exact.tables.v6_filter.get(at) == 0));
        prop_assert_eq!(exact.tables.exact_bits(), 0);
    }
}

/// Each entry of `setup` fits; the last one is refused and changes nothing.
fn refused(sizes: Sizes, setup: &[ExactLimit], last: ExactLimit) -> ExactError {
    let mut exact = ExactLimits::new(tables(sizes), KEY);
    for limit in setup {
        exact.insert(*limit).unwrap();
    }
    let before = snapshot(&exact);
    let wrong = exact.insert(last).unwrap_err();
    assert!(before == snapshot(&exact), "{wrong}");
    assert_eq!(exact.len(), setup.len());
    wrong
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let tiny = Sizes {
        limits: 3,
        blocks: 1,
        buckets: 1,
    };
    assert_eq!(
        refused(tiny, &[all("10.0.0.0/8"), all("::/0")], all("10.0.0.0/9")),
        ExactError::LimitsFull { most: 2 }
    );
    assert_eq!(
        refused(tiny, &[all("10.0.0.0/25")], all("10.0.1.0/25")),
        ExactError::BlocksFull { most: 1 }
    );
    let bucket = Sizes {
        buckets: 1,
        ..SMALL
    };
    let eight: Vec<_> = (0..8).map(|n| all(&format!("2001:db8:{n}::/48"))).collect();
    assert_eq!(
        refused(bucket, &eight, all("2001:db8:9::/48")),
        ExactError::BucketFull
    );
    assert_eq!(
        refused(bucket, &eight, all("2001:db8:3::/48")),
        ExactError::Taken { index: 4 }
    );
    let lengths: Vec<_> = (0..16)
        .map(|n| all(&format!("2001:db8:{n}::/{}", 48 + n)))
        .collect();
    assert!(matches!(
        refused(SMALL, &lengths, all("2001:db9::/32")),
        ExactError::TooManyLengths { lengths } if lengths.len() == 16
    ));
    let nested: Vec<_> = (17..=32).map(|n| all(&format!("10.0.0.0/{n}"))).collect();
    for prefix in ["10.0.0.0/8", "10.0.0.0/16"] {
        assert_eq!(
            refused(SMALL, &nested, all(prefix)),
            ExactError::TooDeep {
                prefix: "10.0.0.0/32".parse().unwrap()
            }
        );
    }
    for prefix in ["::ffff:10.0.0.0/104", "::/128"] {
        assert!(matches!(
            refused(SMALL, &[], all(prefix)),
            ExactError::Unfit { .. }
        ));
    }
}

#[test]
fn a_change_in_place_keeps_what_packets_wrote() {
    let mut exact = ExactLimits::new(tables(SMALL), KEY);
    let index = exact.insert(all("10.0.0.0/24")).unwrap();
    for word in 8..14 {
        exact.tables.set_limit_word(index, word, word as u64);
    }
    let mut changed = all("10.0.0.0/24");
    changed.packets.cost = 9;
    changed.mode = Mode::Monitor;
    assert_eq!(exact.replace(index, changed), Ok(index));
    let counters = ExactCounters {
        passed_packets: 10,
        passed_bytes: 11,
        dropped_packets: 12,
        dropped_bytes: 13,
    };
    assert_eq!(exact.read(index), Some(counters));
    let words = exact.tables.limit_words(index);
    assert_eq!((words[8], words[9]), (8, 9));
    assert_eq!(ExactLimit::from_words(words), Some((changed, 0)));
    assert_eq!(exact.remove(index), Ok(counters));
    assert_eq!(exact.read(index), None);
    assert_eq!(exact.remove(index), Err(ExactError::Unknown { index }));
}

/// What a whole round of audits finds.
fn is_sound(exact: &mut ExactLimits) -> bool {
    (0..16).all(|_| exact.audit(KEY))
}

/// What may happen to tables that hold [`damaged`]'s limits.
const DAMAGES: [fn(&mut ExactTables); 11] = [
    |t| t.v4.set(10 << 16 | 5, 0),
    |t| t.v4.set(77, exact::BLOCK | 9_999),
    |t| t.blocks.set(7, 1),
    |t| t.v6_filter.set(4, 1),
    |t| t.v6.set(3, 1 << 32 | 1),
    |t| t.set_limit_word(2, LINK, 0),
    |t| t.set_limit_word(9, LINK, u64::MAX),
    |t| t.set_exact_bits(EXACT_V6),
    |t| t.set_exact_bits(t.exact_bits() | EXACT_ESTABLISHED << 1),
    |t| t.set_v6_lengths([0; MAX_EXACT_LENGTHS]),
    |t| {
        let mut lengths = t.v6_lengths();
        lengths[MAX_EXACT_LENGTHS - 1] = 7;
        t.set_v6_lengths(lengths);
    },
];

fn damaged(damage: fn(&mut ExactTables)) -> ([ExactLimit; 4], ExactLimits) {
    let limits = [
        all("10.0.0.0/8"),
        all("10.0.0.7/32"),
        all("2001:db8::/32"),
        all("2001:db8:1::/48"),
    ];
    let mut exact = ExactLimits::new(tables(SMALL), KEY);
    for limit in limits {
        exact.insert(limit).unwrap();
    }
    exact.tables.set_limit_word(3, 10, 42);
    damage(&mut exact.tables);
    (limits, exact)
}

#[test]
fn an_audit_finds_damage_and_a_rebuild_mends_it() {
    assert!(is_sound(&mut damaged(|_| {}).1));
    for (case, damage) in DAMAGES.into_iter().enumerate() {
        let (limits, mut exact) = damaged(damage);
        assert!(!is_sound(&mut exact), "damage {case}");
        assert_eq!(exact.rebuild(KEY), [], "damage {case}");
        assert!(is_sound(&mut exact), "damage {case}");
        assert_eq!(exact.len(), limits.len());
        assert_eq!(exact.get(2), Some(&limits[1]), "damage {case}");
        assert_eq!(exact.read(3).unwrap().passed_packets, 42, "damage {case}");
        check_lookups(&exact, &[0, 10 << 120, 10 << 120 | 7 << 96]).unwrap();
        let (_, adoption) = ExactLimits::adopt(exact.tables, KEY, &limits);
        assert!(!adoption.rebuilt, "damage {case}");
    }
}

#[test]
fn what_ceased_is_no_damage_and_a_later_daemon_takes_it_out() {
    let (limits, mut exact) = damaged(|_| {});
    exact.cease(2);
    let word = exact.tables.limit_words(2)[LINK];
    assert!(is_sound(&mut exact));
    assert_eq!(exact.rebuild(KEY), []);
    assert_eq!(exact.tables.limit_words(2)[LINK], word);
    check_lookups(&exact, &[10 << 120 | 7 << 96]).unwrap();

    let stays = [limits[0], limits[2], limits[3]];
    let (mut later, adoption) = ExactLimits::adopt(exact.tables, KEY, &stays);
    assert!(!adoption.rebuilt && is_sound(&mut later));
    assert_eq!(later.len(), stays.len());
    // Somebody else's doing.
    let next = later.next(1);
    let ceased = ExactLimit {
        ceased: true,
        ..limits[0]
    };
    later.tables.set_limit_word(1, LINK, ceased.link_word(next));
    assert!(!is_sound(&mut later));
}

#[test]
fn tables_that_contradict_themselves_are_made_anew() {
    for (case, damage) in DAMAGES.into_iter().enumerate() {
        let (wanted, exact) = damaged(damage);
        let (exact, adoption) = ExactLimits::adopt(exact.tables, KEY, &wanted);
        assert!(adoption.rebuilt, "damage {case}");
        assert!(adoption.indices.iter().all(Result::is_ok), "damage {case}");
        assert_eq!(exact.read(3).unwrap().passed_packets, 42, "damage {case}");
        check_lookups(&exact, &[0, 10 << 120, 10 << 120 | 7 << 96]).unwrap();
        let (_, again) = ExactLimits::adopt(exact.tables, KEY, &wanted);
        assert!(!again.rebuilt, "damage {case}");
    }
}

#[test]
fn adoption_makes_of_the_tables_what_is_wanted() {
    let mut exact = ExactLimits::new(tables(SMALL), KEY);
    for prefix in ["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"] {
        exact.insert(all(prefix)).unwrap();
    }
    let wanted = [all("192.0.2.0/24"), all("10.1.0.0/16"), all("10.1.0.0/16")];
    let (exact, adoption) = ExactLimits::adopt(exact.tables, KEY, &wanted);
    assert!(!adoption.rebuilt);
    assert_eq!(adoption.indices[1], Ok(2));
    assert_eq!(adoption.indices[2], Err(ExactError::Taken { index: 2 }));
    assert!(adoption.indices[0].is_ok());
    assert_eq!(exact.len(), 2);
    check_lookups(
        &exact,
        &[10 << 120, 10 << 120 | 1 << 112, 0xc000_0207 << 96],
    )
    .unwrap();
}

/// A reader beside the writer: a source whose /128 limit stays always meets that one or, while bits move, none.
#[test]
fn packets_never_meet_a_wrong_limit_while_lengths_change() {
    let settings = Shared::<AtomicU32>::zeroed(size_of::<Settings>() / 4);
    let filter = Shared::<AtomicU32>::zeroed(exact::V6_FILTER_ENTRIES as usize);
    let v6 = Shared::<AtomicU64>::zeroed(256 * 8);
    let limits = Shared::<AtomicU64>::zeroed(64 * LIMIT_WORDS);
    let shared = || ExactTables {
        settings: Box::new(settings.clone()),
        v4_filter: Box::new(vec![0u32; exact::V4_FILTER_WORDS as usize]),
        v4: Box::new(vec![0u32; exact::V4_ENTRIES as usize]),
        blocks: Box::new(vec![0u32; 256]),
        v6_filter: Box::new(filter.clone()),
        v6: Box::new(v6.clone()),
        limits: Box::new(limits.clone()),
    };
    let mut exact = ExactLimits::new(shared(), KEY);
    let stays = exact.insert(all("2001:db8::7/128")).unwrap();
    exact.insert(all("2001:db8::/32")).unwrap();
    let seen = shared();
    let stop = &AtomicU32::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let source: IpAddr = "2001:db8::7".parse().unwrap();
            let (mut met, mut missed) = (0u64, 0u64);
            while stop.load(Ordering::Relaxed) == 0 {
                match meets(&seen, source, 1, 0) {
                    None => missed += 1,
                    Some(index) => {
                        assert_eq!(index, stays);
                        met += 1;
                    }
                }
            }
            (met, missed)
        });
        for round in 0..200u16 {
            let length = 33 + round % 90;
            let index = exact.insert(all(&format!("2001:db8::/{length}"))).unwrap();
            exact.remove(index).unwrap();
        }
        stop.store(1, Ordering::Relaxed);
        let (met, missed) = reader.join().unwrap();
        println!("met {met}, missed {missed}");
        assert!(met > 0);
    });
}

#[test]
fn a_hundred_thousand_limits_are_inserted_at_once() {
    let mut exact = ExactLimits::new(
        tables(Sizes {
            limits: 1 << 17,
            blocks: 1 << 17,
            buckets: 1 << 15,
        }),
        KEY,
    );
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let limits: Vec<ExactLimit> = (0..100_000)
        .map(|_| {
            let address = Ipv4Addr::from_bits((random() >> 32) as u32);
            let length = 24 + (random() >> 32) as u8 % 9;
            let prefix = IpNet::new(address.into(), length).unwrap().trunc();
            ExactLimit {
                prefix,
                ..all("10.0.0.0/8")
            }
        })
        .collect();
    let start = Instant::now();
    for limit in &limits {
        if let Err(wrong) = exact.insert(*limit) {
            assert!(matches!(wrong, ExactError::Taken { .. }), "{wrong}");
        }
    }
    println!("{} inserted in {:?}", exact.len(), start.elapsed());
    assert!(start.elapsed().as_secs() < 5);
    for limit in limits.iter().step_by(101) {
        let source = limit.prefix.broadcast();
        assert_eq!(
            meets(&exact.tables, source, 1, 0),
            expected(&exact, source, 1, 0)
        );
    }
    let start = Instant::now();
    let (mut exact, adoption) = ExactLimits::adopt(exact.tables, KEY, &limits);
    println!("adopted in {:?}", start.elapsed());
    assert!(!adoption.rebuilt);
    let numbers: Vec<u32> = adoption.indices.into_iter().flatten().collect();
    let start = Instant::now();
    for number in &numbers {
        exact.cease(*number);
    }
    println!("{} ceased in {:?}", numbers.len(), start.elapsed());
    let start = Instant::now();
    for number in numbers {
        exact.remove(number).unwrap();
    }
    println!("removed in {:?}", start.elapsed());
    assert!(exact.is_empty());
}
