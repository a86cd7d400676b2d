//! Where a flow goes while tables and backends change.

use std::collections::BTreeSet;

use sluice_ebpf::{
    abi::{BACKEND_FORWARDS, DropReason, HANDSHAKE_TICKS, SLOT_MOVED, VIP_MOVED, maps},
    flow::{self, Flow, State, WAYS},
    hash::{self, Tuple},
};

use crate::{
    packet::{ACK, Family, Packet, SYN, TCP, UDP, client, vip},
    rig::{Action, Counted, Rig, table},
    table::{Expect, Row, check_once},
    vip_index::words,
    world::{self, backend},
};

/// In jiffies: before any packet.
const LONG_AGO: u64 = 1;
const FLOW_BUCKET_MASK: u64 = (1 << 17) - 1;

fn packet(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

/// The number of the VIP that takes a packet.
pub(crate) fn vip_of(rig: &Rig, packet: &Packet) -> u16 {
    let at = rig.services.iter().position(|service| {
        service.prefix.contains(&packet.to) && service.protocol == packet.protocol
    });
    u16::try_from(at.unwrap() + 1).unwrap()
}

/// The backend that a packet is sent to.
#[track_caller]
pub(crate) fn goes_to(rig: &mut Rig, packet: &Packet) -> u16 {
    let before = rig.counts(packet.to);
    let ran = rig.run(&packet.frame());
    assert_eq!(ran.action, Action::Tx, "{packet:?}");
    let counted = (rig.counts(packet.to) - before).packets();
    let to = counted.iter().find_map(|(what, ..)| match what {
        Counted::ToBackend(number) => Some(*number),
        _ => None,
    });
    to.expect("it went to a backend")
}

/// A flow's place in the flow table: bucket, way and entry.
pub(crate) fn entry(rig: &Rig, packet: &Packet) -> (u32, usize, Flow) {
    let bucket = bucket(rig, packet);
    let words: [u64; WAYS] = rig.get_raw(maps::FLOWS, bucket);
    let tag = flow::tag(flow_hash(rig, packet));
    let (way, found) = flow::find(|way| words[way], tag).expect("a known flow");
    (bucket, way, found)
}

fn bucket(rig: &Rig, packet: &Packet) -> u32 {
    u32::try_from(flow_hash(rig, packet) & FLOW_BUCKET_MASK).unwrap()
}

fn flow_hash(rig: &Rig, packet: &Packet) -> u64 {
    let port = |at: usize| u16::from_ne_bytes([packet.payload[at], packet.payload[at + 1]]);
    let tuple = Tuple {
        source: words(packet.from),
        destination: words(packet.to),
        ports: u32::from(port(0)) | u32::from(port(2)) << 16,
        protocol: packet.protocol,
        v6: packet.family() == Family::V6,
    };
    hash::flow(&rig.settings.flow_key, &tuple)
}

pub(crate) fn write_entry(rig: &mut Rig, bucket: u32, way: usize, flow: Flow) {
    let mut words: [u64; WAYS] = rig.get_raw(maps::FLOWS, bucket);
    words[way] = flow.0;
    rig.put_raw(maps::FLOWS, bucket, words);
}

/// Moves a VIP to a table of one backend, whose slots are marked; handshakes that were under way are over.
fn switch(rig: &mut Rig, vip: u16, to: u16) {
    rig.set_table(vip, 1, &[to | SLOT_MOVED]);
    rig.change_vip(vip, |vip_now| {
        vip_now.previous_table = 0;
        vip_now.switched = LONG_AGO;
        vip_now.table = table(vip, 1);
    });
}

#[test]
fn a_known_flow_stays_when_the_table_changes() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let old = backend::MANY[0];
        let new = backend::MANY[1];
        let tcp = |port, flags| packet(family, world::MANY).tcp((port, 80), flags, b"");
        let udp = |port| packet(family, world::MANY).udp((port, 53), b"query");
        for probe in [tcp(1, ACK), udp(1)] {
            let vip = vip_of(&rig, &probe);
            switch(&mut rig, vip, old);
        }
        assert_eq!(goes_to(&mut rig, &tcp(47_000, ACK)), old);
        assert_eq!(goes_to(&mut rig, &tcp(47_001, SYN)), old);
        assert_eq!(goes_to(&mut rig, &udp(47_002)), old);
        for probe in [tcp(1, ACK), udp(1)] {
            let vip = vip_of(&rig, &probe);
            switch(&mut rig, vip, new);
        }
        assert_eq!(goes_to(&mut rig, &tcp(47_000, ACK)), old, "a known flow");
        assert_eq!(
            goes_to(&mut rig, &tcp(47_000, SYN)),
            old,
            "a SYN follows it"
        );
        assert_eq!(
            goes_to(&mut rig, &tcp(47_001, SYN)),
            new,
            "a SYN alone is no flow"
        );
        assert_eq!(goes_to(&mut rig, &udp(47_002)), old, "known by UDP");
        assert_eq!(goes_to(&mut rig, &tcp(47_003, ACK)), new, "a new flow");
        // The old backend is draining now: it is in no table, and keeps what it has. Then it goes down.
        rig.change_backend(old, |backend| backend.flags &= !BACKEND_FORWARDS);
        assert_eq!(
            goes_to(&mut rig, &tcp(47_000, ACK)),
            new,
            "its backend is down"
        );
        assert_eq!(goes_to(&mut rig, &udp(47_002)), new, "its backend is down");
        rig.change_backend(old, |backend| backend.flags |= BACKEND_FORWARDS);
        assert_eq!(
            goes_to(&mut rig, &tcp(47_000, ACK)),
            new,
            "it moved for good"
        );
    }
}

