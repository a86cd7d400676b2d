//! SYNs that are challenged, and what their clients say to that.

use std::{thread::sleep, time::Duration};

use sluice::{dataplane::RuleInForce, rules::RuleSpec};
use sluice_ebpf::{
    abi::{
        Challenge, ChallengeStats, DropReason, JIFFY_BITS, Limiter, SYN_AUTO, SYN_MONITOR, maps,
    },
    challenge::{answer, base, epoch},
    hash::Tuple,
    reset::TcpHeader,
};

use crate::{
    decode::numbers,
    flows::{entry, goes_to, jiffies, vip_of},
    packet::{ACK, DOT1AD, DOT1Q, Family, Packet, RST, SYN, client, l4_checksum, vip},
    rig::{Action, EPOCH_SHIFT, Rig},
    table::{Expect, Row, check_all, check_once},
    vip_index::words,
    world::{self, backend},
};

const INITIAL: u32 = 0x0100_4321;

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 120, host), vip(family, world::CHALLENGED))
}

fn syn(family: Family, host: u8, port: u16) -> Packet {
    let packet = packet(family, host).tcp((port, 80), SYN, b"");
    with_sequence(packet, INITIAL)
}

/// A TCP packet with another sequence number.
pub(crate) fn with_sequence(packet: Packet, sequence: u32) -> Packet {
    summed(packet, |tcp| {
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    })
}

