//! The shape of a local cluster: how many of everything, and how large.

use kvhive_config::{Bytes, DeviceKind};

/// What a new local cluster looks like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Coordinator processes: 1 to 15.
    pub(crate) coordinators: u32,
    /// Node processes.
    pub(crate) nodes: u32,
    /// Device actors a node.
    pub(crate) devices: u32,
    /// What holds the device tiers.
    pub(crate) device_kind: DeviceKind,
    /// Device tier of each device.
    pub(crate) device_memory: Bytes,
    /// Host tier over each device.
    pub(crate) host_memory: Bytes,
    /// Disk tier under each device; 0 for none.
    pub(crate) disk: Bytes,
    /// Size of a frame.
    pub(crate) block_size: Bytes,
    /// Copies of each slot.
    pub(crate) replicas: u32,
    /// What decides which block leaves; what the usual mode says when none.
    pub(crate) strategy: Option<String>,
    /// Whether every channel is encrypted, by certificates of its own authority.
    pub(crate) tls: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            coordinators: 3,
            nodes: 2,
            devices: 2,
            device_kind: DeviceKind::Host,
            device_memory: Bytes(128 << 20),
            host_memory: Bytes(64 << 20),
            disk: Bytes(0),
            block_size: Bytes(64 << 10),
            replicas: 1,
            strategy: None,
            tls: false,
        }
    }
}
