//! A running node as its owner has it: where it listens, how it does, its snapshots, and its end.

use crate::actors::device::Device;
use crate::config::NodeError;
use crate::data::DataPlane;
#[cfg(test)]
use crate::disk::Store;
use crate::latency::Latencies;
use crate::memory;
#[cfg(test)]
use crate::memory::Memory;
use crate::persist::{self, Extent, Holdings, Loaded, PersistError, PersistProgress, Saved};
use crate::stats::{self, NodeStats, StrategyFigures};
use crate::view::View;
use kvhive_gpu::cuda::CudaDevice;
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{LayoutFingerprint, MemberId, WireError};
use kvhive_runtime::Runtime;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tracing::error;

/// A running node. Dropped without [`NodeHandle::shutdown`], it ends as if killed.
pub struct NodeHandle {
    pub(crate) runtime: Runtime,
    pub(crate) devices: Vec<Device>,
    pub(crate) plane: Arc<DataPlane>,
    pub(crate) holdings: Holdings,
    pub(crate) data_address: SocketAddr,
    pub(crate) metrics_address: SocketAddr,
    pub(crate) redis_address: Option<SocketAddr>,
    pub(crate) pinned_bytes: u64,
    pub(crate) gpus: Vec<Arc<CudaDevice>>,
    pub(crate) view: Arc<View>,
    pub(crate) ending: Arc<Ending>,
    #[cfg(test)]
    pub(crate) inside: Inside,
}

/// What tests look into.
#[cfg(test)]
pub(crate) struct Inside {
    pub(crate) memories: Vec<Memory>,
    pub(crate) stores: Vec<Option<Arc<Store>>>,
}

/// How a node ended.
#[derive(Default)]
pub(crate) struct Ending {
    outcome: Mutex<Option<Result<(), SelfEnded>>>,
    known: Condvar,
}

/// Why a node ended by itself.
#[derive(Clone)]
pub(crate) enum SelfEnded {
    /// This device was given up.
    Device(usize),
    /// Coordinators refused it for good.
    Refused(WireError),
}

impl From<SelfEnded> for NodeError {
    fn from(ended: SelfEnded) -> NodeError {
        match ended {
            SelfEnded::Device(device) => NodeError::DeviceLost { device },
            SelfEnded::Refused(error) => NodeError::Refused(error),
        }
    }
}

impl Ending {
    /// Tells those who wait; the first word counts.
    pub(crate) fn tell(&self, outcome: Result<(), SelfEnded>) {
        self.outcome.lock().unwrap_or_else(|poison| poison.into_inner()).get_or_insert(outcome);
        self.known.notify_all();
    }
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

    /// Returns where Redis is spoken, if it is.
    pub fn redis_address(&self) -> Option<SocketAddr> {
        self.redis_address
    }

    /// Returns its id in the cluster, once it has registered.
    pub fn member(&self) -> Option<MemberId> {
        self.view.serving().map(|serving| serving.member)
    }

    /// Returns why the coordinators refused its last registration, if they did. It goes on asking where that can change, as for a name
    /// that another node has; else it has ended, which [`NodeHandle::ended`] says.
    pub fn refusal(&self) -> Option<WireError> {
        self.view.refusal()
    }

    /// Returns how it has ended, if it has: see [`NodeHandle::wait`].
    pub fn ended(&self) -> Option<Result<(), NodeError>> {
        let outcome = self.ending.outcome.lock().unwrap_or_else(|poison| poison.into_inner());
        outcome.clone().map(|ended| ended.map_err(NodeError::from))
    }

    /// Says whether it answers reads.
    pub fn is_serving(&self) -> bool {
        self.view.serves(Role::Client).is_ok()
    }

    /// Returns the node's figures since it started. Blocks the thread for a moment.
    pub fn stats(&self) -> NodeStats {
        NodeStats {
            pinned_bytes: self.pinned_bytes,
            gpu_utilization: memory::busy(&self.gpus),
            ..self.wait_for(stats::gather(&self.devices, &self.plane))
        }
    }

    /// Returns the latencies of matches, fetches, stores and releases, to be merged with those of other nodes.
    pub fn latencies(&self) -> [Latencies; 4] {
        stats::latencies(&self.plane)
    }

    /// Has the strategies that choose among ways to rank choose now, by the evidence at hand, and returns how all of them do:
    /// which way is in charge, what each would have hit, and why. Blocks the thread for a moment.
    pub fn adjust_strategy(&self) -> Vec<StrategyFigures> {
        self.wait_for(stats::strategies(&self.devices, true))
    }

    /// Writes what the node holds, on disk too, to a snapshot: the folder `path`, which stands or is replaced as a whole. What an interrupted
    /// run has written and is held still is gone on with. Blocks the thread; the node serves meanwhile. Its blocks are as they are, so that any
    /// node takes it in: what an ended tenant leaves in it is the caller's to delete.
    ///
    /// # Errors
    /// When the node does not serve, a file cannot be written, something else than a snapshot is at `path`, or another works on
    /// it: an older snapshot at `path` stands.
    pub fn persist(
        &self,
        path: &Path,
        mut progress: impl FnMut(PersistProgress) + Send,
    ) -> Result<Saved, PersistError> {
        let plain = Holdings { keys: None, ..self.holdings.clone() };
        self.wait_for(persist::save(&plain, path, None, Extent::All, &mut progress))
    }

    /// Takes in the snapshot at `path`, or what of it is of the layout `only`, as far as there are free frames: nothing leaves for it,
    /// and what is here already stays. Blocks of no use here are left out and counted. Blocks the thread; the node serves meanwhile.
    ///
    /// # Errors
    /// When there is none, it is damaged as a whole, or all of it is of another secret or layout or for larger frames; and when
    /// a device or a disk fails half-way: what was taken in until then stays.
    pub fn load(
        &self,
        path: &Path,
        only: Option<LayoutFingerprint>,
        mut progress: impl FnMut(PersistProgress) + Send,
    ) -> Result<Loaded, PersistError> {
        self.wait_for(persist::load(&self.holdings, path, only, &mut progress))
    }

    /// Runs a future on the node's own threads, from any thread of another runtime or of none.
    fn wait_for<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        let io = self.runtime.io();
        std::thread::scope(|scope| {
            let ran = scope.spawn(|| io.block_on(future)).join();
            ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Leaves the cluster, ends connections after their present requests, then all threads, within `limit`. Blocks; may
    /// be called on any thread but the node's own. Later calls do nothing.
    pub fn shutdown(&self, limit: Duration) {
        // On a thread of its own: the runtime blocks on its own work, which no thread of another runtime may.
        std::thread::scope(|scope| {
            let ended = scope.spawn(|| self.runtime.shutdown(limit)).join();
            if ended.is_err() {
                error!("the node's shutdown panicked");
            }
        });
        self.ending.tell(Ok(()));
    }

    /// Waits until the node has ended. Blocks the thread.
    ///
    /// # Errors
    /// [`NodeError::DeviceLost`] or [`NodeError::Refused`] when it ended by itself; it is in no cluster, [`NodeHandle::shutdown`] frees
    /// what it still holds.
    pub fn wait(&self) -> Result<(), NodeError> {
        let mut outcome = self.ending.outcome.lock().unwrap_or_else(|poison| poison.into_inner());
        loop {
            match &*outcome {
                Some(ended) => return ended.clone().map_err(NodeError::from),
                None => {
                    outcome = self.ending.known.wait(outcome).unwrap_or_else(|poison| poison.into_inner());
                }
            }
        }
    }
}
