//! Sessions that are expected back: which block each of them left off at, when to bring it up, and when it is overdue. What is
//! done then is the shard's.

use kvhive_protocol::Moment;
use kvhive_protocol::data::Hint;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Sessions that are awaited at a time. Of more, who has most has the one forgotten that is expected last.
const MAX_AWAITED: usize = 4096;
/// A session is looked for before it is due by this part of the time it was said to take, and by at least so much.
const LEAD_PART: u32 = 8;
const LEAST_LEAD: Duration = Duration::from_millis(500);
/// It is overdue after so many times the time it was said to take, and at least so much.
const PATIENCE: u32 = 4;
const LEAST_PATIENCE: Duration = Duration::from_secs(60);
/// The longest time that a session is said to take.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a tool call is taken to last before any was seen to end.
const FIRST_CALL: Duration = Duration::from_secs(5);
/// A tool call that lasts longer than this is taken never to end; those that end are learnt from, also when they are overdue.
const LONGEST_CALL: Duration = Duration::from_secs(3600);
/// Part of what was learnt which each call that ends replaces.
const CALL_RATE: f64 = 0.125;

/// What is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// The session that left off at this block is about to come.
    Soon(u32, u32),
    /// It has not come for much longer than was said.
    Overdue(u32, u32),
}

/// How far the waiting has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Early,
    Near,
    /// Given up; should it come yet, that is learnt from.
    Late,
}

pub(crate) struct Awaited {
    generation: u32,
    party: u16,
    hint: Hint,
    told: Moment,
    stage: Stage,
    /// When the next stage begins.
    next: Moment,
    overdue: Moment,
}

/// The sessions that are awaited, by the record of the block that they left off at.
#[derive(Default)]
pub(crate) struct Expected {
    awaited: BTreeMap<u32, Awaited>,
    times: BTreeSet<(Moment, u32)>,
    /// The same of each party that awaits any.
    times_of: BTreeMap<u16, BTreeSet<(Moment, u32)>>,
    /// Running mean of how long a party's tool calls last, in seconds.
    call_s: BTreeMap<u16, f64>,
}

impl Expected {
    pub(crate) fn is_empty(&self) -> bool {
        self.awaited.is_empty()
    }

    /// The session that left off at this block, of a party, is expected as `hint` says, or no more. Returns how many had to be
    /// forgotten for it, itself perhaps.
    pub(crate) fn expect(
        &mut self,
        now: Moment,
        (at, generation): (u32, u32),
        party: u16,
        hint: Hint,
    ) -> u64 {
        self.forget(at);
        let wait = match hint {
            Hint::Pending => {
                self.call_s.get(&party).map_or(FIRST_CALL, |mean| Duration::from_secs_f64(*mean))
            }
            Hint::Returns(seconds) => Duration::from_secs(seconds.into()).min(LONGEST),
            Hint::None | Hint::Over => return 0,
        };
        let next = now + wait.saturating_sub((wait / LEAD_PART).max(LEAST_LEAD));
        let overdue = now + (wait * PATIENCE).max(LEAST_PATIENCE);
        self.put(at, Awaited { generation, party, hint, told: now, stage: Stage::Early, next, overdue });
        if self.awaited.len() <= MAX_AWAITED {
            return 0;
        }
        let most = self.times_of.values().max_by_key(|times| times.len());
        if let Some((_, last)) = most.and_then(|times| times.last().copied()) {
            self.forget(last);
        }
        1
    }

    /// The block was used: whoever left off there has come.
    pub(crate) fn came(&mut self, now: Moment, at: u32, generation: u32) {
        let Some(awaited) = self.forget(at).filter(|one| one.generation == generation) else { return };
        if awaited.hint == Hint::Pending {
            let lasted = now.since(awaited.told).min(LONGEST_CALL).as_secs_f64();
            let mean = self.call_s.entry(awaited.party).or_insert(FIRST_CALL.as_secs_f64());
            *mean += CALL_RATE * (lasted - *mean);
        }
    }

