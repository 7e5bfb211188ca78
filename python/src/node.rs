//! A node inside this process: joined to a cluster, or alone with a coordinator of its own.

use crate::connection::{codec, seconds, strategy, tls};
use crate::errors::{Failure, Kind};
use crate::worker::Nccl;
use kvhive_config::{DiskAdmission, Mode};
use kvhive_coordinator::Alone;
use kvhive_node::{
    ClassConfig, DeviceConfig, DeviceMemory, NcclConfig, NodeConfig, NodeError, NodeHandle, PersistConfig,
    Tuning,
};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How often a start looks whether the node serves.
const LOOKS_EVERY: Duration = Duration::from_millis(5);
/// The longest that a node which did not begin to serve may take to end.
const FAILED_STOP: Duration = Duration::from_secs(5);

/// A node with its devices, and whatever it needs to be a cluster.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Node {
    /// Whose threads it has.
    process: u32,
    parts: Mutex<Option<Parts>>,
    /// What a client of its cluster needs.
    coordinators: Vec<String>,
    token: Vec<u8>,
}

/// Dropped in this order: nothing is left that the next one is needed by.
struct Parts {
    node: Arc<NodeHandle>,
    alone: Option<Alone>,
}

/// The cluster that a node joins.
struct Cluster {
    coordinators: Vec<String>,
    token: Vec<u8>,
}

/// Everything that may be set, as the stub of `Node.start` says.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Setup {
    name: String,
    passing: bool,
    memory: u64,
    host_memory: u64,
    disk: u64,
    disk_folder: Option<PathBuf>,
    devices: usize,
    gpu: Option<u32>,
    nccl: Option<Nccl>,
    block_bytes: Vec<u64>,
    block_shares: Option<Vec<u32>>,
    pin_memory: bool,
    restore: Option<Vec<u8>>,
    mode: String,
    strategy: String,
    codec: String,
    prefetch_blocks: u32,
    gc_threshold: Option<f64>,
    persist_folder: Option<PathBuf>,
    persist_every: Option<f64>,
    coordinators: Option<Vec<String>>,
    token: Option<Vec<u8>>,
    tls: Option<(PathBuf, PathBuf, PathBuf)>,
    listen: String,
    advertise: String,
    labels: BTreeMap<String, String>,
    io_threads: usize,
}

impl Setup {
    fn node(self, cluster: &Cluster) -> Result<NodeConfig, Failure> {
        let setup = |what: String| Failure::new(Kind::NodeSetup, what);
        let strategy = strategy(&self.strategy).map_err(|failure| failure.of_kind(Kind::NodeSetup))?;
        let mode = Mode::ALL.into_iter().find(|mode| mode.as_str() == self.mode).ok_or_else(|| {
            let names = Mode::ALL.map(Mode::as_str);
            setup(format!("mode {:?}: allowed is {}", self.mode, names.join(", ")))
        })?;
        let gc_per_mille = match self.gc_threshold {
            Some(share) if !(0.001..=1.0).contains(&share) => {
                return Err(setup(format!("gc_threshold {share}: allowed is 0.001 to 1")));
            }
            share => share.map(|share| (share * 1000.0).round() as u16).filter(|share| *share < 1000),
        };
        let listen: SocketAddr = self.listen.parse().map_err(|_| {
            setup(format!("listen {:?}: it must be an address and a port, as in 10.0.0.5:7810", self.listen))
        })?;
        let classes = classes(&self.block_bytes, self.block_shares.as_deref())
            .map_err(|why| setup(format!("block_bytes {:?}: {why}", self.block_bytes)))?;
        let knobs = mode.tuning(classes.len());
        let device = DeviceConfig {
            memory: DeviceMemory::Host,
            device_bytes: self.memory,
            host_bytes: self.host_memory,
            disk_bytes: self.disk,
            classes,
        };
        let made_of = |at: usize| {
            self.gpu.map_or(DeviceMemory::Host, |first| DeviceMemory::Cuda(first.saturating_add(at as u32)))
        };
        let persist_every = self.persist_every.map(|every| seconds("persist_every", every)).transpose()?;
        if persist_every.is_some() && self.persist_folder.is_none() {
            return Err(setup("persist_every needs a persist_folder".to_owned()));
        }
        let host = self.advertise.rsplit_once(':').map(|(host, _)| host.to_owned());
        Ok(NodeConfig {
            data_listen: listen,
            advertise_data: self.advertise,
            passing: self.passing,
            metrics_listen: SocketAddr::new(listen.ip(), 0),
            labels: self.labels,
            io_threads: self.io_threads,
            devices: (0..self.devices)
                .map(|at| DeviceConfig { memory: made_of(at), ..device.clone() })
                .collect(),
            pin_memory: self.pin_memory,
            tuning: Tuning {
                strategy,
                codec: codec(&self.codec)?,
                prefetch_blocks: self.prefetch_blocks,
                gc_per_mille,
                // What nothing above says.
                hold: knobs.hold,
                batch_delay: knobs.batch_delay,
                priority: knobs.priority,
                unused_to_disk: knobs.disk_admission == DiskAdmission::All,
            },
            disk_folder: self.disk_folder,
            persist: self.persist_folder.map(|folder| PersistConfig { folder, every: persist_every }),
            nccl: self.nccl.map(NcclConfig::from),
            tls: tls(self.tls, host)?,
            ..NodeConfig::embedded(self.name, device, cluster.coordinators.clone(), cluster.token.clone())
        })
    }
}

