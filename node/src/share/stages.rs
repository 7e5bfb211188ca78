//! Stages that clients of this host lend to this node's GPUs: opened at the door, found by their pass, and closed when their lender has gone
//! and nothing uses them any more.

use super::GUEST_LIMIT;
use kvhive_gpu::cuda::{CudaDevice, Ferry, Loan};
use kvhive_protocol::share::Pass;
use kvhive_protocol::stage::{MAX_STAGES, StageLoan};
use kvhive_runtime::stopped;
use kvhive_wire::Guest;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};
use tokio::task::spawn_blocking;

/// All stages.
pub(super) struct Stages {
    /// Of each of the node's devices its GPU, if it has one that is lent to.
    gpus: Vec<Option<Arc<CudaDevice>>>,
    /// None where one is about to be opened.
    lent: Mutex<HashMap<[u8; 32], Option<Stage>>>,
}

/// A place among so many stages as there may be, until it is dropped.
struct Place<'a> {
    stages: &'a Stages,
    pass: Pass,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.stages.lent().remove(&self.pass.0);
    }
}

#[derive(Clone)]
struct Stage {
    device: u16,
    ferry: Arc<RwLock<Option<Ferry>>>,
}

/// A stage in use: it stays open until this is dropped.
pub(crate) struct Staged {
    ferry: OwnedRwLockReadGuard<Option<Ferry>, Ferry>,
    limit: Duration,
}

impl Staged {
    /// Returns what carries blocks between the stage and frames.
    pub(crate) fn ferry(&self) -> &Ferry {
        &self.ferry
    }

    /// Says how long its GPU is waited for.
    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }
}

impl Stages {
    pub(super) fn new(gpus: impl Iterator<Item = Option<Arc<CudaDevice>>>) -> Stages {
        Stages { gpus: gpus.collect(), lent: Mutex::default() }
    }

    /// Says whether there are none ever.
    pub(super) fn is_none(&self) -> bool {
        self.gpus.iter().all(Option::is_none)
    }

    /// Says whether some may be lent to the device of this index: to a GPU that does what it is told.
    pub(super) fn are_of(&self, device: u16) -> bool {
        self.gpu(device).is_some_and(|gpu| gpu.loss().is_none())
    }

    pub(super) fn is_full(&self) -> bool {
        self.count() >= MAX_STAGES
    }

    pub(super) fn count(&self) -> usize {
        self.lent().len()
    }

    pub(super) fn find(&self, device: u16, pass: &Pass) -> Option<Staged> {
        let stage = self.lent().get(&pass.0).cloned().flatten().filter(|stage| stage.device == device)?;
        // Nobody writes but who closes it, behind whom nobody reads.
        let open = stage.ferry.try_read_owned().ok()?;
        let ferry = OwnedRwLockReadGuard::try_map(open, Option::as_ref).ok()?;
        Some(Staged { ferry, limit: self.gpu(device)?.patience().copy })
    }

    /// Takes a stage in that somebody lends, and keeps it until that has gone or the node ends.
    pub(super) async fn receive(
        &self,
        guest: &mut Guest,
        device: u16,
        pass: Pass,
        stop: &mut watch::Receiver<bool>,
    ) -> io::Result<()> {
        let gpu = self.gpu(device).cloned().ok_or(io::ErrorKind::NotFound)?;
        let StageLoan { handle, offset, bytes } = guest.loan(GUEST_LIMIT).await?;
        // Opening may wait for the GPU on a thread of its own: no more of them than there are places.
        let place = self.place(pass).ok_or_else(|| io::Error::other("as many stages as may be are lent"))?;
        if let Some(error) = gpu.loss() {
            return Err(io::Error::other(error));
        }
        let open = move || Ferry::new(&gpu, Loan { handle, offset, bytes });
        let opened = spawn_blocking(open).await.map_err(io::Error::other)?;
        let stage = Stage { device, ferry: Arc::new(RwLock::new(Some(opened.map_err(io::Error::other)?))) };
        self.lent().insert(pass.0, Some(stage.clone()));
        let ended = guest.take(GUEST_LIMIT).await;
        if ended.is_ok() {
            tokio::select! {
                () = guest.gone() => {}
                () = stopped(stop) => {}
            }
        }
        // Whoever uses it is waited for, and nobody begins to meanwhile. Only then its lender hears that it is closed.
        let ferry = stage.ferry.write_owned().await.take();
        let _ = spawn_blocking(move || drop(ferry)).await;
        drop(place);
        ended
    }

    /// Takes a place, if there are not as many stages as may be.
    fn place(&self, pass: Pass) -> Option<Place<'_>> {
        let mut lent = self.lent();
        if lent.len() >= MAX_STAGES {
            return None;
        }
        lent.insert(pass.0, None);
        Some(Place { stages: self, pass })
    }

    fn gpu(&self, device: u16) -> Option<&Arc<CudaDevice>> {
        self.gpus.get(usize::from(device))?.as_ref()
    }

    fn lent(&self) -> MutexGuard<'_, HashMap<[u8; 32], Option<Stage>>> {
        // Nothing is left half-done under this lock.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
