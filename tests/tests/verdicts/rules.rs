//! Rules: each component and action, and random ones against the plain matcher.

use proptest::{
    prelude::{Strategy, any, prop},
    prop_assert_eq, prop_oneof,
    sample::select,
    test_runner::{Config, TestRunner},
};
use sluice::{
    dataplane::RuleInForce,
    rules::{Action, Header, RuleSpec},
};
use sluice_ebpf::{
    abi::{DropReason, FILTER_RULES_MONITOR, FILTER_RULES_OFF},
    flow::{AGE_BITS, Flow, State},
};

use crate::{
    flows::{entry, write_entry},
    packet::{ACK, Family, Packet, SYN, TCP, UDP, client, vip},
    rig::{self, Counted, Rig},
    table::{Expect, Row, check_all, check_once},
    world::{self, backend},
};

const RANDOM: u32 = 60;

/// A rig whose packets can be given rules.
struct Ruled {
    rig: Rig,
}

impl Ruled {
    fn new() -> Self {
        let mut rig = Rig::new();
        // So that nothing but rules drops.
        for family in Family::BOTH {
            for protocol in [TCP, UDP] {
                let vip = rig.number_of(vip(family, world::L2), protocol);
                rig.change_vip(vip, |vip| (vip.sanity_enforce, vip.filter) = (0, 0));
            }
        }
        Self { rig }
    }

    /// Rules by their place, from 1; `vip a` is the first VIP, `vip b` the second.
    fn set(&mut self, rules: &[RuleSpec]) {
        let rules: Vec<RuleInForce<'_>> = (1..)
            .zip(rules)
            .map(|(id, spec)| RuleInForce {
                id,
                spec,
                vip: spec
                    .vip
                    .as_deref()
                    .map(|vip| if vip == "a" { 1 } else { 2 }),
            })
            .collect();
        self.rig.set_rules(&rules);
    }

    /// Packets that each rule passed and dropped, by its place.
    fn counts(&mut self, rules: usize) -> Vec<(u64, u64)> {
        let counts = self.rig.rules().counts().expect("the counters can be read");
        let of = |id: usize| counts[&(id as u64)];
        let ids = 1..=rules;
        ids.map(|id| (of(id).passed.packets, of(id).dropped.packets))
            .collect()
    }
}

fn rule(text: &str) -> RuleSpec {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn packet(family: Family) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, world::L2))
}

/// One rule that drops.
pub(crate) fn drop_by_rule(rig: &mut Rig, text: &str) {
    let spec = rule(text);
    let rule = RuleInForce {
        id: 1,
        spec: &spec,
        vip: None,
    };
    rig.set_rules(&[rule]);
}

