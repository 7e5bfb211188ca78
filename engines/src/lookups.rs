//! What an engine's tier manager knows of single blocks, for somebody who asks of one at a time and never waits: a block that is not
//! known is asked for with all others of its step, and its asker told to come again.

use crate::rest::Rest;
use kvhive_protocol::Moment;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// Blocks that are remembered at most.
const MOST_KNOWN: usize = 1 << 17;
/// Blocks of one question at most.
const MOST_ASKED: usize = 4096;
/// Questions at once.
const MOST_BATCHES: usize = 16;
/// How long past its limit a question is waited for: it is answered in any case.
const GRACE: Duration = Duration::from_secs(2);

/// Whether a block is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// It is, or was a moment ago.
    Hit,
    /// It is not, or nobody says so.
    Miss,
    /// Ask again.
    Later,
}

/// A block's name, as the engine gives it.
pub type Name = Vec<u8>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Asked,
    There,
    Gone,
}

/// What is known.
#[derive(Debug)]
pub struct Lookups {
    wait: Duration,
    lasts: Duration,
    names: HashMap<Name, (State, Moment)>,
    fresh: Vec<Name>,
    batches: BTreeMap<u64, Vec<Name>>,
    next: u64,
    /// From questions and loads, for which a request waits: who answers too late for these may well be in time for a store. An answered
    /// store does not end it.
    rest: Rest,
    /// From stores. An answered question or load does not end it.
    stores_rest: Rest,
}

impl Lookups {
    /// Makes one that waits so long for an answer, and goes by it for so long.
    pub fn new(wait: Duration, lasts: Duration) -> Lookups {
        Lookups {
            wait,
            lasts,
            names: HashMap::new(),
            fresh: Vec::new(),
            batches: BTreeMap::new(),
            next: 1,
            rest: Rest::default(),
            stores_rest: Rest::default(),
        }
    }

    /// Says whether a block is there.
    pub fn lookup(&mut self, now: Moment, name: &[u8]) -> Lookup {
        if let Some((state, since)) = self.names.get(name) {
            let age = now.since(*since);
            match state {
                State::Asked if age < self.wait + GRACE => return Lookup::Later,
                State::There if age < self.lasts => return Lookup::Hit,
                State::Gone if age < self.lasts => return Lookup::Miss,
                State::Asked => {
                    self.set(now, name.to_vec(), State::Gone);
                    return Lookup::Miss;
                }
                State::There | State::Gone => {}
            }
        }
        self.set(now, name.to_vec(), State::Asked);
        self.fresh.push(name.to_vec());
        Lookup::Later
    }

    /// Returns the questions that are put to the cluster now: a number, and the blocks.
    pub fn questions(&mut self, now: Moment) -> Vec<(u64, Vec<Name>)> {
        let mut asked = Vec::new();
        while !self.fresh.is_empty() && self.batches.len() < MOST_BATCHES {
            let names: Vec<Name> = self.fresh.drain(..self.fresh.len().min(MOST_ASKED)).collect();
            if !self.rest.lets(now) {
                self.gone(now, &names);
                continue;
            }
            self.batches.insert(self.next, names.clone());
            asked.push((self.next, names));
            self.next += 1;
        }
        asked
    }

    /// Takes in the answer to a question, block by block; none when the cluster did not answer.
    pub fn answered(&mut self, now: Moment, question: u64, found: Option<&[bool]>) {
        let names = self.batches.remove(&question).unwrap_or_default();
        let Some(found) = found else {
            self.rest.failed(now);
            return self.gone(now, &names);
        };
        self.rest.answered();
        for (name, is_there) in names.into_iter().zip(found) {
            self.set(now, name, if *is_there { State::There } else { State::Gone });
        }
    }

    /// Takes in that blocks are in the cluster.
    pub fn stored(&mut self, now: Moment, names: &[Name]) {
        for name in names {
            self.set(now, name.clone(), State::There);
        }
    }

    /// Takes in that blocks could not be had.
    pub fn gone(&mut self, now: Moment, names: &[Name]) {
        for name in names {
            self.set(now, name.clone(), State::Gone);
        }
    }

    /// Says whether a load is begun, or the cluster left alone.
    pub fn lets_load(&mut self, now: Moment) -> bool {
        self.rest.lets(now)
    }

    /// Says whether a store is begun, or the cluster left alone.
    pub fn lets_store(&mut self, now: Moment) -> bool {
        self.stores_rest.lets(now)
    }

    /// Takes in whether the cluster answered a load.
    pub fn load_ended(&mut self, now: Moment, is_answered: bool) {
        match is_answered {
            true => self.rest.answered(),
            false => self.rest.failed(now),
        }
    }

    /// Takes in whether the cluster answered a store. Who takes none answers no question.
    pub fn store_ended(&mut self, now: Moment, is_answered: bool) {
        match is_answered {
            true => self.stores_rest.answered(),
            false => {
                self.rest.failed(now);
                self.stores_rest.failed(now);
            }
        }
    }

    /// Says whether a question is under way, or waits to be put.
    pub fn is_asking(&self) -> bool {
        !self.batches.is_empty() || !self.fresh.is_empty()
    }

