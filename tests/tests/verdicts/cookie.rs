//! SYNs that are answered with a cookie, and what shows it.

use std::{thread::sleep, time::Duration};

use etherparse::TcpSlice;
use sluice::{dataplane::RuleInForce, rules::RuleSpec};
use sluice_ebpf::{
    abi::{
        Challenge, DropReason, FILTER_OUT_OF_STATE, JIFFY_BITS, Limiter, SYN_ALWAYS, SYN_AUTO,
        SYN_COOKIE, SYN_MONITOR, maps,
    },
    cookie::{MSS_V4, MSS_V6},
};

use crate::{
    challenge::{stats, summed, with_sequence},
    decode::numbers,
    flows::{entry, goes_to, vip_of},
    packet::{ACK, DOT1AD, DOT1Q, ECE, FIN, Family, PSH, Packet, RST, SYN, client, vip},
    rig::{Action, Rig},
    table::{Expect, Row, check_all, check_cuts, check_once},
    world::{self, backend},
};

const INITIAL: u32 = 0xffff_fff7;
const CWR: u8 = 128;

/// As Linux, Windows and macOS offer, and less.
const LINUX: &[u8] = &[
    2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7,
];
const WINDOWS: &[u8] = &[2, 4, 0x05, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
const MACOS: &[u8] = &[
    2, 4, 0x05, 0xb4, 1, 3, 3, 6, 1, 1, 8, 10, 9, 9, 9, 9, 0, 0, 0, 0, 4, 2, 0, 0,
];
const ONLY_MSS: &[u8] = &[2, 4, 0x02, 0x18];
const STAMPS_ALONE: &[u8] = &[2, 4, 0x05, 0x40, 8, 10, 7, 7, 7, 7, 0, 0, 0, 0, 1, 1];
const NO_MSS: &[u8] = &[4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 3, 3, 7, 0];

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 130, host), vip(family, world::COOKIE))
}

/// A SYN with options.
fn syn(family: Family, host: u8, port: u16, options: &[u8]) -> Packet {
    let packet = packet(family, host).tcp((port, 80), SYN, b"");
    with_options(with_sequence(packet, INITIAL), options)
}

fn with_options(packet: Packet, options: &[u8]) -> Packet {
    summed(packet, |tcp| {
        let words = u8::try_from(5 + options.len() / 4).expect("at most 15");
        tcp[12] = words << 4;
        tcp.extend(options);
    })
}

/// Sends a SYN that is answered with a cookie, and makes the ACK that its client sends.
#[track_caller]
fn answered(rig: &mut Rig, syn: &Packet) -> Packet {
    let row = Row::new("a SYN", syn.clone(), Expect::Cookie);
    let ran = check_once(rig, &row).unwrap();
    let tcp = syn.ip_offset() + syn.family().header_bytes();
    let [sequence, acknowledged] = numbers(&ran.frame, tcp).unwrap();
    let answer = TcpSlice::from_slice(&ran.frame[tcp..]).unwrap();
    let stamp = answer.options().windows(2).position(|two| two == [8, 10]);
    let stamps = stamp.map(|at| {
        let value = &answer.options()[at + 2..at + 6];
        [&[1, 1, 8, 10, 5, 5, 5, 5], value].concat()
    });
    let port = u16::from_be_bytes([syn.payload[0], syn.payload[1]]);
    let ack = Packet::new(syn.from, syn.to).tcp((port, 80), ACK, b"");
    let ack = with_options(ack, &stamps.unwrap_or_default());
    renumbered(ack, acknowledged, sequence.wrapping_add(1))
}

fn renumbered(packet: Packet, sequence: u32, acknowledged: u32) -> Packet {
    summed(packet, |tcp| {
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    })
}

/// What the VIPs let in without a cookie is one packet an hour, which is taken already.
pub(crate) fn spend(rig: &mut Rig, family: Family) {
    let stray = packet(family, 1).tcp((46_000, 80), ACK, b"");
    let number = vip_of(rig, &stray);
    let hour = (3600 * 250) << JIFFY_BITS;
    let again = Limiter {
        cost: hour,
        allowance: hour,
    };
    let challenge = Challenge {
        again,
        ..rig.get(maps::CHALLENGES, number.into())
    };
    rig.put(maps::CHALLENGES, number.into(), challenge);
    rig.change_vip(number, |vip| vip.filter = FILTER_OUT_OF_STATE);
    assert_eq!(goes_to(rig, &stray), backend::L2, "within the budget");
    assert!(!entry(rig, &stray).2.is_proven());
}

