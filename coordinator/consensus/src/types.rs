//! What the machine is told, what it asks for, and the plain types of a log that is written elsewhere.

use crate::group::split;
use crate::standing::Standing;
use std::collections::BTreeMap;
use thiserror::Error;

/// A coordinator's number in the raft group, from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u64);

/// The host's name for a proposal or a read that it waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// Names one [`Effect::Persist`], in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// How a peer is set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConsensusConfig {
    /// This peer.
    pub id: PeerId,
    /// Every peer that the host names, this one included, and what the others are to know of each. If no log of theirs holds
    /// anything they found the group, and these must be the same on each; from then on the log says who is of it, and these
    /// are whom a peer with an empty log asks.
    pub peers: BTreeMap<PeerId, Vec<u8>>,
    /// Ticks without a leader after which an election is held; randomised up to twice this.
    pub election_ticks: u32,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Proposals that may wait at a time; more are refused as [`RefuseReason::Overloaded`]. Reads likewise.
    pub max_inflight: usize,
    /// The largest proposal, in bytes; at most [`MAX_PROPOSAL_BYTES`](crate::MAX_PROPOSAL_BYTES).
    pub max_proposal_bytes: usize,
    /// Applied entries after which a snapshot is asked for.
    pub snapshot_every: u64,
    /// Where randomised election timeouts come from: the same seed and events give the same effects.
    pub seed: u64,
    /// Tells this start's proposals from those of an earlier one; any number that was not used before.
    pub start: u64,
}

/// One entry of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The entry as raft encodes it.
    pub bytes: Vec<u8>,
}

/// The state machine at some index.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotRecord {
    /// The last index it contains.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// The group and the state.
    pub data: Vec<u8>,
}

impl SnapshotRecord {
    /// Returns the state alone; none when the bytes make no sense.
    pub fn state(&self) -> Option<&[u8]> {
        split(&self.data).map(|(_, state)| state)
    }
}

/// What must be durable before [`Event::Persisted`] is reported. Parts apply in this order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogBatch {
    /// Replaces the log up to the snapshot's index.
    pub snapshot: Option<SnapshotRecord>,
    /// The snapshot came from a leader and replaces the whole log: entries after its index go too.
    pub reset: bool,
    /// Follow what is there; an entry with an index that is there already replaces it and all after it.
    pub entries: Vec<LogEntry>,
    /// Vote, term, commit and standing as the machine encodes them; the last one counts.
    pub hard_state: Option<Vec<u8>>,
}

/// What a log held when it was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// The newest snapshot.
    pub snapshot: Option<SnapshotRecord>,
    /// The entries after it, without a gap.
    pub entries: Vec<LogEntry>,
    /// The last hard state.
    pub hard_state: Option<Vec<u8>>,
}

/// A change of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupChange {
    /// A peer follows, without a vote.
    Add {
        /// Which.
        peer: PeerId,
        /// What the others are to know of it; at most [`MAX_ABOUT_BYTES`](crate::MAX_ABOUT_BYTES).
        about: Vec<u8>,
    },
    /// A peer that follows and has caught up gets a vote.
    Promote {
        /// Which.
        peer: PeerId,
        /// Whose place it takes, in one step.
        replaces: Option<PeerId>,
    },
    /// A peer leaves the group.
    Remove {
        /// Which.
        peer: PeerId,
    },
}

/// How far a peer of the group is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerProgress {
    /// Which.
    pub peer: PeerId,
    /// It has a vote.
    pub votes: bool,
    /// It loses its vote with the change that is under way.
    pub leaves: bool,
    /// The last entry that it is known to have; none where that is not known, on others than the leader.
    pub matched: Option<u64>,
    /// Entries that it lacks.
    pub lag: Option<u64>,
    /// It is being sent the whole state.
    pub takes_snapshot: bool,
    /// It was heard within an election timeout.
    pub is_heard: bool,
}

/// What the machine is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A tick of the host's timer.
    Tick,
    /// A peer's message, as [`Effect::Send`] gave it there.
    Received {
        /// Who sent it, as the connection knows.
        from: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Append this to the log.
    Propose {
        /// Comes back in [`Effect::Apply`] or [`Effect::Refused`].
        ticket: Ticket,
        /// What is proposed.
        data: Vec<u8>,
    },
    /// Say when the applied state is as new as any change acknowledged before now.
    Read {
        /// Comes back in [`Effect::Readable`] or [`Effect::Refused`].
        ticket: Ticket,
    },
    /// Hand leadership over to another voter.
    Transfer {
        /// Comes back in [`Effect::HandedOver`] or [`Effect::Refused`].
        ticket: Ticket,
        /// To whom; to the one that has most of the log when none.
        to: Option<PeerId>,
    },
    /// Change the group.
    ChangeGroup {
        /// Comes back in [`Effect::GroupSettled`] or [`Effect::Refused`].
        ticket: Ticket,
        /// How.
        change: GroupChange,
    },
    /// The log store has synced this write and all before it.
    Persisted {
        /// Which.
        write: WriteId,
    },
    /// The host's answer to [`Effect::TakeSnapshot`].
    SnapshotTaken {
        /// The index that was applied last when it was taken.
        index: u64,
        /// The state.
        data: Vec<u8>,
    },
    /// A peer could not be reached.
    PeerUnreachable {
        /// Which.
        peer: PeerId,
    },
}

