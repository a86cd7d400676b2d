//! The HTTP API: on the Unix socket for who may open it, by TCP for who has a token.

mod access;
mod body;
mod connections;
mod detection;
mod docs;
mod entry;
mod events;
mod guard;
mod limits;
pub mod model;
mod openapi;
mod page;
mod plan;
mod problem;
mod query;
mod render;
mod rules;
mod server;
mod show;
mod socket;
mod sources;
mod stream;
mod tls;
mod tokens;

#[cfg(test)]
mod detection_tests;
#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod sources_tests;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode},
    middleware::{from_fn, from_fn_with_state},
};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    control::{Draining, Handle, Refused, off_thread},
    drains::{Drain, DrainKind},
};

pub use access::{Access, AccessError, Peer};
pub use connections::Caps;
pub use events::EventLog;
pub use openapi::document;
pub use problem::{FileError, Problem};
pub(crate) use render::{is_up, told, up_and_state};
pub use server::{serve_local, serve_remote};
pub use socket::{SocketError, bind, bind_remote};
pub use tls::{ServerTls, TlsError};
pub(crate) use tls::{certificates, provider, roots, said};
pub use tokens::{Denied, Grant, Role, Tokens, TokensError, create};

/// What the routes need.
#[derive(Debug)]
pub struct Api {
    pub control: Handle,
    pub config_file: PathBuf,
    pub access: Arc<Access>,
    pub events: EventLog,
    /// How long a request's body may take.
    pub body_time: Duration,
    pub(crate) large_bodies: body::LargeBodies,
}

impl Api {
    pub fn new(control: Handle, config_file: PathBuf, access: Access) -> Self {
        Self {
            control,
            config_file,
            access: Arc::new(access),
            events: EventLog::new(),
            body_time: guard::BODY_TIME,
            large_bodies: body::LargeBodies::default(),
        }
    }

    /// Reads everything again: the config, and what it names for this API.
    pub async fn reload(&self) -> Result<(), Refused> {
        // This looks at tokens and certificates too, and refuses the whole for them.
        self.control.reload().await?;
        let access = self.access.clone();
        off_thread(move || access.reload()).await?.map_err(|error| {
            let why = format!("the config was taken, but not what it names: {error}");
            Refused::Failed(why)
        })
    }
}

/// All routes, and what holds for every request.
pub fn router(api: Arc<Api>) -> Router {
    let (routes, _described) = routes().split_for_parts();
    routes
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            let what = "this path does not take that method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, what)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(api.clone(), guard::check_body))
        .layer(from_fn_with_state(api.clone(), access::authorize))
        .layer(from_fn(guard::as_problem))
        .with_state(api)
}

/// Each with its description.
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(page::page))
        .routes(routes!(show::status))
        .routes(routes!(show::vips))
        .routes(routes!(show::backends))
        .routes(routes!(show::flows))
        .routes(routes!(show::drops))
        .routes(routes!(show::peers))
        .routes(routes!(limits::limits, limits::set))
        .routes(routes!(limits::limit, limits::replace, limits::remove))
        .routes(routes!(rules::rules, rules::set))
        .routes(routes!(rules::preview))
        .routes(routes!(rules::rule, rules::replace, rules::remove))
        .routes(routes!(sources::denied, sources::deny))
        .routes(routes!(
            sources::denied_one,
            sources::replace_denied,
            sources::remove_denied
        ))
        .routes(routes!(sources::allowed, sources::allow))
        .routes(routes!(
            sources::allowed_one,
            sources::replace_allowed,
            sources::remove_allowed
        ))
        .routes(routes!(detection::mitigations))
        .routes(routes!(detection::revert))
        .routes(routes!(detection::allow))
        .routes(routes!(detection::talkers))
        // A backend's name has a slash in it.
        .routes(routes!(drain, undrain))
        .routes(routes!(plan::plan))
        .routes(routes!(reload))
        .routes(routes!(events::events))
        .routes(routes!(openapi::openapi))
        .routes(routes!(docs::docs))
        .routes(routes!(show::metrics_text))
        .routes(routes!(show::healthz))
        .routes(routes!(show::readyz))
}

const MAX_BODY_BYTES: usize = 1 << 20;

type Answer<T> = Result<Json<T>, Problem>;
type Shared = State<Arc<Api>>;

/// Give a backend, a VIP or all of this PoP no new flows
///
/// Flows that are there stay. New flows of a VIP that drains are treated as if all its backends were down.
#[utoipa::path(put, path = "/v1/drains/{kind}/{*name}", tag = "drains", params(
    ("kind" = DrainKind, Path, description = "What is drained"),
    ("name" = String, Path, description = "`POOL/ADDRESS` of a backend; a VIP's name; this PoP's name"),
), responses(
    (status = 204, description = "The data plane has it"),
    (status = 400, description = "This cannot be a name, or there is a condition"),
    (status = 404, description = "The config has no such thing"),
    (status = 500, description = "The data plane refused"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
async fn drain(
    State(api): Shared,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    set_drain(&api, &headers, &kind, &name, Draining::Begin).await
}

/// End a drain
#[utoipa::path(delete, path = "/v1/drains/{kind}/{*name}", tag = "drains", params(
    ("kind" = DrainKind, Path, description = "What is drained"),
    ("name" = String, Path, description = "`POOL/ADDRESS` of a backend; a VIP's name; this PoP's name"),
), responses(
    (status = 204, description = "The data plane has it"),
    (status = 400, description = "This cannot be a name, or there is a condition"),
    (status = 404, description = "It is not draining"),
    (status = 500, description = "The data plane refused"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
async fn undrain(
    State(api): Shared,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    set_drain(&api, &headers, &kind, &name, Draining::End).await
}

async fn set_drain(
    api: &Api,
    headers: &HeaderMap,
    kind: &str,
    name: &str,
    draining: Draining,
) -> Result<StatusCode, Problem> {
    entry::refuse_condition(headers, "a drain takes no condition")?;
    let drain = match kind {
        "backend" => Drain::Backend(name.parse().map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, format!("`{name}`: {error}")).of_field("name")
        })?),
        "vip" => Drain::Vip(name.to_owned()),
        "pop" => match &api.control.view().config.pop.name {
            pop if pop == name => Drain::Pop,
            pop => {
                let why = format!("this is the PoP `{pop}`, not `{name}`");
                return Err(Problem::new(StatusCode::NOT_FOUND, why));
            }
        },
        _ => {
            let why = "only `backend`, `vip` and `pop` can be drained";
            return Err(Problem::new(StatusCode::NOT_FOUND, why).of_field("kind"));
        }
    };
    api.control.drain(drain, draining).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read the config file again, and the tokens and certificates that it names
#[utoipa::path(post, path = "/v1/reload", tag = "daemon", responses(
    (status = 204, description = "The data plane has it"),
    (status = 400, description = "There is a condition"),
    (status = 422, description = "Something in it is wrong, and nothing changed"),
    (status = 500, description = "The kernel refused, and the config before is in force"),
    (status = 503, description = "The daemon is about to end"),
))]
async fn reload(State(api): Shared, headers: HeaderMap) -> Result<StatusCode, Problem> {
    entry::refuse_condition(&headers, "a reload takes no condition")?;
    // It is done to its end, also when who asked is gone by then.
    let reload = tokio::spawn(async move { api.reload().await });
    reload.await.map_err(Refused::from)??;
    Ok(StatusCode::NO_CONTENT)
}