/// TCP without a cookie, where the budget for such is spent.
pub(crate) fn bad(rig: &mut Rig, family: Family) -> Vec<Packet> {
    spend(rig, family);
    [ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK]
        .into_iter()
        .map(|flags| packet(family, 2).tcp((46_100, 80), flags, b""))
        .collect()
}

#[track_caller]
fn is_refused(rig: &mut Rig, packet: &Packet, why: &str) {
    let drop = Expect::Drop(DropReason::Cookie);
    let row = Row::new(why, packet.clone(), drop);
    check_once(rig, &row).unwrap_or_else(|error| panic!("{why}: {error:#}"));
}

#[test]
fn a_syn_is_answered_as_a_backend_would() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let linux = syn(family, 10, 46_200, LINUX);
        let asks_ecn = summed(linux.clone(), |tcp| tcp[13] = SYN | ECE | CWR);
        let half_ecn = summed(linux.clone(), |tcp| tcp[13] = SYN | ECE);
        let mut packets = vec![
            ("Linux", linux.clone()),
            ("Windows", syn(family, 10, 46_201, WINDOWS)),
            ("macOS", syn(family, 10, 46_202, MACOS)),
            ("only a segment size", syn(family, 10, 46_203, ONLY_MSS)),
            ("timestamps alone", syn(family, 10, 46_204, STAMPS_ALONE)),
            ("no segment size", syn(family, 10, 46_205, NO_MSS)),
            ("bare", syn(family, 10, 46_206, &[])),
            ("ECN", asks_ecn),
            ("half of ECN", half_ecn),
            ("tagged", linux.clone().vlan(DOT1AD, 3).vlan(DOT1Q, 5)),
            ("padded", linux.clone().with(|p| p.padding = 9)),
            (
                "early data",
                summed(linux.clone(), |tcp| tcp.extend(b"early data")),
            ),
        ];
        if family == Family::V4 {
            let with = linux.clone().with(|p| p.options = vec![1; 8]);
            packets.push(("IP options", with));
        } else {
            packets.push(("extension", linux.clone().extension(60, 16)));
        }
        for (name, packet) in packets {
            let row = Row::new(name, packet, Expect::Cookie);
            let checked = check_once(&mut rig, &row).and_then(|_| check_cuts(&mut rig, &row));
            checked.unwrap_or_else(|error| panic!("{}: {error:#}", row.name));
        }
        let wrong = linux.with(|p| p.payload[16] ^= 1);
        let drop = Expect::Drop(DropReason::SynChecksum);
        check_all(&mut rig, &[Row::new("a wrong checksum", wrong, drop)]);
    }
}

/// The number says the segment size, ECN, SACK and the window scale: a backend's agent reads them there.
#[test]
fn the_number_of_the_answer_holds_what_the_client_offered() {
    let mut rig = Rig::new();
    let with_mss = |mss: u16| {
        let [high, low] = mss.to_be_bytes();
        vec![2, 4, high, low]
    };
    for (family, sizes) in [(Family::V4, MSS_V4), (Family::V6, MSS_V6)] {
        let mut port = 46_300;
        let mut holds = |options: &[u8], flags: u8, expected: u32| {
            port += 1;
            let syn = summed(syn(family, 11, port, options), |tcp| tcp[13] = flags);
            let ack = answered(&mut rig, &syn);
            let acknowledged = u32::from_be_bytes(ack.payload[8..12].try_into().unwrap());
            assert_eq!(acknowledged.wrapping_sub(1) & 0xff, expected, "{options:?}");
        };
        for (index, size) in (0..).zip(sizes) {
            holds(&with_mss(size), SYN, index << 6 | 15);
            if index > 0 {
                holds(&with_mss(size - 1), SYN, (index - 1) << 6 | 15);
            }
        }
        holds(&with_mss(9000), SYN | ECE | CWR, 3 << 6 | 1 << 5 | 15);
        holds(
            &[&with_mss(9000)[..], &[1, 3, 3, 14]].concat(),
            SYN,
            3 << 6 | 14,
        );
        holds(
            &[&with_mss(9000)[..], &[4, 2, 0, 0]].concat(),
            SYN,
            3 << 6 | 1 << 4 | 15,
        );
        holds(&[], SYN, 15);
    }
}

