//! Routes that only look.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    Answer, Api, Problem, list,
    model::{BackendItem, DropItem, Flows, Items, Status, VipItem},
    render,
};
use crate::metrics;

type Shared = State<Arc<Api>>;

/// The daemon and its data plane
#[utoipa::path(get, path = "/v1/status", tag = "state", responses(
    (status = 200, body = Status, description = "How they are"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn status(State(api): Shared) -> Answer<Status> {
    let figures = api.control.figures().await?;
    let view = api.control.view();
    Ok(Json(render::status(&view, &figures, &api.config_file)))
}

/// VIPs, and what became of their packets
#[utoipa::path(get, path = "/v1/vips", tag = "state", responses(
    (status = 200, body = Items<VipItem>, description = "All of them, as the config orders them"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn vips(State(api): Shared) -> Answer<Items<VipItem>> {
    let figures = api.control.figures().await?;
    list(render::vips(&api.control.view(), &figures))
}

/// Backends, their health and their share
#[utoipa::path(get, path = "/v1/backends", tag = "state", responses(
    (status = 200, body = Items<BackendItem>, description = "All of them, as the config orders them"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn backends(State(api): Shared) -> Answer<Items<BackendItem>> {
    let figures = api.control.figures().await?;
    list(render::backends(&api.control.view(), &figures))
}

/// Live flows by backend, and all of them by state
#[utoipa::path(get, path = "/v1/flows", tag = "state", responses(
    (status = 200, body = Flows, description = "Backends that have flows"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn flows(State(api): Shared) -> Answer<Flows> {
    Ok(Json(render::flows(&api.control.figures().await?)))
}

/// Dropped packets by VIP and reason
#[utoipa::path(get, path = "/v1/drops", tag = "state", responses(
    (status = 200, body = Items<DropItem>, description = "Only reasons that were met"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn drops(State(api): Shared) -> Answer<Items<DropItem>> {
    list(render::drops(&api.control.figures().await?))
}

/// All figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "state", responses(
    (status = 200, body = String, content_type = "text/plain; version=0.0.4", description = "Prometheus text"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn metrics_text(State(api): Shared) -> Result<Response, Problem> {
    let figures = api.control.figures().await?;
    let limits = api.control.limits().await?;
    let text = metrics::text(&api.control.view(), &figures, &limits)
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// Whether the daemon runs
#[utoipa::path(get, path = "/healthz", tag = "daemon", responses(
    (status = 200, body = String, content_type = "text/plain", description = "It does"),
))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the data plane holds what the config asks for
#[utoipa::path(get, path = "/readyz", tag = "daemon", responses(
    (status = 200, body = String, content_type = "text/plain", description = "It does"),
    (status = 503, description = "Not yet"),
))]
pub(super) async fn readyz(State(api): Shared) -> Result<&'static str, Problem> {
    if api.control.view().ready {
        Ok("ready\n")
    } else {
        let why =
            "the data plane does not hold what the config asks for yet; `sluice status` says more";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, why))
    }
}
