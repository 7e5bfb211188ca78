//! Whether a history of calls is linearizable: whether there is an order of them, each taking effect at one moment between its call
//! and its return, in which one machine would have given the same answers. The search is that of Wing and Gong with Lowe's memory of
//! what was tried; a history is parted by object before, since objects are linearizable exactly if each of them is.
//!
//! A call whose outcome nobody knows may have taken effect at any time since, or never.

use std::collections::BTreeSet;

/// What one object does, given as what an answer makes of its state.
pub trait Object {
    /// What it remembers.
    type State: Clone + Ord;
    /// A call with its answer, or without one where nobody knows it.
    type Call;

    /// Returns the state that it begins with.
    fn first() -> Self::State;

    /// Returns the state after a call; none where this machine would not have answered so.
    fn step(state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// One call of a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event<C> {
    /// When it was called. No two times of a history are the same.
    pub called: u64,
    /// When it returned; none where its outcome is unknown.
    pub returned: Option<u64>,
    /// The call, with its answer.
    pub call: C,
}

/// What a check came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none; so many calls could be put in order at most.
    Refused {
        /// Calls of the longest order that was found.
        longest: usize,
    },
    /// The search took more steps than it was given.
    Undecided,
}

/// Call and return of events, in the order of time: which event, and whether it is its return.
struct Entries {
    /// `(event, is_return)`.
    list: Vec<(usize, bool)>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Where each event's call and return are.
    call_at: Vec<usize>,
    return_at: Vec<usize>,
}

/// Place before the first entry, and after the last.
const ENDS: usize = 0;

impl Entries {
    fn new<C>(events: &[Event<C>]) -> Entries {
        let mut times: Vec<(u64, usize, bool)> = Vec::with_capacity(events.len() * 2);
        for (at, event) in events.iter().enumerate() {
            times.push((event.called, at, false));
            times.push((event.returned.unwrap_or(u64::MAX), at, true));
        }
        times.sort_by_key(|(time, at, is_return)| (*time, *is_return, *at));
        let mut entries = Entries {
            list: vec![(usize::MAX, false)],
            next: (1..=times.len()).chain([ENDS]).collect(),
            before: std::iter::once(times.len()).chain(0..times.len()).collect(),
            call_at: vec![0; events.len()],
            return_at: vec![0; events.len()],
        };
        for (_, event, is_return) in times {
            let place = entries.list.len();
            if is_return {
                entries.return_at[event] = place
            } else {
                entries.call_at[event] = place
            }
            entries.list.push((event, is_return));
        }
        entries
    }

    fn cut(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = next;
        self.before[next] = before;
    }

    /// Undoes the last cut that is not undone yet.
    fn mend(&mut self, place: usize) {
        let (before, next) = (self.before[place], self.next[place]);
        self.next[before] = place;
        self.before[next] = place;
    }
}

