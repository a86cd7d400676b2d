//! Reads `[[policy]]` with its limits.

use std::collections::HashSet;

use super::{
    keys,
    model::{
        Class, Mode, OutOfState, Policy, PrefixLengths, Sanity, Scope, SourceLimit, Stage, Syn,
    },
    read_amplification, read_detect, read_sanity, read_syn,
    section::{Field, Section},
};

/// One `[[policy]]`.
pub(super) fn policy(section: &Section<'_>) -> Option<Policy> {
    let name = section
        .required("name", "\"web\"")
        .and_then(|field| field.name());
    let mode = section.or("mode", Mode::Enforce, |field| field.word(MODES));
    let length = |key, max, default| section.or(key, default, |field| field.integer(1..=max));
    let (host_v4, network_v4) = (length("host_v4", 32, 32), length("network_v4", 32, 24));
    let (host_v6, network_v6) = (length("host_v6", 128, 64), length("network_v6", 128, 48));
    nested(section, ("host_v4", host_v4), ("network_v4", network_v4));
    nested(section, ("host_v6", host_v6), ("network_v6", network_v6));
    let limits = section.or("limits", Vec::new(), |field| {
        let mut seen = HashSet::new();
        Some(
            field
                .tables(&keys::LIMIT)?
                .iter()
                .filter_map(|table| limit(table, &mut seen))
                .collect(),
        )
    });
    let sanity = section.or("sanity", Sanity::default(), |field| {
        read_sanity::sanity(&field)
    });
    let amplification = section.or("amplification", Vec::new(), |field| {
        read_amplification::amplification(&field)
    });
    let stage = |key, default| section.or(key, default, |field| field.word(read_sanity::STAGES));
    let rules = stage("rules", Stage::Enforce);
    let sources = stage("sources", Stage::Enforce);
    let bogons = stage("bogons", Stage::Off);
    let fragments = stage("fragments", Stage::Off);
    let out_of_state = section.optional("out_of_state", |field| out_of_state(&field));

    let detect = section.optional("detect", |field| read_detect::stance(&field));

    let syn = section.or("syn", Syn::default(), |field| read_syn::syn(&field));
    let prefix_lengths = PrefixLengths {
        host_v4: host_v4?,
        network_v4: network_v4?,
        host_v6: host_v6?,
        network_v6: network_v6?,
    };
    Some(Policy {
        name: name?.to_owned(),
        mode: mode?,
        prefix_lengths,
        limits: limits?,
        detect: detect?,
        sanity: sanity?,
        amplification: amplification?,
        out_of_state: out_of_state?,
        rules: rules?,
        syn: syn?,
        sources: sources?,
        bogons: bogons?,
        fragments: fragments?,
    })
}

pub(super) const MODES: &[(&str, Mode)] = &[("enforce", Mode::Enforce), ("monitor", Mode::Monitor)];
const CLASSES: &[(&str, Class)] = &[
    ("syn", Class::Syn),
    ("udp", Class::Udp),
    ("icmp", Class::Icmp),
    ("other", Class::Other),
    ("established", Class::Established),
];

/// The words for classes, by their numbers in the data plane.
pub(crate) fn class_words() -> impl Iterator<Item = &'static str> {
    CLASSES.iter().map(|(word, _)| *word)
}

const SCOPES: &[(&str, Scope)] = &[("host", Scope::Host), ("network", Scope::Network)];
pub(super) const PPS_MAX: u64 = 100_000_000;
/// 10 Tbit/s, beyond any interface.
const BPS_MAX: u64 = 10_000_000_000_000;
const BURST_MAX: u32 = 10_000_000;
const BURST_LEAST: u64 = 10;
/// What a packet is taken to weigh where a limit has only `bps`: 1,500 bytes.
const BITS_A_PACKET: u64 = 12_000;

/// A host lies within its network, so its prefix cannot be the shorter one.
fn nested(
    section: &Section<'_>,
    host: (&'static str, Option<u8>),
    network: (&'static str, Option<u8>),
) {
    let (Some(host_length), Some(network_length)) = (host.1, network.1) else {
        return;
    };
    let Some(field) = section.get(host.0).or_else(|| section.get(network.0)) else {
        return;
    };
    if host_length < network_length {
        field.error(|| {
            format!(
                "`{}` is {host_length}, shorter than `{}` ({network_length}); a host's prefix is at least as long as its network's",
                host.0, network.0
            )
        });
    }
}

fn limit(section: &Section<'_>, seen: &mut HashSet<(Class, Scope)>) -> Option<SourceLimit> {
    let class_field = section.required("class", "\"syn\"");
    let class = class_field.and_then(|field| field.word(CLASSES));
    let per = section.or("per", Scope::Host, |field| field.word(SCOPES));
    let pps = section.optional("pps", |field| field.integer(1..=PPS_MAX));
    let bps = section.optional("bps", |field| field.integer(1..=BPS_MAX));
    let burst = section.optional("burst", |field| field.integer(1..=BURST_MAX));
    if pps == Some(None) && bps == Some(None) {
        section.error(|| {
            "this limit has neither `pps` nor `bps`; write at least one, like `pps = 1000`".into()
        });
        return None;
    }
    let (class, per, pps, bps) = (class?, per?, pps?, bps?);
    if !seen.insert((class, per)) {
        let scope = if per == Scope::Host {
            "host"
        } else {
            "network"
        };
        class_field?
            .error(|| format!("a second limit for this class per `{scope}`; keep one of the two"));
        return None;
    }
    let burst = burst?.unwrap_or_else(|| default_burst(pps, bps));
    Some(SourceLimit {
        class,
        per,
        pps,
        bps,
        burst,
    })
}

fn out_of_state(field: &Field<'_>) -> Option<OutOfState> {
    let table = field.table(&keys::OUT_OF_STATE)?;
    let pps = table.required("pps", "10_000");
    let pps = pps.and_then(|field| field.integer(1..=PPS_MAX));
    let burst = table.optional("burst", |field| field.integer(1..=BURST_MAX));
    let mode = table.or("mode", Mode::Enforce, |field| field.word(MODES));
    let pps = pps?;
    Some(OutOfState {
        pps,
        burst: burst?.unwrap_or_else(|| default_burst(Some(pps), None)),
        mode: mode?,
    })
}

fn default_burst(pps: Option<u64>, bps: Option<u64>) -> u32 {
    let packets_a_second = pps.unwrap_or_else(|| bps.unwrap_or(0) / BITS_A_PACKET);
    let burst = (packets_a_second / 10).clamp(BURST_LEAST, BURST_MAX.into());
    u32::try_from(burst).unwrap_or(BURST_MAX)
}