/// A TCP packet with something changed, and its checksum right again.
pub(crate) fn summed(mut packet: Packet, change: impl FnOnce(&mut Vec<u8>)) -> Packet {
    change(&mut packet.payload);
    packet.payload[16..18].fill(0);
    let sum = l4_checksum(packet.from, packet.to, packet.protocol, &packet.payload);
    packet.payload[16..18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// A SYN with options as a Linux client sends them: 40 bytes of header.
fn with_options(packet: Packet) -> Packet {
    summed(packet, |tcp| {
        tcp[12] = 0xa0;
        tcp.extend([
            2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
        ]);
    })
}

/// Sends a SYN that is challenged, and makes the reset that its client sends.
#[track_caller]
fn challenged(rig: &mut Rig, syn: &Packet) -> Packet {
    let row = Row::new("a SYN", syn.clone(), Expect::Challenge);
    let ran = check_once(rig, &row).unwrap();
    let tcp = syn.ip_offset() + syn.family().header_bytes();
    let [_, acknowledged] = numbers(&ran.frame, tcp).unwrap();
    let port = u16::from_be_bytes([syn.payload[0], syn.payload[1]]);
    let reset = Packet::new(syn.from, syn.to).tcp((port, 80), RST, b"");
    with_sequence(reset, acknowledged)
}

#[track_caller]
fn is_dropped(rig: &mut Rig, packet: &Packet, reason: DropReason) {
    let row = Row::new("an answer", packet.clone(), Expect::Drop(reason));
    check_once(rig, &row).unwrap();
}

/// A reset that answers the challenge of a SYN which was never sent here: nothing is stored of one.
pub(crate) fn reset(rig: &Rig, family: Family) -> Packet {
    let syn = syn(family, 9, 45_800);
    let port = |at: usize| u16::from_ne_bytes([syn.payload[at], syn.payload[at + 1]]);
    let tuple = Tuple {
        source: words(syn.from),
        destination: words(syn.to),
        ports: u32::from(port(0)) | u32::from(port(2)) << 16,
        protocol: 6,
        v6: family == Family::V6,
    };
    let header = TcpHeader {
        source: port(0),
        destination: port(2),
        sequence_be: INITIAL.to_be(),
        acknowledgement_be: 0,
        header_length: 0x50,
        flags: SYN,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    let base = base(
        &rig.settings.challenge_key,
        &tuple,
        epoch(jiffies(), EPOCH_SHIFT),
    );
    let answer = answer(base, &header, syn.ttl);
    let reset = packet(family, 9).tcp((45_800, 80), RST, b"");
    with_sequence(reset, u32::from_be(answer.acknowledgement_be))
}

/// SYNs with a bit turned over.
pub(crate) fn wrong_checksums(family: Family) -> Vec<Row> {
    let plain = packet(family, 8).tcp((45_900, 80), SYN, b"");
    let odd = packet(family, 8).tcp((45_901, 80), SYN, b"early data");
    let odder = packet(family, 8).tcp((45_902, 80), SYN, &[7; 1201]);
    let all = [plain.clone(), with_options(plain), odd, odder];
    let rows = all.into_iter().flat_map(|packet| {
        let header = family.header_bytes();
        let last = header + packet.payload.len() - 1;
        [header + 5, header + 16, last].map(|at| {
            let drop = Expect::Drop(DropReason::SynChecksum);
            Row::new("a wrong checksum", packet.clone(), drop).patch(|ip| ip[at] ^= 0x10)
        })
    });
    rows.collect()
}

/// What became of the SYNs of the VIP that takes a packet.
pub(crate) fn stats(rig: &Rig, packet: &Packet) -> ChallengeStats {
    let words = rig.sum::<{ size_of::<ChallengeStats>() / 8 }>(
        maps::CHALLENGE_STATS,
        vip_of(rig, packet).into(),
    );
    bytemuck::cast(words)
}

#[test]
fn a_syn_is_answered_with_less_than_it_took() {
    let mut rig = Rig::new();
    let mut rows = vec![];
    for family in Family::BOTH {
        let plain = syn(family, 7, 44_000);
        for (name, packet) in [
            ("bare", plain.clone()),
            ("with options", with_options(plain.clone())),
            ("tagged", with_options(plain.clone().vlan(DOT1Q, 0x6005))),
            ("twice", plain.clone().vlan(DOT1AD, 3).vlan(DOT1Q, 5)),
            ("padded", plain.clone().with(|p| p.padding = 9)),
            ("low number", with_sequence(plain.clone(), 7)),
            ("high number", with_sequence(plain.clone(), u32::MAX - 3)),
            (
                "even data",
                packet(family, 7).tcp((44_001, 80), SYN, b"fast open!"),
            ),
            (
                "odd data",
                packet(family, 7).tcp((44_002, 80), SYN, &[7; 777]),
            ),
            ("far away", plain.with(|p| p.ttl = 3)),
        ] {
            rows.push(Row::new(name, packet, Expect::Challenge));
        }
    }
    check_all(&mut rig, &rows);
}

#[test]
fn who_answers_gets_in_and_its_flow_is_proven() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let syn = with_options(syn(family, 20, 44_100));
        let reset = challenged(&mut rig, &syn);
        is_dropped(&mut rig, &reset, DropReason::ChallengeAnswer);
        assert_eq!(goes_to(&mut rig, &syn), backend::L2, "the same SYN again");
        let ack = packet(family, 20).tcp((44_100, 80), ACK, b"");
        assert_eq!(goes_to(&mut rig, &ack), backend::L2);
        assert!(entry(&rig, &ack).2.is_proven());

        let other = packet(family, 20).tcp((44_101, 80), ACK, b"");
        goes_to(&mut rig, &other);
        assert!(!entry(&rig, &other).2.is_proven(), "its SYN never came");
        let seen = stats(&rig, &syn);
        assert_eq!(
            (seen.syns, seen.sent.packets, seen.let_in, seen.proved),
            (2, 1, 1, 1)
        );
    }
}

#[test]
fn a_reset_from_another_distance_or_with_another_number_proves_nothing() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        for (host, hops, proves) in [
            (30, 1, true),
            (31, -1, true),
            (32, 2, false),
            (33, -2, false),
        ] {
            let syn = syn(family, host, 44_200);
            let reset = challenged(&mut rig, &syn);
            let near = reset.with(|p| p.ttl = p.ttl.wrapping_add_signed(hops));
            if proves {
                is_dropped(&mut rig, &near, DropReason::ChallengeAnswer);
                assert_eq!(goes_to(&mut rig, &syn), backend::L2);
            } else {
                assert_eq!(
                    goes_to(&mut rig, &near),
                    backend::L2,
                    "a reset like any other"
                );
                challenged(&mut rig, &syn);
            }
        }
        let syn = syn(family, 34, 44_201);
        let reset = challenged(&mut rig, &syn);
        // Few, for each is right by chance three times in 65,536.
        for guess in 1..8 {
            let number = u32::from_be_bytes(reset.payload[4..8].try_into().unwrap());
            let wrong = with_sequence(reset.clone(), number.wrapping_add(guess * 211));
            goes_to(&mut rig, &wrong);
        }
        challenged(&mut rig, &syn);
        assert_eq!(stats(&rig, &syn).proved, 2);
    }
}

