//! How a node is set up, and why it may not start or go on.

use crate::book;
use crate::disk::{DiskError, Geometry, record_bytes};
use crate::pace::MoveLimits;
use crate::share::ShareMemory;
use kvhive_cache::policy::Strategy;
use kvhive_gpu::ArenaError;
use kvhive_gpu::cuda::CudaError;
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::{MAX_DEVICES, MAX_LABELS, MAX_NAME_BYTES};
use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use kvhive_protocol::{Level, WireError};
use kvhive_runtime::RuntimeError;
use kvhive_runtime::http::Access;
use kvhive_spans::Tracer;
use kvhive_wire::Tls;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// The most connections that a setup may allow.
const MAX_CONNECTIONS: usize = 1 << 20;
/// What names take at most in an embedded node.
const NAMES_BYTES: u64 = 32 << 20;
/// What guests take at most in an embedded node.
const GUEST_BYTES: u64 = 64 << 20;

/// One node.
#[derive(Clone)]
pub struct NodeConfig {
    /// Its name in the cluster.
    pub name: String,
    /// Where its data plane listens; port 0 takes a free one.
    pub data_listen: SocketAddr,
    /// `host:port` at which others reach its data plane; empty for the address it got.
    pub advertise_data: String,
    /// Where its metrics listen; port 0 takes a free one.
    pub metrics_listen: SocketAddr,
    /// `host:port` at which others reach its metrics; empty for the address it got.
    pub advertise_metrics: String,
    /// Its name is of this start alone, as one that was drawn is: once it has left it is no member any more, and nobody waits for it.
    pub passing: bool,
    /// Failure domains and whatever else the operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Threads that serve sockets.
    pub io_threads: usize,
    /// Connections at a time; one more is closed.
    pub max_connections: usize,
    /// Payload bytes of stores being received at a time, and as many again being copied in the background; a store over
    /// it is answered `Busy`.
    pub max_inflight_bytes: u64,
    /// How fast blocks of slots that move go to other nodes, and come from them.
    pub moves: MoveLimits,
    /// Its devices, by index.
    pub devices: Vec<DeviceConfig>,
    /// Whether their memory is locked, so that none of it is swapped out; where that is not allowed, it is said in the log and it
    /// goes on without.
    pub pin_memory: bool,
    /// Who may look at its devices' memory, where both are on one host.
    pub share_memory: ShareMemory,
    /// Whether clients of the same host may lend stages to its GPUs, over which blocks go without passing the host's memory.
    pub gpu_stages: bool,
    /// How its shards keep blocks.
    pub tuning: Tuning,
    /// Folder of its devices' disk tiers, one folder a device in it; needed if any device has one.
    pub disk_folder: Option<PathBuf>,
    /// Whether what is there is encrypted, and by what.
    pub disk_keys: DiskKeys,
    /// The snapshot that it takes in at its start and leaves at its end; none keeps none.
    pub persist: Option<PersistConfig>,
    /// The most bytes that names take whose meaning this node keeps ([`kvhive_client::Values`]).
    pub names_bytes: u64,
    /// The most bytes that blocks of slots which it is no replica of take here, for clients near it; 0 keeps none.
    pub guest_bytes: u64,
    /// The port that speaks Redis; none for none.
    pub redis: Option<RedisConfig>,
    /// How blocks go from its GPUs to those of other nodes by NCCL; none has them all go over TCP. NCCL encrypts nothing, whatever `tls` is.
    pub nccl: Option<NcclConfig>,
    /// `host:port` of the coordinators' control plane.
    pub coordinators: Vec<String>,
    /// The cluster's token; it is the admin's at the node's own admin routes.
    pub token: Vec<u8>,
    /// Whose other tokens may do what there.
    pub access: Access,
    /// Its certificate and whom it trusts, on every channel; none speaks without TLS.
    pub tls: Option<Tls>,
    /// What records traced requests.
    pub tracer: Tracer,
    /// The newest level that it speaks.
    pub speaks: Level,
}

