//! The last events of a shard's blocks, numbered, while somebody follows them. Bounded: who falls behind takes a snapshot.
//! Nobody follows most shards: then there is no feed, and nothing is noted.

use kvhive_protocol::watch::{BlockEvent, MAX_EVENTS_PER_ANSWER, WatchAnswer};
use kvhive_protocol::{Moment, TenantId};
use std::collections::VecDeque;
use std::time::Duration;

/// Events that are remembered.
pub(crate) const MAX_EVENTS: usize = 32_768;
/// A feed that nobody asks for so long ends.
const IDLE: Duration = Duration::from_secs(60);

/// The events of one stream.
pub(crate) struct Feed {
    stream: u64,
    newest: u64,
    events: VecDeque<BlockEvent>,
    asked: Moment,
}

impl Feed {
    /// Begins a stream. Its number must be none that this shard's device ever had.
    pub(crate) fn new(stream: u64, now: Moment) -> Feed {
        Feed { stream, newest: 0, events: VecDeque::new(), asked: now }
    }

    /// Returns the bytes that it takes at most.
    pub(crate) const fn bytes() -> usize {
        MAX_EVENTS * size_of::<BlockEvent>()
    }

    pub(crate) fn stream(&self) -> u64 {
        self.stream
    }

    /// Returns the number of the last event, 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    pub(crate) fn push(&mut self, event: BlockEvent) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.newest += 1;
    }

    /// Somebody follows.
    pub(crate) fn touch(&mut self, now: Moment) {
        self.asked = self.asked.max(now);
    }

    pub(crate) fn is_idle(&self, now: Moment) -> bool {
        now.since(self.asked) > IDLE
    }

    /// Returns what happened after an event to blocks of a tenant, or of all.
    pub(crate) fn events(&self, stream: u64, after: u64, tenant: Option<TenantId>) -> WatchAnswer {
        let oldest = self.newest - self.events.len() as u64;
        if stream != self.stream || after < oldest || after > self.newest {
            return WatchAnswer::Gap { stream: Some(self.stream) };
        }
        let through = self.newest.min(after + MAX_EVENTS_PER_ANSWER as u64);
        let (skipped, count) = ((after - oldest) as usize, (through - after) as usize);
        let events = (after + 1..).zip(self.events.iter().skip(skipped).take(count));
        let is_told = |event: &BlockEvent| tenant.is_none_or(|tenant| event.tenant() == tenant);
        let events = events.filter(|(_, event)| is_told(event)).map(|(at, event)| (at, *event)).collect();
        WatchAnswer::Events { stream, after, through, events }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::Era;

    fn event(tenant: u32) -> BlockEvent {
        BlockEvent::Cleared { tenant: TenantId(tenant), era: Era(1) }
    }

    #[test]
    fn a_follower_hears_its_tenants_events_and_how_far_it_has_heard() {
        let mut feed = Feed::new(7, Moment::ZERO);
        for at in 0..10 {
            feed.push(event(at % 3));
        }
        let heard = feed.events(7, 2, Some(TenantId(1)));
        let events = vec![(5, event(1)), (8, event(1))];
        assert_eq!(heard, WatchAnswer::Events { stream: 7, after: 2, through: 10, events });
        let nothing = WatchAnswer::Events { stream: 7, after: 10, through: 10, events: vec![] };
        assert_eq!(feed.events(7, 10, None), nothing);
    }

    #[test]
    fn who_asks_for_what_is_not_remembered_is_told_so() {
        let gap = WatchAnswer::Gap { stream: Some(7) };
        let mut feed = Feed::new(7, Moment::ZERO);
        assert_eq!((feed.events(6, 0, None), feed.events(7, 1, None)), (gap.clone(), gap.clone()));
        for _ in 0..MAX_EVENTS + 2 {
            feed.push(event(1));
        }
        assert_eq!(feed.events(7, 1, None), gap);
        let WatchAnswer::Events { through, events, .. } = feed.events(7, 2, None) else {
            panic!("it is remembered")
        };
        assert_eq!((through, events.len()), (2 + MAX_EVENTS_PER_ANSWER as u64, MAX_EVENTS_PER_ANSWER));
        assert_eq!(feed.events.len(), MAX_EVENTS);
    }

    #[test]
    fn a_feed_that_nobody_asks_is_idle_after_a_minute() {
        let mut feed = Feed::new(7, Moment::from_millis(5));
        feed.touch(Moment::from_millis(30_000));
        assert!(!feed.is_idle(Moment::from_millis(90_000)) && feed.is_idle(Moment::from_millis(90_001)));
    }
}
