//! The tables against a model that knows nothing of tables, read the way packets read them.
#![expect(
    clippy::cast_possible_truncation,
    reason = "hashes and random numbers are cut on purpose"
)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use bytemuck::Zeroable;
use proptest::prelude::*;
use sluice_ebpf::{
    abi::{SOURCES_V4, SOURCES_V6, Settings},
    exact,
    sources::{self, NUMBER, SPARSE, Sparse, UNIT_WORDS, V6_LENGTHS, V6_LISTS, V6_WAYS, WORD},
    vip,
};

use ipnet::IpNet;

use super::*;
use crate::{
    dataplane::{
        Cells,
        prefix::{mapped_bits, words_of},
        shared::Shared,
    },
    sources::Members,
};

const KEY: [u64; 4] = [0x1234_5678_9abc_def1, 77, 0x5555_aaaa_3333_cccc, 99];

/// The tables, and what packets see of them.
#[derive(Clone)]
struct Memory {
    settings: Shared<AtomicU32>,
    filter: Shared<AtomicU32>,
    v4: Shared<AtomicU32>,
    blocks: Shared<AtomicU64>,
    filter_v6: Shared<AtomicU32>,
    lists: Shared<AtomicU64>,
    v6: Shared<AtomicU64>,
    classes: Shared<AtomicU64>,
    /// How many lookups ended.
    seen: Arc<AtomicU64>,
    waits: bool,
}

impl Memory {
    fn new(units: usize, buckets: usize) -> Self {
        Self {
            settings: Shared::<AtomicU32>::zeroed(size_of::<Settings>() / 4),
            filter: Shared::<AtomicU32>::zeroed(exact::V4_FILTER_WORDS as usize),
            v4: Shared::<AtomicU32>::zeroed(V4_ENTRIES as usize),
            blocks: Shared::<AtomicU64>::zeroed(units * 4),
            filter_v6: Shared::<AtomicU32>::zeroed(sources::V6_FILTER as usize),
            lists: Shared::<AtomicU64>::zeroed(V6_LISTS as usize * V6_LENGTHS / 8),
            v6: Shared::<AtomicU64>::zeroed(buckets * V6_WAYS),
            classes: Shared::<AtomicU64>::zeroed(CLASSES as usize),
            seen: Arc::default(),
            waits: false,
        }
    }

    fn tables(&self) -> SourceTables {
        let (seen, waits) = (self.seen.clone(), self.waits);
        SourceTables {
            settings: Box::new(self.settings.clone()),
            filter: Box::new(self.filter.clone()),
            v4: Box::new(self.v4.clone()),
            blocks: Box::new(self.blocks.clone()),
            filter_v6: Box::new(self.filter_v6.clone()),
            lists: Box::new(self.lists.clone()),
            v6: Box::new(self.v6.clone()),
            classes: Box::new(self.classes.clone()),
            grace: Box::new(move || {
                let before = seen.load(Ordering::SeqCst);
                // Nobody reads yet before the first lookup ended.
                while waits && before > 0 && seen.load(Ordering::SeqCst) < before + 2 {
                    std::thread::yield_now();
                }
            }),
        }
    }

    fn sources(&self) -> Sources {
        Sources::adopt(self.tables(), KEY, BTreeMap::new(), Found::Nothing).0
    }

    /// The sets that an address is in, step by step as `kernel/sources.rs` finds them.
    fn sets_of(&self, source: IpAddr) -> u64 {
        let at = std::mem::offset_of!(Settings, sources) / 4;
        let has = if source.is_ipv6() {
            SOURCES_V6
        } else {
            SOURCES_V4
        };
        if self.settings.get(at) & has == 0 {
            return 0;
        }
        let class = match source {
            IpAddr::V4(address) => self.class_v4(address.to_bits()),
            IpAddr::V6(address) => self.class_v6(words_of(address.to_bits())),
        };
        if class == 0 {
            0
        } else {
            self.classes.get(class)
        }
    }

    fn class_v4(&self, address: u32) -> usize {
        let index = exact::v4_index(address);
        let (word, bit) = exact::v4_filter(index);
        if self.filter.get(word as usize) & bit == 0 {
            return 0;
        }
        let entry = self.v4.get(index as usize);
        let (number, low) = ((entry & NUMBER) as usize, address as u8);
        match entry & WORD {
            0 => sources::class_in_entry(entry, low) as usize,
            WORD => sources::class_in_word(self.blocks.get(number), low) as usize,
            SPARSE => {
                let words: [u64; UNIT_WORDS] =
                    std::array::from_fn(|at| self.blocks.get(number * UNIT_WORDS + at));
                let block: Sparse = bytemuck::cast(words);
                usize::from(block.classes[block.choice(low) as usize])
            }
            _ => {
                let word = self.blocks.get(number * UNIT_WORDS + usize::from(low) / 4);
                (word >> (low % 4 * 16) & 0xffff) as usize
            }
        }
    }

