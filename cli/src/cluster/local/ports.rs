//! The ports of a local cluster: which ones it takes, and others where somebody was quicker to take one of them.

use super::{CONFIG_FILE, Cluster, remove};
use anyhow::{Context, Result};
use kvhive_config::ClusterConfig;
use kvhive_coordinator::CoordinatorError;
use kvhive_node::NodeError;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::Path;

/// How a process ends whose port somebody else listens on.
pub(crate) const PORT_IS_TAKEN: u8 = 4;

/// How often a new cluster takes other ports, and a node that is added.
pub(super) const MOST_LOST: u32 = 3;

/// A process that did not start, as somebody else listens on one of its ports.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct PortTaken(pub(super) String);

/// Says whether a process did not start because somebody else listens on one of its ports.
pub(crate) fn is_port_taken(error: &anyhow::Error) -> bool {
    let cause = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(CoordinatorError::Listen { cause, .. }), _) | (_, Some(NodeError::Listen { cause, .. })) => {
            cause
        }
        _ => return false,
    };
    cause.kind() == ErrorKind::AddrInUse
}

/// Starts the cluster in `dir`. One that was just made takes other ports where somebody was quicker to listen on one that was free when it was
/// picked.
///
/// # Errors
/// As [`Cluster::start`].
pub(crate) fn start(dir: &Path, is_new: bool, mut waiting: impl FnMut(&str)) -> Result<Cluster> {
    for _ in 0..MOST_LOST {
        match Cluster::start(dir, &mut waiting) {
            Err(error) if is_new && error.is::<PortTaken>() => pick_others(dir)?,
            started => return started,
        }
    }
    Cluster::start(dir, waiting)
}

/// Picks two ports for each process: the documented ones where they are all free, else any free ones.
pub(super) fn pick(coordinators: u32, nodes: u32) -> Result<Vec<u16>> {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first =
        (0..coordinators).map(|at| 7800 + 20 * at as u16).chain((0..nodes).map(|at| 7810 + 20 * at as u16));
    let usual: Vec<u16> = first.flat_map(|port| [port, port + 1]).collect();
    if usual.iter().all(|port| free(*port)) {
        return Ok(usual);
    }
    // Held together until all are picked, so that no two are the same.
    let held: Vec<TcpListener> =
        (0..usual.len()).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Gives the cluster in `dir`, which has just been made and holds nothing, other ports: whoever listens is known by them in its log, which
/// begins anew.
///
/// # Errors
/// When its file cannot be read or written, or no port is free.
fn pick_others(dir: &Path) -> Result<()> {
    let file = dir.join(CONFIG_FILE);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let none = std::iter::empty::<(String, String)>;
    let config = ClusterConfig::from_toml(&text, none())?;
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let mut ports = pick(count(config.coordinators.len()), count(config.nodes.len()))?.into_iter();
    let mut others = Vec::new();
    let mut name = |section: &str, id: &str, keys: [&str; 2]| {
        let id = id.to_uppercase().replace('-', "_");
        for (key, port) in keys.into_iter().zip(&mut ports) {
            others.push((format!("KVHIVE_{section}__{id}__{key}"), format!("127.0.0.1:{port}")));
        }
    };
    config.coordinators.iter().for_each(|one| name("COORDINATOR", &one.id, ["ADMIN", "RAFT"]));
    config.nodes.iter().for_each(|one| name("NODE", &one.id, ["DATA", "METRICS"]));
    let config = ClusterConfig::from_toml(&text, others)?;
    remove(&dir.join("data"), |path| fs::remove_dir_all(path))?;
    fs::write(&file, config.to_toml().context("a local cluster's file lists its nodes")?)
        .with_context(|| format!("cannot write {}", file.display()))
}
