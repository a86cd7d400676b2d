//! What the command line takes.

use clap::CommandFactory;

use super::*;

fn parse<const N: usize>(arguments: [&str; N]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("sluice").chain(arguments))
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn global_options_stand_before_or_after_the_command() {
    for arguments in [
        ["-c", "x.toml", "--json", "--socket", "s", "status"],
        ["status", "-c", "x.toml", "--json", "--socket", "s"],
    ] {
        let cli = parse(arguments).unwrap();
        assert_eq!(cli.global.config, PathBuf::from("x.toml"));
        assert_eq!(cli.global.socket, Some(PathBuf::from("s")));
        assert!(cli.global.json);
        assert!(matches!(cli.command, Command::Status(_)));
    }
    let cli = parse(["vips"]).unwrap();
    assert_eq!(cli.global.config, PathBuf::from(config::DEFAULT_FILE));
}

#[test]
fn a_limit_needs_a_prefix_and_a_rate() {
    let cli = parse([
        "limit",
        "set",
        "--prefix",
        "198.51.100.0/24",
        "--pps",
        "10",
        "--ttl",
        "60s",
        "--mode",
        "monitor",
    ]);
    let Command::Limit(LimitCommand::Set(args)) = cli.unwrap().command else {
        panic!("another command");
    };
    assert_eq!(
        (args.pps, args.bps, args.mode),
        (Some(10), None, ModeArg::Monitor)
    );
    assert_eq!(args.ttl, Some(Duration::from_secs(60)));
    for wrong in [
        &["limit", "set", "--prefix", "198.51.100.0/24"][..],
        &["limit", "set", "--pps", "10"],
        &["limit", "set", "--prefix", "x", "--pps", "10"],
        &["limit", "remove"],
        &["drain", "moon", "x"],
        &["drain", "backend"],
        &["drain", "vip"],
        &["explain"],
        &["explain", "--from", "198.51.100.7:1"],
        &["explain", "--from", "nonsense", "--to", "192.0.2.1:80"],
        &[
            "explain",
            "--pcap",
            "x",
            "--from",
            "198.51.100.7:1",
            "--to",
            "192.0.2.1:80",
        ],
        &["capture"],
        &["capture", "x", "--every", "0"],
        &["capture", "x", "--reason", "limit_hosts"],
        &["capture", "x", "--reason", "truncated", "--verdict", "drop"],
        &["vips", "--watch", "0"],
        &["top", "--rows", "0"],
        &["top", "--once", "--watch", "5"],
        &["completions", "cobol"],
        &["man"],
        &["decap"],
        &["nosuch"],
        &[],
    ] {
        let error = Cli::try_parse_from(std::iter::once("sluice").chain(wrong.iter().copied()))
            .unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
    }
    let error = parse(["limit", "set", "--prefix", "198.51.100.0/24"]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("--pps") && text.contains("--bps"), "{text}");
    parse(["limit", "set", "--prefix", "::/0", "--bps", "1"]).unwrap();
    parse([
        "limit", "set", "--prefix", "::/0", "--pps", "1", "--bps", "1",
    ])
    .unwrap();
}

#[test]
fn an_import_is_of_a_list_or_of_networks_that_a_database_tells() {
    let import = |arguments: &[&str]| {
        let line = ["sluice", "deny", "import", "x"].into_iter();
        Cli::try_parse_from(line.chain(arguments.iter().copied())).is_ok()
    };
    let database = ["--mmdb", "a.mmdb"];
    for good in [
        &["list.txt"][..],
        &["-", "--skip-bad"],
        &[&database[..], &["--country", "kp"]].concat(),
        &[&database[..], &["--country", "KP", "--country", "IR"]].concat(),
        &[
            &database[..],
            &database,
            &["--country", "KP", "--asn", "AS64500"],
        ]
        .concat(),
    ] {
        assert!(import(good), "{good:?}");
    }
    for wrong in [
        &[][..],
        &database,
        &["--country", "KP"],
        &["list.txt", "--asn", "64500"],
        &[&database[..], &["--country", "UK"]].concat(),
        &[&database[..], &["--asn", "0"]].concat(),
        &[&database[..], &["list.txt", "--asn", "64500"]].concat(),
        &[&database[..], &["--skip-bad", "--asn", "64500"]].concat(),
    ] {
        assert!(!import(wrong), "{wrong:?}");
    }
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    let mut others = Cli::commands();
    for command in [
        &["status"][..],
        &["plan"],
        &["vips"],
        &["vips", "--watch", "1"],
        &["backends"],
        &["flows"],
        &["drops"],
        &["peers"],
        &["peers", "--watch"],
        &["top"],
        &["top", "--once"],
        &["limits"],
        &["limits", "--vip", "web"],
        &["limit", "set", "--prefix", "198.51.100.0/24", "--pps", "10"],
        &["limit", "import", "/dev/null"],
        &["limit", "remove", "1"],
        &["rules"],
        &["rule", "add", "ttl 1 -> drop"],
        &["rule", "preview", "ttl 1 -> drop"],
        &["rule", "import", "/dev/null"],
        &["rule", "remove", "1"],
        &["deny", "list"],
        &["deny", "add", "198.51.100.0/24"],
        &["deny", "import", "list", "/dev/null"],
        &["deny", "remove", "list"],
        &["allow", "list"],
        &["allow", "add", "198.51.100.0/24"],
        &["allow", "import", "list", "/dev/null"],
        &["allow", "remove", "list"],
        &["mitigations"],
        &["mitigation", "revert", "1"],
        &["mitigation", "allow", "1"],
        &["talkers"],
        &["drain", "backend", "web/10.0.0.1"],
        &["undrain", "backend", "web/10.0.0.1"],
        &["drain", "vip", "web"],
        &["undrain", "pop"],
        &["reload"],
    ] {
        let socket = ["sluice", "--socket", socket.to_str().unwrap()];
        let cli = Cli::try_parse_from(socket.into_iter().chain(command.iter().copied())).unwrap();
        let error = execute(cli).unwrap_err().to_string();
        assert!(
            error.starts_with("the daemon is not running"),
            "{command:?}: {error}"
        );
        assert!(!error.contains('\n'));
        let line = command.join(" ");
        others.retain(|other| !format!("{line} ").starts_with(&format!("{other} ")));
    }
    let none_needed = [
        "backend",
        "capture",
        "check",
        "completions",
        "decap",
        "doctor",
        "explain",
        "man",
        "run",
        "token new",
        "unload",
    ];
    assert!(others.iter().eq(&none_needed), "{others:?}");
}

