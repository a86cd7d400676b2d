//! Whoever changes the maps or takes the program off behind the daemon's back: it is found, mended and told.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData};
use serde_json::Value;
use sluice_ebpf::abi::{ABI_VERSION, Settings};
use sluice_tests::{Lab, WEB_V4, sluice_binary, within};

/// What the daemon said that it mended, in its log.
fn healed(lab: &Lab) -> Vec<String> {
    let log = lab.node().log();
    let lines = log
        .lines()
        .filter(|line| line.contains("somebody else changed"));
    lines.map(ToOwned::to_owned).collect()
}

/// The same as `/v1/events` tells it: the first so many.
fn told(lab: &Lab, number: usize) -> Vec<Vec<String>> {
    let mut stream = UnixStream::connect(lab.node().socket()).unwrap();
    // Shorter than the time between two signs of life: what has not come by then does not come.
    let quiet = Duration::from_secs(5);
    stream.set_read_timeout(Some(quiet)).unwrap();
    // After an event of nobody's, all that are kept come.
    let ask = "GET /v1/events HTTP/1.1\r\nHost: sluice\r\nLast-Event-ID: none\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let events = lines.filter_map(|line| {
        let data = line.strip_prefix("data: ")?;
        Some(serde_json::from_str::<Value>(data).unwrap())
    });
    let healed = events.filter(|event| event["event"] == "healed");
    let what =
        healed.map(|event| serde_json::from_value::<Vec<String>>(event["what"].clone()).unwrap());
    what.take(number).collect()
}

fn heals(lab: &Lab, what: &str) {
    within(
        Duration::from_secs(20),
        &format!("{what} is mended"),
        || healed(lab).iter().any(|line| line.contains(what)),
    );
    let client = lab.client(0);
    within(
        Duration::from_secs(2),
        &format!("served after {what}"),
        || client.http_get(WEB_V4, "/").is_ok(),
    );
}

fn pin(lab: &Lab, name: &str) -> PathBuf {
    let version = format!("v{ABI_VERSION}");
    lab.node().pin_dir().join(version).join(name)
}

/// Overwrites all of an array whose values are one cache line.
fn wipe(lab: &Lab, name: &str) {
    let map = Map::Array(MapData::from_pin(pin(lab, name)).unwrap());
    let mut array: Array<_, [u8; 64]> = map.try_into().unwrap();
    for index in 0..array.len() {
        array.set(index, [0; 64], 0).unwrap();
    }
}

/// Removes the last handle of the link: the kernel takes the program off.
fn take_off(lab: &Lab) {
    let links = std::fs::read_dir(pin(lab, "")).unwrap();
    let link = links
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_string_lossy().contains("link_"))
        .unwrap();
    std::fs::remove_file(link).unwrap();
}

#[test]
fn what_somebody_else_changed_is_mended_and_told() {
    let lab = Lab::new().first().start();
    let client = lab.client(0);
    client.http_get(WEB_V4, "/").unwrap();
    lab.sluice("limit set --prefix 203.0.113.0/24 --class udp --pps 10")
        .succeeds();
    let rule = [
        "rule",
        "add",
        "src 203.0.113.0/24; proto udp -> limit 10 pps",
    ];
    lab.node().sluice_words(&rule).succeeds();
    assert_eq!(healed(&lab), Vec::<String>::new());

    wipe(&lab, "BACKENDS");
    assert!(
        client.http_get(WEB_V4, "/").is_err(),
        "nothing leads to backends"
    );
    heals(&lab, "backend ");
    wipe(&lab, "VIPS");
    heals(&lab, "VIP web4");
    wipe(&lab, "ADDRESSES");
    heals(&lab, "the VIP index");
    wipe(&lab, "RULES");
    heals(&lab, "rules");

    let map = Map::Array(MapData::from_pin(pin(&lab, "LIMITS")).unwrap());
    let mut limits: Array<_, [u64; 16]> = map.try_into().unwrap();
    limits.set(1, [0; 16], 0).unwrap();
    // Large tables are looked at in turn.
    within(Duration::from_secs(100), "limits are mended", || {
        healed(&lab).iter().any(|line| line.contains("limits"))
    });
    assert_ne!(limits.get(&1, 0).unwrap(), [0; 16]);

    std::fs::remove_file(pin(&lab, "FLOWS")).unwrap();
    heals(&lab, "FLOWS");
    take_off(&lab);
    heals(&lab, "XDP on ");
    let in_log = healed(&lab);
    let told = told(&lab, in_log.len());
    assert_eq!(told.len(), in_log.len(), "{told:?}");
    for (line, what) in in_log.iter().zip(told) {
        assert!(line.contains(&what.join(", ")), "{line}: {what:?}");
    }
    let log = lab.node().log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn every_setting_that_somebody_else_changed_is_mended_and_told() {
    const WORDS: usize = size_of::<Settings>() / 8;
    let lab = Lab::new().start();
    let map = Map::Array(MapData::from_pin(pin(&lab, "SETTINGS")).unwrap());
    let mut array: Array<_, [u64; WORDS]> = map.try_into().unwrap();
    let before: Settings = bytemuck::cast(array.get(&0, 0).unwrap());
    let words = |settings| bytemuck::cast::<Settings, [u64; WORDS]>(settings);
    let spoilt = words(before).map(|word| word ^ 1 << 20 ^ 1 << 52);
    let spoilt = Settings {
        // A capture that goes on for years.
        sampling_until: u64::MAX >> 2,
        ..bytemuck::cast(spoilt)
    };
    array.set(0, words(spoilt), 0).unwrap();
    for what in [
        "settings",
        "the VIP index",
        "limits",
        "rules",
        "sets of sources",
    ] {
        heals(&lab, what);
    }
    let after: Settings = bytemuck::cast(array.get(&0, 0).unwrap());
    let hour_jiffies = 3_600_000;
    assert!(after.clock.offset.abs_diff(before.clock.offset) < hour_jiffies);
    assert_eq!(after.clock.jiffy, before.clock.jiffy);
    let expected = Settings {
        // Which of the two is in use does not matter.
        active: after.active,
        generations: after.generations,
        rules: after.rules,
        // Detection takes more samples, or fewer, all the time.
        watching: after.watching,
        clock: after.clock,
        ..before
    };
    assert_eq!(words(after), words(expected));
}

#[test]
fn a_program_of_somebody_else_in_the_way_is_said_once() {
    let lab = Lab::new().start();
    let interface = lab.sluice("status --json").succeeds().json()["interfaces"][0]["name"].clone();
    let interface = interface.as_str().unwrap();
    let mut command = Command::new(sluice_binary());
    command.args(["decap", "--interface", interface]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // It may come too late: the daemon is as quick to attach again.
    let other = (0..5).find_map(|_| {
        take_off(&lab);
        let mut other = lab.node().netns().run(|| command.spawn()).unwrap();
        thread::sleep(Duration::from_secs(2));
        other.try_wait().unwrap().is_none().then_some(other)
    });
    let mut other = other.expect("one of them comes in time");
    let said = || lab.node().log().matches("cannot attach again").count();
    within(Duration::from_secs(10), "it is said", || said() > 0);
    // It is tried again twice.
    thread::sleep(Duration::from_secs(11));
    assert_eq!(said(), 1, "{}", lab.node().log());

    other.kill().unwrap();
    other.wait().unwrap();
    heals(&lab, "XDP on ");
}