/// A port that speaks Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Callers at a time; one more is refused.
    pub max_connections: usize,
    /// Bytes of the longest value.
    pub max_value_bytes: u64,
    /// Bytes of requests and values under way at a time, at least those of one value.
    pub max_inflight_bytes: u64,
}

impl NodeConfig {
    /// A node of one device inside a serving process, reached from this host alone, that keeps nothing on disk: what a
    /// caller wants otherwise, it says beside `..NodeConfig::embedded(…)`.
    pub fn embedded(
        name: impl Into<String>,
        device: DeviceConfig,
        coordinators: Vec<String>,
        token: Vec<u8>,
    ) -> NodeConfig {
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        NodeConfig {
            name: name.into(),
            data_listen: here,
            advertise_data: String::new(),
            metrics_listen: here,
            advertise_metrics: String::new(),
            passing: false,
            labels: BTreeMap::new(),
            io_threads: 2,
            max_connections: 1024,
            max_inflight_bytes: 256 << 20,
            moves: MoveLimits { rate: 256 << 20, slowdown_percent: 150 },
            devices: vec![device],
            pin_memory: false,
            share_memory: ShareMemory::default(),
            gpu_stages: true,
            tuning: Tuning::default(),
            disk_folder: None,
            disk_keys: DiskKeys::default(),
            persist: None,
            names_bytes: NAMES_BYTES,
            guest_bytes: GUEST_BYTES,
            redis: None,
            nccl: None,
            coordinators,
            token,
            access: Access::default(),
            tls: None,
            tracer: Tracer::OFF,
            speaks: Level::NEWEST,
        }
    }
}

/// Whether a node's disk tiers are encrypted: each tenant's blocks by a key of their own, which is destroyed with its era.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskKeys {
    /// Blocks are written as they are.
    Off,
    /// The tenants' keys are encrypted by the one in this file, which is made where it is not there; none names one in the disk
    /// tiers' own folder.
    On(Option<PathBuf>),
}

impl Default for DiskKeys {
    fn default() -> DiskKeys {
        DiskKeys::On(None)
    }
}

/// How blocks go from GPU to GPU by NCCL: by a process of each GPU that may hang or die, of which there is none before a pair of GPUs has
/// much to give each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NcclConfig {
    /// The program of that process, and what it is told: `kvhive gpu-worker`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What is added to its environment.
    pub environment: Vec<(String, String)>,
    /// Pairs of one GPU at a time: each takes memory of it.
    pub max_pairs: usize,
    /// Bytes that go to another GPU within a minute before a pair is made.
    pub after_bytes: u64,
    /// Thread blocks that one transfer runs on at most.
    pub max_ctas: u32,
    /// Bytes of each of NCCL's buffers, of which a pair has one for each thread block and direction.
    pub buffer_bytes: u64,
    /// Bytes of each GPU that blocks of other nodes' slots pass which come by NCCL for clients near the node; 0 has these come otherwise.
    pub guest_bytes: u64,
    /// A pair that was used so lately is not closed to make room for another.
    pub keep: Duration,
    /// The process has loaded its libraries and opened the GPU within this, or is ended.
    pub start: Duration,
    /// A call of NCCL that has not returned within this ends the process.
    pub watchdog: Duration,
}

impl NcclConfig {
    /// Small pairs, made by `program`, which is `kvhive`.
    pub fn of(program: PathBuf) -> NcclConfig {
        NcclConfig {
            program,
            arguments: vec!["gpu-worker".to_owned()],
            environment: Vec::new(),
            max_pairs: 16,
            after_bytes: 64 << 20,
            max_ctas: 2,
            buffer_bytes: 1 << 20,
            guest_bytes: 32 << 20,
            keep: Duration::from_secs(10),
            start: Duration::from_secs(20),
            watchdog: Duration::from_secs(5),
        }
    }
}

/// Where a node keeps its snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PersistConfig {
    /// The snapshot's folder; what is being written stands beside it.
    pub folder: PathBuf,
    /// How often one is written; none writes it at the end alone.
    pub every: Option<Duration>,
}

