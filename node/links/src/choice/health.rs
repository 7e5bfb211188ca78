//! Whether one way works: what has failed rests, each time for twice as long, and is then tried with one transfer at a time.

use crate::choice::PassedOver;
use kvhive_protocol::Moment;
use std::time::Duration;

/// The first rest; doubled with every failure in a row, up to the longest.
const LEAST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);
/// A try that nobody reported the end of is over after so long.
const TRY_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Health {
    /// Failures in a row.
    failures: u32,
    /// While there were any: it is not taken before. A try under way is in there as well.
    rests_until: Moment,
}

impl Health {
    pub(super) fn is_well(&self) -> bool {
        self.failures == 0
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns for how long it is not taken yet.
    pub(super) fn rests_for(&self, now: Moment) -> Option<Duration> {
        (self.failures > 0 && self.rests_until > now).then(|| self.rests_until.since(now))
    }

    pub(super) fn rests(&self, now: Moment) -> Option<PassedOver> {
        self.rests_for(now).map(|rest| PassedOver::Rests { failures: self.failures, rest_ms: millis(rest) })
    }

    /// A transfer begins by it: others wait for what becomes of that, if it has failed before.
    pub(super) fn begins(&mut self, now: Moment) {
        if self.failures > 0 && self.rests_until <= now {
            self.rests_until = now + TRY_LIMIT;
        }
    }

    /// What was to begin has not: it may be tried again at once.
    pub(super) fn has_not_begun(&mut self, now: Moment) {
        if self.failures > 0 {
            self.rests_until = self.rests_until.min(now);
        }
    }

    pub(super) fn ended(&mut self, now: Moment, ok: bool) {
        if ok {
            *self = Health::default();
            return;
        }
        self.failures = self.failures.saturating_add(1);
        let doubled = LEAST_REST.saturating_mul(1 << (self.failures - 1).min(16));
        self.rests_until = now + doubled.min(LONGEST_REST);
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
