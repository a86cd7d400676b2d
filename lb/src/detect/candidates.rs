//! What the packets of an attack may have in common: predicates that many of them fit.

use ipnet::IpNet;

use super::{
    header::{Fragment, Header, PAYLOAD_BYTES},
    predicate::{Field, FragmentWord, Predicate},
};
use sluice_ebpf::packet::{ICMP, ICMPV6, TCP, UDP};

/// Predicates on one field that at least `least` of `headers` fit, as far as they are likely to be of use.
pub(super) fn candidates(field: Field, headers: &[&Header], least: usize) -> Vec<Predicate> {
    let ports = |header: &Header| {
        header.fragment != Fragment::Later && matches!(header.protocol, TCP | UDP)
    };
    let tcp = |header: &Header| header.fragment != Fragment::Later && header.protocol == TCP;
    let icmp = |header: &Header| matches!(header.protocol, ICMP | ICMPV6);
    let of = |applies: &dyn Fn(&Header) -> bool,
              value: &dyn Fn(&Header) -> u32,
              predicate: &dyn Fn(u32) -> Predicate| {
        let values = headers.iter().filter(|header| applies(header));
        frequent(values.map(|header| value(header)).collect(), least)
            .into_iter()
            .map(predicate)
            .collect::<Vec<_>>()
    };
    let any = |_: &Header| true;
    match field {
        Field::Protocol => of(&any, &|header| header.protocol.into(), &|value| {
            Predicate::Protocol(narrow(value))
        }),
        Field::Fragment => [Fragment::First, Fragment::Later]
            .into_iter()
            .filter(|kind| {
                let same = |header: &&&Header| header.fragment == *kind;
                headers.iter().filter(same).count() >= least.max(1)
            })
            .filter_map(FragmentWord::of)
            .map(Predicate::Fragment)
            .collect(),
        Field::IcmpType => of(&icmp, &|header| header.icmp_type.into(), &|value| {
            Predicate::IcmpType(narrow(value))
        }),
        Field::SourcePort => of(&ports, &|header| header.source_port.into(), &|value| {
            Predicate::SourcePort(narrow(value))
        }),
        Field::DestinationPort => of(&ports, &|header| header.destination_port.into(), &|value| {
            Predicate::DestinationPort(narrow(value))
        }),
        Field::TcpFlags => of(&tcp, &|header| header.tcp_flags.into(), &|value| {
            Predicate::TcpFlags(narrow(value))
        }),
        Field::Length => {
            let exact = |value| Predicate::Length {
                least: narrow(value),
                most: narrow(value),
            };
            let mut found = of(&any, &|header| header.length.into(), &exact);
            let lengths = headers.iter().map(|header| header.length).collect();
            found.extend(middle(lengths).map(|(least, most)| Predicate::Length { least, most }));
            found
        }
        Field::Ttl => {
            let exact = |value| Predicate::Ttl {
                least: narrow(value),
                most: narrow(value),
            };
            if headers.iter().any(|header| header.ttl == 0) {
                return Vec::new();
            }
            let mut found = of(&any, &|header| header.ttl.into(), &exact);
            let ttls = headers.iter().map(|header| header.ttl).collect();
            found.extend(middle(ttls).map(|(least, most)| Predicate::Ttl { least, most }));
            found
        }
        Field::Payload => payload(headers, least),
        Field::Source => sources(headers, least),
    }
}

/// The values that are seen at least `least` times, the most frequent first, and no more than [`MOST_VALUES`].
fn frequent<T: Ord + Copy>(mut values: Vec<T>, least: usize) -> Vec<T> {
    values.sort_unstable();
    let mut counted: Vec<(usize, T)> = values
        .chunk_by(|a, b| a == b)
        .filter(|same| same.len() >= least.max(1))
        .map(|same| (same.len(), same[0]))
        .collect();
    counted.sort_unstable_by(|a, b| b.cmp(a));
    counted.truncate(MOST_VALUES);
    counted.into_iter().map(|(_, value)| value).collect()
}

const MOST_VALUES: usize = 3;

/// The range that all but a hundredth of the values lie in.
fn middle<T: Ord + Copy>(mut values: Vec<T>) -> Option<(T, T)> {
    values.sort_unstable();
    let cut = values.len() / 200;
    let (least, most) = (values.get(cut)?, values.get(values.len() - 1 - cut)?);
    Some((*least, *most))
}

/// Bytes of the payload that are the same in nearly all packets: transaction ids and cookies among them are left out.
fn payload(headers: &[&Header], least: usize) -> Vec<Predicate> {
    let (mut value, mut mask) = ([0; PAYLOAD_BYTES], [0; PAYLOAD_BYTES]);
    let mut fit: Vec<&&Header> = headers
        .iter()
        .filter(|header| header.fragment != Fragment::Later)
        .collect();
    let bytes_of = |header: &Header| usize::from(header.payload_bytes);
    for at in 0..PAYLOAD_BYTES {
        let values = fit.iter().filter(|header| bytes_of(header) > at);
        let values: Vec<u8> = values.map(|header| header.payload[at]).collect();
        let wanted = (fit.len() * 19 / 20).max(least);
        if let Some(&byte) = frequent(values, wanted).first() {
            (value[at], mask[at]) = (byte, 0xff);
            fit.retain(|header| bytes_of(header) > at && header.payload[at] == byte);
        }
    }
    if mask == [0; PAYLOAD_BYTES] {
        return Vec::new();
    }
    vec![Predicate::Payload { value, mask }]
}

/// Prefixes that many sources lie in: none of them where sources are dispersed, as forged ones are.
fn sources(headers: &[&Header], least: usize) -> Vec<Predicate> {
    let mut found: Vec<Predicate> = Vec::new();
    for (v6, lengths) in [(false, LENGTHS_V4), (true, LENGTHS_V6)] {
        for &length in lengths {
            let family = headers.iter().filter(|header| header.v6 == v6);
            let prefixes: Vec<IpNet> = family
                .filter_map(|header| header.source_prefix(length))
                .collect();
            let frequent = frequent(prefixes, least);
            if frequent.is_empty() {
                break;
            }
            found.extend(frequent.into_iter().map(Predicate::Source));
        }
    }
    found
}

/// Shorter prefixes are not worth a rule: they hold whole providers.
const LENGTHS_V4: &[u8] = &[12, 16, 20, 24, 32];
const LENGTHS_V6: &[u8] = &[32, 48, 56, 64, 128];

/// A value that was widened from a field of this size.
fn narrow<T: TryFrom<u32> + Default>(value: u32) -> T {
    T::try_from(value).unwrap_or_default()
}
