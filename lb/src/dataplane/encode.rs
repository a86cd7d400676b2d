//! From what is desired to the bytes that packets read.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_ebpf::{
    abi::{self, Address, Check},
    decap::Prefix,
    gcra,
    hash::seeded,
};

use super::{BackendKey, BackendState, Ordered, Vip};
use crate::config::{
    AllDown, Amplified, Defence, Forward, HashInput, Mode, Policy, PrefixLengths, Protocol, Sanity,
    Scope, Stage, Syn, SynMode,
};

/// An address as 16 bytes, IPv4 mapped.
pub(crate) fn bytes(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// An address as packets carry it: two words in network byte order.
pub(crate) fn words(address: IpAddr) -> [u64; 2] {
    let number = u128::from_be_bytes(bytes(address));
    split(number)
}

/// The two halves, in network byte order.
#[expect(clippy::cast_possible_truncation, reason = "they are halves")]
fn split(number: u128) -> [u64; 2] {
    [((number >> 64) as u64).to_be(), (number as u64).to_be()]
}

/// What a backend is, for lookup tables: the same on every machine of a fleet.
pub(crate) fn identity(address: IpAddr) -> u64 {
    let [high, low] = words(address).map(u64::from_be);
    seeded(high, low, 0x6261_636b_656e_6473)
}

pub(crate) fn backend(key: &BackendKey, state: &BackendState) -> abi::Backend {
    let forward = match key.forward {
        Forward::L2 => abi::Forward::L2,
        Forward::Ipip => abi::Forward::Ipip,
        Forward::Gue => abi::Forward::Gue,
        Forward::Local => abi::Forward::Local,
    };
    let mut backend = abi::Backend {
        forward: forward as u8,
        flags: if state.forwards {
            abi::BACKEND_FORWARDS
        } else {
            0
        },
        outer_destination: bytes(key.address),
        family: if key.address.is_ipv4() { 4 } else { 6 },
        mtu_bytes: u16::MAX,
        ..abi::Backend::default()
    };
    if let Some(next_hop) = state.next_hop {
        let (to, from) = backend.macs.split_at_mut(6);
        to.copy_from_slice(&next_hop.destination_mac);
        from.copy_from_slice(&next_hop.source_mac);
        // Without an address of our own, a tunnel that needs one cannot be entered.
        if key.forward != Forward::Gue || !next_hop.source.is_unspecified() {
            backend.flags |= abi::BACKEND_RESOLVED;
        }
        backend.mtu_bytes = next_hop.mtu_bytes;
        backend.outer_source = bytes(next_hop.source);
        backend.ifindex = next_hop.ifindex;
        backend.vlan = next_hop.vlan.unwrap_or(0);
    }
    backend
}

pub(crate) fn policy(policy: &Policy, hz: u32) -> abi::Policy {
    let PrefixLengths {
        host_v4,
        network_v4,
        host_v6,
        network_v6,
    } = policy.prefix_lengths;
    let mut limiters = [[abi::Limiter::default(); abi::LIMITERS]; abi::CLASSES];
    for limit in &policy.limits {
        let first = match limit.per {
            Scope::Host => 0,
            Scope::Network => 2,
        };
        let of_class = &mut limiters[limit.class as usize];
        let burst = u64::from(limit.burst);
        if let Some(pps) = limit.pps {
            of_class[first] = gcra::limiter(pps, burst, hz);
        }
        if let Some(bps) = limit.bps {
            of_class[first + 1] = gcra::limiter(bps / 8, burst * FULL_PACKET_BYTES, hz);
        }
    }
    abi::Policy {
        host_mask_v6: split(mask(host_v6)),
        network_mask_v6: split(mask(network_v6)),
        host_mask_v4: mask_v4(host_v4).to_be(),
        network_mask_v4: mask_v4(network_v4).to_be(),
        pad: 0,
        monitor: u32::from(policy.mode == Mode::Monitor),
        limiters,
        amplification_enforce: presets(policy, Mode::Enforce),
        amplification_monitor: presets(policy, Mode::Monitor),
        replies: replies(&policy.amplification),
        out_of_state: policy
            .out_of_state
            .map_or_else(abi::Limiter::default, |budget| {
                gcra::limiter(budget.pps, u64::from(budget.burst), hz)
            }),
        out_of_state_monitor: policy.out_of_state.map_or(0, |budget| {
            u64::from(mode(policy, budget.mode) == Mode::Monitor)
        }),
        gates: [[abi::Limiter::default(); abi::GATES]; abi::CLASSES],
    }
    .with_gates()
}

/// A policy that only counts, only counts everything.
fn mode(policy: &Policy, of_stage: Mode) -> Mode {
    match policy.mode {
        Mode::Enforce => of_stage,
        Mode::Monitor => Mode::Monitor,
    }
}

/// Bits of the presets that have this mode.
fn presets(policy: &Policy, wanted: Mode) -> u64 {
    let presets = policy.amplification.iter();
    let presets = presets.filter(|amplified| mode(policy, amplified.mode) == wanted);
    presets.fold(0, |bits, amplified| bits | 1 << amplified.preset as u32)
}

/// Each prefix once, with the presets whose answers are wanted from it.
fn replies(amplification: &[Amplified]) -> [abi::Replies; abi::MAX_REPLIES] {
    let mut by_prefix: BTreeMap<IpNet, u64> = BTreeMap::new();
    for amplified in amplification {
        for prefix in &amplified.replies_from {
            *by_prefix.entry(*prefix).or_default() |= 1 << amplified.preset as u32;
        }
    }
    let mut replies = [abi::Replies::default(); abi::MAX_REPLIES];
    for (to, (from, presets)) in replies.iter_mut().zip(by_prefix) {
        *to = abi::Replies {
            prefix: prefix(from),
            presets,
        };
    }
    replies
}

/// A prefix as packets compare with it.
pub(crate) fn prefix(prefix: IpNet) -> Prefix {
    let length = u32::from(prefix.prefix_len()) + if prefix.addr().is_ipv4() { 96 } else { 0 };
    let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
    Prefix {
        bits: words(prefix.network()),
        mask: split(mask),
    }
}

/// `Vip::flags`.
pub(crate) fn vip_flags(hash: HashInput, all_down: AllDown, policy: Option<&Policy>) -> u32 {
    let hash = match hash {
        HashInput::Flow => 0,
        HashInput::Source => abi::VIP_HASH_SOURCE,
    };
    let reset = match all_down {
        AllDown::Reset => abi::VIP_RESET,
        AllDown::Drop | AllDown::LastKnown => 0,
    };
    policy
        .iter()
        .flat_map(|policy| &policy.limits)
        .fold(hash | reset, |flags, limit| {
            flags | 1 << (abi::VIP_CLASSES_SHIFT + limit.class as u32)
        })
}

/// What the stages of the filter have to do for a VIP: words of [`abi::Vip`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stages {
    pub sanity_enforce: u32,
    pub sanity_monitor: u32,
    pub filter: u32,
    pub syn: u32,
}

