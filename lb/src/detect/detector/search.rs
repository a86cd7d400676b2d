//! The search for rules among samples of what still comes through, against those of peace.

use super::{Detector, Scope, respond::SETTLE_MS};
use crate::{
    config::Class,
    detect::{
        header::Header,
        mitigation::{Measure, Mitigation},
        recent::{Taken, VipIndex},
        signature::{self, Found, MOST_RULES, NoSignature, Samples, Signature},
    },
};

/// Whose samples are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose {
    Vip(VipIndex),
    /// Of VIPs that are not attacked by themselves.
    Calm,
    /// Of all that are.
    Attacked,
}

/// Packets of a class.
pub(super) struct Sampled {
    pub(super) attack: Vec<Header>,
    pub(super) peace: Vec<Header>,
}

impl Whose {
    /// What rules against them are for.
    const fn rules_of(self) -> Scope {
        match self {
            Self::Vip(vip) => Some(vip),
            Self::Calm | Self::Attacked => None,
        }
    }
}

impl Detector {
    pub(super) fn find(
        &self,
        whose: Whose,
        class: Class,
        sampled: &Sampled,
        now_ms: u64,
    ) -> Result<Vec<Found>, NoSignature> {
        let name = self.name(whose.rules_of());
        let waits = |mitigation: &Mitigation| {
            let is_rule = matches!(mitigation.measure, Measure::Rule(_));
            is_rule && mitigation.is_of(name, class) && mitigation.waits(now_ms)
        };
        if self.mitigations.values().any(waits) {
            return Err(NoSignature::Refused);
        }
        let samples = Samples {
            attack: &sampled.attack,
            peace: &sampled.peace,
            innocent_share: self.innocent_share(whose, class),
        };
        let allowed = |signature: &Signature| {
            let measure = Measure::Rule(signature.clone());
            !self.is_reverted(name, class, &measure)
        };
        let found = signature::find(&samples, allowed)?;
        let active = self.rules(name).filter(|rule| rule.is_active()).count();
        if active + found.len() > MOST_RULES {
            return Err(NoSignature::NothingSafe);
        }
        Ok(found)
    }

    /// The part of what no rule stops that is as it was in peace.
    fn innocent_share(&self, whose: Whose, class: Class) -> f64 {
        let ours = self.vips.iter().filter(|(index, vip)| match whose {
            Whose::Vip(vip) => **index == vip,
            Whose::Calm => !vip.is_attacked(class),
            Whose::Attacked => vip.is_attacked(class),
        });
        let (usual, now) = ours.fold((0, 0), |(usual, now), (_, vip)| {
            let watch = &vip.watched.classes[class as usize];
            let usual_pps = watch.trigger.packets.usual();
            (usual + usual_pps, now + watch.unruled.pps)
        });
        usual as f64 / now.max(1) as f64
    }

    /// Samples of what still comes through, and of peace.
    pub(super) fn samples(&self, whose: Whose, class: Class, from_ms: u64) -> Sampled {
        let name = self.name(whose.rules_of());
        let attacked = |vip: VipIndex| {
            let vip = self.vips.get(&vip);
            vip.is_some_and(|vip| vip.is_attacked(class))
        };
        let rules: Vec<&Signature> = self
            .rules(name)
            .filter(|rule| rule.is_active())
            .filter_map(|rule| match &rule.measure {
                Measure::Rule(signature) => Some(signature),
                _ => None,
            })
            .collect();
        let ours = |taken: &&Taken| match whose {
            Whose::Vip(vip) => taken.vip == vip,
            Whose::Calm => !attacked(taken.vip),
            Whose::Attacked => attacked(taken.vip),
        };
        let attack: Vec<Header> = self
            .recent
            .since(from_ms)
            .filter(ours)
            .map(|taken| taken.header)
            .filter(|header| header.is_of(class) && !rules.iter().any(|rule| rule.fits(header)))
            .collect();
        let all = match whose {
            Whose::Vip(vip) => self.recent.peace(vip).to_vec(),
            Whose::Calm | Whose::Attacked => self.recent.peace_of_all(MOST_PEACE),
        };
        Sampled {
            attack: thinned(attack, MOST_ATTACK),
            peace: peace_of(class, all),
        }
    }

    /// Whether several VIPs are attacked by themselves.
    pub(super) fn is_spread(&self, class: Class) -> bool {
        let attacked = self.vips.values().filter(|vip| vip.is_attacked(class));
        attacked.count() > 1
    }

    /// Whether a rule for all VIPs is so new that its effect is not seen yet.
    pub(super) fn raised_lately(&self, class: Class, now_ms: u64) -> bool {
        self.rules(None)
            .any(|rule| rule.class == class && now_ms < rule.created_ms + SETTLE_MS)
    }
}

/// Innocent packets of a class. Where peace had too few of it to tell a share, others stand for them, so that a rule which
/// fits a single one is refused.
fn peace_of(class: Class, all: Vec<Header>) -> Vec<Header> {
    let (mut of_class, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|header| header.is_of(class));
    let missing = FEWEST_PEACE.saturating_sub(of_class.len());
    of_class.extend(others.into_iter().take(missing));
    of_class
}

/// At most so many, evenly over time.
fn thinned(headers: Vec<Header>, most: usize) -> Vec<Header> {
    let step = headers.len().div_ceil(most).max(1);
    headers.into_iter().step_by(step).collect()
}

const MOST_ATTACK: usize = 1_000;
const MOST_PEACE: usize = 4_096;
/// Fewer cannot show a share of a thousandth.
const FEWEST_PEACE: usize = 999;
