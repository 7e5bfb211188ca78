//! What a shard is made from, what it answers, and what it asks of its host.

use crate::block::{BlockId, CopyTicket, Tier, WriteTicket};
use crate::frames::TierCapacity;
use kvhive_protocol::data::Refusal;
use std::time::Duration;

/// A shard's size.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardConfig {
    /// Bytes of a frame, per size class, growing.
    pub classes: Vec<u64>,
    /// Frames of the device tier.
    pub device: TierCapacity,
    /// Frames of the host tier.
    pub host: TierCapacity,
    /// The longest hold that a match may ask.
    pub max_hold: Duration,
    /// Writes under way at a time.
    pub max_writes: usize,
    /// Share of the device tier's frames that demotion keeps free, in thousandths; 0 turns demotion off.
    pub low_water_per_mille: u16,
    /// Keys the index's hash function.
    pub hash_seed: u64,
}

/// What a reservation came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserve {
    /// Write into a frame of this tier and class, then seal or abandon.
    Take {
        /// Names the write.
        ticket: WriteTicket,
        /// Where the frame is.
        tier: Tier,
        /// Its class.
        class: usize,
    },
    /// The block is here already.
    Present(BlockId),
    /// It is not taken.
    Refused(Refusal),
}

/// What the host of the shard has to do, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Drop the frame handle of this block; its frame is counted on for what follows.
    Drop {
        /// Which block.
        id: BlockId,
    },
    /// Copy the block's bytes into a frame of the other tier, then report [`crate::Shard::copied`]. It stays readable meanwhile.
    Copy {
        /// Names the copy.
        ticket: CopyTicket,
        /// Which block.
        id: BlockId,
        /// To which tier.
        to: Tier,
        /// Class of both frames.
        class: usize,
    },
}

/// What becomes of a finished copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyVerdict {
    /// The copy is the block now; the old frame is dropped.
    Adopt(BlockId),
    /// The copy is dropped.
    Discard,
}
