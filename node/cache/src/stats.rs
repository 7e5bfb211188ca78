//! What a shard holds and has done, for metrics and load reports.

use kvhive_protocol::data::Refusal;

/// One tier's frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierStats {
    /// Resident blocks.
    pub blocks: u64,
    /// Bytes of all frames that are not free: resident, being written, copied to or leaving.
    pub used_bytes: u64,
    /// Bytes of all frames.
    pub capacity_bytes: u64,
}

/// A shard's figures. Counters count since the shard was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShardStats {
    /// The device tier.
    pub device: TierStats,
    /// The host tier.
    pub host: TierStats,
    /// Writes under way.
    pub filling: u64,
    /// Blocks that left while they were read or copied.
    pub leaving: u64,
    /// Readers of all blocks.
    pub readers: u64,
    /// Keys asked by match.
    pub matched_keys: u64,
    /// Keys of those that were covered.
    pub covered_keys: u64,
    /// Blocks given out by read.
    pub hits: u64,
    /// Blocks that read did not find.
    pub misses: u64,
    /// Blocks sealed.
    pub stored: u64,
    /// Stores of blocks that were there.
    pub already: u64,
    /// Writes that ended without a block.
    pub abandoned: u64,
    /// Blocks evicted for others.
    pub evicted: u64,
    /// Blocks dropped because a clear ended their era.
    pub cleared: u64,
    /// Blocks copied from device to host.
    pub demoted: u64,
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
    /// Returns resident blocks of both tiers.
    pub fn blocks(&self) -> u64 {
        self.device.blocks + self.host.blocks
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