/// Returns size classes, of equal shares where none are said.
fn classes(frame_bytes: &[u64], shares: Option<&[u32]>) -> Result<Vec<ClassConfig>, &'static str> {
    let is_growing = frame_bytes.windows(2).all(|two| two[0] < two[1]);
    if !is_growing || frame_bytes.first().is_none_or(|first| *first == 0) {
        return Err("name sizes above 0, growing");
    }
    if shares.is_some_and(|shares| shares.len() != frame_bytes.len() || shares.contains(&0)) {
        return Err("name one share above 0 for each size in block_shares");
    }
    let share = |at: usize| shares.map_or(1, |shares| shares[at]);
    let sizes = frame_bytes.iter().enumerate();
    Ok(sizes.map(|(at, frame_bytes)| ClassConfig { frame_bytes: *frame_bytes, share: share(at) }).collect())
}

/// Starts everything; serves or not yet.
fn begin(setup: Setup) -> Result<(Parts, Cluster), Failure> {
    match (setup.coordinators.clone(), setup.token.clone()) {
        (Some(coordinators), Some(token)) => {
            if setup.restore.is_some() {
                let what =
                    "restore: what a cluster remembers is restored by its coordinators, `kvhive restore`";
                return Err(Failure::new(Kind::NodeSetup, what.to_owned()));
            }
            let cluster = Cluster { coordinators, token };
            let node = Arc::new(kvhive_node::start(setup.node(&cluster)?)?);
            Ok((Parts { node, alone: None }, cluster))
        }
        (None, None) => {
            if setup.tls.is_some() {
                let what = "tls: a node alone is reached from this host only, and speaks without it";
                return Err(Failure::new(Kind::NodeSetup, what.to_owned()));
            }
            let alone = Alone::start(setup.restore.as_deref())?;
            let cluster = Cluster { coordinators: vec![alone.address.clone()], token: alone.token.clone() };
            let node = setup.node(&cluster).and_then(|config| Ok(Arc::new(kvhive_node::start(config)?)));
            match node {
                Ok(node) => Ok((Parts { node, alone: Some(alone) }, cluster)),
                Err(failure) => {
                    alone.handle.shutdown(FAILED_STOP);
                    Err(failure)
                }
            }
        }
        _ => {
            let what = "coordinators and token go together: both to join a cluster, neither for a node alone";
            Err(Failure::new(Kind::NodeSetup, what.to_owned()))
        }
    }
}

impl Parts {
    fn end(self, limit: Duration) {
        self.node.shutdown(limit);
        if let Some(alone) = self.alone {
            alone.handle.shutdown(limit);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Its threads are the parent's; to wait for their end here would be for ever.
            std::mem::forget(self.parts().take());
        }
    }
}

