//! Who of a pool takes new flows, and how large a share each has: a pure function of health and time.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    config::{AllDown, Pool},
    health::{State, Status},
};

/// A backend of the pool, as far as its share depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member<'a> {
    /// `None`: not checked yet.
    pub(super) status: Option<&'a Status>,
    /// It can be reached, is not draining, and has a weight.
    pub(super) ready: bool,
    /// It takes new flows now.
    pub(super) held: bool,
    pub(super) weight: u16,
}

/// What becomes of one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Zero: no new flows.
    pub(super) weight: u16,
    /// Though it is down, it takes packets, for want of others.
    pub(super) last_known: bool,
}

/// The share of each member, in their order.
pub(super) fn shares(pool: &Pool, members: &[Member<'_>], now: Instant) -> Vec<Share> {
    let takers: BTreeSet<usize> = indices(members, |member| {
        member.ready
            && match member.state() {
                State::Up => true,
                // Until more is known, nothing is moved: neither to it nor away.
                State::Unknown => member.held,
                State::Down => false,
            }
    });
    if takers.is_empty() && pool.all_down == AllDown::LastKnown {
        return last_known(pool, members);
    }
    let steps: Vec<u16> = members
        .iter()
        .map(|member| step(pool.slow_start, member.status, now))
        .collect();
    let ramp = takers.iter().any(|&index| steps[index] < STEPS);
    let weigh = |(index, member): (usize, &Member<'_>)| Share {
        weight: match (takers.contains(&index), ramp) {
            (false, _) => 0,
            (true, false) => member.weight,
            (true, true) => member.weight * steps[index],
        },
        last_known: false,
    };
    members.iter().enumerate().map(weigh).collect()
}

/// When a weight changes next without any event.
pub(super) fn next_step(slow_start: Duration, status: &Status, now: Instant) -> Option<Instant> {
    let returned = returned(status)?;
    (1..STEPS)
        .map(|step| returned + slow_start * step.into() / u32::from(STEPS - 1))
        .find(|time| *time > now)
}

/// A returning backend has a quarter of its weight at first, then two and three, and all of it after `slow_start`.
///
/// A power of two: a table whose weights are all so many times as large is the same table.
const STEPS: u16 = 4;

fn step(slow_start: Duration, status: Option<&Status>, now: Instant) -> u16 {
    let Some(returned) = status.and_then(returned) else {
        return STEPS;
    };
    let passed = now.saturating_duration_since(returned);
    (1..STEPS)
        .find(|step| passed < slow_start * (*step).into() / u32::from(STEPS - 1))
        .unwrap_or(STEPS)
}

/// When a backend that is up came back. One that was up from its first check on did not.
fn returned(status: &Status) -> Option<Instant> {
    status.returned.filter(|_| status.state == State::Up)
}

/// Those that went down last, together: no longer before the very last than it can take to notice. If nobody was ever
/// up, all.
fn last_known(pool: &Pool, members: &[Member<'_>]) -> Vec<Share> {
    let lost = |member: &Member<'_>| member.status.and_then(|status| status.lost);
    let down = |member: &&Member<'_>| member.ready && member.state() == State::Down;
    let last = members.iter().filter(down).filter_map(lost).max();
    let stands_in = |member: &Member<'_>| {
        down(&member)
            && last.is_none_or(|last| {
                lost(member).is_some_and(|lost| last - lost <= pool.health.detection_time())
            })
    };
    let share = |member: &Member<'_>| {
        if stands_in(member) {
            Share {
                weight: member.weight,
                last_known: true,
            }
        } else {
            Share::default()
        }
    };
    members.iter().map(share).collect()
}

