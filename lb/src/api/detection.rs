//! `/v1/mitigations` and `/v1/talkers`: what detection does, and who sends most.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};

use super::{
    Answer, Problem, Shared,
    entry::refuse_condition,
    model::{MitigationItem, Page, TalkerRow, Talkers},
    problem::id_of,
    query::{self, Params, page},
    render,
};
use crate::detect::{
    mitigation::PhaseWord,
    talkers::{Ask, Order, Row, Top},
};

/// Mitigations that detection raised
#[utoipa::path(get, path = "/v1/mitigations", tag = "detection", params(
    ("vip" = Option<String>, Query, description = "Only of this VIP"),
    ("state" = Option<PhaseWord>, Query, description = "Only of this state"),
    query::WindowParams,
), responses(
    (status = 200, body = Page<MitigationItem>, description = "Those in force, those that only count, those that the data plane refused, and those that were reverted"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
))]
pub(super) async fn mitigations(
    State(api): Shared,
    mut params: Params,
) -> Answer<Page<MitigationItem>> {
    let vip = params.text("vip");
    let state: Option<PhaseWord> = params.word("state")?;
    let window = params.window()?;
    let items: Vec<MitigationItem> = {
        let known = api.control.detection().lock();
        let all = known.detector.mitigations();
        all.map(|mitigation| {
            let mut item = render::mitigation(mitigation);
            item.enforced = Some(known.detector.enforces(mitigation));
            item
        })
        .filter(|item| {
            vip.is(item.vip.as_deref().unwrap_or_default())
                && state.is_none_or(|state| item.state == state)
        })
        .collect()
    };
    page(items, window)
}

/// Revert a mitigation for good
///
/// It acts no more, and none like it is raised again, also after a restart, until it is allowed.
#[utoipa::path(post, path = "/v1/mitigations/{id}/revert", tag = "detection", params(
    ("id" = u64, Path, description = "As it was listed or told"),
), responses(
    (status = 204, description = "It is on the disk"),
    (status = 400, description = "There is a condition"),
    (status = 404, description = "There is no such mitigation"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused; nothing was changed"),
))]
pub(super) async fn revert(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    refuse_condition(&headers, "a reversal takes no condition")?;
    api.control.revert(id_of("mitigation", &id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take a reversal back
#[utoipa::path(post, path = "/v1/mitigations/{id}/allow", tag = "detection", params(
    ("id" = u64, Path, description = "Of one that was reverted"),
), responses(
    (status = 204, description = "One like it may be raised again"),
    (status = 400, description = "There is a condition"),
    (status = 404, description = "There is no such mitigation"),
    (status = 409, description = "It is not reverted"),
    (status = 503, description = "The daemon is about to end"),
    (status = 507, description = "The disk refused; nothing was changed"),
))]
pub(super) async fn allow(
    State(api): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    refuse_condition(&headers, "a mitigation is allowed without a condition")?;
    api.control.allow(id_of("mitigation", &id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who sends most: networks, ports and lengths, from samples of the last seconds
#[utoipa::path(get, path = "/v1/talkers", tag = "detection", params(
    ("vip" = Option<String>, Query, description = "To this VIP only"),
    ("by" = Option<Order>, Query, description = "What makes the first; `packets` if nothing is said"),
    ("seconds" = Option<u64>, Query, description = "How far back, 1 to 60; default 10"),
    ("limit" = Option<usize>, Query, description = "Rows of each list, 1 to 100; default 10"),
), responses(
    (status = 200, body = Talkers, description = "Rates, scaled from the samples"),
    (status = 400, description = "A parameter is wrong; `field` says which"),
    (status = 404, description = "There is no such VIP"),
))]
pub(super) async fn talkers(State(api): Shared, mut params: Params) -> Answer<Talkers> {
    let wrong =
        |field: &str, message: &str| Problem::new(StatusCode::BAD_REQUEST, message).of_field(field);
    let vip = params.text("vip").0;
    let order = params.word("by")?.unwrap_or_default();
    let seconds: u64 = params
        .value("seconds", "a number of seconds")?
        .unwrap_or(10);
    let most: usize = params.value("limit", "a number of rows")?.unwrap_or(10);
    params.none_left()?;
    if !(1..=60).contains(&seconds) {
        return Err(wrong("seconds", "it is from 1 to 60"));
    }
    if !(1..=100).contains(&most) {
        return Err(wrong("limit", "it is from 1 to 100"));
    }
    let known = api.control.detection().lock();
    let vip = match &vip {
        None => None,
        Some(name) => Some(*known.vips.get(name).ok_or_else(|| {
            Problem::new(StatusCode::NOT_FOUND, format!("there is no VIP `{name}`"))
        })?),
    };
    let ask = Ask {
        vip,
        window_ms: seconds * 1_000,
        order,
        most,
    };
    let top = known.talkers.top(crate::control::now_ms(), &ask);
    drop(known);
    Ok(Json(rendered(top)))
}

fn rendered(top: Top) -> Talkers {
    let rows = |rows: Vec<Row>| {
        let row = |row: Row| TalkerRow {
            what: row.what,
            pps: whole(row.seen.pps),
            bps: whole(row.seen.bps),
            dropped_pps: whole(row.dropped.pps),
            dropped_bps: whole(row.dropped.bps),
        };
        rows.into_iter().map(row).collect()
    };
    Talkers {
        samples: top.samples,
        packets_per_sample: (top.packets_per_sample * 10.0).round() / 10.0,
        networks: rows(top.networks),
        source_ports: rows(top.source_ports),
        destination_ports: rows(top.destination_ports),
        lengths: rows(top.lengths),
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are not negative, and casts saturate"
)]
pub(super) fn whole(rate: f64) -> u64 {
    rate.round() as u64
}