impl Stages {
    /// Of a VIP under this policy.
    pub(crate) fn of(policy: Option<&Policy>, ordered: Ordered) -> Self {
        let (sanity, mode) = policy.map_or_else(
            || (Sanity::default(), Mode::Enforce),
            |policy| (policy.sanity.clone(), policy.mode),
        );
        let mut stages = Self {
            syn: syn(policy, ordered),
            ..Self::default()
        };
        for (stage, check) in sanity.0.iter().zip(Check::ALL) {
            match (stage, mode) {
                (Stage::Off, _) => {}
                (Stage::Enforce, Mode::Enforce) => stages.sanity_enforce |= check.bit(),
                (Stage::Enforce | Stage::Monitor, _) => stages.sanity_monitor |= check.bit(),
            }
        }
        if let Some(policy) = policy {
            if !policy.amplification.is_empty() {
                stages.filter |= abi::FILTER_AMPLIFICATION;
            }
            for (stage, [off, monitor, enforce]) in [
                (policy.rules, RULES),
                (policy.sources, SETS),
                (policy.bogons, BOGONS),
                (policy.fragments, FRAGMENTS),
            ] {
                stages.filter |= match (stage, mode) {
                    (Stage::Off, _) => off,
                    (Stage::Enforce, Mode::Enforce) => enforce,
                    (Stage::Enforce | Stage::Monitor, _) => monitor,
                };
            }
            // With cookies there may be a budget in any case, and who began before them is not charged.
            if policy.out_of_state.is_some() || stages.syn & abi::SYN_COOKIE != 0 {
                stages.filter |= abi::FILTER_OUT_OF_STATE;
            }
        }
        stages
    }

