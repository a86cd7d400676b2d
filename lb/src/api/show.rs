//! Routes that only look.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use sluice_ebpf::abi::DropReason;

use super::{
    Answer, Problem, Shared,
    model::{BackendItem, DropItem, Flows, Page, PeerItem, StateWord, Status, VipItem},
    query::{self, Params, page},
    render,
};
use crate::{config::Mode, metrics};

/// The daemon and its data plane
#[utoipa::path(get, path = "/v1/status", tag = "state", responses(
    (status = 200, body = Status, description = "How they are"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn status(State(api): Shared) -> Answer<Status> {
    let figures = api.control.figures().await?;
    let view = api.control.view();
    let tasks = api.control.supervisor().tasks();
    Ok(Json(render::status(
        &view,
        &figures,
        tasks,
        &api.config_file,
    )))
}

/// VIPs, and what became of their packets
#[utoipa::path(get, path = "/v1/vips", tag = "state", params(
    ("name" = Option<String>, Query, description = "Only the one of this name"),
    ("pool" = Option<String>, Query, description = "Only of this pool"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<VipItem>, description = "All of them, as the config orders them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn vips(State(api): Shared, mut params: Params) -> Answer<Page<VipItem>> {
    let (name, pool) = (params.text("name"), params.text("pool"));
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let mut items = render::vips(&api.control.view(), &figures);
    items.retain(|vip| name.is(&vip.name) && pool.is(&vip.pool));
    page(items, window)
}

/// Backends, their health and their share
#[utoipa::path(get, path = "/v1/backends", tag = "state", params(
    ("pool" = Option<String>, Query, description = "Only of this pool"),
    ("state" = Option<StateWord>, Query, description = "Only of this state"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<BackendItem>, description = "All of them, as the config orders them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn backends(State(api): Shared, mut params: Params) -> Answer<Page<BackendItem>> {
    let pool = params.text("pool");
    let state: Option<StateWord> = params.word("state")?;
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let mut items = render::backends(&api.control.view(), &figures);
    items.retain(|backend| {
        pool.is(&backend.pool) && state.is_none_or(|state| backend.state == state)
    });
    page(items, window)
}

/// Live flows by backend, and all of them by state
#[utoipa::path(get, path = "/v1/flows", tag = "state", params(
    ("pool" = Option<String>, Query, description = "Only of this pool"),
    query::WindowParams,
), responses(
    (status = 200, body = Flows, description = "Backends that have flows"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn flows(State(api): Shared, mut params: Params) -> Answer<Flows> {
    let pool = params.text("pool");
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let mut flows = render::flows(&figures);
    flows.items.retain(|flows| pool.is(&flows.pool));
    let Json(page) = page(flows.items, window)?;
    (flows.items, flows.next) = (page.items, page.next);
    Ok(Json(flows))
}

/// Dropped packets by VIP and reason
#[utoipa::path(get, path = "/v1/drops", tag = "state", params(
    ("vip" = Option<String>, Query, description = "Only of this vip"),
    ("reason" = Option<String>, Query, description = "Only of this reason"),
    ("mode" = Option<Mode>, Query, description = "Only of this mode"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<DropItem>, description = "Only reasons that were met"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn drops(State(api): Shared, mut params: Params) -> Answer<Page<DropItem>> {
    let vip = params.text("vip");
    let reason = params.one_of("reason", DropReason::ALL, DropReason::word)?;
    let mode: Option<Mode> = params.word("mode")?;
    let window = params.window()?;
    let figures = api.control.figures().await?;
    let asked_for = figures.drops.iter().filter(|drop| {
        vip.is(drop.vip.as_deref().unwrap_or_default())
            && reason.is_none_or(|reason| drop.reason == reason)
            && mode.is_none_or(|mode| drop.mode == mode)
    });
    page(render::drops(asked_for), window)
}

/// Routers that VIPs are announced to by BGP
///
/// This version speaks no BGP, and so has no peers: the list is empty.
#[utoipa::path(get, path = "/v1/peers", tag = "state", params(query::WindowParams), responses(
    (status = 200, body = Page<PeerItem>, description = "None"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
))]
pub(super) async fn peers(params: Params) -> Answer<Page<PeerItem>> {
    page(Vec::new(), params.window()?)
}

/// All figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "state", responses(
    (status = 200, body = String, content_type = "text/plain; version=0.0.4", description = "Prometheus text"),
    (status = 500, description = "The maps cannot be read"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn metrics_text(State(api): Shared) -> Result<Response, Problem> {
    let scrape = api.control.scrape().await?;
    let known = api.control.detection().lock();
    let text = metrics::text(&api.control.view(), &scrape, &known)
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
