//! What a replay has counted, and its report.

use crate::report::{self, Latencies, Summary};
use kvhive_client::StoreOutcome;
use kvhive_protocol::data::Refusal;
use serde::Serialize;
use std::time::Duration;

/// What a replay came to; the JSON form of it is stable.
#[derive(Serialize, Debug)]
pub(crate) struct Report {
    pub(super) requests: u64,
    blocks: u64,
    hits: u64,
    block_hit_rate: f64,
    tokens: u64,
    tokens_saved: u64,
    tokens_saved_ratio: f64,
    bytes: u64,
    bytes_fetched: u64,
    bytes_stored: u64,
    gb_per_second: f64,
    seconds: f64,
    latencies: CallLatencies,
    stored_blocks: u64,
    /// Blocks that the cluster had and that were quicker recomputed.
    recomputed_blocks: u64,
    /// Copies of blocks that hints were heard for.
    released_copies: u64,
    /// All blocks that were not stored.
    refused_blocks: u64,
    /// Why they were not.
    refused: Refused,
    errors: u64,
    pub(super) wrong_bytes: u64,
    /// It ended early, because nobody answered.
    pub(super) gave_up: bool,
}

/// Blocks that were not stored, by reason.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Refused {
    /// What would leave for them is worth more, or all frames are in use: how a full cache answers.
    pub(super) no_room: u64,
    /// They are larger than the nodes' frames.
    pub(super) too_large: u64,
    /// Fewer replicas than asked have them.
    pub(super) too_few_copies: u64,
    /// No device answered in time.
    pub(super) unreachable: u64,
    /// They were being written by somebody else, their tenant was cleared, or they came damaged.
    pub(super) other: u64,
}

impl Refused {
    pub(super) fn add(&mut self, outcome: StoreOutcome) {
        let count = match outcome {
            StoreOutcome::Acknowledged { .. } => return,
            StoreOutcome::Refused(Refusal::NoRoom) => &mut self.no_room,
            StoreOutcome::Refused(Refusal::TooLarge) => &mut self.too_large,
            StoreOutcome::TooFewCopies { .. } => &mut self.too_few_copies,
            StoreOutcome::Unreachable => &mut self.unreachable,
            StoreOutcome::Refused(_) => &mut self.other,
        };
        *count += 1;
    }

    fn merge(&mut self, other: &Refused) {
        self.no_room += other.no_room;
        self.too_large += other.too_large;
        self.too_few_copies += other.too_few_copies;
        self.unreachable += other.unreachable;
        self.other += other.other;
    }

    fn sum(&self) -> u64 {
        self.no_room + self.too_large + self.too_few_copies + self.unreachable + self.other
    }
}

/// Latencies of the three calls, in milliseconds.
#[derive(Serialize, Debug)]
pub(crate) struct CallLatencies {
    r#match: Summary,
    fetch: Summary,
    store: Summary,
}

/// What one worker has seen.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) blocks: u64,
    pub(super) hits: u64,
    pub(super) tokens: u64,
    pub(super) tokens_saved: u64,
    pub(super) bytes_fetched: u64,
    pub(super) bytes_stored: u64,
    pub(super) stored_blocks: u64,
    pub(super) recomputed_blocks: u64,
    pub(super) released_copies: u64,
    pub(super) refused: Refused,
    pub(super) errors: u64,
    pub(super) wrong_bytes: u64,
    pub(super) gave_up: bool,
    pub(super) matching: Latencies,
    pub(super) fetching: Latencies,
    pub(super) storing: Latencies,
}

impl Tally {
    pub(super) fn fail(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        tracing::warn!(%error, "call failed");
    }

    pub(super) fn line(&self) -> String {
        format!("{:.1} % hits", 100.0 * ratio(self.hits, self.blocks))
    }

