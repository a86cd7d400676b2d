//! How the checks of one backend follow each other, whatever makes them.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant},
};

use super::{CheckError, Key, Machine, Report, Schedule, State, Target};

/// When one backend is checked, and what is thought of it.
pub(super) struct Course {
    key: Key,
    pub(super) id: u64,
    schedule: Schedule,
    machine: Machine,
    random: Random,
    last_error: Option<String>,
    /// Since when the times are counted at which checks begin together.
    epoch: Instant,
}

/// First checks are made within this time, or within an interval if that is shorter.
const START: Duration = Duration::from_secs(1);

impl Course {
    /// Of a backend that is known to be in this state. The first check comes soon, spread as the later ones are.
    pub(super) fn new(target: &Target, id: u64, state: State, epoch: Instant) -> Self {
        let health = &target.health;
        let mut random = Random(seed(target));
        let first = START.min(health.interval).mul_f64(random.next());
        Self {
            key: target.key(),
            id,
            schedule: Schedule::new(health, Instant::now() + first),
            machine: Machine::resume(state, health.rise, health.fall),
            random,
            last_error: None,
            epoch,
        }
    }

    /// When the next check begins.
    pub(super) fn next(&mut self) -> Instant {
        let pace = self.machine.pace();
        let due = self.schedule.begins(pace, self.random.next());
        self.schedule.together(due, pace, self.epoch)
    }

    /// A check has ended. Returns what is to be told, if that is something new.
    pub(super) fn ended(&mut self, error: Option<CheckError>) -> Option<Report> {
        let is_unmade = error.as_ref().is_some_and(CheckError::is_ours);
        let changed = !is_unmade && self.machine.observe(error.is_none()).is_some();
        self.schedule.advance(self.machine.pace(), Instant::now());
        let error = error.map(|error| match is_unmade {
            true => format!("this host cannot check it: {error}"),
            false => error.to_string(),
        });
        if !changed && error == self.last_error {
            return None;
        }
        self.last_error.clone_from(&error);
        Some(Report {
            key: self.key.clone(),
            id: self.id,
            state: self.machine.state(),
            error,
            is_unmade,
        })
    }
}

/// Different for each target, and the same after a restart: so first checks are spread evenly, always in the same way.
fn seed(target: &Target) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&target.pool, target.address).hash(&mut hasher);
    hasher.finish()
}

/// Numbers from 0 to 1, for what needs to be uneven and no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((mixed ^ mixed >> 31) >> 32).unwrap_or(u32::MAX);
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        net::{IpAddr, Ipv4Addr},
    };

    use super::*;
    use crate::{config::Check, health::tests::target};

    #[test]
    fn what_this_host_cannot_check_stays_what_it_was() {
        let failed = |code| CheckError::Connect(io::Error::from_raw_os_error(code));
        let web = target("web", 1, Check::Tcp { port: 80 });
        let begin = |state| Course::new(&web, 0, state, Instant::now());
        for state in [State::Unknown, State::Up, State::Down] {
            let mut course = begin(state);
            for error in [
                failed(libc::EMFILE),
                failed(libc::ENFILE),
                failed(libc::EADDRNOTAVAIL),
                CheckError::Send(io::Error::from_raw_os_error(libc::ENOBUFS)),
                CheckError::Blind(io::Error::from_raw_os_error(libc::EINVAL)),
                CheckError::NoPinger(io::Error::from_raw_os_error(libc::EPERM)),
            ] {
                let report = course.ended(Some(error)).unwrap();
                assert!(report.is_unmade);
                assert_eq!(report.state, state, "{:?}", report.error);
            }
        }

        // It takes two failures, whatever is between them.
        let mut course = begin(State::Up);
        let report = course.ended(Some(failed(libc::ECONNREFUSED))).unwrap();
        assert_eq!((report.state, report.is_unmade), (State::Up, false));
        assert!(course.ended(Some(failed(libc::EMFILE))).is_some());
        assert!(course.ended(Some(failed(libc::EMFILE))).is_none(), "told");
        let report = course.ended(Some(failed(libc::ECONNREFUSED))).unwrap();
        assert_eq!((report.state, report.is_unmade), (State::Down, false));
    }

    #[test]
    fn checks_are_spread_over_the_interval() {
        let mut quarters = [0; 4];
        for n in 0..4000_u32 {
            let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n));
            let phase = Random(seed(&Target {
                address,
                ..target("web", 1, Check::None)
            }))
            .next();
            let quarter = (0..4)
                .find(|quarter| phase < f64::from(quarter + 1) / 4.0)
                .unwrap();
            quarters[usize::try_from(quarter).unwrap()] += 1;
        }
        assert!(
            quarters.iter().all(|count| (900..1100).contains(count)),
            "{quarters:?}"
        );
    }
}