    /// Returns the records of the blocks that sessions are awaited at.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = u32> + '_ {
        self.awaited.keys().copied()
    }

    fn put(&mut self, at: u32, awaited: Awaited) {
        self.times.insert((awaited.next, at));
        self.times_of.entry(awaited.party).or_default().insert((awaited.next, at));
        self.awaited.insert(at, awaited);
    }

    /// Nobody is awaited at this block any more: it has gone, or the session goes on within the request that it left off in.
    pub(crate) fn forget(&mut self, at: u32) -> Option<Awaited> {
        let awaited = self.awaited.remove(&at)?;
        self.times.remove(&(awaited.next, at));
        let times = self.times_of.get_mut(&awaited.party).expect("who is awaited is awaited by a party");
        times.remove(&(awaited.next, at));
        if times.is_empty() {
            self.times_of.remove(&awaited.party);
        }
        Some(awaited)
    }

    /// Returns the next thing that is due, once.
    pub(crate) fn due(&mut self, now: Moment) -> Option<Due> {
        loop {
            let (when, at) = *self.times.first()?;
            if when > now {
                return None;
            }
            let mut awaited = self.forget(at).expect("a time is of someone awaited");
            let generation = awaited.generation;
            match awaited.stage {
                Stage::Early => {
                    (awaited.stage, awaited.next) = (Stage::Near, awaited.overdue);
                    self.put(at, awaited);
                    return Some(Due::Soon(at, generation));
                }
                Stage::Near => {
                    (awaited.stage, awaited.next) = (Stage::Late, awaited.told + LONGEST_CALL);
                    if awaited.hint == Hint::Pending && awaited.next > now {
                        self.put(at, awaited);
                    }
                    return Some(Due::Overdue(at, generation));
                }
                Stage::Late => {}
            }
        }
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
        expected.expect(at(0), (7, 1), 0, Hint::Returns(40));
        assert_eq!(expected.due(at(34_999)), None);
        assert_eq!(expected.due(at(35_000)), Some(Due::Soon(7, 1)));
        assert_eq!(expected.due(at(159_999)), None);
        assert_eq!(expected.due(at(160_000)), Some(Due::Overdue(7, 1)));
        assert_eq!((expected.due(at(u64::MAX / 2_000_000)), expected.is_empty()), (None, true));
    }

    #[test]
    fn who_has_come_or_has_ended_is_awaited_no_more() {
        let mut expected = Expected::default();
        expected.expect(at(0), (1, 1), 0, Hint::Returns(1));
        expected.came(at(400), 1, 1);
        expected.expect(at(0), (2, 1), 0, Hint::Returns(1));
        expected.expect(at(500), (2, 1), 0, Hint::Over);
        assert!(expected.is_empty() && expected.due(at(100_000)).is_none());
    }

    /// Tells what is due until then; says how much was.
    fn tend(expected: &mut Expected, until_ms: u64) -> usize {
        std::iter::from_fn(|| expected.due(at(until_ms))).count()
    }

    #[test]
    fn how_long_a_tool_call_lasts_is_learnt_also_when_it_is_overdue() {
        let mut expected = Expected::default();
        for round in 0..60 {
            expected.expect(at(round * 100_000), (1, 1), 3, Hint::Pending);
            tend(&mut expected, round * 100_000 + 79_999);
            expected.came(at(round * 100_000 + 80_000), 1, 1);
        }
        expected.expect(at(10_000_000), (1, 1), 3, Hint::Pending);
        expected.expect(at(10_000_000), (2, 1), 4, Hint::Pending);
        assert_eq!(expected.due(at(10_004_500)), Some(Due::Soon(2, 1)), "another's calls are its own");
        assert_eq!(expected.due(at(10_059_999)), None);
        assert_eq!(expected.due(at(10_060_000)), Some(Due::Overdue(2, 1)));
        assert_eq!(expected.due(at(10_069_000)), None);
        assert_eq!(expected.due(at(10_075_000)), Some(Due::Soon(1, 1)));
    }

    #[test]
    fn who_never_comes_is_forgotten_in_the_end() {
        let mut expected = Expected::default();
        expected.expect(at(0), (1, 1), 0, Hint::Pending);
        assert_eq!((tend(&mut expected, 3_599_999), expected.is_empty()), (2, false));
        assert_eq!((tend(&mut expected, 3_600_000), expected.is_empty()), (0, true));
    }

    #[test]
    fn of_too_many_sessions_who_has_most_has_its_latest_forgotten() {
        let mut expected = Expected::default();
        for one in 0..MAX_AWAITED as u32 {
            assert_eq!(expected.expect(at(0), (one, 1), 1, Hint::Returns(1000 + one)), 0);
        }
        let other = MAX_AWAITED as u32;
        assert_eq!(expected.expect(at(0), (other, 1), 2, Hint::Returns(100_000)), 1);
        assert!(expected.awaited.contains_key(&other) && !expected.awaited.contains_key(&(other - 1)));
        assert_eq!(expected.expect(at(0), (other + 1, 1), 1, Hint::Returns(100_000)), 1);
        assert!(!expected.awaited.contains_key(&(other + 1)), "the others come before");
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
                    expected.expect(at(now), (one, generation), (one % 3) as u16, hint);
                }
                told.remove(&one);
                while let Some(due) = expected.due(at(now)) {
                    let (Due::Soon(one, _) | Due::Overdue(one, _)) = due;
                    let before = told.entry(one).or_default();
                    prop_assert_eq!(before.len(), usize::from(matches!(due, Due::Overdue(..))));
                    before.push(due);
                }
                let of_parties: usize = expected.times_of.values().map(BTreeSet::len).sum();
                prop_assert_eq!((expected.times.len(), of_parties), (expected.awaited.len(), expected.awaited.len()));
            }
        }
    }
}
