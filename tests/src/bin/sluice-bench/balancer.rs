//! The balancer under test: loaded as it is, with VIPs, backends, limits and flows written into its maps.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, PerCpuArray},
    programs::Xdp,
};
use bytemuck::{NoUninit, Zeroable};
use nix::time::{ClockId, clock_getres};
use sluice::{
    dataplane::{Purpose, RuleInForce, RuleMaps, SourceMaps, SourceSet},
    objects::BALANCER,
    rules::RuleSpec,
    sources::Members,
};
use sluice_ebpf::{
    abi::{
        ANY_VIP, AddressEntry, BACKEND_FORWARDS, BACKEND_RESOLVED, Backend, Challenge,
        ChallengeStats, Class, DROP_REASONS, DropReason, EXACT_ESTABLISHED, EXACT_V4, EXACT_V6,
        Forward, Generation, Limit, Limiter, Policy, SKETCH_PAGE_CELLS, SLOTS_PER_WORD, SYN_ALWAYS,
        SYN_COOKIE, Service, Settings, VIP_CLASSES_SHIFT, Vip, VipStats, Watching,
    },
    exact::{self, V6_WAYS, v4_filter, v4_index},
    flow::{self, Flow, State, WAYS},
    gcra, hash,
    hash::Tuple,
    packet::{TCP, UDP},
    sanity, vip,
};

use crate::cases::Denied;

/// A VIP of the bench. Its number, address and way of forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Target {
    Tcp = 1,
    Udp = 2,
    NoLimits = 3,
    L2 = 4,
    V6 = 5,
    Gue = 6,
    Limited = 7,
    GueV6 = 8,
    /// Its SYNs are challenged.
    Challenged = 9,
    /// Its SYNs are answered with cookies.
    Cookies = 10,
}

impl Target {
    pub(crate) const ALL: [Self; 10] = [
        Self::Tcp,
        Self::Udp,
        Self::NoLimits,
        Self::L2,
        Self::V6,
        Self::Gue,
        Self::Limited,
        Self::GueV6,
        Self::Challenged,
        Self::Cookies,
    ];

    pub(crate) const fn number(self) -> u16 {
        self as u16
    }

    pub(crate) fn address(self) -> IpAddr {
        match self {
            Self::V6 | Self::GueV6 => [0x2001, 0xdb8, 1, 0, 0, 0, 0, self.number()].into(),
            _ => Ipv4Addr::from(0xc000_0200 | u32::from(self.number())).into(),
        }
    }

    pub(crate) const fn protocol(self) -> u8 {
        if matches!(self, Self::Udp) { UDP } else { TCP }
    }

    pub(crate) const fn port(self) -> u16 {
        if matches!(self, Self::Udp) { 53 } else { 80 }
    }

    const fn forward(self) -> Forward {
        match self {
            Self::L2 => Forward::L2,
            Self::Gue | Self::GueV6 => Forward::Gue,
            _ => Forward::Ipip,
        }
    }

    fn policy(self) -> u16 {
        match self {
            Self::NoLimits | Self::Challenged | Self::Cookies => 0,
            Self::Limited => STRICT,
            _ => STANDARD,
        }
    }
}

/// Number of flows that are in the table when the bench starts, and how much room that has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) flows: u32,
    pub(crate) buckets: u32,
}

impl Table {
    fn bucket(&self, hash: u64) -> u32 {
        let bucket = hash & u64::from(self.buckets - 1);
        bucket.try_into().expect("below the number of buckets")
    }
}

pub(crate) struct Balancer {
    ebpf: Ebpf,
    table: Table,
    rules: RuleMaps,
    /// `None` until any is denied.
    sources: Option<SourceMaps>,
}

/// Counters of one VIP, and what was dropped by a limit of its policy, by a rule, and for its source.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) pass: u64,
    pub(crate) tx: u64,
    pub(crate) inserts: u64,
    pub(crate) out_of_state: u64,
    pub(crate) dropped: u64,
    pub(crate) over_limit: u64,
    pub(crate) by_rule: u64,
    pub(crate) challenged: u64,
    pub(crate) cookies: u64,
    pub(crate) denied: u64,
}

