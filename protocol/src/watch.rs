//! Block events: what comes to a device's shard, moves in it and leaves it, as a numbered stream with snapshots. Whoever
//! follows asks, again and again: an answer that is lost, repeated or overtaken costs a question more, never the truth.

use crate::ids::{DeviceId, Epoch, Era, TenantId};
use crate::key::BlockKey;
use serde::{Deserialize, Serialize};

/// The most events of one answer.
pub const MAX_EVENTS_PER_ANSWER: usize = 4096;
/// The most blocks of one page of a snapshot.
pub const MAX_BLOCKS_PER_PAGE: usize = 4096;

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum BlockTier {
    /// The device's own memory.
    Device,
    /// Host memory.
    Host,
    /// Disk.
    Disk,
}

/// Why a block is not there any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Gone {
    /// The strategy let it go for others.
    Evicted,
    /// Its session was over, as the engine had said, or had not come back for long.
    Over,
    /// It had to leave memory and was not worth a place on disk.
    NotAdmitted,
    /// A clear has ended its era.
    Cleared,
    /// It could not be read any more where it was kept, or what was read was damaged.
    Lost,
    /// Whoever stored it did not hear of it in time.
    TakenBack,
    /// It never came: the strategy found everything that would leave for it worth more.
    Declined,
    /// It never came: every frame of its size was read, held or being written, or none was to spare for a copy.
    NoRoom,
    /// It never came: no frame is large enough.
    TooLarge,
    /// It never came: its write ended before all of it was there, or what was there did not match its header.
    Unwritten,
}

impl Gone {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Gone; 10] = [
        Gone::Evicted,
        Gone::Over,
        Gone::NotAdmitted,
        Gone::Cleared,
        Gone::Lost,
        Gone::TakenBack,
        Gone::Declined,
        Gone::NoRoom,
        Gone::TooLarge,
        Gone::Unwritten,
    ];

    /// Returns its name in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Gone::Evicted => "evicted",
            Gone::Over => "over",
            Gone::NotAdmitted => "not-admitted",
            Gone::Cleared => "cleared",
            Gone::Lost => "lost",
            Gone::TakenBack => "taken-back",
            Gone::Declined => "declined",
            Gone::NoRoom => "no-room",
            Gone::TooLarge => "too-large",
            Gone::Unwritten => "unwritten",
        }
    }
}

/// A block that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Whose.
    pub tenant: TenantId,
    /// In which era.
    pub era: Era,
    /// Its key.
    pub key: BlockKey,
    /// How many blocks are before it in its prefix.
    pub depth: u32,
    /// Where it lies.
    pub tier: BlockTier,
}

/// What happened to a block, or to all of a tenant's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BlockEvent {
    /// It is there from now on.
    Stored(Held),
    /// It lies in another tier from now on.
    Moved {
        /// Whose.
        tenant: TenantId,
        /// Which.
        key: BlockKey,
        /// Where it lies now.
        to: BlockTier,
    },
    /// It is not there any more.
    Removed {
        /// Whose.
        tenant: TenantId,
        /// Which.
        key: BlockKey,
        /// Where it lay.
        from: BlockTier,
        /// Why.
        why: Gone,
    },
    /// None of a tenant's blocks of an era before this one is there any more.
    Cleared {
        /// Whose.
        tenant: TenantId,
        /// The oldest era of which there still may be blocks.
        era: Era,
    },
}

impl BlockEvent {
    /// Returns whose block it is about.
    pub fn tenant(&self) -> TenantId {
        match self {
            BlockEvent::Stored(held) => held.tenant,
            BlockEvent::Moved { tenant, .. }
            | BlockEvent::Removed { tenant, .. }
            | BlockEvent::Cleared { tenant, .. } => *tenant,
        }
    }
}

/// A question of who follows a device's blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WatchRequest {
    /// The asker's map.
    pub epoch: Epoch,
    /// The device asked.
    pub device: DeviceId,
    /// Whose blocks; none for all that the asker's credentials let it see.
    pub tenant: Option<TenantId>,
    /// What is wanted.
    pub ask: WatchAsk,
}

/// What is wanted of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WatchAsk {
    /// What happened after an event.
    Events {
        /// Of which stream.
        stream: u64,
        /// The last event that the asker has.
        after: u64,
    },
    /// A page of what is there.
    Page {
        /// Of which stream; none at the begin, which also begins the stream if there is none.
        stream: Option<u64>,
        /// Where the page before ended; 0 at the begin.
        from: u32,
    },
}

/// The answer to who follows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum WatchAnswer {
    /// What happened.
    Events {
        /// Of which stream.
        stream: u64,
        /// After which event that is, as asked.
        after: u64,
        /// Up to which event that is: others may be another tenant's.
        through: u64,
        /// The events with their numbers, ascending, at most [`MAX_EVENTS_PER_ANSWER`].
        events: Vec<(u64, BlockEvent)>,
    },
    /// Some of what is there.
    Page {
        /// Of which stream.
        stream: u64,
        /// The stream's last event when this was so.
        at: u64,
        /// Where it begins, as asked.
        from: u32,
        /// Where the next page begins; none after the last.
        next: Option<u32>,
        /// Blocks, at most [`MAX_BLOCKS_PER_PAGE`].
        blocks: Vec<Held>,
    },
    /// What was asked for is not remembered, or of a stream that has ended: take a snapshot.
    Gap {
        /// The stream that there is; none while nobody follows.
        stream: Option<u64>,
    },
}
