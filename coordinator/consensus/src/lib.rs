//! Raft as a machine: events in, effects out. It owns the `raft` crate's node and the log in memory; it opens no file,
//! sends nothing, has no clock and no randomness of its own. Whoever runs it performs the effects in order and reports
//! back what came of them.
//!
//! Pre-vote, check-quorum and linearizable reads by read index (Ongaro, "Consensus: bridging theory and practice", 2014,
//! §6.4 and §9.6) are always on. Log writes overlap with replication (ibid. §10.2.1), but nothing that vouches for an
//! entry or a vote leaves before [`Event::Persisted`] says that it is durable. A peer that starts with an empty log votes only
//! when nobody can have counted on what it held: see [`Standing`].

mod changes;
mod founding;
#[doc(hidden)]
pub mod fuzz;
mod group;
mod invariants;
mod machine;
mod memory;
mod messages;
mod reads;
mod recovery;
mod snapshots;
mod standing;
mod timeouts;
mod transfer;
mod types;

pub use group::{Group, MAX_ABOUT_BYTES, MAX_PEERS};
pub use machine::Consensus;
pub use messages::{
    MAX_APPEND_MESSAGE_BYTES, MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_PROPOSAL_BYTES, MAX_SNAPSHOT_BYTES,
};
pub use recovery::{Survivor, beginning};
pub use standing::Standing;
pub use types::{
    ConsensusConfig, ConsensusError, Effect, Event, GroupChange, LogBatch, LogEntry, PeerId, PeerProgress,
    RefuseReason, Restored, Role, SnapshotRecord, Status, Ticket, WriteId,
};
