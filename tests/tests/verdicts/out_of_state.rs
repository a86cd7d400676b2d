//! TCP out of state: the VIP's budget, and what is not charged to it.

use sluice_ebpf::abi::{
    DropReason, FILTER_OUT_OF_STATE, HANDSHAKE_WORDS, JIFFY_BITS, Limiter, Policy, maps,
};

use crate::{
    packet::{ACK, FIN, Family, Packet, RST, SYN, client, vip},
    rig::{Action, Counted, Rig},
    table::{Expect, Row, check_once},
    world,
};

const BURST: u16 = 3;

/// Gives the VIPs of a host a budget of a few packets, which fills again in days.
pub(crate) fn budget(rig: &mut Rig, host: u8, monitor: u64) {
    let cost = 1 << (JIFFY_BITS + 24);
    let policy = Policy {
        out_of_state: Limiter {
            cost,
            allowance: cost * u64::from(BURST),
        },
        out_of_state_monitor: monitor,
        ..Policy::default()
    };
    rig.put(maps::POLICIES, world::ENFORCED.into(), policy);
    for family in Family::BOTH {
        for number in rig.numbers(vip(family, host)) {
            rig.change_vip(number, |vip| {
                vip.policy = world::ENFORCED;
                vip.filter = FILTER_OUT_OF_STATE;
            });
        }
    }
}

/// Sends what the budget has, each packet of another flow; returns how many passed.
pub(crate) fn spend(rig: &mut Rig, family: Family, host: u8) -> u16 {
    let passed = (0..3 * BURST)
        .filter(|n| rig.run(&packet(family, host, 50_000 + n, ACK)).action != Action::Drop);
    passed.count().try_into().expect("a few")
}

fn plain(family: Family, host: u8) -> Packet {
    Packet::new(client(family, 100, 7), vip(family, host))
}

fn packet(family: Family, host: u8, port: u16, flags: u8) -> Vec<u8> {
    plain(family, host).tcp((port, 80), flags, b"").frame()
}

#[test]
fn a_budget_is_spent_and_then_all_is_dropped_but_what_is_known_or_follows_a_syn() {
    let host = world::IPIP4;
    for family in Family::BOTH {
        let mut rig = Rig::new();
        budget(&mut rig, host, 0);
        assert_eq!(spend(&mut rig, family, host), BURST);
        for flags in [ACK, RST, RST | ACK, FIN | ACK, SYN | ACK] {
            let stray = plain(family, host).tcp((51_000, 80), flags, b"");
            let row = Row::new("stray", stray, Expect::Drop(DropReason::OutOfState));
            check_once(&mut rig, &row).unwrap();
        }
        let mut sent = |port, flags| {
            assert_eq!(
                rig.run(&packet(family, host, port, flags)).action,
                Action::Tx,
                "port {port}, flags {flags}"
            );
        };
        sent(50_000, ACK); // A flow that was within the budget is known by now.
        sent(52_000, SYN);
        sent(52_000, ACK);
        sent(52_000, FIN | ACK);
    }
}

/// Each SYN of a flood is let in here, and is remembered as any other.
#[test]
fn a_flood_of_syns_opens_nothing_for_what_follows_none() {
    let host = world::IPIP4;
    let mut rig = Rig::new();
    budget(&mut rig, host, 0);
    assert_eq!(spend(&mut rig, Family::V4, host), BURST);
    assert_eq!(
        rig.run(&packet(Family::V4, host, 52_900, SYN)).action,
        Action::Tx
    );
    let mut words = (0..HANDSHAKE_WORDS).map(|word| rig.get_raw::<u64>(maps::HANDSHAKES, word));
    let noted = words.find(|word| *word != 0).expect("the SYN's");
    let noted = noted >> (noted.trailing_zeros() & !15);
    for word in 0..HANDSHAKE_WORDS {
        rig.put_raw(maps::HANDSHAKES, word, noted * 0x0001_0001_0001_0001);
    }
    let stray = |n| packet(Family::V4, host, 53_000 + n, ACK);
    let dropped = (0..200u16).filter(|&n| rig.run(&stray(n)).action == Action::Drop);
    assert!(dropped.count() > 190);
}

#[test]
fn later_fragments_are_charged_unless_their_datagram_is_known() {
    let host = world::IPIP4;
    for family in Family::BOTH {
        let mut rig = Rig::new();
        budget(&mut rig, host, 0);
        let pieces = |port, id| {
            let whole = plain(family, host).tcp((port, 80), ACK, &[7; 60]);
            whole.in_two(id, 24).map(|piece| piece.frame())
        };
        let mut sent = |frame: &[u8]| rig.run(frame).action != Action::Drop;
        let passed = (0..3 * BURST).filter(|n| sent(&pieces(54_000, 100 + u32::from(*n))[1]));
        assert_eq!(passed.count(), usize::from(BURST));
        assert!(sent(&packet(family, host, 54_001, SYN)));
        for piece in pieces(54_001, 200) {
            assert!(sent(&piece), "its first fragment follows a SYN");
        }
        let udp = plain(family, host).udp((54_000, 53), &[7; 60]);
        let [_, later] = udp.in_two(201, 24);
        assert!(sent(&later.frame()));
        let [_, later] = plain(family, host)
            .tcp((54_000, 80), ACK, &[7; 60])
            .in_two(202, 24);
        let row = Row::new("later", later, Expect::Drop(DropReason::OutOfState));
        check_once(&mut rig, &row).unwrap();
    }
}

#[test]
fn monitor_mode_counts_and_passes() {
    let host = world::IPIP4;
    for family in Family::BOTH {
        let mut rig = Rig::new();
        budget(&mut rig, host, 1);
        let to = vip(family, host);
        let before = rig.counts(to);
        assert_eq!(spend(&mut rig, family, host), 3 * BURST);
        let moved = rig.counts(to) - before;
        let monitored: u64 = rig
            .numbers(to)
            .into_iter()
            .map(|vip| moved.of(Counted::Monitored(vip, DropReason::OutOfState)))
            .sum();
        assert_eq!(monitored, u64::from(2 * BURST));
    }
}
