//! The data plane in a real kernel: loaded, attached, taken over, refused, unloaded. Needs root and a BPF file system.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use etherparse::PacketBuilder;
use nix::sched::{CloneFlags, unshare};
use sluice::sys::Mapped;
use sluice::{
    config::{AllDown, Dataplane, Forward, HashInput, Host, Policy, Protocol, XdpMode},
    dataplane::{
        Action, ApplyError, BackendKey, BackendState, Desired, Explainer, LoadError, Mode, Need,
        Opened, Ordered, Plane, Step, Table, TableKey, Vip, inspect, unload,
    },
    net::{NextHop, Station, if_index},
};
use sluice_ebpf::{
    abi::{self, SLOT_MOVED, VIP_MOVED},
    flow::{self, Flow, State},
    hash,
};

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
const VIP: [u8; 4] = [192, 0, 2, 10];
const CLIENT: [u8; 4] = [198, 51, 100, 7];
const NEED: Need = Need {
    vips: 1,
    slots: 251,
};
const LOOPBACK: u32 = 1;

#[test]
fn a_syn_goes_to_its_backend_and_a_new_daemon_takes_over() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, opened) = open(&config);
        assert!(!opened.adopted);
        assert_eq!(opened.interfaces.len(), 1);
        assert_eq!(opened.interfaces[0].name, "wire.0");
        assert_eq!(opened.interfaces[0].mode, Mode::Native);
        assert_eq!(site.programs("wire.0"), 1);

        let desired = desired(&[1, 2, 3]);
        let steps = plane.apply(&desired).unwrap();
        assert!(steps.contains(&Step::FlipIndex), "{steps:?}");
        assert_eq!(plane.apply(&desired).unwrap(), []);

        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let before = explainer.explain(&syn(443), LOOPBACK).unwrap();
        assert_eq!(
            before.action,
            Action::Tx,
            "{:?}",
            before.steps().collect::<Vec<_>>()
        );
        assert_eq!(before.frame[..5], BACKEND_MAC[..5]);
        assert!(
            (1..=3).contains(&before.frame[5]),
            "one of the three backends"
        );
        assert_eq!(before.frame[6..12], OUR_MAC);
        assert_eq!(before.frame[12..], syn(443)[12..]);
        let other = explainer.explain(&syn(80), LOOPBACK).unwrap();
        assert_eq!(other.action, Action::Pass, "no VIP on this port");

        let program = plane.run_stats().unwrap().program_id;
        let checksums = plane.table_checksums().clone();
        drop((plane, explainer));
        assert_eq!(site.programs("wire.0"), 1, "it works on without its daemon");

        let (mut plane, opened) = open(&config);
        assert!(opened.adopted);
        assert_eq!(opened.warnings, Vec::<String>::new());
        assert_ne!(plane.run_stats().unwrap().program_id, program);
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let held = explainer.explain(&syn(443), LOOPBACK).unwrap();
        assert_eq!(held.frame, before.frame, "before anything is applied");
        plane.apply(&desired).unwrap();
        assert_eq!(plane.apply(&desired).unwrap(), []);
        assert_eq!(*plane.table_checksums(), checksums);
        let after = explainer.explain(&syn(443), LOOPBACK).unwrap();
        assert_eq!(after.frame, before.frame);
        assert_eq!(after.trace.backend, before.trace.backend);
    });
}

#[test]
fn changes_reach_packets() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        for backends in [&[1u8, 2, 3][..], &[2], &[2, 4], &[5]] {
            plane.apply(&desired(backends)).unwrap();
            let explained = explainer.explain(&syn(443), LOOPBACK).unwrap();
            assert_eq!(explained.action, Action::Tx, "{backends:?}");
            assert!(backends.contains(&explained.frame[5]), "{backends:?}");
        }
        let mut nobody = desired(&[5]);
        for table in nobody.tables.values_mut() {
            table.weights.clear();
        }
        plane.apply(&nobody).unwrap();
        let explained = explainer.explain(&syn(443), LOOPBACK).unwrap();
        assert_eq!(explained.action, Action::Drop);

        let steps = plane.apply(&Desired::default()).unwrap();
        assert!(steps.contains(&Step::RemoveVip("www".into())), "{steps:?}");
        let explained = explainer.explain(&syn(443), LOOPBACK).unwrap();
        assert_eq!(explained.action, Action::Pass);
        assert!(
            plane.drops().unwrap().is_empty(),
            "explaining counts nothing"
        );
        assert_eq!(plane.vip_stats().unwrap()[""].tx.packets, 0);
    });
}

