//! What a GPU's pairs are told, and what they ask for.

use kvhive_protocol::links::PairState;
use kvhive_protocol::pairs::{PairMessage, TransferId, UniqueId};
use kvhive_protocol::{DeviceId, Generation, Moment};
use std::fmt;

/// The hand's name of a transfer that it wants. It gives none twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// The worker's name of a communicator. None is used twice in one life of the machine, so that an answer of an earlier one is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Communicator(pub u64);

/// What the machine is told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// Time has passed: told by [`Pairs::wakes`](super::Pairs::wakes) at the latest.
    Tick,
    /// A GPU of another member is in the map, in this start of its member.
    Peer {
        /// Which.
        device: DeviceId,
        /// Which start.
        generation: Generation,
    },
    /// It is not any more.
    Gone {
        /// Which.
        device: DeviceId,
    },
    /// Bytes are wanted to go to a peer, and are answered by the deadline.
    Want {
        /// The hand's name.
        ticket: Ticket,
        /// To whom.
        peer: DeviceId,
        /// How much.
        bytes: u64,
        /// By when.
        deadline: Moment,
    },
    /// Bytes are wanted to go to several peers at once, and are answered by the deadline.
    WantAll {
        /// The hand's name.
        ticket: Ticket,
        /// To whom.
        peers: Vec<DeviceId>,
        /// How much.
        bytes: u64,
        /// By when.
        deadline: Moment,
    },
    /// A peer's node does not take it.
    Refused {
        /// Which.
        ticket: Ticket,
    },
    /// This node has reserved frames for what a peer wants to send, and is answered by the deadline.
    Expect {
        /// Which.
        transfer: TransferId,
        /// How much.
        bytes: u64,
        /// By when.
        deadline: Moment,
    },
    /// A peer says something.
    Message(PairMessage),
    /// A peer's node has answered that this start of it does without NCCL.
    Lacks {
        /// Which.
        device: DeviceId,
        /// Which start.
        generation: Generation,
    },
    /// The worker says something.
    Worker(Answer),
}

/// What the worker says. Each is of what it was commanded in the order in which it was.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// It runs.
    Started,
    /// There is nothing here to call NCCL with, and never will be while this process lives: it ends.
    Unfit,
    /// An id is made.
    Made {
        /// For which.
        communicator: Communicator,
        /// The id.
        id: UniqueId,
    },
    /// The communicator stands.
    Ready {
        /// Which.
        communicator: Communicator,
    },
    /// What was enqueued last is done: nothing touches its frames any more.
    Done {
        /// Where.
        communicator: Communicator,
        /// Which.
        transfer: TransferId,
    },
    /// The communicator is of no use any more. What is enqueued may go on until it is closed.
    Failed {
        /// Which.
        communicator: Communicator,
    },
    /// It is no more, and nothing of it touches memory.
    Closed {
        /// Which.
        communicator: Communicator,
    },
    /// The worker is no more, and with it everything that it did. It is the last that is heard of it.
    Died,
}

/// What the worker is to do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Make an id; answers `Made` or `Failed`.
    Id {
        /// For which.
        communicator: Communicator,
    },
    /// Join; answers `Ready` or `Failed`.
    Join {
        /// Which; rank 0 has made its id before.
        communicator: Communicator,
        /// The id.
        id: UniqueId,
        /// As which rank.
        rank: u8,
        /// Of how many.
        of: u8,
    },
    /// Enqueue a send of the ticket's frames, to all others where they are several; answers `Done` or `Failed`.
    Send {
        /// Where.
        communicator: Communicator,
        /// Which.
        transfer: TransferId,
        /// The hand's name.
        ticket: Ticket,
        /// By when it is to be done.
        deadline: Moment,
    },
    /// Enqueue a receive into the frames that are reserved for it; answers `Done` or `Failed`.
    Receive {
        /// Where.
        communicator: Communicator,
        /// Which.
        transfer: TransferId,
        /// By when it is to be done.
        deadline: Moment,
    },
    /// Give it up, whatever it does; answers `Closed`.
    Abort {
        /// Which.
        communicator: Communicator,
    },
    /// Close what does nothing; answers `Closed`.
    Close {
        /// Which.
        communicator: Communicator,
    },
}

/// What the machine asks for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Have a peer's node reserve frames and expect the transfer. What the node refuses is told by [`Event::Refused`].
    Store {
        /// The hand's name.
        ticket: Ticket,
        /// Which.
        transfer: TransferId,
        /// At whose node.
        peer: DeviceId,
        /// How much.
        bytes: u64,
    },
    /// Say this to the node of whom it is for.
    Say(PairMessage),
    /// Command the worker.
    Worker(Command),
    /// Start the worker; it says `Started`, or has died.
    StartWorker,
    /// Kill the worker; it has died then.
    KillWorker,
    /// The answer to a want: all bytes have left. Whether they have arrived is what the peer's node says to the store.
    Carried {
        /// Which.
        ticket: Ticket,
    },
    /// The answer to a want: it goes by TCP.
    UseTcp {
        /// Which.
        ticket: Ticket,
        /// Why.
        why: Why,
    },
    /// Nothing touches the frames of a want any more; once for each, with the answer or later.
    SourceQuiet {
        /// Which.
        ticket: Ticket,
    },
    /// The answer to an expectation: the bytes are in its frames.
    Arrived {
        /// Which.
        transfer: TransferId,
    },
    /// The answer to an expectation: they do not come this way.
    NotArrived {
        /// Which.
        transfer: TransferId,
        /// Why.
        why: Why,
    },
    /// Nothing touches the frames of an expectation any more; once for each, with the answer or later.
    RoomQuiet {
        /// Which.
        transfer: TransferId,
    },
    /// Something has become of a pair, or of a communicator of several: for those who count.
    Count(Counted),
}