impl Node {
    fn parts(&self) -> MutexGuard<'_, Option<Parts>> {
        // Nothing is left half-done under this lock.
        self.parts.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Does something with the running node while the interpreter is free.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&NodeHandle) -> Result<T, Failure> + Send,
    ) -> PyResult<T> {
        if self.process != std::process::id() {
            let what = "this node is in the process that forked this one";
            return Err(Failure::new(Kind::Closed, what.to_owned()).raise(py));
        }
        let done = py.detach(|| match self.parts().as_ref().map(|parts| parts.node.clone()) {
            Some(node) => work(&node),
            None => Err(Failure::new(Kind::Closed, "the node has been stopped".to_owned())),
        });
        done.map_err(|failure| failure.raise(py))
    }
}

#[pymethods]
impl Node {
    /// Starts a node and waits until it serves.
    #[staticmethod]
    fn start(py: Python<'_>, setup: Setup, timeout: f64) -> PyResult<Node> {
        let limit = seconds("start_timeout", timeout).map_err(|failure| failure.raise(py))?;
        let begun = Instant::now();
        let (parts, cluster) = py.detach(|| begin(setup)).map_err(|failure| failure.raise(py))?;
        while !parts.node.is_serving() {
            let interrupted = py.check_signals();
            let ended = parts.node.ended().and_then(Result::err);
            if interrupted.is_ok() && ended.is_none() && begun.elapsed() < limit {
                py.detach(|| std::thread::sleep(LOOKS_EVERY));
                continue;
            }
            let refused = ended.or_else(|| parts.node.refusal().map(NodeError::Refused));
            py.detach(|| parts.end(FAILED_STOP));
            interrupted?;
            if let Some(error) = refused {
                return Err(Failure::from(error).raise(py));
            }
            let what = format!(
                "no coordinator of {:?} gave the node a lease within {limit:?}",
                cluster.coordinators
            );
            return Err(Failure::new(Kind::Unreachable, what).raise(py));
        }
        let process = std::process::id();
        Ok(Node {
            process,
            parts: Mutex::new(Some(parts)),
            coordinators: cluster.coordinators,
            token: cluster.token,
        })
    }

    #[getter]
    fn coordinators(&self) -> Vec<String> {
        self.coordinators.clone()
    }

    #[getter]
    fn token(&self) -> Vec<u8> {
        self.token.clone()
    }

    #[getter]
    fn data_address(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |node| Ok(node.data_address().to_string()))
    }

    #[getter]
    fn metrics_address(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |node| Ok(node.metrics_address().to_string()))
    }

    #[getter]
    fn is_serving(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |node| Ok(node.is_serving()))
    }

    /// Where the coordinator beside it has its admin API; none where it joined a cluster.
    #[getter]
    fn admin_address(&self) -> Option<String> {
        self.parts().as_ref()?.alone.as_ref().map(|alone| alone.handle.admin_address().to_string())
    }

    /// Returns its figures, as JSON.
    fn stats(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |node| json(&node.stats()))
    }

    /// Has its strategies choose now; returns how they do, as JSON.
    fn adjust_strategy(&self, py: Python<'_>) -> PyResult<String> {
        self.with(py, |node| json(&node.adjust_strategy()))
    }

    /// Writes what it holds to a snapshot; returns what was written, as JSON.
    fn persist(&self, py: Python<'_>, path: PathBuf) -> PyResult<String> {
        self.with(py, |node| json(&node.persist(&path, |_| {})?))
    }

    /// Takes a snapshot in; returns what was taken, as JSON.
    fn load(&self, py: Python<'_>, path: PathBuf) -> PyResult<String> {
        self.with(py, |node| json(&node.load(&path, None, |_| {})?))
    }

    /// Leaves the cluster and ends all threads; in a forked process, which has none of them, does nothing.
    fn stop(&self, py: Python<'_>, limit: f64) -> PyResult<()> {
        let limit = seconds("limit", limit).map_err(|failure| failure.raise(py))?;
        if self.process != std::process::id() {
            return Ok(());
        }
        py.detach(|| {
            let parts = self.parts().take();
            if let Some(parts) = parts {
                parts.end(limit);
            }
        });
        Ok(())
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::new(Kind::Node, error.to_string()))
}
