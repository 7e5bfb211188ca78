//! What a client has done, for its owner's metrics.

use crate::windows::{Fallback, Windows};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the client connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientStats {
    /// Requests sent to nodes.
    pub requests: u64,
    /// Payload bytes fetched.
    pub bytes_fetched: u64,
    /// Payload bytes stored.
    pub bytes_stored: u64,
    /// Blocks that arrived and did not match their header.
    pub corrupt_blocks: u64,
    /// Blocks that were encoded to be stored.
    pub encoded_blocks: u64,
    /// Blocks that arrived encoded and were decoded.
    pub decoded_blocks: u64,
    /// Requests repeated because the map was old.
    pub stale_epochs: u64,
    /// Requests repeated elsewhere or later because a device could not be reached or had no lease.
    pub failovers: u64,
    /// Requests that a node was too busy for, repeated or not.
    pub busy: u64,
    /// Requests that were not made, as all connections to a node were taken and none would have been free in time, and those of which a
    /// node said so before it did anything.
    pub shed: u64,
    /// Reads that were late and asked of other replicas as well.
    pub hedges: u64,
    /// Connections dialled to nodes.
    pub dials: u64,
    /// Payload bytes fetched by looking at nodes' memory; those of [`ClientStats::bytes_fetched`] have them in them.
    pub bytes_looked_at: u64,
    /// Nodes whose memory can be looked at now.
    pub windows: u64,
    /// Payload bytes fetched and stored over stages, without passing the host's memory; those of [`ClientStats::bytes_fetched`] and
    /// [`ClientStats::bytes_stored`] have them in them.
    pub bytes_fetched_on_gpu: u64,
    /// See above.
    pub bytes_stored_on_gpu: u64,
    /// Times that something which might have gone over a stage did not.
    pub stage_fallbacks: u64,
    /// Times that something which might have been looked at came over a connection, by [`Fallback::ALL`].
    pub fallbacks: [u64; Fallback::ALL.len()],
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) bytes_fetched: AtomicU64,
    pub(crate) bytes_stored: AtomicU64,
    pub(crate) corrupt_blocks: AtomicU64,
    pub(crate) encoded_blocks: AtomicU64,
    pub(crate) decoded_blocks: AtomicU64,
    pub(crate) stale_epochs: AtomicU64,
    pub(crate) failovers: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) shed: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) bytes_fetched_on_gpu: AtomicU64,
    pub(crate) bytes_stored_on_gpu: AtomicU64,
    pub(crate) stage_fallbacks: AtomicU64,
}

impl Counters {
    pub(crate) fn snapshot(&self, dials: u64, windows: Option<&Windows>) -> ClientStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientStats {
            requests: read(&self.requests),
            bytes_fetched: read(&self.bytes_fetched),
            bytes_stored: read(&self.bytes_stored),
            corrupt_blocks: read(&self.corrupt_blocks),
            encoded_blocks: read(&self.encoded_blocks),
            decoded_blocks: read(&self.decoded_blocks),
            stale_epochs: read(&self.stale_epochs),
            failovers: read(&self.failovers),
            busy: read(&self.busy),
            shed: read(&self.shed),
            hedges: read(&self.hedges),
            dials,
            bytes_fetched_on_gpu: read(&self.bytes_fetched_on_gpu),
            bytes_stored_on_gpu: read(&self.bytes_stored_on_gpu),
            stage_fallbacks: read(&self.stage_fallbacks),
            bytes_looked_at: windows.map_or(0, Windows::bytes),
            windows: windows.map_or(0, |windows| windows.open() as u64),
            fallbacks: Fallback::ALL.map(|why| windows.map_or(0, |windows| windows.fallbacks(why))),
        }
    }
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
