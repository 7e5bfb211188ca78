//! How a device does, as its node's heartbeat tells it.

use super::core::DeviceCore;
use kvhive_cache::{ShardStats, TierStats};
use kvhive_protocol::SLOTS;
use kvhive_protocol::control::DeviceLoad;
use kvhive_protocol::emptying::MAX_FRAME_SIZES;
use kvhive_protocol::load::{GuestLoad, MAX_TENANT_LOADS, PinnedLoad, TierLoad, Traffic, Work};
use kvhive_protocol::strategy::MAX_LOAD_REPORTS;

impl DeviceCore {
    /// Says which slots have blocks here; any may, until what is on disk is known.
    fn occupied(&self) -> Vec<u8> {
        let is_known = self.disk.as_ref().is_none_or(|disk| disk.is_restored);
        if is_known { self.shard.occupied() } else { vec![0xFF; usize::from(SLOTS) / 8] }
    }

    pub(super) fn load(&mut self) -> (DeviceLoad, ShardStats) {
        let mut strategies = self.shard.strategies(false);
        strategies.retain(|report| report.choice.is_some());
        strategies.truncate(MAX_LOAD_REPORTS);
        let stats = self.shard.stats();
        let closed = [self.lacks_its_gpu, false, self.lacks_its_disk()];
        let tier = |(tier, closed): (TierStats, bool)| TierLoad {
            blocks: tier.blocks,
            used_bytes: tier.used_bytes,
            capacity_bytes: tier.capacity_bytes,
            hits: tier.hits,
            closed,
        };
        let mut tiers = [stats.device, stats.host, stats.disk].into_iter().zip(closed).map(tier);
        let mut tenants = self.shard.tenant_loads(MAX_TENANT_LOADS);
        for (tenant, load) in &mut tenants {
            (load.stored_bytes, load.raw_bytes) = self.tenant_uses.of(*tenant);
        }
        let mut frames = self.shard.frames();
        frames.truncate(MAX_FRAME_SIZES);
        let load = DeviceLoad {
            blocks: stats.blocks(),
            used_bytes: stats.device.used_bytes + stats.host.used_bytes,
            capacity_bytes: stats.device.capacity_bytes + stats.host.capacity_bytes,
            matched_keys: stats.matched_keys,
            covered_keys: stats.covered_keys,
            fetched_blocks: stats.hits,
            stored_blocks: stats.stored,
            evicted_blocks: stats.evicted,
            tenants,
            strategies,
            // Membership says that.
            filled: Vec::new(),
            unreached: Vec::new(),
            work: Work::default(),
            traffic: Traffic::default(),
            occupied: self.occupied(),
            tiers: std::array::from_fn(|_| tiers.next().unwrap_or_default()),
            reuse: self.shard.reuse().clone(),
            queue_us: 0,
            pinned: PinnedLoad {
                blocks: stats.pinned_blocks,
                bytes: stats.pinned_bytes,
                refused: stats.pins_refused,
            },
            held_blocks: self.shard.blocks_of(|slot| self.tenure.has(slot)),
            frames,
            // Membership says that too.
            given: Vec::new(),
            moving: Vec::new(),
            slot_hits: Vec::new(),
            guests: GuestLoad::default(),
            displaced: self.displacing.told(),
            losses: self.displacing.losses(),
        };
        (load, stats)
    }
}
