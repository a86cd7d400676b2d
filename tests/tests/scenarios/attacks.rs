//! Twenty attacks of different kinds, each against a VIP of its own: how long they last until the first packet is dropped,
//! and what good clients of that VIP see.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use sluice_tests::{ApiConn, Frames, Good, HTTP_PORT, Lab, UDP_PORT, WEB_V4, WEB_V6, within};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Nothing but what detection finds drops anything here.
const DETECT: &str = r#"
[detect]
mode = "enforce"
learn = "3s"
thresholds = { pps = 20_000, factor = 3, cap = 3 }
"#;
const NETWORK: &str = "198.51.100.0/24";
const BOTNET: &str = "198.51.0.0/16";
const ANYWHERE: &str = "16.0.0.0/4";
const ANYWHERE_V6: &str = "2600::/12";
const FRAMES: u32 = 8192;
/// Time of peace in which what is usual is learned, and whom rules would hit: some hundred packets of each VIP.
const PEACE: Duration = Duration::from_secs(15);

/// An attack, by what it sends to a VIP from one of its sources.
struct Attack {
    name: &'static str,
    sources: &'static str,
    port: u16,
    frame: Box<dyn Fn(Frames, SocketAddr, SocketAddr) -> Vec<u8>>,
}

fn attack(
    name: &'static str,
    sources: &'static str,
    port: u16,
    frame: impl Fn(Frames, SocketAddr, SocketAddr) -> Vec<u8> + 'static,
) -> Attack {
    Attack {
        name,
        sources,
        port,
        frame: Box::new(frame),
    }
}

fn tcp(name: &'static str, sources: &'static str, flags: u8) -> Attack {
    attack(name, sources, HTTP_PORT, move |frames, from, to| {
        frames.tcp(from, to, flags)
    })
}

fn udp(name: &'static str, sources: &'static str, payload: &'static [u8]) -> Attack {
    attack(name, sources, UDP_PORT, move |frames, from, to| {
        frames.udp(from, to, payload)
    })
}

/// What servers all over the world send to whom they think has asked.
fn replies(name: &'static str, port: u16, bytes: usize, begin: &'static [u8]) -> Attack {
    attack(name, ANYWHERE, UDP_PORT, move |frames, from, to| {
        let mut payload = vec![0x55; bytes];
        payload[..begin.len()].copy_from_slice(begin);
        frames.udp(SocketAddr::new(from.ip(), port), to, &payload)
    })
}

fn attacks() -> Vec<Attack> {
    vec![
        tcp("syn_network", NETWORK, SYN),
        tcp("syn_botnet", BOTNET, SYN),
        tcp("syn_anywhere", ANYWHERE, SYN),
        tcp("syn_anywhere_v6", ANYWHERE_V6, SYN),
        tcp("ack", ANYWHERE, ACK),
        tcp("ack_network", NETWORK, ACK),
        tcp("push", ANYWHERE, PSH | ACK),
        tcp("rst", ANYWHERE, RST),
        tcp("fin", ANYWHERE, FIN | ACK),
        udp("udp_network", NETWORK, b"flood of one network"),
        udp("udp_anywhere", ANYWHERE, b"flood of forged sources"),
        udp("udp_anywhere_v6", ANYWHERE_V6, b"flood of forged sources"),
        attack("udp_random", ANYWHERE, UDP_PORT, |frames, from, to| {
            let begin = from.port().wrapping_mul(31);
            let payload: Vec<u8> = (0..from.port() % 900 + 20)
                .map(|at| begin.wrapping_add(at * 7).to_be_bytes()[1])
                .collect();
            frames.udp(from, to, &payload)
        }),
        replies("dns", 53, 900, &[0x12, 0x34, 0x81, 0x80, 0, 1, 0, 20]),
        replies("ntp", 123, 440, &[0xd7, 0, 3, 0x2a, 0, 6, 0, 0x48]),
        replies("ssdp", 1900, 300, b"HTTP/1.1 200 OK"),
        replies("memcached", 11211, 1_100, &[0, 0, 0, 0, 0, 1, 0, 0]),
        replies("cldap", 389, 1_000, &[0x30, 0x84, 0, 0, 5, 0x6d, 2, 1]),
        attack("icmp", ANYWHERE, HTTP_PORT, |frames, from, to| {
            frames.echo_request(from.ip(), to.ip(), from.port(), 1, &[7; 56])
        }),
        attack("fragments", ANYWHERE, UDP_PORT, |frames, from, to| {
            let [_, later] = frames.fragments(&frames.udp(from, to, &[7; 1_000]), 48);
            later
        }),
    ]
}