/// The daemon takes the mark off when no flow of the slot is elsewhere: then no SYN asks the flow table.
#[test]
fn a_syn_asks_the_flow_table_only_where_flows_may_be_elsewhere() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let [old, new, ..] = backend::MANY;
        let tcp = |flags| packet(family, world::MANY).tcp((47_700, 80), flags, b"");
        let vip = vip_of(&rig, &tcp(SYN));
        switch(&mut rig, vip, old);
        assert_eq!(goes_to(&mut rig, &tcp(ACK)), old);
        switch(&mut rig, vip, new);
        assert_eq!(goes_to(&mut rig, &tcp(SYN)), old, "its slot is marked");
        rig.set_table(vip, 1, &[new]);
        assert_eq!(goes_to(&mut rig, &tcp(SYN)), new, "nothing is marked");
        assert_eq!(goes_to(&mut rig, &tcp(ACK)), old, "the flow stays");
        rig.change_vip(vip, |vip| vip.flags |= VIP_MOVED);
        assert_eq!(goes_to(&mut rig, &tcp(SYN)), old, "the VIP is marked");
        rig.change_vip(vip, |vip| vip.flags &= !VIP_MOVED);
    }
}

#[test]
fn an_icmp_error_follows_the_flow_that_it_quotes() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let kind = if family == Family::V4 { 3 } else { 2 };
        let probe = packet(family, world::MANY).tcp((1, 80), ACK, b"");
        let vip = vip_of(&rig, &probe);
        let flows: Vec<u16> = (0..50)
            .map(|n| {
                goes_to(
                    &mut rig,
                    &packet(family, world::MANY).tcp((47_100 + n, 80), ACK, b""),
                )
            })
            .collect();
        assert!(flows.iter().collect::<BTreeSet<_>>().len() > 4, "{flows:?}");
        switch(&mut rig, vip, backend::MANY[7]);
        for (n, expected) in (0..50).zip(flows) {
            let answer = Packet::new(probe.to, probe.from).tcp((80, 47_100 + n), ACK, &[7; 99]);
            let quoted = &answer.ip_bytes()[..family.header_bytes() + 8];
            let error =
                Packet::new(client(family, 30, 1), probe.to).icmp(kind, 4, [0, 0, 5, 0], quoted);
            assert_eq!(goes_to(&mut rig, &error), expected);
        }
    }
}

#[test]
fn handshakes_under_way_follow_the_table_that_they_began_with() {
    handshakes_follow_the_old_table(0);
}

/// The daemon reckons the time of a switch, and may be ahead of the kernel by some jiffies.
#[test]
fn a_switch_that_seems_to_be_in_the_future_was_just_now() {
    handshakes_follow_the_old_table(64);
}

