//! The HTTP API on the Unix socket.

pub mod model;
mod problem;
mod render;
mod socket;

#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State, rejection::BytesRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};

use crate::{
    control::{Draining, Handle, Novelty, Refused},
    drains::BackendName,
    limits::LimitSpec,
    metrics,
};

pub use problem::Problem;
pub(crate) use render::{is_up, state};
pub use socket::{SocketError, bind};

use model::{BackendItem, DropItem, Flows, Items, LimitItem, Status, VipItem};

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
        .route("/limits", get(limits).post(set_limit))
        .route(
            "/limits/{id}",
            get(limit).put(replace_limit).delete(remove_limit),
        )
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
type Body = Result<Bytes, BytesRejection>;
type Shared = State<Arc<Api>>;

async fn status(State(api): Shared) -> Answer<Status> {
    let figures = api.control.figures().await?;
    let view = api.control.view();
    Ok(Json(render::status(&view, &figures, &api.config_file)))
}

async fn vips(State(api): Shared) -> Answer<Items<VipItem>> {
    let figures = api.control.figures().await?;
    list(render::vips(&api.control.view(), &figures))
}

async fn backends(State(api): Shared) -> Answer<Items<BackendItem>> {
    let figures = api.control.figures().await?;
    list(render::backends(&api.control.view(), &figures))
}

async fn flows(State(api): Shared) -> Answer<Flows> {
    Ok(Json(render::flows(&api.control.figures().await?)))
}

async fn drops(State(api): Shared) -> Answer<Items<DropItem>> {
    list(render::drops(&api.control.figures().await?))
}

async fn limits(State(api): Shared) -> Answer<Items<LimitItem>> {
    let limits = api.control.limits().await?;
    list(limits.into_iter().map(render::limit).collect())
}

async fn limit(State(api): Shared, Path(id): Path<String>) -> Answer<LimitItem> {
    let id = limit_id(&id)?;
    let limits = api.control.limits().await?;
    let found = limits.into_iter().find(|limit| limit.record.id == id);
    let found = found.ok_or_else(|| no_limit(&id.to_string()))?;
    Ok(Json(render::limit(found)))
}

async fn set_limit(
    State(api): Shared,
    body: Body,
) -> Result<(StatusCode, Json<LimitItem>), Problem> {
    let (limit, novelty) = api.control.set_limit(limit_spec(body)?).await?;
    let status = match novelty {
        Novelty::New => StatusCode::CREATED,
        Novelty::Replaced => StatusCode::OK,
    };
    Ok((status, Json(render::limit(limit))))
}

async fn replace_limit(
    State(api): Shared,
    Path(id): Path<String>,
    body: Body,
) -> Answer<LimitItem> {
    let spec = limit_spec(body)?;
    let limit = api.control.replace_limit(limit_id(&id)?, spec).await?;
    Ok(Json(render::limit(limit)))
}

async fn remove_limit(State(api): Shared, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    api.control.remove_limit(limit_id(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn limit_id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_no_number| no_limit(text))
}

fn no_limit(id: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no limit {id}"))
}

fn limit_spec(body: Body) -> Result<LimitSpec, Problem> {
    let body = body.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    LimitSpec::from_json(&body).map_err(|error| {
        if error.field.is_empty() {
            Problem::new(StatusCode::BAD_REQUEST, error.message)
        } else {
            Refused::from(error).into()
        }
    })
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
    let figures = api.control.figures().await?;
    let limits = api.control.limits().await?;
    let text = metrics::text(&api.control.view(), &figures, &limits)
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

fn list<T>(items: Vec<T>) -> Answer<Items<T>> {
    Ok(Json(Items { items }))
}
