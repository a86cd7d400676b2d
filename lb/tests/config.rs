//! The config reader from outside: the example, files that are wrong in every way, and hostile input.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use sluice::{
    config::{self, Check, Config, ConfigErrors, Forward, Position},
    net::HostInterface,
};

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example() -> String {
    fs::read_to_string(manifest("sluice.example.toml")).unwrap()
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    config::parse(text, "sluice.toml")
}

const MINIMAL: &str = r#"
[pop]
name = "ams"
id = 1
[dataplane]
interfaces = ["eth0", "eth1"]
[[pool]]
name = "web"
backend = [{ address = "10.0.0.11" }]
[[vip]]
name = "web"
address = "192.0.2.10"
protocol = "tcp"
pool = "web"
forward = "ipip"
"#;

/// Each file begins with lines `# expect: LINE: part of the message`; those are all errors it may bring, in this order.
#[test]
fn each_bad_file_is_refused_with_the_line_and_what_would_be_right() {
    let mut files: Vec<PathBuf> = fs::read_dir(manifest("tests/bad-config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 20, "only {} bad files", files.len());
    let mut wrong = String::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let expected: Vec<(usize, &str)> = text
            .lines()
            .map_while(|line| line.strip_prefix("# expect: "))
            .map(|line| line.split_once(": ").unwrap())
            .map(|(line, message)| (line.parse().unwrap(), message))
            .collect();
        let shown = config::load(&file).expect_err(&format!("{} was taken", file.display()));
        let mut found: Vec<(usize, &str)> = shown
            .errors()
            .iter()
            .map(|error| (error.position.line, error.message.as_str()))
            .collect();
        let mut missing = Vec::new();
        for (line, message) in expected {
            match found
                .iter()
                .position(|(at, text)| *at == line && text.contains(message))
            {
                Some(index) => drop(found.remove(index)),
                None => missing.push((line, message)),
            }
        }
        if !missing.is_empty() || !found.is_empty() {
            writeln!(
                wrong,
                "{}\n  missing {missing:?}\n  not expected {found:?}",
                file.display()
            )
            .unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn an_error_is_one_line_with_file_line_and_column() {
    let errors = parse(
        &MINIMAL
            .replace("id = 1", "id = 0")
            .replace("protocol = \"tcp\"", "protocol = \"tcpp\""),
    )
    .unwrap_err();
    assert_eq!(
        errors.to_string(),
        "sluice.toml:4:6: `id` is 0; it must be 1 to 255\n\
         sluice.toml:13:12: unknown `protocol` `tcpp`; did you mean `tcp`?"
    );
}

#[test]
fn the_example_is_a_good_config() {
    let config = parse(&example()).unwrap();
    assert_eq!(config.vips[0].forward, Forward::Ipip);
    assert_eq!(config.pools[0].backends[0].forward, Some(Forward::Gue));
}

#[test]
fn the_defaults_that_the_example_shows_are_the_real_ones() {
    let mut shown = 0;
    let written_out: Vec<&str> = example()
        .leak()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(default) if default.starts_with(|first: char| first.is_ascii_lowercase()) => {
                shown += 1;
                default
            }
            _ => line,
        })
        .collect();
    assert!(shown >= 20, "only {shown} defaults are shown");
    assert_eq!(
        parse(&written_out.join("\n")).unwrap(),
        parse(&example()).unwrap()
    );
}

#[test]
fn a_minimal_config_gets_the_defaults() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.pools[0].slots, 65_537);
    assert_eq!(config.pools[0].health.check, Check::None);
    assert_eq!(config.pools[0].backends[0].weight, 1);
    assert_eq!(config.vips[0].prefix, "192.0.2.10/32".parse().unwrap());
    assert_eq!(
        (config.vips[0].port, config.vips[0].mtu_bytes),
        (None, None)
    );
    assert_eq!(config.api.socket, Path::new("/run/sluice/sluice.sock"));
    assert_eq!(config.dataplane.state_dir, Path::new("/var/lib/sluice"));
}

