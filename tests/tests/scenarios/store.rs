//! What was answered is there, whatever happens to the daemon or its disk.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sluice_tests::{ApiConn, DNS_V4, Lab, WEB_V4, eventually};

const SOURCE: &str = "198.51.100.0/24";
const QUICK: &str =
    r#"{ kind = "tcp", port = 80, interval = "200ms", timeout = "200ms", rise = 2, fall = 2 }"#;

#[test]
fn what_was_answered_survives_kills_of_the_daemon() {
    let lab = Lab::new().start();
    let socket = lab.node().socket();
    let mut expected: Vec<(String, u64)> = Vec::new();
    for round in 0..8_u64 {
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..8_u64)
            .map(|writer| {
                let (socket, stop) = (socket.clone(), stop.clone());
                thread::spawn(move || {
                    let mut api = ApiConn::open(&socket).unwrap();
                    let mut answered = Vec::new();
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) || n == 250 {
                            break;
                        }
                        let prefix = format!("10.{round}.{writer}.{n}");
                        let body = format!(r#"{{"prefix": "{prefix}", "pps": {}}}"#, n + 1);
                        // Killed while it was asked: either is right.
                        let Ok(answer) = api.send("POST", "/v1/limits", &body) else {
                            break;
                        };
                        assert_eq!(answer.status, 201);
                        answered.push((format!("{prefix}/32"), n + 1));
                    }
                    answered
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(40 + 37 * round));
        lab.daemon().kill9();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            expected.extend(writer.join().unwrap());
        }
        lab.daemon().start();
        let there: HashMap<String, u64> = lab
            .node()
            .items("limits")
            .iter()
            .map(|row| {
                let prefix = row["prefix"].as_str().unwrap().to_owned();
                (prefix, row["pps"].as_u64().unwrap())
            })
            .collect();
        for (prefix, pps) in &expected {
            assert_eq!(there.get(prefix), Some(pps), "{prefix} in round {round}");
        }
        // What was under way in eight writers may be there as well.
        assert!(there.len() as u64 <= expected.len() as u64 + 8 * (round + 1));
        let warnings = warnings(&lab);
        assert!(
            !warnings.contains("state.redb"),
            "a crash tears nothing: {warnings}"
        );
    }
    println!("{} answered limits survived", expected.len());
    assert!(expected.len() > 100);
}

