//! What emptying members comes to, as nodes count it where it happens: whoever gives blocks of a member's slots away says what became
//! of each, and whoever takes them in says what it let go for them. Counted since the emptying began, or the node's process did.

use crate::ids::TenantId;
use crate::key::BlockKey;
use serde::{Deserialize, Serialize};

/// The most members that are being emptied at a time of which one device tells.
pub const MAX_EMPTIED_TOLD: usize = 32;
/// The most blocks that one device names of those that nobody holds any more, over all members that are being emptied.
pub const MAX_LOST_NAMED: usize = 1024;
/// The most sizes of frames that one device tells of.
pub const MAX_FRAME_SIZES: usize = 8;

/// What became of the blocks of a member's slots that one device has given to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// Blocks that another device did not have and has now.
    pub moved_blocks: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Blocks that it had before.
    pub there_blocks: u64,
    /// Blocks that it gave no room: what would have left for them is worth more, or nothing could leave.
    pub declined_blocks: u64,
    /// Blocks that could not be read, or not in time.
    pub unread_blocks: u64,
    /// Blocks of the last that nobody else holds who stays. One that was given no room is told of by [`Displaced`], once it is known.
    pub lost_blocks: u64,
    /// Their bytes.
    pub lost_bytes: u64,
    /// Pinned blocks that are given no room yet: their slots stay where they are until there is some.
    pub waiting_blocks: u64,
}

impl Given {
    /// Adds another's figures.
    pub fn add(&mut self, other: &Given) {
        for (sum, more) in [
            (&mut self.moved_blocks, other.moved_blocks),
            (&mut self.moved_bytes, other.moved_bytes),
            (&mut self.there_blocks, other.there_blocks),
            (&mut self.declined_blocks, other.declined_blocks),
            (&mut self.unread_blocks, other.unread_blocks),
            (&mut self.lost_blocks, other.lost_blocks),
            (&mut self.lost_bytes, other.lost_bytes),
            (&mut self.waiting_blocks, other.waiting_blocks),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// What one device let go to make room for blocks of a member's slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Displaced {
    /// Blocks that left.
    pub blocks: u64,
    /// Blocks of these, and of those that the device gave away and that were given no room, which nobody holds any more who stays.
    pub lost_blocks: u64,
    /// Their bytes.
    pub lost_bytes: u64,
}

impl Displaced {
    /// Adds another's figures.
    pub fn add(&mut self, other: &Displaced) {
        for (sum, more) in [
            (&mut self.blocks, other.blocks),
            (&mut self.lost_blocks, other.lost_blocks),
            (&mut self.lost_bytes, other.lost_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// A block that nobody holds any more who stays. Several may say so of one, and it is lost once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LostBlock {
    /// The same whoever tells it, and another one's for none: see [`LostBlock::of`].
    pub name: u64,
    /// Its bytes.
    pub bytes: u64,
}

impl LostBlock {
    /// Names a block of a tenant.
    pub fn of(tenant: TenantId, key: &BlockKey, bytes: u64) -> LostBlock {
        // Keys are digests: any eight bytes of them are as good as a hash.
        let digest = key.as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
        LostBlock { name: digest ^ u64::from(tenant.0).wrapping_mul(0x9e37_79b9_7f4a_7c15), bytes }
    }
}

/// What one device knows of blocks that a member which is being emptied may have cost.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Losses {
    /// Blocks of which it is not known yet whether anybody holds them who stays: they are in no other figure.
    pub unsettled_blocks: u64,
    /// Of those that it counts as lost: at most [`MAX_LOST_NAMED`] over all members.
    pub named: Vec<LostBlock>,
}

/// The frames of one size that a device has, over all its tiers that take blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FrameLoad {
    /// Bytes of a frame.
    pub bytes: u64,
    /// Frames that are not free.
    pub used: u64,
    /// Blocks that can come before any other leaves for one.
    pub spare: u64,
}
