//! What the raft actor can be told, and by whom it is reached.

use super::raft::Figures;
use kvhive_consensus::{PeerId, WriteId};
use kvhive_control::{EventPage, Registry};
use kvhive_protocol::control::{CommandReply, ControlReply, CoordinatorStatus, Heartbeat, Proposal};
use kvhive_protocol::raft::RaftRequest;
use kvhive_protocol::scaling::Observation;
use kvhive_protocol::{Epoch, Level, Reason, RequestId};
use kvhive_runtime::{Reply, Sender};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// What the raft actor can be told.
pub(crate) enum RaftMessage {
    /// The timer ticked.
    Tick,
    /// A peer's message, what that peer speaks, and the memory that was set aside for it.
    Received { from: PeerId, speaks: Level, bytes: Vec<u8>, room: Arc<OwnedSemaphorePermit> },
    /// A peer cannot be reached.
    Unreachable { peer: PeerId },
    /// The log has synced this write and all before it.
    Persisted { write: WriteId },
    /// The log failed.
    LogFailed { reason: String },
    /// Apply this change; answered when it is applied, and a clear when it is complete.
    Propose { proposal: Proposal, reason: Reason, reply: Reply<ControlReply> },
    /// The map, if it is newer than `have`.
    FetchMap { have: Epoch, linearizable: bool, reply: Reply<ControlReply> },
    /// Renew a member's lease.
    Heartbeat { beat: Heartbeat, reply: Reply<ControlReply> },
    /// How do you see yourself?
    Status { reply: Reply<CoordinatorStatus> },
    /// Everything you know; through a read index, or as it is.
    Overview { linearizable: bool, reply: Reply<ControlReply> },
    /// The events after this one, at most so many, as far as this coordinator has applied.
    Events { after: u64, limit: usize, reply: Reply<EventPage> },
    /// Do something about the coordinators themselves.
    Admin { request: RaftRequest, reply: Reply<ControlReply> },
    /// The state as far as this coordinator has applied, the last entry in it, and the term.
    State { reply: Reply<(Registry, u64, u64)> },
    /// What each of these came to, if it was asked, as far as this coordinator has applied; and the last entry that it has.
    Asked { requests: Vec<RequestId>, reply: Reply<(u64, Vec<Option<CommandReply>>)> },
    /// How evenly is work spread, and what would make that more even?
    Balance { reply: Reply<ControlReply> },
    /// Which slots are on their way to where they belong?
    Moves { reply: Reply<ControlReply> },
    /// The load that the coordinators have agreed on, as far as this one has applied, oldest first.
    Observations { reply: Reply<Vec<Observation>> },
    /// What have you counted?
    Figures { reply: Reply<Figures> },
}

/// The raft actor's mailbox, from outside.
pub(crate) type Raft = Sender<RaftMessage>;