impl Counters {
    /// What was counted since an earlier reading.
    pub(crate) const fn since(&self, before: &Self) -> Self {
        Self {
            pass: self.pass - before.pass,
            tx: self.tx - before.tx,
            inserts: self.inserts - before.inserts,
            out_of_state: self.out_of_state - before.out_of_state,
            dropped: self.dropped - before.dropped,
            over_limit: self.over_limit - before.over_limit,
            by_rule: self.by_rule - before.by_rule,
            challenged: self.challenged - before.challenged,
            cookies: self.cookies - before.cookies,
            denied: self.denied - before.denied,
        }
    }
}

impl Balancer {
    pub(crate) fn load(table: Table, jiffies: u64) -> Result<Self> {
        let mask = table.buckets - 1;
        let mut ebpf = EbpfLoader::new()
            .override_global("FLOW_MASK", &mask, true)
            .map_max_entries("FLOWS", table.buckets)
            .map_max_entries("SLOTS", 1 << 18)
            .map_max_entries("EXACT_V4_BLOCKS", 1 << 8)
            .load(BALANCER)
            .context("cannot load the balancer (are you root?)")?;
        write::<_, POLICY_WORDS>(
            &mut ebpf,
            "POLICIES",
            STANDARD.into(),
            standard()?.with_gates(),
        )?;
        write::<_, POLICY_WORDS>(&mut ebpf, "POLICIES", STRICT.into(), strict()?.with_gates())?;
        write_vips(&mut ebpf)?;
        let rules = RuleMaps::new(&mut ebpf, hz()?)?;
        let mut this = Self {
            ebpf,
            table,
            rules,
            sources: None,
        };
        this.set_exact(false)?;
        this.set_interface(LOOPBACK)?;
        this.insert_flows(jiffies)?;
        this.program().load()?;
        Ok(this)
    }

    pub(crate) fn program(&mut self) -> &mut Xdp {
        let program = self.ebpf.program_mut("sluice").expect("the XDP program");
        program.try_into().expect("it is an XDP program")
    }

    /// Turns exact limits on or off, as the daemon does when the first one comes or the last one goes; and rules and sets of
    /// sources off.
    pub(crate) fn set_exact(&mut self, on: bool) -> Result<()> {
        let mut settings = settings();
        if on {
            settings.exact = EXACT_V4 | EXACT_V6 | EXACT_ESTABLISHED;
            settings.exact_v6_lengths[0] = EXACT_V6_LENGTH;
        }
        write::<_, SETTINGS_WORDS>(&mut self.ebpf, "SETTINGS", 0, settings)
    }

    /// Takes samples for detection, as the daemon does at a million packets a second. Until `set_exact`.
    pub(crate) fn watch(&mut self) -> Result<()> {
        let rate = limiter(WATCHED_A_SECOND, WATCHED_A_SECOND)?;
        let watching = Watching {
            rate,
            ..Watching::zeroed()
        };
        write::<_, WATCHING_WORDS>(&mut self.ebpf, "WATCHING", 0, watching)?;
        let mut settings: Settings =
            bytemuck::cast(array::<SETTINGS_WORDS>(&mut self.ebpf, "SETTINGS")?.get(&0, 0)?);
        settings.watching = u64::MAX / (1_000_000 / WATCHED_A_SECOND);
        write::<_, SETTINGS_WORDS>(&mut self.ebpf, "SETTINGS", 0, settings)
    }

    /// Keys what is remembered of SYNs by `sample`, until `set_exact`: those of other samples are not known, as if they had
    /// come for the first time. After seconds they would be SYNs that a client sends again.
    pub(crate) fn forget_syns(&mut self, sample: u64) -> Result<()> {
        let mut settings = settings();
        settings.local_key[0] ^= sample;
        write::<_, SETTINGS_WORDS>(&mut self.ebpf, "SETTINGS", 0, settings)
    }