#[test]
fn each_component_is_looked_at() {
    let mut ruled = Ruled::new();
    for family in Family::BOTH {
        let udp = packet(family).udp((53, 53), &[0x17, 3, 9, 1, 2, 3, 4, 5, 6]);
        let syn = packet(family).tcp((45_000, 80), SYN, b"");
        let ping = packet(family).echo_request(7, b"ping");
        let [first, later] = packet(family).udp((53, 53), &[7; 600]).in_two(9, 256);
        // Its flags would stand behind its end.
        let [tiny, _] = packet(family).tcp((45_001, 80), SYN, b"").in_two(10, 8);
        let v4 = family == Family::V4;
        let (here, elsewhere, echo) = if v4 {
            (
                "198.51.100.7",
                "198.51.101.0/24",
                "icmp type 8; icmp code 0",
            )
        } else {
            (
                "2001:db8:c64:7::/64",
                "2001:db8:c65::/48",
                "icmp type 128; icmp code 0",
            )
        };
        let to = udp.to;
        let cases = [
            (format!("src {here}"), &udp, true),
            (format!("src {elsewhere}"), &udp, false),
            (format!("dst {to}"), &udp, true),
            (format!("dst {to}; sport 54"), &udp, false),
            (
                if v4 { "src ::/0" } else { "src 0.0.0.0/0" }.into(),
                &udp,
                false,
            ),
            ("proto udp".into(), &udp, true),
            ("proto tcp".into(), &udp, false),
            ("port 53".into(), &udp, true),
            ("port 45000".into(), &syn, true),
            ("port 80".into(), &syn, true),
            ("dport 80".into(), &syn, true),
            ("sport 80".into(), &syn, false),
            ("tcp flags syn && !ack".into(), &syn, true),
            ("tcp flags ack".into(), &syn, false),
            ("tcp flags 0x00/0x01".into(), &udp, false),
            (format!("length {}", family.header_bytes() + 20), &syn, true),
            (
                format!("length > {}", family.header_bytes() + 20),
                &syn,
                false,
            ),
            ("ttl 61".into(), &udp, true),
            ("ttl < 61 || > 61".into(), &udp, false),
            ("dscp 0".into(), &udp, true),
            ("dscp 1..63".into(), &udp, false),
            ("payload 0 = 0x1703".into(), &udp, true),
            ("payload 1 = 0x030901020304050600".into(), &udp, false),
            ("payload 1 = 0x0309010203040506".into(), &udp, true),
            (
                "payload 2 = 0x01/0x0f; payload 0 = 0x17".into(),
                &udp,
                false,
            ),
            ("payload 2 = 0x09/0x0f; payload 0 = 0x17".into(), &udp, true),
            ("payload 8 = 0x0600".into(), &udp, false),
            (echo.into(), &ping, true),
            ("icmp code 1".into(), &ping, false),
            ("icmp type 0..255".into(), &udp, false),
            ("fragment first_fragment".into(), &first, true),
            ("proto tcp; dport 80".into(), &tiny, true),
            ("tcp flags syn".into(), &tiny, false),
            ("fragment is_fragment".into(), &first, false),
            ("fragment is_fragment && last_fragment".into(), &later, true),
            ("proto udp; fragment is_fragment".into(), &later, true),
            ("dport 53".into(), &first, true),
            ("dport 53".into(), &later, false),
            ("payload 0 = 0x07".into(), &later, false),
            ("vip a".into(), &syn, v4),
        ];
        for (text, packet, meant) in cases {
            ruled.set(&[rule(&format!("{text} -> drop"))]);
            let dropped = ruled.rig.run(&packet.frame()).action == rig::Action::Drop;
            assert_eq!(dropped, meant, "{family:?}: {text}");
            let counted = u64::from(meant);
            assert_eq!(ruled.counts(1), [(0, counted)], "{family:?}: {text}");
            // The next case's rule has the same id.
            ruled.set(&[]);
        }
    }
}

#[test]
fn each_action_does_what_it_says() {
    let mut ruled = Ruled::new();
    let udp = packet(Family::V4).udp((53, 53), b"query");
    let sent = Expect::Sent(backend::L2);
    let dropped = Expect::Drop(DropReason::Rule);
    for (rules, expect, counts) in [
        (&["proto udp -> drop"][..], dropped, &[(0, 1)][..]),
        (&["proto udp -> drop; monitor"], sent, &[(0, 1)]),
        (
            &["proto udp -> pass", "proto udp -> drop"],
            sent,
            &[(1, 0), (0, 0)],
        ),
        (
            &["proto udp -> pass; monitor", "sport 53 -> drop"],
            dropped,
            &[(1, 0), (0, 1)],
        ),
        (
            &["proto udp -> sample", "sport 53 -> drop"],
            dropped,
            &[(1, 0), (0, 1)],
        ),
        (
            &["proto udp -> challenge", "sport 53 -> drop"],
            dropped,
            &[(1, 0), (0, 1)],
        ),
        (
            &["proto udp -> limit 1 pps, burst 1", "sport 53 -> drop"],
            dropped,
            &[(1, 0), (0, 1)],
        ),
    ] {
        let specs: Vec<RuleSpec> = rules.iter().map(|text| rule(text)).collect();
        ruled.set(&specs);
        let row = Row::new(rules.join(", "), udp.clone(), expect);
        let checked = check_once_monitored(&mut ruled.rig, &row);
        assert!(checked.is_ok(), "{rules:?}: {:#}", checked.unwrap_err());
        assert_eq!(ruled.counts(rules.len()), counts, "{rules:?}");
        ruled.set(&[]);
    }
}

