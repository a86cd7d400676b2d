//! Reads `[[vip]]`.

use super::{
    addresses::{Unfit, prefix, unfit_range},
    model::{HashInput, Protocol, Vip},
    read_pool::FORWARDS,
    section::{Field, Section},
};

/// A VIP, and where its parts stand in the file.
pub(super) struct PlacedVip {
    pub(super) vip: Vip,
    pub(super) address_at: usize,
    pub(super) pool_at: usize,
    /// Zero if the VIP has no mtu.
    pub(super) mtu_at: usize,
}

/// One `[[vip]]`.
pub(super) fn vip(section: &Section<'_>) -> Option<PlacedVip> {
    let name = section
        .required("name", "\"web\"")
        .and_then(|field| field.name());
    let address = section.required("address", "\"192.0.2.10\"");
    let prefix = address.and_then(|field| vip_prefix(&field));
    let protocol = section
        .required("protocol", "\"tcp\"")
        .and_then(|field| field.word(PROTOCOLS));
    let port = section.optional("port", |field| field.integer(1..=u16::MAX));
    let pool = section.required("pool", "\"web\"");
    let pool_name = pool.and_then(|field| field.string());
    let forward = section
        .required("forward", "\"ipip\"")
        .and_then(|field| field.word(FORWARDS));
    let mtu_bytes = section.optional("mtu", |field| field.integer(MTU_MIN..=MTU_MAX));
    let hash = section.or("hash", HashInput::Flow, |field| field.word(HASHES));
    let policy = section.optional("policy", |field| field.string());

    let vip = Vip {
        name: name?.to_owned(),
        prefix: prefix?,
        protocol: protocol?,
        port: port?,
        pool: pool_name?.to_owned(),
        forward: forward?,
        mtu_bytes: mtu_bytes?,
        hash: hash?,
        policy: policy?.map(str::to_owned),
    };
    Some(PlacedVip {
        vip,
        address_at: address?.at,
        pool_at: pool?.at,
        mtu_at: section.get("mtu").map_or(0, |field| field.at),
    })
}

const PROTOCOLS: &[(&str, Protocol)] = &[
    ("tcp", Protocol::Tcp),
    ("udp", Protocol::Udp),
    ("any", Protocol::Any),
];
const HASHES: &[(&str, HashInput)] = &[("flow", HashInput::Flow), ("source", HashInput::Source)];
/// The least that every IPv4 host takes.
const MTU_MIN: u16 = 576;
const MTU_MAX: u16 = 9_000;

fn vip_prefix(field: &Field<'_>) -> Option<ipnet::IpNet> {
    let prefix = prefix(field)?;
    if let Some(Unfit { range, what }) = unfit_range(&prefix) {
        let hint = match what {
            "IPv4-mapped" => "write the IPv4 address",
            _ => "write a public address or prefix",
        };
        field.error(|| {
            format!("`{prefix}` cannot be a VIP: it holds {what} addresses ({range}); {hint}")
        });
        return None;
    }
    Some(prefix)
}