/// The knobs of a node's shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// What decides which block leaves, for tenants without a strategy of their own.
    pub strategy: Strategy,
    /// Blocks that one match may have brought up a tier ahead of their fetch.
    pub prefetch_blocks: u32,
    /// The longest hold that a match may ask.
    pub hold: Duration,
    /// How long moves between tiers and bookkeeping may wait.
    pub batch_delay: Duration,
    /// How blocks are stored that this node is the first to hold, of tenants whose rules ask for nothing.
    pub codec: Codec,
    /// Reads that requests wait for, which may pass one transfer that nobody waits for on a busy disk.
    pub priority: u32,
    /// Whether blocks that were never used since they were stored go to disk too.
    pub unused_to_disk: bool,
    /// Share of the memory, in thousandths, beyond which a collection begins to free some; none collects never.
    pub gc_per_mille: Option<u16>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            strategy: Strategy::Lru,
            prefetch_blocks: 64,
            hold: Duration::from_secs(5),
            batch_delay: Duration::from_millis(10),
            codec: Codec::Raw,
            priority: 16,
            unused_to_disk: true,
            gc_per_mille: None,
        }
    }
}

/// One device of a node: two tiers of memory and one on disk, each parted into frames of a few sizes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// What the device tier is made of.
    pub memory: DeviceMemory,
    /// Bytes of the device tier.
    pub device_bytes: u64,
    /// Bytes of the host tier over it; 0 for none.
    pub host_bytes: u64,
    /// Bytes of the disk tier under it; 0 for none. Every block on disk takes a page more than its frame.
    pub disk_bytes: u64,
    /// Sizes of frames, growing.
    pub classes: Vec<ClassConfig>,
}

/// What a device tier is made of. GPUs by their number in this process, from 0, as `CUDA_VISIBLE_DEVICES` orders them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DeviceMemory {
    /// The host's memory.
    #[default]
    Host,
    /// This GPU's; without it the node does not start.
    Cuda(u32),
    /// This GPU's where it is there, else the host's.
    Auto(u32),
}

/// One size of frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClassConfig {
    /// Bytes of a frame.
    pub frame_bytes: u64,
    /// Its part of each tier, in relation to the sum of all classes' shares.
    pub share: u32,
}

impl DeviceConfig {
    /// Returns how many frames each class gets of a tier of `tier_bytes`.
    pub fn frames(&self, tier_bytes: u64) -> Vec<u32> {
        self.parted(tier_bytes, |frame_bytes| frame_bytes.max(1))
    }

    /// Returns how many records each class gets of the disk tier.
    pub fn records(&self) -> Vec<u32> {
        self.parted(self.disk_bytes, record_bytes)
    }

    /// Returns what is on disk of each class.
    pub(crate) fn disk_geometry(&self) -> Vec<Geometry> {
        let classes = self.classes.iter().zip(self.records());
        classes.map(|(class, records)| Geometry { frame_bytes: class.frame_bytes, records }).collect()
    }

    /// Parts a tier by the classes' shares, and each part by what one block of the class takes there.
    fn parted(&self, tier_bytes: u64, takes: impl Fn(u64) -> u64) -> Vec<u32> {
        let whole: u128 = self.classes.iter().map(|class| u128::from(class.share)).sum();
        let frames = |class: &ClassConfig| {
            let part = u128::from(tier_bytes) * u128::from(class.share) / whole.max(1);
            u32::try_from(part / u128::from(takes(class.frame_bytes))).unwrap_or(u32::MAX)
        };
        self.classes.iter().map(frames).collect()
    }
}

