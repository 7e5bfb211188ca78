//! Whole nodes on real sockets, with a coordinator that does as it is told.

mod asker;
mod blocks;
mod codecs;
mod coordinator;
mod disk;
mod disk_keys;
mod disk_trouble;
mod explain;
mod fair;
mod faults;
mod gpu;
mod guests;
mod hints;
mod knobs;
mod life;
mod links;
mod moves;
mod nccl;
mod older;
mod persist;
mod persist_layouts;
mod proxy;
mod redis;
mod replication;
mod routes;
mod share;
mod snapshots;
mod snapshots_sealed;
mod stages;
mod strangers;
mod tenants;
mod traces;
mod watch;
mod wiped;

use crate::actors::core::DeviceMessage;
use crate::data::Limits;
use crate::disk::{DiskTuning, record_bytes};
use crate::start::start_within;
use crate::{ClassConfig, DeviceConfig, DeviceMemory, MoveLimits, NcclConfig, NodeConfig, NodeHandle};
use asker::Asker;
use coordinator::FakeCoordinator;
use kvhive_cache::ShardStats;
use kvhive_cache::policy::Strategy;
use kvhive_gpu::cuda::Patience;
use kvhive_protocol::block::Codec;
use kvhive_protocol::{Generation, Level};
use kvhive_runtime::http::{Access, Role as AdminRole};
use kvhive_spans::{Tracer, TracerConfig};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const TOKEN: &[u8] = b"a token of these tests";
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// One node as a test wants it.
struct Setup {
    memory: DeviceMemory,
    frame_bytes: usize,
    /// Bytes and number of smaller frames on the device.
    smaller: Option<(usize, usize)>,
    strategy: Strategy,
    codec: Codec,
    batch_delay: Duration,
    priority: u32,
    gc_per_mille: Option<u16>,
    persist: Option<crate::PersistConfig>,
    /// Folder and number of records of its disk tier.
    disk: Option<(PathBuf, usize)>,
    disk_tuning: DiskTuning,
    disk_keys: crate::DiskKeys,
    devices: usize,
    device_frames: usize,
    host_frames: usize,
    max_connections: usize,
    inflight_bytes: usize,
    places: usize,
    stall: Duration,
    move_rate: u64,
    /// How long its GPU is waited for.
    patience: Patience,
    redis: Option<crate::RedisConfig>,
    /// Whether blocks go from GPU to GPU by NCCL, and what goes wrong in a worker of a node.
    nccl: bool,
    wrong: Option<nccl::Wrong>,
    /// Communicators of its GPU at a time, and what is wanted before one is made.
    max_pairs: usize,
    after_bytes: u64,
    guest_bytes: usize,
    share_memory: crate::ShareMemory,
    gpu_stages: bool,
    /// Each device has a GPU of its own, from that of `memory` on.
    gpus_apart: bool,
    speaks: Level,
    /// How many of a million requests are traced.
    sample_ppm: u32,
    /// How long its coordinator's leases are.
    lease: Duration,
    passing: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            memory: gpu::memory(),
            frame_bytes: 64 * KIB,
            smaller: None,
            strategy: Strategy::Lru,
            codec: Codec::Raw,
            batch_delay: crate::Tuning::default().batch_delay,
            priority: crate::Tuning::default().priority,
            gc_per_mille: None,
            persist: None,
            disk: None,
            disk_tuning: DiskTuning::default(),
            disk_keys: crate::DiskKeys::default(),
            devices: 1,
            device_frames: 32,
            host_frames: 0,
            max_connections: 64,
            inflight_bytes: 64 * MIB,
            places: 8,
            stall: Duration::from_secs(10),
            move_rate: 1 << 40,
            patience: Patience::default(),
            redis: None,
            nccl: false,
            wrong: None,
            max_pairs: 16,
            after_bytes: 1,
            guest_bytes: 4 * MIB,
            share_memory: crate::ShareMemory::default(),
            gpu_stages: true,
            gpus_apart: false,
            speaks: Level::NEWEST,
            sample_ppm: 0,
            lease: Duration::from_secs(1),
            passing: false,
        }
    }
}

/// Tokens of who may do less than the cluster's.
const VIEWER: &[u8] = b"the viewers' token of these tests";
const OPERATOR: &[u8] = b"the operators' token of these tests";

fn access() -> Access {
    let access = Access::default().with(AdminRole::Viewer, VIEWER).expect("it is new");
    access.with(AdminRole::Operator, OPERATOR).expect("it is new")
}

impl Setup {
    fn start(&self, name: &str, coordinator: &FakeCoordinator) -> NodeHandle {
        self.try_start(name, coordinator).expect("a node starts")
    }