    fn set(&mut self, now: Moment, name: Name, state: State) {
        if self.names.len() >= MOST_KNOWN {
            let (wait, lasts) = (self.wait + GRACE, self.lasts);
            self.names.retain(|_, (state, since)| {
                now.since(*since) < if *state == State::Asked { wait } else { lasts }
            });
            // All of them are fresh: they are asked for anew.
            if self.names.len() >= MOST_KNOWN {
                self.names.clear();
            }
        }
        self.names.insert(name, (state, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn lookups() -> Lookups {
        Lookups::new(WAIT, Duration::from_secs(5))
    }

    fn ask(lookups: &mut Lookups, now: Moment, names: &[&str]) -> Option<(u64, Vec<Name>)> {
        for name in names {
            assert_eq!(lookups.lookup(now, name.as_bytes()), Lookup::Later);
        }
        lookups.questions(now).pop()
    }

    #[test]
    fn blocks_of_a_step_are_asked_for_together_and_once() {
        let mut lookups = lookups();
        let (question, names) = ask(&mut lookups, at(0), &["a", "b"]).expect("a question");
        assert_eq!(names, [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(lookups.lookup(at(1), b"a"), Lookup::Later);
        assert!(lookups.questions(at(1)).is_empty() && lookups.is_asking());
        lookups.answered(at(2), question, Some(&[true, false]));
        assert_eq!((lookups.lookup(at(3), b"a"), lookups.lookup(at(3), b"b")), (Lookup::Hit, Lookup::Miss));
        assert!(!lookups.is_asking());
        assert_eq!(lookups.lookup(at(6000), b"a"), Lookup::Later, "that was long ago");
    }

    #[test]
    fn what_was_stored_or_lost_since_is_known() {
        let mut lookups = lookups();
        lookups.stored(at(0), &[b"a".to_vec()]);
        assert_eq!(lookups.lookup(at(1), b"a"), Lookup::Hit);
        lookups.gone(at(2), &[b"a".to_vec()]);
        assert_eq!(lookups.lookup(at(3), b"a"), Lookup::Miss);
    }

    #[test]
    fn a_silent_cluster_is_left_alone() {
        let mut lookups = lookups();
        for round in 0..2u64 {
            let name = format!("{round}");
            let (question, _) = ask(&mut lookups, at(round), &[&name]).expect("a question");
            lookups.answered(at(round), question, None);
            assert_eq!(lookups.lookup(at(round), name.as_bytes()), Lookup::Miss);
        }
        assert_eq!(ask(&mut lookups, at(10), &["x"]), None);
        assert_eq!(lookups.lookup(at(10), b"x"), Lookup::Miss, "at once");
        assert!(!lookups.lets_load(at(10)));
        assert!(ask(&mut lookups, at(1000), &["y"]).is_some(), "one sees whether it is back");
        lookups.load_ended(at(1001), true);
        assert!(lookups.lets_load(at(1001)));
    }

    #[test]
    fn who_answers_no_question_in_time_is_given_stores_and_asked_no_more_for_taking_them() {
        let mut lookups = lookups();
        let (question, _) = ask(&mut lookups, at(0), &["a"]).expect("a question");
        lookups.answered(at(0), question, None);
        lookups.load_ended(at(0), false);
        assert!(!lookups.lets_load(at(10)) && lookups.lets_store(at(10)));
        lookups.store_ended(at(20), true);
        assert_eq!(ask(&mut lookups, at(20), &["b"]), None);
        assert!(!lookups.lets_load(at(20)) && lookups.lets_store(at(20)));
    }

    #[test]
    fn who_takes_no_store_is_given_none_though_questions_are_answered() {
        let mut lookups = lookups();
        let (question, _) = ask(&mut lookups, at(0), &["a"]).expect("a question");
        lookups.store_ended(at(0), false);
        lookups.store_ended(at(0), false);
        assert!(!lookups.lets_store(at(10)) && !lookups.lets_load(at(10)));
        lookups.answered(at(10), question, Some(&[true]));
        assert!(lookups.lets_load(at(10)) && !lookups.lets_store(at(10)));
        lookups.load_ended(at(20), true);
        assert!(!lookups.lets_store(at(20)));
        assert!(lookups.lets_store(at(500)) && !lookups.lets_store(at(500)), "one sees whether it is back");
        lookups.store_ended(at(501), true);
        assert!(lookups.lets_store(at(501)) && lookups.lets_store(at(501)));
    }

    #[test]
    fn an_answer_that_never_comes_is_a_miss() {
        let mut lookups = lookups();
        ask(&mut lookups, at(0), &["a"]);
        assert_eq!(lookups.lookup(at(2499), b"a"), Lookup::Later);
        assert_eq!(lookups.lookup(at(2500), b"a"), Lookup::Miss);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut lookups = lookups();
        for name in 0..2 * MOST_KNOWN as u64 {
            lookups.stored(at(0), &[name.to_le_bytes().to_vec()]);
        }
        assert!(lookups.names.len() <= MOST_KNOWN);
        let last = (2 * MOST_KNOWN as u64 - 1).to_le_bytes();
        assert_eq!(lookups.lookup(at(1), &last), Lookup::Hit);
    }
}