impl NodeConfig {
    /// Checks what does not depend on the machine.
    ///
    /// # Errors
    /// [`NodeError::Config`] with the first thing that makes no sense.
    pub(crate) fn check(&self) -> Result<(), NodeError> {
        let wrong = |what: String| Err(NodeError::Config(what));
        if self.name.is_empty() || self.name.len() > MAX_NAME_BYTES {
            return wrong(format!("name {:?} has not 1 to {MAX_NAME_BYTES} bytes", self.name));
        }
        if self.devices.is_empty() || self.devices.len() > MAX_DEVICES {
            return wrong(format!("{} devices instead of 1 to {MAX_DEVICES}", self.devices.len()));
        }
        if self.labels.len() > MAX_LABELS {
            return wrong(format!("{} labels, at most {MAX_LABELS}", self.labels.len()));
        }
        if self.io_threads == 0 || self.max_connections == 0 || self.max_inflight_bytes == 0 {
            return wrong(
                "io_threads, max_connections and max_inflight_bytes must be more than 0".to_owned(),
            );
        }
        if self.max_connections > MAX_CONNECTIONS {
            return wrong(format!("{} connections, at most {MAX_CONNECTIONS}", self.max_connections));
        }
        if self.guest_bytes > book::MAX_BYTES {
            return wrong(format!("{} bytes for guests, at most {}", self.guest_bytes, book::MAX_BYTES));
        }
        if self.tuning.batch_delay.is_zero() {
            return wrong("batch_delay must be more than 0".to_owned());
        }
        if self.tuning.gc_per_mille.is_some_and(|share| !(1..=1000).contains(&share)) {
            return wrong("gc_per_mille must be from 1 to 1000".to_owned());
        }
        if self.persist.as_ref().and_then(|persist| persist.every).is_some_and(|every| every.is_zero()) {
            return wrong("persist.every must be more than 0".to_owned());
        }
        if let Some(redis) = &self.redis {
            if redis.max_connections == 0 || redis.max_connections > MAX_CONNECTIONS {
                return wrong(format!("redis.max_connections must be from 1 to {MAX_CONNECTIONS}"));
            }
            if redis.max_value_bytes == 0 || redis.max_inflight_bytes < redis.max_value_bytes {
                return wrong("redis.max_inflight_bytes must hold a value, and a value something".to_owned());
            }
            if redis.max_value_bytes > u64::from(MAX_PAYLOAD_BYTES) {
                return wrong(format!("redis.max_value_bytes must be at most {MAX_PAYLOAD_BYTES}"));
            }
        }
        if self.token.is_empty() {
            return wrong("the token is empty".to_owned());
        }
        for (at, device) in self.devices.iter().enumerate() {
            if device.classes.is_empty() {
                return wrong(format!("device {at} has no size class"));
            }
            let frames = device.frames(device.device_bytes);
            if let Some(class) = frames.iter().position(|frames| *frames == 0) {
                let ClassConfig { frame_bytes, share } = device.classes[class];
                let bytes = device.device_bytes;
                return wrong(format!(
                    "device {at}: share {share} of {bytes} bytes holds no frame of {frame_bytes} bytes"
                ));
            }
            if device.disk_bytes > 0 && self.disk_folder.is_none() {
                return wrong(format!(
                    "device {at} has {} bytes on disk, and disk_folder is not set",
                    device.disk_bytes
                ));
            }
        }
        Ok(())
    }
}

/// Why a node did not start, or ended by itself.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The setup makes no sense.
    #[error("node setup: {0}")]
    Config(String),
    /// A device did not give the memory.
    #[error("device {device}: {source}")]
    Memory {
        /// Which device.
        device: usize,
        /// Why.
        source: ArenaError,
    },
    /// A device's GPU could not be used.
    #[error("device {device}: {source}")]
    Gpu {
        /// Which device.
        device: usize,
        /// Why.
        source: CudaError,
    },
    /// The disk tiers' keys cannot be used.
    #[error("the disk tiers' keys: {0}")]
    Keys(DiskError),
    /// A device's disk tier could not be used.
    #[error("device {device}: {cause}")]
    Disk {
        /// Which device.
        device: usize,
        /// Why; in the message already, so it is not told again as its source.
        cause: DiskError,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says; in the message already, so it is not told again as its source.
        cause: io::Error,
    },
    /// Threads could not be made.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The coordinators refused to have it as a member.
    #[error("the coordinators do not take the node in: {0}")]
    Refused(WireError),
    /// A device's actor panicked again and again and was given up; the node has left its cluster.
    #[error("device {device} was given up after repeated panics; they are in the log")]
    DeviceLost {
        /// Which device.
        device: usize,
    },
}
