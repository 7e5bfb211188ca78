//! The durable raft log: an append-only file in preallocated segments, one fdatasync a batch, snapshots in files of
//! their own (docs/decisions/0001-own-log-store.md).
//!
//! What was synced is never given up silently. Every record says up to which sequence number everything was durable when
//! it was written. A damaged record is taken for a torn, never acknowledged end only if no record behind it says that
//! the damaged one had been synced; otherwise the log refuses to open.

mod error;
mod record;
mod recover;
mod segment;
mod snapshot;
mod store;

pub use error::LogError;
pub use store::LogStore;
