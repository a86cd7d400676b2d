//! Fragments to a VIP whose policy wants none: each is dropped or counted, and nothing else is.

use sluice::dataplane::Purpose;
use sluice_ebpf::abi::{Check, DropReason, FILTER_FRAGMENTS, FILTER_FRAGMENTS_MONITOR, SET_ALLOW};

use crate::{
    flows::vip_of,
    packet::{ACK, Family, Packet, client, vip},
    rig::{Action, Counted, Rig},
    sanity,
    sources::{around, set, with_filter},
    table::{Expect, Row, check_all, check_once},
    world::{self, backend},
};

fn packet(family: Family) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, world::L2))
}

/// The first and the later fragment, of TCP and of UDP.
pub(crate) fn pieces(family: Family) -> Vec<Packet> {
    let tcp = packet(family).tcp((45_650, 80), ACK, &[7; 60]);
    let udp = packet(family).udp((45_650, 53), &[7; 60]);
    [tcp.in_two(61, 24), udp.in_two(62, 24)].concat()
}

#[test]
fn a_policy_may_drop_or_only_count_fragments_also_of_flows_that_are_known() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        for (filter, expected) in [
            // The first time around it is by these that the flows become known.
            (0, (Action::Tx, 0, 0)),
            (FILTER_FRAGMENTS, (Action::Drop, 1, 0)),
            (FILTER_FRAGMENTS_MONITOR, (Action::Tx, 0, 1)),
        ] {
            with_filter(&mut rig, family, filter);
            for piece in pieces(family) {
                let vip = vip_of(&rig, &piece);
                let before = rig.counts(piece.to);
                let action = rig.run(&piece.frame()).action;
                let moved = rig.counts(piece.to) - before;
                let dropped = moved.of(Counted::Dropped(vip, DropReason::Fragment));
                let monitored = moved.of(Counted::Monitored(vip, DropReason::Fragment));
                assert_eq!(
                    (action, dropped, monitored),
                    expected,
                    "{filter:#x}: {piece:?}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_fragment_is_sent_where_none_are_wanted() {
    let mut rig = Rig::new();
    let mut rows = vec![];
    for family in Family::BOTH {
        with_filter(&mut rig, family, FILTER_FRAGMENTS);
        let plain = packet(family);
        let with_options = match family {
            Family::V4 => plain.clone().with(|packet| packet.options = vec![1; 8]),
            Family::V6 => plain.clone().extension(60, 8),
        };
        let atomic = plain.clone().piece(63, 0, false);
        for (name, packet) in [
            ("plain", plain),
            ("options", with_options),
            ("atomic", atomic),
        ] {
            let tcp = packet.clone().tcp((45_651, 80), ACK, b"data");
            rows.push(Row::new(name, tcp, Expect::Sent(backend::L2)));
            let udp = packet.udp((45_651, 53), b"query");
            rows.push(Row::new(name, udp, Expect::Sent(backend::L2)));
        }
    }
    check_all(&mut rig, &rows);
}

#[test]
fn fragments_of_whoever_is_allowed_are_dropped_too() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        with_filter(&mut rig, family, FILTER_FRAGMENTS);
        let friend = around(packet(family).from);
        rig.set_sources(&[set(SET_ALLOW, Purpose::Allow, &[friend])]);
        for piece in pieces(family) {
            let row = Row::new("a friend's", piece, Expect::Drop(DropReason::Fragment));
            check_once(&mut rig, &row).unwrap();
        }
    }
}

#[test]
fn what_makes_no_sense_keeps_its_own_reason() {
    let mut rig = Rig::new();
    let mut rows = vec![];
    for family in Family::BOTH {
        with_filter(&mut rig, family, FILTER_FRAGMENTS);
        for check in [
            Check::FragmentTiny,
            Check::FragmentOverlap,
            Check::FragmentLength,
        ] {
            let reason = Check::reason(check.bit());
            let packets = sanity::packets(&mut rig, reason, family);
            let row = |packet| Row::new(check.word(), packet, Expect::Drop(reason));
            rows.extend(packets.into_iter().map(row));
        }
    }
    check_all(&mut rig, &rows);
}
