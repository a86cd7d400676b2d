//! The program, loaded with the test's world, and run on single frames.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    ops::Sub,
    sync::atomic::{AtomicUsize, Ordering},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use bytemuck::Zeroable;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use sluice::{
    cookie,
    dataplane::{RuleInForce, RuleMaps, SourceCounts, SourceMaps, SourceSet},
    objects,
};
use sluice_ebpf::{
    abi::{
        AddressEntry, Backend, Challenge, DROP_REASONS, DropReason, Limit, NO_BACKEND, NO_VIP,
        Policy, SKETCH_PAGE_SHIFT, SLOTS_PER_WORD, Service as Entry, Settings, Vip, maps,
    },
    sanity::ENFORCED_BY_DEFAULT,
};

use crate::{
    pool::Loaded,
    vip_index::Index,
    world::{self, INGRESS, Service, backend},
};

/// Slots of each VIP's lookup table.
pub(crate) const SLOTS: u32 = 64;
/// Of epochs of challenges: a minute or more.
pub(crate) const EPOCH_SHIFT: u32 = 14;
const SKETCH_CELLS: u32 = 1 << 16;
const SOURCE_BUCKETS: u32 = 1 << 8;
const FLOW_BUCKETS: u32 = 1 << 17;
const MAX_FRAME: usize = 4096;
const HZ: u32 = 250;

/// A loaded program of its own, attached to nothing.
pub(crate) struct Rig {
    ebpf: Loaded,
    pub(crate) services: Vec<Service>,
    pub(crate) settings: Settings,
    rules: Option<RuleMaps>,
    sources: Option<SourceMaps>,
}

/// What the program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) action: Action,
    pub(crate) frame: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Drop,
    Pass,
    Tx,
    Redirect,
}

impl Rig {
    pub(crate) fn new() -> Self {
        stay_on_one_cpu();
        Self::of(Loaded::any(|| load(EPOCH_SHIFT)))
    }

    /// The same, with epochs of challenges of so many jiffies, as a shift.
    pub(crate) fn with_epochs(shift: u32) -> Self {
        stay_on_one_cpu();
        Self::of(Loaded::only(load(shift)))
    }

    fn of(ebpf: Loaded) -> Self {
        let mut rig = Self {
            ebpf,
            services: world::services(),
            settings: Settings::zeroed(),
            rules: None,
            sources: None,
        };
        rig.fill();
        rig
    }

    fn fill(&mut self) {
        let index = Index::new(&self.services);
        for (slot, address) in index.addresses {
            self.put::<AddressEntry>(maps::ADDRESSES, slot, address);
        }
        for (slot, service) in index.services {
            self.put::<Entry>(maps::SERVICES, slot, service);
        }
        for (number, service) in (1..).zip(self.services.clone()) {
            self.set_table(number, 0, &service.backends);
            self.put::<Vip>(maps::VIPS, number.into(), first_vip(number, &service));
        }
        for (number, backend) in (0..).zip(world::backends()) {
            self.put::<Backend>(maps::BACKENDS, number, backend);
        }
        self.settings = Settings {
            flow_key: [
                0x0123_4567_89ab_cdef,
                0xfedc_ba98_7654_3211,
                0x5a5a_1234,
                0x9e37_79b9,
            ],
            local_key: [
                0x1111_2222_3333_4445,
                0x6666_7777,
                0x8888_9999_aaaa,
                0xbbbb_cccd,
            ],
            generations: [index.generation, Zeroable::zeroed()],
            tunnel_source_v4: u32::from_be_bytes(world::TUNNEL_SOURCE_V4),
            tunnel_spread_v4: world::SPREAD,
            tunnel_source_v6: std::net::Ipv6Addr::from(world::TUNNEL_SOURCE_V6).octets(),
            tunnel_spread_v6: world::SPREAD,
            cpus: 1,
            // Each source may be a VIP.
            vip_networks: u64::MAX,
            challenge_key: [0x1357_9bdf_0246_8ace, 0xfdb9_7531_eca8_6420],
            cookie_key: [0x2468_ace0_1357_9bdf, 0x0eca_8642_fdb9_7531],
            clock: cookie::clock(HZ),
            ..Settings::zeroed()
        };
        self.set_settings(|_| {});
    }

