//! What emptying members comes to, as nodes count it where it happens: whoever gives blocks of a member's slots away says what became
//! of each, and whoever takes them in says what it let go for them. Counted since the emptying began, or the node's process did.

use serde::{Deserialize, Serialize};

/// The most members that are being emptied at a time of which one device tells.
pub const MAX_EMPTIED_TOLD: usize = 32;
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
    /// Blocks of these that nobody else holds who stays.
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
    /// Blocks of these whose slot nobody else has who stays.
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