fn indices(members: &[Member<'_>], wanted: impl Fn(&Member<'_>) -> bool) -> BTreeSet<usize> {
    let wanted = |(_, member): &(usize, &Member<'_>)| wanted(member);
    members
        .iter()
        .enumerate()
        .filter(wanted)
        .map(|(index, _)| index)
        .collect()
}

impl Member<'_> {
    fn state(&self) -> State {
        self.status.map_or(State::Unknown, |status| status.state)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::config;

    fn pool(extra: &str) -> Pool {
        let text = format!(
            "[pop]\nname = \"ams\"\nid = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n\
             [[pool]]\nname = \"web\"\n{extra}\nbackend = [{{ address = \"10.0.0.1\" }}]\n\
             health = {{ kind = \"icmp\", interval = \"1s\", timeout = \"500ms\", fall = 3, jitter = \"100ms\" }}\n"
        );
        config::parse(&text, "sluice.toml").unwrap().pools.remove(0)
    }

    fn status(state: State) -> Status {
        Status::new(state, SystemTime::UNIX_EPOCH)
    }

    fn member(status: &Status) -> Member<'_> {
        Member {
            status: Some(status),
            ready: true,
            held: false,
            weight: 10,
        }
    }

    fn weights(pool: &Pool, members: &[Member<'_>], now: Instant) -> Vec<u16> {
        let shares = shares(pool, members, now);
        shares.iter().map(|share| share.weight).collect()
    }

    #[test]
    fn until_health_is_known_nothing_is_moved() {
        let (up, unknown) = (status(State::Up), status(State::Unknown));
        let held = Member {
            held: true,
            ..member(&unknown)
        };
        let unready = Member {
            ready: false,
            ..held
        };
        let unchecked = Member {
            status: None,
            ..held
        };
        let members = [member(&up), member(&unknown), held, unready, unchecked];
        assert_eq!(
            weights(&pool(""), &members, Instant::now()),
            [10, 0, 10, 0, 10]
        );
    }

    #[test]
    fn a_returning_backend_gets_its_weight_in_steps() {
        let pool = pool("slow_start = \"30s\"");
        let start = Instant::now();
        let (always, mut back) = (status(State::Up), status(State::Up));
        back.returned = Some(start);
        let at = |seconds| {
            let now = start + Duration::from_secs(seconds);
            weights(&pool, &[member(&always), member(&back)], now)
        };
        assert_eq!(at(0), [40, 10]);
        assert_eq!(at(9), [40, 10]);
        assert_eq!(at(10), [40, 20]);
        assert_eq!(at(20), [40, 30]);
        assert_eq!(at(30), [10, 10]);

        let (mut now, mut times) = (start, Vec::new());
        while let Some(next) = next_step(pool.slow_start, &back, now) {
            times.push((next - start).as_secs());
            now = next;
        }
        assert_eq!(times, [10, 20, 30]);
        assert_eq!(next_step(pool.slow_start, &always, start), None);
    }

    #[test]
    fn without_slow_start_a_returning_backend_has_its_whole_weight() {
        let mut back = status(State::Up);
        let now = Instant::now();
        back.returned = Some(now);
        assert_eq!(weights(&pool(""), &[member(&back)], now), [10]);
        assert_eq!(next_step(Duration::ZERO, &back, now), None);
    }

    #[test]
    fn those_that_went_down_together_are_kept_when_nobody_is_left() {
        let start = Instant::now();
        let down = |seconds: f64| Status {
            lost: Some(start + Duration::from_secs_f64(seconds)),
            ..status(State::Down)
        };
        // It takes 4 intervals, the timeout and the jitter at most: 4.6 s.
        let (long_ago, together, last) = (down(0.0), down(95.5), down(100.0));
        let never = status(State::Down);
        let unready = Member {
            ready: false,
            ..member(&last)
        };
        let members = [
            member(&long_ago),
            member(&together),
            member(&last),
            member(&never),
            unready,
        ];
        let kept = Share {
            weight: 10,
            last_known: true,
        };
        let none = Share::default();
        assert_eq!(
            shares(&pool("all_down = \"last_known\""), &members, start),
            [none, kept, kept, none, none]
        );
        assert_eq!(shares(&pool(""), &members, start), [none; 5]);

        let up = status(State::Up);
        let with_one_up = [member(&up), member(&last)];
        assert_eq!(
            weights(&pool("all_down = \"last_known\""), &with_one_up, start),
            [10, 0]
        );
    }

    #[test]
    fn if_nobody_was_ever_up_all_are_kept() {
        let never = status(State::Down);
        let shares = shares(
            &pool("all_down = \"last_known\""),
            &[member(&never), member(&never)],
            Instant::now(),
        );
        assert!(shares.iter().all(|share| share.last_known));
    }
}
