//! The coordinator of a node that is alone with its process: a whole group of one, in a folder that goes with it.

use crate::{
    Backup, Cleared, CoordinatorConfig, CoordinatorError, CoordinatorHandle, PeerConfig, Place, restore,
    start,
};
use kvhive_client::Tracer;
use kvhive_protocol::Level;
use kvhive_protocol::data::Ack;
use kvhive_protocol::map::Settings;
use kvhive_runtime::http::Access;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use tempfile::TempDir;
use thiserror::Error;

/// The name of such a cluster, the same for all: what one remembered, another can.
const CLUSTER: &str = "embedded";
/// How often ports are looked for.
const ATTEMPTS: u32 = 8;

/// A cluster that only this host reaches, before any node has joined it. Dropped, it ends, and its folder is gone.
pub struct Alone {
    /// The coordinator. Before its folder: it is to have ended when that goes.
    pub handle: CoordinatorHandle,
    /// Its control address, for nodes and clients.
    pub address: String,
    /// What nodes and clients need besides.
    pub token: Vec<u8>,
    _folder: TempDir,
}

/// Why there is no such cluster.
#[derive(Debug, Error)]
pub enum AloneError {
    /// There is no place for its log.
    #[error("cannot make a folder for the coordinator's log: {0}")]
    Folder(io::Error),
    /// No token can be drawn.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// There are no ports for it.
    #[error("cannot find a free port: {0}")]
    Port(io::Error),
    /// What it is to remember is of no use.
    #[error("what the cluster remembered cannot be restored: {0}")]
    Restore(String),
    /// It does not start.
    #[error(transparent)]
    Start(#[from] CoordinatorError),
}

impl Alone {
    /// Starts a coordinator that is a whole group, on ports that only this host reaches.
    ///
    /// `backup` is what such a coordinator remembered once: tenants and their secrets, so that keys of then mean the same.
    ///
    /// # Errors
    /// When it cannot be started, or `backup` is none.
    pub fn start(backup: Option<&[u8]>) -> Result<Alone, AloneError> {
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match Alone::attempt(backup) {
                // Somebody else took a port between its being found and its being listened on.
                Err(AloneError::Start(CoordinatorError::Listen { .. })) if left > 0 => {}
                begun => return begun,
            }
        }
    }

    fn attempt(backup: Option<&[u8]>) -> Result<Alone, AloneError> {
        let folder =
            tempfile::Builder::new().prefix("kvhive-embedded-").tempdir().map_err(AloneError::Folder)?;
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).map_err(AloneError::Random)?;
        let token: Vec<u8> = random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
        let [raft, admin] = free_addresses().map_err(AloneError::Port)?;
        let peer = PeerConfig {
            peer: 1,
            name: format!("{CLUSTER}-coordinator"),
            raft_address: raft.to_string(),
            admin_address: admin.to_string(),
        };
        let data_dir = folder.path().join("coordinator");
        if let Some(bytes) = backup {
            let backup = Backup::decode(bytes).map_err(|error| AloneError::Restore(error.to_string()))?;
            let place = Place { own: peer.clone(), data_dir: data_dir.clone() };
            restore(&backup, CLUSTER, &[place], &[], Cleared::Tenants(&[]))
                .map_err(|error| AloneError::Restore(error.to_string()))?;
        }
        let handle = start(CoordinatorConfig {
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
            speaks: Level::NEWEST,
            tracer: Tracer::OFF,
            block_events: None,
        })?;
        Ok(Alone { handle, address: raft.to_string(), token, _folder: folder })
    }
}

/// Finds two ports that are free. They are in the cluster's map, so they must be known before anything listens.
fn free_addresses() -> io::Result<[SocketAddr; 2]> {
    let [one, other] = [0, 0].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
    let (one, other) = (one?, other?);
    Ok([one.local_addr()?, other.local_addr()?])
}