    pub(crate) fn held(vip: &abi::Vip) -> Self {
        Self {
            sanity_enforce: vip.sanity_enforce,
            sanity_monitor: vip.sanity_monitor,
            filter: vip.filter,
            syn: vip.syn,
        }
    }
}

/// The `FILTER_*` bits of a stage that is off, that only counts, and that drops.
const RULES: [u32; 3] = [abi::FILTER_RULES_OFF, abi::FILTER_RULES_MONITOR, 0];
const SETS: [u32; 3] = [abi::FILTER_SETS_OFF, abi::FILTER_SETS_MONITOR, 0];
const BOGONS: [u32; 3] = [0, abi::FILTER_BOGONS_MONITOR, abi::FILTER_BOGONS];
const FRAGMENTS: [u32; 3] = [0, abi::FILTER_FRAGMENTS_MONITOR, abi::FILTER_FRAGMENTS];

/// `Vip::syn`. What was ordered at run time goes before the policy's word, even where that only counts; but then nothing is
/// answered with cookies, which backends may not take yet.
fn syn(policy: Option<&Policy>, ordered: Ordered) -> u32 {
    let syn = policy.map_or_else(Syn::default, |policy| policy.syn);
    let monitor = syn.monitor || policy.is_some_and(|policy| policy.mode == Mode::Monitor);
    let defence = match syn.defence {
        Defence::Cookie if !monitor => abi::SYN_COOKIE,
        Defence::Cookie | Defence::Challenge => 0,
    };
    let mode = match (ordered, syn.mode) {
        (Ordered::Challenge, _) => return abi::SYN_ALWAYS | defence,
        (Ordered::Nothing, SynMode::Off) => return defence,
        (Ordered::Nothing, SynMode::Auto) => abi::SYN_AUTO,
        (Ordered::Nothing, SynMode::Always) => abi::SYN_ALWAYS,
    };
    mode | defence | if monitor { abi::SYN_MONITOR } else { 0 }
}

/// `Vip::answer`: what answers with a cookie say.
pub(crate) fn answer(policy: Option<&Policy>, vip: &Vip) -> abi::SynAnswer {
    let Some(policy) = policy.filter(|policy| policy.syn.defence == Defence::Cookie) else {
        return abi::SynAnswer::default();
    };
    let say = policy.syn.answer;
    let ip_bytes = if vip.prefix.addr().is_ipv4() {
        IPV4_BYTES
    } else {
        IPV6_BYTES
    };
    let mss = match say.mss {
        Some(mss) => mss - (ip_bytes - IPV4_BYTES),
        None => room(vip)
            .saturating_sub(ip_bytes + TCP_BYTES)
            .max(MSS_LEAST),
    };
    let bit = |on, bit| if on { bit } else { 0 };
    abi::SynAnswer {
        mss,
        window: say.window,
        window_scale: say.window_scale,
        options: bit(say.sack, abi::ANSWER_SACK)
            | bit(say.timestamps, abi::ANSWER_TIMESTAMPS)
            | bit(say.ecn, abi::ANSWER_ECN),
        pad: 0,
    }
}

/// The largest packet that the path to the backends has room for, whatever family the outer headers are of.
fn room(vip: &Vip) -> u16 {
    let outer = match vip.table.forward {
        Forward::L2 | Forward::Local => 0,
        Forward::Ipip => IPV6_BYTES,
        Forward::Gue => IPV6_BYTES + UDP_BYTES,
    };
    vip.mtu_bytes
        .unwrap_or(ETHERNET_MTU_BYTES)
        .saturating_sub(outer)
}

const ETHERNET_MTU_BYTES: u16 = 1500;
const IPV4_BYTES: u16 = 20;
const IPV6_BYTES: u16 = 40;
const UDP_BYTES: u16 = 8;
const TCP_BYTES: u16 = 20;
/// What every host takes (RFC 9293, 3.7.1).
const MSS_LEAST: u16 = 536;

