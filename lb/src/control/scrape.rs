//! All that metrics show, read from the maps at one moment.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::{
    Control, Dataplane, Figures, Refused, chain, dataplane::Measured, rules::Rules,
    sets::SetFigures,
};
use crate::dataplane::CrowdingByClass;

/// What a scrape of the metrics shows, but for what stands in the view.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    pub figures: Figures,
    /// How full the sketch of the policies' limits is.
    pub crowding: CrowdingByClass,
    /// `None`: not known, since too few packets came while it was measured.
    pub xdp_ns_per_packet: Option<f64>,
    /// Limits set at run time: [`MOST_LIMIT_SERIES`] by id, and the sum of the others.
    pub limits: Vec<(LimitLabel, LimitCounts)>,
    /// The same of rules.
    pub rules: Vec<(LimitLabel, LimitCounts)>,
    /// What packets from the sources of each set were counted.
    pub sets: SetFigures,
}

/// Which limits a series is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitLabel {
    Id(u64),
    /// Those that have no series of their own.
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    pub matched_packets: u64,
    pub dropped_packets: u64,
}

/// So many limits have a series of their own, those that dropped most. There may be 100,000 limits; Prometheus could not
/// bear a series for each.
pub const MOST_LIMIT_SERIES: usize = 100;

impl<P: Dataplane> Control<P> {
    pub(super) fn scrape(&mut self) -> Result<Scrape, Refused> {
        let Measured {
            figures,
            crowding,
            xdp_ns_per_packet,
        } = self.plane.measure().map_err(|error| {
            Refused::Failed(format!("cannot read the maps: {}", chain(&*error)))
        })?;
        let counts = self.limits.counts(&self.plane);
        let rules = Rules::counts(&self.plane);
        Ok(Scrape {
            figures,
            crowding,
            xdp_ns_per_packet,
            limits: self.limit_series.choose(counts),
            rules: self.rule_series.choose(rules),
            sets: self.sets.figures(&self.plane),
        })
    }
}

/// Chooses which limits have a series of their own.
///
/// A counter that falls is taken for one that began anew, and all that it shows for an increase. So a limit that has a
/// series keeps it while it ranks well, and the sum of the others does not change in a scrape where a limit joins or leaves
/// them with what it counted.
#[derive(Debug, Default)]
pub(super) struct LimitSeries {
    own: BTreeSet<u64>,
    /// What `other` showed last, and the sum that this was made from.
    shown: LimitCounts,
    summed: LimitCounts,
}

impl LimitSeries {
    fn choose(&mut self, mut counts: Vec<(u64, LimitCounts)>) -> Vec<(LimitLabel, LimitCounts)> {
        counts.sort_by_key(|(id, count)| {
            (Reverse((count.dropped_packets, count.matched_packets)), *id)
        });
        let own = self.best(&counts);
        let (mut series, mut sum) = (BTreeMap::new(), LimitCounts::default());
        for (id, count) in counts {
            if own.contains(&id) {
                series.insert(LimitLabel::Id(id), count);
            } else {
                sum.matched_packets += count.matched_packets;
                sum.dropped_packets += count.dropped_packets;
            }
        }
        if own == self.own {
            self.shown.matched_packets += sum
                .matched_packets
                .saturating_sub(self.summed.matched_packets);
            self.shown.dropped_packets += sum
                .dropped_packets
                .saturating_sub(self.summed.dropped_packets);
        }
        (self.own, self.summed) = (own, sum);
        series.insert(LimitLabel::Other, self.shown);
        series.into_iter().collect()
    }

    /// From limits in the order of their rank.
    fn best(&self, ranked: &[(u64, LimitCounts)]) -> BTreeSet<u64> {
        let ids = || ranked.iter().map(|(id, _)| *id);
        let first = ids().take(MOST_LIMIT_SERIES / 2);
        let kept = ids()
            .take(2 * MOST_LIMIT_SERIES)
            .filter(|id| self.own.contains(id));
        let mut own = BTreeSet::new();
        for id in first.chain(kept).chain(ids()) {
            if own.len() >= MOST_LIMIT_SERIES {
                break;
            }
            own.insert(id);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(packets: u64) -> LimitCounts {
        LimitCounts {
            matched_packets: 10 * packets,
            dropped_packets: packets,
        }
    }

    fn other(series: &[(LimitLabel, LimitCounts)]) -> LimitCounts {
        series.last().unwrap().1
    }

    /// Limit `id` dropped `of(id)` packets.
    fn limits(number: u64, of: impl Fn(u64) -> u64) -> Vec<(u64, LimitCounts)> {
        (1..=number).map(|id| (id, count(of(id)))).collect()
    }

    #[test]
    fn few_limits_have_a_series_each() {
        let series = LimitSeries::default().choose(limits(3, |id| id));
        let expected = [
            (LimitLabel::Id(1), count(1)),
            (LimitLabel::Id(2), count(2)),
            (LimitLabel::Id(3), count(3)),
            (LimitLabel::Other, LimitCounts::default()),
        ];
        assert_eq!(series, expected);
    }

    #[test]
    fn of_many_those_that_drop_most_have_one() {
        let mut choice = LimitSeries::default();
        let series = choice.choose(limits(100_000, |id| u64::from(id > 99_900) * id));
        assert_eq!(series.len(), MOST_LIMIT_SERIES + 1);
        assert_eq!(series[0].0, LimitLabel::Id(99_901));
        let series = choice.choose(limits(100_000, |id| if id > 99_900 { id } else { 1 }));
        assert_eq!(other(&series), count(99_900));
    }

    #[test]
    fn the_sum_of_the_others_never_falls_and_never_leaps() {
        let mut choice = LimitSeries::default();
        let dropping = |id: u64| 1000 - id;
        choice.choose(limits(300, |_| 0));
        let before = other(&choice.choose(limits(300, dropping)));
        // One of the others drops most of all from now on.
        let rises = |id| if id == 250 { 1_000_000 } else { dropping(id) };
        let after = choice.choose(limits(300, rises));
        assert!(other(&after).dropped_packets >= before.dropped_packets);
        assert!(other(&after).dropped_packets < before.dropped_packets + 1000);
        // Some expire.
        let fewer = choice.choose(limits(200, rises));
        assert!(other(&fewer).dropped_packets >= other(&after).dropped_packets);
        assert!(other(&fewer).dropped_packets < other(&after).dropped_packets + 1000);
    }

    #[test]
    fn a_series_stays_while_its_limit_ranks_well() {
        let mut choice = LimitSeries::default();
        choice.choose(limits(150, |id| 1000 - id));
        // The last 50 are ahead of half of those that have one now.
        let series = choice.choose(limits(150, |id| if id > 100 { 950 } else { 1000 - id }));
        let ids = (1..=100).map(LimitLabel::Id);
        assert!(
            series
                .iter()
                .map(|(label, _)| *label)
                .eq(ids.chain([LimitLabel::Other]))
        );
    }
}
