//! Attacks that are harder to find than those that begin at once in an even peace; and a peace that looks like attacks.

use super::{
    attacks::{Attack, Kind},
    times::{Times, wait},
    world::{bursty, busy, class, peaceful},
};
use crate::{config::Stance, detect::detector::Seen};

/// What has one form, in each class.
const PLAIN: [Kind; 8] = [
    Kind::Udp,
    Kind::NtpReplies,
    Kind::SsdpReplies,
    Kind::DnsReplies,
    Kind::Syn,
    Kind::Ack,
    Kind::Icmp,
    Kind::QuicInitial,
];

#[test]
fn attacks_amid_bursts_ramps_vectors_and_small_ones_are_met_in_the_same_time() {
    let mut all = Times::default();
    for (name, times) in [
        ("amid bursts", amid_bursts()),
        ("ramps", ramps()),
        ("several vectors", vectors()),
        ("small", small()),
    ] {
        let mut times = times;
        times.tell(name);
        all.append(times);
    }
    all.tell("all of these");
    all.check();
}

fn amid_bursts() -> Times {
    let mut times = Times::default();
    for kind in Kind::ALL {
        for seed in 0..2 {
            let mut world = bursty();
            wait(&mut world, seed * 37 + 5);
            let attack = Attack::new(kind, world.random());
            times.take(world, &[attack]);
        }
    }
    times
}

/// The rate doubles within one or two seconds.
fn ramps() -> Times {
    let mut times = Times::default();
    for kind in PLAIN {
        for seed in 0..4 {
            let mut world = if seed % 2 == 0 {
                peaceful(Stance::Enforce)
            } else {
                bursty()
            };
            wait(&mut world, seed * 41 + 3);
            let mut attack = Attack::new(kind, world.random());
            attack.doubles_in_ms = Some(1_000 + world.random().below(1_000));
            times.take(world, &[attack]);
        }
    }
    times
}

fn vectors() -> Times {
    let mut times = Times::default();
    for kinds in [
        &[Kind::Syn, Kind::NtpReplies, Kind::Icmp][..],
        &[Kind::DnsReplies, Kind::Ack],
        &[Kind::NtpReplies, Kind::SsdpReplies, Kind::CldapReplies],
        &[Kind::SynRandom, Kind::Rst, Kind::Fragments, Kind::Udp],
        &[Kind::UdpRandom, Kind::SynRandom],
        &[Kind::MemcachedReplies, Kind::UdpRandom],
    ] {
        for seed in 0..4 {
            let mut world = bursty();
            wait(&mut world, seed * 43 + 1);
            let one = |kind: &Kind| Attack::new(*kind, world.random());
            let attacks: Vec<Attack> = kinds.iter().map(one).collect();
            let seen = times.take(world, &attacks);
            let met = seen.first_drops_ms.keys();
            assert_eq!(met.len(), kinds.len(), "{kinds:?}: only {met:?}");
        }
    }
    times
}

/// Three to five times as much as innocent clients send of that class, or hardly more than the floor.
fn small() -> Times {
    let mut times = Times::default();
    for kind in PLAIN {
        for seed in 0..4 {
            let mut world = busy();
            wait(&mut world, seed * 47 + 9);
            let mut attack = Attack::new(kind, world.random());
            let (vip, header) = attack.packet(world.random());
            let (name, class) = (format!("vip{vip}"), class(&header, true));
            let is_it = |seen: &Seen<'_>| seen.vip == Some(&name) && seen.class == class;
            let usual = world.detector.watched().find(is_it).unwrap();
            let usual = usual.trigger.packets.usual();
            let times_ten = 30 + world.random().below(20);
            attack.pps = (usual * times_ten / 10).max(FLOOR_PPS * 12 / 10);
            times.take(world, &[attack]);
        }
    }
    times
}

const FLOOR_PPS: u64 = 10_000;

#[test]
fn an_hour_of_bursts_is_no_attack() {
    let mut world = bursty();
    world.draw_few();
    world.run(3_600_000);
    assert_eq!(world.seen.decisions, []);
}