/// What is let in a second that shows no cookie, while SYNs are answered with those, by a policy without `out_of_state`.
const UNKNOWN_PPS: u64 = 10_000;

/// A VIP's constants in `CHALLENGES`.
pub(crate) fn challenge(policy: Option<&Policy>, hz: u32) -> abi::Challenge {
    let syn = policy.map_or_else(Syn::default, |policy| policy.syn);
    let cookies = self::syn(policy, Ordered::Nothing) & abi::SYN_COOKIE != 0;
    let again_pps = if cookies { UNKNOWN_PPS } else { syn.again_pps };
    abi::Challenge {
        rate: gcra::limiter(syn.above_pps, (syn.above_pps / 10).max(64), hz),
        again: gcra::limiter(again_pps, (again_pps / 10).max(16), hz),
        hold: u64::try_from(syn.hold.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_mul(hz.into())
            / 1000,
        ..abi::Challenge::default()
    }
}

/// As in [`abi::Service`].
pub(crate) fn protocol(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Any => 0,
    }
}

/// Prefix and spread of outer IPv4 sources, as in [`abi::Settings`].
pub(crate) fn tunnel_v4(source: Ipv4Net) -> (u32, u32) {
    (
        u32::from(source.network()),
        spread(32 - source.prefix_len()),
    )
}

/// Prefix and spread of outer IPv6 sources.
pub(crate) fn tunnel_v6(source: Ipv6Net) -> (Address, u32) {
    (source.network().octets(), spread(128 - source.prefix_len()))
}

/// Bytes that a limit in bits allows for each packet of its burst.
const FULL_PACKET_BYTES: u64 = 1500;
/// Bits of an outer source that a flow's hash fills.
const SPREAD_BITS: u8 = 16;