#[test]
fn who_shows_its_cookie_goes_to_a_backend_and_its_flow_is_proven() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        spend(&mut rig, family);
        let all: [&[u8]; 6] = [LINUX, WINDOWS, MACOS, STAMPS_ALONE, NO_MSS, &[]];
        for (port, options) in (46_400..).zip(all) {
            let syn = syn(family, 20, port, options);
            let ack = answered(&mut rig, &syn);
            assert_eq!(goes_to(&mut rig, &ack), backend::L2, "{options:?}");
            assert!(entry(&rig, &ack).2.is_proven(), "{options:?}");
        }
        // The ACK got lost: what comes first are data, with the same numbers.
        let ack = answered(&mut rig, &syn(family, 20, 46_410, LINUX));
        let data = summed(ack, |tcp| tcp.extend(b"GET / HTTP/1.1\r\n\r\n"));
        assert_eq!(goes_to(&mut rig, &data), backend::L2);
        assert!(entry(&rig, &data).2.is_proven());
        let seen = stats(&rig, &data);
        assert_eq!((seen.cookies.packets, seen.taken, seen.refused), (7, 7, 1));
    }
}

#[test]
fn whatever_is_changed_the_cookie_is_refused() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        spend(&mut rig, family);
        for (port, options) in [(46_500, LINUX), (46_510, WINDOWS)] {
            let ack = answered(&mut rig, &syn(family, 30, port, options));
            let byte = |at: usize, bit: u8| summed(ack.clone(), |tcp| tcp[at] ^= bit);
            for (why, packet) in [
                ("the hash", byte(8, 1)),
                ("the hash's end", byte(10, 0x80)),
                ("the segment size", byte(11, 0x40)),
                ("the client's number", byte(7, 1)),
                ("the port", byte(1, 1)),
                ("the source", {
                    let moved = ack.clone().with(|p| p.from = client(family, 130, 31));
                    summed(moved, |_| {})
                }),
                ("a reset", byte(13, RST)),
            ] {
                is_refused(&mut rig, &packet, why);
            }
            if options == LINUX {
                let last = ack.payload.len() - 1;
                is_refused(&mut rig, &byte(last, 1), "the timestamp's hash");
                let without = summed(ack.clone(), |tcp| {
                    tcp[12] = 5 << 4;
                    tcp.truncate(20);
                });
                is_refused(&mut rig, &without, "no timestamp");
            }
            assert_eq!(goes_to(&mut rig, &ack), backend::L2, "as it was");
        }
        let before = stats(&rig, &packet(family, 30).tcp((1, 80), ACK, b""));
        assert_eq!(before.taken, 2);
        assert_eq!(before.refused, 1 + 2 * 7 + 2);
    }
}

/// An epoch is 65.5 seconds; clocks that differ by less than one agree.
#[test]
fn a_cookie_is_good_for_a_minute_or_two() {
    let mut rig = Rig::new();
    let pass = |rig: &mut Rig, epochs: i64| {
        let jiffies = (epochs * 65_536 / 4).cast_unsigned();
        rig.set_settings(|settings| {
            settings.clock.offset = settings.clock.offset.wrapping_add(jiffies);
        });
    };
    for family in Family::BOTH {
        spend(&mut rig, family);
        for (port, epochs, good) in [
            (46_600, 1, true),
            (46_601, 2, false),
            (46_602, -1, true),
            (46_603, -2, false),
        ] {
            let ack = answered(&mut rig, &syn(family, 40, port, LINUX));
            pass(&mut rig, epochs);
            if good {
                assert_eq!(goes_to(&mut rig, &ack), backend::L2, "{epochs}");
            } else {
                is_refused(&mut rig, &ack, "too old, or of a clock that is wrong");
            }
            pass(&mut rig, -epochs);
        }
    }
}