    /// So many rules, of which only the last means a SYN of the bench.
    pub(crate) fn set_rules(&mut self, count: u16) -> Result<()> {
        let others = (1..count).map(|number| match number % 4 {
            0 => format!("src 203.0.{}.0/24; proto tcp -> drop", number / 4),
            1 => format!("proto udp; sport {number} -> drop"),
            2 => format!("proto tcp; dport {} -> drop", 10_000 + number),
            _ => format!("length {}; ttl 1..200 -> drop", 200 + number),
        });
        let last = "proto tcp; dport 80; tcp flags syn && !ack -> drop; priority 200".to_owned();
        let specs: Vec<RuleSpec> = others
            .chain([last])
            .map(|text| text.parse::<RuleSpec>())
            .collect::<Result<_, _>>()?;
        let rules: Vec<RuleInForce<'_>> = (1..)
            .zip(&specs)
            .map(|(id, spec)| RuleInForce {
                id,
                spec,
                vip: None,
            })
            .collect();
        Ok(self.rules.set(&rules)?)
    }

    /// Denies prefixes. A balancer keeps those that it got first.
    pub(crate) fn set_denied(&mut self, denied: Denied) -> Result<()> {
        let (count, address): (u32, fn(u32) -> u32) = match denied {
            Denied::Nobody => return Ok(()),
            Denied::Sources(count) => (count, spread),
            // Odd, as the source of the first flow is not.
            Denied::Others(count) => (count, |number| number.wrapping_mul(SPREAD) | 1),
        };
        if let Some(sources) = &mut self.sources {
            // They are there still, and `set_exact` turned them off.
            sources.audit(settings().local_key);
            return Ok(());
        }
        let addresses = (0..count).map(address).map(|address| (address, address));
        let members = Members::new(addresses.collect(), []);
        ensure!(
            members.v4().len() > count as usize / 10 * 9,
            "the addresses lie side by side"
        );
        let set = SourceSet {
            number: 4,
            name: "bench".to_owned(),
            purpose: Purpose::Deny,
            vip: None,
            members: members.into(),
        };
        let (sources, refused) = SourceMaps::adopt(&mut self.ebpf, &[set])?;
        ensure!(refused.is_empty(), "there is no room: {refused:?}");
        self.sources = Some(sources);
        Ok(())
    }

    /// Lets all backends stand behind this interface.
    pub(crate) fn set_interface(&mut self, ifindex: u32) -> Result<()> {
        for target in Target::ALL {
            for index in 0..BACKENDS_EACH {
                let number = first_backend(target) + index;
                write::<_, 8>(
                    &mut self.ebpf,
                    "BACKENDS",
                    number,
                    backend(target, index, ifindex),
                )?;
            }
        }
        Ok(())
    }

    /// Exact limits, high enough to drop nothing: of the /24 of each source of the first `flows`, or of the one beside the
    /// first of them if that is none, and of others all over the address space; and of as many /64s of the /32 that IPv6 sources
    /// are of.
    pub(crate) fn insert_exact(&mut self, flows: u32) -> Result<()> {
        let limit = Limit {
            packets: limiter(1_000_000_000, 1_000_000_000)?,
            bytes: Limiter::default(),
            vip: ANY_VIP,
            classes: 0x1f,
            length_and_mode: 119,
            ..Limit::zeroed()
        };
        let mut limits = array::<LIMIT_WORDS>(&mut self.ebpf, "LIMITS")?;
        for number in 1..=EXACT_LIMITS {
            limits.set(number, bytemuck::cast::<_, [u64; LIMIT_WORDS]>(limit), 0)?;
        }
        let prefixes = exact_prefixes(flows);
        let map = self.ebpf.map_mut("EXACT_V4").context("EXACT_V4")?;
        let mut table = Array::<_, [u32; 2]>::try_from(map)?;
        for (number, &prefix) in (1..=EXACT_LIMITS).zip(&prefixes) {
            let mut pair = table.get(&(prefix / 2), 0)?;
            pair[prefix as usize % 2] = number;
            table.set(prefix / 2, pair, 0)?;
        }
        let map = self
            .ebpf
            .map_mut("EXACT_V4_FILTER")
            .context("EXACT_V4_FILTER")?;
        let mut filter = Array::<_, [u32; 2]>::try_from(map)?;
        for prefix in prefixes {
            let (word, bit) = v4_filter(prefix);
            let mut pair = filter.get(&(word / 2), 0)?;
            pair[word as usize % 2] |= bit;
            filter.set(word / 2, pair, 0)?;
        }
        self.insert_exact_v6()
    }

