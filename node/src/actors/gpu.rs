//! The GPU's part of a device actor: what was in its memory is lost with it, and the other tiers go on.

use crate::actors::core::DeviceCore;
use kvhive_cache::Tier;

impl DeviceCore {
    /// Hears whether the device tier is lost.
    pub(super) fn heed_gpu(&mut self) {
        if self.lacks_its_gpu {
            return;
        }
        if let Some(error) = self.memory.loss() {
            self.lacks_its_gpu = true;
            let before = self.effects.len();
            self.shard.lose_tier(Tier::Device, &mut self.effects);
            let lost = self.effects.len() - before;
            tracing::error!(device = self.index, %error, lost, "the device tier is lost, with the blocks in it; the host tier and the disk go on");
        }
    }
}