/// A VIP that takes every port by `local` shares its address with the host.
#[test]
fn what_the_host_must_get_passes_before_the_filter() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let mut explain = |frame: &[u8]| {
            let explained = explainer.explain(frame, LOOPBACK).unwrap();
            let protected = explained.steps().any(|step| step == abi::Step::Protected);
            (explained.action, protected)
        };
        let mut desired = desired(&[1]);
        desired.host.ports = vec![(Protocol::Tcp, 22), (Protocol::Tcp, 179)];
        let mut vip = desired.vips.remove("www").unwrap();
        (vip.port, vip.table.forward) = (None, Forward::Local);
        let table = desired.tables.pop_first().unwrap().1;
        desired.tables.insert(vip.table.clone(), table);
        desired.vips.insert("www".into(), vip.clone());
        plane.apply(&desired).unwrap();
        assert_eq!(explain(&syn(22)), (Action::Pass, true));
        assert_eq!(explain(&syn(179)), (Action::Pass, true));
        assert_eq!(explain(&syn(443)), (Action::Tx, false), "the backend's");

        // Another VIP of the address has the port: it is the operator's word.
        vip.port = Some(22);
        desired.vips.insert("ssh".into(), vip);
        plane.apply(&desired).unwrap();
        assert_eq!(explain(&syn(22)), (Action::Tx, false));
        assert_eq!(explain(&syn(179)), (Action::Pass, true));

        desired.host.sources = vec!["198.51.100.0/24".parse().unwrap()];
        let steps = plane.apply(&desired).unwrap();
        assert!(steps.contains(&Step::PutProtected), "{steps:?}");
        assert_eq!(explain(&syn(443)), (Action::Pass, true));
        desired.host.sources = vec!["203.0.113.0/24".parse().unwrap()];
        plane.apply(&desired).unwrap();
        assert_eq!(explain(&syn(443)), (Action::Tx, false));
        desired.host.sources.clear();
        plane.apply(&desired).unwrap();
        assert_eq!(plane.apply(&desired).unwrap(), []);
        assert_eq!(plane.audit(), Vec::<String>::new());
    });
}

#[test]
fn a_number_is_used_again_when_no_flow_has_it() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        let start = plane.jiffies_now();
        let later = |seconds: u64| start + seconds * u64::from(plane.hz());
        let (soon, long_after) = (later(29), later(31));
        plane.apply_at(&desired(&[1, 2]), start).unwrap();
        let flows = plane.map::<[u64; 8]>("FLOWS").unwrap();
        let flow = |backend| Flow::new(7, backend, State::Proven, 1).0;
        flows.write(3, &[flow(0), flow(1), 0, 0, 0, 0, 0, flow(0)]);

        plane.apply_at(&desired(&[2]), start).unwrap();
        plane.apply_at(&desired(&[2, 3]), soon).unwrap();
        assert_eq!(flows.read(3)[0], flow(0), "nobody else's number yet");
        assert_eq!(plane.flows_per_backend().proven, 3);
        plane.apply_at(&desired(&[2, 3, 4]), long_after).unwrap();
        assert_eq!(flows.read(3), [0, flow(1), 0, 0, 0, 0, 0, 0]);
        let census = plane.flows_per_backend();
        assert_eq!((census.proven, census.by_backend.len()), (1, 1));
        let (backend, _) = census.by_backend.first_key_value().unwrap();
        assert_eq!(backend.address, IpAddr::from([10, 0, 0, 2]));
    });
}

