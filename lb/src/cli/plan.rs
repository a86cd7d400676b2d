//! `sluice plan`: what a reload would do, in words.

use super::{Failed, client::Client, output::Output};
use crate::api::model::{PlanChange, PlanVip, ReloadPlan};

pub(super) async fn show(client: &Client, output: Output) -> Result<(), Failed> {
    let plan: ReloadPlan = client.get("/v1/plan").await?;
    output.show(&plan, text)
}

fn text(plan: &ReloadPlan) -> String {
    if plan.steps.is_empty() {
        return "a reload would change nothing".into();
    }
    let steps = match plan.steps.len() {
        1 => "1 step".to_owned(),
        many => format!("{many} steps"),
    };
    let mut lines = vec![format!("a reload would take {steps}:")];
    lines.extend(plan.steps.iter().map(|step| format!("  {step}")));
    lines.extend(plan.vips.iter().map(vip));
    if !plan.assumed_up.is_empty() {
        let new = plan.assumed_up.join(", ");
        lines.push(format!("once these are up, which are new: {new}"));
    }
    lines.join("\n")
}

fn vip(vip: &PlanVip) -> String {
    let with = match vip.flows_shared_with.as_slice() {
        [] => String::new(),
        others => format!(" (with those of {})", others.join(", ")),
    };
    let stay = format!("about {} live flows stay{with}", vip.flows_stay);
    let what = match (vip.change, vip.flows_lost) {
        (PlanChange::Added, _) => "new".to_owned(),
        (PlanChange::Removed, _) if vip.flows_shared_with.is_empty() => {
            format!("removed, about {} live flows end", vip.flows_lost)
        }
        (PlanChange::Removed, lost) => {
            format!("removed, its live flows end, of about {lost}{with}")
        }
        (PlanChange::Changed, 0) => format!("{} of slots, {stay}", share(vip)),
        (PlanChange::Changed, lost) => {
            format!("{} of slots, {stay}, {lost} lose their backend", share(vip))
        }
    };
    format!("VIP {}: {what}", vip.name)
}

/// In percent; what moves at all is more than nothing.
fn share(vip: &PlanVip) -> String {
    let percent = f64::from(vip.slots_moved) * 100.0 / f64::from(vip.slots.max(1));
    if vip.slots_moved > 0 && percent < 0.1 {
        "less than 0.1%".into()
    } else {
        format!("{percent:.1}%")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str, slots_moved: u32) -> PlanVip {
        PlanVip {
            name: name.into(),
            change: PlanChange::Changed,
            slots: 65_537,
            slots_moved,
            flows_stay: 340,
            flows_lost: 0,
            flows_shared_with: Vec::new(),
        }
    }

    #[test]
    fn a_plan_is_told_in_words() {
        let nothing = ReloadPlan {
            config_file: "sluice.toml".into(),
            config_hash: "0".into(),
            steps: Vec::new(),
            vips: Vec::new(),
            assumed_up: Vec::new(),
        };
        assert_eq!(text(&nothing), "a reload would change nothing");
        let one = ReloadPlan {
            steps: vec!["put lookup table of pool web".into()],
            vips: vec![
                changed("web", 1_376),
                PlanVip {
                    flows_lost: 7,
                    ..changed("dns", 1)
                },
                PlanVip {
                    change: PlanChange::Removed,
                    flows_stay: 0,
                    flows_lost: 12,
                    ..changed("old", 65_537)
                },
                PlanVip {
                    change: PlanChange::Removed,
                    flows_stay: 0,
                    flows_lost: 12,
                    flows_shared_with: vec!["web".into()],
                    ..changed("alias", 65_537)
                },
                PlanVip {
                    change: PlanChange::Added,
                    ..changed("new", 65_537)
                },
            ],
            assumed_up: vec!["web/10.0.0.3".into()],
            ..nothing
        };
        let expected = "a reload would take 1 step:\n  put lookup table of pool web\n\
             VIP web: 2.1% of slots, about 340 live flows stay\n\
             VIP dns: less than 0.1% of slots, about 340 live flows stay, 7 lose their backend\n\
             VIP old: removed, about 12 live flows end\n\
             VIP alias: removed, its live flows end, of about 12 (with those of web)\n\
             VIP new: new\n\
             once these are up, which are new: web/10.0.0.3";
        assert_eq!(text(&one), expected);
    }
}
