//! How much memory a node takes by its configuration.

use crate::actors::core::DeviceCore;
use crate::config::{DeviceConfig, NodeConfig};
use crate::memory::Memory;
use crate::{disk, fill, persist, redis};
use kvhive_cache::Tier;
use kvhive_gpu::cuda::CudaDevice;

/// Memory of one connection whose messages are small: its buffers. One whose messages are large keeps up to 512 KiB, and holds
/// up to [`kvhive_protocol::data::MAX_REQUEST_BYTES`] while one is under way; that is not counted as configured.
const CONNECTION_BYTES: u64 = 32 * 1024;
/// What TLS adds to it: records of 16 KiB being received, and the 64 KiB that wait to be sent.
const TLS_BYTES: u64 = 128 * 1024;

/// Returns how many blocks a device has in memory at most.
pub(crate) fn memory_frames(memory: &Memory) -> u32 {
    let tiers = [Tier::Device, Tier::Host];
    tiers.iter().flat_map(|tier| memory.capacity(*tier).frames).sum()
}

/// Returns how many blocks are listed at a time to be given away: no more than the largest device has.
pub(crate) fn blocks_listed(config: &NodeConfig, memories: &[Memory]) -> usize {
    let blocks = |(memory, device): (&Memory, &DeviceConfig)| {
        let records: u32 = device.disk_geometry().iter().map(|class| class.records).sum();
        memory_frames(memory) as usize + records as usize
    };
    fill::listed(memories.iter().zip(&config.devices).map(blocks).max().unwrap_or(0))
}

/// Returns the bytes of arenas, indices (of blocks on disk too), what snapshots and finding records need, connections'
/// buffers, and blocks that are decoded or read from disk until they are sent.
pub(crate) fn memory_configured(config: &NodeConfig, memories: &[Memory]) -> u64 {
    let of_device = |(memory, device): (&Memory, &DeviceConfig)| {
        let tiers = [Tier::Device, Tier::Host];
        let frames: Vec<u32> = tiers.iter().flat_map(|tier| memory.capacity(*tier).frames).collect();
        let classes = frames.len() / tiers.len();
        let arenas = memory.host_bytes();
        let records: u32 = device.disk_geometry().iter().map(|class| class.records).sum();
        let snapshot = config.persist.as_ref().map_or(0, |_| persist::snapshot_bytes(memory_frames(memory)));
        let core = DeviceCore::bytes(frames.iter().sum::<u32>() + records, classes, config.tuning.strategy);
        arenas + snapshot + disk::scan_bytes(records) + core
    };
    let connection = CONNECTION_BYTES + config.tls.as_ref().map_or(0, |_| TLS_BYTES);
    // What is decoded, and what is read from disks and GPUs, until an asker is sent it; what is received until a GPU has it, and what comes
    // back for other replicas.
    let has_disk = config.devices.iter().any(|device| device.disk_bytes > 0);
    let has_gpu = memories.iter().any(Memory::is_gpu);
    let times = 1 + u64::from(has_disk || has_gpu) + 2 * u64::from(has_gpu);
    let on_the_way = config.max_inflight_bytes * times;
    // What is kept pinned for that when nothing is on the way.
    let kept = memories.iter().filter(|memory| memory.is_gpu()).count() as u64 * CudaDevice::KEPT_BYTES;
    memories.iter().zip(&config.devices).map(of_device).sum::<u64>()
        + config.max_connections as u64 * connection
        + fill::bytes(blocks_listed(config, memories), has_disk)
        + config.names_bytes
        + config.guest_bytes
        + config.redis.as_ref().map_or(0, redis::memory_bytes)
        + on_the_way
        + kept
}