impl Attack {
    /// The VIP of the attack of this number.
    fn vip(&self, number: usize) -> SocketAddr {
        let low = 0x64 + u16::try_from(number).expect("few attacks");
        let address = match if self.is_v6() { WEB_V6 } else { WEB_V4 }.ip() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                IpAddr::from([a, b, c, u8::try_from(low).expect("few attacks")])
            }
            IpAddr::V6(address) => {
                let mut segments = address.segments();
                segments[7] = low;
                IpAddr::from(segments)
            }
        };
        SocketAddr::new(address, self.port)
    }

    fn is_v6(&self) -> bool {
        self.sources == ANYWHERE_V6
    }

    fn frames(&self, lab: &Lab, vip: SocketAddr) -> Vec<Vec<u8>> {
        let sources = Frames::sources(self.sources.parse().expect("a prefix"), FRAMES);
        let frames = lab.node().frames();
        sources
            .map(|from| (self.frame)(frames, from, vip))
            .collect()
    }
}

/// Good clients of each VIP, after a while of peace.
fn peace(lab: &Lab, vips: &[(&str, SocketAddr)]) -> Vec<Good> {
    let began = Instant::now();
    let go_on = |vip| {
        let mut good = Good::of(lab.client(0), &[vip]);
        while began.elapsed() < PEACE {
            good.go_on(1);
            thread::sleep(Duration::from_millis(100));
        }
        good
    };
    thread::scope(|scope| {
        let threads = vips.iter().map(|(_, vip)| scope.spawn(move || go_on(*vip)));
        let threads: Vec<_> = threads.collect();
        let all = threads.into_iter().map(|thread| thread.join());
        all.map(|good| good.expect("peace")).collect()
    })
}

fn dropped(api: &mut ApiConn, name: &str) -> u64 {
    let path = format!("/v1/drops?vip={name}&mode=enforce");
    let answer = api
        .send("GET", &path, "")
        .expect("the daemon answers")
        .json();
    let rows = answer["items"].as_array().expect("rows");
    rows.iter().filter_map(|row| row["packets"].as_u64()).sum()
}

#[test]
fn twenty_kinds_of_attacks_meet_their_first_drop_within_half_a_second_and_a_second_at_most() {
    let attacks = attacks();
    let numbered = attacks.iter().enumerate();
    let vips: Vec<(&str, SocketAddr)> = numbered
        .map(|(number, attack)| (attack.name, attack.vip(number)))
        .collect();
    let of_config = vips.clone();
    let lab = Lab::new()
        .alone()
        .client(&Good::PREFIXES)
        .config(move |mut config| {
            for (name, vip) in of_config {
                let like = match (vip.port() == HTTP_PORT, vip.is_ipv6()) {
                    (true, false) => "web4",
                    (true, true) => "web6",
                    (false, false) => "dns4",
                    (false, true) => "dns6",
                };
                let mut new = config.vip(like).clone();
                (new.name, new.address) = (name.to_owned(), vip.ip().to_string());
                config.vips.push(new);
            }
            config.extra.push_str(DETECT);
            config
        })
        .start();
    let mut good = peace(&lab, &vips);
    assert!(
        lab.node().items("mitigations").is_empty(),
        "peace is no attack"
    );

    let mut api = ApiConn::open(&lab.node().socket()).expect("the daemon listens");
    let mut times = Vec::new();
    for ((attack, (name, vip)), good) in attacks.iter().zip(&vips).zip(&mut good) {
        let frames = attack.frames(&lab, *vip);
        assert_eq!(dropped(&mut api, name), 0, "{name} before its attack");
        let flood = lab.flood(frames);
        let began = Instant::now();
        within(Duration::from_secs(10), "the first drop", || {
            dropped(&mut api, name) > 0
        });
        let took = began.elapsed();
        thread::sleep(Duration::from_millis(200));
        good.go_on(1);
        let rate = flood.packets_per_second();
        flood.stop();
        let measures = lab.node().items("mitigations");
        let measures: Vec<String> = measures
            .iter()
            .filter(|item| item["vip"] == *name)
            .map(|item| format!("{} {}", item["created"], item["what"]))
            .collect();
        println!("{name}: {took:?}, {rate:.0} packets a second, {measures:?}");
        times.push((took, *name));
    }
    times.sort_unstable();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "figure: from the first packet of {} attacks to the first drop: median {median:?}, slowest {slowest:?}",
        times.len()
    );
    assert!(median.0 < Duration::from_millis(500), "{times:?}");
    assert!(slowest.0 < Duration::from_secs(1), "{times:?}");
}
