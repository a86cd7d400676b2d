//! Databases that were made for it, against lists and look-ups of single addresses; and files that somebody broke.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
    slice,
    time::Instant,
};

use ipnet::IpNet;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest,
};

use super::{
    writer::{Value, Writer},
    *,
};

const CODES: [&str; 4] = ["AQ", "BV", "KP", "TV"];

fn places(countries: &[&str], asns: &[u32]) -> Places {
    Places {
        countries: countries.iter().map(|code| code.parse().unwrap()).collect(),
        asns: asns.iter().copied().collect(),
    }
}

fn ask(wanted: &Places, files: &[(&str, &[u8])]) -> Result<Members, String> {
    ask_all(slice::from_ref(wanted), files)?.remove(0)
}

fn ask_all(
    wanted: &[Places],
    files: &[(&str, &[u8])],
) -> Result<Vec<Result<Members, String>>, String> {
    let mut found = Found::of(wanted);
    for (name, bytes) in files {
        found
            .take(Path::new(name), bytes)
            .map_err(|damage| damage.to_string())?;
    }
    let members = found.members().into_iter();
    Ok(members
        .map(|members| members.map_err(|error| error.to_string()))
        .collect())
}

/// Countries and systems of the same networks: KP is AS64500, TV is AS64501.
fn databases(record_bits: u16, ip_version: u16) -> [Vec<u8>; 2] {
    let mut country = Writer::new("Test-Country", record_bits, ip_version);
    let mut asn = Writer::new("Test-ASN", record_bits, ip_version);
    for (code, number, networks) in [
        (
            "KP",
            64_500,
            [
                "192.0.2.0/25",
                "192.0.2.128/25",
                "2001:db8::/33",
                "2001:db8:8000::/33",
            ],
        ),
        (
            "TV",
            64_501,
            [
                "198.51.100.0/24",
                "203.0.113.7/32",
                "2001:db8:1::/48",
                "2001:db9::/32",
            ],
        ),
    ] {
        let records = (country.country(code), asn.asn(number));
        for network in networks {
            let network: IpNet = network.parse().unwrap();
            if ip_version == 6 || network.addr().is_ipv4() {
                country.put(network, records.0);
                asn.put(network, records.1);
            }
        }
    }
    if ip_version == 6 {
        for database in [&mut country, &mut asn] {
            database.alias("::ffff:0:0/96".parse().unwrap());
            database.alias("2002::/16".parse().unwrap());
        }
    }
    [country.bytes(), asn.bytes()]
}

fn members(prefixes: &[&str]) -> Members {
    Members::of(
        prefixes
            .iter()
            .map(|prefix| prefix.parse::<IpNet>().unwrap()),
    )
}

#[test]
fn networks_are_found_by_country_and_by_system_in_every_layout() {
    for record_bits in [24, 28, 32] {
        let [country, asn] = databases(record_bits, 6);
        let both: &[(&str, &[u8])] = &[("country.mmdb", &country), ("asn.mmdb", &asn)];
        let kp = members(&[
            "192.0.2.0/24",
            "2001:db8::/48",
            "2001:db8:2::/47",
            "2001:db8:4::/46",
        ]);
        let found = ask(&places(&["KP"], &[]), both).unwrap();
        assert_eq!(
            found.v4(),
            kp.v4(),
            "neighbours are one range, and aliases are none"
        );
        assert!(found.contains("2001:db8:ffff::1".parse().unwrap()));
        assert!(
            !found.contains("2001:db8:1::1".parse().unwrap()),
            "TV is within"
        );
        assert!(!found.contains("2002:c000:200::1".parse().unwrap()));
        assert_eq!(ask(&places(&[], &[64_500]), both).unwrap(), found);
        let tv = members(&[
            "198.51.100.0/24",
            "203.0.113.7/32",
            "2001:db8:1::/48",
            "2001:db9::/32",
        ]);
        assert_eq!(ask(&places(&["tv"], &[64_501]), both).unwrap(), tv);
        let all = ask(&places(&["KP"], &[64_501]), both).unwrap();
        assert!(
            all.contains("2001:db8:1::1".parse().unwrap())
                && all.contains("192.0.2.1".parse().unwrap())
        );
        let whole: Vec<_> = all.v6().collect();
        assert_eq!(whole, members(&["2001:db8::/31"]).v6().collect::<Vec<_>>());
    }
    let [country, _] = databases(24, 4);
    let found = ask(&places(&["KP"], &[]), &[("v4.mmdb", &country)]).unwrap();
    assert_eq!(found, members(&["192.0.2.0/24"]));
}

