//! How patient a GPU's pairs are, and how many there may be.

use std::time::Duration;

/// Limits of all pairs of one GPU.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tuning {
    /// Communicators at a time, those that are made or given up included; at least one.
    pub max_live: usize,
    /// Wants at a time, and as many expectations.
    pub max_transfers: usize,
    /// Bytes that must be wanted of a peer before a communicator is made.
    pub make_after_bytes: u64,
    /// Bytes count together that are wanted within so long of each other.
    pub wanted_within: Duration,
    /// A communicator that was used so recently is not closed to make room.
    pub keep: Duration,
    /// For how long a want waits while a communicator is being made.
    pub wait_for_pair: Duration,
    /// How long a want waits for both slots.
    pub grant_limit: Duration,
    /// How long a grant waits for the sender.
    pub go_limit: Duration,
    /// How long rank 1 waits for an offer, and rank 0 for its id and for rank 1.
    pub offer_limit: Duration,
    /// How long both wait for a communicator to stand.
    pub join_limit: Duration,
    /// How long a worker may take to give up a communicator before it is killed.
    pub abort_limit: Duration,
    /// How long it may take to start.
    pub start_limit: Duration,
    /// How long nothing is made anew after something was given up; twice as long with each time in a row.
    pub rest_least: Duration,
    /// The longest that it gets.
    pub rest_most: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            max_live: 16,
            max_transfers: 1024,
            make_after_bytes: 64 << 20,
            wanted_within: Duration::from_secs(60),
            keep: Duration::from_secs(10),
            wait_for_pair: Duration::ZERO,
            grant_limit: Duration::from_millis(200),
            go_limit: Duration::from_secs(1),
            offer_limit: Duration::from_secs(2),
            join_limit: Duration::from_secs(10),
            abort_limit: Duration::from_secs(4),
            start_limit: Duration::from_secs(20),
            rest_least: Duration::from_secs(1),
            rest_most: Duration::from_secs(300),
        }
    }
}

impl Tuning {
    /// Returns how long nothing is made anew after so many failures in a row.
    pub(super) fn rest(&self, failures: u32) -> Duration {
        let doubled = self.rest_least.saturating_mul(1 << failures.saturating_sub(1).min(20));
        doubled.min(self.rest_most)
    }
}

/// A rule that is left out, so that a test can show that it would be missed.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flaw {
    /// A proposal is not withdrawn for an older one.
    NoWoundWait,
    /// What was granted to one who sends to several is not asked back for an older one.
    NoWounds,
    /// The receiver enqueues when it grants, before the sender has said that it sends.
    EnqueuesEarly,
    /// Messages of an earlier communicator are taken for those of the present one.
    AnyIncarnation,
}