    pub(super) fn merge(&mut self, other: &Tally) {
        for (ours, theirs) in [
            (&mut self.requests, other.requests),
            (&mut self.blocks, other.blocks),
            (&mut self.hits, other.hits),
            (&mut self.tokens, other.tokens),
            (&mut self.tokens_saved, other.tokens_saved),
            (&mut self.bytes_fetched, other.bytes_fetched),
            (&mut self.bytes_stored, other.bytes_stored),
            (&mut self.stored_blocks, other.stored_blocks),
            (&mut self.recomputed_blocks, other.recomputed_blocks),
            (&mut self.released_copies, other.released_copies),
            (&mut self.errors, other.errors),
            (&mut self.wrong_bytes, other.wrong_bytes),
        ] {
            *ours += theirs;
        }
        self.refused.merge(&other.refused);
        self.gave_up |= other.gave_up;
        self.matching.merge(&other.matching);
        self.fetching.merge(&other.fetching);
        self.storing.merge(&other.storing);
    }

    pub(super) fn report(self, took: Duration) -> Report {
        let bytes = self.bytes_fetched + self.bytes_stored;
        let seconds = took.as_secs_f64();
        Report {
            requests: self.requests,
            blocks: self.blocks,
            hits: self.hits,
            block_hit_rate: ratio(self.hits, self.blocks),
            tokens: self.tokens,
            tokens_saved: self.tokens_saved,
            tokens_saved_ratio: ratio(self.tokens_saved, self.tokens),
            bytes,
            bytes_fetched: self.bytes_fetched,
            bytes_stored: self.bytes_stored,
            gb_per_second: bytes as f64 / 1e9 / seconds,
            seconds,
            latencies: CallLatencies {
                r#match: self.matching.summary(),
                fetch: self.fetching.summary(),
                store: self.storing.summary(),
            },
            stored_blocks: self.stored_blocks,
            recomputed_blocks: self.recomputed_blocks,
            released_copies: self.released_copies,
            refused_blocks: self.refused.sum(),
            refused: self.refused,
            errors: self.errors,
            wrong_bytes: self.wrong_bytes,
            gave_up: self.gave_up,
        }
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Report {
    pub(super) fn print(&self) {
        println!("requests        {}", self.requests);
        println!(
            "blocks          {} looked up, {} hit: {:.2} %",
            self.blocks,
            self.hits,
            100.0 * self.block_hit_rate
        );
        println!(
            "prefill tokens  {} of {} saved: {:.2} %",
            self.tokens_saved,
            self.tokens,
            100.0 * self.tokens_saved_ratio
        );
        println!(
            "bytes moved     {} ({} fetched, {} stored) in {:.1} s: {:.2} GB/s",
            report::bytes(self.bytes),
            report::bytes(self.bytes_fetched),
            report::bytes(self.bytes_stored),
            self.seconds,
            self.gb_per_second
        );
        println!("match           {}", self.latencies.r#match.line());
        println!("fetch           {}", self.latencies.fetch.line());
        println!("store           {}", self.latencies.store.line());
        if self.recomputed_blocks > 0 {
            println!(
                "recomputed      {} blocks that were there, because that is quicker",
                self.recomputed_blocks
            );
        }
        if self.released_copies > 0 {
            println!("hints           heard for {} copies of blocks", self.released_copies);
        }
        println!(
            "not stored      {} blocks: {} for want of room or worth, {} too large, {} with too few copies, {} unreachable, {} while another store wrote the same block or its tenant was cleared",
            self.refused_blocks,
            self.refused.no_room,
            self.refused.too_large,
            self.refused.too_few_copies,
            self.refused.unreachable,
            self.refused.other
        );
        println!("trouble         {} errors, {} blocks with wrong bytes", self.errors, self.wrong_bytes);
        if self.refused.unreachable > 0 {
            println!("warning: devices did not answer in time; `kvhive status` says who lives");
        }
        if self.refused.too_large > 0 {
            println!(
                "warning: blocks are larger than the nodes' frames; --block-size must be at most their block_sizes"
            );
        }
    }
}
