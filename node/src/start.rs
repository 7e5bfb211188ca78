//! Starts a node: memory, actors, listeners, membership; and says in which order they end.

use crate::actors::core::DeviceCore;
use crate::actors::device::Device;
use crate::admin;
use crate::budget::{blocks_listed, memory_configured, memory_frames};
use crate::config::{DeviceConfig, NodeConfig, NodeError, Tuning};
use crate::data::{Counters, DataPlane, Limits, Replicator, count, serve};
use crate::disk::{DiskTuning, Store};
use crate::disks;
use crate::fill::Filler;
#[cfg(test)]
use crate::handle::Inside;
use crate::handle::{Ending, NodeHandle, SelfEnded};
use crate::links::Links;
use crate::membership::{Introduction, Membership};
use crate::memory::Memory;
use crate::metrics::{Sources, routes};
use crate::passing::Passing;
use crate::persist::{Holdings, Jobs, Keeper};
use crate::redis::Door;
use crate::settle::Settler;
use crate::share::{self, ShareMemory};
use crate::view::View;
use axum::Router;
use kvhive_cache::{Rules, ShardConfig, Tier, TierCapacity};
use kvhive_client::{ClientConfig, Coordinators, Pool};
use kvhive_gpu::cuda::Patience;
use kvhive_protocol::Levels;
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::map::DeviceDescription;
use kvhive_runtime::http::{Access, Role as AdminRole};
use kvhive_runtime::{BootClock, BoundedListener, DoorLimits, Runtime, RuntimeConfig, Spawn, Stage, stopped};
use kvhive_wire::{Identity, Listening, Tls};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::{error, info};

/// Messages that wait for a device actor.
const DEVICE_MAILBOX: usize = 1024;
/// Writes under way in one shard.
const MAX_WRITES: usize = 4096;
/// Share of the frames, and of what a tenant is promised, that pinned blocks take at most, in thousandths.
const PINNED_PER_MILLE: u16 = 500;
/// Share of the device tier that demotion keeps free, in thousandths.
const LOW_WATER_PER_MILLE: u16 = 10;
/// The same where blocks go down to a disk: a burst of stores comes faster than they do.
const LOW_WATER_OVER_DISK_PER_MILLE: u16 = 50;
/// Connections kept to each other node, for copies.
const CONNECTIONS_PER_PEER: usize = 8;
/// Connections for what GPUs say to each other: it waits for no transfer.
const WORDS_PER_PEER: usize = 2;
/// The longest a dial to another node may take.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// What strangers can hold of the metrics listener.
const METRICS_DOOR: DoorLimits = DoorLimits {
    connections: 32,
    head: Duration::from_secs(5),
    answer: Duration::from_secs(60),
    idle: Duration::from_secs(60),
};
/// Transfers under way for each thread that serves connections: one that it works at, and others whose peers or kernels are at work.
const PLACES_A_THREAD: usize = 4;
/// And at the least: a link is not one peer's.
const LEAST_PLACES: usize = 8;
/// See [`Limits::stall`].
const STALL: Duration = Duration::from_secs(30);
/// See [`Limits::least_rate`].
const LEAST_RATE: u64 = 1 << 20;

/// Starts a node and returns once it listens; it serves when the coordinators have given it a lease. May be called on any
/// thread, also of another runtime.
///
/// # Errors
/// When the setup makes no sense, or memory, threads or addresses are not to be had.
pub fn start(config: NodeConfig) -> Result<NodeHandle, NodeError> {
    let NodeConfig { max_connections, max_inflight_bytes, moves, .. } = config;
    let limits = Limits {
        connections: max_connections,
        inflight_bytes: max_inflight_bytes,
        places: LEAST_PLACES.max(PLACES_A_THREAD * config.io_threads),
        stall: STALL,
        least_rate: LEAST_RATE,
        gives: moves,
        takes: moves,
    };
    start_within(config, limits, &DiskTuning::default(), Patience::default())
}

