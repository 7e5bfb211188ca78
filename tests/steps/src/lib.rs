//! Steps of a change of files: where a process may end before it is done. Code that writes, renames, deletes or syncs says so with [`step`]
//! just before; a test has the change end before each of its steps, one after the other, and looks at what is left ([`at_each`]).
//!
//! What has ended fails at every later step as well, so nothing of it reaches the disk any more. Without debug assertions a step is a
//! constant `Ok`, and no test can be made.

use std::io;

/// Says that this step of a change comes now.
///
/// # Errors
/// When a test has the change end here, or has had it end before.
#[inline]
pub fn step(name: &'static str) -> io::Result<()> {
    if cfg!(debug_assertions) { trial::met(name) } else { Ok(()) }
}

pub use trial::{Ends, at_each};

mod trial {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::io;

    thread_local! {
        static CHANGE: RefCell<Option<Change>> = const { RefCell::new(None) };
    }

    /// A change that is watched.
    struct Change {
        /// The step that it ends before, counted from 0.
        ends_before: usize,
        met: Vec<&'static str>,
    }

    pub(crate) fn met(name: &'static str) -> io::Result<()> {
        CHANGE.with_borrow_mut(|change| {
            let Some(change) = change else { return Ok(()) };
            if change.met.len() > change.ends_before {
                return Err(io::Error::other(format!("it has ended before, and comes to {name}")));
            }
            change.met.push(name);
            match change.met.len() > change.ends_before {
                true => Err(io::Error::other(format!("it ends before {name}"))),
                false => Ok(()),
            }
        })
    }

    /// Where a change ends.
    #[derive(Debug)]
    pub struct Ends {
        before: usize,
        met: Vec<&'static str>,
    }

    impl Ends {
        /// Makes the change, on this thread, up to where it ends.
        pub fn run<T>(&mut self, change: impl FnOnce() -> T) -> T {
            let watched = Change { ends_before: self.before, met: Vec::new() };
            CHANGE.with_borrow_mut(|change| *change = Some(watched));
            let made = change();
            let watched = CHANGE.with_borrow_mut(Option::take);
            self.met = watched.expect("nobody else takes it").met;
            made
        }

        /// Returns the step that it ended before; none where it came to its end.
        pub fn before(&self) -> Option<&'static str> {
            self.met.get(self.before).copied()
        }

        /// Says whether it ended before any step of this name, or before one that comes until then.
        pub fn is_before(&self, name: &str) -> bool {
            !self.met.iter().take(self.before).any(|met| *met == name)
        }
    }

    /// Calls `round` once for each step that its change has, which ends before that step, and at last to have it come to its end. The
    /// steps of all of these have to be `names`, each met at least once.
    ///
    /// # Panics
    /// When a round does not run its change, or a step was not met that is named, or met that is not.
    #[track_caller]
    pub fn at_each(names: &[&'static str], mut round: impl FnMut(&mut Ends)) {
        let mut all = BTreeSet::new();
        for before in 0.. {
            let mut ends = Ends { before, met: Vec::new() };
            round(&mut ends);
            all.extend(ends.met.iter().copied());
            if ends.before().is_none() {
                break;
            }
        }
        assert_eq!(all, names.iter().copied().collect(), "the steps that were met, and those that are named");
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    fn change(done: &mut Vec<&'static str>, has_more: bool) -> io::Result<()> {
        for name in ["write", "sync", "write"].into_iter().take(if has_more { 3 } else { 2 }) {
            step(name)?;
            done.push(name);
        }
        Ok(())
    }

    #[test]
    fn a_change_ends_before_each_of_its_steps_and_then_comes_to_its_end() {
        let mut rounds = Vec::new();
        at_each(&["write", "sync"], |ends| {
            let mut done = Vec::new();
            let outcome = ends.run(|| change(&mut done, true));
            assert_eq!(outcome.is_ok(), ends.before().is_none());
            rounds.push((done.len(), ends.before(), ends.is_before("sync")));
        });
        let expected =
            [(0, Some("write"), true), (1, Some("sync"), true), (2, Some("write"), false), (3, None, false)];
        assert_eq!(rounds, expected);
        assert!(step("write").is_ok(), "nobody watches any more");
    }

    #[test]
    fn nothing_comes_after_the_end() {
        at_each(&["write", "sync"], |ends| {
            let mut done = Vec::new();
            let (first, again) = ends.run(|| (change(&mut done, false), step("sync")));
            assert!(first.is_ok() || again.is_err());
        });
    }

    #[test]
    #[should_panic(expected = "the steps that were met")]
    fn a_step_that_is_never_met_is_no_proof() {
        at_each(&["write", "sync", "rename"], |ends| drop(ends.run(|| change(&mut Vec::new(), true))));
    }

    #[test]
    #[should_panic(expected = "the steps that were met")]
    fn a_step_that_nobody_names_is_noticed() {
        at_each(&["write"], |ends| drop(ends.run(|| change(&mut Vec::new(), true))));
    }
}