#[test]
fn slots_that_moved_are_marked_until_their_flows_are_gone() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        let start = plane.jiffies_now();
        let later = |seconds: u64| start + seconds * u64::from(plane.hz());
        let (after_handshakes, after_silence) = (later(10), later(920));
        plane.apply_at(&desired(&[1, 2]), start).unwrap();
        let before = table(&plane);
        assert!(before.iter().all(|slot| slot & SLOT_MOVED == 0));

        plane.apply_at(&draining(&[1, 2], 2), start).unwrap();
        let moved = |slot: &u16| if *slot == 1 { SLOT_MOVED } else { 0 };
        let marked: Vec<u16> = before.iter().map(moved).collect();
        assert_eq!(table(&plane), marked, "what was at 1 is at 0");

        let slot = before.iter().position(|&slot| slot == 1).unwrap();
        let tag = u32::try_from((slot as u64) * (1 << 32) / 251 + 1).unwrap();
        assert_eq!(hash::slot(u64::from(tag) << 32, 251) as usize, slot);
        let tick = u16::try_from(start >> flow::age_shift(plane.hz()) & 0x3fff).unwrap();
        let flow = Flow::new(tag, 1, State::Proven, tick).0;
        let flows = plane.map::<[u64; 8]>("FLOWS").unwrap();
        flows.write(5, &[flow, 0, 0, 0, 0, 0, 0, 0]);
        plane.sweep_at(start);
        assert_eq!(table(&plane), marked, "handshakes may be under way");
        plane.sweep_at(after_handshakes);
        let mut one = vec![0; 251];
        one[slot] = SLOT_MOVED;
        assert_eq!(table(&plane), one, "a flow of this slot is at 1");
        let ahead = Flow::new(tag, 1, State::Proven, tick + 1000).0;
        flows.write(6, &[ahead, 0, 0, 0, 0, 0, 0, 0]);
        plane.sweep_at(after_handshakes);
        assert_eq!(flows.read(6)[0], ahead, "seen by a clock that is ahead");
        flows.write(6, &[0; 8]);
        plane.sweep_at(after_silence);
        assert_eq!(flows.read(5)[0], 0, "it expired");
        assert_eq!(table(&plane), vec![0; 251]);
    });
}

#[test]
fn a_vip_that_comes_to_another_table_is_marked_for_as_long_as_silent_flows_live() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        let start = plane.jiffies_now();
        let after_silence = start + 920 * u64::from(plane.hz());
        let is_marked = |plane: &Plane| {
            let vips = plane.map::<Words>("VIPS").unwrap();
            vip_of(&vips, plane).flags & VIP_MOVED != 0
        };
        plane.apply_at(&desired(&[1, 2]), start).unwrap();
        assert!(!is_marked(&plane), "there were no flows before");
        let mut other = desired(&[1, 2]);
        let rename = |pool: &mut String| "other".clone_into(pool);
        other.backends = renamed(other.backends, |key| rename(&mut key.pool));
        other.tables = renamed(other.tables, |key| rename(&mut key.pool));
        for table in other.tables.values_mut() {
            table.weights = renamed(std::mem::take(&mut table.weights), |key| {
                rename(&mut key.pool);
            });
        }
        for vip in other.vips.values_mut() {
            rename(&mut vip.table.pool);
        }
        plane.apply_at(&other, start).unwrap();
        assert!(is_marked(&plane));
        plane.sweep_at(start + 20 * u64::from(plane.hz()));
        assert!(is_marked(&plane));
        plane.sweep_at(after_silence);
        assert!(!is_marked(&plane));
    });
}

#[test]
fn however_often_a_backend_flaps_its_tables_find_room() {
    Site::run(|site| {
        let config = Dataplane {
            lookup_slots: 3 * 252,
            ..site.config()
        };
        let (mut plane, _) = open(&config);
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let start = plane.jiffies_now();
        for n in 0..200 {
            let backend = u8::try_from(n % 3 + 1).unwrap();
            let steps = plane.apply_at(&desired(&[backend]), start + n).unwrap();
            assert!(!steps.is_empty());
            let explained = explainer.explain(&syn(443), LOOPBACK).unwrap();
            assert_eq!(explained.frame[5], backend, "change {n}");
        }
    });
}

