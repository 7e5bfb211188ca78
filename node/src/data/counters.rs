//! What the data plane has done, for metrics.

use crate::latency::LatencyRecorder;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the node started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    pub(crate) refused_handshakes: AtomicU64,
    /// Requests that came, those that were refused among them.
    pub(crate) matches: AtomicU64,
    pub(crate) fetches: AtomicU64,
    pub(crate) stores: AtomicU64,
    pub(crate) releases: AtomicU64,
    /// Things that were asked of names one by one, and of all of them.
    pub(crate) name_asks: AtomicU64,
    pub(crate) name_lists: AtomicU64,
    pub(crate) fetched_bytes: AtomicU64,
    pub(crate) stored_bytes: AtomicU64,
    pub(crate) corrupt_blocks: AtomicU64,
    /// Blocks decoded for askers who want them raw.
    pub(crate) decoded_blocks: AtomicU64,
    /// Blocks that such an asker got for a miss, because they do not decode.
    pub(crate) undecoded_blocks: AtomicU64,
    pub(crate) busy: AtomicU64,
    /// Requests that would not have been answered in their time.
    pub(crate) late: AtomicU64,
    pub(crate) no_lease: AtomicU64,
    pub(crate) stale_epoch: AtomicU64,
    pub(crate) forbidden: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) mailbox_full: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) replicated_blocks: AtomicU64,
    pub(crate) replication_failures: AtomicU64,
    pub(crate) replication_dropped: AtomicU64,
    /// How long the batch copied last in the background had waited and taken, in microseconds.
    pub(crate) replication_lag_us: AtomicU64,
    /// Blocks of slots given away that their new replicas hold then, and times that some did not get there.
    pub(crate) moved_blocks: AtomicU64,
    pub(crate) move_failures: AtomicU64,
    pub(crate) actor_restarts: AtomicU64,
    /// Snapshots written by the node itself.
    pub(crate) snapshots: AtomicU64,
    /// Snapshots that could not be written or taken in.
    pub(crate) snapshot_failures: AtomicU64,
    pub(crate) snapshot_loaded_blocks: AtomicU64,
    pub(crate) snapshot_damaged_blocks: AtomicU64,
    /// Of the port that speaks Redis: callers that came, those that were turned away, commands, those that failed, and values that were
    /// asked for and found or not.
    pub(crate) redis_connections: AtomicU64,
    pub(crate) redis_refused: AtomicU64,
    pub(crate) redis_commands: AtomicU64,
    pub(crate) redis_errors: AtomicU64,
    pub(crate) redis_hits: AtomicU64,
    pub(crate) redis_misses: AtomicU64,
    /// Bytes of blocks that askers were told the places of, and answers that were let go of before their asker was done.
    pub(crate) shown_bytes: AtomicU64,
    pub(crate) grants_expired: AtomicU64,
    /// Bytes of copies from one of this node's GPUs to another, or within one.
    pub(crate) peer_bytes: AtomicU64,
    /// Bytes of blocks that came over stages and that went over them, and times that some could not.
    pub(crate) gathered_bytes: AtomicU64,
    pub(crate) scattered_bytes: AtomicU64,
    pub(crate) stage_failures: AtomicU64,
    /// Guests that askers were given: that were here, that others had fetched already, that were fetched for them; those that they were not;
    /// bytes that came for them, and times that a replica did not send what it was asked for.
    pub(crate) guests_here: AtomicU64,
    pub(crate) guests_joined: AtomicU64,
    pub(crate) guests_fetched: AtomicU64,
    pub(crate) guests_missed: AtomicU64,
    /// Guests that came from replicas.
    pub(crate) guests_came: AtomicU64,
    pub(crate) guest_fetched_bytes: AtomicU64,
    pub(crate) guest_failures: AtomicU64,
    /// Processes that were not let look: their pass was none, or their user another.
    pub(crate) share_refused_pass: AtomicU64,
    pub(crate) share_refused_user: AtomicU64,
    /// How long requests took that were answered, not refused, from the whole question to the whole answer.
    pub(crate) took: [LatencyRecorder; 4],
}

impl Counters {
    /// Counts a guest of so many bytes that came from a replica.
    pub(crate) fn guest_came(&self, bytes: u64) {
        count(&self.guests_came);
        add(&self.guest_fetched_bytes, bytes);
    }
}

/// Names of the requests whose latencies are recorded, in the order of [`Counters::took`].
pub(crate) const VERBS: [&str; 4] = ["match", "fetch", "store", "release"];

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Adds.
pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