#[track_caller]
fn handshakes_follow_the_old_table(ahead: u64) {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let [old, new, ..] = backend::MANY;
        let tcp = |port, flags| packet(family, world::MANY).tcp((port, 80), flags, b"");
        let vip = vip_of(&rig, &tcp(1, SYN));
        switch(&mut rig, vip, old);
        assert_eq!(goes_to(&mut rig, &tcp(47_200, SYN)), old);
        rig.set_table(vip, 0, &[new | SLOT_MOVED]);
        let switched = jiffies() + ahead;
        rig.change_vip(vip, |vip_now| {
            vip_now.previous_table = table(vip, 1);
            vip_now.table = table(vip, 0);
            vip_now.switched = switched;
        });
        let syn = goes_to(&mut rig, &tcp(47_201, SYN));
        let ack = goes_to(&mut rig, &tcp(47_201, ACK));
        assert_eq!((syn, ack), (new, new), "begun after the switch");
        let ack = goes_to(&mut rig, &tcp(47_200, ACK));
        assert_eq!(ack, old, "begun before the switch");
    }
}

/// A VIP's packets in the middle of a switch from `old` to `new`.
fn switch_under_way(rig: &mut Rig, vip: u16, old: u16, new: u16) {
    switch(rig, vip, old);
    rig.set_table(vip, 0, &[new | SLOT_MOVED]);
    rig.change_vip(vip, |vip_now| {
        vip_now.previous_table = table(vip, 1);
        vip_now.table = table(vip, 0);
        vip_now.switched = jiffies();
    });
}

/// Fills a flow's bucket with unproven flows that came so many ticks ago.
fn crowd(rig: &mut Rig, packet: &Packet, ticks_ago: u16) {
    let probe = Packet::new(packet.from, packet.to).udp((47_299, 53), b"query");
    rig.run(&probe.frame());
    let now = entry(rig, &probe).2.age(0).wrapping_neg();
    let bucket = bucket(rig, packet);
    for (way, tag) in (1..).take(WAYS).enumerate() {
        let born = now.wrapping_sub(ticks_ago);
        let other = Flow::new(tag, backend::MANY[3], State::Unproven, born);
        write_entry(rig, bucket, way, other);
    }
}

#[test]
fn a_handshake_that_leaves_no_mark_stays_with_the_old_table() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let [old, new, ..] = backend::MANY;
        let tcp = |port, flags| packet(family, world::MANY).tcp((port, 80), flags, b"");
        let vip = vip_of(&rig, &tcp(1, SYN));
        switch_under_way(&mut rig, vip, old, new);

        crowd(&mut rig, &tcp(47_210, SYN), 1);
        let syn = goes_to(&mut rig, &tcp(47_210, SYN));
        let ack = goes_to(&mut rig, &tcp(47_210, ACK));
        assert_eq!((syn, ack), (old, old), "no room");

        let earlier = u16::try_from(HANDSHAKE_TICKS).unwrap() + 3;
        crowd(&mut rig, &tcp(47_211, SYN), earlier);
        let syn = goes_to(&mut rig, &tcp(47_211, SYN));
        let ack = goes_to(&mut rig, &tcp(47_211, ACK));
        assert_eq!((syn, ack), (new, new), "room by what is from before");
    }
}

#[test]
fn a_handshake_stays_whole_when_the_old_backend_comes_back() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let [old, new, ..] = backend::MANY;
        let tcp = |flags| packet(family, world::MANY).tcp((47_220, 80), flags, b"");
        let vip = vip_of(&rig, &tcp(SYN));
        switch_under_way(&mut rig, vip, old, new);
        rig.change_backend(old, |backend| backend.flags &= !BACKEND_FORWARDS);
        assert_eq!(goes_to(&mut rig, &tcp(SYN)), new);
        rig.change_backend(old, |backend| backend.flags |= BACKEND_FORWARDS);
        rig.change_vip(vip, |vip_now| {
            vip_now.table = table(vip, 1);
            vip_now.switched = jiffies();
        });
        assert_eq!(goes_to(&mut rig, &tcp(ACK)), new);
    }
}

/// The kernel's jiffies. Reckoned from the time since boot they would be off: a virtual machine loses ticks.
pub(crate) fn jiffies() -> u64 {
    let timers = std::fs::read_to_string("/proc/timer_list").expect("root may read it");
    let line = timers
        .lines()
        .find_map(|line| line.strip_prefix("jiffies: "));
    line.expect("it tells jiffies")
        .trim()
        .parse()
        .expect("a number")
}

#[test]
fn fragments_of_a_datagram_go_together() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let mut used = BTreeSet::new();
        for n in 0..100u16 {
            let whole = packet(family, world::MANY).udp((47_300 + n, 53), &[7; 100]);
            let by_flow = goes_to(&mut rig, &whole);
            let [first, later] = whole.clone().in_two(u32::from(n) + 1, 48);
            assert_eq!(
                goes_to(&mut rig, &first),
                by_flow,
                "the first has the flow's ports"
            );
            assert_eq!(goes_to(&mut rig, &later), by_flow, "the others follow");
            let [first, later] = whole.in_two(u32::from(n) + 1001, 48);
            let chosen = goes_to(&mut rig, &later);
            assert_eq!(
                goes_to(&mut rig, &first),
                chosen,
                "the first follows the others too"
            );
            used.extend([by_flow, chosen]);
        }
        assert!(used.len() > 4, "{used:?}");
    }
}

