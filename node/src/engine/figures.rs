//! What an engine has done.

use crate::latency::{LatencyRecorder, LatencySummary};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) requests: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) cache_failures: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) took: LatencyRecorder,
    pub(super) first_token: LatencyRecorder,
}

/// What an engine has done.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct EngineStats {
    /// Requests that were answered.
    pub requests: u64,
    /// Those of which some block was found.
    pub hits: u64,
    /// Times that the cache did not do what it was asked; each was gone on without.
    pub cache_failures: u64,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Those that were found.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub generated_tokens: u64,
    /// From call to answer.
    pub took: LatencySummary,
    /// From a request's turn to the first token of its answer.
    pub first_token: LatencySummary,
}

impl EngineStats {
    /// Returns the share of requests of which some block was found, from 0 to 1.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.requests.max(1) as f64
    }
}

impl Figures {
    pub(super) fn read(&self) -> EngineStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            requests: of(&self.requests),
            hits: of(&self.hits),
            cache_failures: of(&self.cache_failures),
            prompt_tokens: of(&self.prompt_tokens),
            cached_tokens: of(&self.cached_tokens),
            generated_tokens: of(&self.generated_tokens),
            took: self.took.read().summary(),
            first_token: self.first_token.read().summary(),
        }
    }
}
