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
        self.memory.wipe(&self.blocking);
    }
}