/// What has become of a communicator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Counted {
    /// A pair's stands.
    Made,
    /// A pair's is given up, or what there was of it.
    GivenUp(Why),
    /// One of several stands.
    GroupMade,
    /// One of several is given up, or what there was of it.
    GroupGivenUp(Why),
}

/// Why something does not go by NCCL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Why {
    /// Too few bytes were wanted of this peer for a communicator.
    TooFewBytes,
    /// The communicator is being made.
    BeingMade,
    /// It was given up, and none is made for a while.
    Cold,
    /// It is being given up.
    BeingClosed,
    /// There are as many communicators as there may be, and all were used lately.
    NoRoom,
    /// It was closed to make room for another.
    MadeRoom,
    /// The worker died, or does not start.
    NoWorker,
    /// The peer is not in the map, or has started anew.
    Gone,
    /// The peer has given it up, or did not want it.
    PeerBroke,
    /// The peer did not answer in time.
    NoAnswer,
    /// One of the two ends did not have its slot free in time.
    NotGranted,
    /// It was not done by its deadline.
    Late,
    /// NCCL failed.
    Failed,
    /// The peer's node did not take it.
    Refused,
    /// The two ends do not mean the same number of bytes.
    Mismatch,
    /// The sender does not send it this way.
    Withdrawn,
    /// There are as many transfers as there may be.
    TooMany,
    /// One of the two ends does without NCCL.
    Without,
}

impl Why {
    /// All of them, in this order.
    pub const ALL: [Why; 18] = [
        Why::TooFewBytes,
        Why::BeingMade,
        Why::Cold,
        Why::BeingClosed,
        Why::NoRoom,
        Why::MadeRoom,
        Why::NoWorker,
        Why::Gone,
        Why::PeerBroke,
        Why::NoAnswer,
        Why::NotGranted,
        Why::Late,
        Why::Failed,
        Why::Refused,
        Why::Mismatch,
        Why::Withdrawn,
        Why::TooMany,
        Why::Without,
    ];

    /// Returns its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::TooFewBytes => "too-few-bytes",
            Why::BeingMade => "being-made",
            Why::Cold => "cold",
            Why::BeingClosed => "being-closed",
            Why::NoRoom => "no-room",
            Why::MadeRoom => "made-room",
            Why::NoWorker => "no-worker",
            Why::Gone => "gone",
            Why::PeerBroke => "peer-broke",
            Why::NoAnswer => "no-answer",
            Why::NotGranted => "not-granted",
            Why::Late => "late",
            Why::Failed => "failed",
            Why::Refused => "refused",
            Why::Mismatch => "mismatch",
            Why::Withdrawn => "withdrawn",
            Why::TooMany => "too-many",
            Why::Without => "without",
        }
    }

    /// Says whether the pair has failed; not where it was not there, or both ends were busy.
    pub fn is_failure(self) -> bool {
        matches!(self, Why::Late | Why::Failed | Why::NoWorker | Why::NoAnswer | Why::PeerBroke)
    }

    /// Says whether none is made for a while after it.
    pub(super) fn rests(self) -> bool {
        !matches!(self, Why::MadeRoom | Why::Gone)
    }

    /// Returns what a transfer is told while a communicator is so far.
    pub(super) fn of(state: PairState) -> Why {
        match state {
            PairState::Offered | PairState::Joining => Why::BeingMade,
            PairState::Aborting => Why::BeingClosed,
            PairState::Cold => Why::Cold,
            PairState::Idle | PairState::Ready | PairState::Busy => Why::TooFewBytes,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::TooFewBytes => "too few bytes were wanted for a communicator",
            Why::BeingMade => "its communicator is being made",
            Why::Cold => "its communicator was given up lately",
            Why::BeingClosed => "its communicator is being given up",
            Why::NoRoom => "there are as many communicators as there may be",
            Why::MadeRoom => "it made room for another",
            Why::NoWorker => "the worker died or does not start",
            Why::Gone => "the peer has left or started anew",
            Why::PeerBroke => "the peer gave it up",
            Why::NoAnswer => "the peer did not answer in time",
            Why::NotGranted => "a slot was not free in time",
            Why::Late => "it was not done by its deadline",
            Why::Failed => "NCCL failed",
            Why::Refused => "the peer's node did not take it",
            Why::Mismatch => "the two ends do not mean the same number of bytes",
            Why::Withdrawn => "the sender does not send it this way",
            Why::TooMany => "there are as many transfers as there may be",
            Why::Without => "one of the two does without NCCL",
        })
    }
}
