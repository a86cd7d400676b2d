//! `/v1/rules`: rules of the config, and those set at run time, one by one or many at once.

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use utoipa::ToSchema;

use super::{
    Answer, MAX_BODY_BYTES, Problem, Shared,
    body::read,
    entry::{self, precondition, refuse_condition},
    model::{Page, RuleItem, RulePreview, RulesDone},
    problem::id_of,
    query::{self, Params},
    render,
};
use crate::{
    book::SpecError,
    control::{Novelty, RuleQuery, now_ms},
    rules::{Origin, RuleSpec},
};

/// Some rules by id, of those that match every parameter
///
/// Those of the config have ids from 1,000,000,000 on.
#[utoipa::path(get, path = "/v1/rules", tag = "rules", params(
    ("vip" = Option<String>, Query, description = "For this VIP"),
    ("origin" = Option<Origin>, Query, description = "Of this origin"),
    ("comment" = Option<String>, Query, description = "With this in the comment"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<RuleItem>, description = "A page of them"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn rules(State(api): Shared, mut params: Params) -> Answer<Page<RuleItem>> {
    let mut query = RuleQuery {
        vip: params.text("vip").0,
        origin: params.word("origin")?,
        comment: params.text("comment").0,
        ..RuleQuery::default()
    };
    let window = params.window()?;
    (query.after, query.most) = (window.after, window.most);
    let page = api.control.rule_page(query).await?;
    Ok(Json(render::page(page, render::rule)))
}

/// One rule
#[utoipa::path(get, path = "/v1/rules/{id}", tag = "rules", params(
    ("id" = u64, Path, description = "As it was answered when the rule was set"),
), responses(
    (status = 200, body = RuleItem, description = "As it is", headers(("ETag" = String, description = "Changes with the rule"))),
    (status = 404, description = "There is no such rule"),
    (status = 503, description = "The daemon is about to end"),
))]
pub(super) async fn rule(State(api): Shared, Path(id): Path<String>) -> Result<Response, Problem> {
    let rule = api.control.rule(id_of("rule", &id)?).await?;
    Ok(entry::tagged(render::rule(rule)))
}

/// Set one rule, or all of an array
///
/// One that means the same packets, and was set by the same, is replaced. Packets meet it when this is answered. Of an array all are set, or none.
#[utoipa::path(post, path = "/v1/rules", tag = "rules", params(
    ("If-Match" = Option<String>, Header, description = "Only if the rule still has this entity tag"),
    ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none yet"),
), request_body = RuleOrRules, responses(
    (status = 200, body = RulesAnswer, description = "It replaced another, or the array is set"),
    (status = 201, body = RuleItem, description = "It is new", headers(("ETag" = String, description = "Changes with the rule"))),
    (status = 409, description = "The data plane has no room for it"),
    (status = 412, description = "The rule is not what the condition says"),
    (status = 422, description = "A value is wrong; `field` says which"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn set(
    State(api): Shared,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let precondition = precondition(&headers)?;
    let (body, _) = read(&api, request, MAX_BODY_BYTES).await?;
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'[') {
        let spec = operators(&body)?;
        let (rule, novelty) = api.control.set_rule(spec, precondition).await?;
        return Ok(entry::set(novelty, render::rule(rule)));
    }
    refuse_condition(&headers, "an array of rules takes no condition")?;
    let specs = RuleSpec::list_from_json(&body).map_err(entry::wrong)?;
    let specs = specs.into_iter().enumerate();
    let specs = specs
        .map(|(at, spec)| of_operator(spec).map_err(|error| error.at(at)))
        .collect::<Result<_, _>>()
        .map_err(|error| entry::wrong(error.into()))?;
    let done = api.control.set_rules(specs).await?;
    let created = done.iter().filter(|(_, novelty)| *novelty == Novelty::New);
    let created = created.count();
    Ok(Json(RulesDone {
        created,
        replaced: done.len() - created,
        ids: done.iter().map(|(rule, _)| rule.record.id).collect(),
    })
    .into_response())
}

/// What a rule would have meant in the last minute
///
/// Replayed against samples of packets; nothing is set.
#[utoipa::path(post, path = "/v1/rules/preview", tag = "rules", request_body = RuleOrText, responses(
    (status = 200, body = RulePreview, description = "By the samples of the last minute"),
    (status = 422, description = "A value is wrong; `field` says which"),
))]
pub(super) async fn preview(
    State(api): Shared,
    headers: HeaderMap,
    request: Request,
) -> Answer<RulePreview> {
    refuse_condition(&headers, "a preview takes no condition")?;
    let (body, _) = read(&api, request, MAX_BODY_BYTES).await?;
    let spec = RuleSpec::from_json(&body).map_err(entry::wrong)?;
    let known = api.control.detection().lock();
    let vip = match &spec.vip {
        None => None,
        Some(name) => Some(*known.vips.get(name).ok_or_else(|| {
            let why = format!("there is no VIP `{name}`; `sluice vips` lists them");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, why).of_field("vip")
        })?),
    };
    let replay = known.minute.replay(now_ms(), &spec.components, vip);
    drop(known);
    Ok(Json(render::preview(&spec, &replay)))
}

