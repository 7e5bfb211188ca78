//! The last events of the cluster, numbered without gaps: part of the replicated state, so that every coordinator has the same
//! under the same numbers. Bounded in number and bytes: the oldest go. What becomes an event is said in [`crate::telling`].

use kvhive_planted::{Bug, is};
use kvhive_protocol::{ClusterEvent, Epoch, EventKind, Note, Origin, codec};
use std::collections::VecDeque;
use std::sync::Arc;

/// The most events that are remembered.
pub const MAX_EVENTS: usize = 4096;
/// What they may take in a snapshot, in bytes: twice what that many come to whose reasons are a long sentence.
pub const MAX_JOURNAL_BYTES: usize = 2 << 20;

/// Some events, and which there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EventPage {
    /// Those after the one that was asked for, in order.
    pub events: Vec<Arc<ClusterEvent>>,
    /// The oldest that is remembered, or the next to come where none is.
    pub oldest: u64,
    /// The newest that there was; 0 before the first.
    pub newest: u64,
}

impl EventPage {
    /// Says whether events between `after` and those given are not remembered any more.
    pub fn lacks(&self, after: u64) -> bool {
        after.saturating_add(1) < self.oldest
    }
}

/// What is remembered.
#[derive(Clone, Default)]
pub(crate) struct Journal {
    events: VecDeque<Arc<ClusterEvent>>,
    newest: u64,
    bytes: usize,
}

impl Journal {
    /// Writes down what happened.
    pub(crate) fn push(&mut self, note: Note, origin: Origin, epoch: Epoch) {
        self.newest += 1;
        let Origin { at_ms, reason } = origin;
        self.keep(ClusterEvent { sequence: self.newest, at_ms, epoch, note, reason });
    }

    fn keep(&mut self, event: ClusterEvent) {
        self.bytes += bytes_of(&event);
        self.events.push_back(Arc::new(event));
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_JOURNAL_BYTES {
            let oldest = self.events.pop_front().expect("what takes more than nothing is something");
            self.bytes -= bytes_of(&oldest);
        }
    }

    /// Numbers everything `by` higher: events that are forgotten had the numbers between.
    pub(crate) fn renumber(&mut self, by: u64) {
        let events = std::mem::take(&mut self.events);
        (self.newest, self.bytes) = (self.newest + by, 0);
        for event in events {
            // Larger numbers take more bytes: the oldest may have to go.
            self.keep(ClusterEvent { sequence: event.sequence + by, ..(*event).clone() });
        }
    }

    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns at most `limit` events after the one of this number.
    pub(crate) fn page(&self, after: u64, limit: usize) -> EventPage {
        let oldest = self.newest + 1 - self.events.len() as u64;
        let skipped = usize::try_from((after.saturating_add(1)).saturating_sub(oldest)).unwrap_or(usize::MAX);
        let skipped = skipped + usize::from(is(Bug::EventsSkip));
        let events = self.events.iter().skip(skipped).take(limit).cloned().collect();
        EventPage { events, oldest, newest: self.newest }
    }

