//! When a cluster that does not answer is left alone, so that each request does not wait anew to learn it.

use kvhive_protocol::Moment;
use std::time::Duration;

/// Failures in a row after which nobody is asked.
const PATIENCE: u32 = 2;
/// The first time that it is left alone; doubled each time.
const LEAST: Duration = Duration::from_millis(500);
/// The longest time.
const MOST: Duration = Duration::from_secs(15);

/// Whether a cluster is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rest {
    failures: u32,
    until: Moment,
    /// One is out to see whether it answers again.
    scout: bool,
}

impl Rest {
    /// Says whether the cluster is asked now. After a rest one caller is let through, and the others when that one was answered.
    pub fn lets(&mut self, now: Moment) -> bool {
        if self.failures < PATIENCE {
            return true;
        }
        if self.scout || now < self.until {
            return false;
        }
        self.scout = true;
        true
    }

    /// Takes in that the cluster answered.
    pub fn answered(&mut self) {
        *self = Rest::default();
    }

    /// Takes in that it did not.
    pub fn failed(&mut self, now: Moment) {
        self.failures = self.failures.saturating_add(1);
        self.scout = false;
        if let Some(times) = self.failures.checked_sub(PATIENCE) {
            self.until = now + LEAST.saturating_mul(1 << times.min(16)).min(MOST);
        }
    }

    /// Takes in that whoever was let through never asked.
    pub fn gave_up(&mut self) {
        self.scout = false;
    }

    /// Says whether the cluster is left alone.
    pub fn is_resting(&self) -> bool {
        self.failures >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn a_silent_cluster_is_asked_by_one_at_a_time_and_less_and_less() {
        let mut rest = Rest::default();
        assert!(rest.lets(at(0)));
        rest.failed(at(0));
        assert!(rest.lets(at(0)), "one failure is nothing");
        rest.failed(at(0));
        assert!(!rest.lets(at(499)));
        assert!(rest.lets(at(500)));
        assert!(!rest.lets(at(500)), "another one is out already");
        rest.failed(at(600));
        assert!(!rest.lets(at(1599)));
        assert!(rest.lets(at(1600)));
        rest.gave_up();
        assert!(rest.lets(at(1601)));
        rest.answered();
        assert!(rest.lets(at(1601)) && rest.lets(at(1601)) && !rest.is_resting());
    }

    #[test]
    fn the_longest_rest_is_bounded() {
        let mut rest = Rest::default();
        for _ in 0..100 {
            rest.failed(at(1000));
        }
        assert!(rest.is_resting() && !rest.lets(at(15_999)) && rest.lets(at(16_000)));
    }
}
