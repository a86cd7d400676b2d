//! The lab by itself: everybody reaches everybody, labs do not meet, and nothing stays.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::process::ExitStatusExt,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use sluice_tests::{Downloads, HTTP_PORT, Lab, Turn, UDP_PORT, WEB_V4, eventually};

#[test]
fn a_client_reaches_each_backend_by_http_and_udp_of_both_families() {
    let lab = Lab::new().clients(2).build();
    for backend in lab.backends() {
        for address in [backend.v4(), backend.v6()] {
            let web = SocketAddr::new(address, HTTP_PORT);
            assert_eq!(lab.client(0).http_get(web, "/health").unwrap().body, b"ok");
            let mut conn = lab.client(1).connect(web).unwrap();
            assert_eq!(conn.backend(), backend.name());
            assert_eq!(conn.ask_who(), backend.name());
            assert_eq!(conn.post(100_000).unwrap().body, b"100000");
            assert_eq!(conn.download("/bytes/300000").unwrap(), 300_000);

            let udp = SocketAddr::new(address, UDP_PORT);
            assert_eq!(
                lab.client(0).udp_ask(udp, b"hello").unwrap(),
                backend.name()
            );
            assert_eq!(
                lab.client(0).udp_ask(udp, &[7; 5000]).unwrap(),
                backend.name(),
                "fragmented"
            );
            lab.client(0).ping(address).unwrap();
        }
    }
}

#[test]
fn a_client_speaks_from_any_address_of_its_prefixes() {
    let lab = Lab::new()
        .client(&["198.51.100.0/24", "203.0.113.0/24", "2001:db8:aa::/48"])
        .build();
    let backend = lab.backend("b2");
    for (source, to) in [
        ("198.51.100.7", backend.v4()),
        ("203.0.113.250", backend.v4()),
        ("2001:db8:aa:ffff::9", backend.v6()),
    ] {
        let source: IpAddr = source.parse().unwrap();
        let client = lab.client(0).source(source);
        let conn = client.connect(SocketAddr::new(to, HTTP_PORT)).unwrap();
        assert_eq!(conn.local_address().ip(), source);
        assert_eq!(
            client.udp_ask(SocketAddr::new(to, UDP_PORT), b"x").unwrap(),
            "b2"
        );
        client.ping(to).unwrap();
    }
}

#[test]
fn a_backend_answers_from_the_vip_when_a_frame_for_it_comes() {
    let lab = Lab::new().build();
    // Without a load balancer: the router hands the VIP to one backend.
    let via = lab.backend("b3").v4().to_string();
    lab.router()
        .command("ip", &["route", "replace", "192.0.2.1/32", "via", &via]);
    assert_eq!(lab.client(0).who(WEB_V4).unwrap(), "b3");
    lab.client(0).ping(WEB_V4.ip()).unwrap();
}

#[test]
fn raw_frames_and_their_fragments_are_as_a_kernel_would_send_them() {
    let lab = Lab::new().build();
    let (client, backend) = (lab.client(0), lab.backend("b1"));
    for address in [backend.v4(), backend.v6()] {
        let to = SocketAddr::new(address, UDP_PORT);
        let from = SocketAddr::new(client.address(to, 9), 20_000);
        let flow = client.source_port(from).udp(to).unwrap();
        let (frames, raw) = (client.frames(), client.raw());
        raw.send(&frames.udp(from, to, b"whole"));
        assert_eq!(flow.answer_to(b"whole").unwrap(), "b1");

        let mut fragments = frames.fragments(&frames.udp(from, to, &[5; 2000]), 1200);
        for _ in 0..2 {
            fragments.iter().for_each(|fragment| raw.send(fragment));
            assert_eq!(flow.answer_to(&[5; 2000]).unwrap(), "b1");
            fragments.reverse();
        }
    }
}

#[test]
fn a_flood_reaches_the_load_balancer_at_some_rate() {
    let lab = Lab::new().build();
    let before = lab.node().received();
    let frames = lab
        .node()
        .frames()
        .flood("198.51.100.0/24".parse().unwrap(), 1024);
    let flood = lab.flood(frames);
    thread::sleep(Duration::from_secs(1));
    let rate = flood.packets_per_second();
    let sent = flood.stop();
    assert!(rate > 10_000.0, "{rate} packets a second");
    assert!(lab.node().received() - before > sent / 2);
}