/// A client that cannot answer sends its SYN again: that one passes, and nothing else of the same source.
#[test]
fn a_syn_that_comes_again_gets_in_alone() {
    let mut rig = Rig::new();
    let syns = Family::BOTH.map(|family| [syn(family, 40, 44_300), syn(family, 40, 44_301)]);
    for [syn, _] in &syns {
        challenged(&mut rig, syn);
        challenged(&mut rig, syn);
    }
    sleep(Duration::from_millis(1100));
    for [syn, other] in &syns {
        challenged(&mut rig, other);
        let renumbered = with_sequence(syn.clone(), INITIAL + 1);
        challenged(&mut rig, &renumbered);
        assert_eq!(goes_to(&mut rig, syn), backend::L2);
    }
    // One more, and none after that for an hour.
    let vip = vip_of(&rig, &syns[0][0]);
    let hour = (3600 * 250) << JIFFY_BITS;
    let again = Limiter {
        cost: hour,
        allowance: hour,
    };
    rig.put(
        maps::CHALLENGES,
        vip.into(),
        Challenge {
            again,
            ..Challenge::default()
        },
    );
    assert_eq!(goes_to(&mut rig, &syns[0][0]), backend::L2);
    challenged(&mut rig, &syns[0][0]);
}

#[test]
fn auto_challenges_while_too_many_come() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let probe = syn(family, 50, 44_400);
        let vip = vip_of(&rig, &probe);
        rig.change_vip(vip, |vip| vip.syn = SYN_AUTO);
        let second = 250 << JIFFY_BITS;
        let rate = Limiter {
            cost: second / 1000,
            allowance: second / 10,
        };
        let hold = 100;
        rig.put(
            maps::CHALLENGES,
            vip.into(),
            Challenge {
                rate,
                hold,
                ..Challenge::default()
            },
        );
        for port in 0..96 {
            assert_eq!(
                goes_to(&mut rig, &syn(family, 50, 2000 + port)),
                backend::L2
            );
        }
        for port in 0..4096 {
            rig.run(&syn(family, 51, 3000 + port).frame());
        }
        let reset = challenged(&mut rig, &probe);
        is_dropped(&mut rig, &reset, DropReason::ChallengeAnswer);
        assert_eq!(goes_to(&mut rig, &probe), backend::L2);
        challenged(&mut rig, &syn(family, 52, 44_401));
        sleep(Duration::from_millis(1500));
        assert_eq!(
            goes_to(&mut rig, &syn(family, 53, 44_402)),
            backend::L2,
            "it is over"
        );
    }
}

#[test]
fn a_vip_that_only_counts_forwards() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let probe = syn(family, 60, 44_500);
        let vip = vip_of(&rig, &probe);
        rig.change_vip(vip, |vip| vip.syn |= SYN_MONITOR);
        assert_eq!(goes_to(&mut rig, &probe), backend::L2);
        let seen = stats(&rig, &probe);
        assert_eq!((seen.monitored.packets, seen.sent.packets), (1, 0));
    }
}

/// Answers of the last epoch are good for as long as one may be on its way.
#[test]
fn a_challenge_outlives_its_epoch_for_a_moment() {
    const SHIFT: u32 = 9;
    let mut rig = Rig::with_epochs(SHIFT);
    let begins = |part: u64| {
        while jiffies() >> (SHIFT - 3) & 7 != part {
            sleep(Duration::from_millis(4));
        }
    };
    let syns = Family::BOTH.map(|family| [syn(family, 70, 44_600), syn(family, 71, 44_600)]);
    begins(7);
    let answers = syns.map(|pair| pair.map(|syn| challenged(&mut rig, &syn)));
    begins(0);
    for [answer, _] in &answers {
        is_dropped(&mut rig, answer, DropReason::ChallengeAnswer);
    }
    begins(1);
    for [_, late] in &answers {
        assert_eq!(
            rig.run(&late.frame()).action,
            Action::Tx,
            "forwarded like any reset"
        );
    }
}

#[test]
fn a_source_that_sends_more_than_its_proof_is_good_for_is_asked_again() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let reset = challenged(&mut rig, &syn(family, 80, 44_700));
        is_dropped(&mut rig, &reset, DropReason::ChallengeAnswer);
        for port in 0..250 {
            assert_eq!(
                goes_to(&mut rig, &syn(family, 80, 5000 + port)),
                backend::L2
            );
        }
        challenged(&mut rig, &syn(family, 80, 6000));
    }
}

