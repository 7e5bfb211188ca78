//! What the two ends of an NCCL pair say to each other over the data plane, and what is reported of pairs.
//!
//! Any of it may be lost, come twice, late, or in another order: what names an earlier start, communicator or round of a
//! proposal than its reader knows is known as such.

use crate::ids::{DeviceId, Generation};
use crate::links::PairState;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of NCCL's unique id.
pub const UNIQUE_ID_BYTES: usize = 128;
/// The most that a communicator's rank 0 sends to at once.
pub const MAX_GROUP_MEMBERS: usize = 63;
/// What no counter of this module reaches: a larger one was made up.
const MAX_NUMBER: u64 = 1 << 62;

/// One transfer from one GPU to another. All transfers of a cluster are in one order, which is about that in which they began: a
/// counter that is moved on by those of others (Lamport, 1978), then whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TransferId {
    /// The sender's counter.
    pub number: u64,
    /// Who sends.
    pub sender: DeviceId,
    /// Which start of it.
    pub generation: Generation,
}

impl fmt::Display for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}.{}", self.number, self.sender, self.generation)
    }
}

/// One communicator of a pair, numbered by its rank 0. Later ones of one pair are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Incarnation {
    /// Which start of rank 0.
    pub generation: Generation,
    /// Its counter.
    pub number: u64,
}

/// By what a member finds rank 0 and is let in: a secret of both ends.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UniqueId(#[serde(with = "serde_bytes")] pub [u8; UNIQUE_ID_BYTES]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UniqueId(..)")
    }
}

/// A message from one GPU of a pair to the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PairMessage {
    /// Who says it.
    pub from: DeviceId,
    /// Which start of it.
    pub generation: Generation,
    /// To whom.
    pub to: DeviceId,
    /// Which start of that it is meant for.
    pub to_generation: Generation,
    /// What.
    pub word: PairWord,
}

impl PairMessage {
    /// Says whether its numbers can be counters of anybody.
    pub fn is_sound(&self) -> bool {
        let (transfer, round, incarnation) = match &self.word {
            PairWord::Ask { after: incarnation }
            | PairWord::Offer { incarnation, .. }
            | PairWord::Accept { incarnation }
            | PairWord::Broken { incarnation } => (None, 0, incarnation.number),
            PairWord::Propose { transfer, round, incarnation, .. } => {
                (Some(transfer), *round, incarnation.number)
            }
            PairWord::Grant { transfer, round }
            | PairWord::Go { transfer, round }
            | PairWord::Withdraw { transfer, round, .. }
            | PairWord::Group(GroupWord::Wound { transfer, round }) => (Some(transfer), *round, 0),
            PairWord::Group(GroupWord::Offer { incarnation, members, .. }) => {
                let is_group = (2..=MAX_GROUP_MEMBERS).contains(&members.len())
                    && members.is_sorted_by(|one, next| one < next)
                    && members.contains(&self.to)
                    && !members.contains(&self.from);
                (None, 0, if is_group { incarnation.number } else { MAX_NUMBER })
            }
            PairWord::Group(GroupWord::Accept { incarnation } | GroupWord::Broken { incarnation, .. }) => {
                (None, 0, incarnation.number)
            }
            PairWord::Group(GroupWord::Propose { transfer, round, incarnation, .. }) => {
                (Some(transfer), *round, incarnation.number)
            }
        };
        let number = transfer.map_or(0, |transfer| transfer.number);
        number.max(round).max(incarnation) < MAX_NUMBER && self.from != self.to
    }
}