    fn class_v6(&self, source: [u64; 2]) -> usize {
        let settings = Settings {
            local_key: KEY,
            ..Settings::zeroed()
        };
        let filter = exact::v6_filter_index(&settings, source) as usize;
        let list = self.filter_v6.get(filter) as usize;
        if list == 0 {
            return 0;
        }
        for at in 0..V6_LENGTHS {
            let length = (self.lists.get(list * 4 + at / 8) >> (at % 8 * 8)) as u8;
            if length == 0 {
                return 0;
            }
            let length = length - 1;
            let hash = sources::v6_hash(&settings, vip::masked(source, length, true), length);
            let mask = (self.v6.len() / V6_WAYS - 1) as u32;
            for bucket in sources::v6_buckets(hash, mask) {
                for way in 0..V6_WAYS {
                    let entry = self.v6.get(bucket as usize * V6_WAYS + way);
                    if sources::v6_matches(entry, hash) {
                        return usize::from(entry as u16);
                    }
                }
            }
        }
        0
    }
}

/// The same from lists of prefixes alone.
fn expected(model: &BTreeMap<u8, BTreeSet<IpNet>>, source: IpAddr) -> u64 {
    model
        .iter()
        .filter(|(_, set)| set.iter().any(|prefix| prefix.contains(&source)))
        .fold(0, |bits, (number, _)| bits | 1 << number)
}

fn a_prefix() -> impl Strategy<Value = IpNet> {
    let v4 = (
        prop::sample::select(vec![0x0a00_0000u32, 0x0a01_0280, 0xffff_ffff, 0]),
        0u32..600,
        prop_oneof![1 => 0u8..24, 5 => 24u8..=32],
    )
        .prop_map(|(base, low, length)| {
            IpNet::new(Ipv4Addr::from_bits(base ^ low).into(), length).unwrap()
        });
    let v6 = (
        prop::sample::select(vec![0x2001_0db8u128 << 96, 0x2001_0db9 << 96 | 7 << 64, 0]),
        0u128..4,
        0u8..=128,
    )
        .prop_map(|(base, low, length)| {
            let bits = base ^ low << 64 ^ low;
            IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap()
        });
    prop_oneof![v4, v6].prop_map(|prefix| prefix.trunc())
}

#[derive(Clone, Debug)]
enum Operation {
    Replace(u8, Vec<IpNet>),
    Remove(u8),
}

fn an_operation() -> impl Strategy<Value = Operation> {
    let fixed = 1u8..8;
    prop_oneof![
        3 => (fixed.clone(), prop::collection::vec(a_prefix(), 0..12)).prop_map(|(number, prefixes)| Operation::Replace(number, prefixes)),
        1 => fixed.prop_map(Operation::Remove),
    ]
}

fn edges(model: &BTreeMap<u8, BTreeSet<IpNet>>) -> Vec<IpAddr> {
    let around = |prefix: &IpNet| {
        let family = |bits: u128| match prefix {
            IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        };
        [
            prefix.network(),
            prefix.broadcast(),
            family(mapped_bits(prefix.network()).wrapping_sub(1)),
            family(mapped_bits(prefix.broadcast()).wrapping_add(1)),
        ]
    };
    model.values().flatten().flat_map(around).collect()
}