#[test]
fn what_many_ask_is_what_each_would_be_told() {
    let [country, asn] = databases(28, 6);
    let both: &[(&str, &[u8])] = &[("country.mmdb", &country), ("asn.mmdb", &asn)];
    let wanted = [
        places(&["KP"], &[]),
        places(&["AQ"], &[]),
        places(&["KP", "TV"], &[]),
        places(&[], &[64_501]),
        places(&["KP"], &[7]),
    ];
    let alone = wanted.iter().map(|places| ask(places, both));
    assert_eq!(ask_all(&wanted, both).unwrap(), alone.collect::<Vec<_>>());
}

#[test]
fn a_record_of_a_network_around_ipv4_is_of_ipv4_too() {
    let everything = members(&["0.0.0.0/0"]);
    for around in ["::/0", "::/1", "::/95", "::/96"] {
        let mut database = Writer::new("Test-Country", 24, 6);
        let record = database.country("KP");
        database.put(around.parse().unwrap(), record);
        let found = ask(&places(&["KP"], &[]), &[("x.mmdb", &database.bytes())]).unwrap();
        assert_eq!(found.v4(), everything.v4(), "{around}");
        assert_eq!(
            found.v6().collect::<Vec<_>>(),
            members(&[around]).v6().collect::<Vec<_>>()
        );
    }
}

#[test]
fn other_makers_records_are_read() {
    let mut lite = Writer::new("ipinfo lite", 32, 6);
    let record = lite.record(&Value::Map(vec![
        ("asn", Value::Text("AS64500")),
        ("country", Value::Text("North Korea")),
        ("country_code", Value::Text("KP")),
    ]));
    lite.put("192.0.2.0/24".parse().unwrap(), record);
    let found = ask(&places(&["KP"], &[64_500]), &[("lite.mmdb", &lite.bytes())]);
    assert_eq!(found.unwrap(), members(&["192.0.2.0/24"]));

    let mut older = Writer::new("ipinfo country", 32, 6);
    let record = older.record(&Value::Map(vec![("country", Value::Text("KP"))]));
    older.put("192.0.2.0/24".parse().unwrap(), record);
    let found = ask(&places(&["KP"], &[]), &[("older.mmdb", &older.bytes())]);
    assert_eq!(found.unwrap(), members(&["192.0.2.0/24"]));
}

#[test]
fn what_a_database_does_not_tell_is_said_with_its_name() {
    let [country, asn] = databases(28, 6);
    let (country, asn): (&[u8], &[u8]) = (&country, &asn);
    let wrong = |wanted: &Places, files: &[(&str, &[u8])]| ask(wanted, files).unwrap_err();
    assert_eq!(
        wrong(&places(&["KP"], &[]), &[("/geo/asn.mmdb", asn)]),
        "countries are in none of the databases that were given: /geo/asn.mmdb (Test-ASN)"
    );
    assert_eq!(
        wrong(
            &places(&["KP"], &[64_500]),
            &[("/geo/country.mmdb", country)]
        ),
        "autonomous systems are in none of the databases that were given: /geo/country.mmdb (Test-Country)"
    );
    assert_eq!(
        wrong(&places(&["KP", "AQ"], &[7]), &[("a", country), ("b", asn)]),
        "there is no network of AQ, AS7 in a (Test-Country), b (Test-ASN)"
    );
    for text in ["UK", "K", "KPX", "", "AD AE"] {
        assert!(
            text.parse::<Country>().unwrap_err().contains("ISO 3166"),
            "{text}"
        );
    }
    for text in ["0", "AS0", "4294967296", "ASx", "-1"] {
        assert!(asn_of(text).is_err(), "{text}");
    }
    let missing = networks(&[places(&["KP"], &[])], &["/nonexistent/x.mmdb".into()]);
    let missing = missing.unwrap_err().to_string();
    assert!(
        missing.starts_with("cannot read /nonexistent/x.mmdb: No such file"),
        "{missing}"
    );
}

/// Has a node of a tree with 24 bits a record lead elsewhere.
fn lead(file: &mut [u8], node: usize, side: usize, to: u32) {
    let at = node * 6 + side * 3;
    file[at..at + 3].copy_from_slice(&to.to_be_bytes()[1..]);
}

