//! The HTTP API on the Unix socket.

mod limits;
pub mod model;
mod problem;
mod query;
mod render;
mod socket;

#[cfg(test)]
mod limits_tests;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};

use crate::{
    control::{Draining, Handle, Refused},
    drains::BackendName,
    metrics,
};

pub use problem::Problem;
pub(crate) use render::is_up;
pub use socket::{SocketError, bind};

use model::{BackendItem, DropItem, Flows, Page, Status, VipItem};
use query::{Params, page};

/// What the routes need.
#[derive(Debug)]
pub struct Api {
    pub control: Handle,
    pub config_file: PathBuf,
}

/// All routes.
pub fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/status", get(status))
        .route("/vips", get(vips))
        .route("/backends", get(backends))
        .route("/flows", get(flows))
        .route("/drops", get(drops))
        .merge(limits::routes())
        // A backend's name has a slash in it.
        .route("/drains/{kind}/{*name}", put(drain).delete(undrain))
        .route("/reload", post(reload));
    Router::new()
        .nest("/v1", v1)
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            let what = "this path does not take that method";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, what)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(api))
}

const MAX_BODY_BYTES: usize = 1 << 20;

type Answer<T> = Result<Json<T>, Problem>;
type Shared = State<Arc<Api>>;

async fn status(State(api): Shared) -> Answer<Status> {
    let figures = api.control.figures().await?;
    let view = api.control.view();
    Ok(Json(render::status(&view, &figures, &api.config_file)))
}

async fn vips(State(api): Shared, mut params: Params) -> Answer<Page<VipItem>> {
    let (name, pool) = (params.text("name"), params.text("pool"));
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let mut items = render::vips(&api.control.view(), &figures);
    items.retain(|vip| name.is(&vip.name) && pool.is(&vip.pool));
    page(items, window)
}

async fn backends(State(api): Shared, mut params: Params) -> Answer<Page<BackendItem>> {
    let (pool, state) = (params.text("pool"), params.text("state"));
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let mut items = render::backends(&api.control.view(), &figures);
    items.retain(|backend| pool.is(&backend.pool) && state.is(&backend.state));
    page(items, window)
}

async fn flows(State(api): Shared, mut params: Params) -> Answer<Flows> {
    let pool = params.text("pool");
    let window = params.window()?;
    let mut flows = render::flows(&api.control.figures().await?);
    flows.items.retain(|flows| pool.is(&flows.pool));
    let Json(page) = page(flows.items, window)?;
    (flows.items, flows.next) = (page.items, page.next);
    Ok(Json(flows))
}

async fn drops(State(api): Shared, mut params: Params) -> Answer<Page<DropItem>> {
    let (vip, reason) = (params.text("vip"), params.text("reason"));
    let mode = params.text("mode");
    let window = params.window()?;
    let mut items = render::drops(&api.control.figures().await?);
    items.retain(|drop| {
        let for_vip = vip.is(drop.vip.as_deref().unwrap_or_default());
        for_vip && reason.is(&drop.reason) && mode.is(&drop.mode)
    });
    page(items, window)
}

async fn drain(
    State(api): Shared,
    Path((kind, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    set_drain(&api, &kind, &name, Draining::Begin).await
}

async fn undrain(
    State(api): Shared,
    Path((kind, name)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    set_drain(&api, &kind, &name, Draining::End).await
}

async fn set_drain(
    api: &Api,
    kind: &str,
    name: &str,
    draining: Draining,
) -> Result<StatusCode, Problem> {
    match kind {
        "backend" => {}
        "vip" | "pop" => {
            let why = format!(
                "draining a {kind} is not available in this version, which announces nothing; drain its backends"
            );
            return Err(Refused::NotAvailable(why).into());
        }
        _ => {
            let why = "only `backend`, `vip` and `pop` can be drained";
            return Err(Problem::new(StatusCode::NOT_FOUND, why));
        }
    }
    let name: BackendName = name
        .parse()
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, format!("`{name}`: {error}")))?;
    api.control.drain(name, draining).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn reload(State(api): Shared) -> Result<StatusCode, Problem> {
    api.control.reload().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn metrics_text(State(api): Shared) -> Result<Response, Problem> {
    let scrape = api.control.scrape().await?;
    let text = metrics::text(&api.control.view(), &scrape)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(api): Shared) -> Result<&'static str, Problem> {
    if api.control.view().ready {
        Ok("ready\n")
    } else {
        let why =
            "the data plane does not hold what the config asks for yet; `sluice status` says more";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why))
    }
}
