//! What a node keeps on disk, as it starts: its keys, and the disk tier of every device. What is done with a disk is [`crate::disk`]'s.

use crate::actors::device::Device;
use crate::config::{DiskKeys, NodeConfig, NodeError};
use crate::disk::{self, DiskError, DiskTuning, KeyPlaces, Keyring, Store};
use crate::persist;
use crate::view::View;
use kvhive_runtime::{Runtime, Stage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// The keys of a node, and its disk tiers, one for each device that has one.
pub(crate) type Opened = (Option<Arc<Keyring>>, Vec<Option<Arc<Store>>>);

/// Opens the keys and the disk tiers.
pub(crate) fn open(config: &NodeConfig, view: &Arc<View>, tuning: &DiskTuning) -> Result<Opened, NodeError> {
    let keys = open_keys(config, tuning)?;
    let stores = open_tiers(config, view, keys.as_ref(), tuning)?;
    if keys.is_some() && config.disk_folder.is_some() {
        // What they opened is opened by none of these. They go last: whoever named a wrong folder has the snapshot yet.
        destroy_keys(keys_of_snapshots(config).as_deref(), tuning)?;
    }
    Ok((keys, stores))
}

fn keys_of_snapshots(config: &NodeConfig) -> Option<PathBuf> {
    config.persist.as_ref().map(|persist| persist::keys_folder(&persist.folder))
}

fn destroy_keys(folder: Option<&Path>, tuning: &DiskTuning) -> Result<(), NodeError> {
    let destroy = |folder| disk::destroy_keys(folder, tuning.lock_limit).map_err(NodeError::Keys);
    folder.map_or(Ok(()), destroy)
}

/// Reads the keys of the disk tiers and the snapshots. They are in the disk tiers' folder, or beside the snapshots of a node that has none. A node
/// that has neither any more, or writes blocks as they are, still destroys those that it had. Keys beside the snapshots of a node that has a disk
/// folder now are left for [`open`] to destroy.
fn open_keys(config: &NodeConfig, tuning: &DiskTuning) -> Result<Option<Arc<Keyring>>, NodeError> {
    let failed = NodeError::Keys;
    let of_snapshots = keys_of_snapshots(config);
    let has_disks = config.devices.iter().any(|device| device.disk_bytes > 0);
    let destroy = |folder: &Option<PathBuf>| destroy_keys(folder.as_deref(), tuning);
    match &config.disk_keys {
        DiskKeys::Off => {
            destroy(&config.disk_folder)?;
            destroy(&of_snapshots)?;
            Ok(None)
        }
        DiskKeys::On(master) => {
            let Some(folder) = config.disk_folder.as_ref().or(of_snapshots.as_ref()) else { return Ok(None) };
            let places = KeyPlaces::of(folder, master.as_deref());
            let wanted = has_disks || of_snapshots.is_some() || places.are_there();
            wanted.then(|| Keyring::open(&places, tuning.lock_limit)).transpose().map_err(failed)
        }
    }
}

/// Opens the disk tier of every device that has one.
fn open_tiers(
    config: &NodeConfig,
    view: &Arc<View>,
    keys: Option<&Arc<Keyring>>,
    tuning: &DiskTuning,
) -> Result<Vec<Option<Arc<Store>>>, NodeError> {
    let mut stores = Vec::with_capacity(config.devices.len());
    for (at, device) in config.devices.iter().enumerate() {
        let Some(folder) = config.disk_folder.as_ref().filter(|_| device.disk_bytes > 0) else {
            stores.push(None);
            continue;
        };
        let folder = folder.join(format!("device-{at}"));
        let failed = |cause| NodeError::Disk { device: at, cause };
        let mover = tuning.mover.start(config.tuning.priority);
        let mover = mover.map_err(|source| failed(DiskError::Io { path: folder.clone(), source }))?;
        let store = Store::open(&folder, &device.disk_geometry(), mover, view.clone(), keys.cloned(), tuning);
        stores.push(Some(store.map_err(failed)?));
    }
    Ok(stores)
}

/// Has every disk kept until the node stops; their folders are let go when requests have ended.
pub(crate) fn keep(
    runtime: &Runtime,
    devices: &[Device],
    stores: &[Option<Arc<Store>>],
    view: &Arc<View>,
    stopping: &watch::Receiver<bool>,
) {
    for (device, store) in devices.iter().zip(stores) {
        let Some(store) = store else { continue };
        let keeper = disk::Keeper { device: device.clone(), store: store.clone(), view: view.clone() };
        runtime.io().spawn(keeper.run(stopping.clone()));
        let store = store.clone();
        runtime.on_shutdown().at(Stage::CloseDisks, "let go of the disk", async move { store.close().await });
    }
}
