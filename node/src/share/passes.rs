//! Passes that open the door once: which there are, and until when.

use kvhive_protocol::handshake::TokenKey;
use kvhive_protocol::share::Pass;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// A pass that was not shown within this is of no use any more.
pub(crate) const PASS_LIMIT: Duration = Duration::from_secs(5);
/// Passes that wait to be shown at a time.
const MAX_PASSES: usize = 64;

/// What somebody comes for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    /// To look at the node's memory.
    Look,
    /// To lend a stage to the device of this index.
    Lend(u16),
}

/// Passes that were given and not shown, oldest first.
#[derive(Default)]
pub(super) struct Passes(VecDeque<(Pass, Aim, Instant)>);

impl Passes {
    /// Takes note of a pass that is given to somebody. False where too many wait already.
    pub(super) fn give(&mut self, now: Instant, pass: Pass, aim: Aim) -> bool {
        self.expire(now);
        if self.0.len() >= MAX_PASSES {
            return false;
        }
        self.0.push_back((pass, aim, now + PASS_LIMIT));
        true
    }

    /// Says for what a pass that is shown opens the door, if it does; it does not do so again.
    pub(super) fn show(&mut self, now: Instant, pass: &Pass) -> Option<Aim> {
        self.expire(now);
        let known = self.0.iter().position(|(known, ..)| TokenKey::same(&known.0, &pass.0));
        known.and_then(|at| self.0.remove(at)).map(|(_, aim, _)| aim)
    }

    fn expire(&mut self, now: Instant) {
        while self.0.front().is_some_and(|(_, _, until)| *until <= now) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(number: u8) -> Pass {
        Pass([number; 32])
    }

    #[test]
    fn a_pass_opens_once_and_in_time_for_what_it_was_given() {
        let (mut passes, now) = (Passes::default(), Instant::now());
        assert!(passes.give(now, pass(1), Aim::Look) && passes.give(now, pass(2), Aim::Lend(3)));
        assert_eq!(passes.show(now, &pass(3)), None, "nobody was given it");
        assert_eq!(passes.show(now, &pass(2)), Some(Aim::Lend(3)));
        assert_eq!(passes.show(now, &pass(2)), None, "it was shown before");
        let last = PASS_LIMIT - Duration::from_nanos(1);
        assert!(passes.give(now + last, pass(4), Aim::Look));
        assert_eq!(passes.show(now + last, &pass(1)), Some(Aim::Look));
        assert_eq!(passes.show(now + last + PASS_LIMIT, &pass(4)), None, "it is too late");
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let (mut passes, now) = (Passes::default(), Instant::now());
        let given = (0..=u8::MAX).filter(|number| passes.give(now, pass(*number), Aim::Look)).count();
        assert_eq!(given, MAX_PASSES);
        assert!(passes.show(now, &pass(0)).is_some() && passes.give(now, pass(255), Aim::Look));
        assert!(passes.give(now + PASS_LIMIT, pass(254), Aim::Look), "the others are over");
    }
}
