//! A device's memory: the arenas of both tiers, taken once. It outlives its actor, so that one made after a panic finds
//! it there.

use crate::config::{DeviceConfig, NodeError};
use kvhive_cache::Tier;
use kvhive_gpu::{Arena, ClassId, Device, HostDevice, ReadFrame, SizeClass, WriteFrame};
use std::sync::Arc;

/// Arenas of one device. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Memory {
    device: Arc<dyn Device>,
    tiers: [Arena; 2],
}

impl Memory {
    /// Takes the memory of device number `at`.
    pub(crate) fn take(at: usize, config: &DeviceConfig) -> Result<Memory, NodeError> {
        let classes = config.classes.len();
        if classes == 0 || config.device_frames.len() != classes || config.host_frames.len() != classes {
            return Err(NodeError::Config(format!(
                "device {at} needs frames for each of its {classes} size classes"
            )));
        }
        let device: Arc<dyn Device> = Arc::new(HostDevice::new(u64::MAX));
        let arena = |frames: &[u32]| {
            let sizes = config.classes.iter().zip(frames);
            let sizes: Vec<SizeClass> = sizes
                .map(|(frame_bytes, frames)| SizeClass { frame_bytes: *frame_bytes, frames: *frames })
                .collect();
            Arena::new(device.clone(), &sizes).map_err(|source| NodeError::Memory { device: at, source })
        };
        let tiers = [arena(&config.device_frames)?, arena(&config.host_frames)?];
        Ok(Memory { device, tiers })
    }

    pub(crate) fn take_frame(&self, tier: Tier, class: usize, bytes: u64) -> Option<WriteFrame> {
        self.tiers[tier as usize].take(ClassId(class as u8), bytes)
    }

    /// Copies a sealed frame into a fresh one of another tier.
    pub(crate) fn copy(&self, from: &ReadFrame, mut to: WriteFrame) -> Option<ReadFrame> {
        self.device.copy(from, &mut to).ok().map(|()| to.seal())
    }

    /// Returns the bytes of both arenas.
    pub(crate) fn bytes(&self) -> u64 {
        self.tiers.iter().map(Arena::total_bytes).sum()
    }

    /// Returns what kind of device this is.
    pub(crate) fn kind(&self) -> &'static str {
        match self.device.info().kind {
            kvhive_gpu::DeviceKind::Host => "host",
        }
    }
}
