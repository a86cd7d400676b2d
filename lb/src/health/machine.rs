//! When a run of good or bad checks changes what we think of a backend.

/// What is known of a backend's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Too few checks so far.
    Unknown,
    Up,
    Down,
}

/// How soon the next check is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Ordinary,
    /// The state is not known, or the last results speak against it.
    Fast,
}

/// Counts results in a row.
///
/// The first success ever makes a backend `Up` at once, so that a start does not wait for `rise` intervals. From then
/// on `rise` successes in a row bring it up, and `fall` failures in a row bring it down.
#[derive(Clone, Debug)]
pub struct Machine {
    state: State,
    rise: u32,
    fall: u32,
    /// Results in a row that speak against `state`.
    against: u32,
}

impl Machine {
    /// Of a backend that was never checked. A count of 0 means 1.
    pub fn new(rise: u32, fall: u32) -> Self {
        Self::resume(State::Unknown, rise, fall)
    }

    /// Of a backend that is already known to be in this state.
    pub fn resume(state: State, rise: u32, fall: u32) -> Self {
        Self {
            state,
            rise,
            fall,
            against: 0,
        }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn pace(&self) -> Pace {
        if self.state == State::Unknown || self.against > 0 {
            Pace::Fast
        } else {
            Pace::Ordinary
        }
    }

    /// Takes the result of one check. Returns the new state if this changed it.
    pub fn observe(&mut self, ok: bool) -> Option<State> {
        let (next, needed) = match (self.state, ok) {
            (State::Up, true) | (State::Down, false) => {
                self.against = 0;
                return None;
            }
            (State::Unknown, true) => (State::Up, 1),
            (State::Down, true) => (State::Up, self.rise),
            (State::Unknown | State::Up, false) => (State::Down, self.fall),
        };
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.state = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn the_first_success_decides_then_rise_and_fall_count() {
        let mut machine = Machine::new(2, 3);
        let results = [
            false, true, false, false, true, false, false, false, true, false, true, true,
        ];
        let states: Vec<_> = results.iter().map(|ok| machine.observe(*ok)).collect();
        let mut expected = [None; 12];
        expected[1] = Some(State::Up);
        expected[7] = Some(State::Down);
        expected[11] = Some(State::Up);
        assert_eq!(states, expected);
    }

    #[test]
    fn a_backend_that_never_answers_goes_down() {
        let mut machine = Machine::new(2, 2);
        assert_eq!(machine.observe(false), None);
        assert_eq!(machine.state(), State::Unknown);
        assert_eq!(machine.observe(false), Some(State::Down));
    }

    #[test]
    fn checks_are_quicker_while_the_state_is_in_doubt() {
        use Pace::{Fast, Ordinary};
        use State::{Down, Up};

        let mut machine = Machine::new(2, 3);
        assert_eq!(machine.pace(), Fast, "unknown");
        let results = [
            true, false, false, true, false, false, false, false, true, true,
        ];
        let paces = results.map(|ok| {
            machine.observe(ok);
            (machine.state(), machine.pace())
        });
        assert_eq!(
            paces,
            [
                (Up, Ordinary),
                (Up, Fast),
                (Up, Fast),
                (Up, Ordinary),
                (Up, Fast),
                (Up, Fast),
                (Down, Ordinary),
                (Down, Ordinary),
                (Down, Fast),
                (Up, Ordinary)
            ]
        );
    }

    proptest! {
        #[test]
        fn a_change_needs_its_run(rise in 0..5u32, fall in 0..5u32, results in prop::collection::vec(any::<bool>(), 0..200)) {
            let mut machine = Machine::new(rise, fall);
            let (mut run, mut last) = (0, None);
            for ok in results {
                run = if last == Some(ok) { run + 1 } else { 1 };
                last = Some(ok);
                let before = machine.state();
                let change = machine.observe(ok);
                prop_assert_eq!(change.is_some(), machine.state() != before);
                let needed = match (before, ok) {
                    (State::Unknown, true) => 1,
                    (_, true) => rise.max(1),
                    (_, false) => fall.max(1),
                };
                let wanted = if ok { State::Up } else { State::Down };
                if change.is_some() {
                    prop_assert_eq!(machine.state(), wanted);
                    prop_assert!(run >= needed);
                }
                prop_assert!(run < needed || machine.state() == wanted);
            }
        }
    }
}