/// What would have been dropped is counted beside what became of the packet.
fn check_once_monitored(rig: &mut Rig, row: &Row) -> anyhow::Result<()> {
    let before = rig.counts(row.packet.to);
    let action = rig.run(&row.packet.frame()).action;
    let counted = rig.counts(row.packet.to) - before;
    let monitored = row.name.contains("drop; monitor");
    let drops = |what: fn(u16, DropReason) -> Counted| {
        (1..60)
            .map(|vip| counted.of(what(vip, DropReason::Rule)))
            .sum::<u64>()
    };
    anyhow::ensure!(
        drops(Counted::Monitored) == u64::from(monitored),
        "{counted:?}"
    );
    let dropped = row.expect == Expect::Drop(DropReason::Rule);
    anyhow::ensure!(drops(Counted::Dropped) == u64::from(dropped), "{counted:?}");
    anyhow::ensure!((action == rig::Action::Drop) == dropped, "{action:?}");
    Ok(())
}

#[test]
fn a_limit_drops_what_is_over_it() {
    let mut ruled = Ruled::new();
    ruled.set(&[rule("proto udp -> limit 1 pps, burst 5")]);
    let udp = packet(Family::V4).udp((53, 53), b"query").frame();
    let mut passed = 0;
    for _ in 0..50 {
        passed += u64::from(ruled.rig.run(&udp).action != rig::Action::Drop);
    }
    assert!((5..=6).contains(&passed), "{passed}");
    assert_eq!(ruled.counts(1), [(passed, 50 - passed)]);
}

#[test]
fn proven_flows_meet_only_rules_that_say_so() {
    let mut ruled = Ruled::new();
    let packet = packet(Family::V4).tcp((45_000, 80), ACK, b"data");
    ruled.rig.run(&packet.frame());
    let (bucket, way, flow) = entry(&ruled.rig, &packet);
    let differs = (State::Unproven as u64 ^ State::Proven as u64) << AGE_BITS;
    write_entry(&mut ruled.rig, bucket, way, Flow(flow.0 ^ differs));
    for (text, drops) in [
        ("dport 80 -> drop", false),
        ("dport 80 -> drop; established", true),
    ] {
        ruled.set(&[rule(text)]);
        let dropped = ruled.rig.run(&packet.frame()).action == rig::Action::Drop;
        assert_eq!(dropped, drops, "{text}");
    }
}

#[test]
fn a_policy_can_count_only_or_leave_rules_out() {
    let mut ruled = Ruled::new();
    let udp = packet(Family::V4).udp((53, 53), b"query");
    ruled.set(&[rule("proto udp -> drop")]);
    let vip = ruled.rig.number_of(udp.to, 17);
    for (filter, monitored) in [(FILTER_RULES_MONITOR, 1), (FILTER_RULES_OFF, 0)] {
        ruled.rig.change_vip(vip, |vip| vip.filter = filter);
        let before = ruled.rig.counts(udp.to);
        let action = ruled.rig.run(&udp.frame()).action;
        assert_eq!(action, rig::Action::Tx);
        let counted = ruled.rig.counts(udp.to) - before;
        assert_eq!(
            counted.of(Counted::Monitored(vip, DropReason::Rule)),
            monitored
        );
    }
}

#[test]
fn a_rule_drops_whatever_the_frame() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        drop_by_rule(&mut rig, "ttl 61 -> drop");
        let plain = packet(family);
        let rows = [
            plain.clone().udp((45_100, 53), b"query"),
            plain
                .clone()
                .vlan(crate::packet::DOT1Q, 7)
                .udp((45_100, 53), b"query"),
            plain.clone().tcp((45_000, 80), SYN, b""),
            plain.echo_request(3, b"ping"),
        ];
        let rows = rows.map(|packet| Row::new("by TTL", packet, Expect::Drop(DropReason::Rule)));
        check_all(&mut rig, &rows);
        check_once(&mut rig, &rows[0]).expect("again");
    }
}

