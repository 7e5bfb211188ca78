//! What became of one block of a fetch or a store, as an answer on the data plane says it. What is asked is in [`crate::data`].

use crate::block::BlockHeader;
use serde::{Deserialize, Serialize};

/// What a fetch found of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fetched {
    /// It is here: `header.payload_bytes` bytes of the payload are its.
    Hit(BlockHeader),
    /// It is not here.
    Miss,
}

/// What became of one block of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stored {
    /// It is resident on this many replicas, the primary included; fewer than asked means it is not acknowledged. 0 means that it
    /// is here and that nobody is to rely on it: a replica holds no lease, or its slot was leaving a primary that holds none.
    Kept {
        /// Replicas that hold it.
        copies: u8,
        /// It was here before; its bytes were not taken.
        already: bool,
    },
    /// It is not resident.
    Refused(Refusal),
}

/// Why a block was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// Every frame of its size is in use or held.
    NoRoom,
    /// No frame is large enough.
    TooLarge,
    /// Another store of the same key is under way.
    InFlight,
    /// Its bytes do not match its header.
    Corrupt,
    /// It is of an era that a clear has ended, or of another tenant than the request.
    WrongEra,
}