#[test]
fn a_short_interval_halves_the_timeout() {
    let health = "health = { kind = \"tcp\", port = 80, interval = \"200ms\" }\nbackend = [";
    let config = parse(&MINIMAL.replace("backend = [", health)).unwrap();
    assert_eq!(config.pools[0].health.timeout, Duration::from_millis(100));
}

#[test]
fn local_vips_may_have_backends_at_any_address_of_the_host() {
    for address in ["127.0.0.1", "192.0.2.10", "::1"] {
        let local = MINIMAL
            .replace("\"ipip\"", "\"local\"")
            .replace("10.0.0.11", address);
        parse(&local).unwrap();
        parse(&local.replace("\"local\"", "\"ipip\"")).unwrap_err();
    }
}

/// A backend has a number in the data plane for each way by which packets reach it.
#[test]
fn backends_are_counted_as_the_data_plane_numbers_them() {
    let backends = |count: u32| {
        let mut text = String::from("[[pool]]\nname = \"many\"\nhealth = { kind = \"none\" }\n");
        for n in 0..count {
            let address = Ipv4Addr::from_bits(0x0a80_0000 + n);
            writeln!(text, "[[pool.backend]]\naddress = \"{address}\"").unwrap();
        }
        text
    };
    let vip = |n: u8, forward: &str| {
        format!(
            "[[vip]]\nname = \"many{n}\"\naddress = \"198.51.100.{n}\"\nprotocol = \"tcp\"\npool = \"many\"\nforward = \"{forward}\"\n"
        )
    };
    // With the one of MINIMAL, both ways take all numbers there are.
    let half = backends(16_383);
    let both = [vip(1, "ipip"), vip(2, "gue")].concat();
    parse(&format!("{MINIMAL}{half}{}", vip(1, "ipip"))).unwrap();
    parse(&format!("{MINIMAL}{half}{both}")).unwrap();
    let errors = parse(&format!("{MINIMAL}{}{both}", backends(16_384))).unwrap_err();
    let text = errors.to_string();
    assert!(text.contains("more than 32_767 backends"), "{text}");
    assert_eq!(errors.errors().len(), 1);
    parse(&format!("{MINIMAL}{}", backends(32_768))).expect("no VIP leads there");
}

#[test]
fn a_missing_interface_is_reported_where_it_is_named() {
    let config = parse(MINIMAL).unwrap();
    let mut interfaces = host(&[("eth0", "10.0.0.1"), ("eth1", "10.0.1.1")]);
    config::check_on(&config, &interfaces).unwrap();
    interfaces.remove("eth1");
    let errors = config::check_on(&config, &interfaces).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "sluice.toml:6:23: this machine has no interface `eth1`; `ip link` lists those it has"
    );
}

#[test]
fn a_vip_at_the_hosts_own_address_is_refused() {
    let own = |vip: &str, interface: &str| {
        let config = parse(&MINIMAL.replace("192.0.2.10", vip)).unwrap();
        let mut interfaces = host(&[("eth0", "10.0.0.1"), ("eth1", "2001:db8::1")]);
        let taken = host(&[(interface, "192.0.2.1")]);
        interfaces.extend(taken);
        config::check_on(&config, &interfaces)
    };
    let errors = own("192.0.2.1", "eth2").unwrap_err();
    let text = errors.to_string();
    assert!(
        text.starts_with(
            "sluice.toml:12:11: VIP `web` takes `192.0.2.1`, which is this machine's own at eth2"
        ),
        "{text}"
    );
    assert!(text.contains("forward = \"local\""), "{text}");
    own("192.0.2.0/30", "eth2").unwrap_err();
    own("2001:db8::/64", "eth2").unwrap_err();
    own("192.0.2.2", "eth2").unwrap();
    own("192.0.2.1", "lo").expect("where nobody finds this host");

    let local = MINIMAL
        .replace("\"ipip\"", "\"local\"")
        .replace("192.0.2.10", "10.0.0.1");
    let interfaces = host(&[("eth0", "10.0.0.1"), ("eth1", "10.0.1.1")]);
    config::check_on(&parse(&local).unwrap(), &interfaces).expect("they share it");
}

