//! Starts a node: memory, actors, listeners, membership; and ends it in order.

use crate::actors::device::DeviceActor;
use crate::config::{NodeConfig, NodeError};
use crate::data::{Counters, DataPlane, Limits, Replicator, serve};
use crate::membership::{Introduction, Membership};
use crate::memory::Memory;
use crate::metrics::{Sources, routes};
use crate::view::View;
use kvhive_cache::{ShardConfig, TierCapacity};
use kvhive_client::{Coordinators, Pool};
use kvhive_protocol::handshake::{Role, TokenKey};
use kvhive_protocol::map::DeviceDescription;
use kvhive_runtime::{BootClock, Clock, Runtime, RuntimeConfig, Spawn, Stage, stopped};
use kvhive_wire::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::info;

/// Messages that wait for a device actor.
const DEVICE_MAILBOX: usize = 1024;
/// Writes under way in one shard.
const MAX_WRITES: usize = 4096;
/// The longest hold that a match may ask.
const MAX_HOLD: Duration = Duration::from_secs(5);
/// Share of the device tier that demotion keeps free, in thousandths.
const LOW_WATER_PER_MILLE: u16 = 10;
/// Connections kept to each other node, for copies.
const CONNECTIONS_PER_PEER: usize = 8;
/// The longest a dial to another node may take.
const DIAL_LIMIT: Duration = Duration::from_secs(1);
/// Memory of one connection: its buffers.
const CONNECTION_BYTES: u64 = 32 * 1024;

/// A running node. Dropped, it ends without saying goodbye.
pub struct NodeHandle {
    runtime: Runtime,
    data_address: SocketAddr,
    metrics_address: SocketAddr,
}

/// Starts a node and returns once it listens; it serves when the coordinators have given it a lease.
///
/// # Errors
/// When memory, threads or addresses are not to be had.
pub fn start(config: NodeConfig) -> Result<NodeHandle, NodeError> {
    if config.devices.is_empty() || config.devices.len() > kvhive_protocol::control::MAX_DEVICES {
        return Err(NodeError::Config(format!("{} devices", config.devices.len())));
    }
    let runtime = Runtime::new(RuntimeConfig { name: config.name.clone(), io_threads: config.io_threads })?;
    let clock: Arc<dyn Clock> = Arc::new(BootClock);
    let view = Arc::new(View::new(clock.clone()));
    let counters = Arc::new(Counters::default());
    let mut devices = Vec::new();
    let mut descriptions = Vec::new();
    let mut memory_configured = config.max_connections as u64 * CONNECTION_BYTES;
    for (at, device) in config.devices.iter().enumerate() {
        let memory = Memory::take(at, device)?;
        let frames: u64 =
            device.device_frames.iter().chain(&device.host_frames).map(|frames| u64::from(*frames)).sum();
        memory_configured += memory.bytes() + frames * DeviceActor::bytes_per_frame();
        let tier = |frames: &[u32]| {
            device.classes.iter().zip(frames).map(|(size, count)| size * u64::from(*count)).sum()
        };
        descriptions.push(DeviceDescription {
            kind: memory.kind().to_owned(),
            device_bytes: tier(&device.device_frames),
            host_bytes: tier(&device.host_frames),
        });
        let shard = ShardConfig {
            classes: device.classes.clone(),
            device: TierCapacity { frames: device.device_frames.clone() },
            host: TierCapacity { frames: device.host_frames.clone() },
            max_hold: MAX_HOLD,
            max_writes: MAX_WRITES,
            low_water_per_mille: LOW_WATER_PER_MILLE,
            hash_seed: clock.now().as_nanos(),
        };
        let arbiter = runtime.arbiter(&format!("device-{at}"))?;
        let (clock, io, served, restarts) =
            (clock.clone(), runtime.io().clone(), view.clone(), counters.clone());
        let sender = Spawn::new(format!("{} device {at}", config.name))
            .mailbox(DEVICE_MAILBOX)
            .on_restart(move || {
                restarts.actor_restarts.fetch_add(1, Ordering::Relaxed);
            })
            .on(&arbiter, move || {
                let serving = served.serving();
                let map = serving.as_ref().map(|serving| &*serving.map);
                DeviceActor::new(shard.clone(), memory.clone(), clock.clone(), io.clone(), map)
            });
        devices.push(sender);
    }
    let (data_listener, data_bound) = listen(&runtime, config.data_listen)?;
    let (metrics_listener, metrics_bound) = listen(&runtime, config.metrics_listen)?;
    let identity =
        Identity { token: TokenKey::new(&config.token), role: Role::Node, sender: 0, cluster: None };
    let coordinators = Coordinators::new(config.coordinators.clone(), identity.clone())
        .map_err(|error| NodeError::Config(error.to_string()))?;
    let replicator =
        Replicator::new(Pool::new(identity, CONNECTIONS_PER_PEER, DIAL_LIMIT), runtime.io().clone());
    let plane = Arc::new(DataPlane::new(
        devices.clone(),
        view.clone(),
        counters.clone(),
        replicator,
        TokenKey::new(&config.token),
        Limits { connections: config.max_connections, inflight_bytes: config.max_inflight_bytes },
    ));
    let (stop, stopping) = watch::channel(false);
    let serving = runtime.io().spawn(serve(data_listener, plane, stopping.clone()));
    let metrics =
        routes(Sources { devices: devices.clone(), view: view.clone(), counters, memory_configured });
    let mut metrics_stopped = stopping.clone();
    let scraping = runtime.io().spawn(async move {
        let until = async move { stopped(&mut metrics_stopped).await };
        if let Err(error) = axum::serve(metrics_listener, metrics).with_graceful_shutdown(until).await {
            tracing::error!(%error, "the metrics listener failed");
        }
    });
    let introduction = Introduction {
        name: config.name.clone(),
        data_address: config.data_address.clone().unwrap_or_else(|| data_bound.to_string()),
        metrics_address: config.metrics_address.clone().unwrap_or_else(|| metrics_bound.to_string()),
        labels: config.labels.clone(),
        devices: descriptions,
    };
    let membership = Membership { coordinators: Arc::new(coordinators), introduction, devices, view };
    let (member_stop, member_stopped) = watch::channel(false);
    let member = runtime.io().spawn(membership.run(member_stopped));
    runtime.on_shutdown().at(Stage::StopAccepting, "leave the cluster", async move {
        let _ = member_stop.send(true);
        let _ = member.await;
    });
    runtime.on_shutdown().at(Stage::DrainRequests, "close connections", async move {
        let _ = stop.send(true);
        let _ = serving.await;
        let _ = scraping.await;
    });
    info!(node = %config.name, data = %data_bound, metrics = %metrics_bound, memory_configured, "node listens");
    Ok(NodeHandle { runtime, data_address: data_bound, metrics_address: metrics_bound })
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    runtime.listen(address).map_err(|source| NodeError::Listen { address, source })
}

impl NodeHandle {
    /// Returns where the data plane listens.
    pub fn data_address(&self) -> SocketAddr {
        self.data_address
    }

    /// Returns where metrics are served.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics_address
    }

    /// Leaves the cluster, closes connections and ends all threads, within `limit`. Must not be called on one of the
    /// node's own threads.
    pub fn shutdown(self, limit: Duration) {
        self.runtime.shutdown(limit);
    }
}