#[test]
fn a_broken_file_is_refused_with_what_is_wrong() {
    let wanted = places(&["KP"], &[]);
    let [good, _] = databases(24, 6);
    let refused = |file: &[u8]| ask(&wanted, &[("x.mmdb", file)]).unwrap_err();
    assert!(refused(b"").contains("no MMDB file"));
    assert!(refused(&b"192.0.2.0/24\n".repeat(100_000)).contains("no MMDB file"));
    assert!(refused(&good[..good.len() / 2]).contains("no MMDB file"));
    assert!(refused(&good[good.len() / 2..]).contains("damaged"));
    let mut file = good.clone();
    lead(&mut file, 0, 1, 0xff_ffff);
    let error = refused(&file);
    assert!(error.contains("damaged") && error.contains("invalid location"));
    for (node, to) in [(0, 0), (1, 0), (5, 1)] {
        for side in 0..2 {
            let mut file = good.clone();
            lead(&mut file, node, side, to);
            let error = refused(&file);
            assert!(error.contains("damaged"), "{node} to {to}: {error}");
        }
    }
    let mut file = good.clone();
    let field = b"node_count";
    let at = file.windows(field.len()).rposition(|bytes| bytes == field);
    file[at.unwrap()] = b'N';
    assert!(refused(&file).contains("missing field `node_count`"));
    // A value that is a pointer to itself, of a key that nobody knows.
    let marker = b"MaxMind.com";
    let mut file = good;
    let at = file
        .windows(marker.len())
        .rposition(|bytes| bytes == marker);
    let at = at.unwrap() + marker.len();
    file[at] += 1;
    file.extend(b"\x41x");
    let itself = u16::try_from(file.len() - at).unwrap() | 1 << 13;
    file.extend(itself.to_be_bytes());
    assert!(refused(&file).contains("damaged"));
}

#[test]
fn entangled_records_are_left() {
    let refused = |database: &Writer| {
        let files: &[(&str, &[u8])] = &[("x.mmdb", &database.bytes())];
        let error = ask(&places(&["KP"], &[]), files).unwrap_err();
        assert!(error.contains("damaged"), "{error}");
        error
    };
    let everything: IpNet = "0.0.0.0/0".parse().unwrap();
    // Twice what is before, and so on.
    let mut doubled = Writer::new("doubled", 24, 4);
    let mut last = doubled.record(&Value::Text("KP"));
    for _ in 0..200 {
        let twice = [last; 2].map(Value::Pointer);
        last = doubled.record(&Value::List(twice.into()));
    }
    doubled.put(everything, last);
    assert!(refused(&doubled).contains("a record is entangled"));

    let nested = |depth: usize| {
        (0..depth).fold(Value::Map(Vec::new()), |inner, _| {
            Value::Map(vec![("a", inner)])
        })
    };
    let mut deep = Writer::new("deep", 24, 4);
    let record = deep.record(&nested(2_000));
    deep.put(everything, record);
    assert!(refused(&deep).contains("depth"));
    // Maps within maps, each of them a record: what they have in all is not for ever.
    let mut shared = Writer::new("shared", 24, 4);
    shared.record(&nested(500));
    for n in 0..500u16 {
        let network = IpNet::new([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]].into(), 32);
        shared.put(network.unwrap(), usize::from(n) * 3);
    }
    assert!(refused(&shared).contains("its records are entangled"));
}

#[test]
fn a_database_of_the_world_is_read_within_seconds() {
    let mut world = Writer::new("World", 28, 6);
    let records: Vec<usize> = (0..5_000)
        .map(|n| world.country(["KP", "TV", "AQ", "BV"][n % 4]))
        .collect();
    for n in 0..500_000u32 {
        let v4 = IpNet::new(IpAddr::from((n << 12).to_be_bytes()), 20).unwrap();
        let bits = u128::from(n.wrapping_mul(0x9e37_79b1)) << 80 | 0x2001 << 112;
        let v6 = IpNet::new(IpAddr::from(bits.to_be_bytes()), 48).unwrap();
        world.put(v4, records[n as usize % 5_000]);
        world.put(v6, records[n as usize % 4]);
    }
    let file = world.bytes();
    let begun = Instant::now();
    let found = ask(&places(&["KP"], &[]), &[("world.mmdb", &file)]).unwrap();
    println!("{} MiB in {:?}", file.len() >> 20, begun.elapsed());
    assert_eq!(found.v4().len(), 500_000 / 4);
    assert!(found.v6().len() > 100_000);
}

