//! What a shard holds and has done, for metrics and load reports.

use crate::block::Tier;
use kvhive_protocol::data::Refusal;
use kvhive_protocol::watch::Gone;

/// One tier's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierStats {
    /// Resident blocks.
    pub blocks: u64,
    /// Bytes of all frames that are not free: resident, being written, given up, copied to or leaving.
    pub used_bytes: u64,
    /// Bytes of all frames.
    pub capacity_bytes: u64,
    /// Blocks that fetches got from here.
    pub hits: u64,
}

/// Why a collection has freed a block's place in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A clear had ended its era.
    Cleared,
    /// Its session was over, as the engine had said.
    Over,
    /// Its session had not come back for much longer than the engine had said.
    Overdue,
    /// It began to move to a tier below.
    Demoted,
    /// There was no room below, and the strategy would have let it go next.
    Evicted,
    /// It was next to move down, and not worth a place there.
    NotAdmitted,
}

impl Reason {
    /// All of them, in the order in which they are gone by.
    pub const ALL: [Reason; 6] = [
        Reason::Cleared,
        Reason::Over,
        Reason::Overdue,
        Reason::Demoted,
        Reason::Evicted,
        Reason::NotAdmitted,
    ];

    /// Returns its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Reason::Cleared => "cleared",
            Reason::Over => "over",
            Reason::Overdue => "overdue",
            Reason::Demoted => "demoted",
            Reason::Evicted => "evicted",
            Reason::NotAdmitted => "not-admitted",
        }
    }
}

/// What collections have freed for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// Blocks.
    pub blocks: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// A shard's figures. Counters count since the shard was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardStats {
    /// The device tier.
    pub device: TierStats,
    /// The host tier.
    pub host: TierStats,
    /// The disk tier.
    pub disk: TierStats,
    /// Bytes of memory that the policies of tenants with rules of their own take; that of all others is counted from the start.
    pub own_policy_bytes: u64,
    /// Writes under way.
    pub filling: u64,
    /// Blocks whose uses the policies have not been told of yet.
    pub untold: u64,
    /// Blocks that left while they were read or copied.
    pub leaving: u64,
    /// Frames of writes that were given up and may be written to yet.
    pub given_up: u64,
    /// Blocks that pins keep.
    pub pinned_blocks: u64,
    /// Bytes of their frames.
    pub pinned_bytes: u64,
    /// Times that a block that a pin names was not pinned, because as much is as may be.
    pub pins_refused: u64,
    /// Readers of all blocks.
    pub readers: u64,
    /// Keys asked by match.
    pub matched_keys: u64,
    /// Keys of those that were covered.
    pub covered_keys: u64,
    /// Blocks that fetches got, of all tiers: one on disk when its bytes had come.
    pub hits: u64,
    /// Blocks that fetches did not get: not found, or on disk and not had from there.
    pub misses: u64,
    /// Blocks sealed.
    pub stored: u64,
    /// Stores of blocks that were there.
    pub already: u64,
    /// Writes that ended without a block, or whose asker did not hear of it in time.
    pub abandoned: u64,
    /// Blocks evicted for others.
    pub evicted: u64,
    /// Blocks evicted because their session was over or overdue, in memory or on disk; counted among the evicted too.
    pub evicted_over: u64,
    /// Blocks dropped because a clear ended their era.
    pub cleared: u64,
    /// Blocks that could not be read any more where they were kept.
    pub lost: u64,
    /// Blocks moved down a tier.
    pub demoted: u64,
    /// Blocks evicted because they were not worth a place on disk; counted among the evicted too.
    pub not_admitted: u64,
    /// Blocks moved up a tier.
    pub promoted: u64,
    /// Collections begun: memory was fuller than their threshold.
    pub collections: u64,
    /// What collections have freed, by [`Reason`]. What was let go is counted among the evicted or the cleared too.
    pub collected: [Collected; Reason::ALL.len()],
    /// Blocks that the engine has said something of without using them.
    pub released: u64,
    /// Sessions that were to come back and are not awaited any more: more are than a shard awaits at a time.
    pub unawaited: u64,
    /// Blocks that a match or a hint asked to have moved up ahead of their use.
    pub prefetched: u64,
    /// Of those: used where they were brought.
    pub prefetch_useful: u64,
    /// Of those: brought, and gone from there before they were used.
    pub prefetch_wasted: u64,
    /// Of those: used before they had come.
    pub prefetch_late: u64,
    /// Of those: neither brought nor used, for want of a free frame, or because the disk did not give them or they left it.
    pub prefetch_cancelled: u64,
    /// Blocks being re-encoded to be smaller.
    pub shrinking: u64,
    /// Blocks re-encoded, and moved to a smaller frame.
    pub shrunk: u64,
    /// Blocks that do not get small enough for a smaller frame.
    pub shrink_unfit: u64,
    /// Shrinks that came to nothing: for want of a smaller frame, because the block was read or gone when it was done, or because
    /// nothing smaller is known of it or allowed.
    pub shrink_dropped: u64,
    /// Stores refused because what would leave for them is worth more.
    pub declined: u64,
    /// Stores refused for want of a frame.
    pub refused_no_room: u64,
    /// Stores refused because no frame is large enough.
    pub refused_too_large: u64,
    /// Stores refused because the same block was being written.
    pub refused_in_flight: u64,
    /// Stores refused for tenant or era.
    pub refused_wrong_era: u64,
}

impl ShardStats {
    /// Returns resident blocks of all tiers.
    pub fn blocks(&self) -> u64 {
        self.device.blocks + self.host.blocks + self.disk.blocks
    }

    /// Returns what was evicted for which reason; together it is all that was.
    pub fn evictions(&self) -> [(Gone, u64); 3] {
        [
            (Gone::Evicted, self.evicted - self.evicted_over - self.not_admitted),
            (Gone::Over, self.evicted_over),
            (Gone::NotAdmitted, self.not_admitted),
        ]
    }

    pub(crate) fn tier(&mut self, tier: Tier) -> &mut TierStats {
        match tier {
            Tier::Device => &mut self.device,
            Tier::Host => &mut self.host,
            Tier::Disk => &mut self.disk,
        }
    }

    pub(crate) fn count_refusal(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::NoRoom => self.refused_no_room += 1,
            Refusal::TooLarge => self.refused_too_large += 1,
            Refusal::InFlight => self.refused_in_flight += 1,
            Refusal::WrongEra => self.refused_wrong_era += 1,
            // The shard never sees bytes; the data plane counts these.
            Refusal::Corrupt => {}
        }
    }
}
