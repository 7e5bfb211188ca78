//! Who may wait for a connection to a node, and how long. Decides by what it is told; the clock is its caller's.
//!
//! Where less is served than is asked, somebody goes without. Whoever could not be served in time anyway is told so at once, which leaves the
//! others' transfers whole: one that is cut off at its deadline has cost the node its work and the client a connection. Once somebody had
//! to go without, nobody waits long for a while, or until no one has waited for a moment ([`Strain`]). How long a place is awaited follows from how
//! many wait and how long transfers take (Little 1961).

use crate::strain::{Mean, Strain};
use std::time::Duration;

/// What a connection is wanted for: how long it will be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// A question and an answer.
    Words,
    /// Blocks, either way.
    Blocks,
}

/// How somebody waits no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// There is a place.
    ForAPlace,
    /// The time is up: so much there was.
    Late(Duration),
    /// Nobody waits for what it would do.
    Gone,
}

/// Those who wait for one of a few places.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Queue {
    places: usize,
    waiting: usize,
    /// How long a place is taken, whatever for.
    takes: Mean,
    /// The same by [`Work`].
    takes_for: [Mean; 2],
    strain: Strain,
}

impl Queue {
    pub(crate) fn new(places: usize) -> Queue {
        let none = Mean::default();
        Queue {
            places: places.max(1),
            waiting: 0,
            takes: none,
            takes_for: [none; 2],
            strain: Strain::default(),
        }
    }

    /// Begins to wait, with so much time left: no place is free. Returns how long that makes sense; none where it makes none.
    pub(crate) fn enter(&mut self, now: Duration, work: Work, left: Duration) -> Option<Duration> {
        let left = left.as_secs_f64();
        let spare = left - self.takes_for[work as usize].value();
        let turn = self.takes.value() / self.places as f64;
        let allowed = self.strain.allows(now, left, spare, turn);
        let expected = turn * (self.waiting + 1) as f64;
        if allowed <= 0.0 || expected > allowed {
            self.strain.went_without(now, left, self.waiting);
            return None;
        }
        self.waiting += 1;
        self.strain.waits(left);
        Some(Duration::from_secs_f64(allowed))
    }

