//! `/v1/deny` and `/v1/allow`: sources that are denied or allowed, single prefixes and whole lists.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use utoipa::ToSchema;

use super::{
    Answer, Api, Problem, Shared,
    body::read,
    entry::{self, precondition},
    guard,
    model::{Page, SourceDone, SourceItem},
    query::{self, Params},
    render,
};
use crate::{
    config::Mode,
    control::{SourceInForce, SourceQuery, off_thread},
    sources::{Kind, Lines, SourceSpec},
};

/// Who is denied, by id
#[utoipa::path(get, path = "/v1/deny", tag = "sources", params(
    ("key" = Option<String>, Query, description = "With this id, name or prefix"),
    ("covers" = Option<String>, Query, description = "Those that hold this address"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<SourceItem>, description = "A page of them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn denied(State(api): Shared, params: Params) -> Answer<Page<SourceItem>> {
    page(&api, Kind::Deny, params).await
}

/// Who is let in whatever else holds, by id
#[utoipa::path(get, path = "/v1/allow", tag = "sources", params(
    ("key" = Option<String>, Query, description = "With this id, name or prefix"),
    ("covers" = Option<String>, Query, description = "Those that hold this address"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<SourceItem>, description = "A page of them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn allowed(State(api): Shared, params: Params) -> Answer<Page<SourceItem>> {
    page(&api, Kind::Allow, params).await
}