fn a_network() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u32>(), 1u8..=32)
        .prop_map(|(bits, length)| IpNet::new(IpAddr::from(bits.to_be_bytes()), length).unwrap());
    let v6 = (any::<u64>(), 4u8..=64).prop_map(|(bits, length)| {
        let bits = u128::from(bits >> 3) << 64 | 0x2000 << 112;
        IpNet::new(IpAddr::from(bits.to_be_bytes()), length).unwrap()
    });
    let around_v4 =
        (0u8..=96).prop_map(|length| IpNet::new(Ipv6Addr::UNSPECIFIED.into(), length).unwrap());
    let near = (0u32..64, 26u8..=32).prop_map(|(low, length)| {
        IpNet::new(IpAddr::from((0xc000_0200 | low).to_be_bytes()), length).unwrap()
    });
    prop_oneof![v4, v6, around_v4, near].prop_map(|network| network.trunc())
}

fn a_database(record_bits: u16, networks: &mut [(IpNet, usize)], with_alias: bool) -> Vec<u8> {
    let mut database = Writer::new("Random-Country", record_bits, 6);
    let records = CODES.map(|code| database.country(code));
    networks.sort_by_key(|(network, _)| match network {
        IpNet::V4(network) => network.prefix_len() + 96,
        IpNet::V6(network) => network.prefix_len(),
    });
    for (network, of) in networks {
        database.put(*network, records[*of]);
    }
    // That also takes the tree down to where IPv4 begins.
    if with_alias {
        database.alias("::ffff:0:0/96".parse().unwrap());
    }
    database.bytes()
}

/// What lies where IPv4 does, or is written as IPv6, is told as IPv4.
fn to_v4(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6.to_ipv4().map_or(address, IpAddr::V4),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn look_ups_find_the_same(
        mut networks in prop::collection::vec((a_network(), 0..CODES.len()), 1..40),
        record_bits in prop_oneof![Just(24u16), Just(28), Just(32)],
        with_alias in any::<bool>(),
        random in prop::collection::vec(a_network(), 20),
    ) {
        let file = a_database(record_bits, &mut networks, with_alias);
        let reader = maxminddb::Reader::from_source(&file).unwrap();
        let code = CODES[networks[0].1];
        // All of it may be covered by what is within.
        let found = ask(&places(&[code], &[]), &[("x", &file)]).unwrap_or_default();
        let all = networks.iter().map(|(network, _)| network).chain(&random);
        for address in all.flat_map(|network| [network.network(), network.broadcast()]) {
            let address = to_v4(address);
            let theirs = reader.lookup(address).unwrap();
            let theirs = theirs.decode::<maxminddb::geoip2::Country<'_>>().unwrap();
            let theirs = theirs.and_then(|record| record.country.iso_code);
            prop_assert_eq!(found.contains(address), theirs == Some(code), "{}", address);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_file_with_other_bytes_is_read_or_refused(
        mut networks in prop::collection::vec((a_network(), 0..CODES.len()), 1..20),
        record_bits in prop_oneof![Just(24u16), Just(28), Just(32)],
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = a_database(record_bits, &mut networks, true);
        for (at, byte) in flips {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len()));
        }
        _ = ask(&places(&CODES, &[64_500]), &[("x", &file)]);
    }

    #[test]
    fn garbage_behind_good_metadata_is_read_or_refused(
        garbage in prop::collection::vec(any::<u8>(), 600..2_000),
        small in prop::collection::vec(0u8..4, 600..2_000),
        record_bits in prop_oneof![Just(24u16), Just(28), Just(32)],
    ) {
        let mut good = a_database(record_bits, &mut [("192.0.2.0/24".parse().unwrap(), 0)], true);
        let end = good.len().min(600);
        good[..end].copy_from_slice(&garbage[..end]);
        _ = ask(&places(&CODES, &[]), &[("x", &good)]);
        // Numbers that lead to nodes, and so to loops.
        good[..end].copy_from_slice(&small[..end]);
        _ = ask(&places(&CODES, &[]), &[("x", &good)]);
    }
}
