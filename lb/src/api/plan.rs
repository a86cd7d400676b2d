//! `GET /v1/plan`: what a reload would do.

use axum::{Json, extract::State};

use super::{
    Answer, Shared,
    model::{PlanChange, PlanVip, ReloadPlan},
};
use crate::{
    control::{Plan, Refused, VipPlan, off_thread},
    dataplane::VipChange,
};

/// What a reload would do, and what that would move
///
/// From the config file as it is now, and the state as it is now; nothing is changed. Backends that are new in the file are
/// taken to be up and reachable.
#[utoipa::path(get, path = "/v1/plan", tag = "daemon", responses(
    (status = 200, body = ReloadPlan, description = "The steps in their order; none if the reload would change nothing"),
    (status = 422, description = "Something in the file is wrong: `errors` has the places"),
    (status = 500, description = "The data plane would refuse, or the maps cannot be read"),
    (status = 503, description = "The daemon has just started, or is about to end"),
))]
pub(super) async fn plan(State(api): Shared) -> Answer<ReloadPlan> {
    let plan = api.control.plan().await?;
    let access = api.access.clone();
    let checked = off_thread(move || access.check()).await?;
    checked.map_err(|error| Refused::Invalid {
        field: None,
        message: format!("the config is good, but not what it names: {error}"),
    })?;
    Ok(Json(render(plan, api.config_file.display().to_string())))
}

fn render(plan: Plan, config_file: String) -> ReloadPlan {
    let vip = |vip: VipPlan| PlanVip {
        name: vip.name,
        change: match vip.change {
            VipChange::Added => PlanChange::Added,
            VipChange::Removed => PlanChange::Removed,
            VipChange::Changed => PlanChange::Changed,
        },
        slots: vip.moved.of,
        slots_moved: vip.moved.slots,
        flows_stay: vip.flows_stay,
        flows_lost: vip.flows_lost,
        flows_shared_with: vip.flows_shared_with,
    };
    let names = plan.assumed_up.iter();
    ReloadPlan {
        config_file,
        config_hash: format!("{:016x}", plan.config_hash),
        steps: plan.steps,
        vips: plan.vips.into_iter().map(vip).collect(),
        assumed_up: names.map(ToString::to_string).collect(),
    }
}