/// A machine with these interfaces, each with an address.
fn host(interfaces: &[(&str, &str)]) -> BTreeMap<String, HostInterface> {
    let interface = |&(name, address): &(&str, &str)| {
        let interface = HostInterface {
            addresses: vec![address.parse().unwrap()],
            answers: name != "lo",
        };
        (name.to_owned(), interface)
    };
    interfaces.iter().map(interface).collect()
}

#[test]
fn a_secret_must_be_a_file_of_32_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (file, secret) = (dir.path().join("sluice.toml"), dir.path().join("secret"));
    let line = format!("id = 1\nsecret_file = \"{}\"", secret.display());
    fs::write(&file, MINIMAL.replace("id = 1", &line)).unwrap();
    let refused = |what: &str| {
        let errors = config::load(&file).unwrap_err();
        let text = errors.to_string();
        assert_eq!(
            errors.errors()[0].position,
            Position {
                line: 5,
                column: 15
            }
        );
        assert!(
            text.contains(what) && text.contains("head -c 32 /dev/urandom"),
            "{text}"
        );
    };
    refused("cannot read the secret");
    fs::write(&secret, [7; 31]).unwrap();
    refused("exactly 32 bytes");
    fs::write(&secret, [7; 33]).unwrap();
    refused("exactly 32 bytes");
    fs::write(&secret, [7; 32]).unwrap();
    assert_eq!(
        config::load(&file).unwrap().pop.secret_file.as_deref(),
        Some(secret.as_path())
    );
    assert_eq!(config::read_secret(&secret).unwrap(), [7; 32]);
    fs::remove_file(&secret).unwrap();
    fs::create_dir(&secret).unwrap();
    refused("plain file");
}

#[test]
fn a_file_that_is_not_there_is_unreadable() {
    let error = config::load(Path::new("/nonexistent/sluice.toml")).unwrap_err();
    assert!(matches!(error, ConfigErrors::Unreadable { .. }));
    assert_eq!(
        error.to_string(),
        "cannot read the config /nonexistent/sluice.toml"
    );
}

#[test]
fn the_hash_follows_what_a_config_says_and_not_how() {
    let hash = |text: &str| config::hash(&parse(text).unwrap());
    assert_eq!(hash(MINIMAL), hash(&format!("# a comment\n{MINIMAL}")));
    assert_ne!(hash(MINIMAL), hash(&MINIMAL.replace("ams", "fra")));
    assert_eq!(
        parse(MINIMAL).unwrap(),
        parse(&format!("\n{MINIMAL}")).unwrap()
    );
}

#[test]
fn hostile_files_are_refused_in_plain_words() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sluice.toml");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&file, bytes).unwrap();
        let text = config::load(&file).unwrap_err().to_string();
        assert!(text.contains(what), "{text}");
        assert!(text.len() < 100_000, "an answer of {} bytes", text.len());
    };
    refused(&vec![b'#'; (16 << 20) + 1], "larger than 16 MiB");
    refused(b"[pop]\nname = \"\0\"", ":2:9: a NUL byte");
    refused(b"[pop]\nname = \"\xff\"", ":2:9: not UTF-8");
    refused(format!("a = {}", "[".repeat(100_000)).as_bytes(), "recur");
    refused(format!("a = {}", "{a=".repeat(100_000)).as_bytes(), "recur");
    refused(format!("{}a = 1", "a.".repeat(100_000)).as_bytes(), "recur");
    refused(format!("[{}a]", "a.".repeat(100_000)).as_bytes(), "recur");
    refused(
        format!("{} = 1", "k".repeat(1_000_000)).as_bytes(),
        "unknown key",
    );
    refused("\u{1b}[2J".as_bytes(), "not valid TOML");
    refused(b"", "missing key `pop`");
}