/// Starts a node whose data plane has these bounds, whose disks are used like this, and whose GPUs are waited for so long.
pub(crate) fn start_within(
    config: NodeConfig,
    limits: Limits,
    disk_tuning: &DiskTuning,
    patience: Patience,
) -> Result<NodeHandle, NodeError> {
    config.check()?;
    let access = config.access.clone().with(AdminRole::Admin, &config.token);
    let access = access.map_err(|error| NodeError::Config(error.to_string()))?;
    let runtime = Runtime::new(RuntimeConfig { name: config.name.clone(), io_threads: config.io_threads })?;
    let view = Arc::new(View::new(Arc::new(BootClock), config.names_bytes, config.guest_bytes));
    let counters = Arc::new(Counters::default());
    let ending = Arc::new(Ending::default());
    let (stop, stopping) = watch::channel(false);
    let stop = Arc::new(stop);

    let (emptied, emptied_seen) = watch::channel(0u64);
    let emptied = Arc::new(emptied);
    let mut devices = Vec::with_capacity(config.devices.len());
    let mut memories = Vec::with_capacity(config.devices.len());
    let (keys, stores) = disks::open(&config, &view, disk_tuning)?;
    let mut gpus_lacking = Vec::new();
    for (at, device) in config.devices.iter().enumerate() {
        let is_shared = config.share_memory != ShareMemory::Off;
        let passing_bytes = match (&config.nccl, &view.guests) {
            (Some(nccl), Some(_)) => nccl.guest_bytes,
            _ => 0,
        };
        let (mut memory, lacks) = Memory::take(at, device, is_shared, (patience, passing_bytes))?;
        gpus_lacking.extend(lacks);
        memory.pin(at, config.pin_memory);
        let (give_up_ending, give_up_stop) = (ending.clone(), stop.clone());
        let (restarts, emptied) = (counters.clone(), emptied.clone());
        let spawn = Spawn::new(format!("{} device {at}", config.name))
            .mailbox(DEVICE_MAILBOX)
            .on_restart(move || {
                count(&restarts.actor_restarts);
                emptied.send_modify(|times| *times += 1);
            })
            .on_give_up(move || {
                // Half a node would hold slots that nobody answers for: the member leaves as a whole.
                give_up_stop.send_replace(true);
                give_up_ending.tell(Err(SelfEnded::Device(at)));
            });
        devices.push(spawn_device(&runtime, spawn, at, device, config.tuning, &memory, &stores[at], &view)?);
        memories.push(memory);
    }

    if let Some(error) = gpus_lacking.first() {
        let devices = gpus_lacking.len();
        info!(devices, %error, "no GPU for these devices: their device tier is host memory");
    }
    let pinned_bytes = memories.iter().map(Memory::pinned_bytes).sum();
    let (data_listener, data_address) = listen(&runtime, config.data_listen)?;
    let (metrics_listener, metrics_address) = listen(&runtime, config.metrics_listen)?;
    let redis_listener = config.redis.as_ref().map(|redis| listen(&runtime, redis.listen)).transpose()?;
    let token = TokenKey::new(&config.token);
    let identity = Identity {
        token: token.clone(),
        role: Role::Node,
        sender: 0,
        cluster: None,
        tls: config.tls.clone(),
        levels: Levels::up_to(config.speaks),
    };
    let coordinators = Coordinators::new(config.coordinators.clone(), identity.clone())
        .map_err(|error| NodeError::Config(error.to_string()))?;
    let as_client = || {
        Coordinators::new(config.coordinators.clone(), Identity { role: Role::Client, ..identity.clone() })
    };
    let removal = config.passing.then(as_client).transpose();
    let removal = removal.map_err(|error| NodeError::Config(error.to_string()))?.map(Arc::new);
    let words = Pool::new(identity.clone(), WORDS_PER_PEER, DIAL_LIMIT);
    let pool = Pool::new(identity, CONNECTIONS_PER_PEER, DIAL_LIMIT);
    let gpus = memories.iter().map(Memory::own_gpu).collect();
    let with = (view.clone(), config.tracer.clone(), runtime.io());
    let links = Links::new((pool, words), (config.nccl.as_ref(), gpus), with);
    let replicator =
        Replicator::new(links, runtime.io().clone(), limits.inflight_bytes, config.tracer.clone());
    let shares = (config.share_memory, config.gpu_stages);
    let sharing = share::start(&runtime, shares, &memories, &counters, &stopping);
    let plane = DataPlane::new(
        devices.clone(),
        view.clone(),
        counters,
        replicator.clone(),
        Listening { token, cluster: None, tls: config.tls.clone(), levels: Levels::up_to(config.speaks) },
        sharing,
        limits,
    );
    let plane = Arc::new(plane.with_passing(memories.iter().map(Passing::of).collect()));
    plane.replicator.links.serve(Arc::downgrade(&plane));

    let buffers: u64 = stores.iter().flatten().map(|store| store.buffer_bytes()).sum();
    let memory_configured = memory_configured(&config, &memories) + buffers;
    disks::keep(&runtime, &devices, &stores, &view, &stopping);
    if let Some(keys) = keys.clone() {
        // What writes when this is reached has its key already.
        runtime.on_shutdown().at(Stage::CloseDisks, "let go of the disk's keys", async move { keys.close() });
    }
    if let Some(tls) = config.tls.clone() {
        runtime.io().spawn(tls.keep_fresh());
    }
    let serving = runtime.io().spawn(serve(data_listener, plane.clone(), stopping.clone()));
    let redis = open_redis(&config, &runtime, &access, redis_listener, &plane, &stopping);
    let redis_address = redis.as_ref().map(|(_, address)| *address);
    let sources = Sources {
        devices: devices.clone(),
        memories: memories.clone(),
        stores: stores.clone(),
        keys: keys.clone(),
        plane: plane.clone(),
        redis: redis.map(|(door, _)| door),
        memory_configured,
    };
    let membership = Membership {
        coordinators: Arc::new(coordinators),
        introduction: introduce(&config, &memories, &stores, data_address, metrics_address),
        devices: devices.clone(),
        replicator,
        keys: keys.clone(),
        view: view.clone(),
        counters: plane.counters.clone(),
        emptied: emptied_seen,
        known_emptied: Arc::default(),
        ending: ending.clone(),
        removal,
    };
    let largest = |device: &DeviceConfig| device.classes.iter().map(|class| class.frame_bytes).max();
    let frame_bytes = config.devices.iter().filter_map(largest).max().unwrap_or(0);
    let holdings = Holdings {
        devices: devices.clone(),
        stores: stores.iter().flatten().cloned().collect(),
        keys: keys.clone(),
        frames: memories.iter().map(memory_frames).collect(),
        frame_bytes,
        view: view.clone(),
        counters: plane.counters.clone(),
        loading: Arc::new(Semaphore::new(1)),
        saving: Arc::new(Semaphore::new(1)),
    };
    let jobs = keep_snapshot(&config, &runtime, &holdings, &plane, &stopping);
    let routes = routes(sources).merge(admin::routes(access, jobs, plane.replicator.links.clone()));
    runtime.io().spawn(serve_metrics(metrics_listener, routes, config.tls.clone(), stopping.clone()));
    let filler = Filler {
        devices: devices.clone(),
        replicator: plane.replicator.clone(),
        view: view.clone(),
        counters: plane.counters.clone(),
        pacer: plane.gives.clone(),
        listed: blocks_listed(&config, &memories),
    };
    runtime.io().spawn(filler.run(stopping.clone()));
    let settler =
        Settler { devices: devices.clone(), replicator: plane.replicator.clone(), view: view.clone() };
    runtime.io().spawn(settler.run(stopping.clone()));
    let member = runtime.io().spawn(membership.run(stopping));

    runtime.on_shutdown().at(Stage::StopAccepting, "leave the cluster", async move {
        stop.send_replace(true);
        // Both end by themselves, and a panic of theirs is in the log.
        let _ = serving.await;
        let _ = member.await;
    });
    let draining = plane.clone();
    runtime.on_shutdown().at(
        Stage::DrainRequests,
        "end connections",
        async move { draining.drained().await },
    );
    let gpus: Vec<Memory> = memories.iter().filter(|memory| memory.is_gpu()).cloned().collect();
    runtime.on_shutdown().at(Stage::CloseDisks, "let go of GPUs", async move {
        // A panic of its is in the log.
        let _ = tokio::task::spawn_blocking(move || gpus.iter().for_each(Memory::settle)).await;
    });
    let tracer = config.tracer.clone();
    runtime.on_shutdown().at(Stage::CloseDisks, "send the last spans", async move {
        // It may wait for its collector.
        let _ = tokio::task::spawn_blocking(move || tracer.close()).await;
    });
    info!(node = %config.name, data = %data_address, metrics = %metrics_address, memory_configured, "node listens");
    Ok(NodeHandle {
        runtime,
        holdings,
        devices,
        plane,
        data_address,
        metrics_address,
        redis_address,
        pinned_bytes,
        gpus: memories.iter().filter_map(Memory::gpu).collect(),
        view,
        ending,
        #[cfg(test)]
        inside: Inside { memories, stores },
    })
}

