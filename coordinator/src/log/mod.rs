//! The durable raft log: records in preallocated segments, one fdatasync a write however many batches it brings,
//! snapshots in files of their own.
//!
//! What was synced is never given up silently. Record n is written only after record n - 1 was synced, so whatever follows
//! a record proves that it was durable; the last one is made of sectors that are sealed each by itself, so a write that a
//! crash cut short (sectors missing) is not taken for damage, nor damage for it. A cut-short end is dropped; after
//! anything else the log refuses to open and changes nothing. It relies on disks writing whole sectors, and cannot notice
//! when sectors of the very last record turn to zeros after they were synced.

mod error;
pub(crate) mod fuzz;
mod record;
mod recover;
mod sector;
mod segment;
mod snapshot;
mod store;

pub use error::LogError;
pub use store::{LogFolder, LogStore};