/// A small disk over the daemon's state directory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(directory: PathBuf) -> Self {
        let kept: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        mount(
            Some("small"),
            &directory,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=8m"),
        )
        .unwrap();
        for (path, bytes) in kept {
            fs::write(path, bytes).unwrap();
        }
        Self(directory)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_refuses_changes_and_nothing_else() {
    let lab = Lab::new()
        .client(&[SOURCE])
        .config(|config| config.health(QUICK))
        .start();
    lab.daemon().stop();
    let disk = SmallDisk::over(lab.node().state_dir());
    lab.daemon().start();
    lab.sluice(&format!(
        "limit set --prefix {SOURCE} --class udp --pps 1 --burst 1"
    ))
    .succeeds();
    disk.fill();

    let mut api = ApiConn::open(&lab.node().socket()).unwrap();
    let many: Vec<String> = (0..9_000_u32)
        .map(|n| {
            let prefix = Ipv4Addr::from_bits(0x0b00_0000 + n);
            format!(r#"{{"prefix": "{prefix}", "class": "udp", "pps": 1}}"#)
        })
        .collect();
    let many = format!("[{}]", many.join(","));
    let refused = api.send("POST", "/v1/limits", &many).unwrap();
    assert_eq!(refused.status, 507, "{:?}", refused.json());
    let why = refused.json()["detail"].to_string();
    assert!(why.contains("make room"), "{why}");
    // Nothing else: limits hold, packets pass, others are answered, a config is read again.
    assert_eq!(lab.node().items("limits").len(), 1);
    let flow = lab.client(0).udp(DNS_V4).unwrap();
    assert!(flow.answers_to(20).unwrap() <= 3);
    lab.client(0).who(WEB_V4).unwrap();
    lab.daemon().reload().succeeds();
    the_rest_goes_on(&lab);

    // A daemon that starts now has it all.
    lab.daemon().kill9();
    lab.daemon().start();
    assert_eq!(lab.node().items("limits").len(), 1);
    disk.make_room();
    let mut api = ApiConn::open(&lab.node().socket()).unwrap();
    let taken = api.send("POST", "/v1/limits", &many).unwrap();
    assert_eq!(taken.status, 200, "{:?}", taken.json());
    assert_eq!(lab.node().items("limits").len(), 9_001);
    eventually("numbers are on the disk", || {
        !warnings(&lab).contains("numbers.json")
    });
    lab.daemon().stop();
    drop(disk);
}

/// Backends fail one after the other, one is drained, and sources are denied for a while.
fn the_rest_goes_on(lab: &Lab) {
    let is = |name: &str, state: &str| {
        let address = lab.backend(name).v4();
        eventually("its state is known", || {
            lab.node().backend_row(address)["state"] == state
        });
    };
    let serve = |names: &[&str]| {
        let spread = lab.client(0).spread(WEB_V4, 40).unwrap();
        assert_eq!(spread.keys().collect::<Vec<_>>(), names);
    };
    lab.backend("b1").stop();
    is("b1", "down");
    serve(&["b2", "b3"]);
    lab.backend("b2").stop();
    is("b2", "down");
    serve(&["b3"]);
    let said = warnings(lab);
    assert!(
        said.contains("numbers.json; make room on that disk"),
        "{said}"
    );
    lab.backend("b1").start();
    lab.backend("b2").start();
    is("b1", "up");
    is("b2", "up");
    let drain = format!("drain backend v4/{}", lab.backend("b3").v4());
    lab.sluice(&drain).succeeds();
    serve(&["b1", "b2"]);
    lab.sluice(&format!("un{drain}")).succeeds();

    lab.sluice(&format!("deny add {SOURCE} --ttl 1s"))
        .succeeds();
    // A SYN that is dropped comes again.
    eventually("they are denied no more", || {
        lab.client(0).who(WEB_V4).is_ok()
    });
    assert!(lab.node().dropped_for("deny") > 0);
}

fn warnings(lab: &Lab) -> String {
    let status = lab.sluice("status --json").succeeds().json();
    status["warnings"].to_string()
}

#[test]
fn a_daemon_whose_store_makes_no_sense_starts_on_a_full_disk_too() {
    let lab = Lab::new().start();
    lab.daemon().stop();
    let disk = SmallDisk::over(lab.node().state_dir());
    fs::write(lab.node().state_dir().join("state.redb"), b"rotten").unwrap();
    disk.fill();
    lab.daemon().start();
    lab.wait_until_ready();
    lab.client(0).who(WEB_V4).unwrap();
    let said = warnings(&lab);
    for part in ["state.redb.unreadable-", "nothing can be set at run time"] {
        assert!(said.contains(part), "{said}");
    }
    let limit = "limit set --prefix 198.51.100.0/24 --pps 1";
    assert!(lab.sluice(limit).stderr.contains("make room"));
    disk.make_room();
    eventually("limits are taken", || lab.sluice(limit).status == 0);
    lab.daemon().stop();
    drop(disk);
}

#[test]
fn a_store_that_makes_no_sense_is_said_and_kept() {
    let lab = Lab::new().start();
    lab.sluice("limit set --prefix 198.51.100.0/24 --pps 1")
        .succeeds();
    lab.daemon().stop();
    let file = lab.node().state_dir().join("state.redb");
    let torn = fs::read(&file).unwrap()[..3_000].to_vec();
    fs::write(&file, &torn).unwrap();
    lab.daemon().start();
    assert!(lab.node().items("limits").is_empty());
    let warnings = warnings(&lab);
    assert!(warnings.contains("state.redb.unreadable-"), "{warnings}");
    assert!(lab.node().log().contains("state.redb.unreadable-"));
    let aside = fs::read_dir(lab.node().state_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("unreadable"))
        .expect("it is kept");
    assert_eq!(fs::read(aside).unwrap(), torn);
    lab.sluice("limit set --prefix 198.51.100.0/24 --pps 1")
        .succeeds();
}
