//! What is measured: each path through the balancer, how it is recognised, and what it may cost.

use std::net::IpAddr;

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use sluice_ebpf::packet::UDP;

use crate::{
    balancer::{CLIENT_PORT, Counters, Target, source},
    wrapper::{Answered, Frames},
};

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) state: State,
    pub(crate) frame: Vec<u8>,
    pub(crate) frames: Frames,
    pub(crate) target: Target,
    pub(crate) path: Path,
    pub(crate) exact: bool,
    /// How many there are.
    pub(crate) rules: u16,
    pub(crate) denied: Denied,
    /// Samples are taken for detection.
    pub(crate) watched: bool,
    /// ns above the floor.
    pub(crate) limit: Option<Limit>,
    pub(crate) note: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Limit {
    Ns(f64),
    /// Above another row.
    Above(&'static str, f64),
}

/// Prefixes that are denied, an address each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    Nobody,
    /// The sources of so many flows.
    Sources(u32),
    /// So many all over the address space, but not that of the first flow.
    Others(u32),
}

/// The balancers, by what is in their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// 128k flows, as many of UDP, in a table for 1M: the default config.
    Ordinary,
    /// As the ordinary one, but the source of each of 64k flows has an exact limit.
    Named,
    /// As the ordinary one, with other prefixes denied.
    Filtered,
    /// 1M flows in the table, as many of UDP.
    Full,
    /// Every source is over its limit.
    Exhausted,
}

/// What must become of the frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    Known,
    Syn,
    OverLimit,
    /// Dropped by the last rule.
    Rule,
    /// Dropped for its source.
    Denied,
    NotVip,
    Echo,
    /// A SYN that is answered.
    Challenge,
    Cookie,
}

impl Path {
    /// What the program returns.
    pub(crate) const fn action(self) -> u32 {
        match self {
            Self::OverLimit | Self::Rule | Self::Denied => 1,
            Self::NotVip => 2,
            _ => 3,
        }
    }

    /// The program that does nothing but return that.
    pub(crate) const fn floor(self) -> &'static str {
        match self {
            Self::OverLimit | Self::Rule | Self::Denied => "drop",
            Self::NotVip => "pass",
            _ => "tx",
        }
    }

    /// Whose counters show it.
    pub(crate) const fn counted_at(self, target: Target) -> u16 {
        match self {
            Self::NotVip => 0,
            _ => target.number(),
        }
    }

    /// How many of the counted packets went this way.
    pub(crate) const fn taken(self, counted: &Counters) -> u64 {
        match self {
            Self::Known => counted
                .tx
                .saturating_sub(counted.inserts)
                .saturating_sub(counted.out_of_state),
            Self::Syn => counted.tx.saturating_sub(counted.inserts),
            Self::OverLimit => counted.over_limit,
            Self::Rule => counted.by_rule,
            Self::Denied => counted.denied,
            Self::NotVip => counted.pass,
            Self::Echo => counted.tx,
            Self::Challenge => counted.challenged,
            Self::Cookie => counted.cookies,
        }
    }
}

/// Every flow is another address, and all addresses are used before one comes back.
const EVER_NEW: u32 = u32::MAX;
/// Flows whose sources are denied, where any are.
const DENIED: u32 = 1 << 20;