/// A /64 is one customer's: what it proves goes into one bucket.
#[test]
fn a_prefix_has_eight_proofs_at_most() {
    let mut rig = Rig::new();
    let from = |n: u8| {
        let syn = syn(Family::V6, 90, 44_800);
        let octets = match syn.from {
            std::net::IpAddr::V6(v6) => v6.octets(),
            std::net::IpAddr::V4(_) => unreachable!("an IPv6 client"),
        };
        let mut octets = octets;
        octets[15] = n;
        summed(syn.with(|p| p.from = octets.into()), |_| {})
    };
    for n in 0..9 {
        let reset = challenged(&mut rig, &from(n));
        is_dropped(&mut rig, &reset, DropReason::ChallengeAnswer);
    }
    let in_now = (0..9).filter(|&n| {
        let before = stats(&rig, &from(n)).sent.packets;
        rig.run(&from(n).frame());
        stats(&rig, &from(n)).sent.packets == before
    });
    assert_eq!(in_now.count(), 8);
}

/// A rule has SYNs of any VIP challenged, and lets those of others pass without.
#[test]
fn a_rule_goes_before_what_the_policy_says() {
    let mut rig = Rig::new();
    let set = |rig: &mut Rig, text: &str| {
        let spec: RuleSpec = text.parse().unwrap();
        let rule = RuleInForce {
            id: 1,
            spec: &spec,
            vip: None,
        };
        rig.set_rules(&[rule]);
    };
    for family in Family::BOTH {
        let to_l2 = |packet: Packet| {
            summed(
                packet.with(|packet| packet.to = vip(family, world::L2)),
                |_| {},
            )
        };
        set(&mut rig, "proto tcp -> challenge");
        let asked = to_l2(syn(family, 100, 44_900));
        let reset = challenged(&mut rig, &asked);
        is_dropped(&mut rig, &reset, DropReason::ChallengeAnswer);
        assert_eq!(goes_to(&mut rig, &asked), backend::L2);
        let ack = to_l2(packet(family, 100).tcp((44_900, 80), ACK, b""));
        goes_to(&mut rig, &ack);
        assert!(entry(&rig, &ack).2.is_proven());

        set(&mut rig, "proto tcp -> pass");
        assert_eq!(
            goes_to(&mut rig, &syn(family, 101, 44_900)),
            backend::L2,
            "let pass"
        );
        rig.set_rules(&[]);
    }
}

/// Guesses are few, and a VIP whose resets come in floods takes nothing from another.
#[test]
fn too_many_resets_are_not_looked_at_and_each_vip_has_its_own_share() {
    const LOOKED_AT: u16 = 3;
    let mut rig = Rig::new();
    let cost = 1 << (JIFFY_BITS + 24);
    rig.set_settings(|settings| {
        settings.challenge_answers = Limiter {
            cost,
            allowance: cost * u64::from(LOOKED_AT) * u64::from(settings.cpus),
        };
    });
    for family in Family::BOTH {
        let syn = syn(family, 120, 45_300);
        let answer = challenged(&mut rig, &syn);
        for n in 0..10 {
            let forged = packet(family, 121).tcp((46_000 + n, 80), RST, b"");
            goes_to(&mut rig, &with_sequence(forged, u32::from(n)));
        }
        let seen = stats(&rig, &syn);
        let looked_at = seen.proved + seen.failed;
        assert_eq!(
            (looked_at, seen.capped),
            (LOOKED_AT.into(), 10 - u64::from(LOOKED_AT))
        );
        goes_to(&mut rig, &answer);
        assert_eq!(
            stats(&rig, &syn).capped,
            seen.capped + 1,
            "it came too late"
        );
    }
}

/// What a rule says of resets holds for those that may be answers.
#[test]
fn a_reset_that_a_rule_drops_is_not_looked_at() {
    let mut rig = Rig::new();
    let spec: RuleSpec = "proto tcp; tcp flags rst -> drop".parse().unwrap();
    for family in Family::BOTH {
        let answer = challenged(&mut rig, &syn(family, 130, 45_310));
        rig.set_rules(&[RuleInForce {
            id: 1,
            spec: &spec,
            vip: None,
        }]);
        is_dropped(&mut rig, &answer, DropReason::Rule);
        rig.set_rules(&[]);
        is_dropped(&mut rig, &answer, DropReason::ChallengeAnswer);
    }
}

/// Nobody sends SYNs in fragments: its sum cannot be told from the first.
#[test]
fn a_syn_in_fragments_is_dropped() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let whole = packet(family, 110).tcp((45_000, 80), SYN, &[7; 64]);
        let [first, _] = whole.in_two(7, 40);
        is_dropped(&mut rig, &first, DropReason::SynChecksum);
    }
}
