//! `/v1/limits`: limits set at run time, one by one or many at once.

use std::net::IpAddr;

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use ipnet::IpNet;
use utoipa::ToSchema;

use super::{
    Answer, MAX_BODY_BYTES, Problem, Shared,
    body::read,
    entry::{self, precondition, refuse_condition},
    guard,
    model::{LimitItem, LimitsDone, Page},
    problem::id_of,
    query::{self, Params},
    render,
};
use crate::{
    config::Mode,
    control::off_thread,
    limits::{ClassWord, LimitQuery, LimitSpec},
};

/// Some limits by id, of those that match every parameter
#[utoipa::path(get, path = "/v1/limits", tag = "limits", params(
    ("vip" = Option<String>, Query, description = "For this VIP"),
    ("class" = Option<ClassWord>, Query, description = "Of this class"),
    ("mode" = Option<Mode>, Query, description = "Of this mode"),
    ("comment" = Option<String>, Query, description = "With this in the comment"),
    ("within" = Option<String>, Query, description = "Prefixes inside of this one"),
    ("covers" = Option<String>, Query, description = "Prefixes that hold this address or prefix"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<LimitItem>, description = "A page of them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn limits(State(api): Shared, mut params: Params) -> Answer<Page<LimitItem>> {
    const PREFIX: &str = "an address or prefix";
    let within = params.value("within", PREFIX)?.map(|Prefix(prefix)| prefix);
    let covers = params.value("covers", PREFIX)?.map(|Prefix(prefix)| prefix);
    let mut query = LimitQuery {
        vip: params.text("vip").0,
        class: params.word("class")?,
        mode: params.word("mode")?,
        comment: params.text("comment").0,
        within,
        covers,
        ..LimitQuery::default()
    };
    let window = params.window()?;
    (query.after, query.most) = (window.after, window.most);
    let page = api.control.limit_page(query).await?;
    Ok(Json(render::page(page, render::limit)))
}

/// One limit
#[utoipa::path(get, path = "/v1/limits/{id}", tag = "limits", params(
    ("id" = u64, Path, description = "As it was answered when the limit was set"),
), responses(
    (status = 200, body = LimitItem, description = "As it is", headers(("ETag" = String, description = "Changes with the limit"))),
    (status = 404, description = "There is no such limit"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn limit(State(api): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let limit = api.control.limit(id_of("limit", &id)?).await?;
    Ok(entry::tagged(render::limit(limit)))
}

/// Set one limit, or all of an array
///
/// One for the same prefix, VIP and class is replaced. Packets meet it when this is answered. Of an array all are set, or none.
#[utoipa::path(post, path = "/v1/limits", tag = "limits", params(
    ("If-Match" = Option<String>, Header, description = "Only if the limit still has this entity tag"),
    ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet"),
), request_body = OneOrMany, responses(
    (status = 200, body = Done, description = "It replaced another, or the array is set"),
    (status = 201, body = LimitItem, description = "It is new", headers(("ETag" = String, description = "Changes with the limit"))),
    (status = 409, description = "The data plane has no room for it"),
    (status = 412, description = "The limit is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "Other large requests are being read, or the daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn set(
    State(api): Shared,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let precondition = precondition(&headers)?;
    let (body, permit) = read(&api, request, MAX_BATCH_BYTES).await?;
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        let spec = LimitSpec::from_json(&body).map_err(entry::wrong)?;
        let (limit, novelty) = api.control.set_limit(spec, precondition).await?;
        return Ok(entry::set(novelty, render::limit(limit)));
    }
    refuse_condition(&headers, "an array of limits takes no condition")?;
    // Others must not wait for a hundred thousand limits being read.
    let specs = off_thread(move || LimitSpec::list_from_json(&body)).await?;
    let specs = specs.map_err(entry::wrong)?;
    let number = specs.len();
    let done = api.control.set_limits(specs).await?;
    drop(permit);
    Ok(Json(LimitsDone {
        created: done.created,
        replaced: number - done.created,
        ids: done.ids,
    })
    .into_response())
}

/// Make a limit be another
#[utoipa::path(put, path = "/v1/limits/{id}", tag = "limits", params(
    ("id" = u64, Path, description = "As it was answered when the limit was set"),
    ("If-Match" = Option<String>, Header, description = "Only if the limit still has this entity tag"),
), request_body = LimitSpec, responses(
    (status = 200, body = LimitItem, description = "Packets meet it", headers(("ETag" = String, description = "Changes with the limit"))),
    (status = 404, description = "There is no such limit"),
    (status = 409, description = "Another limit is for the same packets, or the data plane has no room"),
    (status = 412, description = "The limit is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn replace(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let precondition = precondition(&headers)?;
    let (body, _) = read(&api, request, MAX_BODY_BYTES).await?;
    let spec = LimitSpec::from_json(&body).map_err(entry::wrong)?;
    let id = id_of("limit", &id)?;
    let limit = api.control.replace_limit(id, spec, precondition).await?;
    Ok(entry::tagged(render::limit(limit)))
}

/// Remove a limit
#[utoipa::path(delete, path = "/v1/limits/{id}", tag = "limits", params(
    ("id" = u64, Path, description = "As it was answered when the limit was set"),
    ("If-Match" = Option<String>, Header, description = "Only if the limit still has this entity tag"),
), responses(
    (status = 204, description = "No packet meets it any more"),
    (status = 400, description = "The condition makes no sense"),
    (status = 404, description = "There is no such limit"),
    (status = 412, description = "The limit is not what the condition says"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn remove(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let precondition = precondition(&headers)?;
    api.control
        .remove_limit(id_of("limit", &id)?, precondition)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What `POST` takes.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum OneOrMany {
    One(LimitSpec),
    Many(Vec<LimitSpec>),
}

/// What `POST` answers, for one limit and for an array.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum Done {
    One(LimitItem),
    Many(LimitsDone),
}

/// A prefix, or an address as the prefix of it alone.
struct Prefix(IpNet);

impl std::str::FromStr for Prefix {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self(address.into())),
            Err(_) => text.parse().map(Self),
        }
    }
}

/// All limits that a data plane of the default size holds, each with a comment.
const MAX_BATCH_BYTES: usize = guard::MAX_BODY_BYTES;
