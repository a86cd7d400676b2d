//! Sources that are denied or allowed, against lists of prefixes that know nothing of tables.

use std::{cell::RefCell, net::IpAddr};

use ipnet::IpNet;
use proptest::{
    prelude::{Just, Strategy, any, prop},
    prop_assert_eq, prop_oneof,
    test_runner::{Config, TestRunner},
};
use sluice::{
    dataplane::{Purpose, SourceSet},
    sources::Members,
};
use sluice_ebpf::abi::{
    DropReason, FILTER_BOGONS, FILTER_BOGONS_MONITOR, FILTER_SETS_MONITOR, FILTER_SETS_OFF, NO_VIP,
    SET_ALLOW, SET_BOGONS, SET_DENY,
};

use crate::{
    limits::{exhaust, limit_sources},
    packet::{ACK, Family, Packet, SYN, TCP, UDP, client, vip},
    rig::{Action, Counted, Rig},
    rules::drop_by_rule,
    table::{Expect, Row, check_all, check_once},
    world::{self, backend},
};

pub(crate) fn set(number: u8, purpose: Purpose, prefixes: &[IpNet]) -> SourceSet {
    SourceSet {
        number,
        name: format!("set {number}"),
        purpose,
        vip: None,
        members: Members::of(prefixes.iter().copied()).into(),
    }
}

/// The prefix that a client is in, among others.
pub(crate) fn around(address: IpAddr) -> IpNet {
    let length = if address.is_ipv4() { 28 } else { 64 };
    IpNet::new(address, length).expect("a length").trunc()
}

/// Gives the VIPs by `l2` of a family these `FILTER_*` bits.
pub(crate) fn with_filter(rig: &mut Rig, family: Family, filter: u32) {
    for protocol in [TCP, UDP] {
        let vip = rig.number_of(vip(family, world::L2), protocol);
        rig.change_vip(vip, |vip| vip.filter = filter);
    }
}

fn packet(from: IpAddr, family: Family) -> Packet {
    Packet::new(from, vip(family, world::L2))
}

fn of_each_kind(from: IpAddr, family: Family) -> Vec<Packet> {
    let plain = packet(from, family);
    vec![
        plain.clone().tcp((45_000, 80), SYN, b""),
        plain.clone().tcp((45_001, 80), ACK, b"data"),
        plain.clone().udp((45_000, 53), b"query"),
        plain
            .clone()
            .vlan(crate::packet::DOT1Q, 7)
            .udp((45_000, 53), b"query"),
        plain.echo_request(3, b"ping"),
    ]
}

#[test]
fn whoever_is_denied_is_dropped_whatever_he_sends_and_nobody_else() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let denied = client(family, 100, 7);
        let prefix = around(denied);
        rig.set_sources(&[set(SET_DENY, Purpose::Deny, &[prefix])]);
        let rows: Vec<Row> = of_each_kind(denied, family)
            .into_iter()
            .map(|packet| Row::new("denied", packet, Expect::Drop(DropReason::Deny)))
            .collect();
        check_all(&mut rig, &rows);
        let other = packet(client(family, 100, 99), family).udp((45_000, 53), b"query");
        check_once(
            &mut rig,
            &Row::new("another", other, Expect::Sent(backend::L2)),
        )
        .expect("he is not denied");
        rig.set_sources(&[]);
        let freed = packet(denied, family).udp((45_000, 53), b"query");
        check_once(
            &mut rig,
            &Row::new("again", freed, Expect::Sent(backend::L2)),
        )
        .expect("nobody is denied any more");
    }
}

#[test]
fn whoever_is_allowed_meets_no_deny_rule_or_limit() {
    for family in Family::BOTH {
        let mut rig = Rig::new();
        let friend = client(family, 100, 7);
        let to = vip(family, world::LIMITED);
        let query = Packet::new(friend, to).udp((45_100, 53), b"query");
        limit_sources(&mut rig, DropReason::LimitHost);
        exhaust(&mut rig, &query);
        let over = Row::new("over", query.clone(), Expect::Drop(DropReason::LimitHost));
        check_once(&mut rig, &over).expect("the limit is there");
        drop_by_rule(&mut rig, "sport 45100 -> drop");
        let wide = IpNet::new(friend, 16).expect("a length").trunc();
        let denied = set(SET_DENY, Purpose::Deny, &[wide]);
        let allowed = set(SET_ALLOW, Purpose::Allow, &[around(friend)]);
        rig.set_sources(&[denied, allowed]);
        let served = rig.run(&query.frame()).action;
        assert_ne!(served, Action::Drop, "{family:?}: a friend is served");
        let stranger = Packet::new(client(family, 100, 99), to).udp((45_100, 53), b"query");
        let row = Row::new("stranger", stranger, Expect::Drop(DropReason::Deny));
        check_once(&mut rig, &row).expect("others in the wide prefix are denied");
    }
}