#[test]
fn with_two_interfaces_backends_stand_behind_the_second() {
    let lab = Lab::new().load_balancers(2).two_interfaces().build();
    for node in lab.nodes() {
        for backend in lab.backends() {
            node.netns().command(
                "ping",
                &["-c1", "-W2", "-I", "eth1", &backend.v4().to_string()],
            );
            node.netns().command(
                "ping",
                &["-c1", "-W2", "-I", "eth1", &backend.v6().to_string()],
            );
        }
        lab.client(0).ping(node.v4()).unwrap();
        lab.client(0).ping(node.v6()).unwrap();
        assert!(!node.netns().has_xdp("eth0"));
    }
    assert!(
        lab.router().has_xdp("l0s0") && lab.router().has_xdp("l1s1"),
        "the far ends pass what XDP sends"
    );
}

#[test]
fn a_stopped_backend_refuses_and_an_unplugged_one_is_silent() {
    let lab = Lab::new().build();
    let backend = lab.backend("b1");
    let web = SocketAddr::new(backend.v4(), HTTP_PORT);
    let mut conn = lab.client(0).connect(web).unwrap();

    backend.stop();
    assert!(conn.try_who().is_err());
    assert_eq!(
        lab.client(0).who(web).unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );

    backend.start();
    assert_eq!(lab.client(0).who(web).unwrap(), "b1");

    backend.unplug();
    assert!(lab.client(0).ping(backend.v6()).is_err());
    backend.plug();
    // The kernels on the way need a moment to find the host again.
    for address in [backend.v4(), backend.v6()] {
        eventually("the backend is back", || {
            lab.client(0).ping(address).is_ok()
        });
    }
    assert_eq!(lab.client(0).who(web).unwrap(), "b1");
}

#[test]
fn many_downloads_run_at_once_and_a_broken_one_is_told() {
    let lab = Lab::new().build();
    let all: Vec<SocketAddr> = lab
        .backends()
        .iter()
        .map(|backend| SocketAddr::new(backend.v4(), HTTP_PORT))
        .collect();
    let downloads = Downloads::start(lab.client(0), &all, 60, Duration::from_secs(1));
    assert_eq!(downloads.unfinished(), 60);
    lab.backend("b2").stop();
    let outcome = downloads.finish();
    assert_eq!(
        (outcome.whole, outcome.broken.len()),
        (40, 20),
        "{:?}",
        outcome.broken
    );
    assert!(
        outcome
            .broken
            .iter()
            .all(|broken| broken.starts_with("from b2"))
    );
}

#[test]
fn two_labs_stand_side_by_side_and_neither_takes_long() {
    let turn = Turn::shared();
    let start = Instant::now();
    let (one, other) = (
        Lab::new().beside(&turn).build(),
        Lab::new().beside(&turn).build(),
    );
    let took = start.elapsed();
    one.backend("b1").stop();
    let web = SocketAddr::new(one.backend("b1").v4(), HTTP_PORT);
    assert!(one.client(0).who(web).is_err());
    assert_eq!(other.client(0).who(web).unwrap(), "b1");
    assert_ne!(one.dir(), other.dir());
    assert!(took < Duration::from_secs(4), "{took:?} for two");
}

#[test]
fn nothing_is_left_after_a_panic() {
    let mut id = String::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new().build();
        id = lab
            .dir()
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        fs::create_dir_all(lab.node().pin_dir()).unwrap();
        assert_eq!(
            left_of(&id).len(),
            6 + 1 + 1,
            "namespaces, directory and pins: {:?}",
            left_of(&id)
        );
        panic!("as a failing scenario does");
    }));
    assert!(panicked.is_err());
    assert_eq!(left_of(&id), [] as [String; 0]);
}

#[test]
fn what_a_dead_process_left_is_removed_at_the_next_start() {
    // The first lab of a process looks for stale ones too; that has happened by now.
    let _lab = Lab::new().build();
    // No process has this number: it is above the kernel's limit.
    let id = "sluice-lab-99999999-0";
    let namespace = format!("{id}-b1");
    let ip = |arguments: &[&str]| {
        let mut ip = Command::new("ip");
        ip.arg("netns").args(arguments);
        ip
    };
    fs::create_dir_all(format!("/tmp/{id}")).unwrap();
    assert!(ip(&["add", &namespace]).status().unwrap().success());
    let mut left = ip(&["exec", &namespace, "sleep", "600"]).spawn().unwrap();
    eventually("it runs there", || {
        !ip(&["pids", &namespace])
            .output()
            .unwrap()
            .stdout
            .is_empty()
    });

    sluice_tests::remove_stale_labs();
    assert_eq!(left_of(id), [] as [String; 0]);
    assert_eq!(
        left.wait().unwrap().signal(),
        Some(9),
        "its processes were ended"
    );
}

fn left_of(id: &str) -> Vec<String> {
    ["/run/netns", "/sys/fs/bpf", "/tmp"]
        .into_iter()
        .flat_map(|dir| fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.starts_with(id) && !name[id.len()..].starts_with(|c: char| c.is_ascii_digit())
        })
        .collect()
}
