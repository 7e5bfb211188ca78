//! What reading a cluster file has found so far: problems, and where each key's value came from. Reading goes on after a
//! problem; checks between keys pass over those that are refused already, so that one mistake is told once.

use crate::problem::{ConfigError, Origin, Problem};
use crate::tree::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The most problems told at once.
const MAX_PROBLEMS: usize = 100;

#[derive(Default)]
pub(crate) struct Ledger {
    problems: Vec<Problem>,
    omitted: usize,
    seen: BTreeMap<String, Seen>,
    bad: BTreeSet<String>,
}

struct Seen {
    source: String,
    origin: Origin,
    given: String,
}

impl Ledger {
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.problems.contains(&problem) {
            return;
        }
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// Writes down where the value of `key` came from: `source` is the same key, or that of the defaults.
    pub(crate) fn saw(&mut self, key: &str, source: &str, origin: Origin, given: String) {
        self.seen.insert(key.to_owned(), Seen { source: source.to_owned(), origin, given });
    }

    /// Returns the key under which the value of `key` was given, so that what many nodes share is told once.
    pub(crate) fn source(&self, key: &str) -> String {
        self.seen.get(key).map_or(key, |seen| &seen.source).to_owned()
    }

    /// Says whether `key` has a value, good or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.seen.contains_key(key)
    }

    /// Refuses the value of `key`, which was given under `source`: the same key, or the default it comes from.
    pub(crate) fn refuse(&mut self, key: &str, source: &str, value: &Value, allowed: String) {
        self.bad.insert(key.to_owned());
        let (origin, given) = (value.origin.clone(), value.shown());
        self.add(Problem::Refused { origin, key: source.to_owned(), given, allowed });
    }

    pub(crate) fn missing(&mut self, key: &str, allowed: String) {
        self.bad.insert(key.to_owned());
        self.add(Problem::MissingKey { key: key.to_owned(), allowed });
    }

    /// Says whether `key` has a value that was not refused.
    pub(crate) fn is_good(&self, key: &str) -> bool {
        self.seen.contains_key(key) && !self.bad.contains(key)
    }

    /// Refuses a good value of `key` because of others.
    pub(crate) fn conflict(&mut self, key: &str, reason: String) {
        let seen = self.seen.get(key).expect("only keys with a good value are checked against others");
        let problem = Problem::Conflict {
            origin: seen.origin.clone(),
            key: key.to_owned(),
            given: seen.given.clone(),
            reason,
        };
        self.add(problem);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    pub(crate) fn finish(self) -> Result<(), ConfigError> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(ConfigError { problems: self.problems, omitted: self.omitted })
    }
}