#[test]
fn a_policy_can_count_only_or_leave_sets_out_and_says_what_becomes_of_bogons() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let (denied, bogon) = (client(family, 100, 7), client(family, 120, 7));
        rig.set_sources(&[
            set(4, Purpose::Deny, &[around(denied)]),
            set(SET_BOGONS, Purpose::Bogons, &[around(bogon)]),
        ]);
        let vip_index = rig.number_of(vip(family, world::L2), UDP);
        let look = |rig: &mut Rig, from: IpAddr, filter: u32| {
            with_filter(rig, family, filter);
            let udp = packet(from, family).udp((45_000, 53), b"query");
            let before = rig.counts(udp.to);
            let action = rig.run(&udp.frame()).action;
            let counted = rig.counts(udp.to) - before;
            let monitored = |reason| counted.of(Counted::Monitored(vip_index, reason));
            (
                action == Action::Drop,
                monitored(DropReason::Deny),
                monitored(DropReason::Bogon),
            )
        };
        for (filter, expected) in [
            (0, (true, 0, 0)),
            (FILTER_SETS_MONITOR, (false, 1, 0)),
            (FILTER_SETS_OFF, (false, 0, 0)),
        ] {
            assert_eq!(look(&mut rig, denied, filter), expected, "{filter:#x}");
        }
        for (filter, expected) in [
            (0, (false, 0, 0)),
            (FILTER_BOGONS, (true, 0, 0)),
            (FILTER_BOGONS | FILTER_SETS_OFF, (true, 0, 0)),
            (FILTER_BOGONS_MONITOR, (false, 0, 1)),
        ] {
            assert_eq!(look(&mut rig, bogon, filter), expected, "{filter:#x}");
        }
        with_filter(&mut rig, family, 0);
    }
}

#[test]
fn a_set_of_one_vip_is_none_for_others() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let from = client(family, 100, 7);
        let [here, there] = [world::L2, world::IPIP4].map(|host| {
            let to = vip(family, host);
            let query = Packet::new(from, to).udp((45_000, 53), b"query");
            (rig.number_of(to, UDP), query.frame())
        });
        let of = |purpose, vip| SourceSet {
            vip: Some(vip),
            ..set(4, purpose, &[around(from)])
        };
        let is_dropped = |rig: &mut Rig, frame: &[u8]| rig.run(frame).action == Action::Drop;
        for ((own, own_frame), (_, other_frame)) in [(&here, &there), (&there, &here)] {
            rig.set_sources(&[of(Purpose::Deny, *own)]);
            assert!(is_dropped(&mut rig, own_frame), "{family:?}");
            assert!(!is_dropped(&mut rig, other_frame), "{family:?}");
            let all = set(5, Purpose::Deny, &[around(from)]);
            rig.set_sources(&[of(Purpose::Allow, *own), all]);
            assert!(!is_dropped(&mut rig, own_frame), "{family:?}");
            assert!(is_dropped(&mut rig, other_frame), "{family:?}");
        }
        rig.set_sources(&[of(Purpose::Deny, NO_VIP)]);
        for (_, frame) in [&here, &there] {
            assert!(!is_dropped(&mut rig, frame), "{family:?}: its VIP is gone");
        }
    }
}

#[test]
fn each_set_counts_its_sources_also_after_another_one_is_gone() {
    let mut rig = Rig::new();
    let from = client(Family::V4, 100, 7);
    let (first, second) = (
        set(4, Purpose::Deny, &[around(from)]),
        set(
            5,
            Purpose::Monitor,
            &[IpNet::new(from, 16).unwrap().trunc()],
        ),
    );
    rig.set_sources(&[first, second.clone()]);
    let udp = packet(from, Family::V4).udp((45_000, 53), b"query");
    for _ in 0..3 {
        rig.run(&udp.frame());
    }
    let counts = rig.source_counts();
    assert_eq!(
        (counts[&4].dropped.packets, counts[&4].passed.packets),
        (3, 0)
    );
    assert_eq!(counts[&5].dropped.packets, 3, "it holds the same source");
    rig.set_sources(&[second]);
    rig.run(&udp.frame());
    let counts = rig.source_counts();
    assert_eq!(
        (counts[&5].dropped.packets, counts[&5].passed.packets),
        (3, 1)
    );
    assert!(!counts.contains_key(&4));
}

fn a_prefix(family: Family) -> impl Strategy<Value = IpNet> {
    let base = client(family, 100, 7);
    let lengths = match family {
        Family::V4 => prop_oneof![1 => 9u8..24, 4 => 24u8..=32].boxed(),
        Family::V6 => prop_oneof![Just(32u8), Just(48), Just(56), 60u8..=68, Just(128)].boxed(),
    };
    (lengths, any::<u8>()).prop_map(move |(length, low)| {
        let address = match base {
            IpAddr::V4(base) => IpAddr::from((base.to_bits() ^ u32::from(low)).to_be_bytes()),
            IpAddr::V6(base) => {
                IpAddr::from((base.to_bits() ^ u128::from(low) << 62).to_be_bytes())
            }
        };
        IpNet::new(address, length).expect("a length").trunc()
    })
}

/// Sets that come and go one after the other on the same program: each source is judged as the lists say.
#[test]
fn random_sets_deny_just_those_that_their_lists_hold() {
    let rig = RefCell::new(Rig::new());
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    for family in Family::BOTH {
        let sets = prop::collection::vec(prop::collection::vec(a_prefix(family), 0..8), 3);
        let sources = prop::collection::vec(a_prefix(family), 12);
        runner
            .run(&(sets, sources), |(sets, sources)| {
                let purposes = [Purpose::Deny, Purpose::Allow, Purpose::Deny];
                let wanted: Vec<SourceSet> = (4..)
                    .zip(purposes)
                    .zip(&sets)
                    .map(|((number, purpose), prefixes)| set(number, purpose, prefixes))
                    .collect();
                let mut rig = rig.borrow_mut();
                rig.set_sources(&wanted);
                for source in sources {
                    let source = source.addr();
                    let is_in = |at: usize| {
                        sets[at]
                            .iter()
                            .any(|prefix: &IpNet| prefix.contains(&source))
                    };
                    let denied = (is_in(0) || is_in(2)) && !is_in(1);
                    let udp = packet(source, family).udp((45_000, 53), b"query");
                    let dropped = rig.run(&udp.frame()).action == Action::Drop;
                    prop_assert_eq!(dropped, denied, "{} of {:?}", source, &sets);
                }
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
    }
}
