//! Random rules and packets: the tables mean what the rules do.

use std::net::IpAddr;

use proptest::prelude::*;
use sluice_ebpf::{
    flow::State,
    rules::{Asked, Search, find, icmp_kind, plain_kind, tcp_kind},
};

use super::*;
use crate::rules::{FragmentBits, Header, arbitrary};

fn words(address: IpAddr) -> [u64; 2] {
    bytemuck::cast(match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

/// What the program learns of a packet before it asks.
fn asked(header: &Header, vip: u16) -> Asked {
    let v6 = header.source.is_ipv6();
    let (source_port, destination_port) = header.ports.unwrap_or_default();
    let kind = match (header.tcp_flags, header.icmp) {
        (Some(flags), _) => tcp_kind(flags),
        (_, Some((kind, _))) => icmp_kind(v6, kind),
        _ => plain_kind(header.protocol),
    };
    Asked {
        source: words(header.source),
        destination: words(header.destination),
        v6: v6.into(),
        has_ports: header.ports.is_some().into(),
        source_port: source_port.into(),
        destination_port: destination_port.into(),
        has_code: header.icmp.is_some().into(),
        code: header.icmp.unwrap_or_default().1.into(),
        kind,
        length: header.length.into(),
        dscp: header.dscp.into(),
        fragment: header.fragment.into(),
        ttl: header.ttl.into(),
        vip: vip.into(),
        payload: 0,
        end: u32::try_from(header.payload.len()).unwrap(),
    }
}

fn piece(header: &Header, offset: u32, bytes: u32) -> Option<u64> {
    let (offset, bytes) = (offset as usize, bytes as usize);
    let piece = header.payload.get(offset..offset + bytes)?;
    let mut word = [0; 8];
    word[..bytes].copy_from_slice(piece);
    Some(u64::from_ne_bytes(word))
}

/// Numbers of the rules that mean a packet, as the tables tell, each once.
fn by_tables(compiled: &Compiled, header: &Header, vip: u16) -> Vec<u16> {
    let payload = |offset, bytes| piece(header, offset, bytes);
    let mut search = Search {
        asked: asked(header, vip),
        ..Search::default()
    };
    let words = find(&compiled.tables, &mut search, State::Unproven, payload);
    let mut found = Vec::new();
    for word in (0..WORDS).filter(|word| words >> word & 1 != 0) {
        let numbers = (0..64).filter(|bit| search.meant[word] >> bit & 1 != 0);
        found.extend(numbers.map(|bit| compiled.tables.entries[word * 64 + bit].number));
    }
    found
}

fn placed(rules: &[RuleSpec]) -> Vec<Placed<'_>> {
    let place = |(number, spec): (u16, _)| {
        let spec: &RuleSpec = spec;
        let vip = spec
            .vip
            .as_deref()
            .map(|vip| if vip == "a" { 1 } else { 2 });
        Placed { spec, number, vip }
    };
    (0..).zip(rules).map(place).collect()
}

fn by_hand(rules: &[RuleSpec], header: &Header, vip: &str) -> Vec<u16> {
    let numbered = (0..).zip(rules);
    let meant = numbered.filter(|(_, rule)| rule.matches(vip, header));
    meant.map(|(number, _)| number).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// One after the other, and in one sweep over a list.
    #[test]
    fn tables_and_the_plain_list_mean_the_same(
        rules in prop::collection::vec(arbitrary::rule(), 1..120),
        headers in prop::collection::vec(arbitrary::header(), 1..200),
    ) {
        let compiled = match compile(&placed(&rules)) {
            Ok(compiled) => compiled,
            // Pieces of payload are few.
            Err(error) => {
                prop_assert_eq!(error, TooMany::Windows);
                return Ok(());
            }
        };
        for header in &headers {
            for (number, vip) in [(1, "a"), (2, "b"), (3, "c")] {
                prop_assert_eq!(by_tables(&compiled, header, number), by_hand(&rules, header, vip), "{:?}", header);
            }
        }
    }
}

fn rule(text: &str) -> RuleSpec {
    text.parse().unwrap()
}

#[test]
fn a_thousand_rules_of_many_kinds_fit() {
    let rules: Vec<RuleSpec> = (0..1024u32)
        .map(|n| match n % 5 {
            0 => rule(&format!(
                "src 10.{}.{}.{}/32; proto udp -> drop",
                n / 64,
                n % 64,
                n % 7
            )),
            1 => rule(&format!("sport {n}; dport {}..65535 -> drop", n + 7)),
            2 => rule(&format!("src 2001:db8:{n:x}::/48; length {n} -> drop")),
            3 => rule(&format!("payload 0 = 0x{n:08x}; ttl {} -> drop", n % 256)),
            _ => rule(&format!(
                "dst 192.0.{}.0/25; tcp flags 0x02/0x12; dport {n} -> drop",
                n % 256
            )),
        })
        .collect();
    let compiled = compile(&placed(&rules)).unwrap();
    assert!(
        compiled
            .parts()
            .iter()
            .all(|part| part.end <= size_of::<RuleTables>())
    );
    let udp = Header {
        protocol: 17,
        ports: Some((1021, 5000)),
        ..header("10.15.60.5", "192.0.2.1")
    };
    assert_eq!(by_tables(&compiled, &udp, 1), by_hand(&rules, &udp, "a"));
    assert_eq!(by_tables(&compiled, &udp, 1), [1020, 1021]);
    let v6 = Header {
        length: 1022,
        ..header("2001:db8:3fe::9", "2001:db8::1")
    };
    assert_eq!(by_tables(&compiled, &v6, 1), [1022]);
}

#[test]
fn what_does_not_fit_is_named() {
    let many = vec![rule("ttl 1 -> drop"); 1025];
    assert_eq!(compile(&placed(&many)).err(), Some(TooMany::Rules));
    let ports = vec![rule("port 53 -> drop"); 513];
    assert_eq!(compile(&placed(&ports)).err(), Some(TooMany::Rules));
    let windows: Vec<_> = (0..9)
        .map(|n| rule(&format!("payload {n} = 0x01 -> drop")))
        .collect();
    assert_eq!(compile(&placed(&windows)).err(), Some(TooMany::Windows));
    assert!(compile(&[]).is_ok_and(|empty| empty.tables.fields == 0));
}

#[test]
fn a_rule_for_either_port_counts_a_packet_once() {
    let rules = [rule("port 53 -> limit 5 pps")];
    let compiled = compile(&placed(&rules)).unwrap();
    for (ports, found) in [((53, 53), 1), ((53, 1), 1), ((1, 53), 1), ((1, 1), 0)] {
        let packet = Header {
            protocol: 17,
            ports: Some(ports),
            ..header("10.0.0.1", "10.0.0.2")
        };
        assert_eq!(by_tables(&compiled, &packet, 1).len(), found, "{ports:?}");
    }
}

fn header(source: &str, destination: &str) -> Header {
    Header {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: 6,
        ports: None,
        tcp_flags: None,
        icmp: None,
        length: 40,
        dscp: 0,
        fragment: FragmentBits::DONT,
        ttl: 64,
        payload: Vec::new(),
    }
}
