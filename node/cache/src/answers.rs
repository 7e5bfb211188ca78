//! What a shard is made from, what it answers, and what it asks of its host.

use crate::block::{BlockId, CopyTicket, ShrinkTicket, Tier, WriteTicket};
use crate::frames::TierCapacity;
use crate::party::Rules;
use crate::policy::Shrink;
use kvhive_protocol::data::Refusal;
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{BlockKey, Slot};
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
    /// Records of the disk tier.
    pub disk: TierCapacity,
    /// How the blocks of tenants without rules of their own are kept.
    pub rules: Rules,
    /// The longest hold that a match may ask; 24 days at most.
    pub max_hold: Duration,
    /// Writes under way at a time.
    pub max_writes: usize,
    /// Share of a tier's frames that is kept free by moving blocks down, in thousandths; 0 moves none.
    pub low_water_per_mille: u16,
    /// Whether blocks that were never used since they were stored go to disk too, or leave instead.
    pub unused_to_disk: bool,
    /// Blocks that one match may have brought up a tier ahead of their use; 0 brings none.
    pub prefetch: u32,
    /// Share of the frames in memory, in thousandths, beyond which a collection begins to free some; none collects never.
    pub gc_per_mille: Option<u16>,
    /// Share of the frames of each size class, over all tiers, that pinned blocks take at most, and of what a tenant is promised where
    /// it is promised any, in thousandths.
    pub pinned_per_mille: u16,
    /// Keys the index's hash function.
    pub hash_seed: u64,
}

/// A resident block, as it is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Names it.
    pub id: BlockId,
    /// The block before it in its prefix, if that is here; else [`BlockKey::NONE`].
    pub parent: BlockKey,
    /// Where it is placed.
    pub slot: Slot,
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
        /// Its slot.
        slot: Slot,
        /// Why it went.
        gone: Gone,
    },
    /// Copy the block's bytes into a frame of another tier, then report [`crate::Shard::copied`]. It stays readable meanwhile.
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
    /// Re-encode the block's bytes so that they are fewer: say how many they will be ([`crate::Shard::shrink_into`]), write
    /// them to the frame named there, then report [`crate::Shard::shrunk`]. The block stays readable meanwhile.
    Shrink {
        /// Names the shrink.
        ticket: ShrinkTicket,
        /// Which block.
        id: BlockId,
        /// What may be lost by it.
        how: Shrink,
    },
}

/// What becomes of a finished copy or shrink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyVerdict {
    /// The copy is the block now; the old frame is dropped.
    Adopt(BlockId),
    /// The copy is dropped.
    Discard,
}
