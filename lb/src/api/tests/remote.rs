//! Clients by TCP: real TLS, tokens and roles.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{Role, certificates, create, provider, roots, serve_remote},
    *,
};
use crate::{control::Heart, store::shaky::Shaky};

/// A daemon that also listens by TCP, with TLS and tokens.
pub(super) struct Remote {
    pub(super) world: World,
    pub(super) address: SocketAddr,
    pub(super) read: String,
    pub(super) operate: String,
    expired: String,
    pub(super) disk: Shaky,
}

/// Whether clients need a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutual {
    Yes,
    No,
}

impl Remote {
    pub(super) async fn ready() -> Self {
        Self::start(Mutual::No, Caps::default(), BODY_TIME).await
    }

    pub(super) async fn start(mutual: Mutual, caps: Caps, body_time: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_certificates(dir.path());
        let tokens = path("tokens");
        let token = |role, end| create(&tokens, role, end, "").unwrap();
        let (read, operate) = (token(Role::Read, None), token(Role::Operate, None));
        let expired = token(Role::Operate, Some(SystemTime::UNIX_EPOCH));
        let client_ca = if mutual == Mutual::Yes {
            format!("client_ca = {:?}\n", path("ca.pem"))
        } else {
            String::new()
        };
        let config = format!(
            "[api]\nlisten = \"127.0.0.1:1\"\ntokens_file = {tokens:?}\n[api.tls]\ncert = {:?}\nkey = {:?}\n{client_ca}{CONFIG}",
            path("server.pem"),
            path("server.key"),
        );
        let disk = Shaky::default();
        let (store, contents, _) = Store::open(disk.clone()).unwrap();
        let state = (contents, Writer::start(store).unwrap());
        let world = World::start_with(dir, &config, body_time, state);
        world.become_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (routes, access) = (router(world.api.clone()), world.api.access.clone());
        tokio::spawn(async move {
            serve_remote(&listener, routes, access, caps, &Heart::default()).await
        });
        Self {
            world,
            address,
            read,
            operate,
            expired,
            disk,
        }
    }

    /// A TLS connection by a client that shows this certificate.
    async fn connect_as(&self, name: Option<&str>) -> std::io::Result<TlsStream<TcpStream>> {
        let path = |name: &str| self.world.dir.path().join(name);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots(&path("ca.pem")).unwrap());
        let config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => builder
                .with_client_auth_cert(
                    certificates(&path(&format!("{name}.pem"))).unwrap(),
                    PrivateKeyDer::from_pem_file(path(&format!("{name}.key"))).unwrap(),
                )
                .unwrap(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let server = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(server, stream)
            .await
    }

    pub(super) async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_as(None).await.unwrap()
    }

    pub(super) async fn send(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Answer {
        let request = request(token, method, path);
        exchange(self.connect().await, request, body).await
    }
}

/// With a token, unless that is empty.
pub(super) fn request(token: &str, method: Method, path: &str) -> request::Builder {
    let request = Request::builder().method(method).uri(path);
    if token.is_empty() {
        request
    } else {
        request.header(header::AUTHORIZATION, format!("Bearer {token}"))
    }
}

/// `ca`, `server` and `client` of that CA, and `stranger` of none.
fn write_certificates(dir: &Path) {
    let write = |name: &str, pem: String| fs::write(dir.join(name), pem).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client", "stranger"] {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = if name == "stranger" {
            leaf.self_signed(&key).unwrap()
        } else {
            leaf.signed_by(&key, &issuer).unwrap()
        };
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}.key"), key.serialize_pem());
    }
}

fn assert_challenged(answer: &Answer, status: u16, part: &str, challenge: &str) {
    assert_problem(answer, status, part);
    assert_eq!(answer.json()["field"], "Authorization");
    let given = answer.headers[header::WWW_AUTHENTICATE].to_str().unwrap();
    assert!(given.contains(challenge), "{given}");
}