fn apply(sources: &mut Sources, model: &mut BTreeMap<u8, BTreeSet<IpNet>>, operation: Operation) {
    match operation {
        Operation::Replace(number, prefixes) => {
            let members = Members::of(prefixes.iter().copied());
            let done = sources.replace(number, Some(Arc::new(members)));
            if done.is_ok() {
                model.insert(number, prefixes.into_iter().collect());
            }
        }
        Operation::Remove(number) => {
            sources.replace(number, None).unwrap();
            model.remove(&number);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn every_address_is_in_just_the_sets_that_hold_it(
        operations in prop::collection::vec(an_operation(), 1..12),
        random in prop::collection::vec(any::<u128>(), 8),
        units in prop::sample::select(vec![64usize, 4096]),
    ) {
        let memory = Memory::new(units, 64);
        let mut sources = memory.sources();
        let mut model = BTreeMap::new();
        let mut seen = Vec::new();
        for operation in operations {
            apply(&mut sources, &mut model, operation);
            seen.extend(edges(&model));
            for bits in &random {
                seen.extend([IpAddr::V4(Ipv4Addr::from_bits((bits >> 96) as u32)), IpAddr::V6(Ipv6Addr::from_bits(*bits))]);
            }
            for source in &seen {
                prop_assert_eq!(memory.sets_of(*source), expected(&model, *source), "{}", source);
            }
        }
        prop_assert!(sources.audit(KEY), "nobody else changed anything");
        let sets = sources.sets.clone();
        let (adopted, refused) = Sources::adopt(memory.tables(), KEY, sets, Found::Held);
        prop_assert!(refused.is_empty());
        prop_assert_eq!(adopted.used_words, sources.used_words, "a restart finds all as it is");
        for source in &seen {
            prop_assert_eq!(memory.sets_of(*source), expected(&model, *source), "{} after a restart", source);
        }
    }
}

fn fixed(prefixes: &[&str]) -> Option<Arc<Members>> {
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap());
    Some(Arc::new(Members::of(prefixes)))
}

/// What is in the old set and in the new one is never out, and what is in neither is never in.
#[test]
fn a_set_is_replaced_without_a_wrong_verdict() {
    // Few units, so that they are used again and again.
    let memory = Memory {
        waits: true,
        ..Memory::new(96, 64)
    };
    let mut sources = memory.sources();
    let one = [
        "10.0.0.0/8",
        "192.0.2.7/32",
        "192.0.2.96/27",
        "2001:db8::/32",
        "2001:db9:1::/48",
    ];
    let other = [
        "10.0.0.0/9",
        "10.128.0.0/9",
        "192.0.2.0/28",
        "192.0.2.100/30",
        "192.0.2.32/32",
        "192.0.2.34/32",
        "192.0.2.36/32",
        "192.0.2.38/32",
        "192.0.2.40/32",
        "192.0.2.42/32",
        "192.0.2.44/32",
        "2001:db8::/33",
        "2001:db8:8000::/33",
        "2001:db9:1:2::/64",
        "2001:db9::1/128",
    ];
    sources.replace(4, fixed(&one)).unwrap();
    sources
        .replace(5, fixed(&["192.0.2.0/24", "2001:db9::/32", "10.1.2.0/23"]))
        .unwrap();
    let always = [
        "10.1.2.3",
        "10.200.0.1",
        "192.0.2.7",
        "192.0.2.101",
        "2001:db8::1",
        "2001:db8:8000::1",
        "2001:db9:1:2::3",
    ];
    let never = [
        "11.0.0.1",
        "192.0.2.33",
        "192.0.2.255",
        "2001:dba::1",
        "2001:db9:2::1",
    ];
    // In a set that stays, whatever other sets they are in.
    let in_fifth = ["192.0.2.7", "10.1.2.3", "2001:db9:1:2::3", "2001:db9:2::1"];
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (memory, stop) = (memory, stop.clone());
        let parse = |list: &[&str]| {
            list.iter()
                .map(|address| address.parse().unwrap())
                .collect::<Vec<IpAddr>>()
        };
        let (always, never, in_fifth) = (parse(&always), parse(&never), parse(&in_fifth));
        std::thread::spawn(move || {
            let mut wrong = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for source in &always {
                    if memory.sets_of(*source) >> 4 & 1 == 0 {
                        wrong.push(*source);
                    }
                    memory.seen.fetch_add(1, Ordering::SeqCst);
                }
                for source in &never {
                    if memory.sets_of(*source) >> 4 & 1 != 0 {
                        wrong.push(*source);
                    }
                    memory.seen.fetch_add(1, Ordering::SeqCst);
                }
                for source in &in_fifth {
                    if memory.sets_of(*source) >> 5 & 1 == 0 {
                        wrong.push(*source);
                    }
                    memory.seen.fetch_add(1, Ordering::SeqCst);
                }
            }
            wrong
        })
    };
    for turn in 0..500 {
        sources
            .replace(4, fixed(if turn % 2 == 0 { &other } else { &one }))
            .unwrap();
        let comes_and_goes = ["10.1.2.0/25", "2001:db9:1:2::/96", "2001:db9:2::/64"];
        sources.replace(6, fixed(&comes_and_goes)).unwrap();
        sources.replace(6, None).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    assert_eq!(reader.join().unwrap(), Vec::<IpAddr>::new());
}

