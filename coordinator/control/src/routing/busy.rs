//! How busy an engine is, as far as anybody knows: what it said of itself last, while that stands, and what was sent there since.

use kvhive_protocol::Moment;
use kvhive_protocol::engines::EngineLoad;
use std::collections::VecDeque;
use std::time::Duration;

/// What an engine said is believed for this long.
const LOAD_STANDS: Duration = Duration::from_secs(30);
/// A request that was sent to an engine waits there for this long, unless the engine reports before.
const TAKEN_STANDS: Duration = Duration::from_secs(2);
/// The most such requests that are remembered.
const MAX_TAKEN: usize = 1024;

/// How busy one engine is.
#[derive(Clone, Debug, Default)]
pub struct Busy {
    load: Option<(EngineLoad, Moment)>,
    /// When requests were sent there, and the tokens to be computed of each.
    taken: VecDeque<(Moment, u64)>,
}

impl Busy {
    /// Takes down what the engine says: what was sent there before is part of that.
    pub fn reported(&mut self, now: Moment, load: EngineLoad) {
        self.load = Some((load, now));
        self.taken.clear();
    }

    /// Takes down that a request is sent there, of which so many tokens are to be computed.
    pub fn take(&mut self, now: Moment, tokens: u64) {
        if self.taken.len() >= MAX_TAKEN {
            self.taken.pop_front();
        }
        self.taken.push_back((now, tokens));
    }

    /// Returns what the engine said last, and how many milliseconds ago, while that stands.
    pub fn load(&self, now: Moment) -> Option<(EngineLoad, u64)> {
        let (load, at) = self.load?;
        let age = now.since(at);
        (age < LOAD_STANDS).then_some((load, age.as_millis() as u64))
    }

    /// Returns the tokens to be computed of requests that were sent there since.
    pub fn taken(&self, now: Moment) -> u64 {
        let waits = self.taken.iter().filter(|(at, _)| now.since(*at) <= TAKEN_STANDS);
        waits.fold(0, |sum, (_, tokens)| sum.saturating_add(*tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn what_was_sent_counts_until_the_engine_reports_or_for_two_seconds() {
        let mut busy = Busy::default();
        busy.take(at(1000), 30);
        busy.take(at(2500), 4);
        assert_eq!((busy.taken(at(3000)), busy.taken(at(3001))), (34, 4));
        busy.reported(at(3100), EngineLoad::default());
        assert_eq!(busy.taken(at(3100)), 0);
        for _ in 0..2 * MAX_TAKEN {
            busy.take(at(3200), 1);
        }
        assert_eq!(busy.taken(at(3200)), MAX_TAKEN as u64);
    }

    #[test]
    fn a_load_stands_for_half_a_minute() {
        let mut busy = Busy::default();
        assert_eq!(busy.load(at(5)), None);
        let load = EngineLoad { running: 3, ..EngineLoad::default() };
        busy.reported(at(1000), load);
        assert_eq!((busy.load(at(30_999)), busy.load(at(31_000))), (Some((load, 29_999)), None));
    }
}
