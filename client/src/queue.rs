//! Who may wait for a connection to a node, and how long. Decides by what it is told; the clock is its caller's.
//!
//! Where less is served than is asked, somebody goes without. Whoever could not be served in time anyway is told so at once, which leaves the
//! others' transfers whole: one that is cut off at its deadline has cost the node its work and the client a connection. Once somebody had
//! to go without, nobody waits long until no one waits any more: as many are served, and each of them soon (a standing queue is told from a
//! burst as by CoDel: Nichols and Jacobson 2012, RFC 8289; shedding by the time in a queue: Maurer, "Fail at scale", 2015). How long a place is
//! awaited follows from how many wait and how long transfers take (Little 1961).

use std::time::Duration;

/// So many transfers say what they take on average.
const REMEMBERED: f64 = 8.0;
/// So long one may wait though others go without.
const SHORT: f64 = 0.005;
/// Or so many transfers' time, where that is more.
const SHORT_TRANSFERS: f64 = 2.0;

/// Those who wait for one of a few places.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Queue {
    places: usize,
    waiting: usize,
    /// How long a place is taken on average, in seconds; 0 while nothing is known.
    takes: f64,
    /// Transfers that say so, up to [`REMEMBERED`].
    seen: f64,
    /// Whether somebody had to go without since nobody waited.
    is_overrun: bool,
}

impl Queue {
    pub(crate) fn new(places: usize) -> Queue {
        Queue { places: places.max(1), waiting: 0, takes: 0.0, seen: 0.0, is_overrun: false }
    }

    /// Begins to wait, with so much time left: no place is free. Returns how long that makes sense; none where it makes none.
    pub(crate) fn enter(&mut self, left: Duration) -> Option<Duration> {
        let spare = left.as_secs_f64() - self.takes;
        let allowed =
            if self.is_overrun { spare.min(SHORT.max(SHORT_TRANSFERS * self.takes)) } else { spare };
        let expected = self.takes * (self.waiting + 1) as f64 / self.places as f64;
        if allowed <= 0.0 || expected > allowed {
            self.is_overrun |= self.waiting > 0;
            return None;
        }
        self.waiting += 1;
        Some(Duration::from_secs_f64(allowed))
    }

    /// Waits no more: there is a place, or the time is up.
    pub(crate) fn leave(&mut self, has_place: bool) {
        self.waiting = self.waiting.saturating_sub(1);
        self.is_overrun = self.waiting > 0 && (self.is_overrun || !has_place);
    }

    /// Gives a place back after a transfer that went well.
    pub(crate) fn took(&mut self, time: Duration) {
        self.seen = (self.seen + 1.0).min(REMEMBERED);
        self.takes += (time.as_secs_f64() - self.takes) / self.seen;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const MS: Duration = Duration::from_millis(1);

    fn usually(takes: Duration) -> Queue {
        let mut queue = Queue::new(4);
        queue.took(takes);
        queue
    }

    #[test]
    fn a_burst_that_is_served_in_time_is_served_whole() {
        let mut queue = usually(10 * MS);
        // The last of them waits for twenty transfers of 10 ms at four places, and takes 10 ms itself.
        for _ in 0..20 {
            assert!(queue.enter(61 * MS).is_some());
        }
        assert_eq!(queue.enter(61 * MS), None);
    }

    #[test]
    fn who_could_not_be_served_in_time_is_told_at_once() {
        let mut queue = usually(100 * MS);
        assert_eq!(queue.enter(90 * MS), None, "its own transfer takes longer");
        assert_eq!(queue.enter(200 * MS), Some(100 * MS), "nobody waited: that was no overload");
    }

    #[test]
    fn nobody_waits_long_while_others_go_without_until_nobody_waits() {
        let mut queue = usually(MS);
        let mut entered = 0;
        while queue.enter(101 * MS).is_some() {
            entered += 1;
        }
        assert_eq!(entered, 400);
        for left in (0..entered).rev() {
            assert_eq!(queue.enter(1000 * MS).is_some(), left + 1 < 20, "{left}");
            queue.leave(true);
            if queue.waiting > left {
                queue.leave(true);
            }
        }
        assert_eq!(queue.enter(1000 * MS), Some(999 * MS));
    }

    #[test]
    fn one_whose_time_is_up_is_one_who_went_without() {
        let mut queue = usually(MS);
        let two = [queue.enter(1000 * MS), queue.enter(1000 * MS)];
        assert!(two.iter().all(Option::is_some));
        queue.leave(false);
        assert_eq!(queue.enter(1000 * MS), Some(5 * MS));
        queue.leave(true);
        queue.leave(true);
        assert_eq!(queue.enter(1000 * MS), Some(999 * MS), "nobody had waited");
    }

    #[test]
    fn of_a_node_that_nothing_is_known_of_everybody_waits() {
        let mut queue = Queue::new(1);
        assert!((0..1000).all(|_| queue.enter(5000 * MS) == Some(5000 * MS)));
    }

    /// Serves arrivals at this many times what four places serve; returns how many were served in time, of how many could have
    /// been, and the longest wait of those that came in the second half.
    fn simulated(load: f64, takes_ms: f64, deadline_ms: f64) -> (f64, f64) {
        let mut queue = Queue::new(4);
        let (every, end) = (takes_ms / 4.0 / load, 400.0 * deadline_ms);
        let mut free_at = [0.0f64; 4];
        // When they came, and until when they wait.
        let mut waiting: VecDeque<(f64, f64)> = VecDeque::new();
        let (mut good, mut longest, mut now) = (0, 0.0f64, 0.0);
        let serve = |queue: &mut Queue, free_at: &mut [f64; 4], came: f64, at: f64| {
            let place = free_at.iter_mut().min_by(|one, other| one.total_cmp(other)).expect("four");
            *place = at + takes_ms;
            queue.took(Duration::from_secs_f64(takes_ms / 1e3));
            u32::from(at + takes_ms - came <= deadline_ms)
        };
        while now < end {
            // Places that became free before this arrival.
            while let Some(&(came, until)) = waiting.front() {
                let free = free_at.iter().copied().fold(f64::INFINITY, f64::min);
                if free.min(until) > now {
                    break;
                }
                waiting.pop_front();
                queue.leave(free <= until);
                if free <= until {
                    good += serve(&mut queue, &mut free_at, came, free.max(came));
                    longest = if came > end / 2.0 { longest.max(free - came) } else { longest };
                }
            }
            if free_at.iter().any(|free| *free <= now) {
                good += serve(&mut queue, &mut free_at, now, now);
            } else if let Some(wait) = queue.enter(Duration::from_secs_f64(deadline_ms / 1e3)) {
                waiting.push_back((now, now + wait.as_secs_f64() * 1e3));
            }
            now += every;
        }
        (f64::from(good) / (end / takes_ms * 4.0 * load.min(1.0)), longest)
    }

    #[test]
    fn under_three_times_the_load_as_many_are_served_and_each_of_them_soon() {
        for (takes, deadline) in [(1.0, 100.0), (10.0, 200.0), (50.0, 1000.0)] {
            let (share, _) = simulated(0.8, takes, deadline);
            assert!(share > 0.98, "{takes} ms: {share}");
            let (share, longest) = simulated(3.0, takes, deadline);
            assert!(share > 0.98, "{takes} ms: {share}");
            assert!(longest <= 5.0f64.max(2.0 * takes), "{takes} ms: {longest}");
        }
    }
}