/// One entry of those that are denied
#[utoipa::path(get, path = "/v1/deny/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
), responses(
    (status = 200, body = SourceItem, description = "As it is", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 404, description = "There is no such entry"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn denied_one(
    State(api): Shared,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let found = api.control.source(Kind::Deny, id).await?;
    Ok(entry::tagged(render::source(found)))
}

/// One entry of those that are allowed
#[utoipa::path(get, path = "/v1/allow/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
), responses(
    (status = 200, body = SourceItem, description = "As it is", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 404, description = "There is no such entry"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn allowed_one(
    State(api): Shared,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let found = api.control.source(Kind::Allow, id).await?;
    Ok(entry::tagged(render::source(found)))
}

/// Deny a prefix, or a list of them
///
/// An entry with the same name or prefix is replaced at once. Of a list with a line that is no prefix nothing is taken, unless `skip_bad` says so.
#[utoipa::path(post, path = "/v1/deny", tag = "sources", params(
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
    ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet"),
), request_body = SourceGiven, responses(
    (status = 200, body = SourceDone, description = "It replaced another"),
    (status = 201, body = SourceDone, description = "It is new", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 409, description = "It stands in the config, or the data plane has no room for it"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "Other large requests are being read, or the daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn deny(
    State(api): Shared,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    set(&api, Kind::Deny, &headers, request).await
}

/// Allow a prefix, or a list of them
///
/// Packets from there meet no deny, rule or limit. Otherwise as for `/v1/deny`.
#[utoipa::path(post, path = "/v1/allow", tag = "sources", params(
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
    ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet"),
), request_body = SourceGiven, responses(
    (status = 200, body = SourceDone, description = "It replaced another"),
    (status = 201, body = SourceDone, description = "It is new", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 409, description = "It stands in the config, or the data plane has no room for it"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "Other large requests are being read, or the daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn allow(
    State(api): Shared,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    set(&api, Kind::Allow, &headers, request).await
}

/// Make an entry be another
#[utoipa::path(put, path = "/v1/deny/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
), request_body = SourceGiven, responses(
    (status = 200, body = SourceDone, description = "Packets meet it", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 404, description = "There is no such entry"),
    (status = 409, description = "Another entry has this name or prefix, it stands in the config, or the data plane has no room"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn replace_denied(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    replace(&api, Kind::Deny, id, &headers, request).await
}

/// Make an entry be another
#[utoipa::path(put, path = "/v1/allow/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
), request_body = SourceGiven, responses(
    (status = 200, body = SourceDone, description = "Packets meet it", headers(("ETag" = String, description = "Changes with the entry"))),
    (status = 404, description = "There is no such entry"),
    (status = 409, description = "Another entry has this name or prefix, it stands in the config, or the data plane has no room"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn replace_allowed(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    replace(&api, Kind::Allow, id, &headers, request).await
}

/// Deny sources no more
#[utoipa::path(delete, path = "/v1/deny/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
), responses(
    (status = 204, description = "No packet meets it any more"),
    (status = 400, description = "The condition makes no sense"),
    (status = 404, description = "There is no such entry"),
    (status = 409, description = "It stands in the config"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn remove_denied(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    remove(&api, Kind::Deny, id, &headers).await
}

/// Allow sources no more
#[utoipa::path(delete, path = "/v1/allow/{id}", tag = "sources", params(
    ("id" = String, Path, description = "Its id, or its name"),
    ("If-Match" = Option<String>, Header, description = "Only if the entry still has this entity tag"),
), responses(
    (status = 204, description = "No packet meets it any more"),
    (status = 400, description = "The condition makes no sense"),
    (status = 404, description = "There is no such entry"),
    (status = 409, description = "It stands in the config"),
    (status = 412, description = "The entry is not what the condition says"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn remove_allowed(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    remove(&api, Kind::Allow, id, &headers).await
}

/// What `POST` and `PUT` take: a prefix, a named set of prefixes, or a named list as it is given away.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum SourceGiven {
    Prefix {
        #[schema(example = "198.51.100.0/24")]
        prefix: String,
        /// Only packets to this VIP meet it.
        vip: Option<String>,
        /// `monitor`: count whom it would deny.
        mode: Option<Mode>,
        ttl_seconds: Option<u64>,
        comment: Option<String>,
    },
    Prefixes {
        name: String,
        prefixes: Vec<String>,
        vip: Option<String>,
        mode: Option<Mode>,
        ttl_seconds: Option<u64>,
        comment: Option<String>,
    },
    List {
        name: String,
        /// The text of a file: a prefix a line, with comments; netset; CSV; JSON lines.
        list: String,
        /// Whether lines that are no prefixes are skipped.
        skip_bad: Option<bool>,
        vip: Option<String>,
        mode: Option<Mode>,
        ttl_seconds: Option<u64>,
        comment: Option<String>,
    },
}

async fn page(api: &Api, kind: Kind, mut params: Params) -> Answer<Page<SourceItem>> {
    let key = params.text("key").0;
    let covers = params.value::<IpAddr>("covers", "an address")?;
    let window = params.window()?;
    let query = SourceQuery {
        kind,
        after: window.after,
        most: window.most,
        key,
        covers,
    };
    let page = api.control.source_page(query).await?;
    Ok(Json(render::page(page, render::source)))
}

async fn set(
    api: &Api,
    kind: Kind,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let precondition = precondition(headers)?;
    let (spec, lines) = spec(api, kind, request).await?;
    let (set, novelty) = api.control.set_source(spec, precondition).await?;
    Ok(entry::set(novelty, done(set, lines)))
}

async fn replace(
    api: &Api,
    kind: Kind,
    id: String,
    headers: &HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let precondition = precondition(headers)?;
    let (spec, lines) = spec(api, kind, request).await?;
    let id = id_of(api, kind, id).await?;
    let set = api.control.replace_source(id, spec, precondition).await?;
    Ok(entry::tagged(done(set, lines)))
}

async fn remove(
    api: &Api,
    kind: Kind,
    id: String,
    headers: &HeaderMap,
) -> Result<StatusCode, Problem> {
    let precondition = precondition(headers)?;
    let id = id_of(api, kind, id).await?;
    api.control.remove_source(kind, id, precondition).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The id of an entry, which may be given by its name.
async fn id_of(api: &Api, kind: Kind, key: String) -> Result<u64, Problem> {
    match key.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(api.control.source(kind, key).await?.record.id),
    }
}

/// What is asked for, and what was read if it is a list.
async fn spec(
    api: &Api,
    kind: Kind,
    request: Request,
) -> Result<(SourceSpec, Option<Lines>), Problem> {
    let (body, _permit) = read(api, request, guard::MAX_BODY_BYTES).await?;
    // Others must not wait for a million prefixes being read.
    let read = off_thread(move || SourceSpec::from_json(kind, &body)).await?;
    read.map_err(entry::wrong)
}

fn done(entry: SourceInForce, read: Option<Lines>) -> SourceDone {
    let bad = |lines: &Lines| lines.bad.iter().map(ToString::to_string).collect();
    SourceDone {
        entry: render::source(entry),
        lines: read.as_ref().map(|lines| lines.taken),
        skipped: read.as_ref().map(|lines| lines.skipped),
        bad: read.as_ref().map(bad),
    }
}
