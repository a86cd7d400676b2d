//! What is done about an attack while too much of it comes through: a rule, or the next step of the ladder.

use super::{
    Decision, Detector, Scope,
    search::{Sampled, Whose},
};
use crate::{
    config::Class,
    detect::{
        ladder::{self, Situation},
        mitigation::Measure,
        signature::NoSignature,
        trigger::TICK_MS,
    },
};

/// What is being done about an attack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    began_ms: u64,
    /// Samples from here on show what is left of it.
    samples_from_ms: u64,
    next_search_ms: u64,
    /// Whether more came through than may, in each of the last ticks.
    above: u8,
}

impl Response {
    /// To an attack that is found now; `since_ms` is the first tick above the trigger.
    pub(super) fn begin(now_ms: u64, since_ms: u64) -> Self {
        Self {
            began_ms: now_ms,
            samples_from_ms: since_ms.saturating_sub(TICK_MS),
            next_search_ms: now_ms,
            // This tick and the one before decided it.
            above: 1,
        }
    }
}

impl Detector {
    /// Raises what is needed against what still comes through.
    pub(super) fn respond(
        &mut self,
        scope: Scope,
        class: Class,
        now_ms: u64,
        decisions: &mut Vec<Decision>,
    ) {
        let Some((response, above)) = self.due(scope, class, now_ms) else {
            return;
        };
        let whose = scope.map_or(Whose::Calm, Whose::Vip);
        let samples = self.samples(whose, class, response.samples_from_ms);
        let mut found = self.find(whose, class, &samples, now_ms);
        let mut rules_of = scope;
        if let Err(NoSignature::FewSamples { .. }) = found
            && self.is_spread(class)
        {
            if self.raised_lately(class, now_ms) {
                return;
            }
            // The samples of one VIP among many may be too few, and those of all enough.
            let samples = self.samples(Whose::Attacked, class, response.samples_from_ms);
            if let Ok(spread) = self.find(Whose::Attacked, class, &samples, now_ms) {
                found = Ok(spread);
                rules_of = None;
            }
        }
        let next_search_ms = match found {
            Ok(found) => {
                for rule in found {
                    let Some(mut seen) = self.seen(scope, class) else {
                        break;
                    };
                    seen.vip = self.name(rules_of).map(str::to_owned);
                    let measure = Measure::Rule(rule.signature);
                    self.raise(seen, measure, Some(rule.evidence), now_ms, decisions);
                }
                now_ms + SETTLE_MS
            }
            Err(NoSignature::FewSamples { .. }) if now_ms < response.began_ms + PATIENCE_MS => {
                now_ms
            }
            Err(why) => {
                let measure = self.climb(scope, class, &samples, now_ms);
                let acts = measure.as_ref().is_some_and(|m| *m != Measure::Upstream);
                if let Some(measure) = measure.filter(|_| above)
                    && let Some(seen) = self.seen(scope, class)
                {
                    let no_rule = Decision::NoRule {
                        seen: seen.clone(),
                        why,
                    };
                    decisions.push(no_rule);
                    self.raise(seen, measure, None, now_ms, decisions);
                }
                now_ms + if acts { STEP_MS } else { RETRY_MS }
            }
        };
        if let Some(response) = self.response_mut(scope, class) {
            response.next_search_ms = next_search_ms;
            if next_search_ms > now_ms + RETRY_MS {
                response.samples_from_ms = now_ms;
                response.above = 0;
            }
        }
    }

    /// The response to an attack that something is to be done about now, and whether too much of it comes through.
    fn due(&mut self, scope: Scope, class: Class, now_ms: u64) -> Option<(Response, bool)> {
        let thresholds = self.settings.thresholds;
        let watch = &mut self.watched_mut(scope)?.classes[class as usize];
        let response = watch.response.as_mut()?;
        let level = watch.trigger.level(&thresholds)?;
        let above = watch.left.exceeds(level);
        response.above = (response.above << 1 | u8::from(above)) & 7;
        let above = above && response.above.count_ones() >= 2;
        // What is only held by limits is still looked at: a rule would spare the innocent among it.
        let unruled = watch.unruled.exceeds(level);
        ((above || unruled) && now_ms >= response.next_search_ms).then_some((*response, above))
    }

    fn response_mut(&mut self, scope: Scope, class: Class) -> Option<&mut Response> {
        let watched = self.watched_mut(scope)?;
        watched.classes[class as usize].response.as_mut()
    }

    /// The next measure where there is no rule.
    fn climb(&self, scope: Scope, class: Class, samples: &Sampled, now_ms: u64) -> Option<Measure> {
        let watch = &self.watched_of(scope)?.classes[class as usize];
        let name = self.name(scope);
        let situation = Situation {
            class,
            rates: watch.left,
            high_pps: watch.trigger.packets.high(),
            floor_pps: self.settings.thresholds.floor.pps,
            cap_factor: self.settings.cap_factor,
            attack: &samples.attack,
            peace: &samples.peace,
        };
        ladder::next(&situation, |measure| {
            // Measures other than rules are of one VIP.
            let local = scope.is_none() && *measure != Measure::Upstream;
            let was_tried = self.mitigations.values().any(|mitigation| {
                (mitigation.is_active() || mitigation.waits(now_ms))
                    && mitigation.is_of(name, class)
                    && mitigation.measure.word() == measure.word()
            });
            local || was_tried || self.is_reverted(name, class, measure)
        })
    }

    /// Has what is done about an attack decided anew at the next tick: what was refused leaves it as it was.
    pub(super) fn reconsider(&mut self, vip: Option<&str>, class: Class, now_ms: u64) {
        let vips = self.vips.values_mut();
        let ours = vips.filter(|known| vip.is_none_or(|name| known.name == name));
        let all = vip.is_none().then_some(&mut self.all);
        let scopes = ours.map(|vip| &mut vip.watched).chain(all);
        let classes =
            scopes.filter_map(|watched| watched.classes[class as usize].response.as_mut());
        for response in classes {
            response.next_search_ms = now_ms;
            response.samples_from_ms = now_ms.saturating_sub(SETTLE_MS);
            response.above = 1;
        }
    }
}

/// How long to wait for samples before something else is done.
const PATIENCE_MS: u64 = 300;
/// How long what was raised has to show itself in the counters.
pub(super) const SETTLE_MS: u64 = 500;
/// How long a measure has before the next is taken.
const STEP_MS: u64 = 2_000;
/// When to look again if nothing could be done.
const RETRY_MS: u64 = 300;
