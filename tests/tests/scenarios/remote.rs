//! The API by TCP, as a machine elsewhere uses it: the command line over TLS, and clients that mean harm.

use std::{
    fs,
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sluice_tests::{Lab, LabBuilder, Output, within};

const PORT: u16 = 8443;

/// Starts a lab whose load balancer listens by TCP, with a token of each role in `read.token` and `operate.token`.
fn start(lab: LabBuilder) -> Lab {
    let lab = lab.build();
    let address = lab.node().v4();
    write_certificates(&lab.dir(), address);
    let path = |name: &str| lab.dir().join(name);
    let mut config = lab.config();
    config.api = format!(
        "listen = \"{address}:{PORT}\"\ntokens_file = {:?}\n[api.tls]\ncert = {:?}\nkey = {:?}\n",
        path("tokens"),
        path("cert.pem"),
        path("key.pem")
    );
    lab.write_config(&config);
    for role in ["read", "operate"] {
        let token = lab.sluice(&format!("token new --role {role}")).succeeds();
        fs::write(path(&format!("{role}.token")), token.stdout).unwrap();
    }
    lab.daemon().start();
    lab
}

fn write_certificates(dir: &Path, address: IpAddr) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([address.to_string()]).unwrap();
    let cert = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

/// Runs a command as a client by TCP would.
fn remote(lab: &Lab, role: &str, command: &str) -> Output {
    let (dir, address) = (lab.dir(), lab.node().v4());
    let dir = dir.display();
    lab.sluice(&format!(
        "--api https://{address}:{PORT} --token-file {dir}/{role}.token --ca {dir}/ca.pem {command}"
    ))
}

#[test]
fn the_command_line_speaks_to_a_daemon_elsewhere_over_tls() {
    let lab = start(Lab::new());
    let status = remote(&lab, "read", "status --json").succeeds().json();
    assert_eq!(status["pop"], "lab");
    let set = "limit set --prefix 198.51.100.0/24 --pps 10";
    let refused = remote(&lab, "read", set);
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("may only read"), "{refused:?}");
    assert!(lab.node().items("limits").is_empty());
    remote(&lab, "operate", set).succeeds();
    assert_eq!(lab.node().items("limits").len(), 1);

    // A token of which the daemon does not know yet, and then does.
    let new = lab.sluice("token new --role read --expires 1h").succeeds();
    fs::write(lab.dir().join("new.token"), new.stdout).unwrap();
    let unknown = remote(&lab, "new", "vips");
    assert!(unknown.stderr.contains("not known"), "{unknown:?}");
    lab.daemon().hup();
    within(Duration::from_secs(5), "the token is known", || {
        remote(&lab, "new", "vips").status == 0
    });

    // Whom the certificate is not of, and who is not there.
    let (dir, address) = (lab.dir(), lab.node().v4());
    let token = format!("--token-file {}/read.token", dir.display());
    for (options, said) in [
        (
            format!("--api https://{address}:{PORT} {token}"),
            "cannot reach the daemon",
        ),
        (
            format!("--api https://{address}:1 {token}"),
            "cannot reach the daemon",
        ),
        (
            format!("--api http://{address}:{PORT} {token}"),
            "in the clear",
        ),
        (
            format!("--api https://{address}:{PORT}"),
            "needs --token-file",
        ),
    ] {
        let refused = lab.sluice(&format!("{options} status"));
        assert_eq!(refused.status, 1, "{options}: {refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
}

#[test]
fn ten_thousand_idle_connections_hurt_nobody() {
    const IDLE: usize = 10_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let lab = start(Lab::new().alone());
    let address = SocketAddr::new(lab.node().v4(), PORT);
    let connect = || TcpStream::connect(address).unwrap();
    let idle: Vec<TcpStream> = lab
        .node()
        .netns()
        .run(|| (0..IDLE).map(|_| connect()).collect());

    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        for role in [None, Some("read")] {
            let start = Instant::now();
            let answer = match role {
                None => lab.sluice("status"),
                Some(role) => remote(&lab, role, "status"),
            };
            answer.succeeds();
            slowest = slowest.max(start.elapsed());
        }
    }
    let files = fs::read_dir(format!("/proc/{}/fd", lab.daemon().pid())).unwrap();
    let files = files.count();
    eprintln!("with {IDLE} idle connections: slowest status {slowest:?}, {files} files open");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(files < 2_048, "{files}");

    let closed = idle.iter().filter(|stream| is_closed(stream)).count();
    assert!(closed >= IDLE - 1_024, "only {closed} were closed");
}

fn is_closed(mut stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}