/// Opens the port that speaks Redis, if the node has one; its callers' requests end before connections of the data plane do.
fn open_redis(
    config: &NodeConfig,
    runtime: &Runtime,
    access: &Access,
    listener: Option<(TcpListener, SocketAddr)>,
    plane: &Arc<DataPlane>,
    stopping: &watch::Receiver<bool>,
) -> Option<(Arc<Door>, SocketAddr)> {
    let (redis, (listener, address)) = config.redis.clone().zip(listener)?;
    let (view, counters) = (plane.view.clone(), plane.counters.clone());
    let door = Arc::new(Door::new(redis, access.clone(), config.tls.clone(), view, counters));
    let client = ClientConfig {
        tls: config.tls.clone(),
        tracer: config.tracer.clone(),
        ..ClientConfig::new(config.coordinators.clone(), config.token.clone())
    };
    runtime.io().spawn(door.clone().join(client, stopping.clone()));
    runtime.io().spawn(door.clone().serve(listener, stopping.clone()));
    let draining = door.clone();
    runtime.on_shutdown().at(Stage::DrainRequests, "end callers that speak Redis", async move {
        draining.drained().await;
    });
    Some((door, address))
}

/// Has the node's snapshot kept, if it has one: the last is written when requests have ended and before actors do.
fn keep_snapshot(
    config: &NodeConfig,
    runtime: &Runtime,
    holdings: &Holdings,
    plane: &Arc<DataPlane>,
    stopping: &watch::Receiver<bool>,
) -> Option<Arc<Jobs>> {
    let config = config.persist.clone()?;
    let keeper = Arc::new(Keeper::new(holdings.clone(), config));
    let (at_work, plane) = (keeper.clone(), plane.clone());
    let jobs = Jobs::new(keeper.clone(), stopping.clone());
    let until = stopping.clone();
    let kept = runtime.io().spawn(async move { at_work.run(until).await });
    runtime.on_shutdown().at(Stage::DrainRequests, "write the snapshot", async move {
        // Its panic is in the log; what the devices hold is written all the same.
        let _ = kept.await;
        plane.drained().await;
        keeper.write().await;
    });
    Some(jobs)
}

