//! How a coordinator is set up, and why it may not start.

use crate::blocks::BlockEventsConfig;
use crate::log::LogError;
use crate::membership::MembershipError;
use kvhive_consensus::{ConsensusError, PeerId};
use kvhive_control::RestoreError;
use kvhive_protocol::map::Settings;
use kvhive_protocol::raft::Seat;
use kvhive_protocol::scaling::ScalingPolicy;
use kvhive_protocol::{Level, WireError};
use kvhive_runtime::RuntimeError;
use kvhive_runtime::http::Access;
use kvhive_spans::Tracer;
use kvhive_wire::Tls;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// One coordinator.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Its peer number; one of `peers`.
    pub peer: u64,
    /// All coordinators, this one included; the same on each of them.
    pub peers: Vec<PeerConfig>,
    /// Where raft and the control plane listen; port 0 takes a free one.
    pub raft_listen: SocketAddr,
    /// Where the admin API listens; port 0 takes a free one.
    pub admin_listen: SocketAddr,
    /// Where its log is kept. Once one is there, it belongs to this peer of this cluster with these coordinators, by name
    /// and number.
    pub data_dir: PathBuf,
    /// The cluster's name.
    pub cluster_name: String,
    /// What holds for the whole cluster, if it is started now.
    pub settings: Settings,
    /// How the cluster's size may change, if it is started now.
    pub scaling: ScalingPolicy,
    /// The cluster's token; it is the admin's at the admin API.
    pub token: Vec<u8>,
    /// Whose other tokens may do what there.
    pub access: Access,
    /// Its certificate and whom it trusts, on every channel; none speaks without TLS.
    pub tls: Option<Tls>,
    /// Without word of a leader for this long, up to twice as long, an election is held.
    pub election_timeout: Duration,
    /// How often a leader says that it leads.
    pub heartbeat: Duration,
    /// How long a member that is gone may come back before others are given what it held.
    pub repair_after: Duration,
    /// Whether slots are moved and copied, without being asked, to spread what devices are asked for.
    pub balance: bool,
    /// Applied entries after which the log is compacted.
    pub snapshot_every: u64,
    /// Where block events are published; none publishes none.
    pub block_events: Option<BlockEventsConfig>,
    /// What records traced requests.
    pub tracer: Tracer,
    /// The newest level that it speaks.
    pub speaks: Level,
}

/// One of the coordinators, as the others know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerConfig {
    /// Its peer number, from 1.
    pub peer: u64,
    /// Its name in the cluster file.
    pub name: String,
    /// `host:port` of its raft and control plane.
    pub raft_address: String,
    /// `host:port` of its admin API.
    pub admin_address: String,
}

impl PeerConfig {
    /// Makes one of what the log says of it.
    pub(crate) fn of(peer: PeerId, seat: Seat) -> PeerConfig {
        let Seat { name, raft_address, admin_address } = seat;
        PeerConfig { peer: peer.0, name, raft_address, admin_address }
    }

    /// Returns what the log says of it.
    pub(crate) fn seat(&self) -> (PeerId, Seat) {
        let PeerConfig { peer, name, raft_address, admin_address } = self.clone();
        (PeerId(peer), Seat { name, raft_address, admin_address })
    }
}

/// Why a coordinator did not start, or had to end.
#[derive(Debug, Error)]
pub enum CoordinatorError {
    /// The setup makes no sense.
    #[error("coordinator setup: {0}")]
    Config(String),
    /// The log in its folder belongs to another coordinator, set or cluster.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log's content makes no sense to raft.
    #[error(transparent)]
    Consensus(#[from] ConsensusError),
    /// The snapshot's content makes no sense.
    #[error("the snapshot cannot be used: {0}")]
    Snapshot(#[from] RestoreError),
    /// Its cluster is at a level that it does not speak.
    #[error(transparent)]
    TooOld(WireError),
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
    /// It ran and had to end.
    #[error("the coordinator had to end: {0}")]
    Failed(String),
}