pub(crate) fn all() -> Result<Vec<Case>> {
    let ns = |ns: f64| Some(Limit::Ns(ns));
    let mut cases = Vec::new();
    let mut add = |name, target, path, flow_mask, state, limit, note| -> Result<()> {
        cases.push(case(name, target, path, flow_mask, state, limit, note)?);
        Ok(())
    };
    use Path::{Challenge, Cookie, Echo, Known, NotVip, OverLimit, Syn};
    use State::{Exhausted, Full, Named, Ordinary};
    add(
        "established_tcp_v4_ipip",
        Target::Tcp,
        Known,
        0,
        Ordinary,
        ns(55.0),
        "1 flow",
    )?;
    add(
        "established_tcp_v4_ipip_1k_flows",
        Target::Tcp,
        Known,
        0x3ff,
        Ordinary,
        None,
        "",
    )?;
    add(
        "established_tcp_v4_ipip_64k_flows",
        Target::Tcp,
        Known,
        0xffff,
        Ordinary,
        None,
        "",
    )?;
    add(
        "established_tcp_v4_ipip_1m_flows",
        Target::Tcp,
        Known,
        0xf_ffff,
        Full,
        ns(190.0),
        "in a table for 4M flows that holds 2M",
    )?;
    add(
        "established_tcp_v4_l2",
        Target::L2,
        Known,
        0,
        Ordinary,
        ns(45.0),
        "",
    )?;
    add(
        "established_tcp_v6_ip6ip6",
        Target::V6,
        Known,
        0,
        Ordinary,
        ns(70.0),
        "",
    )?;
    add(
        "established_tcp_v4_gue",
        Target::Gue,
        Known,
        0,
        Ordinary,
        None,
        "",
    )?;
    add(
        "established_tcp_v6_gue",
        Target::GueV6,
        Known,
        0,
        Ordinary,
        None,
        "",
    )?;
    add(
        "udp_v4_ipip",
        Target::Udp,
        Known,
        0,
        Ordinary,
        ns(60.0),
        "limited too, but far below the limit",
    )?;
    add(
        "udp_v4_ipip_64k_flows",
        Target::Udp,
        Known,
        0xffff,
        Ordinary,
        None,
        "",
    )?;
    let flood = "every packet a SYN of a new source; ";
    add(
        "syn_flood_new_flows",
        Target::Tcp,
        Syn,
        EVER_NEW,
        Ordinary,
        ns(190.0),
        flood,
    )?;
    add(
        "syn_flood_no_limits",
        Target::NoLimits,
        Syn,
        EVER_NEW,
        Ordinary,
        ns(65.0),
        flood,
    )?;
    add(
        "syn_flood_new_flows_1m_table",
        Target::Tcp,
        Syn,
        EVER_NEW,
        Full,
        ns(190.0),
        flood,
    )?;
    add(
        "syn_flood_no_limits_1m_table",
        Target::NoLimits,
        Syn,
        EVER_NEW,
        Full,
        ns(65.0),
        flood,
    )?;
    add(
        "limited_one_source",
        Target::Limited,
        OverLimit,
        0,
        Exhausted,
        ns(45.0),
        "SYN over the host's limit",
    )?;
    add(
        "limited_random_sources",
        Target::Limited,
        OverLimit,
        EVER_NEW,
        Exhausted,
        ns(190.0),
        "every packet of a new source; all cells of the sketch are over the limit",
    )?;
    add(
        "not_vip",
        Target::Tcp,
        NotVip,
        0,
        Ordinary,
        ns(12.0),
        "address of no VIP, passed",
    )?;
    add(
        "icmp_echo_v4",
        Target::Tcp,
        Echo,
        0,
        Ordinary,
        None,
        "answered",
    )?;
    add(
        "syn_challenge",
        Target::Challenged,
        Challenge,
        0x3ff,
        Ordinary,
        ns(70.0),
        "a SYN is answered by a challenge; 1k sources",
    )?;
    add(
        "syn_challenge_new_sources",
        Target::Challenged,
        Challenge,
        EVER_NEW,
        Ordinary,
        None,
        "every packet a SYN of a new source",
    )?;
    add(
        "syn_cookie",
        Target::Cookies,
        Cookie,
        0x3ff,
        Ordinary,
        None,
        "a SYN is answered with a cookie; 1k sources",
    )?;
    for (name, with, limit_above) in [
        (
            "established_tcp_v4_ipip_exact_100k",
            "established_tcp_v4_ipip",
            15.0,
        ),
        ("udp_v4_ipip_exact_100k", "udp_v4_ipip", 15.0),
        (
            "udp_v4_ipip_64k_flows_exact_100k",
            "udp_v4_ipip_64k_flows",
            15.0,
        ),
        (
            "syn_flood_no_limits_exact_100k",
            "syn_flood_no_limits",
            15.0,
        ),
    ] {
        let without = cases.iter().find(|case| case.name == with);
        let mut case = without.context("an earlier row")?.clone();
        case.name = name;
        case.exact = true;
        case.limit = Some(Limit::Above(with, limit_above));
        case.note = "100,000 exact limits in each family, of its own network none";
        cases.push(case);
    }
    let without = cases
        .iter()
        .find(|case| case.name == "established_tcp_v6_ip6ip6");
    let mut case = without.context("an earlier row")?.clone();
    case.name = "established_tcp_v6_ip6ip6_exact_near";
    case.exact = true;
    case.limit = None;
    case.note = "100,000 exact limits in the /32 of the source, of its own network none";
    cases.push(case);
    let without = cases
        .iter()
        .find(|case| case.name == "udp_v4_ipip_64k_flows");
    let mut case = without.context("an earlier row")?.clone();
    case.name = "udp_v4_ipip_64k_flows_exact_hit";
    case.state = Named;
    case.exact = true;
    case.note = "100,000 exact limits of IPv4 prefixes, one of them for each source";
    cases.push(case);
    for (name, rules, limit, note) in [
        ("rules_10", 10, 60.0, "dropped by the last of 10 rules"),
        (
            "rules_1000",
            1_000,
            100.0,
            "dropped by the last of 1,000 rules",
        ),
    ] {
        let case = self::case(
            name,
            Target::NoLimits,
            Path::Rule,
            0,
            Ordinary,
            ns(limit),
            note,
        )?;
        cases.push(Case { rules, ..case });
    }
    for (name, flow_mask, limit, note) in [
        (
            "deny_hit",
            0,
            20.0,
            "denied: one source, of 1,048,576 prefixes",
        ),
        (
            "deny_random_sources_1m",
            DENIED - 1,
            90.0,
            "denied: 1,048,576 sources, each a prefix of its own",
        ),
    ] {
        let case = self::case(
            name,
            Target::NoLimits,
            Path::Denied,
            flow_mask,
            Ordinary,
            ns(limit),
            note,
        )?;
        cases.push(Case {
            denied: Denied::Sources(DENIED),
            ..case
        });
    }
    let case = self::case(
        "established_full_filter",
        Target::Tcp,
        Known,
        0,
        State::Filtered,
        ns(70.0),
        "1 flow; 100,000 prefixes are denied and 100 rules drop, others than it; limits also for proven flows",
    )?;
    let filtered = Case {
        denied: Denied::Others(100_000),
        rules: 100,
        ..case
    };
    cases.push(filtered.clone());
    cases.push(Case {
        name: "established_everything",
        exact: true,
        watched: true,
        limit: ns(55.0),
        note: "the same with 100,000 exact limits and detection's samples",
        ..filtered
    });
    Ok(cases)
}

