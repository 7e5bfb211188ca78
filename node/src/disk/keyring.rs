//! The keys of a node's disk tiers: one for each tenant's era, made when its first block goes to disk, and destroyed when the map has that
//! era no more. Who asks for a key of an era that has ended gets none.

use super::DiskError;
use super::folder;
use super::key_folder::{self, KeyFolder, KeyName};
use super::record::tenant_mark;
use super::seal::DataKey;
use kvhive_protocol::map::Tenant;
use kvhive_protocol::{ClusterId, ClusterMap, Epoch, TenantId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::info;

/// The folder of data keys, and the file of the key that encrypts them, in a node's folder.
const FOLDER: &str = "keys";
const MASTER: &str = "master-key";

/// Where a node's keys are.
#[derive(Clone, Debug)]
pub(crate) struct KeyPlaces {
    folder: PathBuf,
    master: PathBuf,
    /// The master key is where an operator wants it.
    is_named: bool,
}

impl KeyPlaces {
    /// Those of a node whose disk tiers are in this folder; its master key is there too where no other file is named.
    pub(crate) fn of(folder: &Path, master: Option<&Path>) -> KeyPlaces {
        let is_named = master.is_some();
        let master = master.map_or_else(|| folder.join(MASTER), Path::to_owned);
        KeyPlaces { folder: folder.join(FOLDER), master, is_named }
    }

    /// Says whether there are keys from before.
    pub(crate) fn are_there(&self) -> bool {
        self.folder.exists()
    }
}

/// Destroys all keys of a node that encrypts no more.
pub(crate) fn destroy_keys(folder: &Path, lock_limit: Duration) -> Result<(), DiskError> {
    let keys = folder.join(FOLDER);
    if !keys.exists() {
        return Ok(());
    }
    let _lock = folder::lock(&keys, lock_limit)?;
    key_folder::destroy_all(&keys).map_err(|source| DiskError::Io { path: keys, source })
}

/// Says whose key blocks of a tenant are written under, as it is in a map.
pub(crate) fn key_name(tenant: TenantId, it: &Tenant) -> KeyName {
    KeyName { tenant, era: it.era, mark: tenant_mark(&it.secret) }
}

/// Which keys there are.
#[derive(Default)]
struct Known {
    /// By which map.
    by: Option<(ClusterId, Epoch)>,
    /// Whose keys there may be.
    allowed: BTreeSet<KeyName>,
    keys: BTreeMap<KeyName, Arc<DataKey>>,
    /// Those whose files are to be destroyed: taken off when they have been.
    ended: BTreeSet<KeyName>,
    /// The one whose file is being made.
    making: Option<KeyName>,
}

impl Known {
    /// Says whether there are files to be destroyed, or will be: of one that is being made its era may have ended.
    fn has_ended_keys(&self) -> bool {
        !self.ended.is_empty() || self.making.is_some_and(|name| !self.allowed.contains(&name))
    }
}

/// A node's keys.
pub(crate) struct Keyring {
    files: KeyFolder,
    known: Mutex<Known>,
    /// Held by whoever changes files, on a thread that may wait for a disk.
    work: Mutex<()>,
    /// Whose turn it is to wait for `work`: behind a disk that hangs stands one thread, not one for each who comes.
    turns: Arc<Semaphore>,
    destroyed: AtomicU64,
    lock: Mutex<Option<File>>,
}

impl Keyring {
    /// Reads the keys that there are, or begins without any.
    ///
    /// # Errors
    /// When another node uses the folder, or it or the master key cannot be used.
    pub(crate) fn open(places: &KeyPlaces, lock_limit: Duration) -> Result<Arc<Keyring>, DiskError> {
        // Before the lock, which would make it for everybody to look into.
        key_folder::make_folder(&places.folder)?;
        let lock = folder::lock(&places.folder, lock_limit)?;
        let (files, found) = KeyFolder::open(&places.folder, &places.master, places.is_named)?;
        info!(folder = %places.folder.display(), keys = found.len(), "the disk tier is encrypted");
        let keys = found.into_iter().map(|(name, key)| (name, Arc::new(key))).collect();
        Ok(Arc::new(Keyring {
            files,
            known: Mutex::new(Known { keys, ..Known::default() }),
            work: Mutex::new(()),
            turns: Arc::new(Semaphore::new(1)),
            destroyed: AtomicU64::new(0),
            lock: Mutex::new(Some(lock)),
        }))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> MutexGuard<'_, ()> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to change files, without a thread. It goes along to the thread that does it.
    pub(crate) async fn turn(&self) -> OwnedSemaphorePermit {
        self.turns.clone().acquire_owned().await.expect("nobody closes it")
    }

    /// Says whether the folder is still this node's. To be asked by who holds `work`.
    fn check_folder(&self) -> io::Result<()> {
        let is_locked = self.lock.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        is_locked.then_some(()).ok_or_else(|| io::Error::other("the folder of keys was let go of"))
    }

    /// Returns a key that is there.
    pub(crate) fn find(&self, name: &KeyName) -> Option<Arc<DataKey>> {
        self.known().keys.get(name).cloned()
    }

    /// Returns how many keys there are, and how many were destroyed since the start.
    pub(crate) fn count(&self) -> (usize, u64) {
        (self.known().keys.len(), self.destroyed.load(Ordering::Relaxed))
    }

    /// Says where they are.
    pub(crate) fn folder(&self) -> &Path {
        self.files.path()
    }

    /// Returns a key that a block is written under: made now, if there is none yet. Waits for the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is to be none any more; what the disk says when it does not take it.
    pub(crate) fn make(&self, name: KeyName) -> io::Result<Arc<DataKey>> {
        let _working = self.working();
        let may_be = |known: &Known| known.allowed.contains(&name);
        let mut known = self.known();
        if let Some(key) = known.keys.get(&name) {
            return Ok(key.clone());
        }
        if !may_be(&known) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.check_folder()?;
        let was_ended = known.ended.contains(&name);
        known.making = Some(name);
        drop(known);
        let made = self.make_file(&name, was_ended);
        let mut known = self.known();
        known.making = None;
        let key = match made {
            Ok(key) => Arc::new(key),
            Err(error) => {
                // Its file may be there all the same.
                known.ended.insert(name);
                return Err(error);
            }
        };
        known.ended.remove(&name);
        if !may_be(&known) {
            // It ended meanwhile: whoever destroys waits for this to be done.
            known.ended.insert(name);
            return Err(io::ErrorKind::NotFound.into());
        }
        known.keys.insert(name, key.clone());
        Ok(key)
    }

    fn make_file(&self, name: &KeyName, was_ended: bool) -> io::Result<DataKey> {
        if was_ended {
            // What ended and is here again begins with another key: its old file is not to be taken for the new one's.
            self.files.destroy(&[*name])?;
        }
        let key = DataKey::random()?;
        self.files.create(name, &key)?;
        Ok(key)
    }

    /// Goes by a map, unless by a later one already: from now on no key is found whose era is not in it.
    pub(crate) fn permit(&self, map: &ClusterMap) {
        let names = map.tenants.iter().map(|(tenant, it)| key_name(*tenant, it));
        self.go_by((map.cluster, map.epoch), names.collect());
    }

    /// As [`Keyring::permit`], by what there may be in this cluster at this epoch.
    pub(super) fn go_by(&self, by: (ClusterId, Epoch), names: BTreeSet<KeyName>) {
        let mut known = self.known();
        if known.by.is_some_and(|(cluster, epoch)| cluster == by.0 && epoch > by.1) {
            return;
        }
        (known.by, known.allowed) = (Some(by), names);
        let Known { allowed, keys, ended, .. } = &mut *known;
        keys.retain(|name, _| {
            let stays = allowed.contains(name);
            if !stays {
                ended.insert(*name);
            }
            stays
        });
    }

    /// Says whether keys of eras that have ended are still there, or may be yet. Waits for no disk.
    pub(crate) fn has_ended_keys(&self) -> bool {
        self.known().has_ended_keys()
    }

    /// Destroys the keys of eras that have ended, also one that is being made just now. Waits for the disk; when this returns, what was
    /// written under them is noise.
    ///
    /// # Errors
    /// When the disk does not do it: then they are still to be destroyed.
    pub(crate) fn destroy_ended(&self) -> io::Result<()> {
        if !self.has_ended_keys() {
            return Ok(());
        }
        let _working = self.working();
        let names: Vec<KeyName> = self.known().ended.iter().copied().collect();
        if names.is_empty() {
            return Ok(());
        }
        self.check_folder()?;
        self.files.destroy(&names)?;
        let mut known = self.known();
        names.iter().for_each(|name| _ = known.ended.remove(name));
        self.destroyed.fetch_add(names.len() as u64, Ordering::Relaxed);
        info!(keys = names.len(), "destroyed the disk keys of tenants or eras that are no more");
        Ok(())
    }

    /// Lets go of the folder, unless somebody still waits for its disk. Who comes later changes nothing in it.
    pub(crate) fn close(&self) {
        if let Ok(_working) = self.work.try_lock() {
            self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }
}

#[cfg(test)]
#[path = "keyring_test.rs"]
mod tests;
