//! Explaining: why a device has a block or has it not, by its own word. Nobody uses a block by asking, and a tenant hears of its
//! own blocks alone: what another has stored under a key is to it as if nobody had.

use crate::block::Codec;
use crate::data::Run;
use crate::ids::{DeviceId, Epoch, Slot, TenantId};
use crate::key::KeyList;
use crate::layout::LayoutFingerprint;
use crate::strategy::Strategy;
use crate::watch::{BlockTier, Gone};
use serde::{Deserialize, Serialize};

/// The most keys one request may name.
pub const MAX_KEYS_PER_EXPLAIN: usize = 4096;

/// Why are these blocks here, or not?
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks.
    pub tenant: TenantId,
    /// Segments, as in [`crate::data::MatchRequest::runs`]; none where the asker does not know them: then it hears of blocks that
    /// are here although their slots are not, and not since when the device has a slot.
    pub runs: Vec<Run>,
    /// The blocks' keys, run after run; at most [`MAX_KEYS_PER_EXPLAIN`].
    pub keys: KeyList,
}

/// What a device knows of one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Explained {
    /// It is here, and whoever fetches it gets it.
    Here {
        /// Where it lies.
        tier: BlockTier,
        /// How it is stored.
        codec: Codec,
        /// Bytes stored.
        bytes: u64,
        /// Of its layout.
        fingerprint: LayoutFingerprint,
        /// The slot that it was stored in.
        slot: Slot,
        /// It is pinned: it does not leave to make room.
        pinned: bool,
    },
    /// It is being written.
    Coming,
    /// It was here, or was to come here, and is not.
    Gone(Departure),
    /// Nothing is known of it: it has neither come nor gone for so long.
    Unknown {
        /// What was before that time.
        since: Since,
        /// How long that is, in seconds.
        for_s: u32,
    },
}

/// How a block went, the last time that it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Departure {
    /// Why.
    pub why: Gone,
    /// Where it lay; none if it never came.
    pub from: Option<BlockTier>,
    /// What decided which blocks of its tenant stay.
    pub strategy: Strategy,
    /// How long ago, in seconds.
    pub ago_s: u32,
}

/// From when on a device knows what has come and gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Since {
    /// It began empty then: its node was started, or the device lost what it held.
    Began,
    /// The slot was placed on it then.
    Placed,
    /// What went before is forgotten: as many blocks have gone since as are remembered.
    Forgotten,
}

/// The last time that a node served nothing for want of a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lapse {
    /// How long ago it ended, in seconds.
    pub ago_s: u32,
    /// How long it lasted, in milliseconds.
    pub for_ms: u64,
}
