//! A signature as rules of the data plane.

use sluice_ebpf::packet::{ICMP, ICMPV6, TCP, TCP_ACK, TCP_SYN, UDP};

use super::{
    predicate::{FragmentWord, Predicate},
    signature::Signature,
};
use crate::{
    config::Class,
    rules::{Bits, Components, FragmentBits, Hex, NumberKind, Numbers, Payload, Term},
};

/// Rules that together mean what fits the signature, among packets of the class. None if rules cannot say that.
pub fn rules(signature: &Signature, class: Class) -> Vec<Components> {
    let mut rule = Components::default();
    let (mut looks_behind, mut later) = (false, false);
    for predicate in &signature.0 {
        match *predicate {
            Predicate::Protocol(protocol) => rule.protocol = only(protocol.into()),
            Predicate::SourcePort(port) => rule.source_port = only(port),
            Predicate::DestinationPort(port) => rule.destination_port = only(port),
            Predicate::Length { least, most } => rule.length = Numbers::new([least..=most]),
            Predicate::Ttl { least, most } => {
                rule.ttl = Numbers::new([u16::from(least)..=u16::from(most)]);
            }
            Predicate::TcpFlags(flags) => rule.tcp_flags = Some(Bits::of(flags, u8::MAX)),
            Predicate::IcmpType(kind) => rule.icmp_type = only(kind.into()),
            Predicate::Fragment(FragmentWord::First) => {
                rule.fragment = Some(Bits::of(FragmentBits::FIRST, FragmentBits::FIRST));
            }
            Predicate::Fragment(FragmentWord::Later) => later = true,
            Predicate::Payload { value, mask } => rule.payload = payload(&value, &mask),
            Predicate::Source(prefix) => rule.source = Some(prefix),
        }
        // Later fragments have none of that.
        looks_behind |= matches!(
            predicate,
            Predicate::SourcePort(_)
                | Predicate::DestinationPort(_)
                | Predicate::TcpFlags(_)
                | Predicate::IcmpType(_)
                | Predicate::Fragment(FragmentWord::First)
                | Predicate::Payload { .. }
        );
    }
    let of_class = |protocols: &[u8]| Components {
        protocol: rule.protocol.clone().or_else(|| any_of(protocols)),
        ..rule.clone()
    };
    let tcp = |negated: bool| {
        let term = Term {
            value: TCP_SYN,
            mask: TCP_SYN | TCP_ACK,
            negated,
        };
        let flags = rule.tcp_flags.clone();
        Components {
            tcp_flags: flags.or_else(|| Bits::new(vec![vec![term]])),
            ..of_class(&[TCP])
        }
    };
    let fragments = || Components {
        fragment: Some(Bits::of(FragmentBits::IS, FragmentBits::IS)),
        ..rule.clone()
    };
    let is_tcp = || {
        let protocol = rule.protocol.as_ref();
        protocol.is_none_or(|protocol| protocol.contains(TCP.into()))
    };
    match class {
        Class::Syn => vec![tcp(false)],
        Class::Established => vec![tcp(true)],
        Class::Icmp => vec![of_class(&[ICMP, ICMPV6])],
        Class::Udp if looks_behind => vec![of_class(&[UDP])],
        Class::Udp => vec![Components {
            fragment: not_later(),
            ..of_class(&[UDP])
        }],
        Class::Other if later => vec![fragments()],
        Class::Other if looks_behind => is_tcp().then(|| tcp(true)).into_iter().collect(),
        Class::Other => {
            let tcp = is_tcp().then(|| tcp(true));
            tcp.into_iter().chain([fragments()]).collect()
        }
    }
}

fn only<K: NumberKind>(number: u16) -> Option<Numbers<K>> {
    Numbers::new([number..=number])
}

fn any_of<K: NumberKind>(numbers: &[u8]) -> Option<Numbers<K>> {
    let numbers = numbers.iter().copied().map(u16::from);
    Numbers::new(numbers.map(|number| number..=number))
}

fn not_later() -> Option<Bits<FragmentBits>> {
    let term = Term {
        value: FragmentBits::IS,
        mask: FragmentBits::IS,
        negated: true,
    };
    Bits::new(vec![vec![term]])
}

/// From the first to the last byte that the mask has bits of.
fn payload(value: &[u8], mask: &[u8]) -> Vec<Payload> {
    let is_asked = |byte: &u8| *byte != 0;
    let (Some(first), Some(last)) = (
        mask.iter().position(is_asked),
        mask.iter().rposition(is_asked),
    ) else {
        return Vec::new();
    };
    let mask = &mask[first..=last];
    let bytes = value[first..=last].iter().zip(mask);
    vec![Payload {
        offset: u8::try_from(first).unwrap_or(u8::MAX),
        value: Hex(bytes.map(|(byte, mask)| byte & mask).collect()),
        mask: Hex(mask.to_vec()),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::RuleSpec;

    #[test]
    fn a_signature_means_packets_of_its_class_only() {
        let payload = Predicate::Payload {
            value: [0, 0x17, 0x03, 0, 0, 0, 0, 0],
            mask: [0, 0xff, 0x0f, 0, 0, 0, 0, 0],
        };
        let length = Predicate::Length {
            least: 1000,
            most: 1200,
        };
        let ttl = Predicate::Ttl { least: 9, most: 9 };
        let cases: [(&[Predicate], Class, &[&str]); 7] = [
            (
                &[Predicate::Protocol(UDP), Predicate::SourcePort(53), length],
                Class::Udp,
                &["proto 17; sport 53; length 1000..1200 -> drop"],
            ),
            (
                &[length],
                Class::Udp,
                &["proto 17; length 1000..1200; fragment !is_fragment -> drop"],
            ),
            (
                &[payload],
                Class::Udp,
                &["proto 17; payload 1 = 0x1703/0xff0f -> drop"],
            ),
            (
                &[ttl],
                Class::Syn,
                &["proto 6; tcp flags 0x02/0x12; ttl 9 -> drop"],
            ),
            (
                &[Predicate::TcpFlags(0x10), ttl],
                Class::Established,
                &["proto 6; tcp flags 0x10/0xff; ttl 9 -> drop"],
            ),
            (&[ttl], Class::Icmp, &["proto 1,58; ttl 9 -> drop"]),
            (
                &[ttl],
                Class::Other,
                &[
                    "proto 6; tcp flags !0x02/0x12; ttl 9 -> drop",
                    "fragment is_fragment; ttl 9 -> drop",
                ],
            ),
        ];
        for (predicates, class, texts) in cases {
            let expected: Vec<Components> = texts
                .iter()
                .map(|text| text.parse::<RuleSpec>().unwrap().components)
                .collect();
            let signature = Signature(predicates.to_vec());
            assert_eq!(rules(&signature, class), expected, "{texts:?}");
        }
    }
}