/// Checks a history of one object, in `budget` steps at most.
pub fn check<O: Object>(events: &[Event<O::Call>], budget: u64) -> Verdict {
    let mut entries = Entries::new(events);
    let mut done = vec![0u64; events.len().div_ceil(64)];
    let mut tried: BTreeSet<(Vec<u64>, O::State)> = BTreeSet::new();
    let mut order: Vec<(usize, O::State)> = Vec::new();
    let mut state = O::first();
    let mut left = events.iter().filter(|event| event.returned.is_some()).count();
    let mut longest = 0;
    let mut at = entries.next[ENDS];
    for _ in 0..budget {
        // What is left are calls that nobody knows the outcome of: they may never have happened.
        if left == 0 {
            return Verdict::Linearizable;
        }
        let (event, is_return) = entries.list[at];
        if at != ENDS && !is_return {
            if let Some(after) = O::step(&state, &events[event].call) {
                done[event / 64] |= 1 << (event % 64);
                if tried.insert((done.clone(), after.clone())) {
                    order.push((event, std::mem::replace(&mut state, after)));
                    longest = longest.max(order.len());
                    left -= usize::from(events[event].returned.is_some());
                    entries.cut(entries.call_at[event]);
                    entries.cut(entries.return_at[event]);
                    at = entries.next[ENDS];
                    continue;
                }
                done[event / 64] &= !(1 << (event % 64));
            }
            at = entries.next[at];
            continue;
        }
        // Something returned that could not be put before: the last one that was put is taken back.
        let Some((event, before)) = order.pop() else { return Verdict::Refused { longest } };
        state = before;
        done[event / 64] &= !(1 << (event % 64));
        left += usize::from(events[event].returned.is_some());
        entries.mend(entries.return_at[event]);
        entries.mend(entries.call_at[event]);
        at = entries.next[entries.call_at[event]];
    }
    Verdict::Undecided
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// A register.
    struct Register;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Call {
        Write(u8),
        Read(u8),
        /// Writes where it holds the first; says whether it did, if that is known.
        Swap(u8, u8, Option<bool>),
    }

    impl Object for Register {
        type State = u8;
        type Call = Call;

        fn first() -> u8 {
            0
        }

        fn step(state: &u8, call: &Call) -> Option<u8> {
            match *call {
                Call::Write(value) => Some(value),
                Call::Read(value) => (value == *state).then_some(*state),
                Call::Swap(old, new, said) => {
                    let does = old == *state;
                    said.is_none_or(|said| said == does).then_some(if does { new } else { *state })
                }
            }
        }
    }

    fn event(called: u64, returned: impl Into<Option<u64>>, call: Call) -> Event<Call> {
        Event { called, returned: returned.into(), call }
    }

    fn verdict(events: &[Event<Call>]) -> Verdict {
        check::<Register>(events, 1_000_000)
    }

    #[test]
    fn calls_one_after_the_other_are_what_they_say() {
        use Call::{Read, Write};
        let good = [event(1, 2, Write(1)), event(3, 4, Read(1)), event(5, 6, Write(2)), event(7, 8, Read(2))];
        assert_eq!(verdict(&good), Verdict::Linearizable);
        assert_eq!(verdict(&[]), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_refused() {
        use Call::{Read, Write};
        let stale = [event(1, 2, Write(1)), event(3, 4, Write(2)), event(5, 6, Read(1))];
        assert_eq!(verdict(&stale), Verdict::Refused { longest: 2 });
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_and_a_later_one_no_older() {
        use Call::{Read, Write};
        let beside =
            |first, second| [event(1, 10, Write(1)), event(2, 3, Read(first)), event(4, 5, Read(second))];
        assert_eq!(verdict(&beside(0, 1)), Verdict::Linearizable);
        assert_eq!(verdict(&beside(1, 1)), Verdict::Linearizable);
        assert_eq!(verdict(&beside(0, 0)), Verdict::Linearizable);
        assert!(matches!(verdict(&beside(1, 0)), Verdict::Refused { .. }), "it goes back");
    }

    #[test]
    fn two_who_both_swapped_the_same_value_are_refused() {
        let twice = [event(1, 5, Call::Swap(0, 1, Some(true))), event(2, 6, Call::Swap(0, 2, Some(true)))];
        assert!(matches!(verdict(&twice), Verdict::Refused { .. }));
        let once = [event(1, 5, Call::Swap(0, 1, Some(true))), event(2, 6, Call::Swap(0, 2, Some(false)))];
        assert_eq!(verdict(&once), Verdict::Linearizable);
    }

    #[test]
    fn a_call_of_unknown_outcome_may_happen_late_or_never_but_not_twice() {
        use Call::{Read, Write};
        let unknown = |reads: &[u8]| {
            let mut events = vec![event(1, None, Write(7)), event(2, 3, Write(1))];
            let from = |at: usize| 4 + 2 * at as u64;
            events.extend(
                reads.iter().enumerate().map(|(at, value)| event(from(at), from(at) + 1, Read(*value))),
            );
            verdict(&events)
        };
        assert_eq!(unknown(&[1, 1]), Verdict::Linearizable, "never");
        assert_eq!(unknown(&[1, 7]), Verdict::Linearizable, "late");
        assert!(matches!(unknown(&[7, 1]), Verdict::Refused { .. }), "what was overwritten comes back");
        assert!(matches!(unknown(&[1, 7, 1]), Verdict::Refused { .. }));
    }

    #[test]
    fn too_few_steps_decide_nothing() {
        let events: Vec<_> = (0..9).map(|at| event(at, at + 100, Call::Write(at as u8))).collect();
        assert_eq!(check::<Register>(&events, 3), Verdict::Undecided);
    }

    /// A history as one machine would give it: each call takes effect at a moment between its call and its return.
    fn honest(random: &mut Random, count: u64) -> Vec<Event<Call>> {
        let mut clients = [1u64; 4];
        let mut planned: Vec<(u64, u64, u64, u64)> = Vec::new();
        for _ in 0..count {
            let client = random.below(4) as usize;
            // Times of different clients differ, as their last digit does.
            let called = clients[client] + random.between(1, 20);
            let effect = called + random.between(1, 20);
            let returned = effect + random.between(1, 20);
            clients[client] = returned;
            let last = client as u64;
            planned.push((effect * 10 + last, called * 10 + last, returned * 10 + last, random.draw()));
        }
        planned.sort_unstable();
        let mut value = 0;
        let mut events = Vec::new();
        for (_, called, returned, draw) in planned {
            let (old, new) = ((draw >> 8) as u8 % 4, (draw >> 16) as u8 % 4);
            let call = match draw % 3 {
                0 => Call::Read(value),
                1 => Call::Write(new),
                _ => Call::Swap(old, new, Some(old == value)),
            };
            value = Register::step(&value, &call).expect("it is what one machine says");
            events.push(event(called, returned, call));
        }
        events
    }

    #[test]
    fn what_one_machine_says_is_always_accepted_and_a_planted_stale_read_never() {
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let events = honest(&mut random, 60);
            assert_eq!(verdict(&events), Verdict::Linearizable, "seed {seed}");
            // At the end, when all is quiet, a value that the register does not have.
            let end = events.iter().filter_map(|event| event.returned).max().unwrap_or_default();
            let mut planted = events.clone();
            planted.push(event(end + 1, end + 2, Call::Write(9)));
            planted.push(event(end + 3, end + 4, Call::Read(0)));
            assert!(matches!(verdict(&planted), Verdict::Refused { .. }), "seed {seed}");
        }
    }
}
