//! Attacks begin and end: each tick is shown to the triggers of all classes.

use super::{ALL_CLASSES, AttackSeen, Decision, Detector, Response, Scope};
use crate::{
    config::Stance,
    detect::trigger::{Lesson, Turn},
};

impl Detector {
    /// Lets the triggers of a scope see this tick.
    pub(super) fn watch(&mut self, scope: Scope, now_ms: u64, decisions: &mut Vec<Decision>) {
        if scope.is_none() {
            self.sum_up();
        }
        let thresholds = self.settings.thresholds;
        let (name, off) = match scope {
            Some(vip) => match self.vips.get(&vip) {
                Some(vip) => (Some(vip.name.clone()), vip.stance == Stance::Off),
                None => return,
            },
            None => (
                None,
                self.settings.stance == Stance::Off || self.vips.len() < 2,
            ),
        };
        let Some(watched) = self.watched_mut(scope) else {
            return;
        };
        let attacked = watched.is_attacked();
        let lesson = if attacked {
            Lesson::Skip
        } else {
            Lesson::Learn
        };
        let mut begins = false;
        for class in ALL_CLASSES {
            let watch = &mut watched.classes[class as usize];
            let peak = watch.trigger.attack().map(|attack| attack.peak);
            let turn = watch.trigger.tick(now_ms, watch.rates, lesson, &thresholds);
            let seen = |rates| AttackSeen {
                vip: name.clone(),
                class,
                rates,
                trigger: watch.trigger.level(&thresholds).unwrap_or_default(),
            };
            match turn {
                Turn::Begins => {
                    begins = true;
                    let since = watch
                        .trigger
                        .attack()
                        .map_or(now_ms, |attack| attack.since_ms);
                    if !off {
                        decisions.push(Decision::AttackBegan(seen(watch.rates)));
                        watch.response = Some(Response::begin(now_ms, since));
                    }
                }
                Turn::Ends => {
                    watched.attacked_until_ms = Some(now_ms);
                    if watch.response.take().is_some() {
                        decisions.push(Decision::AttackEnded(seen(peak.unwrap_or_default())));
                    }
                }
                Turn::Unjudged if !off => {
                    decisions.push(Decision::Unjudged(AttackSeen {
                        trigger: thresholds.floor,
                        ..seen(watch.rates)
                    }));
                }
                Turn::Peace | Turn::Unjudged | Turn::GoesOn => {}
            }
        }
        if begins {
            for watch in &mut watched.classes {
                watch.trigger.forget_lately();
            }
        }
    }
}