    pub(crate) fn set_settings(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.put::<Settings>(maps::SETTINGS, 0, self.settings);
    }

    /// Where rules are put.
    pub(crate) fn rules(&mut self) -> &mut RuleMaps {
        let ebpf = &mut self.ebpf;
        self.rules
            .get_or_insert_with(|| RuleMaps::new(ebpf, HZ).expect("the program has the maps"))
    }

    /// Makes packets meet these rules alone.
    pub(crate) fn set_rules(&mut self, rules: &[RuleInForce<'_>]) {
        self.rules().set(rules).expect("they fit");
        let now: Settings = self.get(maps::SETTINGS, 0);
        self.settings.rules = now.rules;
    }

    /// Makes packets meet these sets of sources alone.
    pub(crate) fn set_sources(&mut self, sets: &[SourceSet]) {
        if let Some(sources) = &mut self.sources {
            sources.set(sets).expect("they fit");
        } else {
            let adopted = SourceMaps::adopt(&mut self.ebpf, sets);
            let (sources, refused) = adopted.expect("the program has the maps");
            assert!(refused.is_empty(), "{refused:?}");
            self.sources = Some(sources);
        }
        let now: Settings = self.get(maps::SETTINGS, 0);
        self.settings.sources = now.sources;
        self.settings.sets_allow = now.sets_allow;
        self.settings.sets_deny = now.sets_deny;
        self.settings.sets_monitor = now.sets_monitor;
    }

    /// What each set counted.
    pub(crate) fn source_counts(&self) -> BTreeMap<u8, SourceCounts> {
        let sources = self.sources.as_ref();
        sources.map(SourceMaps::counts).unwrap_or_default()
    }

    /// The VIP of packets to an address; the first of them for ICMP.
    pub(crate) fn number_of(&self, to: IpAddr, protocol: u8) -> u16 {
        let ports = [crate::packet::TCP, crate::packet::UDP].contains(&protocol);
        let at = self.services.iter().position(|service| {
            service.prefix.contains(&to) && (service.protocol == protocol || !ports)
        });
        u16::try_from(at.expect("an address of a VIP") + 1).expect("few VIPs")
    }

    /// Writes one of a VIP's two lookup tables.
    pub(crate) fn set_table(&mut self, vip: u16, half: u32, backends: &[u16]) {
        let mut slots = backends.iter().copied().cycle();
        let per_word = u32::try_from(SLOTS_PER_WORD).expect("a few");
        for word in 0..SLOTS / per_word {
            let value: [u16; SLOTS_PER_WORD] =
                std::array::from_fn(|_| slots.next().unwrap_or(NO_BACKEND));
            self.put_raw(maps::SLOTS, first_slot(vip, half) / per_word + word, value);
        }
    }

    /// The VIPs that an address is of.
    pub(crate) fn numbers(&self, address: IpAddr) -> Vec<u16> {
        (1..)
            .zip(&self.services)
            .filter(|(_, service)| service.prefix.contains(&address))
            .map(|(number, _)| number)
            .collect()
    }

    pub(crate) fn change_vip(&mut self, vip: u16, change: impl FnOnce(&mut Vip)) {
        let mut value: Vip = self.get(maps::VIPS, vip.into());
        change(&mut value);
        self.put(maps::VIPS, vip.into(), value);
    }

    pub(crate) fn change_backend(&mut self, number: u16, change: impl FnOnce(&mut Backend)) {
        let mut value: Backend = self.get(maps::BACKENDS, number.into());
        change(&mut value);
        self.put(maps::BACKENDS, number.into(), value);
    }

    pub(crate) fn put<T: Stored>(&mut self, map: &str, index: u32, value: T) {
        self.put_raw::<T::Bytes>(map, index, bytemuck::cast(value));
    }

    pub(crate) fn get<T: Stored>(&self, map: &str, index: u32) -> T {
        bytemuck::cast(self.get_raw::<T::Bytes>(map, index))
    }

    pub(crate) fn put_raw<T: aya::Pod>(&mut self, map: &str, index: u32, value: T) {
        let map = self.ebpf.map_mut(map).expect("the program has this map");
        let mut map: Array<_, T> = map.try_into().expect("an array of such values");
        map.set(index, value, 0).expect("within the array");
    }

    pub(crate) fn get_raw<T: aya::Pod>(&self, map: &str, index: u32) -> T {
        let map = self.ebpf.map(map).expect("the program has this map");
        let map: Array<_, T> = map.try_into().expect("an array of such values");
        map.get(&index, 0).expect("within the array")
    }

    /// Runs the program on a frame that came in on [`INGRESS`].
    pub(crate) fn run(&mut self, frame: &[u8]) -> Ran {
        self.run_behind(0, frame)
    }

    /// Runs it with `metadata_bytes` before the frame: they take room that outer headers would need.
    pub(crate) fn run_behind(&mut self, metadata_bytes: u32, frame: &[u8]) -> Ran {
        let data = [&vec![0; metadata_bytes as usize], frame].concat();
        let length = u32::try_from(data.len()).expect("a frame");
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u8; 24] = bytemuck::cast([metadata_bytes, length, 0, INGRESS, 0, 0]);
        let mut out = vec![0; MAX_FRAME];
        let result = program(&mut self.ebpf)
            .test_run(TestRunOptions {
                data_in: Some(&data),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("{} bytes: {error}", frame.len()));
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            3 => Action::Tx,
            4 => Action::Redirect,
            other => panic!("no verdict of ours: {other}"),
        };
        Ran { action, frame: out }
    }