    /// Returns the newest event of one of these kinds about a member, if it is remembered.
    pub(crate) fn last_of(&self, member: &str, kinds: &[EventKind]) -> Option<&ClusterEvent> {
        let is_it = |event: &&Arc<ClusterEvent>| {
            kinds.contains(&event.note.kind) && event.note.subject.member.as_deref() == Some(member)
        };
        self.events.iter().rev().find(is_it).map(|event| &**event)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ClusterEvent> {
        self.events.iter().map(|event| &**event)
    }

    /// Takes back what [`Journal::iter`] gave, or says what is wrong with it.
    pub(crate) fn restore(events: Vec<ClusterEvent>, newest: u64) -> Result<Journal, String> {
        let count = events.len() as u64;
        if events.len() > MAX_EVENTS || count > newest {
            return Err(format!("{count} events are remembered of {newest}, allowed are {MAX_EVENTS}"));
        }
        let mut journal = Journal { newest, ..Journal::default() };
        for (event, sequence) in events.into_iter().zip(newest - count + 1..) {
            event.note.check().map_err(|error| error.to_string())?;
            if event.sequence != sequence {
                return Err(format!("event {} stands where {sequence} should", event.sequence));
            }
            journal.keep(event);
        }
        if journal.events.len() as u64 != count {
            return Err(format!("events take more than {MAX_JOURNAL_BYTES} bytes"));
        }
        Ok(journal)
    }
}

fn bytes_of(event: &ClusterEvent) -> usize {
    codec::encode(event).expect("names, numbers and reasons are bounded").len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvhive_protocol::events::MAX_FACT_BYTES;
    use kvhive_protocol::{Reason, Subject};

    fn note(at: u64) -> Note {
        Note::new(EventKind::DrainBegun, Subject::member("a")).with("at", at)
    }

    fn journal(events: u64, reason: &str) -> Journal {
        let mut journal = Journal::default();
        for at in 1..=events {
            let origin = Origin { at_ms: at, reason: Reason::new(reason) };
            journal.push(note(at), origin, Epoch(at));
        }
        journal
    }

    fn numbers(page: &EventPage) -> Vec<u64> {
        page.events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn a_reader_goes_on_where_it_stopped_and_is_told_what_it_missed() {
        let empty = Journal::default().page(0, 10);
        assert_eq!((numbers(&empty), empty.oldest, empty.newest, empty.lacks(0)), (vec![], 1, 0, false));
        let journal = journal(MAX_EVENTS as u64 + 10, "");
        let first = journal.page(0, 3);
        assert!(first.lacks(0) && first.lacks(9) && !first.lacks(10));
        assert_eq!((numbers(&first), first.oldest), (vec![11, 12, 13], 11));
        assert_eq!(numbers(&journal.page(13, 2)), [14, 15]);
        let last = MAX_EVENTS as u64 + 10;
        assert_eq!(numbers(&journal.page(last - 1, 9)), [last]);
        for after in [last, last + 1, u64::MAX] {
            let page = journal.page(after, 9);
            assert!(page.events.is_empty() && page.newest == last && !page.lacks(after));
        }
    }

    #[test]
    fn the_journal_is_bounded_in_bytes_too() {
        let large = (0..100).fold(note(1), |note, _| note.with(&"x".repeat(MAX_FACT_BYTES), u64::MAX));
        let mut journal = Journal::default();
        for _ in 0..MAX_EVENTS {
            journal.push(large.clone(), Origin::default(), Epoch(1));
        }
        let held: usize = journal.iter().map(bytes_of).sum();
        assert_eq!(held, journal.bytes);
        assert!(held <= MAX_JOURNAL_BYTES && held + 2 * bytes_of(&journal.events[0]) > MAX_JOURNAL_BYTES);
        assert!(journal.events.len() < MAX_EVENTS && journal.newest == MAX_EVENTS as u64);
    }

    #[test]
    fn only_what_a_journal_gave_is_taken_back() {
        let journal = journal(MAX_EVENTS as u64 + 3, "because");
        let events: Vec<ClusterEvent> = journal.iter().cloned().collect();
        let again = Journal::restore(events.clone(), journal.newest).expect("it gave them");
        assert_eq!((again.page(0, 9), again.bytes), (journal.page(0, 9), journal.bytes));
        let mut gap = events.clone();
        gap.remove(7);
        let mut large = events.clone();
        large[5].note.subject.examples = vec![kvhive_protocol::Slot(1); 100];
        let many = events.iter().chain(&events).cloned().collect();
        for (unsound, newest) in [(gap, journal.newest), (large, journal.newest), (many, journal.newest)] {
            assert!(Journal::restore(unsound, newest).is_err());
        }
        assert!(Journal::restore(events, journal.newest + 1).is_err());
    }
}
