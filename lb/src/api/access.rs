//! Who may do what: everybody on the Unix socket everything, clients by TCP what their token says.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::sync::watch;

use super::{
    Api, Problem, ServerTls, TlsError, Tokens, TokensError,
    openapi::is_public,
    tokens::{Denied, Grant},
};
use crate::config::Remote;

/// At the other end of a connection; in the extensions of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// On the Unix socket: the file system has let it in.
    Local,
    Remote(SocketAddr),
}

/// What is asked of clients by TCP. Can be replaced while the daemon runs.
#[derive(Debug, Default)]
pub struct Access {
    remote: Option<Remote>,
    tokens: ArcSwap<Tokens>,
    tls: ArcSwapOption<ServerTls>,
    /// Told when tokens are others than before.
    replaced: watch::Sender<()>,
}

/// Why the files of `[api]` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("[api.tls] {0}")]
    Tls(#[from] TlsError),
}

/// Who sends a request. Answers that take long ask it again.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Local,
    Remote { access: Arc<Access>, grant: Grant },
}

impl Access {
    /// Reads the files that the config names.
    pub fn load(remote: Option<Remote>) -> Result<Self, AccessError> {
        let access = Self {
            remote,
            ..Self::default()
        };
        access.reload()?;
        Ok(access)
    }

    /// Reads the files again: all of them, or nothing changes.
    pub fn reload(&self) -> Result<(), AccessError> {
        let Some((tokens, tls)) = self.read()? else {
            return Ok(());
        };
        self.tokens.store(Arc::new(tokens));
        self.tls.store(tls.map(Arc::new));
        self.replaced.send_replace(());
        Ok(())
    }

    /// Whether [`Access::reload`] would take them.
    pub fn check(&self) -> Result<(), AccessError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Option<(Tokens, Option<ServerTls>)>, AccessError> {
        let Some(remote) = &self.remote else {
            return Ok(None);
        };
        let tokens = Tokens::load(&remote.tokens_file)?;
        let tls = remote.tls.as_ref().map(ServerTls::load).transpose()?;
        Ok(Some((tokens, tls)))
    }

    /// What a connection that comes now is accepted with.
    pub(super) fn tls(&self) -> Option<Arc<ServerTls>> {
        self.tls.load_full()
    }

    /// Tells when what a client was granted may not be granted any more.
    pub(super) fn replaced(&self) -> watch::Receiver<()> {
        self.replaced.subscribe()
    }

    fn grant(&self, headers: &HeaderMap) -> Result<Grant, Unauthorized> {
        let given = headers
            .get(header::AUTHORIZATION)
            .ok_or(Unauthorized::NoToken)?;
        let token = given
            .to_str()
            .ok()
            .and_then(|given| given.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .ok_or(Unauthorized::NoToken)?
            .1;
        let granted = self.tokens.load().grant(token.trim(), SystemTime::now());
        granted.map_err(Unauthorized::Denied)
    }
}

impl Client {
    /// Why the client must not be served any longer: its token ended, or was taken out of the file.
    pub(super) fn ended(&self) -> Option<&'static str> {
        let Self::Remote { access, grant } = self else {
            return None;
        };
        let tokens = access.tokens.load();
        match tokens.still_grants(grant, SystemTime::now()) {
            Ok(_) => None,
            Err(Denied::Expired(_)) => Some("the token has expired"),
            Err(Denied::Unknown) => Some("the token was taken back"),
        }
    }

    /// How long until its token ends.
    pub(super) fn remaining(&self) -> Option<Duration> {
        match self {
            Self::Local => None,
            Self::Remote { grant, .. } => grant.expires.map(|expires| {
                let now = SystemTime::now();
                expires.duration_since(now).unwrap_or_default()
            }),
        }
    }
}

/// Lets a request through, or says why not. What is public needs no token: probes and what is in every copy of the program.
pub(super) async fn authorize(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Response {
    let client = match request.extensions().get() {
        Some(Peer::Local) => Client::Local,
        // A connection that did not say what it is gets no more than a stranger.
        Some(Peer::Remote(_)) | None => match api.access.grant(request.headers()) {
            Ok(grant) => {
                if !grant.role.may_change() && !is_reading(request.method()) {
                    return forbidden(request.method());
                }
                Client::Remote {
                    access: api.access.clone(),
                    grant,
                }
            }
            Err(_) if is_public(request.uri().path()) && is_reading(request.method()) => {
                return next.run(request).await;
            }
            Err(error) => return error.into_response(),
        },
    };
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// Why a request has no rights at all.
#[derive(Debug)]
enum Unauthorized {
    NoToken,
    Denied(Denied),
}

impl IntoResponse for Unauthorized {
    fn into_response(self) -> Response {
        let (detail, challenge) = match self {
            Self::NoToken => (
                "send a token: `Authorization: Bearer TOKEN`; `sluice token new` makes one".into(),
                "Bearer realm=\"sluice\"",
            ),
            Self::Denied(Denied::Unknown) => (
                "this token is not known; after `sluice token new`, the daemon must reload".into(),
                "Bearer realm=\"sluice\", error=\"invalid_token\"",
            ),
            Self::Denied(Denied::Expired(at)) => (
                format!(
                    "this token expired at {}; make another by `sluice token new`",
                    humantime::format_rfc3339_seconds(at)
                ),
                "Bearer realm=\"sluice\", error=\"invalid_token\", error_description=\"expired\"",
            ),
        };
        challenged(StatusCode::UNAUTHORIZED, detail, challenge)
    }
}

fn forbidden(method: &Method) -> Response {
    let detail = format!(
        "{method} changes something, and this token may only read; use one of role operate"
    );
    let challenge = "Bearer realm=\"sluice\", error=\"insufficient_scope\", scope=\"operate\"";
    challenged(StatusCode::FORBIDDEN, detail, challenge)
}

fn challenged(status: StatusCode, detail: String, challenge: &'static str) -> Response {
    let problem = Problem::new(status, detail).of_field("Authorization");
    let mut response = problem.into_response();
    let challenge = HeaderValue::from_static(challenge);
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

fn is_reading(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
