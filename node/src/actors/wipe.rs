//! What blocks of ended eras leave in memory is overwritten: when, is said here; it is done off the actor's thread, and no request waits
//! for it (docs/decisions/0082).

use crate::actors::core::DeviceCore;
use kvhive_protocol::{Era, TenantId};
use std::collections::BTreeMap;

impl DeviceCore {
    /// Hears which eras there are from now on. To be called before the shard is told.
    pub(super) fn note_eras(&mut self, eras: &BTreeMap<TenantId, Era>) {
        if self.shard.ends_any(eras) {
            self.memory.call_stale();
            self.memory.is_searched(true);
        }
    }

    /// Does a piece of what can wait of the shard, and has what is stale and free be wiped.
    pub(super) fn tend_shard(&mut self) {
        let was_sweeping = self.shard.is_sweeping();
        self.shard.tend(self.view.now(), &mut self.effects);
        self.perform_effects();
        if was_sweeping && !self.shard.is_sweeping() {
            // Blocks of the ended eras may have been copied to other frames until they were found.
            self.memory.call_stale();
        }
        // Said when all that was found is stale, and for a core that was made anew too.
        self.memory.is_searched(self.shard.is_sweeping());
        self.memory.wipe(&self.blocking);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClassConfig, DeviceConfig, DeviceMemory};
    use crate::memory::Memory;
    use crate::view::View;
    use kvhive_cache::policy::Strategy;
    use kvhive_cache::{Rules, ShardConfig, Tier, TierCapacity};
    use kvhive_gpu::cuda::Patience;
    use kvhive_runtime::BootClock;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::runtime::Handle;

    fn core(memory: &Memory) -> DeviceCore {
        let shard = ShardConfig {
            classes: vec![4096],
            device: memory.capacity(Tier::Device),
            host: memory.capacity(Tier::Host),
            disk: TierCapacity::default(),
            rules: Rules::new(Strategy::Lru),
            max_hold: Duration::ZERO,
            max_writes: 64,
            low_water_per_mille: 0,
            unused_to_disk: true,
            prefetch: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            hash_seed: 1,
        };
        let view = Arc::new(View::new(Arc::new(BootClock), 0, 0));
        DeviceCore::new(0, shard, memory.clone(), None, view, Handle::current())
    }

    #[tokio::test]
    async fn nothing_is_said_to_be_wiped_before_blocks_of_an_ended_era_have_been_looked_for() {
        let config = DeviceConfig {
            memory: DeviceMemory::Host,
            device_bytes: 4 * 4096,
            host_bytes: 0,
            disk_bytes: 0,
            classes: vec![ClassConfig { frame_bytes: 4096, share: 1 }],
        };
        let (memory, _) = Memory::take(0, &config, false, (Patience::default(), 0)).expect("a little memory");
        let mut core = core(&memory);
        let begun = BTreeMap::from([(TenantId(1), Era(1))]);
        core.note_eras(&begun);
        core.shard.set_tenants(begun);
        let frame = memory.take_frame(Tier::Device, 0, 4096).expect("a free frame");
        let frame = frame.filled(&[7; 4096]).expect("the host takes it");
        assert_eq!(memory.unwiped_bytes(), 0, "all eras stand");
        core.note_eras(&BTreeMap::new());
        core.shard.set_tenants(BTreeMap::new());
        assert_eq!(memory.unwiped_bytes(), 4096, "it may be of the era that has ended");
        while core.shard.is_sweeping() {
            core.tend_shard();
        }
        assert_eq!(memory.unwiped_bytes(), 0, "whoever has it reads it yet");
        drop(frame);
        assert_eq!(memory.unwiped_bytes(), 4096);
        // A core that is made anew after a panic in mid search says when there is nothing to look for.
        memory.is_searched(true);
        core.tend_shard();
        assert!(memory.unwiped_bytes() <= 4096, "what is free may be wiped by now");
    }
}