#[test]
fn a_change_waits_while_handshakes_need_what_it_would_replace() {
    Site::run(|site| {
        let config = Dataplane {
            lookup_slots: 2 * 252,
            ..site.config()
        };
        let (mut plane, _) = open(&config);
        let start = plane.jiffies_now();
        plane.apply_at(&desired(&[1]), start).unwrap();
        plane.apply_at(&desired(&[2]), start).unwrap();
        let seconds = match plane.apply_at(&desired(&[3]), start) {
            Err(ApplyError::SlotsBusy {
                slots: 504,
                seconds: seconds @ 5..=8,
            }) => seconds,
            other => panic!("{other:?}"),
        };
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let mut backend = || explainer.explain(&syn(443), LOOPBACK).unwrap().frame[5];
        assert_eq!(backend(), 2);
        let later = start + (seconds + 1) * u64::from(plane.hz());
        plane.apply_at(&desired(&[3]), later).unwrap();
        assert_eq!(backend(), 3);
    });
}

#[test]
fn a_refused_change_takes_no_numbers() {
    Site::run(|site| {
        let config = Dataplane {
            lookup_slots: 2 * 252,
            ..site.config()
        };
        let (mut plane, _) = open(&config);
        plane.apply(&desired(&[1])).unwrap();
        let numbers = plane.numbers_of_vips();

        let mut large = desired(&[1, 2]);
        let mut vip = large.vips["www"].clone();
        vip.port = Some(80);
        large.vips.insert("more".into(), vip);
        for table in large.tables.values_mut() {
            table.slots = 1009;
        }
        match plane.apply(&large) {
            Err(ApplyError::Slots { slots: 504 }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(plane.numbers_of_vips(), numbers);

        let mut many = desired(&[1]);
        let (key, state) = many.backends.pop_first().unwrap();
        many.backends = (0..=32_767)
            .map(|n| {
                let address = Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 1]) + n).into();
                (
                    BackendKey {
                        address,
                        ..key.clone()
                    },
                    state.clone(),
                )
            })
            .collect();
        for refused in [
            plane.preview(&many).map(|_| ()),
            plane.apply(&many).map(|_| ()),
        ] {
            match refused {
                Err(ApplyError::Full { most: 32_767, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(plane.apply(&desired(&[1])).unwrap(), []);
    });
}

#[test]
fn lost_numbers_are_told_and_flows_forgotten() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        plane.apply(&desired(&[1, 2])).unwrap();
        drop(plane);
        fs::remove_file(config.state_dir.join("numbers.json")).unwrap();
        let (mut plane, opened) = open(&config);
        assert!(opened.adopted);
        assert_eq!(opened.warnings.len(), 1, "{:?}", opened.warnings);
        plane.apply(&desired(&[1])).unwrap();
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        assert_eq!(explainer.explain(&syn(443), LOOPBACK).unwrap().frame[5], 1);
    });
}