#[expect(clippy::too_many_arguments, reason = "what one device is made of")]
fn spawn_device(
    runtime: &Runtime,
    spawn: Spawn,
    at: usize,
    device: &DeviceConfig,
    tuning: Tuning,
    memory: &Memory,
    store: &Option<Arc<Store>>,
    view: &Arc<View>,
) -> Result<Device, NodeError> {
    let shard = ShardConfig {
        classes: device.classes.iter().map(|class| class.frame_bytes).collect(),
        device: memory.capacity(Tier::Device),
        host: memory.capacity(Tier::Host),
        disk: TierCapacity { frames: store.as_ref().map(|store| store.records()).unwrap_or_default() },
        rules: Rules::new(tuning.strategy),
        unused_to_disk: tuning.unused_to_disk,
        prefetch: tuning.prefetch_blocks,
        gc_per_mille: tuning.gc_per_mille,
        pinned_per_mille: PINNED_PER_MILLE,
        max_hold: tuning.hold,
        max_writes: MAX_WRITES,
        low_water_per_mille: if store.is_some() {
            LOW_WATER_OVER_DISK_PER_MILLE
        } else {
            LOW_WATER_PER_MILLE
        },
        hash_seed: RandomState::new().hash_one(at),
    };
    let arbiter = runtime.arbiter(&format!("device-{at}"))?;
    let gpu = memory.gpu();
    let (memory, store, view, io) = (memory.clone(), store.clone(), view.clone(), runtime.io().clone());
    let index = u16::try_from(at).expect("a node has few devices");
    let make = move || {
        DeviceCore::new(index, shard.clone(), memory.clone(), store.clone(), view.clone(), io.clone())
    };
    Ok(Device::start(spawn, &arbiter, tuning.batch_delay, gpu, make))
}

