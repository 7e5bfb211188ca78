//! Keeps a node's snapshot: takes in the one that stands when the node begins to serve, writes a new one every so often, and
//! the last one when the node ends in order.

use super::{Extent, Loaded, PersistError, Saved, load, save};
use crate::actors::device::Device;
use crate::config::PersistConfig;
use crate::data::{Counters, add, count};
use crate::view::View;
use kvhive_protocol::Epoch;
use kvhive_runtime::stopped;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

/// How often it is looked whether the node serves, and by which map.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long blocks of slots that this node does not hold are waited for: after a restart its slots come back one by one.
const SLOTS_LIMIT: Duration = Duration::from_secs(120);

/// What the snapshot's keeper needs of its node.
pub(crate) struct Keeper {
    pub(crate) devices: Vec<Device>,
    /// Bytes of the largest frame.
    pub(crate) frame_bytes: u64,
    pub(crate) view: Arc<View>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) config: PersistConfig,
}

impl Keeper {
    /// Runs until `stop` turns true.
    pub(crate) async fn run(&self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep() => {}
            () = stopped(&mut stop) => {}
        }
    }

    async fn keep(&self) {
        self.take_in().await;
        let Some(every) = self.config.every else { return };
        loop {
            sleep(every).await;
            self.write().await;
        }
    }

    /// Takes the snapshot in once the node serves, and again what its slots did not admit as maps bring them.
    async fn take_in(&self) {
        let mut epoch = self.newer_than(Epoch(0)).await;
        let until = Instant::now() + SLOTS_LIMIT;
        loop {
            match load(&self.devices, self.frame_bytes, &self.view, &self.config.folder, &mut |_| {}).await {
                Ok(loaded) => {
                    self.tell(&loaded);
                    if loaded.elsewhere == 0 {
                        return;
                    }
                }
                Err(PersistError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    info!(folder = %self.config.folder.display(), "no snapshot stands; the node begins empty");
                    return;
                }
                Err(PersistError::NotServing | PersistError::Busy { .. }) => {}
                Err(error) => {
                    error!(%error, "the snapshot was not taken in");
                    count(&self.counters.snapshot_failures);
                    return;
                }
            }
            match tokio::time::timeout_at(until, self.newer_than(epoch)).await {
                Ok(newer) => epoch = newer,
                Err(_) => return,
            }
        }
    }

    fn tell(&self, loaded: &Loaded) {
        let Loaded { blocks, bytes, already, ended, elsewhere, no_room, damaged } = *loaded;
        info!(blocks, bytes, already, ended, elsewhere, no_room, damaged, "snapshot taken in");
        add(&self.counters.snapshot_loaded_blocks, blocks);
        add(&self.counters.snapshot_damaged_blocks, damaged);
    }

    /// Waits until the node serves by a map of a later epoch.
    async fn newer_than(&self, epoch: Epoch) -> Epoch {
        loop {
            let serving = self.view.serving().filter(|_| self.view.check_lease().is_ok());
            match serving.map(|serving| serving.map.epoch).filter(|newer| *newer > epoch) {
                Some(newer) => return newer,
                None => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Writes what the node holds; an older snapshot stands when that fails.
    pub(crate) async fn write(&self) {
        match save(&self.devices, &self.view, &self.config.folder, Extent::Memory, &mut |_| {}).await {
            Ok(Saved { blocks, bytes, resumed }) => {
                info!(blocks, bytes, resumed, "snapshot written");
                count(&self.counters.snapshots);
            }
            // It never served, so it holds nothing.
            Err(PersistError::NotServing) => {}
            Err(error) => {
                warn!(%error, "no snapshot was written; the one before it stands");
                count(&self.counters.snapshot_failures);
            }
        }
    }
}
