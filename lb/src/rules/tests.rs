//! That rules mean what they say, in each of their forms.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::config::Mode;

fn rule(text: &str) -> RuleSpec {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

proptest! {
    #[test]
    fn a_rule_survives_text_and_json(rule in arbitrary::rule()) {
        let text = rule.to_string();
        let read: RuleSpec = text.parse().unwrap();
        prop_assert_eq!(&read, &rule, "{}", text);
        let json = serde_json::to_vec(&rule).unwrap();
        prop_assert_eq!(&RuleSpec::from_json(&json).unwrap(), &rule);
        prop_assert_eq!(&serde_json::from_slice::<RuleSpec>(&json).unwrap(), &rule);
    }

    #[test]
    fn any_text_is_read_or_refused_with_its_column(text in "[a-z0-9 .:;,=<>!&|/>\"-]{0,60}") {
        if let Err(error) = text.parse::<RuleSpec>() {
            prop_assert!(error.column.is_none_or(|column| column <= text.chars().count() + 1));
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn a_rule_means_what_it_means_in_text(rule in arbitrary::rule(), header in arbitrary::header()) {
        let read: RuleSpec = rule.to_string().parse().unwrap();
        prop_assert_eq!(read.matches("a", &header), rule.matches("a", &header));
    }

    #[test]
    fn a_complement_has_what_is_missing(ranges in prop::collection::vec((any::<u16>(), any::<u16>()), 1..5), value: u16) {
        let numbers = Numbers::<Port>::new(ranges.into_iter().map(|(a, b)| a.min(b)..=a.max(b))).unwrap();
        let complement = numbers.complement();
        prop_assert_ne!(complement.is_some_and(|rest| rest.contains(value)), numbers.contains(value));
    }
}

#[test]
fn a_rule_reads_like_flowspec_and_is_written_short() {
    let cases = [
        (
            "dst 192.0.2.0/24; proto = 17; sport = 53 || = 123; length > 1000; tcp flags 0x02/0x12; -> drop",
            None,
        ),
        (
            "dst 192.0.2.0/24; proto = 17; sport = 53 || = 123; length > 1000; -> drop",
            Some("dst 192.0.2.0/24; proto 17; sport 53,123; length >= 1001 -> drop"),
        ),
        (
            "src 2001:db8::1 ;next header tcp; dport > 24 && < 30 || 40..50,60..70,80 && >= 90->pass",
            Some("src 2001:db8::1/128; proto 6; dport 25..29,40..50,60..70 -> pass"),
        ),
        (
            "tcp flags syn && !ack || 0x03/0x0f -> challenge",
            Some("tcp flags 0x02/0x02 && !0x10/0x10 || 0x03/0x0f -> challenge"),
        ),
        (
            "fragment is_fragment || !dont_fragment ; ttl != 64 -> limit 1000 pps, 8000000 bps, burst 5",
            Some("ttl 0..63,65..255; fragment is_fragment || !dont_fragment"),
        ),
        (
            "icmp type 8; icmp code 0; dscp 0x2e; vip web -> sample ; monitor; priority 7; established; expire 2m; comment \"a \\\"b\\\"\";",
            Some(
                "icmp type 8; icmp code 0; dscp 46; vip web -> sample; monitor; established; priority 7; expire 120s; comment \"a \\\"b\\\"\"",
            ),
        ),
        (
            "payload 0 = 0x1703; payload 4 = 01/0f -> drop",
            Some("payload 0 = 0x1703; payload 4 = 0x01/0x0f -> drop"),
        ),
    ];
    for (text, written) in cases {
        let Some(written) = written else {
            // Flags of TCP in a rule for UDP.
            let error = text.parse::<RuleSpec>().unwrap_err();
            assert_eq!(error.field, "match.tcp_flags");
            continue;
        };
        let read = rule(text);
        if written.contains("->") {
            assert_eq!(read.to_string(), written);
        }
        assert_eq!(rule(&read.to_string()), read);
    }
    let limited = rule("ttl 1 -> limit 1000 pps");
    let Action::Limit(limit) = limited.action else {
        panic!("{limited:?}");
    };
    assert_eq!(limit.burst_packets(), 100);
    assert_eq!((limited.mode, limited.priority), (Mode::Enforce, 100));
}

#[test]
fn an_error_tells_the_column_and_what_would_be_right() {
    let cases = [
        ("", 1, "-> drop"),
        ("proto 17", 9, "-> drop"),
        ("protoo 17 -> drop", 1, "`proto`"),
        ("proto 300 -> drop", 7, "255"),
        ("proto sctp -> drop", 7, "udp"),
        ("sport 53 123 -> drop", 10, "`;`"),
        ("sport 70000 -> drop", 7, "65535"),
        ("sport 5..3 -> drop", 7, "nothing"),
        ("sport > 5 && < 3 -> drop", 7, "at once"),
        ("dst 192.0.2.0/33 -> drop", 5, "192.0.2.0/24"),
        ("dst -> drop", 5, "192.0.2.0/24"),
        ("proto 6; proto 17 -> drop", 10, "second `proto`"),
        ("tcp flags 0x03/0x02 -> drop", 11, "outside of its mask"),
        ("tcp flags sin -> drop", 11, "syn"),
        ("fragment 0x10 -> drop", 10, "more bits"),
        ("payload 0 0x01 -> drop", 11, "`=`"),
        ("payload 0 = 0x1 -> drop", 13, "two digits"),
        ("payload 63 = 0x0102 -> drop", 9, "64 bytes"),
        ("proto 6 -> dorp", 12, "`drop`"),
        ("proto 6 -> limit", 17, "1000 pps"),
        ("proto 6 -> limit 5", 18, "`pps`"),
        ("proto 6 -> drop monitor", 17, "`;`"),
        ("proto 6 -> drop; monitr", 18, "`monitor`"),
        ("proto 6 -> drop; expire soon", 25, "10m"),
        ("proto 6 -> drop; priority -1", 27, "65535"),
        ("proto 6 -> drop; comment \"x", 26, "quote"),
    ];
    for (text, column, part) in cases {
        let error = text.parse::<RuleSpec>().unwrap_err();
        assert_eq!(error.column, Some(column), "{text}: {error}");
        assert!(error.message.contains(part), "{text}: {error}");
    }
}

#[test]
fn an_error_of_json_names_its_field() {
    let cases = [
        ("[", ""),
        ("7", ""),
        (r#"{"match": {"protocol": 17}}"#, "action"),
        (
            r#"{"match": {"protocol": 300}, "action": "drop"}"#,
            "match.protocol",
        ),
        (r#"{"match": {"prot": 17}, "action": "drop"}"#, "match.prot"),
        (
            r#"{"match": {"source": "192.0.2.1/24"}, "action": "drop"}"#,
            "match.source",
        ),
        (
            r#"{"match": {"source": "x"}, "action": "drop"}"#,
            "match.source",
        ),
        (
            r#"{"match": {"payload": [{"offset": 0, "value": "0x"}]}, "action": "drop"}"#,
            "match.payload",
        ),
        (
            r#"{"match": {"source": "192.0.2.1", "destination": "::1"}, "action": "drop"}"#,
            "match.source",
        ),
        (
            r#"{"match": {"icmp_type": 8, "port": 7}, "action": "drop"}"#,
            "match.icmp_type",
        ),
        (r#"{"match": {}, "action": "drop"}"#, "match"),
        (r#"{"match": {"ttl": 1}, "action": "dorp"}"#, "action"),
        (
            r#"{"match": {"ttl": 1}, "action": {"limit": {}}}"#,
            "action.limit",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": {"limit": {"pps": 0}}}"#,
            "action.limit.pps",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": "drop", "mode": "off"}"#,
            "mode",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": "drop", "ttl_seconds": 0}"#,
            "ttl_seconds",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": "drop", "vip": ""}"#,
            "vip",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": "drop", "priority": 70000}"#,
            "priority",
        ),
        (
            r#"{"match": {"ttl": 1}, "action": "drop", "ttl": 5}"#,
            "ttl",
        ),
        (r#"{"rule": "ttl 1"}"#, "rule"),
        (r#"{"rule": "ttl 1 -> drop", "action": "drop"}"#, "action"),
    ];
    for (json, field) in cases {
        let error = RuleSpec::from_json(json.as_bytes()).unwrap_err();
        assert_eq!(error.field(), field, "{json}");
    }
    let list = r#"["ttl 1 -> drop", {"match": {"ttl": 300}, "action": "drop"}]"#;
    let error = RuleSpec::list_from_json(list.as_bytes()).unwrap_err();
    assert_eq!(error.field(), "[1].match.ttl");
}

#[test]
fn fields_count_for_more_than_the_text() {
    let json = br#"{"rule": "proto udp; sport 53 -> drop; priority 3", "mode": "monitor", "ttl_seconds": 60, "vip": "web"}"#;
    let spec = RuleSpec::from_json(json).unwrap();
    assert_eq!(
        spec.to_string(),
        "proto 17; sport 53; vip web -> drop; monitor; priority 3; expire 60s"
    );
    let json = br#"{"match": {"protocol": [6, "udp"], "port": "53,80", "destination": "192.0.2.1"}, "action": {"limit": {"pps": 5}}}"#;
    let spec = RuleSpec::from_json(json).unwrap();
    assert_eq!(
        spec.to_string(),
        "dst 192.0.2.1/32; proto 6,17; port 53,80 -> limit 5 pps"
    );
}

/// A frame's packet, from its IP header on.
fn packet(
    builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

#[test]
fn each_component_is_read_from_the_packet() {
    let udp = PacketBuilder::ipv4([198, 51, 100, 7], [192, 0, 2, 1], 61).udp(53, 4000);
    let udp = Header::decode(&packet(udp, &[0x17, 0x03, 9])).unwrap();
    assert_eq!((udp.length, udp.protocol, udp.ttl), (31, 17, 61));
    assert_eq!(
        (udp.ports, udp.payload.as_slice()),
        (Some((53, 4000)), &[0x17, 3, 9][..])
    );
    let v6 = PacketBuilder::ipv6([9; 16], [8; 16], 3).udp(1, 2);
    let v6 = Header::decode(&packet(v6, &[])).unwrap();
    assert_eq!((v6.length, v6.ttl, v6.fragment), (48, 3, 0));
    let cases = [
        ("dst 192.0.2.0/24", true),
        ("dst 192.0.3.0/24", false),
        ("dst 0.0.0.0/0", true),
        ("dst ::/0", false),
        ("src 198.51.100.7", true),
        ("proto udp", true),
        ("proto tcp", false),
        ("port 4000", true),
        ("port 53", true),
        ("port 54", false),
        ("sport 53", true),
        ("dport 53", false),
        ("length 31", true),
        ("length > 31", false),
        ("dscp 0", true),
        ("ttl 60..62", true),
        ("icmp type 8", false),
        ("tcp flags 0x00/0x01", false),
        // etherparse sets the bit.
        ("fragment dont_fragment", true),
        ("fragment !is_fragment", true),
        ("payload 0 = 0x1703", true),
        ("payload 1 = 0x13/0x0f", false),
        ("payload 1 = 0x03/0x0f", true),
        ("payload 2 = 0x0900", false),
    ];
    for (text, expected) in cases {
        let Ok(rule) = format!("{text} -> drop").parse::<RuleSpec>() else {
            assert!(!expected, "{text}");
            continue;
        };
        assert_eq!(rule.matches("web", &udp), expected, "{text}");
    }
    let named = rule("proto udp; vip web -> drop");
    assert!(named.matches("web", &udp) && !named.matches("dns", &udp));
}

#[test]
fn later_fragments_have_no_ports_and_no_payload() {
    let whole = packet(
        PacketBuilder::ipv4([1; 4], [2; 4], 9).udp(53, 4000),
        &[7; 40],
    );
    // Flags and offset, and what a packet is then.
    for (word, bits) in [
        (0x2000u16, FragmentBits::FIRST),
        (0x2001, FragmentBits::IS),
        (0x0001, FragmentBits::IS | FragmentBits::LAST),
        (0x4000, FragmentBits::DONT),
        (0, 0),
    ] {
        let mut fragment = whole.clone();
        fragment[6..8].copy_from_slice(&word.to_be_bytes());
        let header = Header::decode(&fragment).unwrap();
        let later = bits & FragmentBits::IS != 0;
        assert_eq!(header.fragment, bits);
        assert_eq!(
            (header.ports.is_none(), header.payload.is_empty()),
            (later, later)
        );
        assert_eq!(rule("sport 53 -> drop").matches("web", &header), !later);
        assert_eq!(
            rule("payload 0 = 0x07 -> drop").matches("web", &header),
            !later
        );
    }
    for length in 0..28 {
        assert_eq!(Header::decode(&whole[..length]), None, "{length}");
    }
    assert!(Header::decode(&whole[..28]).is_some());
}

#[test]
fn ipv6_headers_are_walked() {
    let mut packet = vec![0x6b, 0x80, 0, 0, 0, 8 + 8 + 20, 0, 17];
    packet.extend([1; 16]);
    packet.extend([2; 16]);
    packet.extend([44, 0, 0, 0, 0, 0, 0, 0]);
    packet.extend([6, 0, 0, 1, 0, 0, 0, 5]);
    packet.extend([
        0, 80, 0x1f, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x12, 0, 0, 0, 0, 0, 0,
    ]);
    let header = Header::decode(&packet).unwrap();
    assert_eq!((header.protocol, header.dscp, header.ttl), (6, 46, 17));
    assert_eq!(
        (header.ports, header.tcp_flags),
        (Some((80, 8080)), Some(0x12))
    );
    assert_eq!((header.fragment, header.length), (FragmentBits::FIRST, 76));
    assert!(
        rule("tcp flags 0x12/0x12; dscp 46; fragment first_fragment -> drop")
            .matches("web", &header)
    );
}
