//! What an engine has done.

use super::numbers::quantile;
use crate::latency::LatencySummary;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Requests whose latency counts in percentiles.
const REMEMBERED: usize = 4096;

/// What is counted.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) requests: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) cache_failures: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    pub(super) cached_tokens: AtomicU64,
    pub(super) generated_tokens: AtomicU64,
    pub(super) took: Latest,
    pub(super) first_token: Latest,
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
    /// Whether the cluster is left alone just now, because it did not answer: requests are computed without it meanwhile.
    pub is_resting: bool,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Those that were found.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub generated_tokens: u64,
    /// From call to answer: the mean of all, and percentiles of the last 4096.
    pub took: LatencySummary,
    /// From a request's turn to the first token of its answer, likewise.
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
            is_resting: false,
            prompt_tokens: of(&self.prompt_tokens),
            cached_tokens: of(&self.cached_tokens),
            generated_tokens: of(&self.generated_tokens),
            took: self.took.summary(),
            first_token: self.first_token.summary(),
        }
    }
}

/// The latest of some latencies, as they were: a figure of an engine is not rounded up to a bucket.
#[derive(Default)]
pub(super) struct Latest(Mutex<Recorded>);

#[derive(Default)]
struct Recorded {
    latest_ms: VecDeque<f64>,
    sum_ms: f64,
    count: u64,
}

impl Latest {
    pub(super) fn record(&self, took: Duration) {
        let mut recorded = self.recorded();
        let ms = took.as_secs_f64() * 1e3;
        if recorded.latest_ms.len() == REMEMBERED {
            recorded.latest_ms.pop_front();
        }
        recorded.latest_ms.push_back(ms);
        recorded.sum_ms += ms;
        recorded.count += 1;
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn summary(&self) -> LatencySummary {
        let (mut latest, avg) = {
            let recorded = self.recorded();
            (
                Vec::from_iter(recorded.latest_ms.iter().copied()),
                recorded.sum_ms / recorded.count.max(1) as f64,
            )
        };
        latest.sort_by(f64::total_cmp);
        let of = |share| quantile(&latest, share).unwrap_or_default();
        LatencySummary { avg, p50: of(0.5), p95: of(0.95), p99: of(0.99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_latest_and_the_mean_of_all() {
        let latest = Latest::default();
        assert_eq!(latest.summary(), LatencySummary::default());
        for ms in 0..=REMEMBERED as u64 {
            latest.record(Duration::from_millis(if ms == 0 { 1_000_000 } else { ms % 100 }));
        }
        let summary = latest.summary();
        assert!((summary.p50 - 49.0).abs() <= 1.0 && summary.p99 <= 99.0);
        assert!(summary.avg > 200.0);
    }
}