#[test]
fn a_fragment_with_ports_goes_to_a_backend_of_its_own_vip() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let mut without_ports = BTreeSet::new();
        for (id, port, own) in [(1, 53, backend::IPIP4), (11, 443, backend::GUE4)] {
            let whole = packet(family, world::TWO_POOLS).udp((47_500, port), &[7; 100]);
            let [first, later] = whole.clone().in_two(id, 48);
            assert_eq!(goes_to(&mut rig, &first), own, "{family:?} {port}");
            assert_eq!(goes_to(&mut rig, &later), own, "the others follow");
            let [first, later] = whole.in_two(id + 1, 48);
            without_ports.insert(goes_to(&mut rig, &later));
            assert_eq!(goes_to(&mut rig, &first), own, "{family:?} {port}");
            assert_eq!(goes_to(&mut rig, &later), own, "what comes after it");
        }
        assert_eq!(without_ports.len(), 1, "they count as of one of the VIPs");
    }
}

#[test]
fn a_later_fragment_that_comes_first_leads_no_tcp_flow_astray() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        for n in 0..20 {
            let whole = packet(family, world::MANY).tcp((47_600 + n, 80), ACK, &[7; 100]);
            let by_flow = goes_to(&mut rig, &whole);
            let [first, later] = whole.in_two(u32::from(n) + 1, 48);
            goes_to(&mut rig, &later);
            assert_eq!(goes_to(&mut rig, &first), by_flow);
            assert_eq!(
                goes_to(&mut rig, &later),
                by_flow,
                "it follows from here on"
            );
        }
    }
}

#[test]
fn hash_by_source_keeps_a_client_on_one_backend() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let mut used = BTreeSet::new();
        for host in 0..40 {
            let from = Packet::new(client(family, 100, host), vip(family, world::BY_SOURCE));
            let first = goes_to(&mut rig, &from.clone().udp((1000, 53), b"query"));
            for port in 1001..1020 {
                let udp = from.clone().udp((port, 53), b"query");
                assert_eq!(goes_to(&mut rig, &udp), first);
                let tcp = from.clone().tcp((port, 80), SYN, &[]);
                assert_eq!(goes_to(&mut rig, &tcp), first, "by either protocol");
            }
            used.insert(first);
        }
        assert!(used.len() > 4, "{used:?}");
    }
}

#[test]
fn flows_enter_the_table_by_their_first_packet_that_is_no_syn() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        let plain = packet(family, world::IPIP4);
        let kinds = [
            (plain.clone().tcp((47_400, 80), SYN, &[]), 0, 0),
            (plain.clone().tcp((47_401, 80), ACK, &[]), 1, 1),
            (plain.clone().udp((47_402, 53), b"query"), 0, 1),
        ];
        for (packet, out_of_state, inserted) in kinds {
            let vip = vip_of(&rig, &packet);
            let before = rig.counts(packet.to);
            for _ in 0..3 {
                rig.run(&packet.frame());
            }
            let moved = rig.counts(packet.to) - before;
            assert_eq!(
                moved.of(Counted::OutOfState(vip)),
                out_of_state,
                "{packet:?}"
            );
            assert_eq!(moved.of(Counted::Inserted(vip)), inserted, "{packet:?}");
        }
    }
}

#[test]
fn a_backend_that_is_down_or_unresolved_takes_nothing() {
    let mut rig = Rig::new();
    for family in Family::BOTH {
        for protocol in [TCP, UDP] {
            for (host, reason) in [
                (world::DOWN, DropReason::NoBackend),
                (world::EMPTY, DropReason::NoBackend),
                (world::UNRESOLVED, DropReason::BackendUnresolved),
            ] {
                let plain = packet(family, host);
                let packet = match protocol {
                    TCP => plain.tcp((47_500, 80), SYN, &[]),
                    _ => plain.udp((47_500, 53), b"query"),
                };
                let row = Row::new("no backend", packet, Expect::Drop(reason));
                check_once(&mut rig, &row).unwrap();
            }
        }
    }
}