    fn insert_exact_v6(&mut self) -> Result<()> {
        let settings = settings();
        let prefix = |number: u32| [(0x2001_0db8_0010_0000 + u64::from(number)).to_be(), 0];
        let mut table = array::<V6_WAYS>(&mut self.ebpf, "EXACT_V6")?;
        let last = table.len() - 1;
        for number in 1..=EXACT_LIMITS {
            let hash = exact::v6_hash(&settings, prefix(number), EXACT_V6_LENGTH);
            let at = u32::try_from(hash & u64::from(last))?;
            let mut bucket = table.get(&at, 0)?;
            // The few that find their bucket full stay out, as they would.
            if let Some(way) = bucket.iter_mut().find(|way| **way == 0) {
                *way = hash >> 32 << 32 | u64::from(number);
                table.set(at, bucket, 0)?;
            }
        }
        let map = self
            .ebpf
            .map_mut("EXACT_V6_LENGTHS")
            .context("EXACT_V6_LENGTHS")?;
        let mut filter = Array::<_, u32>::try_from(map)?;
        filter.set(exact::v6_filter_index(&settings, prefix(1)), 1, 0)?;
        Ok(())
    }

    /// Packets that exact limits have let pass.
    pub(crate) fn exact_passed(&self) -> Result<u64> {
        let map = self.ebpf.map("LIMITS").context("LIMITS")?;
        let limits = Array::<_, [u64; LIMIT_WORDS]>::try_from(map)?;
        let mut passed = 0;
        for number in 1..=EXACT_LIMITS {
            let limit: Limit = bytemuck::cast(limits.get(&number, 0)?);
            passed += limit.passed_packets;
        }
        Ok(passed)
    }

    /// Limits proven flows as well, which no policy does by itself, so high that none is over.
    pub(crate) fn limit_established(&mut self) -> Result<()> {
        let mut policy = standard()?;
        let high = limiter(1_000_000_000, 1_000_000_000)?;
        policy.limiters[Class::Established as usize] =
            [high, Limiter::default(), high, Limiter::default()];
        let policy = policy.with_gates();
        write::<_, POLICY_WORDS>(&mut self.ebpf, "POLICIES", STANDARD.into(), policy)?;
        let number = Target::Tcp.number();
        let mut vips = array::<VIP_WORDS>(&mut self.ebpf, "VIPS")?;
        let mut vip: Vip = bytemuck::cast(vips.get(&number.into(), 0)?);
        vip.flags |= 1 << (VIP_CLASSES_SHIFT + Class::Established as u32);
        vips.set(number.into(), bytemuck::cast::<_, [u64; VIP_WORDS]>(vip), 0)?;
        Ok(())
    }