#[test]
fn the_socket_is_the_configs_also_when_the_config_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sluice.toml");
    std::fs::write(&file, "nonsense = 1\n[api]\nsocket = \"/run/x.sock\"\n").unwrap();
    assert_eq!(client::socket(None, &file), PathBuf::from("/run/x.sock"));
    assert_eq!(
        client::socket(Some("/y".into()), &file),
        PathBuf::from("/y")
    );
    let missing = dir.path().join("missing.toml");
    assert_eq!(
        client::socket(None, &missing),
        PathBuf::from("/run/sluice/sluice.sock")
    );
}

#[test]
fn a_name_cannot_leave_its_place_in_a_path() {
    assert_eq!(client::encoded("web/2001:db8::1"), "web/2001:db8::1");
    assert_eq!(client::encoded("a b?c#d%"), "a%20b%3Fc%23d%25");
}

#[test]
fn watching_has_a_period() {
    let period = |arguments: &[&str]| {
        let cli = Cli::try_parse_from(std::iter::once("sluice").chain(arguments.iter().copied()));
        cli.unwrap().command.watch().unwrap().period()
    };
    assert_eq!(period(&["vips"]), None);
    assert_eq!(period(&["vips", "--watch"]), Some(Duration::from_secs(2)));
    let half = Some(Duration::from_millis(500));
    assert_eq!(period(&["limits", "--watch", "0.5", "--vip", "web"]), half);
    let all = Command::watch(&parse(["reload"]).unwrap().command).is_none();
    assert!(all, "what changes is not repeated");
}

#[test]
fn a_wrong_word_is_answered_with_the_right_one() {
    for (arguments, near) in [
        (&["statsu"][..], "status"),
        (&["capture", "x", "--reason", "limit_hots"], "limit_host"),
        (&["limits", "--clas", "syn"], "--class"),
    ] {
        let error = Cli::try_parse_from(std::iter::once("sluice").chain(arguments.iter().copied()));
        let text = error.unwrap_err().to_string();
        assert!(text.contains(&format!("'{near}'")), "{text}");
    }
}

#[test]
fn what_needs_the_data_plane_says_that_nothing_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sluice.toml");
    let pins = dir.path().join("pins");
    let text = format!(
        "[pop]\nname = \"ams\"\nid = 1\n[dataplane]\ninterfaces = [\"lo\"]\npin_dir = {pins:?}\n\
         [[pool]]\nname = \"web\"\nhealth = {{ kind = \"none\" }}\n[[pool.backend]]\naddress = \"10.0.0.1\"\n\
         [[vip]]\nname = \"web\"\naddress = \"192.0.2.1\"\nprotocol = \"tcp\"\nport = 80\npool = \"web\"\nforward = \"l2\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let out = dir.path().join("x.pcapng");
    for command in [
        &[
            "explain",
            "--from",
            "198.51.100.7:1",
            "--to",
            "192.0.2.1:80",
        ][..],
        &["capture", out.to_str().unwrap()],
    ] {
        let config = ["sluice", "-c", file.to_str().unwrap()];
        let cli = Cli::try_parse_from(config.into_iter().chain(command.iter().copied())).unwrap();
        let error = execute(cli).unwrap_err();
        let text = control::chain(&*error);
        assert!(text.starts_with("nothing is loaded under"), "{text}");
        assert!(text.contains("sluice run") && !text.contains('\n'));
    }
    assert!(!out.exists(), "no empty file stays");
}

