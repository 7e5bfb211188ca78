//! The cluster of a node that is alone: one coordinator, in a folder that goes with it.

use crate::errors::{Failure, Kind};
use kvhive_coordinator::{
    Backup, Cleared, CoordinatorConfig, CoordinatorError, CoordinatorHandle, PeerConfig, Place,
};
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_runtime::http::Access;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tempfile::TempDir;

/// The name of such a cluster, the same for all: what one remembered, another can.
const CLUSTER: &str = "embedded";

/// How often ports are looked for.
const ATTEMPTS: u32 = 8;

/// The cluster that a node joins.
pub(crate) struct Cluster {
    pub(crate) coordinators: Vec<String>,
    pub(crate) token: Vec<u8>,
}

/// Starts a coordinator that is a whole group, on a port that only this host reaches.
///
/// `restore` is what such a coordinator remembered once: tenants and their secrets, so that keys of then mean the same.
pub(crate) fn alone(restore: Option<&[u8]>) -> Result<(CoordinatorHandle, Cluster, TempDir), Failure> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match attempt(restore)? {
            Ok(begun) => return Ok(begun),
            // Somebody else took a port between its being found and its being listened on.
            Err(CoordinatorError::Listen { .. }) if left > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Finds two ports that are free. They are in the cluster's map, so they must be known before anything listens.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let [one, other] = [0, 0].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    let (one, other) = (one?, other?);
    Ok([one.local_addr()?, other.local_addr()?])
}

type Begun = (CoordinatorHandle, Cluster, TempDir);

fn attempt(restore: Option<&[u8]>) -> Result<Result<Begun, CoordinatorError>, Failure> {
    let failed = |what: String| Failure::new(Kind::Node, what);
    let folder = tempfile::Builder::new()
        .prefix("kvhive-embedded-")
        .tempdir()
        .map_err(|error| failed(format!("cannot make a folder for the coordinator's log: {error}")))?;
    let mut random = [0u8; 32];
    getrandom::fill(&mut random)
        .map_err(|error| failed(format!("the system gives no random numbers: {error}")))?;
    let token: Vec<u8> = random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    let [raft, admin] =
        free_addresses().map_err(|error| failed(format!("cannot find a free port: {error}")))?;
    let peer = PeerConfig {
        peer: 1,
        name: format!("{CLUSTER}-coordinator"),
        raft_address: raft.to_string(),
        admin_address: admin.to_string(),
    };
    let data_dir = folder.path().join("coordinator");
    if let Some(bytes) = restore {
        let failed = |why: String| failed(format!("what the cluster remembered cannot be restored: {why}"));
        let backup = Backup::decode(bytes).map_err(|error| failed(error.to_string()))?;
        let place = Place { own: peer.clone(), data_dir: data_dir.clone() };
        kvhive_coordinator::restore(&backup, CLUSTER, &[place], &[], Cleared::Tenants(&[]))
            .map_err(|error| failed(error.to_string()))?;
    }
    let started = kvhive_coordinator::start(CoordinatorConfig {
        peer: 1,
        peers: vec![peer],
        raft_listen: raft,
        admin_listen: admin,
        data_dir,
        cluster_name: CLUSTER.to_owned(),
        settings: Settings {
            replicas: 1,
            segment_blocks: 32,
            ack: Ack::Primary,
            lease_ms: 5000,
            heartbeat_ms: 100,
            serving_lease_ms: 5000,
        },
        token: token.clone(),
        access: Access::default(),
        tls: None,
        election_timeout: Duration::from_millis(200),
        heartbeat: Duration::from_millis(50),
        repair_after: Duration::from_secs(30),
        scaling: Default::default(),
        balance: false,
        snapshot_every: 10_000,
        speaks: kvhive_protocol::Level::NEWEST,
        tracer: kvhive_client::Tracer::OFF,
        block_events: None,
    });
    let cluster = Cluster { coordinators: vec![raft.to_string()], token };
    Ok(started.map(|coordinator| (coordinator, cluster, folder)))
}