fn spread(room: u8) -> u32 {
    (1 << room.min(SPREAD_BITS)) - 1
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use sluice_ebpf::amplification::Preset;

    use super::{super::TableKey, *};
    use crate::config::{Class, OutOfState, SourceLimit};

    fn sources() -> Policy {
        Policy {
            name: "p".into(),
            mode: Mode::Monitor,
            prefix_lengths: PrefixLengths {
                host_v4: 32,
                network_v4: 20,
                host_v6: 64,
                network_v6: 45,
            },
            limits: vec![SourceLimit {
                class: Class::Udp,
                per: Scope::Network,
                pps: None,
                bps: Some(8_000_000),
                burst: 10,
            }],
            detect: None,
            rules: Stage::Enforce,
            sources: Stage::Enforce,
            bogons: Stage::Off,
            fragments: Stage::Off,
            sanity: Sanity::default(),
            amplification: vec![
                Amplified {
                    preset: Preset::Dns,
                    mode: Mode::Enforce,
                    replies_from: vec!["192.0.2.53/32".parse().unwrap()],
                },
                Amplified {
                    preset: Preset::Ntp,
                    mode: Mode::Monitor,
                    replies_from: vec![
                        "192.0.2.53/32".parse().unwrap(),
                        "2001:db8::/32".parse().unwrap(),
                    ],
                },
            ],
            out_of_state: Some(OutOfState {
                pps: 1000,
                burst: 100,
                mode: Mode::Enforce,
            }),
            syn: Syn::default(),
        }
    }

    /// As `kernel/limits.rs` cuts a source down to its host or network.
    #[test]
    fn masks_keep_the_prefix_of_a_source() {
        let policy = policy(&sources(), 250);
        let source = words("198.51.109.77".parse().unwrap());
        let kept = (source[1] >> 32) & u64::from(policy.network_mask_v4);
        assert_eq!(kept, words("198.51.96.0".parse().unwrap())[1] >> 32);
        let kept = (source[1] >> 32) & u64::from(policy.host_mask_v4);
        assert_eq!(kept, source[1] >> 32);

        let source = words("2001:db8:1:2fff:3::4".parse().unwrap());
        let kept = [
            source[0] & policy.network_mask_v6[0],
            source[1] & policy.network_mask_v6[1],
        ];
        assert_eq!(kept, words("2001:db8::".parse().unwrap()));
        let kept = [
            source[0] & policy.host_mask_v6[0],
            source[1] & policy.host_mask_v6[1],
        ];
        assert_eq!(kept, words("2001:db8:1:2fff::".parse().unwrap()));
    }

    #[test]
    fn limits_stand_where_packets_look_for_them() {
        let policy = policy(&sources(), 250);
        assert_eq!(policy.monitor, 1);
        for (class, of_class) in policy.limiters.iter().enumerate() {
            for (at, limiter) in of_class.iter().enumerate() {
                let expected = if (class, at) == (Class::Udp as usize, 3) {
                    gcra::limiter(1_000_000, 15_000, 250)
                } else {
                    abi::Limiter::default()
                };
                assert_eq!(*limiter, expected, "class {class}, limiter {at}");
            }
        }
        let flags = vip_flags(HashInput::Source, AllDown::Drop, Some(&sources()));
        assert_eq!(flags, abi::VIP_HASH_SOURCE | 1 << (8 + Class::Udp as u32));
        let flags = vip_flags(HashInput::Flow, AllDown::Reset, None);
        assert_eq!(flags, abi::VIP_RESET);
    }

    #[test]
    fn a_policy_says_what_becomes_of_each_check() {
        let none = Stages::of(None, Ordered::Nothing);
        let all = ((1 << Check::ALL.len()) - 1) & !Check::SynData.bit();
        assert_eq!((none.sanity_enforce, none.sanity_monitor), (all, 0));
        let mut policy = sources();
        let of = Stages::of(Some(&policy), Ordered::Nothing);
        assert_eq!((of.sanity_enforce, of.sanity_monitor), (0, all), "mode");
        policy.mode = Mode::Enforce;
        policy.sanity.0[Check::Land as usize] = Stage::Off;
        policy.sanity.0[Check::SynData as usize] = Stage::Monitor;
        let of = Stages::of(Some(&policy), Ordered::Nothing);
        assert_eq!(of.sanity_enforce, all & !Check::Land.bit());
        assert_eq!(of.sanity_monitor, Check::SynData.bit());
    }

    #[test]
    fn presets_and_what_backends_asked_for_stand_in_the_policy() {
        let (dns, ntp) = (1 << Preset::Dns as u32, 1 << Preset::Ntp as u32);
        let mut wanted = sources();
        let counting = policy(&wanted, 250);
        assert_eq!(counting.amplification_enforce, 0, "the policy's mode");
        assert_eq!(counting.amplification_monitor, dns | ntp);
        assert_eq!(counting.out_of_state_monitor, 1);
        wanted.mode = Mode::Enforce;
        let policy = policy(&wanted, 250);
        assert_eq!(policy.amplification_enforce, dns);
        assert_eq!(policy.amplification_monitor, ntp);
        assert_eq!(policy.out_of_state, gcra::limiter(1000, 100, 250));
        assert_eq!(policy.out_of_state_monitor, 0);
        let asked_of = |address: &str| {
            let address = words(address.parse().unwrap());
            let held = policy.replies.iter();
            held.filter(|replies| replies.presets != 0 && replies.prefix.holds(address))
                .fold(0, |bits, replies| bits | replies.presets)
        };
        assert_eq!(asked_of("192.0.2.53"), dns | ntp);
        assert_eq!(asked_of("192.0.2.54"), 0);
        assert_eq!(asked_of("2001:db8:7::1"), ntp);
        assert_eq!(asked_of("2001:db9::1"), 0);
        let filter = Stages::of(Some(&wanted), Ordered::Nothing).filter;
        assert_eq!(filter, abi::FILTER_AMPLIFICATION | abi::FILTER_OUT_OF_STATE);
    }

    #[test]
    fn what_only_counts_or_is_off_sends_no_cookie_unasked() {
        let mut policy = sources();
        let of = |policy: &Policy, ordered| Stages::of(Some(policy), ordered).syn;
        for (mode, monitor, by_policy, ordered) in [
            (
                SynMode::Off,
                false,
                abi::SYN_COOKIE,
                abi::SYN_ALWAYS | abi::SYN_COOKIE,
            ),
            (SynMode::Off, true, 0, abi::SYN_ALWAYS),
            (
                SynMode::Auto,
                false,
                abi::SYN_AUTO | abi::SYN_COOKIE,
                abi::SYN_ALWAYS | abi::SYN_COOKIE,
            ),
            (
                SynMode::Always,
                true,
                abi::SYN_ALWAYS | abi::SYN_MONITOR,
                abi::SYN_ALWAYS,
            ),
        ] {
            policy.mode = Mode::Enforce;
            policy.syn = Syn {
                mode,
                monitor,
                defence: Defence::Cookie,
                ..Syn::default()
            };
            assert_eq!(of(&policy, Ordered::Nothing), by_policy, "{:?}", policy.syn);
            assert_eq!(of(&policy, Ordered::Challenge), ordered, "{:?}", policy.syn);
        }
        assert_eq!(of(&Policy::without_limits("p"), Ordered::Nothing), 0);
        policy.mode = Mode::Monitor;
        policy.syn.monitor = false;
        assert_eq!(of(&policy, Ordered::Challenge), abi::SYN_ALWAYS);
    }

    #[test]
    fn a_cookies_answer_names_the_segment_that_the_path_has_room_for() {
        let policy = Policy {
            syn: Syn {
                defence: Defence::Cookie,
                ..Syn::default()
            },
            ..Policy::without_limits("p")
        };
        let vip = |prefix: &str, forward, mtu_bytes| Vip {
            prefix: prefix.parse().unwrap(),
            protocol: Protocol::Tcp,
            port: Some(80),
            table: TableKey {
                pool: "p".into(),
                forward,
            },
            mtu_bytes,
            hash: HashInput::Flow,
            all_down: AllDown::Drop,
            policy: None,
            ordered: Ordered::Nothing,
        };
        let mss = |policy: &Policy, vip: &Vip| answer(Some(policy), vip).mss;
        let (v4, v6) = ("192.0.2.1/32", "2001:db8::1/128");
        for (prefix, forward, mtu, expected) in [
            (v4, Forward::L2, None, 1460),
            (v6, Forward::Local, None, 1440),
            (v4, Forward::Ipip, Some(1500), 1420),
            (v6, Forward::Gue, Some(9000), 8892),
            (v4, Forward::Gue, Some(600), 536),
        ] {
            assert_eq!(mss(&policy, &vip(prefix, forward, mtu)), expected);
        }
        let mut said = policy;
        said.syn.answer.mss = Some(1400);
        assert_eq!(mss(&said, &vip(v4, Forward::Ipip, None)), 1400);
        assert_eq!(mss(&said, &vip(v6, Forward::Ipip, None)), 1380);
        said.syn.defence = Defence::Challenge;
        let none = answer(Some(&said), &vip(v4, Forward::L2, None));
        assert_eq!(none, abi::SynAnswer::default());
    }

    #[test]
    fn stages_drop_or_only_count_as_a_policy_says() {
        let off = abi::FILTER_RULES_OFF | abi::FILTER_SETS_OFF;
        let count = abi::FILTER_RULES_MONITOR
            | abi::FILTER_SETS_MONITOR
            | abi::FILTER_BOGONS_MONITOR
            | abi::FILTER_FRAGMENTS_MONITOR;
        let drop = abi::FILTER_BOGONS | abi::FILTER_FRAGMENTS;
        for (mode, stage, expected) in [
            (Mode::Enforce, Stage::Enforce, drop),
            (Mode::Enforce, Stage::Monitor, count),
            (Mode::Monitor, Stage::Enforce, count),
            (Mode::Monitor, Stage::Off, off),
        ] {
            let wanted = Policy {
                mode,
                rules: stage,
                sources: stage,
                bogons: stage,
                fragments: stage,
                ..Policy::without_limits("p")
            };
            let filter = Stages::of(Some(&wanted), Ordered::Nothing).filter;
            assert_eq!(filter, expected, "{mode:?}, {stage:?}");
        }
    }

    #[test]
    fn tunnel_sources_are_spread_over_what_the_prefix_leaves() {
        assert_eq!(
            tunnel_v4("172.16.0.0/16".parse().unwrap()),
            (0xac10_0000, 0xffff)
        );
        assert_eq!(
            tunnel_v4("172.16.9.1/32".parse().unwrap()),
            (0xac10_0901, 0)
        );
        assert_eq!(tunnel_v6("100::/64".parse().unwrap()).1, 0xffff);
        assert_eq!(tunnel_v6("100::/120".parse().unwrap()).1, 0xff);
    }
}
