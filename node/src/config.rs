//! How a node is set up, and why it may not start.

use kvhive_gpu::ArenaError;
use kvhive_runtime::RuntimeError;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use thiserror::Error;

/// One node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name in the cluster.
    pub name: String,
    /// Where its data plane listens; port 0 takes a free one.
    pub data_listen: SocketAddr,
    /// `host:port` at which others reach its data plane; the listening address when none.
    pub data_address: Option<String>,
    /// Where its metrics listen; port 0 takes a free one.
    pub metrics_listen: SocketAddr,
    /// `host:port` at which others reach its metrics; the listening address when none.
    pub metrics_address: Option<String>,
    /// Failure domains and whatever else the operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Threads that serve sockets.
    pub io_threads: usize,
    /// Connections at a time.
    pub max_connections: usize,
    /// Payload bytes of stores under way at a time.
    pub max_inflight_bytes: u64,
    /// Its devices.
    pub devices: Vec<DeviceConfig>,
    /// `host:port` of the coordinators' control plane.
    pub coordinators: Vec<String>,
    /// The cluster's token.
    pub token: Vec<u8>,
}

/// One device of a node: frames per size class, in both tiers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceConfig {
    /// Bytes of a frame, per size class, growing.
    pub classes: Vec<u64>,
    /// Frames of the device tier, per class.
    pub device_frames: Vec<u32>,
    /// Frames of the host tier, per class.
    pub host_frames: Vec<u32>,
}

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The setup makes no sense.
    #[error("node setup: {0}")]
    Config(String),
    /// A device gave not the memory.
    #[error("device {device}: {source}")]
    Memory {
        /// Which device.
        device: usize,
        /// Why.
        source: ArenaError,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Threads could not be made.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}