    fn try_start(&self, name: &str, coordinator: &FakeCoordinator) -> Result<NodeHandle, crate::NodeError> {
        // Shares are the classes' bytes, so that each gets the frames that were asked for.
        let class = |(frame_bytes, frames): (usize, usize)| ClassConfig {
            frame_bytes: frame_bytes as u64,
            share: (frame_bytes * frames) as u32,
        };
        let large = (self.frame_bytes, self.device_frames);
        let classes: Vec<ClassConfig> = self.smaller.into_iter().chain([large]).map(class).collect();
        let device = |at: usize, classes: Vec<ClassConfig>| DeviceConfig {
            memory: match self.memory {
                DeviceMemory::Cuda(first) if self.gpus_apart => DeviceMemory::Cuda(first + at as u32),
                memory => memory,
            },
            device_bytes: classes.iter().map(|class| u64::from(class.share)).sum(),
            host_bytes: (self.host_frames * self.frame_bytes) as u64,
            disk_bytes: self
                .disk
                .as_ref()
                .map_or(0, |(_, records)| record_bytes(self.frame_bytes as u64) * *records as u64),
            classes,
        };
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = NodeConfig {
            speaks: self.speaks,
            name: name.to_owned(),
            data_listen: free,
            advertise_data: String::new(),
            metrics_listen: free,
            advertise_metrics: String::new(),
            passing: self.passing,
            labels: BTreeMap::new(),
            io_threads: 1,
            max_connections: self.max_connections,
            max_inflight_bytes: self.inflight_bytes as u64,
            moves: MoveLimits { rate: self.move_rate, slowdown_percent: 150 },
            devices: (0..self.devices).map(|at| device(at, classes.clone())).collect(),
            pin_memory: false,
            share_memory: self.share_memory,
            gpu_stages: self.gpu_stages,
            tuning: crate::Tuning {
                strategy: self.strategy,
                codec: self.codec,
                batch_delay: self.batch_delay,
                priority: self.priority,
                gc_per_mille: self.gc_per_mille,
                ..crate::Tuning::default()
            },
            disk_folder: self.disk.as_ref().map(|(folder, _)| folder.clone()),
            disk_keys: self.disk_keys.clone(),
            persist: self.persist.clone(),
            names_bytes: 32 << 20,
            guest_bytes: self.guest_bytes as u64,
            redis: self.redis.clone(),
            nccl: self.nccl.then(|| NcclConfig {
                max_pairs: self.max_pairs,
                after_bytes: self.after_bytes,
                ..nccl::config(name, self.wrong.as_ref())
            }),
            coordinators: vec![coordinator.address()],
            token: TOKEN.to_vec(),
            access: access(),
            tls: None,
            tracer: self.tracer(name),
        };
        let limits = Limits {
            connections: self.max_connections,
            inflight_bytes: self.inflight_bytes as u64,
            places: self.places,
            stall: self.stall,
            least_rate: u64::MAX,
            // What comes in is not what a story slows down.
            takes: MoveLimits { rate: 1 << 40, ..config.moves },
            gives: config.moves,
        };
        start_within(config, limits, &self.disk_tuning, self.patience)
    }

    fn tracer(&self, name: &str) -> Tracer {
        let config = TracerConfig {
            service: "kvhive-node".to_owned(),
            process: name.to_owned(),
            endpoint: None,
            sample_ppm: self.sample_ppm,
            keep: 256,
        };
        if self.sample_ppm > 0 { Tracer::new(&config).expect("nothing is exported") } else { Tracer::OFF }
    }

    /// Starts a coordinator and one node, and waits until it serves.
    async fn one(&self) -> (FakeCoordinator, NodeHandle) {
        let (coordinator, mut nodes) = self.several(1).await;
        (coordinator, nodes.remove(0))
    }

    /// Starts a coordinator and nodes that are all replicas of all slots, and waits until all serve by that map.
    async fn several(&self, count: usize) -> (FakeCoordinator, Vec<NodeHandle>) {
        let coordinator = FakeCoordinator::leasing(self.lease).await;
        let mut nodes: Vec<_> =
            (0..count).map(|at| self.start(&format!("node-{at}"), &coordinator)).collect();
        for node in &nodes {
            eventually("every node serves by the whole map", || {
                let members = node.plane.view.serving().map_or(0, |serving| serving.map.members.len());
                node.is_serving() && members == count
            })
            .await;
        }
        // In the order of their ids, which is that of replicas: the first is every slot's primary.
        nodes.sort_by_key(NodeHandle::member);
        (coordinator, nodes)
    }
}

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came true: {what}");
}

impl NodeHandle {
    async fn ask(&self) -> Asker {
        Asker::connect(&self.data_address().to_string(), self.member().expect("it is a member"))
            .await
            .expect("the node lets a client in")
    }

    async fn shard_stats(&self) -> ShardStats {
        let load = |reply| DeviceMessage::Load { reply };
        let (_, stats) = self.devices[0].ask(Duration::from_secs(5), load).await.expect("the device answers");
        stats
    }

    /// Waits until the shard's figures are as wanted.
    async fn settles(&self, what: &str, wanted: impl Fn(&ShardStats) -> bool) {
        for _ in 0..4000 {
            if wanted(&self.shard_stats().await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never came true: {what}; {:?}", self.shard_stats().await);
    }

    /// Waits until a device was made anew after a panic, and the node is a member again in its second generation.
    async fn is_made_anew(&self) {
        self.is_made_anew_for_the(1).await;
    }

    /// As [`NodeHandle::is_made_anew`], where it has been before.
    async fn is_made_anew_for_the(&self, time: u64) {
        eventually("it was made anew and has registered so", || {
            let serving = self.plane.view.serving();
            let generation = serving
                .and_then(|serving| serving.map.members.get(&serving.member).map(|member| member.generation));
            let restarted = self.counted(|counters| &counters.actor_restarts) == time;
            restarted && generation == Some(Generation(time + 1)) && self.is_serving()
        })
        .await;
    }

    fn counted(&self, counter: impl Fn(&crate::data::Counters) -> &AtomicU64) -> u64 {
        counter(&self.plane.counters).load(Ordering::Relaxed)
    }
}