    /// Waits no more.
    pub(crate) fn leave(&mut self, now: Duration, how: Left) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.strain.ends(now);
        } else if let Left::Late(had) = how {
            self.strain.went_without(now, had.as_secs_f64(), self.waiting);
        }
    }

    /// Gives a place back after something that went well.
    pub(crate) fn took(&mut self, work: Work, time: Duration) {
        self.takes.add(time.as_secs_f64());
        self.takes_for[work as usize].add(time.as_secs_f64());
    }

    /// Gives a place back after the node said that it could not be done in time: those who wait here would wait there, too.
    pub(crate) fn was_late_there(&mut self, now: Duration) {
        self.strain.went_without(now, f64::INFINITY, self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::Work::{Blocks, Words};
    use super::*;
    use std::collections::VecDeque;

    const MS: Duration = Duration::from_millis(1);

    fn usually(takes: Duration) -> Queue {
        let mut queue = Queue::new(4);
        queue.took(Blocks, takes);
        queue
    }

    #[test]
    fn a_burst_that_is_served_in_time_is_served_whole() {
        let mut queue = usually(10 * MS);
        // The last of them waits for twenty transfers of 10 ms at four places, and takes 10 ms itself.
        for _ in 0..20 {
            assert!(queue.enter(MS, Blocks, 61 * MS).is_some());
        }
        assert_eq!(queue.enter(MS, Blocks, 61 * MS), None);
    }

    #[test]
    fn who_could_not_be_served_in_time_is_told_at_once() {
        let mut queue = usually(100 * MS);
        assert_eq!(queue.enter(MS, Blocks, 90 * MS), None, "its own transfer takes longer");
        assert_eq!(queue.enter(MS, Blocks, 200 * MS), Some(100 * MS), "nobody waited: that was no overload");
    }

    /// One that is overrun, with this many who wait.
    fn overrun(queue: &mut Queue, now: Duration) -> usize {
        let mut waiting = 0;
        while queue.enter(now, Blocks, 101 * MS).is_some() {
            waiting += 1;
        }
        waiting
    }

    #[test]
    fn nobody_waits_long_while_others_go_without_until_nobody_waits() {
        let mut queue = usually(MS);
        let waiting = overrun(&mut queue, MS);
        assert_eq!(waiting, 400);
        for left in (1..waiting).rev() {
            queue.leave(2 * MS, Left::ForAPlace);
            let entered = queue.enter(2 * MS, Blocks, 1000 * MS);
            assert_eq!(entered, (left < 20).then_some(5 * MS), "{left}");
            if entered.is_some() {
                queue.leave(2 * MS, Left::ForAPlace);
            }
        }
        queue.leave(2 * MS, Left::ForAPlace);
        // Nobody waits: not for long yet, and then for a tenth of a second.
        assert_eq!(queue.enter(101 * MS, Blocks, 1000 * MS), Some(5 * MS));
        queue.leave(101 * MS, Left::ForAPlace);
        assert_eq!(queue.enter(201 * MS, Blocks, 1000 * MS), Some(999 * MS));
    }

    #[test]
    fn one_whose_time_is_up_is_one_who_went_without() {
        let mut queue = usually(MS);
        assert!((0..2).all(|_| queue.enter(MS, Blocks, 1000 * MS).is_some()));
        queue.leave(MS, Left::Late(1000 * MS));
        assert_eq!(queue.enter(MS, Blocks, 1000 * MS), Some(5 * MS));
    }

    #[test]
    fn many_that_have_time_wait_again_soon_after_a_hiccup_and_later_where_that_was_too_soon() {
        let mut queue = usually(MS);
        let mut now = MS;
        for period in [5000, 10_000, 20_000, 40_000, 40_000] {
            // Somebody waits all the time.
            overrun(&mut queue, now);
            while queue.waiting > 10 {
                queue.leave(now, Left::ForAPlace);
            }
            assert_eq!(queue.enter(now + (period - 1) * MS, Blocks, 1000 * MS), Some(5 * MS), "{period}");
            queue.leave(now, Left::ForAPlace);
            now += (period + 1) * MS;
            assert_eq!(queue.enter(now, Blocks, 1000 * MS), Some(999 * MS), "{period}");
        }
        now += 60_000 * MS;
        overrun(&mut queue, now);
        queue.waiting = 10;
        assert_eq!(queue.enter(now + 5001 * MS, Blocks, 1000 * MS), Some(999 * MS), "that was long ago");
    }

    #[test]
    fn who_has_less_time_than_the_others_goes_without_alone() {
        let mut queue = usually(100 * MS);
        assert!((0..3).all(|_| queue.enter(MS, Blocks, 5000 * MS).is_some()));
        assert_eq!(queue.enter(MS, Blocks, 50 * MS), None);
        assert_eq!(queue.enter(MS, Blocks, 5000 * MS), Some(4900 * MS));
        assert_eq!(queue.enter(MS, Blocks, 260 * MS), Some(160 * MS));
        queue.leave(120 * MS, Left::Late(260 * MS));
        assert_eq!(queue.enter(120 * MS, Blocks, 5000 * MS), Some(4900 * MS));
    }

    #[test]
    fn one_whose_wait_was_cancelled_was_not_late() {
        let mut queue = usually(MS);
        assert!((0..2).all(|_| queue.enter(MS, Blocks, 1000 * MS).is_some()));
        queue.leave(MS, Left::Gone);
        assert_eq!(queue.enter(MS, Blocks, 1000 * MS), Some(999 * MS));
    }

    #[test]
    fn words_need_less_time_than_blocks() {
        let mut queue = usually(200 * MS);
        queue.took(Words, MS);
        assert_eq!(queue.enter(MS, Blocks, 150 * MS), None);
        assert_eq!(queue.enter(MS, Words, 150 * MS), Some(149 * MS));
    }

    #[test]
    fn of_a_node_that_nothing_is_known_of_everybody_waits() {
        let mut queue = Queue::new(1);
        assert!((0..1000).all(|_| queue.enter(MS, Blocks, 5000 * MS) == Some(5000 * MS)));
    }

    /// Serves arrivals at this many times what four places serve, for 400 deadlines; returns how many were served in time, of how many
    /// could have been, and how many of those that were served in the second half had waited longer than they should.
    fn simulated(load: f64, takes_ms: f64, deadline_ms: f64) -> (f64, f64) {
        let mut queue = Queue::new(4);
        let at = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        let (every, end) = (takes_ms / 4.0 / load, 400.0 * deadline_ms);
        let mut free_at = [0.0f64; 4];
        // When they came, and until when they wait.
        let mut waiting: VecDeque<(f64, f64)> = VecDeque::new();
        let (mut good, mut late, mut second_half, mut now) = (0, 0, 0, 0.0);
        let serve = |queue: &mut Queue, free_at: &mut [f64; 4], came: f64, begins: f64| {
            let place = free_at.iter_mut().min_by(|one, other| one.total_cmp(other)).expect("four");
            *place = begins + takes_ms;
            queue.took(Blocks, at(takes_ms));
            u32::from(begins + takes_ms - came <= deadline_ms)
        };
        while now < end {
            // Places that became free before this arrival.
            while let Some(&(came, until)) = waiting.front() {
                let free = free_at.iter().copied().fold(f64::INFINITY, f64::min);
                if free.min(until) > now {
                    break;
                }
                waiting.pop_front();
                let how = if free <= until { Left::ForAPlace } else { Left::Late(at(deadline_ms)) };
                queue.leave(at(free.min(until)), how);
                if free <= until {
                    good += serve(&mut queue, &mut free_at, came, free.max(came));
                    if came > end / 2.0 {
                        second_half += 1;
                        late += u32::from(free - came > 5.0f64.max(2.0 * takes_ms / 4.0) + 1e-6);
                    }
                }
            }
            if free_at.iter().any(|free| *free <= now) {
                good += serve(&mut queue, &mut free_at, now, now);
            } else if let Some(wait) = queue.enter(at(now), Blocks, at(deadline_ms)) {
                waiting.push_back((now, now + wait.as_secs_f64() * 1e3));
            }
            now += every;
        }
        let possible = end / takes_ms * 4.0 * load.min(1.0);
        (f64::from(good) / possible, f64::from(late) / f64::from(second_half.max(1)))
    }

    #[test]
    fn under_three_times_the_load_as_many_are_served_and_each_of_them_soon() {
        for (takes, deadline) in [(1.0, 100.0), (10.0, 200.0), (50.0, 1000.0)] {
            let (share, late) = simulated(0.8, takes, deadline);
            assert!(share > 0.98 && late == 0.0, "{takes} ms: {share}, {late}");
            let (share, late) = simulated(3.0, takes, deadline);
            assert!(share > 0.98, "{takes} ms: {share}");
            assert!(late < 0.05, "{takes} ms: {late}");
        }
    }
}