/// What the machine asks for. Effects are performed in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Send a message to a peer; it may be lost.
    Send {
        /// To whom.
        to: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Make a batch durable, after all batches before it, then report [`Event::Persisted`].
    Persist {
        /// Its name.
        write: WriteId,
        /// What is to be durable.
        batch: LogBatch,
    },
    /// Apply a committed entry to the state machine. In index order, each once.
    Apply {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// What was proposed.
        data: Vec<u8>,
        /// The ticket under which this start of this peer proposed it, if it did and still waits.
        ticket: Option<Ticket>,
    },
    /// Replace the state machine by this snapshot.
    Install {
        /// The last index it contains.
        index: u64,
        /// The state.
        data: Vec<u8>,
    },
    /// Encode the state machine as it is now and report [`Event::SnapshotTaken`].
    TakeSnapshot {
        /// The index that is applied.
        index: u64,
    },
    /// The state machine as it is now may answer the read.
    Readable {
        /// The read.
        ticket: Ticket,
    },
    /// Another peer leads now.
    HandedOver {
        /// What asked for it.
        ticket: Ticket,
        /// Who leads: whom it was handed to, unless another was quicker.
        leader: PeerId,
    },
    /// The group has changed: [`Consensus::group`](crate::Consensus::group) says how it is now.
    GroupChanged,
    /// A change of the group is through, or was so already.
    GroupSettled {
        /// What asked for it.
        ticket: Ticket,
    },
    /// The proposal, read, handing over or change is not served.
    Refused {
        /// Which.
        ticket: Ticket,
        /// Why.
        reason: RefuseReason,
    },
    /// This peer's role, term or leader changed.
    RoleChanged {
        /// Its role.
        role: Role,
        /// The term.
        term: u64,
        /// The leader, if known.
        leader: Option<PeerId>,
    },
}

/// Why a proposal or read is not served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RefuseReason {
    /// This peer does not lead: nothing happened.
    NotLeader {
        /// Who does, if known.
        leader: Option<PeerId>,
    },
    /// Too much waits: nothing happened.
    Overloaded,
    /// The proposal is too large: nothing happened.
    TooLarge,
    /// Leadership was lost while it was under way. A proposal may still be applied later; a read was not served.
    Lost,
    /// This peer would take its own place.
    OwnPlace {
        /// Which.
        peer: PeerId,
    },
    /// This peer has no vote in the group, or is not of it.
    NotAVoter {
        /// Which.
        peer: PeerId,
    },
    /// This peer was not heard for an election timeout.
    Silent {
        /// Which.
        peer: PeerId,
    },
    /// Nobody could take leadership over: this peer goes on leading.
    NoSuccessor,
    /// The group is being changed: one change at a time.
    ChangeUnderway,
    /// This peer is of the group already, and known otherwise.
    AlreadyThere {
        /// Which.
        peer: PeerId,
    },
    /// This peer votes already and takes nobody's place.
    Votes {
        /// Which.
        peer: PeerId,
    },
    /// This peer is not of the group.
    NotThere {
        /// Which.
        peer: PeerId,
    },
    /// This peer leads: leadership is handed over first.
    Leads,
    /// This peer lacks too much of the log to vote.
    NotCaughtUp {
        /// Which.
        peer: PeerId,
        /// Entries that it lacks.
        lag: u64,
    },
    /// This peer has not said that it has everything that it could have lost: its vote would not count.
    NotSettled {
        /// Which.
        peer: PeerId,
    },
    /// Of those who would vote afterwards too few are heard, or would vote: nothing would be committed any more.
    LosesMajority {
        /// How many are heard.
        heard: usize,
        /// How many are needed.
        needed: usize,
        /// Of how many.
        of: usize,
    },
}

/// What a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// It follows a leader or waits for one.
    Follower,
    /// It asks whether an election could be won.
    PreCandidate,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
}

/// The machine at a glance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its role.
    pub role: Role,
    /// The term.
    pub term: u64,
    /// The leader, if known.
    pub leader: Option<PeerId>,
    /// What its log is worth.
    pub standing: Standing,
    /// The highest index known to be committed.
    pub committed: u64,
    /// The highest index applied.
    pub applied: u64,
    /// The last index in the log.
    pub last_index: u64,
    /// Messages that were ignored because they were damaged or made no sense.
    pub ignored_messages: u64,
    /// Snapshots that were not taken over because no message could carry them; the log grows until one can.
    pub oversized_snapshots: u64,
}

/// Why a machine could not be made.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ConsensusError {
    /// The setup makes no sense.
    #[error("raft setup: {0}")]
    Config(String),
    /// The restored log makes no sense.
    #[error("raft log: {0}")]
    Log(String),
}