/// What is said.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum PairWord {
    /// Rank 1 would like a communicator, and has none.
    Ask {
        /// The newest that it was offered.
        after: Incarnation,
    },
    /// Rank 0 has made an id.
    Offer {
        /// Of which communicator.
        incarnation: Incarnation,
        /// The id.
        id: UniqueId,
    },
    /// Rank 1 joins.
    Accept {
        /// Which.
        incarnation: Incarnation,
    },
    /// This communicator is given up, or was not wanted.
    Broken {
        /// Which.
        incarnation: Incarnation,
    },
    /// The sender holds its slot for a transfer.
    Propose {
        /// Which.
        transfer: TransferId,
        /// The sender's proposals are numbered; of two, the later one counts.
        round: u64,
        /// Over which communicator.
        incarnation: Incarnation,
        /// How much.
        bytes: u64,
    },
    /// The receiver holds its slot for it.
    Grant {
        /// Which.
        transfer: TransferId,
        /// Which proposal.
        round: u64,
    },
    /// The sender sends.
    Go {
        /// Which.
        transfer: TransferId,
        /// Which proposal.
        round: u64,
    },
    /// The sender does not hold its slot for it any more.
    Withdraw {
        /// Which.
        transfer: TransferId,
        /// Which proposal, and all before it.
        round: u64,
        /// It will not be proposed again.
        is_last: bool,
    },
    /// Something of a communicator of more than two.
    Group(GroupWord),
}

/// What is said of a communicator of more than two, over which its rank 0 sends to all others: it has made and numbered it, as it numbers those of
/// pairs.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum GroupWord {
    /// Rank 0 has made an id.
    Offer {
        /// Of which communicator.
        incarnation: Incarnation,
        /// The id.
        id: UniqueId,
        /// The other ranks, from 1 on, ascending.
        members: Vec<DeviceId>,
    },
    /// One of these joins.
    Accept {
        /// Which.
        incarnation: Incarnation,
    },
    /// This communicator is given up, or was not wanted.
    Broken {
        /// Who is its rank 0.
        root: DeviceId,
        /// Which.
        incarnation: Incarnation,
    },
    /// Rank 0 holds its slot for a transfer to all. Granted, gone on with and withdrawn as one to a pair's other end.
    Propose {
        /// Which.
        transfer: TransferId,
        /// Its proposals of either kind are numbered; of two, the later one counts.
        round: u64,
        /// Over which communicator.
        incarnation: Incarnation,
        /// How much.
        bytes: u64,
    },
    /// Who has granted it would have its slot for an older transfer, if not all have granted it yet.
    Wound {
        /// Which.
        transfer: TransferId,
        /// Which proposal.
        round: u64,
    },
}

/// What a GPU does with NCCL, as it sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairsReport {
    /// The GPU.
    pub device: DeviceId,
    /// Its worker, in words.
    pub worker: String,
    /// What its slot is held for, in words.
    pub slot: String,
    /// Transfers that wait for the slot.
    pub waiting: u64,
    /// Communicators that stand, are made or are given up.
    pub live: u64,
    /// The most that there may be.
    pub max_live: u64,
    /// Every pair that was ever wanted, ascending.
    pub pairs: Vec<PairReport>,
    /// Communicators of more than two: those to whom this GPU ever wanted to send at once, and those that others have made; ascending.
    pub groups: Vec<GroupReport>,
}

/// One communicator of more than two.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupReport {
    /// Who sends over it.
    pub root: DeviceId,
    /// To whom.
    pub members: Vec<DeviceId>,
    /// How far it is.
    pub state: PairState,
    /// For how long it has been so, in milliseconds.
    pub for_ms: u64,
    /// Transfers that were done.
    pub transfers: u64,
    /// Their bytes, counted once.
    pub bytes: u64,
    /// Bytes that this GPU wanted to send to all of them since one was last given up.
    pub wanted_bytes: u64,
    /// Times in a row that it failed.
    pub failures: u32,
    /// Why it was given up last, in words.
    pub why: Option<String>,
    /// For how long none is made, in milliseconds, where it is cold.
    pub rests_ms: Option<u64>,
}

/// One pair.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairReport {
    /// The other end.
    pub peer: DeviceId,
    /// How far it is.
    pub state: PairState,
    /// For how long it has been so, in milliseconds.
    pub for_ms: u64,
    /// Transfers that were done, both ways.
    pub transfers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were wanted of it and went by TCP since.
    pub wanted_bytes: u64,
    /// Times in a row that it was given up.
    pub failures: u32,
    /// Why it was given up last, in words.
    pub why: Option<String>,
    /// For how long none is made, in milliseconds, where it is cold.
    pub rests_ms: Option<u64>,
}
