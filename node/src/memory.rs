//! A device's memory: the arenas of both tiers, taken once. It outlives its actor, so that one made after a panic finds
//! it there.

use crate::config::{DeviceConfig, NodeError};
use kvhive_cache::{Tier, TierCapacity};
use kvhive_gpu::{Arena, ClassId, Device, HostDevice, ReadFrame, SizeClass, WriteFrame};
use std::sync::Arc;

/// Arenas of one device. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Memory {
    device: Arc<HostDevice>,
    tiers: [Arena; 2],
    pinned_bytes: u64,
}

impl Memory {
    /// Takes the memory of device number `at`.
    pub(crate) fn take(at: usize, config: &DeviceConfig) -> Result<Memory, NodeError> {
        // The arenas are the budget: rounding frames up to pages may take a little more than was configured.
        let device = Arc::new(HostDevice::new(u64::MAX));
        let arena = |bytes: u64| {
            let frames = config.frames(bytes).into_iter();
            let sizes = config.classes.iter().zip(frames);
            let sizes: Vec<SizeClass> =
                sizes.map(|(class, frames)| SizeClass { frame_bytes: class.frame_bytes, frames }).collect();
            Arena::new(&*device, &sizes).map_err(|source| NodeError::Memory { device: at, source })
        };
        let tiers = [arena(config.device_bytes)?, arena(config.host_bytes)?];
        Ok(Memory { device, tiers, pinned_bytes: 0 })
    }

    /// Locks as much of device number `at`'s memory as this process may.
    pub(crate) fn pin(&mut self, at: usize) {
        for tier in &self.tiers {
            match tier.lock() {
                Ok(()) => self.pinned_bytes += tier.total_bytes(),
                Err(error) => {
                    let bytes = tier.total_bytes();
                    tracing::warn!(device = at, bytes, %error, "memory stays unlocked; raise the limit (ulimit -l) to lock it");
                }
            }
        }
    }

    /// Returns how much of it is locked.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    pub(crate) fn take_frame(&self, tier: Tier, class: usize, bytes: u64) -> Option<WriteFrame> {
        self.tiers[tier as usize].take(ClassId(class as u8), bytes)
    }

    /// Copies a sealed frame into a fresh one of another tier.
    pub(crate) fn copy(&self, from: &ReadFrame, mut to: WriteFrame) -> Option<ReadFrame> {
        self.device.copy(from, &mut to).ok().map(|()| to.seal())
    }

    /// Returns a tier's frames per class.
    pub(crate) fn capacity(&self, tier: Tier) -> TierCapacity {
        TierCapacity {
            frames: self.tiers[tier as usize].classes().iter().map(|class| class.frames).collect(),
        }
    }

    /// Returns the bytes of one tier's arena.
    pub(crate) fn tier_bytes(&self, tier: Tier) -> u64 {
        self.tiers[tier as usize].total_bytes()
    }

    /// Returns what kind of device this is.
    pub(crate) fn kind(&self) -> &'static str {
        self.device.info().kind.as_str()
    }
}

#[cfg(test)]
impl Memory {
    /// Returns the free frames of a tier, over all classes.
    pub(crate) fn free_frames(&self, tier: Tier) -> u32 {
        let arena = &self.tiers[tier as usize];
        (0..arena.classes().len()).map(|class| arena.free_frames(ClassId(class as u8))).sum()
    }
}
