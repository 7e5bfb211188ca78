//! Keeps one device's disk: has what is on it taken in once the tenants are known, and probes it while it is closed.

use super::figures::add;
use super::record::tenant_mark;
use super::store::Store;
use crate::actors::core::DeviceMessage;
use crate::actors::device::Device;
use crate::actors::disk::DiskLife;
use crate::view::View;
use kvhive_runtime::stopped;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::info;

/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Blocks taken in by one message.
const BATCH: usize = 1024;
/// A device that does not answer within this is asked again.
const LIMIT: Duration = Duration::from_secs(10);

/// What it needs of its node.
pub(crate) struct Keeper {
    pub(crate) device: Device,
    pub(crate) store: Arc<Store>,
    pub(crate) view: Arc<View>,
}

impl Keeper {
    /// Runs until `stop` turns true.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep() => {}
            () = stopped(&mut stop) => {}
        }
    }

    async fn keep(&self) {
        loop {
            // A core made after a panic knows nothing of its disk either.
            let asked = self.device.ask(LIMIT, |reply| DeviceMessage::AwaitsDisk { reply }).await;
            if let Ok(Some(life)) = asked
                && self.store.may_be_scanned()
            {
                self.take_in(life).await;
            }
            self.store.probe_if_due().await;
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has the device take in what is on the disk, once it is known whose it may be.
    async fn take_in(&self, life: DiskLife) {
        let Some(serving) = self.view.serving() else { return };
        // By the secrets of another cluster, what belongs to this life would be nobody's.
        if life.cluster != Some(serving.map.cluster) {
            return;
        }
        let tenants = serving.map.tenants.iter();
        let tenants = tenants.map(|(id, tenant)| (*id, (tenant.era, tenant_mark(&tenant.secret)))).collect();
        let Some(spots) = self.store.scan(&tenants).await else { return };
        let (mut restored, records) = (0, spots.len());
        for spots in spots.chunks(BATCH) {
            let Some(found) = self.store.found(spots).await else { return };
            let taken = self.device.ask(LIMIT, |reply| DeviceMessage::Restore { life, found, reply }).await;
            // A device that was made anew, or did not answer, is asked again what it awaits.
            let Ok(Some(taken)) = taken else { return };
            restored += taken;
        }
        if self.device.ask(LIMIT, |reply| DeviceMessage::Restored { life, reply }).await == Ok(true) {
            add(&self.store.figures.restored, restored);
            add(&self.store.figures.ended, records as u64 - restored);
            info!(records, restored, "the disk's blocks are here again");
        }
    }
}