#[test]
fn a_disk_that_takes_nothing_holds_up_nothing_but_what_is_new() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, _) = open(&config);
        plane.apply(&desired(&[1, 2, 3])).unwrap();
        assert!(plane.unsaved().is_none());
        let in_the_way = config.state_dir.join("numbers.json.new");
        fs::create_dir(&in_the_way).unwrap();

        // Two tables, one after the other, and a policy that was not there.
        plane.apply(&draining(&[1, 2, 3], 1)).unwrap();
        assert!(plane.unsaved().is_some());
        let mut wanted = draining(&[1, 2, 3], 2);
        let policy = Policy::without_limits("+www");
        wanted.policies.insert(policy.name.clone(), policy);
        wanted.vips.get_mut("www").unwrap().policy = Some("+www".into());
        plane.apply(&wanted).unwrap();
        let backends = |plane: &Plane| -> Vec<u16> {
            let slots = table(plane).into_iter();
            slots.map(|slot| slot & !SLOT_MOVED).collect()
        };
        let chosen = backends(&plane);
        assert_eq!(chosen.iter().collect::<BTreeSet<_>>(), [&0, &2].into());

        let more = plane.apply(&desired(&[1, 2, 3, 4]));
        assert!(matches!(more, Err(ApplyError::Registry(_))), "{more:?}");
        plane.apply(&wanted).unwrap();

        // Who starts after a crash finds all as it was.
        drop(plane);
        let (mut plane, opened) = open(&config);
        assert_eq!((opened.adopted, opened.warnings.len()), (true, 0));
        plane.apply(&wanted).unwrap();
        assert_eq!(backends(&plane), chosen);

        fs::remove_dir(in_the_way).unwrap();
        plane.apply(&desired(&[1, 2, 3, 4])).unwrap();
        assert!(plane.unsaved().is_none());
    });
}

#[test]
fn a_data_plane_that_is_new_forwards_though_the_disk_takes_nothing() {
    Site::run(|site| {
        let config = site.config();
        fs::create_dir_all(config.state_dir.join("numbers.json.new")).unwrap();
        let (mut plane, _) = open(&config);
        plane.apply(&desired(&[1, 2])).unwrap();
        plane.apply(&desired(&[2])).unwrap();
        assert!(plane.unsaved().is_some());
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        assert_eq!(explainer.explain(&syn(443), LOOPBACK).unwrap().frame[5], 2);
        // No flow may end up at a stranger after a crash.
        drop(plane);
        let warnings = open(&config).1.warnings;
        assert!(warnings[0].contains("the flow table is cleared"));
    });
}