/// Near names are looked for, but not for so many errors that it would take minutes.
#[test]
fn thousands_of_errors_are_counted_and_the_first_hundred_shown() {
    let mut text = MINIMAL.to_owned();
    for index in 0..5_000 {
        write!(
            text,
            "[[pool]]\nname = \"pool-{index}\"\nbackend = [{{ address = \"10.0.0.1\" }}]\n"
        )
        .unwrap();
        write!(
            text,
            "[[vip]]\nname = \"v{index}\"\naddress = \"10.1.{}.{}\"\n",
            index / 250,
            index % 250
        )
        .unwrap();
        writeln!(
            text,
            "protocol = \"tcp\"\npool = \"pol-{index}\"\nforward = \"ipip\""
        )
        .unwrap();
    }
    let started = Instant::now();
    let shown = parse(&text).unwrap_err().to_string();
    assert_eq!(shown.lines().count(), 101);
    assert!(shown.ends_with("and 4900 more errors"), "{shown}");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

/// Generous, because test builds are slow: anything quadratic would take minutes.
#[test]
fn a_thousand_vips_with_thirty_backends_each_are_read_at_once() {
    let text = large();
    let started = Instant::now();
    let config = parse(&text).unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(
        config
            .pools
            .iter()
            .map(|pool| pool.backends.len())
            .sum::<usize>(),
        30_000
    );
}

fn large() -> String {
    let mut text = MINIMAL.to_owned();
    for index in 0..1_000 {
        if index > 0 {
            write!(text, "[[pool]]\nname = \"pool-{index}\"\n").unwrap();
            for backend in 0..30 {
                let number = (index * 37 + backend) % 30_000;
                write!(
                    text,
                    "[[pool.backend]]\naddress = \"10.0.{}.{}\"\n",
                    number / 256,
                    number % 256
                )
                .unwrap();
            }
        } else {
            text.push_str("[[pool]]\nname = \"pool-0\"\nbackend = [");
            (0..29)
                .for_each(|backend| write!(text, "{{ address = \"10.9.0.{backend}\" }},").unwrap());
            text.push_str("]\n");
        }
        write!(
            text,
            "[[vip]]\nname = \"v{index}\"\naddress = \"198.18.{}.{}\"\n",
            index / 250,
            index % 250
        )
        .unwrap();
        writeln!(
            text,
            "protocol = \"tcp\"\nport = 443\npool = \"pool-{index}\"\nforward = \"ipip\""
        )
        .unwrap();
    }
    text
}

/// The example with its defaults written out, changed at random places.
fn mutated(cuts: &[(usize, usize, Vec<u8>)]) -> String {
    let mut bytes = example().into_bytes();
    for (at, length, insert) in cuts {
        let at = at % bytes.len().max(1);
        let end = (at + length).min(bytes.len());
        bytes.splice(at.min(end)..end, insert.iter().copied());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn random_text_is_refused_and_never_panics(text in "(\\[|\\]|=|\"|\n|\\.|,|\\{|\\}|pop|vip|pool|name| |1|\\PC){0,120}") {
        prop_assert!(!parse(&text).unwrap_err().to_string().is_empty());
    }

    #[test]
    fn a_mutated_example_never_panics(cuts in proptest::collection::vec((any::<usize>(), 0..12_usize, proptest::collection::vec(any::<u8>(), 0..6)), 1..4)) {
        if let Err(errors) = parse(&mutated(&cuts)) {
            prop_assert!(errors.errors().iter().all(|error| error.position.line > 0));
        }
    }

    #[test]
    fn a_changed_value_never_panics(line in any::<proptest::sample::Index>(), value in "(\"[a-z0-9:./]{0,12}\"|-?[0-9]{0,22}|\\[\\]|\\{\\}|true|[0-9]\\.5|\"::/0\"|\"0.0.0.0/0\")") {
        let text = example();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let with_value: Vec<usize> = (0..lines.len()).filter(|index| lines[*index].contains(" = ")).collect();
        let index = with_value[line.index(with_value.len())];
        let key = lines[index].trim_start_matches('#').trim_start().split(" = ").next().unwrap().to_owned();
        lines[index] = format!("{key} = {value}");
        if let Err(errors) = parse(&lines.join("\n")) {
            prop_assert!(!errors.to_string().is_empty());
        }
    }
}
