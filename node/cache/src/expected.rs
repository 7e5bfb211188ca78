//! Sessions that are expected back: which block each of them left off at, when to bring it up, and when it is overdue. What is
//! done then is the shard's.

use kvhive_protocol::Moment;
use kvhive_protocol::data::Hint;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Sessions that are awaited at a time; of more, the new ones are not.
const MAX_AWAITED: usize = 4096;
/// A session is looked for before it is due by this part of the time it was said to take, and by at least so much.
const LEAD_PART: u32 = 8;
const LEAST_LEAD: Duration = Duration::from_millis(500);
/// It is overdue after so many times the time it was said to take, and at least so much.
const PATIENCE: u32 = 4;
const LEAST_PATIENCE: Duration = Duration::from_secs(60);
/// The longest that a session is awaited.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a tool call is taken to last before any was seen to end.
const FIRST_CALL: Duration = Duration::from_secs(5);
/// Part of that which each call that ends replaces.
const CALL_RATE: f64 = 0.125;

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// The session that left off at this block is about to come.
    Soon(u32, u32),
    /// It has not come for much longer than was said.
    Overdue(u32, u32),
}

struct Awaited {
    generation: u32,
    hint: Hint,
    told: Moment,
    /// What happens next, and when.
    next: Moment,
    overdue: Moment,
    is_near: bool,
}

/// The sessions that are awaited, by the record of the block that they left off at.
#[derive(Default)]
pub(crate) struct Expected {
    awaited: BTreeMap<u32, Awaited>,
    times: BTreeSet<(Moment, u32)>,
    /// Running mean of how long a tool call lasts, in seconds.
    call_s: Option<f64>,
}

impl Expected {
    pub(crate) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// The session that left off at this block is expected as `hint` says, or no more.
    pub(crate) fn expect(&mut self, now: Moment, at: u32, generation: u32, hint: Hint) {
        self.forget(at);
        let wait = match hint {
            Hint::Pending => self.call_s.map_or(FIRST_CALL, Duration::from_secs_f64),
            Hint::Returns(seconds) => Duration::from_secs(seconds.into()).min(LONGEST),
            Hint::None | Hint::Over => return,
        };
        if self.awaited.len() >= MAX_AWAITED {
            return;
        }
        let begin = now + wait.saturating_sub((wait / LEAD_PART).max(LEAST_LEAD));
        let overdue = now + (wait * PATIENCE).max(LEAST_PATIENCE);
        let awaited = Awaited { generation, hint, told: now, next: begin, overdue, is_near: false };
        self.times.insert((awaited.next, at));
        self.awaited.insert(at, awaited);
    }

    /// The session that left off at this block goes on within the request that it did so in.
    pub(crate) fn go_on(&mut self, at: u32) {
        self.forget(at);
    }

    /// The block was used: whoever left off there has come.
    pub(crate) fn came(&mut self, now: Moment, at: u32, generation: u32) {
        let Some(awaited) = self.forget(at).filter(|one| one.generation == generation) else { return };
        if awaited.hint == Hint::Pending {
            let lasted = now.since(awaited.told).min(LONGEST).as_secs_f64();
            let mean = self.call_s.unwrap_or(FIRST_CALL.as_secs_f64());
            self.call_s = Some(mean + CALL_RATE * (lasted - mean));
        }
    }

    fn forget(&mut self, at: u32) -> Option<Awaited> {
        let awaited = self.awaited.remove(&at)?;
        self.times.remove(&(awaited.next, at));
        Some(awaited)
    }

    /// Returns the next thing that is due, once.
    pub(crate) fn due(&mut self, now: Moment) -> Option<Due> {
        let (when, at) = *self.times.first()?;
        if when > now {
            return None;
        }
        self.times.pop_first();
        let awaited = self.awaited.get_mut(&at).expect("a time is of someone awaited");
        let generation = awaited.generation;
        if awaited.is_near {
            self.awaited.remove(&at);
            return Some(Due::Overdue(at, generation));
        }
        awaited.is_near = true;
        awaited.next = awaited.overdue;
        self.times.insert((awaited.next, at));
        Some(Due::Soon(at, generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_session_is_looked_for_before_it_is_due_and_given_up_long_after() {
        let mut expected = Expected::default();
        expected.expect(at(0), 7, 1, Hint::Returns(40));
        assert_eq!(expected.due(at(34_999)), None);
        assert_eq!(expected.due(at(35_000)), Some(Due::Soon(7, 1)));
        assert_eq!(expected.due(at(159_999)), None);
        assert_eq!(expected.due(at(160_000)), Some(Due::Overdue(7, 1)));
        assert_eq!((expected.due(at(u64::MAX / 2_000_000)), expected.is_empty()), (None, true));
    }

    #[test]
    fn who_has_come_or_has_ended_is_awaited_no_more() {
        let mut expected = Expected::default();
        expected.expect(at(0), 1, 1, Hint::Returns(1));
        expected.came(at(400), 1, 1);
        expected.expect(at(0), 2, 1, Hint::Returns(1));
        expected.expect(at(500), 2, 1, Hint::Over);
        assert!(expected.is_empty() && expected.due(at(100_000)).is_none());
    }

    #[test]
    fn how_long_a_tool_call_lasts_is_learnt() {
        let mut expected = Expected::default();
        for round in 0..60 {
            expected.expect(at(round * 100_000), 1, 1, Hint::Pending);
            expected.came(at(round * 100_000 + 80_000), 1, 1);
        }
        expected.expect(at(10_000_000), 1, 1, Hint::Pending);
        assert_eq!(expected.due(at(10_060_000)), None);
        assert_eq!(expected.due(at(10_075_000)), Some(Due::Soon(1, 1)));
    }

    proptest! {
        #[test]
        fn nobody_is_told_twice_or_too_early(steps in prop::collection::vec((0u32..8, 0u8..4, 0u32..100, 0u64..50_000), 1..200)) {
            let (mut expected, mut now) = (Expected::default(), 0);
            let mut told: BTreeMap<u32, Vec<Due>> = BTreeMap::new();
            for (generation, (one, what, seconds, later)) in (1u32..).zip(steps) {
                now += later;
                if what == 0 {
                    expected.came(at(now), one, generation);
                } else {
                    let hint = [Hint::Pending, Hint::Returns(seconds), Hint::Over][usize::from(what) - 1];
                    expected.expect(at(now), one, generation, hint);
                }
                told.remove(&one);
                while let Some(due) = expected.due(at(now)) {
                    let (Due::Soon(one, _) | Due::Overdue(one, _)) = due;
                    let before = told.entry(one).or_default();
                    prop_assert_eq!(before.len(), usize::from(matches!(due, Due::Overdue(..))));
                    before.push(due);
                }
                prop_assert_eq!(expected.times.len(), expected.awaited.len());
            }
        }
    }
}
