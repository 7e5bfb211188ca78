//! What is held for one asker that looks at blocks where they are: until it is done with them, or has had long enough. Then they may go, and
//! whatever it copies late is not what their digests say.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// So long an asker has for what it was told the places of: a thousand times what copying takes.
pub(super) const GRANT_LIMIT: Duration = Duration::from_secs(2);
/// Answers that are held for one asker at a time; what it asks beyond that is sent.
const MAX_GRANTS: usize = 8;

/// Held things, oldest first.
pub(super) struct Grants<G> {
    held: VecDeque<(u64, Instant, G)>,
    next: u64,
}

impl<G> Default for Grants<G> {
    fn default() -> Self {
        Grants { held: VecDeque::new(), next: 1 }
    }
}

impl<G> Grants<G> {
    /// Returns what the next is called; none while as many as may be are held.
    pub(super) fn next(&self) -> Option<u64> {
        (self.held.len() < MAX_GRANTS).then_some(self.next)
    }

    /// Holds something under the name that [`Grants::next`] said.
    pub(super) fn hold(&mut self, now: Instant, what: G) {
        self.held.push_back((self.next, now + GRANT_LIMIT, what));
        self.next += 1;
    }

    /// Lets go of what the asker is done with; of what is over or was never held nothing is left to let go of.
    pub(super) fn done(&mut self, grant: u64) {
        self.held.retain(|(held, _, _)| *held != grant);
    }

    /// Returns when the oldest is over.
    pub(super) fn until(&self) -> Option<Instant> {
        self.held.front().map(|(_, until, _)| *until)
    }

    /// Lets go of what is over; returns how many that were.
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        let mut over = 0;
        while self.until().is_some_and(|until| until <= now) {
            self.held.pop_front();
            over += 1;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_is_done_or_over_is_let_go_of_and_nothing_else() {
        let (mut grants, now, thing) = (Grants::default(), Instant::now(), Arc::new(()));
        let held = |thing: &Arc<()>| Arc::strong_count(thing) - 1;
        for at in 0..3 {
            assert_eq!(grants.next(), Some(at + 1));
            grants.hold(now + Duration::from_millis(at), thing.clone());
        }
        grants.done(2);
        grants.done(2);
        grants.done(77);
        assert_eq!((held(&thing), grants.until()), (2, Some(now + GRANT_LIMIT)));
        assert_eq!((grants.expire(now + GRANT_LIMIT), held(&thing)), (1, 1));
        assert_eq!(grants.expire(now + GRANT_LIMIT), 0);
        assert_eq!(grants.until(), Some(now + GRANT_LIMIT + Duration::from_millis(2)));
        grants.done(1);
        grants.done(3);
        assert_eq!((held(&thing), grants.until()), (0, None));
    }

    #[test]
    fn so_many_are_held_and_no_more() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        while grants.next().is_some() {
            grants.hold(now, ());
        }
        assert_eq!(grants.held.len(), MAX_GRANTS);
        grants.done(3);
        assert_eq!(grants.next(), Some(MAX_GRANTS as u64 + 1));
        assert_eq!(grants.expire(now + GRANT_LIMIT), MAX_GRANTS as u64 - 1);
    }
}