/// What shows no cookie may be of a flow that another load balancer had: the policy's budget decides, and without one, there
/// is one only while SYNs are answered.
#[test]
fn auto_takes_cookies_when_it_is_over_and_refuses_nothing_then() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        spend(&mut rig, family);
        let number = vip_of(&rig, &packet(family, 50).tcp((1, 80), ACK, b""));
        rig.change_vip(number, |vip| vip.syn = SYN_AUTO | SYN_COOKIE);
        let second = 250 << JIFFY_BITS;
        let challenge: Challenge = rig.get(maps::CHALLENGES, number.into());
        let challenge = Challenge {
            rate: Limiter {
                cost: second / 1000,
                allowance: second / 10,
            },
            hold: 100,
            ..challenge
        };
        rig.put(maps::CHALLENGES, number.into(), challenge);

        let early = syn(family, 50, 46_700, LINUX);
        assert_eq!(goes_to(&mut rig, &early), backend::L2, "in peace");
        for port in 0..4096 {
            rig.run(&syn(family, 51, 3000 + port, LINUX).frame());
        }
        let ack = answered(&mut rig, &syn(family, 50, 46_701, LINUX));
        let stray = packet(family, 50).tcp((46_702, 80), ACK, b"");
        is_refused(&mut rig, &stray, "no cookie");
        let began = packet(family, 50).tcp((46_700, 80), ACK, b"");
        assert_eq!(goes_to(&mut rig, &began), backend::L2, "its SYN was let in");
        assert!(!entry(&rig, &began).2.is_proven());

        sleep(Duration::from_millis(1500));
        let late = syn(family, 50, 46_703, LINUX);
        assert_eq!(goes_to(&mut rig, &late), backend::L2, "it is over");
        assert_eq!(goes_to(&mut rig, &ack), backend::L2);
        assert!(entry(&rig, &ack).2.is_proven());
        assert_eq!(goes_to(&mut rig, &stray), backend::L2);
    }
}

/// A client is not told that somebody is there where nobody is.
#[test]
fn where_there_is_no_backend_nothing_is_answered() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let probe = syn(family, 55, 46_750, LINUX);
        let number = vip_of(&rig, &probe);
        rig.change_vip(number, |vip| vip.table = 0);
        let drop = Expect::Drop(DropReason::NoBackend);
        check_all(&mut rig, &[Row::new("a SYN", probe, drop)]);
    }
}

#[test]
fn a_vip_that_only_counts_forwards() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let probe = syn(family, 60, 46_800, LINUX);
        let number = vip_of(&rig, &probe);
        rig.change_vip(number, |vip| vip.syn = SYN_ALWAYS | SYN_MONITOR);
        assert_eq!(goes_to(&mut rig, &probe), backend::L2);
        let seen = stats(&rig, &probe);
        assert_eq!((seen.monitored.packets, seen.cookies.packets), (1, 0));
    }
}

/// Where a policy has cookies, a rule's challenge is one, also where the policy itself has none sent.
#[test]
fn a_rule_has_cookies_sent() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let probe = syn(family, 70, 46_900, LINUX);
        let number = vip_of(&rig, &probe);
        rig.change_vip(number, |vip| vip.syn = SYN_COOKIE);
        assert_eq!(goes_to(&mut rig, &probe), backend::L2);
        let spec: RuleSpec = "proto tcp -> challenge".parse().unwrap();
        let rule = RuleInForce {
            id: 1,
            spec: &spec,
            vip: None,
        };
        rig.set_rules(&[rule]);
        let ack = answered(&mut rig, &syn(family, 70, 46_901, LINUX));
        assert_eq!(goes_to(&mut rig, &ack), backend::L2);
        assert!(entry(&rig, &ack).2.is_proven());
        rig.set_rules(&[]);
    }
}

/// A fragment shows none: whoever was to forge the rest could do without.
#[test]
fn a_fragment_is_charged_like_what_shows_no_cookie() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        spend(&mut rig, family);
        let ack = answered(&mut rig, &syn(family, 80, 47_000, WINDOWS));
        let data = summed(ack, |tcp| tcp.extend([7; 64]));
        let [first, _] = data.in_two(9, 40);
        assert_eq!(rig.run(&first.frame()).action, Action::Drop);
        is_refused(&mut rig, &first, "a fragment");
    }
}
