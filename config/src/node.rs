//! One node of a cluster file, and its devices.

use crate::config::reached;
use crate::mode::{Mode, Tuning};
use crate::nccl::NcclSettings;
use crate::share::ShareMemory;
use crate::units::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// What a record on disk takes more than its block, and what its bytes are a multiple of.
const PAGE_BYTES: u64 = 4096;

/// One node process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Its name, unlike any other process's.
    pub id: String,
    /// The address or name that others reach it by.
    pub host: String,
    /// Where it listens for the data plane.
    pub data: SocketAddr,
    /// Where it listens for metrics and health.
    pub metrics: SocketAddr,
    /// Failure domains and whatever else the operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Threads that serve connections.
    pub io_threads: usize,
    /// Connections at once; one more is refused.
    pub max_connections: usize,
    /// Payload bytes in flight at once; more is answered `Busy`.
    pub max_inflight: Bytes,
    /// Bytes a second, at most, at which it gives blocks of slots that move to other nodes, and at which it takes them.
    pub move_rate: Bytes,
    /// How far moves may slow down its fetches, in per cent of what they take without.
    pub move_slowdown_percent: u32,
    /// Size classes of its frames, smallest first.
    pub block_sizes: Vec<BlockClass>,
    /// Folder of the disk tier's files, if any device has one; a relative path starts at the cluster file's folder.
    pub disk_dir: Option<String>,
    /// Whether blocks of the disk tier are encrypted.
    pub disk_encryption: bool,
    /// File of the key that the disk tier's keys are encrypted by, if one is named; a relative path starts at the cluster file's folder.
    pub disk_key_file: Option<String>,
    /// Folder in which its snapshot's folder stands, if it keeps one; a relative path starts at the cluster file's folder.
    pub persist_dir: Option<String>,
    /// How often the snapshot is written while the node serves, if not only at its end.
    pub persist_every: Option<Duration>,
    /// Who may look at its memory.
    pub share_memory: ShareMemory,
    /// Whether clients of its host may lend stages to its GPUs.
    pub gpu_stages: bool,
    /// Memory for names of values.
    pub names_memory: Bytes,
    /// Memory for blocks of other nodes' slots; 0 for none.
    pub guest_memory: Bytes,
    /// Its port for clients of Redis.
    pub redis: RedisSettings,
    /// How blocks go from its GPUs to others by NCCL.
    pub nccl: NcclSettings,
    /// What the cache mostly serves.
    pub mode: Mode,
    /// What `mode` chose, with what the file says put over it.
    pub tuning: Tuning,
    /// Its devices, by index.
    pub devices: Vec<DeviceConfig>,
}

/// How a node speaks Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedisSettings {
    /// Where it listens; nowhere if it does not.
    pub listen: Option<SocketAddr>,
    /// Clients at once; one more is refused.
    pub max_connections: usize,
    /// The longest value.
    pub max_value: Bytes,
    /// Bytes of requests and values under way at once.
    pub max_inflight: Bytes,
}

impl NodeConfig {
    /// Returns the `host:port` by which others reach its data plane.
    pub fn data_address(&self) -> String {
        reached(&self.host, self.data.port())
    }

    /// Returns the `host:port` by which others reach its metrics.
    pub fn metrics_address(&self) -> String {
        reached(&self.host, self.metrics.port())
    }

    /// Returns how many frames each size class gets of a tier of `memory`, in the order of `block_sizes`.
    pub fn frames(&self, memory: Bytes) -> Vec<u64> {
        self.parted(memory, |size| size.0)
    }

    /// Returns how many records each size class gets of a disk tier: a record is whole pages, and one more says what it holds.
    pub fn records(&self, disk: Bytes) -> Vec<u64> {
        self.parted(disk, |size| PAGE_BYTES + size.0.next_multiple_of(PAGE_BYTES))
    }

    fn parted(&self, tier: Bytes, takes: impl Fn(Bytes) -> u64) -> Vec<u64> {
        let whole: u128 = self.block_sizes.iter().map(|class| u128::from(class.share_ppm)).sum();
        let frames = |class: &BlockClass| {
            let part = u128::from(tier.0) * u128::from(class.share_ppm) / whole.max(1);
            u64::try_from(part / u128::from(takes(class.size).max(1))).expect("a part of a u64 fits one")
        };
        self.block_sizes.iter().map(frames).collect()
    }

    /// Returns the bytes of memory of all devices.
    pub fn total_memory(&self) -> Bytes {
        // At most 16 devices of two tiers of 64 TiB, so the sum fits.
        Bytes(self.devices.iter().map(|device| device.memory.0 + device.host_memory.0).sum())
    }
}

/// One size of frame and its part of each tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockClass {
    /// Bytes of one frame; a multiple of 64.
    pub size: Bytes,
    /// Its part of each tier, in millionths.
    pub share_ppm: u32,
}

/// One device of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DeviceConfig {
    /// What holds the bytes of the device tier.
    pub kind: DeviceKind,
    /// Which of the host's GPUs, if it is one.
    pub gpu: u32,
    /// Bytes of the device tier.
    pub memory: Bytes,
    /// Bytes of the host tier over it; 0 means that there is none.
    pub host_memory: Bytes,
    /// Bytes of the disk tier under it; 0 means that there is none.
    pub disk: Bytes,
}

/// What holds the bytes of a device tier.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceKind {
    /// Host memory.
    Host,
    /// A GPU's memory, which must be there.
    Cuda,
    /// A GPU's memory where there is that GPU, else host memory.
    Auto,
}

impl DeviceKind {
    /// All, in the order of their words.
    pub const ALL: [DeviceKind; 3] = [DeviceKind::Host, DeviceKind::Cuda, DeviceKind::Auto];

    /// Returns the word for it in the cluster file.
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceKind::Host => "host",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Auto => "auto",
        }
    }
}