    /// Puts every cell of the sketch so far ahead that each source is over a strict limit for the next half hour.
    pub(crate) fn exhaust_sketch(&mut self, jiffies: u64) -> Result<()> {
        let ahead = strict()?.limiters[Class::Syn as usize][0].allowance / 2 * 3;
        let value = gcra::time(jiffies).wrapping_add(ahead);
        let map = self.ebpf.map_mut("SKETCH").context("SKETCH")?;
        let mut sketch = Array::<_, [u64; SKETCH_PAGE_CELLS]>::try_from(map)?;
        for page in 0..sketch.len() {
            sketch.set(page, [value; SKETCH_PAGE_CELLS], 0)?;
        }
        // The gates before it are as open as a flood leaves them.
        let allowance = strict()?.limiters[Class::Syn as usize][0].allowance;
        let value = gcra::time(jiffies).wrapping_add(allowance / 2);
        let map = self.ebpf.map_mut("GROUPS").context("GROUPS")?;
        let mut groups = Array::<_, u64>::try_from(map)?;
        for group in 0..groups.len() {
            groups.set(group, value, 0)?;
        }
        Ok(())
    }

    pub(crate) fn counters(&self, vip: u16) -> Result<Counters> {
        let map = self.ebpf.map("VIP_STATS").context("VIP_STATS")?;
        let stats = PerCpuArray::<_, [u64; 8]>::try_from(map)?;
        let mut sum = Counters::default();
        for &words in stats.get(&vip.into(), 0)?.iter() {
            let cpu: VipStats = bytemuck::cast(words);
            sum.pass += cpu.pass.packets;
            sum.tx += cpu.tx.packets;
            sum.inserts += cpu.inserts;
            sum.out_of_state += cpu.out_of_state;
        }
        let map = self.ebpf.map("DROPS").context("DROPS")?;
        let drops = PerCpuArray::<_, [u64; 2]>::try_from(map)?;
        for &reason in DropReason::ALL {
            let index = (u32::from(vip) * DROP_REASONS + reason as u32) * 2;
            let packets: u64 = drops.get(&index, 0)?.iter().map(|count| count[0]).sum();
            sum.dropped += packets;
            if matches!(reason, DropReason::LimitHost | DropReason::LimitNetwork) {
                sum.over_limit += packets;
            }
            if matches!(reason, DropReason::Rule) {
                sum.by_rule += packets;
            }
            if matches!(reason, DropReason::Deny) {
                sum.denied += packets;
            }
        }
        let map = self
            .ebpf
            .map("CHALLENGE_STATS")
            .context("CHALLENGE_STATS")?;
        let stats = PerCpuArray::<_, [u64; size_of::<ChallengeStats>() / 8]>::try_from(map)?;
        for &words in stats.get(&vip.into(), 0)?.iter() {
            let stats: ChallengeStats = bytemuck::cast(words);
            sum.challenged += stats.sent.packets;
            sum.cookies += stats.cookies.packets;
        }
        Ok(sum)
    }

    /// The first flow of a VIP must still be in the table as it was written, and have been seen in the last seconds.
    pub(crate) fn check_flow(&self, target: Target, jiffies: u64) -> Result<()> {
        let hash = flow_hash(target, 0);
        let map = self.ebpf.map("FLOWS").context("FLOWS")?;
        let bucket = Array::<_, [u64; WAYS]>::try_from(map)?.get(&self.table.bucket(hash), 0)?;
        let (_, found) = flow::find(|way| bucket[way], flow::tag(hash))
            .with_context(|| format!("no flow of {target:?} is in the table"))?;
        ensure!(
            found.is_proven() == (target.protocol() == TCP),
            "the flow of {target:?} is not what was measured: {found:?}"
        );
        ensure!(
            found.age(ticks(jiffies)) < 60,
            "the flow of {target:?} was not seen: {found:?}"
        );
        Ok(())
    }