#[test]
fn what_does_not_fit_is_refused_and_left_alone() {
    Site::run(|site| {
        let config = site.config();
        drop(open(&config));
        let larger = Dataplane {
            flows: config.flows * 2,
            ..config.clone()
        };
        match Plane::open(&larger, NEED, None).map(|_| ()) {
            Err(LoadError::Shape { map: "FLOWS", .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(site.programs("wire.0"), 1);

        let ours = config.pin_dir.join(format!("v{}", abi::ABI_VERSION));
        let theirs = config.pin_dir.join("v99");
        fs::create_dir(&theirs).unwrap();
        fs::rename(ours.join("FLOWS"), theirs.join("FLOWS")).unwrap();
        match Plane::open(&config, NEED, None).map(|_| ()) {
            Err(error @ LoadError::OtherVersion { .. }) => {
                assert!(error.to_string().contains("sluice unload"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(site.programs("wire.0"), 1);

        unload(&config.pin_dir).unwrap();
        assert_eq!(site.programs("wire.0"), 0);
        assert!(!config.pin_dir.exists());
        assert_eq!(unload(&config.pin_dir).unwrap(), Vec::<PathBuf>::new());
    });
}

#[test]
fn interfaces_come_and_go() {
    Site::run(|site| {
        let mut config = site.config();
        drop(open(&config));
        config.interfaces = vec!["wire.0".into(), "wire1".into()];
        let (mut plane, opened) = open(&config);
        assert_eq!(opened.interfaces.len(), 2);
        assert_eq!((site.programs("wire.0"), site.programs("wire1")), (1, 1));
        config.interfaces.remove(0);
        plane.attach(&config).unwrap();
        assert_eq!((site.programs("wire.0"), site.programs("wire1")), (0, 1));

        config.interfaces = vec!["nowhere".into()];
        match plane.attach(&config) {
            Err(LoadError::NoInterface { interface }) => assert_eq!(interface, "nowhere"),
            other => panic!("{other:?}"),
        }
        assert_eq!(site.programs("wire1"), 1);

        ip("link del wire1");
        site.wire();
        config.interfaces = vec!["wire1".into()];
        config.mode = XdpMode::Generic;
        let (attached, warnings) = plane.attach(&config).unwrap();
        assert_eq!(attached[0].mode, Mode::Generic);
        assert_eq!(warnings, Vec::<String>::new(), "as it was asked for");
        assert_eq!(site.programs("wire1"), 1);
        let inspection = inspect(&config.pin_dir, Some(&config)).unwrap();
        assert_eq!(inspection.links.len(), 1, "the link to what is gone, too");
    });
}

#[test]
fn a_mode_that_would_take_the_program_off_is_refused() {
    Site::run(|site| {
        site.refuse_native("wire.0");
        let config = site.config();
        let (_, opened) = open(&config);
        assert_eq!(opened.interfaces[0].mode, Mode::Generic);

        let native = Dataplane {
            mode: XdpMode::Native,
            ..config.clone()
        };
        let other_mode = |error: &LoadError| matches!(error, LoadError::OtherMode { .. });
        let error = Plane::open(&native, NEED, None).map(|_| ()).unwrap_err();
        assert!(other_mode(&error), "{error}");
        assert_eq!(site.programs("wire.0"), 1);
        let inspection = inspect(&native.pin_dir, Some(&native)).unwrap();
        assert!(inspection.mismatch.is_some_and(|error| other_mode(&error)));

        let (_, opened) = open(&config);
        assert!(opened.adopted);
        unload(&config.pin_dir).unwrap();
        let error = Plane::open(&native, NEED, None).map(|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::Native { .. }), "{error}");
    });
}

#[test]
fn a_start_that_fails_leaves_all_as_it_was() {
    Site::run(|site| {
        let config = Dataplane {
            mode: XdpMode::Native,
            ..site.config()
        };
        let (plane, _) = open(&config);
        let key = plane.settings().flow_key;

        ip("link add wire2 type veth peer name wire3");
        site.refuse_native("wire1");
        let other = Dataplane {
            interfaces: vec!["wire2".into(), "wire1".into()],
            ..config
        };
        match Plane::open(&other, NEED, Some([7; 32])).map(|_| ()) {
            Err(LoadError::Native { interface, .. }) => assert_eq!(interface, "wire1"),
            other => panic!("{other:?}"),
        }
        assert_eq!(site.programs("wire.0"), 1, "it is not taken off");
        assert_eq!(site.programs("wire2"), 0, "it is taken off again");
        assert_eq!(plane.settings().flow_key, key, "no flow moves");
    });
}

#[test]
fn what_somebody_else_changed_is_found_and_put_right() {
    Site::run(|site| {
        let config = site.config();
        let (mut plane, opened) = open(&config);
        let desired = desired(&[1, 2, 3]);
        plane.apply(&desired).unwrap();
        assert_eq!(plane.audit(), Vec::<String>::new());
        let mut explainer = Explainer::open(&config.pin_dir, &config).unwrap();
        let frame = explainer.explain(&syn(443), LOOPBACK).unwrap().frame;

        let vip = u32::from(plane.vip_number("www").unwrap());
        let spoil = |plane: &Plane, map: &'static str, index: u32, word: usize| {
            let map = plane.map::<Words>(map).unwrap();
            let mut words = map.read(index);
            words[word] ^= 0x55;
            map.write(index, &words);
        };
        let first_slots = |plane: &Plane| {
            let vip = vip_of(&plane.map::<Words>("VIPS").unwrap(), plane);
            u32::try_from(vip.table & 0xffff_ffff).unwrap() / 4
        };
        type Spoil<'a> = &'a dyn Fn(&Plane);
        let cases: [(&str, Spoil<'_>); 7] = [
            ("backend 10.0.0.", &|plane| {
                let backends = plane.map::<Words>("BACKENDS").unwrap();
                let used = |index: &u32| backends.read(*index) != [0; 8];
                let index = (0..backends.len()).find(used).unwrap();
                spoil(plane, "BACKENDS", index, 1);
            }),
            ("VIP www", &|plane| spoil(plane, "VIPS", vip, 3)),
            ("VIP www", &|plane| spoil(plane, "VIPS", vip, 0)),
            ("the VIP index", &|plane| {
                let addresses = plane.map::<Words>("ADDRESSES").unwrap();
                let used = |index: &u32| addresses.read(*index) != [0; 8];
                for index in (0..addresses.len()).filter(used) {
                    addresses.write(index, &[0; 8]);
                }
            }),
            ("the VIP index", &|plane| {
                let settings = plane.map::<abi::Settings>("SETTINGS").unwrap();
                let active = settings.read(0).active;
                let at = std::mem::offset_of!(abi::Settings, active);
                settings.store_u32(0, at, 1 - active);
            }),
            ("lookup table of pool web", &|plane| {
                let slots = plane.map::<[u16; 4]>("SLOTS").unwrap();
                slots.write(first_slots(plane) + 1, &[77; 4]);
            }),
            ("settings", &|plane| {
                let settings = plane.map::<abi::Settings>("SETTINGS").unwrap();
                settings.store_u64(0, 8, 1);
            }),
        ];
        for (what, spoil) in cases {
            spoil(&plane);
            let found = plane.audit();
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert!(found[0].starts_with(what), "{found:?}");
            plane.apply(&desired).unwrap();
            assert_eq!(plane.audit(), Vec::<String>::new(), "{what}");
            assert_eq!(plane.apply(&desired).unwrap(), [], "{what}");
            let now = explainer.explain(&syn(443), LOOPBACK).unwrap();
            assert_eq!(now.frame, frame, "{what}");
        }

        fs::remove_file(config.pin_dir.join(format!("v{}/VIPS", abi::ABI_VERSION))).unwrap();
        let found = plane.audit();
        assert!(found[0].starts_with("the pin "), "{found:?}");
        assert_eq!(plane.audit(), Vec::<String>::new());
        let attached = &opened.interfaces[0];
        assert!(plane.is_attached(attached));
        ip("link del wire.0");
        assert!(!plane.is_attached(attached));
        drop(plane);
        site.wire();
        assert!(open(&config).1.adopted, "all pins are there");
    });
}

#[test]
fn pins_need_their_file_system() {
    Site::run(|site| {
        let mut config = site.config();
        config.pin_dir = site.state.path().join("pins");
        match Plane::open(&config, NEED, None).map(|_| ()) {
            Err(LoadError::NoBpffs { path }) => assert_eq!(path, config.pin_dir),
            other => panic!("{other:?}"),
        }
        assert!(!config.pin_dir.exists());
    });
}

fn open(config: &Dataplane) -> (Plane, Opened) {
    Plane::open(config, NEED, None).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn chain(mut error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    while let Some(source) = error.source() {
        text += &format!(": {source}");
        error = source;
    }
    text
}

/// One VIP, 192.0.2.10 TCP 443, whose backends are next to us.
fn desired(backends: &[u8]) -> Desired {
    let key = |last: u8| BackendKey {
        pool: "web".into(),
        address: IpAddr::from([10, 0, 0, last]),
        forward: Forward::L2,
    };
    let state = |last: u8| BackendState {
        forwards: true,
        next_hop: Some(NextHop {
            ifindex: LOOPBACK,
            vlan: None,
            source_mac: OUR_MAC,
            destination_mac: [2, 0, 0, 0, 1, last],
            station: Station::Backend,
            mtu_bytes: 1500,
            source: IpAddr::from([10, 0, 0, 254]),
        }),
    };
    let table = TableKey {
        pool: "web".into(),
        forward: Forward::L2,
    };
    let vip = Vip {
        prefix: IpAddr::from(VIP).into(),
        protocol: Protocol::Tcp,
        port: Some(443),
        table: table.clone(),
        mtu_bytes: None,
        hash: HashInput::Flow,
        all_down: AllDown::Drop,
        policy: None,
        ordered: Ordered::Nothing,
    };
    Desired {
        backends: backends
            .iter()
            .map(|&last| (key(last), state(last)))
            .collect(),
        tables: BTreeMap::from([(
            table,
            Table {
                slots: 251,
                weights: backends.iter().map(|&last| (key(last), 1)).collect(),
            },
        )]),
        vips: BTreeMap::from([("www".to_owned(), vip)]),
        policies: BTreeMap::new(),
        host: Host::default(),
    }
}

/// The same, but no new flows for one of them.
fn draining(backends: &[u8], drained: u8) -> Desired {
    let mut desired = desired(backends);
    for table in desired.tables.values_mut() {
        table
            .weights
            .retain(|key, _| key.address != IpAddr::from([10, 0, 0, drained]));
    }
    desired
}

fn renamed<K: Ord, V>(map: BTreeMap<K, V>, rename: impl Fn(&mut K)) -> BTreeMap<K, V> {
    map.into_iter()
        .map(|(mut key, value)| {
            rename(&mut key);
            (key, value)
        })
        .collect()
}

type Words = [u64; 8];

fn vip_of(vips: &Mapped<Words>, plane: &Plane) -> abi::Vip {
    bytemuck::cast(vips.read(plane.vip_number("www").unwrap().into()))
}

/// The slots of the VIP's lookup table.
fn table(plane: &Plane) -> Vec<u16> {
    let vip = vip_of(&plane.map::<Words>("VIPS").unwrap(), plane);
    let slots = plane.map::<[u16; 4]>("SLOTS").unwrap();
    let first = u32::try_from(vip.table & 0xffff_ffff).unwrap();
    let count = u32::try_from(vip.table >> 32).unwrap();
    (first..first + count)
        .map(|slot| slots.read(slot / 4)[slot as usize % 4])
        .collect()
}

fn syn(port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], OUR_MAC)
        .ipv4(CLIENT, VIP, 64)
        .tcp(40_000, port, 1, 64_000)
        .syn()
        .write(&mut frame, &[])
        .unwrap();
    frame
}

/// Two cables in a network namespace of this thread's own, and pins of their own.
struct Site {
    pin_dir: PathBuf,
    state: tempfile::TempDir,
}

impl Site {
    /// Runs a test in a new site, on a thread that ends with it and takes the namespace along.
    fn run(test: impl FnOnce(&Self) + Send + 'static) {
        let outcome = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let site = Self::new();
            ip("link set lo up");
            site.wire();
            assert_eq!(if_index("lo").unwrap(), LOOPBACK);
            test(&site);
        })
        .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-test-{}-{number}", std::process::id());
        Self {
            pin_dir: Path::new("/sys/fs/bpf").join(name),
            state: tempfile::tempdir().unwrap(),
        }
    }

    /// Small, so that it loads quickly.
    fn config(&self) -> Dataplane {
        Dataplane {
            interfaces: vec!["wire.0".into()],
            mode: XdpMode::Auto,
            flows: 1 << 10,
            flow_idle: Duration::from_secs(900),
            exact_limits: 16,
            source_prefixes: 1 << 10,
            lookup_slots: 4096,
            sketch_cells: 1 << 10,
            tunnel_source_v4: "172.16.0.0/16".parse().unwrap(),
            tunnel_source_v6: "100::/64".parse().unwrap(),
            pin_dir: self.pin_dir.clone(),
            state_dir: self.state.path().join("state"),
        }
    }

    fn wire(&self) {
        for command in [
            "link add wire.0 type veth peer name wire1",
            "link set wire.0 up",
            "link set wire1 up",
        ] {
            ip(command);
        }
    }

    /// Has the driver refuse native mode: its other end sends what does not fit into a page.
    fn refuse_native(&self, interface: &str) {
        let peer = match interface {
            "wire.0" => "wire1",
            _ => "wire.0",
        };
        ip(&format!("link set {peer} mtu 9000"));
    }

    /// XDP programs on an interface.
    fn programs(&self, interface: &str) -> usize {
        ip(&format!("link show dev {interface}"))
            .matches("prog/xdp")
            .count()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _removed = unload(&self.pin_dir);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