    /// The counters that a packet to this address may move: of its VIPs, of none, and of all backends.
    pub(crate) fn counts(&self, to: IpAddr) -> Counts {
        let here = (1..)
            .zip(&self.services)
            .filter(|(_, service)| service.prefix.contains(&to))
            .map(|(vip, _)| vip);
        let vips: Vec<u16> = here.chain([NO_VIP]).collect();
        let mut counts = Counts::default();
        for vip in vips {
            let words: [u64; 8] = self.sum(maps::VIP_STATS, vip.into());
            let exits = [Counted::Passed, Counted::Transmitted, Counted::Redirected];
            for (exit, count) in exits.iter().zip(words.chunks(2)) {
                counts.add(exit(vip), [count[0], count[1]]);
            }
            counts.add(Counted::OutOfState(vip), [words[6], 0]);
            counts.add(Counted::Inserted(vip), [words[7], 0]);
            for (reason, number) in DropReason::ALL.iter().zip(0..) {
                let index = (u32::from(vip) * DROP_REASONS + number) * 2;
                counts.add(Counted::Dropped(vip, *reason), self.sum(maps::DROPS, index));
                counts.add(
                    Counted::Monitored(vip, *reason),
                    self.sum(maps::DROPS, index + 1),
                );
            }
        }
        for (index, number) in (0..backend::COUNT).zip(0..) {
            counts.add(
                Counted::ToBackend(number),
                self.sum(maps::BACKEND_STATS, index),
            );
        }
        counts
    }

    /// A per-CPU value of `WORDS` counters, summed up.
    pub(crate) fn sum<const WORDS: usize>(&self, map: &str, index: u32) -> [u64; WORDS] {
        let map = self.ebpf.map(map).expect("the program has this map");
        let map: PerCpuArray<_, [u64; WORDS]> = map.try_into().expect("an array of such values");
        let values = map.get(&index, 0).expect("within the array");
        let mut sum = [0; WORDS];
        for (at, word) in values.iter().flat_map(|value| value.iter().enumerate()) {
            sum[at] += word;
        }
        sum
    }
}

/// Gates and counters are per CPU: one CPU makes them exact. Each thread takes the next, so that tests run beside each other.
fn stay_on_one_cpu() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(thread).expect("a thread may ask for its CPUs");
    let cpus: Vec<usize> = (0..CpuSet::count())
        .filter(|cpu| allowed.is_set(*cpu).is_ok_and(|is_set| is_set))
        .collect();
    // A thread with a rig already has only one to choose from.
    let mut one = CpuSet::new();
    one.set(cpus[NEXT.fetch_add(1, Ordering::Relaxed) % cpus.len()])
        .expect("it is one of the set");
    sched_setaffinity(thread, &one).expect("a thread may choose its CPU");
}