    fn insert_flows(&mut self, jiffies: u64) -> Result<()> {
        let mut buckets = vec![[0; WAYS]; self.table.buckets as usize];
        let now = ticks(jiffies);
        for target in Target::ALL {
            let flows = match target {
                Target::Tcp | Target::Udp => self.table.flows,
                Target::NoLimits | Target::Limited | Target::Challenged | Target::Cookies => 0,
                _ => 1,
            };
            for number in 0..flows {
                let hash = flow_hash(target, number);
                let bucket = &mut buckets[self.table.bucket(hash) as usize];
                // The few that find their bucket full stay out, as they would.
                if let Some(way) = bucket.iter_mut().find(|way| **way == 0) {
                    let state = if target.protocol() == TCP {
                        State::Proven
                    } else {
                        State::Unproven
                    };
                    let backend = u16::try_from(first_backend(target) + number % BACKENDS_EACH)?;
                    *way = Flow::new(flow::tag(hash), backend, state, now).0;
                }
            }
        }
        let mut table = array::<WAYS>(&mut self.ebpf, "FLOWS")?;
        for (index, bucket) in (0..).zip(&buckets) {
            if bucket[0] != 0 {
                table.set(index, *bucket, 0)?;
            }
        }
        Ok(())
    }
}

const POLICY_WORDS: usize = size_of::<Policy>() / 8;
const SETTINGS_WORDS: usize = size_of::<Settings>() / 8;
const VIP_WORDS: usize = size_of::<Vip>() / 8;
const LIMIT_WORDS: usize = size_of::<Limit>() / 8;
const WATCHING_WORDS: usize = size_of::<Watching>() / 8;
const EXACT_LIMITS: u32 = 100_000;
const EXACT_V6_LENGTH: u8 = 64;
/// Samples, of a million packets.
const WATCHED_A_SECOND: u64 = 2_000;
const BACKENDS_EACH: u32 = 4;
const SLOTS_EACH: u32 = 65_537;
#[expect(clippy::cast_possible_truncation, reason = "a few")]
const PER_WORD: u32 = SLOTS_PER_WORD as u32;
const LOOPBACK: u32 = 1;
const STANDARD: u16 = 1;
const STRICT: u16 = 2;
/// The client's port; the address tells the flows apart.
pub(crate) const CLIENT_PORT: u16 = 40_000;
/// As in the programs of the bench.
const SPREAD: u32 = 0x9e37_79b1;
const FIRST_SOURCE: u32 = 32 << 24;
const SOURCES: u32 = FIRST_SOURCE - 1;

/// The source of flow `number`, as the wrapper writes it.
pub(crate) fn source(target: Target, number: u32) -> IpAddr {
    let spread = spread(number);
    match target.address() {
        IpAddr::V4(_) => Ipv4Addr::from(spread).into(),
        IpAddr::V6(_) => {
            let prefix = 0x2001_0db8_000c_0000_u128 << 64;
            (prefix | u128::from(spread)).to_be_bytes().into()
        }
    }
}

fn spread(number: u32) -> u32 {
    number.wrapping_mul(SPREAD) & SOURCES | FIRST_SOURCE
}

/// First 24 bits of the prefixes with exact limits. Their order is not that of the flows, whose limits would then lie side
/// by side.
fn exact_prefixes(flows: u32) -> BTreeSet<u32> {
    let sources = (0..flows).map(|flow| v4_index(spread(flow)));
    let beside = (flows == 0).then_some(v4_index(spread(0)) ^ 1);
    let others = (1_u32..).map(|number| number.wrapping_mul(0x0087_6543) & 0xff_ffff);
    let mut prefixes = BTreeSet::new();
    for prefix in sources.chain(beside).chain(others) {
        if prefixes.len() == EXACT_LIMITS as usize {
            break;
        }
        prefixes.insert(prefix);
    }
    prefixes
}

fn flow_hash(target: Target, number: u32) -> u64 {
    let tuple = Tuple {
        source: words(source(target, number)),
        destination: words(target.address()),
        ports: u32::from(CLIENT_PORT.to_be()) | u32::from(target.port().to_be()) << 16,
        protocol: target.protocol(),
        v6: target.address().is_ipv6(),
    };
    hash::flow(&KEY, &tuple)
}

const KEY: [u64; 4] = [
    0x1234_5678_9abc_def0,
    0x0fed_cba9_8765_4321,
    0x5555_aaaa_3333_cccc,
    0x9e37_79b9_7f4a_7c15,
];