#[tokio::test]
async fn a_role_allows_what_it_says_and_no_more() {
    let remote = Remote::ready().await;
    let drain = "/v1/drains/backend/web/10.0.0.1";
    let changes = [
        (Method::POST, "/v1/limits", LIMIT),
        (Method::PUT, "/v1/limits/1", LIMIT),
        (Method::DELETE, "/v1/limits/1", ""),
        (Method::PUT, drain, ""),
        (Method::DELETE, drain, ""),
        (Method::POST, "/v1/reload", ""),
    ];
    for (method, path, body) in &changes {
        let answer = remote.send(&remote.read, method.clone(), path, *body).await;
        assert_challenged(&answer, 403, "may only read", "insufficient_scope");
    }
    assert!(remote.world.plane.limits().is_empty());
    assert_eq!(remote.world.weights(), [1, 5]);
    for (method, path, body) in changes {
        let answer = remote.send(&remote.operate, method, path, body).await;
        assert!(
            (200..300).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
    for path in ["/v1/status", "/v1/peers", "/v1/limits", "/metrics"] {
        for token in [&remote.read, &remote.operate] {
            assert_eq!(remote.send(token, Method::GET, path, "").await.status, 200);
        }
    }
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_answered_but_what_is_public() {
    let remote = Remote::ready().await;
    let altered = format!("{}0", remote.operate);
    for (token, part, challenge) in [
        ("", "send a token", "Bearer realm=\"sluice\""),
        ("nonsense", "not known", "error=\"invalid_token\""),
        (&altered, "not known", "error=\"invalid_token\""),
        (
            &remote.expired,
            "expired at 1970",
            "error_description=\"expired\"",
        ),
    ] {
        for (method, path) in [
            (Method::GET, "/v1/status"),
            (Method::GET, "/v1/events"),
            (Method::GET, "/v1/peers"),
            (Method::POST, "/v1/limits"),
            (Method::GET, "/v1/nosuch"),
            (Method::POST, "/healthz"),
        ] {
            let answer = remote.send(token, method, path, LIMIT).await;
            assert_challenged(&answer, 401, part, challenge);
        }
        for path in ["/healthz", "/readyz", "/v1/openapi.json", "/v1/docs"] {
            assert_eq!(remote.send(token, Method::GET, path, "").await.status, 200);
        }
    }
    let basic = Request::builder()
        .uri("/v1/status")
        .header(header::AUTHORIZATION, "Basic YTpi");
    let answer = exchange(remote.connect().await, basic, "").await;
    assert_challenged(&answer, 401, "Bearer TOKEN", "Bearer");
    assert!(remote.world.plane.limits().is_empty());
}

#[tokio::test]
async fn tokens_and_certificates_are_read_again_by_a_reload() {
    let remote = Remote::ready().await;
    let tokens = remote.world.dir.path().join("tokens");
    let new = create(&tokens, Role::Operate, None, "").unwrap();
    let status = async |token| {
        remote
            .send(token, Method::GET, "/v1/status", "")
            .await
            .status
    };
    assert_eq!(status(&new).await, 401);
    let path = "/v1/reload";
    let answer = remote.send(&remote.operate, Method::POST, path, "").await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    assert_eq!(status(&new).await, 200);

    // A wrong file changes nothing.
    let good = fs::read_to_string(&tokens).unwrap();
    fs::write(&tokens, "nonsense").unwrap();
    let answer = remote.send(&new, Method::POST, path, "").await;
    assert_problem(&answer, 422, "the role must be");
    assert_eq!(status(&new).await, 200);

    // Only the first line is left, and the certificate is of another CA.
    fs::write(&tokens, good.lines().next().unwrap()).unwrap();
    write_certificates(remote.world.dir.path());
    let answer = remote.send_old(&new, path).await;
    assert_eq!(answer, None, "the new CA does not know the old certificate");
    remote.world.api.reload().await.unwrap();
    assert_eq!(status(&remote.read).await, 200);
    assert_eq!(status(&new).await, 401);
}

impl Remote {
    /// The answer's status, if there is a connection at all.
    async fn send_old(&self, token: &str, path: &str) -> Option<u16> {
        let stream = self.connect_as(None).await.ok()?;
        let request = request(token, Method::POST, path);
        Some(exchange(stream, request, "").await.status)
    }
}

#[tokio::test]
async fn with_mutual_tls_a_client_needs_a_certificate_and_a_token() {
    let remote = Remote::start(Mutual::Yes, Caps::default(), BODY_TIME).await;
    for name in [None, Some("stranger")] {
        // In TLS 1.3 a client learns that it was refused when it reads.
        let refused = async {
            let stream = remote.connect_as(name).await.ok()?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            tokio::spawn(connection);
            let request = request(&remote.read, Method::GET, "/v1/status");
            let request = request.body(Full::new(Bytes::new())).unwrap();
            sender.send_request(request).await.ok()
        };
        assert!(refused.await.is_none(), "{name:?}");
    }
    for (token, status) in [(&remote.read, 200), (&String::new(), 401)] {
        let stream = remote.connect_as(Some("client")).await.unwrap();
        let request = request(token, Method::GET, "/v1/status");
        assert_eq!(exchange(stream, request, "").await.status, status);
    }
}

#[tokio::test]
async fn files_that_do_not_fit_are_said_by_their_key() {
    let dir = tempfile::tempdir().unwrap();
    write_certificates(dir.path());
    let path = |name: &str| dir.path().join(name);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("torn"), "-----BEGIN CERTIFICATE-----\nMIIB\n").unwrap();
    for (cert, key, ca, wrong, part) in [
        ("empty", "server.key", None, "cert", "no certificate in PEM"),
        ("torn", "server.key", None, "cert", "not PEM, or not whole"),
        (
            "server.pem",
            "server.pem",
            None,
            "key",
            "no private key in PEM",
        ),
        (
            "server.pem",
            "client.key",
            None,
            "key",
            "does not go with `cert`",
        ),
        (
            "server.pem",
            "server.key",
            Some("empty"),
            "client_ca",
            "no certificate",
        ),
    ] {
        let tls = config::ApiTls {
            cert: path(cert),
            key: path(key),
            client_ca: ca.map(path),
        };
        let error = super::super::ServerTls::load(&tls).unwrap_err();
        assert_eq!(error.key(), wrong);
        assert!(error.to_string().contains(part), "{error}");
    }
}
