//! Strategies by name, as configuration, tenants' rules, requests and reports spell them. What each decides is
//! `kvhive-cache`'s.

use crate::ids::TenantId;
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
    /// Least frequently used first; counts age.
    Lfu,
    /// Least recent last use but one first.
    Lru2,
    /// Learns which blocks come back and when, and falls back to a simple rank that does better.
    Adaptive,
    /// Recency and frequency, balanced by ghosts.
    Arc,
    /// Shortest distance between two uses stays.
    Lirs,
    /// A small and a main queue, and ghosts.
    S3Fifo,
    /// One queue and a hand.
    Sieve,
    /// A window, then admission by frequency.
    WTinyLfu,
    /// What engines do: a queue of frames that are recycled in place.
    Paged,
    /// Least recently used first; cold blocks are compressed without loss before any leaves.
    Compressed,
    /// Least recently used first; cold blocks are quantized before any leaves.
    Quantized,
}

/// The most reports of one device: those of the tenants that come first.
pub const MAX_REPORTS: usize = 512;

/// The most reports that a device's heartbeat carries.
pub const MAX_LOAD_REPORTS: usize = 4;
/// The longest name of a way to rank, and the most ways that one report tells of.
const MAX_RANKER_BYTES: usize = 32;
const MAX_RANKERS: usize = 8;

/// How one strategy of a device does: that of the blocks of one size class, of one tenant or of all without rules of their own.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StrategyReport {
    /// Whose blocks it ranks; none for the tenants without rules of their own.
    pub tenant: Option<TenantId>,
    /// Bytes of the frames.
    pub frame_bytes: u64,
    /// Which strategy it is.
    pub strategy: Strategy,
    /// What it has chosen, if it is one that chooses.
    pub choice: Option<ChoiceReport>,
}

impl StrategyReport {
    /// Says whether its names and lists are as short as they may be.
    pub fn is_sound(&self) -> bool {
        let fits = |name: &str| name.len() <= MAX_RANKER_BYTES;
        self.choice.as_ref().is_none_or(|choice| {
            let estimates = &choice.estimates;
            fits(&choice.in_charge)
                && estimates.len() <= MAX_RANKERS
                && estimates.iter().all(|one| fits(&one.ranker))
        })
    }
}

/// Which way to rank a strategy has chosen, and on what evidence.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// Name of the way that ranks now.
    pub in_charge: String,
    /// What each way would have hit, by a small cache without bytes that follows it.
    pub estimates: Vec<Estimate>,
    /// Uses of sampled blocks that the estimates rest on.
    pub evidence: u64,
    /// One in so many blocks is sampled.
    pub sampled_one_in: u64,
    /// Times that another way was put in charge.
    pub switches: u64,
    /// Why it is this one.
    pub reason: Reason,
}

/// What one way to rank would have come to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Estimate {
    /// Its name.
    pub ranker: String,
    /// Its share of hits of the sampled uses, in millionths.
    pub hit_rate_ppm: u32,
}

/// Why a way to rank is in charge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Too little was seen to choose by: it stays as it is.
    TooLittleEvidence,
    /// No other is clearly better.
    NoneIsBetter,
    /// It is clearly better than what is learnt.
    IsBetter,
    /// It was put in charge before, and is not behind what is learnt.
    NotBehind,
}

impl Reason {
    /// Returns it in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::TooLittleEvidence => "too little evidence",
            Reason::NoneIsBetter => "none is clearly better",
            Reason::IsBetter => "clearly better than what is learnt",
            Reason::NotBehind => "in charge and not behind what is learnt",
        }
    }
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
    pub const ALL: [Strategy; 12] = [
        Strategy::Lru,
        Strategy::Lfu,
        Strategy::Lru2,
        Strategy::Adaptive,
        Strategy::Arc,
        Strategy::Lirs,
        Strategy::S3Fifo,
        Strategy::Sieve,
        Strategy::WTinyLfu,
        Strategy::Paged,
        Strategy::Compressed,
        Strategy::Quantized,
    ];

    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Strategy::Lru => "lru",
            Strategy::Lfu => "lfu",
            Strategy::Lru2 => "lru-2",
            Strategy::Adaptive => "adaptive",
            Strategy::Arc => "arc",
            Strategy::Lirs => "lirs",
            Strategy::S3Fifo => "s3-fifo",
            Strategy::Sieve => "sieve",
            Strategy::WTinyLfu => "w-tinylfu",
            Strategy::Paged => "paged",
            Strategy::Compressed => "compressed",
            Strategy::Quantized => "quantized",
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