#[test]
fn what_has_no_room_is_refused_and_changes_nothing() {
    let memory = Memory::new(32, 16);
    let mut sources = memory.sources();
    sources
        .replace(4, fixed(&["192.0.2.0/28", "2001:db8::/32"]))
        .unwrap();
    // 40 blocks, where there is room for 32.
    let many: Vec<IpNet> = (0..40)
        .map(|n| IpNet::new(Ipv4Addr::new(10, 0, n, 0).into(), 28).unwrap())
        .collect();
    let too_many = Arc::new(Members::of(many));
    assert_eq!(sources.replace(4, Some(too_many)), Err(SourceError::Blocks));
    let many: Vec<IpNet> = (0..100u128)
        .map(|n| IpNet::new(Ipv6Addr::from_bits(0x2001_0db8 << 96 | n).into(), 128).unwrap())
        .collect();
    let too_many = Arc::new(Members::of(many));
    assert_eq!(sources.replace(5, Some(too_many)), Err(SourceError::V6Full));
    let lengths: Vec<_> = (33..=80u8)
        .map(|length| {
            // None of them covers another: ones, and a zero at the end.
            let ones = u32::from(length) - 33;
            let first = 0x2001_0dba << 96 | ((1u128 << ones) - 1) << (96 - ones);
            IpNet::new(Ipv6Addr::from_bits(first).into(), length)
                .unwrap()
                .trunc()
        })
        .collect();
    let too_many = Arc::new(Members::of(lengths));
    assert_eq!(
        sources.replace(5, Some(too_many)),
        Err(SourceError::Lengths)
    );
    for (source, sets) in [
        ("192.0.2.1", 16),
        ("2001:db8::1", 16),
        ("10.0.0.1", 0),
        ("10.0.39.1", 0),
        ("2001:db8:ffff::", 16),
    ] {
        assert_eq!(memory.sets_of(source.parse().unwrap()), sets, "{source}");
    }
    assert_eq!(sources.used_words, 4);
}

#[test]
fn an_audit_finds_what_others_changed_and_puts_it_right() {
    let memory = Memory::new(64, 16);
    let mut sources = memory.sources();
    sources
        .replace(4, fixed(&["10.0.0.0/8", "192.0.2.0/28", "2001:db8::/32"]))
        .unwrap();
    let all = ["10.1.2.3", "192.0.2.1", "2001:db8::1"];
    let round = |sources: &mut Sources| (0..PARTS).filter(|_| !sources.audit(KEY)).count() == 0;
    assert!(round(&mut sources));
    let mut spoilt = memory.clone();
    spoilt.v4.set(0x0a_0102, 0);
    spoilt
        .blocks
        .set((memory.v4.get(0xc0_0002) & NUMBER) as usize * 4 + 1, 0);
    for at in 0..spoilt.v6.len() {
        spoilt.v6.set(at, 0);
    }
    spoilt.classes.set(1, 0);
    spoilt.filter.set((0x0a_0102 >> 3) / 32, 0);
    spoilt
        .settings
        .set(std::mem::offset_of!(Settings, sources) / 4, 0);
    assert!(!round(&mut sources));
    for source in all {
        assert_eq!(memory.sets_of(source.parse().unwrap()), 16, "{source}");
    }
    assert!(round(&mut sources));
}

#[test]
fn a_million_prefixes_are_there_within_seconds() {
    let memory = Memory::new(1 << 21, 1 << 16);
    let mut sources = memory.sources();
    let v4 = (0..1_000_000u32)
        .map(|n| n.wrapping_mul(0x9e37_79b1))
        .map(|bits| (bits, bits));
    let v6 = (0..250_000u128).map(|n| {
        let bits = 0x2001 << 112 | (n.wrapping_mul(0x9e37_79b1) & 0xffff_ffff) << 80;
        ipnet::Ipv6Net::new(Ipv6Addr::from_bits(bits), 48).unwrap()
    });
    let begun = Instant::now();
    let members = Arc::new(Members::new(v4.collect(), v6));
    let made = begun.elapsed();
    sources.replace(4, Some(members.clone())).unwrap();
    let written = begun.elapsed();
    println!("members {made:?}, tables {:?}", written - made);
    assert_eq!(
        memory.sets_of(IpAddr::V4(Ipv4Addr::from_bits(0x9e37_79b1))),
        16
    );
    assert!(
        members
            .v6()
            .all(|(bits, _)| memory.sets_of(Ipv6Addr::from_bits(bits).into()) == 16)
    );
    let begun = Instant::now();
    sources.replace(1, fixed(&["192.0.2.0/25"])).unwrap();
    println!("one prefix more {:?}", begun.elapsed());
}