fn introduce(
    config: &NodeConfig,
    memories: &[Memory],
    stores: &[Option<Arc<Store>>],
    data_address: SocketAddr,
    metrics_address: SocketAddr,
) -> Introduction {
    let describe = |(memory, store): (&Memory, &Option<Arc<Store>>)| DeviceDescription {
        kind: memory.kind().to_owned(),
        device_bytes: memory.tier_bytes(Tier::Device),
        host_bytes: memory.tier_bytes(Tier::Host),
        disk_bytes: store.as_ref().map_or(0, |store| store.tier_bytes()),
    };
    Introduction {
        speaks: config.speaks,
        name: config.name.clone(),
        data_address: reached(&config.advertise_data, data_address, ""),
        metrics_address: reached(&config.advertise_metrics, metrics_address, &config.advertise_data),
        labels: config.labels.clone(),
        devices: memories.iter().zip(stores).map(describe).collect(),
        codec: config.tuning.codec,
    }
}

/// Returns how others reach what is bound: as is advertised, or where it is bound, or if that is every address, by the host of what else is
/// advertised.
fn reached(advertised: &str, bound: SocketAddr, beside: &str) -> String {
    match beside.rsplit_once(':') {
        _ if !advertised.is_empty() => advertised.to_owned(),
        Some((host, _)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
        _ => bound.to_string(),
    }
}

async fn serve_metrics(
    listener: TcpListener,
    routes: Router,
    tls: Option<Tls>,
    mut stopping: watch::Receiver<bool>,
) {
    let until = async move { stopped(&mut stopping).await };
    let served =
        axum::serve(BoundedListener::new(listener, METRICS_DOOR, tls), routes).with_graceful_shutdown(until);
    if let Err(error) = served.await {
        error!(%error, "the metrics listener failed");
    }
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    runtime.listen(address).map_err(|cause| NodeError::Listen { address, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bound_to_every_address_is_reached_by_the_host_that_is_advertised_beside_it() {
        let every = SocketAddr::from(([0, 0, 0, 0], 7811));
        let one = SocketAddr::from(([10, 0, 0, 5], 7811));
        assert_eq!(reached("", every, "node-1:7810"), "node-1:7811");
        assert_eq!(reached("", every, "[fd00::1]:7810"), "[fd00::1]:7811");
        assert_eq!(reached("", one, "node-1:7810"), "10.0.0.5:7811");
        assert_eq!(reached("metrics:1", every, "node-1:7810"), "metrics:1");
        assert_eq!(reached("", every, ""), "0.0.0.0:7811");
    }
}
