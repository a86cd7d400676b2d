//! What tells an attack from what peace looks like: predicates that most of its packets fit, and hardly any innocent one.
//!
//! Greedy: of all predicates the one is added that makes the rule fit attack packets most and innocent ones least, until
//! nothing is gained. A rule that innocent packets fit too often is refused; so is a signature that leaves most of the
//! attack. Everything is measured on samples: those since the attack began, and those of peace.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    candidates::candidates,
    header::Header,
    predicate::{Field, Predicate},
};

/// Rules that a signature has at most.
pub const MOST_RULES: usize = 4;

/// One rule of a signature: all of these hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signature(pub Vec<Predicate>);

/// Why a rule is believed to be right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// Samples since the attack began, and of peace.
    pub samples: u32,
    pub peace_samples: u32,
    /// Part of the attack that fits.
    pub coverage: f64,
    /// How many times as often a packet fits now as in peace.
    pub lift: f64,
    /// Part of innocent packets that fits.
    pub predicted_collateral: f64,
}

/// A rule, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub signature: Signature,
    pub evidence: Evidence,
}

/// Why there is no signature.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum NoSignature {
    #[error("{samples} samples of the attack are too few")]
    FewSamples { samples: usize },
    #[error("{samples} samples of peace are too few to tell whom a rule would hit")]
    FewPeaceSamples { samples: usize },
    #[error("nothing fits the attack that does not fit innocent packets as well")]
    NothingSafe,
    #[error("the data plane refused the last one")]
    Refused,
}

/// What is known of an attack.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a> {
    /// Of the attacked VIP and class, since the attack began: innocent ones are among them.
    pub attack: &'a [Header],
    /// Of the VIP, from before.
    pub peace: &'a [Header],
    /// The part of `attack` that is as it was in peace, by the rates: 0 to 1.
    pub innocent_share: f64,
}

/// Finds the fewest rules that together fit 80% of an attack.
///
/// # Errors
/// There are none that are safe.
pub fn find(
    samples: &Samples<'_>,
    allowed: impl Fn(&Signature) -> bool,
) -> Result<Vec<Found>, NoSignature> {
    let (attack, peace) = (samples.attack.len(), samples.peace.len());
    if attack < LEAST_SAMPLES {
        return Err(NoSignature::FewSamples { samples: attack });
    }
    if peace < LEAST_PEACE_SAMPLES {
        return Err(NoSignature::FewPeaceSamples { samples: peace });
    }
    let search = Search::new(samples);
    for least_coverage in [COVERAGE, COVERAGE / 2.0, COVERAGE / MOST_RULES as f64] {
        if let Some(found) = search.rules(least_coverage, &allowed) {
            return Ok(found);
        }
    }
    Err(NoSignature::NothingSafe)
}

/// A rule fits so much of an attack, alone or with others.
const COVERAGE: f64 = 0.8;
const LEAST_LIFT: f64 = 10.0;
/// Part of innocent packets that all rules together may fit.
pub const MOST_COLLATERAL: f64 = 0.001;
/// With so many, shares are right within some percent.
pub const LEAST_SAMPLES: usize = 200;
const LEAST_PEACE_SAMPLES: usize = 100;
/// More predicates fit the samples better, and what comes next worse.
const MOST_PREDICATES: usize = 5;
const GAIN: f64 = 1e-9;
/// Predicates that only make a rule narrower, and of how many packets of the attack each may lose one.
const MOST_NARROWING: usize = 2;
const NARROWING_LOSES: usize = 50;

struct Search<'a> {
    attack: Vec<&'a Header>,
    peace: Vec<&'a Header>,
    innocent_share: f64,
    /// How many of the samples are the attack's, which is what coverage is a part of.
    attackers: f64,
}

impl<'a> Search<'a> {
    fn new(samples: &Samples<'a>) -> Self {
        let innocent_share = samples.innocent_share.clamp(0.0, 0.9);
        Self {
            attack: samples.attack.iter().collect(),
            peace: samples.peace.iter().collect(),
            innocent_share,
            attackers: samples.attack.len() as f64 * (1.0 - innocent_share),
        }
    }

    /// Rules that each cover at least `least`, and 80% together.
    fn rules(&self, least: f64, allowed: &impl Fn(&Signature) -> bool) -> Option<Vec<Found>> {
        let mut left = self.attack.clone();
        let mut found: Vec<Found> = Vec::new();
        let (mut coverage, mut collateral) = (0.0, 0.0);
        while coverage < COVERAGE && found.len() < MOST_RULES {
            let rule = self.rule(&left, least)?;
            collateral += rule.evidence.predicted_collateral;
            if collateral > MOST_COLLATERAL || !allowed(&rule.signature) {
                return None;
            }
            coverage += rule.evidence.coverage;
            left.retain(|header| !rule.signature.fits(header));
            found.push(rule);
        }
        (coverage >= COVERAGE).then_some(found)
    }