/// Texts that meet what [`random_packet`] makes.
fn random_rules() -> impl Strategy<Value = Vec<RuleSpec>> {
    let component = select(vec![
        "src 198.51.100.0/24",
        "src 198.51.101.128/25",
        "src 198.51.0.0/16",
        "src 198.51.100.7",
        "src 2001:db8:c64::/48",
        "src 2001:db8:c65:7::7",
        "src ::/0",
        "src 2001:db8:c00::/38",
        "dst 192.0.2.0/26",
        "dst 2001:db8:1::/48",
        "proto tcp",
        "proto udp",
        "proto 1,58",
        "port 53",
        "sport 1..1000",
        "sport 53,80",
        "dport 80",
        "dport 53",
        "dport > 60",
        "length > 100",
        "length <= 60",
        "length 100..200",
        "ttl 1..64",
        "ttl 100",
        "dscp 0",
        "dscp 1..63",
        "tcp flags syn",
        "tcp flags 0x10/0x12",
        "fragment dont_fragment",
        "fragment !is_fragment",
        "fragment first_fragment",
        "fragment is_fragment",
        "fragment last_fragment",
        "icmp type 8,128",
        "icmp code 0",
        "payload 0 = 0x01",
        "payload 0 = 0x0102",
        "payload 2 = 0x00/0x01",
        "payload 1 = 0x020101020201010202",
        "vip a",
        "vip b",
    ]);
    let components = prop::collection::vec(component, 1..4);
    let action = select(vec![
        "drop",
        "drop; monitor",
        "pass",
        "sample",
        "drop; established",
    ]);
    let text = (components, action)
        .prop_map(|(components, action)| format!("{} -> {action}", components.join("; ")));
    // Two of a kind are refused.
    let rule = text.prop_filter_map("a rule", |text| text.parse::<RuleSpec>().ok());
    prop::collection::vec(rule, 1..150)
}

fn random_packet() -> impl Strategy<Value = Packet> {
    let ports = || select(vec![53u16, 80, 443, 60_000]);
    let fields = (
        (
            select(Family::BOTH.to_vec()),
            99..103u8,
            select(vec![0u8, 7, 200]),
        ),
        (ports(), select(vec![53u16, 80])),
        prop_oneof![0..4u8, 0..3u8],
        select(vec![0u8, 46 << 2]),
        select(vec![1u8, 61, 100]),
        prop::collection::vec(0..3u8, 0..300),
        (0..6u8, any::<bool>()),
    );
    fields.prop_map(
        |((family, network, host), ports, kind, class, ttl, data, (piece, tagged))| {
            let plain =
                Packet::new(client(family, network, host), vip(family, world::L2)).with(|p| {
                    (p.class, p.ttl) = (class, ttl);
                    if tagged {
                        p.vlans.push((crate::packet::DOT1Q, 9));
                    }
                });
            let whole = match kind {
                0 => plain.tcp((ports.0, 80), SYN, b""),
                1 => plain.tcp((ports.0, 80), ACK, &data),
                2 => plain.udp((ports.0, 53), &data),
                _ => return plain.echo_request(ports.1, &data),
            };
            match piece {
                0 => whole.piece(3, 0, true),
                1 => whole.piece(4, 800, true),
                2 => whole.piece(5, 800, false),
                _ => whole,
            }
        },
    )
}

/// The program and a plain walk through the list agree on every rule's counters and on the verdict.
#[test]
fn random_rules_and_packets_meet_what_the_list_says() {
    let mut runner = TestRunner::new(Config {
        cases: RANDOM,
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    });
    let ruled = std::cell::RefCell::new(Ruled::new());
    let packets = prop::collection::vec(random_packet(), 1..40);
    let result = runner.run(&(random_rules(), packets), |(rules, packets)| {
        let mut ruled = ruled.borrow_mut();
        ruled.set(&rules);
        let mut expected = vec![(0, 0); rules.len()];
        for packet in packets {
            let header = Header::decode(&packet.ip_bytes()).expect("a whole packet");
            let number = ruled.rig.number_of(packet.to, packet.protocol);
            let vip = match number {
                1 => "a",
                2 => "b",
                _ => "c",
            };
            let mut dropped = false;
            for (rule, count) in rules.iter().zip(&mut expected) {
                if !rule.matches(vip, &header) {
                    continue;
                }
                let enforced = rule.mode == sluice::config::Mode::Enforce;
                match rule.action {
                    Action::Drop => count.1 += 1,
                    _ => count.0 += 1,
                }
                match rule.action {
                    Action::Drop if enforced => dropped = true,
                    Action::Pass if enforced => {}
                    _ => continue,
                }
                break;
            }
            let action = ruled.rig.run(&packet.frame()).action;
            prop_assert_eq!(action == rig::Action::Drop, dropped, "{:?}", header);
        }
        prop_assert_eq!(ruled.counts(rules.len()), expected);
        ruled.set(&[]);
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