#[test]
fn a_described_packet_is_a_whole_frame() {
    let frame = |arguments: &[&str]| {
        let line = ["sluice", "explain"].into_iter();
        let cli = Cli::try_parse_from(line.chain(arguments.iter().copied())).unwrap();
        let Command::Explain(args) = cli.command else {
            panic!("another command");
        };
        args.flow.frame().map_err(|error| error.to_string())
    };
    let syn = frame(&["--from", "198.51.100.7:4711", "--to", "192.0.2.1:80"]);
    let syn = syn.unwrap().unwrap();
    let parsed = etherparse::SlicedPacket::from_ethernet(&syn).unwrap();
    let Some(etherparse::TransportSlice::Tcp(tcp)) = parsed.transport else {
        panic!("no TCP");
    };
    assert!(tcp.syn() && !tcp.ack());
    assert_eq!((tcp.source_port(), tcp.destination_port()), (4711, 80));

    let udp = ["--from", "[2001:db8::7]:53", "--to", "[2001:db8::1]:53"];
    let udp = frame(&[&udp[..], &["--protocol", "udp", "--length", "100"]].concat());
    assert_eq!(udp.unwrap().unwrap().len(), 14 + 40 + 8 + 100);
    let echo = ["--from", "198.51.100.7", "--to", "192.0.2.1"];
    let echo = frame(&[&echo[..], &["--protocol", "icmp"]].concat());
    assert_eq!(echo.unwrap().unwrap()[14 + 20], 8);

    for wrong in [
        &["--from", "198.51.100.7", "--to", "192.0.2.1"][..],
        &["--from", "198.51.100.7:1", "--to", "[2001:db8::1]:80"],
    ] {
        assert!(frame(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn manual_pages_and_completions_come_from_the_code() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let run = |arguments: &[&str]| {
        let cli = Cli::try_parse_from(std::iter::once("sluice").chain(arguments.iter().copied()));
        execute(cli.unwrap()).unwrap();
    };
    run(&["man", pages.to_str().unwrap()]);
    for page in ["sluice.1", "sluice-doctor.1", "sluice-limit-set.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        run(&["completions", shell]);
    }
}

#[test]
fn a_remote_daemon_is_asked_over_tls_and_with_a_token_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("token"), "sluice_00\n").unwrap();
    std::fs::write(file("empty"), "\n").unwrap();
    let (token, empty, none) = (file("token"), file("empty"), file("none"));
    for (arguments, said) in [
        (vec!["--api", "https://lb.example"], "--token-file"),
        (
            vec!["--api", "http://lb.example", "--token-file", &token],
            "in the clear",
        ),
        (
            vec!["--api", "ftp://127.0.0.1", "--token-file", &token],
            "https://HOST:PORT",
        ),
        (
            vec!["--api", "127.0.0.1:80", "--token-file", &token],
            "https://HOST:PORT",
        ),
        (
            vec!["--api", "http://[::1]/x", "--token-file", &token],
            "https://HOST:PORT",
        ),
        (
            vec!["--api", "http://[::1]:1", "--token-file", &empty],
            "holds no token",
        ),
        (
            vec!["--api", "http://[::1]:1", "--token-file", &none],
            "No such file",
        ),
        (
            vec!["--api", "http://[::1]:1", "--token-file", &token],
            "cannot reach the daemon at [::1]:1",
        ),
        (
            vec![
                "--api",
                "https://[::1]:1",
                "--token-file",
                &token,
                "--ca",
                &token,
            ],
            "no certificate in PEM",
        ),
    ] {
        let arguments = ["sluice"].into_iter().chain(arguments).chain(["status"]);
        let error = execute(Cli::try_parse_from(arguments).unwrap()).unwrap_err();
        let error = control::chain(&*error);
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn a_token_is_made_for_a_role_into_the_file_of_the_config() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = (dir.path().join("sluice.toml"), dir.path().join("tokens"));
    std::fs::write(&config, "[api]\n").unwrap();
    let run = |arguments: &[&str]| {
        let all = ["sluice", "-c", config.to_str().unwrap(), "token", "new"];
        let all = all.into_iter().chain(arguments.iter().copied());
        execute(Cli::try_parse_from(all).unwrap())
    };
    let error = run(&["--role", "read"]).unwrap_err().to_string();
    assert!(error.contains("tokens_file"), "{error}");
    std::fs::write(&config, format!("[api]\ntokens_file = {file:?}\n")).unwrap();
    run(&["--role", "read", "--expires", "30d", "--comment", "me"]).unwrap();
    run(&["--role", "operate"]).unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with("read 2") && lines[0].ends_with(" me"),
        "{text}"
    );
    assert!(lines[1].starts_with("operate never "), "{text}");
    assert!(parse(["token", "new"]).is_err() && parse(["token", "new", "--role", "root"]).is_err());
}