    /// The best rule for what is left of the attack.
    fn rule(&self, left: &[&'a Header], least: f64) -> Option<Found> {
        let mut fits: Vec<&Header> = left.to_vec();
        let mut innocent: Vec<&Header> = self.peace.clone();
        let mut rule: Vec<Predicate> = Vec::new();
        let mut score = f64::MIN;
        while rule.len() < MOST_PREDICATES {
            let Some(best) = self.best(&rule, &fits, &innocent, least) else {
                break;
            };
            if best.score <= score + GAIN {
                break;
            }
            score = best.score;
            fits.retain(|header| best.predicate.holds(header));
            innocent.retain(|header| best.predicate.holds(header));
            rule.push(best.predicate);
        }
        for _ in 0..MOST_NARROWING {
            let Some(predicate) = self.narrowing(&rule, &fits) else {
                break;
            };
            fits.retain(|header| predicate.holds(header));
            innocent.retain(|header| predicate.holds(header));
            rule.push(predicate);
        }
        let evidence = self.evidence(fits.len(), innocent.len());
        let safe = evidence.coverage >= least
            && evidence.lift >= LEAST_LIFT
            && evidence.predicted_collateral <= MOST_COLLATERAL;
        (safe && !rule.is_empty()).then_some(Found {
            signature: Signature(rule),
            evidence,
        })
    }

    /// The predicate on a field that the rule does not have yet which makes it best.
    fn best(
        &self,
        rule: &[Predicate],
        fits: &[&Header],
        innocent: &[&Header],
        least: f64,
    ) -> Option<Best> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a number of samples"
        )]
        let least_fits = (self.attackers * least) as usize;
        let mut best: Option<Best> = None;
        for field in Field::ALL {
            if rule.iter().any(|predicate| predicate.field() == field) {
                continue;
            }
            for predicate in candidates(field, fits, least_fits) {
                let count = |headers: &[&Header]| {
                    headers
                        .iter()
                        .filter(|header| predicate.holds(header))
                        .count()
                };
                let (fits, innocent) = (count(fits), count(innocent));
                let coverage = self.coverage(fits, innocent);
                if coverage < least {
                    continue;
                }
                let score = coverage * self.lift(fits, innocent).ln();
                if best.as_ref().is_none_or(|best| score > best.score + GAIN) {
                    best = Some(Best { predicate, score });
                }
            }
        }
        best
    }

    /// A predicate that costs hardly anything of the attack, and that most of peace does not fit: samples show innocent
    /// packets only that are not too rare.
    fn narrowing(&self, rule: &[Predicate], fits: &[&Header]) -> Option<Predicate> {
        let least = fits.len() - fits.len() / NARROWING_LOSES;
        let open = Field::ALL.into_iter().filter(|field| {
            let has = |predicate: &Predicate| predicate.field() == *field;
            !rule.iter().any(has)
        });
        let share = |predicate: &Predicate| {
            let holds = |header: &&&Header| predicate.holds(header);
            self.peace.iter().filter(holds).count()
        };
        open.flat_map(|field| candidates(field, fits, least))
            .filter(|predicate| {
                fits.iter().filter(|header| predicate.holds(header)).count() >= least
            })
            .map(|predicate| (share(&predicate), predicate))
            .filter(|(share, _)| *share < self.peace.len() / 2)
            .min_by_key(|(share, predicate)| (*share, predicate.field()))
            .map(|(_, predicate)| predicate)
    }

    fn evidence(&self, fits: usize, innocent: usize) -> Evidence {
        let samples = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Evidence {
            samples: samples(self.attack.len()),
            peace_samples: samples(self.peace.len()),
            coverage: self.coverage(fits, innocent),
            lift: self.lift(fits, innocent),
            predicted_collateral: innocent as f64 / self.peace.len() as f64,
        }
    }

    /// The part of the attack among what fits: innocent packets fit as they did in peace.
    fn coverage(&self, fits: usize, innocent: usize) -> f64 {
        let in_peace = innocent as f64 / self.peace.len() as f64;
        let innocent_now = self.attack.len() as f64 * self.innocent_share * in_peace;
        ((fits as f64 - innocent_now) / self.attackers).clamp(0.0, 1.0)
    }

    fn lift(&self, fits: usize, innocent: usize) -> f64 {
        let now = fits as f64 / self.attack.len() as f64;
        // One that was not seen may be there all the same.
        let in_peace = (innocent as f64).max(0.5) / self.peace.len() as f64;
        now / in_peace
    }
}

struct Best {
    predicate: Predicate,
    score: f64,
}

impl Signature {
    pub fn fits(&self, header: &Header) -> bool {
        self.0.iter().all(|predicate| predicate.holds(header))
    }

    /// Whether every packet that fits `other` fits this.
    pub fn covers(&self, other: &Self) -> bool {
        let covered = |mine: &Predicate| other.0.iter().any(|theirs| mine.covers(theirs));
        self.0.iter().all(covered)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, predicate) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{predicate}")?;
        }
        Ok(())
    }
}
