//! What a storage plugin of an engine has under way: tasks by their numbers, how they ended until somebody takes that, and when a
//! cluster is left alone. Who waits is woken once, however many tasks have ended since.

use crate::rest::Rest;
use kvhive_protocol::Moment;

/// Tasks under way at most; what comes beyond them ends at once, in vain.
const MOST: usize = 1024;

/// A task that is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Its number.
    pub task: u64,
    /// Of each of its objects, whether it was done.
    pub done: Vec<bool>,
    /// Whether what was asked for was done: an answer is one, whatever it says.
    pub is_ok: bool,
}

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    next: u64,
    under_way: usize,
    ended: Vec<Ended>,
    is_woken: bool,
    is_closed: bool,
    rest: Rest,
}

impl Tasks {
    /// Takes in a task about so many objects. Returns its number, and whether it is to be done: if not, it is over.
    pub fn begin(&mut self, now: Moment, objects: usize) -> (u64, bool) {
        if objects == 0 || self.is_closed || self.under_way >= MOST || !self.rest.lets(now) {
            return (self.refuse(objects), false);
        }
        let task = self.next;
        self.next += 1;
        self.under_way += 1;
        (task, true)
    }

    /// Takes in a task that cannot be done; returns its number.
    pub fn refuse(&mut self, objects: usize) -> u64 {
        let task = self.next;
        self.next += 1;
        self.ended.push(Ended { task, done: vec![false; objects], is_ok: objects == 0 });
        task
    }

    /// Takes in how a task that was begun has ended, and whether the cluster answered.
    pub fn end(&mut self, now: Moment, ended: Ended, is_answered: bool) {
        debug_assert!(self.under_way > 0);
        self.under_way -= 1;
        if is_answered {
            self.rest.answered();
        } else {
            self.rest.failed(now);
        }
        self.ended.push(ended);
    }

    /// Says whether whoever waits is to be woken now.
    pub fn wakes(&mut self) -> bool {
        let wakes = !self.ended.is_empty() && !self.is_woken;
        self.is_woken |= wakes;
        wakes
    }

    /// Returns the tasks that are over, and whether somebody was woken for them.
    pub fn take(&mut self) -> (Vec<Ended>, bool) {
        (std::mem::take(&mut self.ended), std::mem::take(&mut self.is_woken))
    }

    /// Has no task begin any more.
    pub fn close(&mut self) {
        self.is_closed = true;
    }

    /// Says whether no task is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn ended(task: u64, done: &[bool]) -> Ended {
        Ended { task, done: done.to_vec(), is_ok: true }
    }

    fn in_vain(task: u64, objects: usize) -> Ended {
        Ended { task, done: vec![false; objects], is_ok: false }
    }

    #[test]
    fn whoever_waits_is_woken_once_for_all_that_has_ended() {
        let mut tasks = Tasks::default();
        let (one, other) = (tasks.begin(at(0), 2), tasks.begin(at(0), 1));
        assert_eq!((one, other), ((0, true), (1, true)));
        assert!(!tasks.wakes() && !tasks.is_idle());
        tasks.end(at(1), ended(1, &[true]), true);
        assert!(tasks.wakes());
        tasks.end(at(2), ended(0, &[true, false]), true);
        assert!(!tasks.wakes(), "it is woken already");
        assert_eq!(tasks.take(), (vec![ended(1, &[true]), ended(0, &[true, false])], true));
        assert_eq!(tasks.take(), (Vec::new(), false));
        assert!(!tasks.wakes() && tasks.is_idle());
    }

    #[test]
    fn a_silent_cluster_is_left_alone_and_its_tasks_are_over_at_once() {
        let mut tasks = Tasks::default();
        for task in 0..2 {
            assert_eq!(tasks.begin(at(0), 1), (task, true));
            tasks.end(at(0), in_vain(task, 1), false);
        }
        tasks.take();
        assert_eq!(tasks.begin(at(1), 3), (2, false));
        assert!(tasks.wakes() && tasks.is_idle());
        assert_eq!(tasks.take(), (vec![in_vain(2, 3)], true));
        assert_eq!(tasks.begin(at(1000), 1), (3, true), "one sees whether it is back");
        assert_eq!(tasks.begin(at(1000), 1), (4, false));
        tasks.end(at(1001), ended(3, &[false]), true);
        assert_eq!(tasks.begin(at(1001), 1), (5, true));
    }

    #[test]
    fn nothing_is_done_about_no_object_beyond_the_most_or_after_the_end() {
        let mut tasks = Tasks::default();
        assert_eq!(tasks.begin(at(0), 0), (0, false));
        assert_eq!(tasks.take().0, [ended(0, &[])]);
        for task in 0..MOST as u64 {
            assert_eq!(tasks.begin(at(0), 1), (1 + task, true));
        }
        assert!(!tasks.begin(at(0), 1).1);
        let refused = tasks.refuse(2);
        assert_eq!(tasks.take().0.last(), Some(&in_vain(refused, 2)));
        tasks.end(at(0), ended(1, &[true]), true);
        assert!(tasks.begin(at(0), 1).1);
        tasks.end(at(0), ended(2, &[true]), true);
        tasks.close();
        assert!(!tasks.begin(at(0), 1).1);
    }
}