fn load(epoch_shift: u32) -> Ebpf {
    let mut ebpf = EbpfLoader::new()
        .override_global("EPOCH_SHIFT", &epoch_shift, true)
        .override_global("SKETCH_MASK", &(SKETCH_CELLS - 1), true)
        .override_global("FLOW_MASK", &(FLOW_BUCKETS - 1), true)
        .map_max_entries(maps::SKETCH, SKETCH_CELLS >> SKETCH_PAGE_SHIFT)
        .map_max_entries(maps::FLOWS, FLOW_BUCKETS)
        .map_max_entries(maps::EXACT_V4_BLOCKS, 256 * 256 / 2)
        .override_global("SOURCES_V6_MASK", &(SOURCE_BUCKETS - 1), true)
        .map_max_entries(maps::SOURCE_BLOCKS, 1 << 12)
        .map_max_entries(maps::SOURCES_V6, SOURCE_BUCKETS)
        .map_max_entries(maps::LIMITS, 1024)
        .map_max_entries(maps::SLOTS, 65_536)
        .load(objects::BALANCER)
        .expect("the maps are made (this test needs root)");
    let program: &mut Xdp = program(&mut ebpf);
    program.load().expect("the verifier takes the program");
    ebpf
}

fn program(ebpf: &mut Ebpf) -> &mut Xdp {
    let program = ebpf.program_mut("sluice").expect("the object has it");
    program.try_into().expect("an XDP program")
}

/// First slot of a VIP's lookup tables; the second half is for a switch.
const fn first_slot(vip: u16, half: u32) -> u32 {
    (vip as u32 * 2 + half) * SLOTS
}

/// A VIP's word for one of its lookup tables.
pub(crate) const fn table(vip: u16, half: u32) -> u64 {
    first_slot(vip, half) as u64 | (SLOTS as u64) << 32
}

fn first_vip(number: u16, service: &Service) -> Vip {
    Vip {
        table: if service.backends.is_empty() {
            0
        } else {
            table(number, 0)
        },
        policy: service.policy,
        syn: service.syn,
        answer: world::ANSWER,
        mtu_bytes: service.mtu_bytes,
        flags: service.flags,
        sanity_enforce: ENFORCED_BY_DEFAULT,
        ..Vip::default()
    }
}

/// Values of maps, as bytes that the loader library takes.
pub(crate) trait Stored: bytemuck::Pod {
    type Bytes: aya::Pod + bytemuck::Pod;
}

macro_rules! stored {
    ($($name:ident)*) => {$(
        impl Stored for $name {
            type Bytes = [u8; size_of::<Self>()];
        }
    )*};
}

stored!(Settings AddressEntry Entry Vip Policy Limit Backend Challenge);

/// Counters that are not zero, or how far they moved: packets and bytes (which flows have none of).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(Vec<(Counted, u64, u64)>);

/// How a packet was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Dropped(u16, DropReason),
    /// Would have been dropped.
    Monitored(u16, DropReason),
    Passed(u16),
    Transmitted(u16),
    Redirected(u16),
    ToBackend(u16),
    /// TCP that was neither SYN nor of a known flow.
    OutOfState(u16),
    /// A flow that entered the flow table.
    Inserted(u16),
}

impl Counts {
    /// What became of packets, without what became of flows.
    pub(crate) fn packets(self) -> Vec<(Counted, u64, u64)> {
        let mut counted = self.0;
        counted.retain(|(what, ..)| !matches!(what, Counted::OutOfState(_) | Counted::Inserted(_)));
        counted
    }

    /// Packets counted as this.
    pub(crate) fn of(&self, what: Counted) -> u64 {
        let found = self.0.iter().find(|(counted, ..)| *counted == what);
        found.map_or(0, |(_, packets, _)| *packets)
    }

    fn add(&mut self, what: Counted, [packets, bytes]: [u64; 2]) {
        if packets != 0 || bytes != 0 {
            self.0.push((what, packets, bytes));
        }
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        let mut moved = Self::default();
        for (what, packets, bytes) in self.0 {
            let old = before.0.iter().find(|(counted, ..)| *counted == what);
            let (_, old_packets, old_bytes) = old.copied().unwrap_or((what, 0, 0));
            moved.add(what, [packets - old_packets, bytes - old_bytes]);
        }
        moved
    }
}