/// Make a rule be another
#[utoipa::path(put, path = "/v1/rules/{id}", tag = "rules", params(
    ("id" = u64, Path, description = "As it was answered when the rule was set"),
    ("If-Match" = Option<String>, Header, description = "Only if the rule still has this entity tag"),
), request_body = RuleSpec, responses(
    (status = 200, body = RuleItem, description = "Packets meet it", headers(("ETag" = String, description = "Changes with the rule"))),
    (status = 404, description = "There is no such rule"),
    (status = 409, description = "Another rule means the same packets, it stands in the config or is detection's, or the data plane has no room"),
    (status = 412, description = "The rule is not what the condition says"),
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
    let spec = operators(&body)?;
    let id = id_of("rule", &id)?;
    let rule = api.control.replace_rule(id, spec, precondition).await?;
    Ok(entry::tagged(render::rule(rule)))
}

/// Remove a rule
#[utoipa::path(delete, path = "/v1/rules/{id}", tag = "rules", params(
    ("id" = u64, Path, description = "As it was answered when the rule was set"),
    ("If-Match" = Option<String>, Header, description = "Only if the rule still has this entity tag"),
), responses(
    (status = 204, description = "No packet meets it any more"),
    (status = 400, description = "The condition makes no sense"),
    (status = 404, description = "There is no such rule"),
    (status = 409, description = "It stands in the config, or is detection's"),
    (status = 412, description = "The rule is not what the condition says"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused, and nothing changed"),
))]
pub(super) async fn remove(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let precondition = precondition(&headers)?;
    let id = id_of("rule", &id)?;
    api.control
        .remove_rule(id, Origin::Operator, precondition)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What `POST` takes: rules as objects, or as their text.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum RuleOrRules {
    One(Box<RuleSpec>),
    Text(String),
    Many(Vec<RuleSpec>),
    Texts(Vec<String>),
}

/// What `POST` of a preview takes: a rule as an object, or as its text.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum RuleOrText {
    One(Box<RuleSpec>),
    Text(String),
}

/// What `POST` answers, for one rule and for an array.
#[derive(ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described")]
enum RulesAnswer {
    One(Box<RuleItem>),
    Many(RulesDone),
}

fn operators(body: &[u8]) -> Result<RuleSpec, Problem> {
    RuleSpec::from_json(body)
        .and_then(|spec| Ok(of_operator(spec)?))
        .map_err(entry::wrong)
}

/// What a client asks for is the operator's, whatever it says of itself.
fn of_operator(spec: RuleSpec) -> Result<RuleSpec, SpecError> {
    if spec.origin == Origin::Operator {
        return Ok(spec);
    }
    let message = "rules that are set here are the operator's; leave it out";
    Err(SpecError::of("origin", message))
}