fn case(
    name: &'static str,
    target: Target,
    path: Path,
    flow_mask: u32,
    state: State,
    limit: Option<Limit>,
    note: &'static str,
) -> Result<Case> {
    let frame = frame(target, path)?;
    Ok(Case {
        name,
        state,
        frames: Frames {
            bytes: u32::try_from(frame.len())?,
            v6: target.address().is_ipv6(),
            answered: match path {
                Path::Echo => Answered::Echo,
                Path::Challenge | Path::Cookie => Answered::ToSyn,
                _ => Answered::No,
            },
            flow_mask,
        },
        frame,
        target,
        path,
        exact: false,
        rules: 0,
        denied: Denied::Nobody,
        watched: false,
        limit,
        note,
    })
}

/// A frame of flow 0: small, as in a flood and as acknowledgements are.
pub(crate) fn frame(target: Target, path: Path) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (source(target, 0), target.address()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [a, b, c, d] = to.octets();
            let to = if path == Path::NotVip {
                [a, b, c, d + 100]
            } else {
                [a, b, c, d]
            };
            ethernet.ipv4(from.octets(), to, 64)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => anyhow::bail!("a client of another family"),
    };
    let mut frame = Vec::new();
    let payload = [0; 8];
    if path == Path::Echo {
        ip.icmpv4_echo_request(1, 1).write(&mut frame, &payload)?;
    } else if target.protocol() == UDP {
        ip.udp(CLIENT_PORT, target.port())
            .write(&mut frame, &payload)?;
    } else {
        let tcp = ip.tcp(CLIENT_PORT, target.port(), 1, 64_240);
        if matches!(
            path,
            Path::Syn
                | Path::OverLimit
                | Path::Rule
                | Path::Challenge
                | Path::Cookie
                | Path::Denied
        ) {
            tcp.syn().write(&mut frame, &[])?;
        } else {
            tcp.ack(1).write(&mut frame, &payload)?;
        }
    }
    Ok(frame)
}