fn words(address: IpAddr) -> [u64; 2] {
    bytemuck::cast(match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

fn hz() -> Result<u32> {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?;
    Ok(u32::try_from(1_000_000_000 / tick.tv_nsec())?)
}

fn limiter(rate_per_second: u64, burst: u64) -> Result<Limiter> {
    Ok(gcra::limiter(rate_per_second, burst, hz()?))
}

fn ticks(jiffies: u64) -> u16 {
    let shift = flow::age_shift(hz().expect("the clock ticks"));
    u16::try_from(jiffies >> shift & ((1 << flow::AGE_BITS) - 1)).expect("masked")
}

fn policy() -> Policy {
    Policy {
        host_mask_v6: [u64::MAX, 0],
        network_mask_v6: [0x0000_ffff_ffff_ffff, 0],
        host_mask_v4: u32::MAX,
        network_mask_v4: 0x00ff_ffff,
        ..Policy::zeroed()
    }
}

/// 50 SYN a second of a host and 500 of a network; all else is limited too, but so high that nothing is over.
fn standard() -> Result<Policy> {
    let mut policy = policy();
    let [host_packets, _, network_packets, _] = &mut policy.limiters[Class::Syn as usize];
    *host_packets = limiter(50, 100)?;
    *network_packets = limiter(500, 1000)?;
    let high = limiter(1_000_000_000, 1_000_000_000)?;
    for class in [Class::Udp, Class::Icmp, Class::Other] {
        policy.limiters[class as usize][0] = high;
        policy.limiters[class as usize][2] = high;
    }
    Ok(policy)
}

/// One SYN an hour.
fn strict() -> Result<Policy> {
    let mut policy = policy();
    let limiter = once_an_hour()?;
    policy.limiters[Class::Syn as usize] =
        [limiter, Limiter::default(), limiter, Limiter::default()];
    Ok(policy)
}

fn once_an_hour() -> Result<Limiter> {
    let hour = 3600 * (u64::from(hz()?) << sluice_ebpf::abi::JIFFY_BITS);
    Ok(Limiter {
        cost: hour,
        allowance: hour,
    })
}

fn first_backend(target: Target) -> u32 {
    u32::from(target.number()) * BACKENDS_EACH
}

fn backend(target: Target, index: u32, ifindex: u32) -> Backend {
    let last = u8::try_from(11 + index).expect("few backends");
    let [outer_destination, outer_source] = [last, 2].map(|last| match target {
        Target::V6 | Target::GueV6 => [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last],
        _ => Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets(),
    });
    Backend {
        macs: [2, 0, 0, 0, 0, last, 2, 0, 0, 0, 0, 2],
        forward: target.forward() as u8,
        flags: BACKEND_FORWARDS | BACKEND_RESOLVED,
        mtu_bytes: 1500,
        outer_destination,
        outer_source,
        ifindex,
        family: if target.address().is_ipv6() { 6 } else { 4 },
        ..Backend::zeroed()
    }
}

fn settings() -> Settings {
    let mut settings = Settings {
        flow_key: KEY,
        local_key: KEY.map(|word| word.rotate_left(17)),
        challenge_key: [KEY[1], KEY[0]],
        tunnel_source_v4: 0xac10_0000,
        tunnel_spread_v4: 0xffff,
        tunnel_source_v6: [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        tunnel_spread_v6: 0xffff,
        cpus: aya::util::nr_cpus()
            .ok()
            .and_then(|cpus| u32::try_from(cpus).ok())
            .unwrap_or(1),
        vip_networks: Target::ALL.iter().fold(0, |bits, target| {
            let v6 = target.address().is_ipv6();
            bits | 1 << sanity::network_bit(v6, words(target.address()))
        }),
        ..Settings::zeroed()
    };
    settings.generations[0] = generation();
    settings
}

/// With all displacements zero, the first seed that keeps the addresses apart.
fn generation() -> Generation {
    let seeded = |address_seed| Generation {
        address_seed,
        lengths_v4: 33,
        lengths_v6: 129,
        address_mask: 63,
        ..Generation::default()
    };
    (1..)
        .map(seeded)
        .find(|generation| {
            let mut taken: Vec<u32> = Target::ALL
                .iter()
                .map(|&target| address_slot(generation, target))
                .collect();
            taken.sort_unstable();
            taken.dedup();
            taken.len() == Target::ALL.len()
        })
        .expect("ten of 64 slots are free of collisions under some seed")
}

fn address_slot(generation: &Generation, target: Target) -> u32 {
    let length = if target.address().is_ipv6() { 128 } else { 32 };
    let hash = vip::address_hash(generation, words(target.address()), length);
    vip::slot_index(hash, 0, generation.address_mask)
}

fn write_vips(ebpf: &mut Ebpf) -> Result<()> {
    let generation = generation();
    for target in Target::ALL {
        let number = target.number();
        let first = u32::from(number) * SLOTS_EACH.next_multiple_of(PER_WORD);
        let classes = match target.policy() {
            0 => 0,
            STRICT => 1 << Class::Syn as u32,
            _ => 0b1111,
        };
        let vip = Vip {
            table: u64::from(first) | u64::from(SLOTS_EACH) << 32,
            policy: target.policy(),
            mtu_bytes: 1500,
            flags: classes << VIP_CLASSES_SHIFT,
            sanity_enforce: sanity::ENFORCED_BY_DEFAULT,
            syn: match target {
                Target::Challenged => SYN_ALWAYS,
                Target::Cookies => SYN_ALWAYS | SYN_COOKIE,
                _ => 0,
            },
            ..Vip::zeroed()
        };
        write::<_, 8>(ebpf, "VIPS", number.into(), vip)?;
        // What comes again is answered again.
        let challenge = Challenge {
            again: once_an_hour()?,
            ..Challenge::zeroed()
        };
        write::<_, 8>(ebpf, "CHALLENGES", number.into(), challenge)?;

        let v6 = target.address().is_ipv6();
        let mut entry = AddressEntry {
            prefix: words(target.address()),
            id: number.into(),
            length: if v6 { 128 } else { 32 },
            family: if v6 { 6 } else { 4 },
            icmp_vip: number,
            ..AddressEntry::zeroed()
        };
        entry.services[0] = Service {
            address_and_protocol: u32::from(number) << 8 | u32::from(target.protocol()),
            port: target.port(),
            vip: number,
        };
        write::<_, 8>(ebpf, "ADDRESSES", address_slot(&generation, target), entry)?;

        let map = ebpf.map_mut("SLOTS").context("SLOTS")?;
        let mut slots = Array::<_, [u16; SLOTS_PER_WORD]>::try_from(map)?;
        for slot in (0..SLOTS_EACH).step_by(SLOTS_PER_WORD) {
            let mut word = [0; SLOTS_PER_WORD];
            for (backend, slot) in word.iter_mut().zip(slot..) {
                *backend = u16::try_from(first_backend(target) + slot % BACKENDS_EACH)?;
            }
            slots.set((first + slot) / PER_WORD, word, 0)?;
        }
    }
    Ok(())
}

fn array<'a, const WORDS: usize>(
    ebpf: &'a mut Ebpf,
    map: &str,
) -> Result<Array<&'a mut aya::maps::MapData, [u64; WORDS]>> {
    let array = ebpf.map_mut(map).with_context(|| map.to_owned())?;
    Array::try_from(array).with_context(|| map.to_owned())
}

fn write<T: NoUninit, const WORDS: usize>(
    ebpf: &mut Ebpf,
    map: &str,
    index: u32,
    value: T,
) -> Result<()> {
    let words: [u64; WORDS] = bytemuck::cast(value);
    array::<WORDS>(ebpf, map)?
        .set(index, words, 0)
        .with_context(|| map.to_owned())
}
