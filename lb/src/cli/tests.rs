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
        assert!(matches!(cli.command, Command::Status));
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
        &["explain"],
        &["decap"],
        &["nosuch"],
        &[],
    ] {
        let error = Cli::try_parse_from(std::iter::once("sluice").chain(wrong.iter().copied()))
            .unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn without_a_daemon_every_command_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s.sock");
    for command in [
        &["status"][..],
        &["vips"],
        &["backends"],
        &["flows"],
        &["drops"],
        &["limits"],
        &["limit", "set", "--prefix", "198.51.100.0/24", "--pps", "10"],
        &["limit", "remove", "1"],
        &["drain", "backend", "web/10.0.0.1"],
        &["undrain", "backend", "web/10.0.0.1"],
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
    }
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
