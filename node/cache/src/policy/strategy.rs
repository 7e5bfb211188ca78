//! Strategies by name, as configuration, requests and reports spell them, and the policy that each stands for.

use super::Policy;
use super::lru::Lru;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A way to choose what leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub enum Strategy {
    /// Least recently used first.
    #[default]
    Lru,
}

/// The name is no strategy's.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("no strategy is called {name:?}; there are {}", Strategy::names())]
pub struct UnknownStrategy {
    /// What was asked for.
    pub name: String,
}

impl Strategy {
    /// All of them, in the order of the documentation.
    pub const ALL: [Strategy; 1] = [Strategy::Lru];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Lru => "lru",
        }
    }

    /// Makes its policy, empty, for a pool of at most `capacity` blocks. `seed` decides how ghosts are hashed, nothing else.
    pub fn build(self, capacity: u32, seed: u64) -> Box<dyn Policy> {
        let _ = (capacity, seed);
        match self {
            Strategy::Lru => Box::new(Lru::new()),
        }
    }

    fn names() -> String {
        Strategy::ALL.map(Strategy::name).join(", ")
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Strategy, UnknownStrategy> {
        let known = Strategy::ALL.into_iter().find(|strategy| strategy.name() == name);
        known.ok_or_else(|| UnknownStrategy { name: name.chars().take(64).collect() })
    }
}

impl TryFrom<String> for Strategy {
    type Error = UnknownStrategy;

    fn try_from(name: String) -> Result<Strategy, UnknownStrategy> {
        name.parse()
    }
}

impl From<Strategy> for &'static str {
    fn from(strategy: Strategy) -> &'static str {
        strategy.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strategy_is_written_and_read_by_one_name() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
            let json = serde_json::to_string(&strategy).expect("a name");
            assert_eq!(json, format!("\"{strategy}\""));
            assert_eq!(serde_json::from_str::<Strategy>(&json).expect("its own name"), strategy);
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_known_ones() {
        let error = "belady".parse::<Strategy>().expect_err("it needs the future");
        assert!(error.to_string().starts_with("no strategy is called \"belady\"; there are lru"), "{error}");
    }
}
