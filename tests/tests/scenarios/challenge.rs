//! A VIP whose SYNs are challenged: who is there gets in a little later, and who only says so does not.

use std::{
    env,
    fs::{self, File},
    net::{IpAddr, SocketAddr, TcpStream},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use sluice_tests::{Client, Good, Lab, LabBuilder, Netns, WEB_V4, WEB_V6, within};

/// What a challenge may cost a client, in the middle of many.
const ADDED: Duration = Duration::from_millis(25);
/// Sources that are all different, and nobody's.
pub(crate) const SPOOFED: &str = "16.0.0.0/4";

/// Every VIP's SYNs are treated like this.
pub(crate) fn lab(syn: &'static str) -> LabBuilder {
    Lab::new().config(move |config| {
        let mut config = config.policy("enforce", "[]");
        config.extra += &format!("syn = {syn}\n");
        config
    })
}

/// How long it takes to connect, of so many clients, each from an address of its own, in order.
pub(crate) fn connect_times(
    client: &Client,
    vip: SocketAddr,
    numbers: std::ops::Range<u32>,
) -> Vec<Duration> {
    let mut times: Vec<Duration> = numbers
        .map(|number| {
            let client = client.source(client.address(vip, number));
            let start = Instant::now();
            let mut conn = client
                .connect(vip)
                .unwrap_or_else(|error| panic!("client {number}: {error}"));
            let time = start.elapsed();
            assert_eq!(conn.ask_who(), conn.backend());
            time
        })
        .collect();
    times.sort_unstable();
    times
}

pub(crate) fn median(times: &[Duration]) -> Duration {
    times[times.len() / 2]
}

/// What the metrics say of challenges of the VIP `web4`.
fn challenges(lab: &Lab, event: &str) -> u64 {
    let series = format!("sluice_challenges_total{{vip=\"web4\",event=\"{event}\"}}");
    lab.node().metric(&series)
}

#[test]
fn clients_connect_through_a_challenge() {
    let lab = lab(r#"{ mode = "always" }"#).start();
    for vip in [WEB_V4, WEB_V6] {
        let times = connect_times(lab.client(0), vip, 10..70);
        assert!(median(&times) < ADDED, "{times:?}");
        assert!(times[59] < Duration::from_millis(900), "{times:?}");
    }
    assert!(lab.node().dropped_for("challenge_answer") >= 120);
    assert!(challenges(&lab, "proved") >= 60);
    assert!(challenges(&lab, "let_in") >= 60);
}

/// Who proved itself is not asked for each connection.
#[test]
fn a_proven_source_is_not_asked_again() {
    let lab = lab(r#"{ mode = "always" }"#).start();
    let client = lab.client(0);
    client.connect(WEB_V4).expect("a connection");
    let sent = challenges(&lab, "sent");
    for _ in 0..20 {
        client.connect(WEB_V4).expect("a connection");
    }
    assert_eq!(challenges(&lab, "sent"), sent);
}

/// A firewall on the client's side that drops its resets costs it a second.
#[test]
fn a_client_whose_resets_get_lost_gets_in_when_it_sends_its_syn_again() {
    let lab = lab(r#"{ mode = "always" }"#).start();
    lab.client(0).netns().command(
        "nft",
        &["add table inet mute; add chain inet mute out { type filter hook output priority 0; }; add rule inet mute out tcp flags & rst == rst drop"],
    );
    let times = connect_times(lab.client(0), WEB_V4, 10..14);
    assert!(times[0] > Duration::from_millis(800), "{times:?}");
    assert!(times[3] < Duration::from_millis(3_500), "{times:?}");
    assert!(challenges(&lab, "again") >= 4);
    assert_eq!(challenges(&lab, "proved"), 0);
}

/// Connection tracking on the way finds nothing invalid in a challenge and its answer.
#[test]
fn a_client_behind_a_nat_that_drops_what_is_invalid_connects() {
    let lab = lab(r#"{ mode = "always" }"#).start();
    let home = Home::behind(lab.client(0));
    let mut times: Vec<Duration> = (0..20)
        .map(|number| {
            // Nobody is proven: each has another address outside.
            let outside = lab.client(0).address(WEB_V4, 20 + number);
            home.comes_from(outside);
            let start = Instant::now();
            home.connect(WEB_V4);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    assert!(median(&times) < ADDED, "{times:?}");
    assert!(challenges(&lab, "proved") >= 19);
    assert!(challenges(&lab, "again") <= 1);
    assert_eq!(home.invalid(), 0);
}

/// Real clients get in, and those that were there go on, while SYNs of sources that are nobody come at the highest rate.
#[test]
fn a_flood_of_syns_from_forged_sources_keeps_nobody_out() {
    let lab = lab(r#"{ mode = "auto", above_pps = 2_000, hold = "2s" }"#)
        .alone()
        .client(&Good::PREFIXES)
        .start();
    let client = lab.client(0);
    let mut good = Good::new(client);
    assert_eq!(challenges(&lab, "sent"), 0, "no flood");

    let frames = lab
        .node()
        .frames()
        .syn_flood(SPOOFED.parse().unwrap(), 8192);
    let flood = lab.flood(frames);
    within(Duration::from_secs(5), "challenges are on", || {
        challenges(&lab, "sent") > 10_000
    });
    let (mut times, mut failed) = (Vec::new(), Vec::new());
    let end = Instant::now() + flood_time();
    good.beside(|| {
        for number in 2000.. {
            if Instant::now() > end {
                break;
            }
            let start = Instant::now();
            let client = client.source(client.address(WEB_V4, number));
            match client.connect(WEB_V4) {
                Ok(mut conn) => {
                    times.push(start.elapsed());
                    assert_eq!(conn.ask_who(), conn.backend());
                }
                Err(error) => failed.push(error),
            }
        }
    });
    times.sort_unstable();
    let sent = flood.stop();
    println!(
        "figure: new connections under {sent} forged SYNs, {} of them challenged: {} of {}, {:?} in the middle, {:?} at most",
        challenges(&lab, "sent"),
        times.len(),
        times.len() + failed.len(),
        median(&times),
        times[times.len() - 1]
    );
    assert!(times.len() >= 100, "{times:?}");
    assert!(failed.len() * 100 <= times.len(), "{failed:?}");
    assert!(median(&times) < ADDED, "{times:?}");
    // Whose answer to the challenge is lost waits for its timer.
    let late = times
        .iter()
        .filter(|time| **time > Duration::from_millis(900));
    assert!(late.count() * 100 <= times.len(), "{times:?}");

    let mut stranger = 500;
    within(Duration::from_secs(10), "challenges end", || {
        stranger += 1;
        let sent = challenges(&lab, "sent");
        let client = client.source(client.address(WEB_V4, stranger));
        client.connect(WEB_V4).expect("a connection");
        challenges(&lab, "sent") == sent
    });
}

/// Three seconds, or as long as `cargo xtask figures` says.
fn flood_time() -> Duration {
    let seconds = env::var("FLOOD_SECONDS").map_or(3, |seconds| seconds.parse().expect("seconds"));
    Duration::from_secs(seconds)
}

/// A host in a namespace of its own, behind a client that translates its address and drops what its connection tracking calls
/// invalid.
struct Home<'a> {
    router: &'a Netns,
    /// Holds the namespace.
    sleeper: Child,
}

impl<'a> Home<'a> {
    fn behind(client: &'a Client) -> Self {
        let router = client.netns();
        let sleeper = router.run(|| {
            Command::new("unshare")
                .args(["--net", "sleep", "600"])
                .spawn()
                .expect("unshare runs")
        });
        let home = Self { router, sleeper };
        within(Duration::from_secs(5), "the namespace is there", || {
            fs::read_link(home.path()).ok() != fs::read_link("/proc/self/ns/net").ok()
                && router
                    .run(|| fs::read_link("/proc/thread-self/ns/net"))
                    .ok()
                    != fs::read_link(home.path()).ok()
        });
        let pid = home.sleeper.id().to_string();
        for line in [
            format!("link add home type veth peer name eth0 netns {pid}"),
            "address add 10.99.0.1/24 dev home".to_owned(),
            "link set home up".to_owned(),
        ] {
            router.command("ip", &line.split(' ').collect::<Vec<_>>());
        }
        home.inside(|| {
            for line in [
                "address add 10.99.0.2/24 dev eth0",
                "link set eth0 up",
                "route add default via 10.99.0.1",
            ] {
                let status = Command::new("ip").args(line.split(' ')).status();
                assert!(status.expect("ip runs").success(), "{line}");
            }
        });
        router.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("it is writable"));
        router.command(
            "nft",
            &["add table ip home; add chain ip home out { type nat hook postrouting priority 100; }; add chain ip home way { type filter hook forward priority 0; }; add chain ip home in { type filter hook input priority 0; }; add rule ip home way ct state invalid counter drop; add rule ip home in ct state invalid counter drop"],
        );
        home
    }

    /// Its address outside, from here on.
    fn comes_from(&self, address: IpAddr) {
        let rules = format!(
            "flush chain ip home out; add rule ip home out ip saddr 10.99.0.0/24 oifname eth0 snat to {address}"
        );
        self.router.command("nft", &[&rules]);
    }

    fn connect(&self, vip: SocketAddr) {
        self.inside(|| TcpStream::connect_timeout(&vip, Duration::from_secs(5)))
            .expect("a connection");
    }

    /// Packets that the connection tracking called invalid.
    fn invalid(&self) -> u64 {
        let listed = self.router.command("nft", &["list", "table", "ip", "home"]);
        let words: Vec<&str> = listed.split_whitespace().collect();
        let counts = words.windows(2).filter(|pair| pair[0] == "packets");
        counts
            .map(|pair| pair[1].parse::<u64>().expect("a number"))
            .sum()
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.sleeper.id())
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).expect("the namespace is there");
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter");
                work()
            });
            inside.join().expect("no panic")
        })
    }
}

impl Drop for Home<'_> {
    fn drop(&mut self) {
        _ = self.sleeper.kill();
        _ = self.sleeper.wait();
    }
}
