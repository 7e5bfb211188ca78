//! The disk tier's bytes: fixed-size records in large files, past the page cache, by io_uring or by threads. What is kept
//! there is the shard's to decide ([`crate::actors`]); here blocks are written, read, verified, and found again after a start.

mod buffer;
mod crew;
mod figures;
mod folder;
mod health;
mod keeper;
mod key_folder;
mod keyring;
mod measure;
mod place;
mod places;
mod queue;
mod record;
mod scan;
mod seal;
mod store;
mod threads;
mod uring;

#[cfg(test)]
pub(crate) mod fault;

pub(crate) use buffer::Room;
#[cfg(test)]
pub(crate) use figures::Bad;
pub(crate) use figures::record;
pub(crate) use health::ProbeWaits;
pub(crate) use keeper::Keeper;
pub(crate) use key_folder::KeyName;
pub(crate) use keyring::{KeyPlaces, Keyring, destroy_keys, key_name};
pub use measure::DiskBench;
pub(crate) use place::{Payload, Place, ReadError};
pub(crate) use queue::Backend;
pub use record::fuzz_record;
pub(crate) use record::{TenantMark, record_bytes, tenant_mark};
pub(crate) use scan::{Found, scan_bytes};
pub(crate) use seal::{DataKey, OnceKey, Part, SALT_BYTES, TAG_BYTES, TagBytes, salt};
pub(crate) use store::Store;

use kvhive_gpu::ArenaError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tracing::info;

/// Why a disk tier cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Two nodes, or two devices, were given one folder.
    #[error("{} is in use by another node; give each node a disk_dir of its own, or end the other", folder.display())]
    Shared {
        /// Which folder.
        folder: PathBuf,
    },
    /// There is not the memory for its buffers.
    #[error("no memory for the disk's buffers: {0}")]
    Memory(#[from] ArenaError),
    /// A file is of a form that this version does not know.
    #[error("{} is of {form}, which this version of kvhive does not know; start the newer one, or give the node another disk_dir", path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Of what form it says that it is.
        form: String,
    },
    /// The master key is not the one, or anybody's.
    #[error("cannot use {} as the disk tier's key: {why}", path.display())]
    MasterKey {
        /// Its file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The folder or a file in it cannot be used.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// One size of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Geometry {
    /// Bytes of the largest block that a record holds.
    pub(crate) frame_bytes: u64,
    /// How many records.
    pub(crate) records: u32,
}

/// What moves the bytes, and how patient one is with it.
#[derive(Clone)]
pub(crate) struct DiskTuning {
    pub(crate) mover: Mover,
    pub(crate) waits: ProbeWaits,
    /// How long a folder's lock is waited for: a process that was killed lets go when it has ended.
    pub(crate) lock_limit: Duration,
    pub(crate) patience: Patience,
}

/// How long a transfer is waited for. The kernel may have its memory for longer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// A read that a fetch waits for: recomputing the block would have taken less.
    pub(crate) fetch: Duration,
    /// A write, or a read that nobody waits for.
    pub(crate) other: Duration,
    /// All writes together, when the store is closed.
    pub(crate) close: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            fetch: Duration::from_secs(1),
            other: Duration::from_secs(10),
            close: Duration::from_secs(4),
        }
    }
}

impl Default for DiskTuning {
    fn default() -> DiskTuning {
        DiskTuning {
            mover: Mover::default(),
            waits: ProbeWaits::default(),
            lock_limit: Duration::from_secs(5),
            patience: Patience::default(),
        }
    }
}

/// What moves the bytes.
#[derive(Clone, Default)]
pub(crate) enum Mover {
    /// io_uring where the kernel has it, threads where not.
    #[default]
    Best,
    /// Threads.
    Threads,
    /// This.
    #[cfg(test)]
    Given(Arc<dyn Backend>),
    /// What this makes of the priority.
    #[cfg(test)]
    MadeBy(Arc<dyn Fn(u32) -> Arc<dyn Backend> + Send + Sync>),
}

impl Mover {
    /// Starts it. So many reads of requests may pass one transfer that nobody waits for.
    pub(crate) fn start(&self, priority: u32) -> io::Result<Arc<dyn Backend>> {
        match self {
            Mover::Best => best(priority),
            Mover::Threads => Ok(Arc::new(threads::Threads::start(priority)?)),
            #[cfg(test)]
            Mover::Given(backend) => Ok(backend.clone()),
            #[cfg(test)]
            Mover::MadeBy(make) => Ok(make(priority)),
        }
    }
}

fn best(priority: u32) -> io::Result<Arc<dyn Backend>> {
    match uring::Uring::start(priority) {
        Ok(ring) => Ok(Arc::new(ring)),
        Err(error) => {
            info!(%error, "the kernel gives no io_uring; threads move the disk's bytes");
            Ok(Arc::new(threads::Threads::start(priority)?))
        }
    }
}

/// Returns both, for tests and measurements that compare them.
#[cfg(test)]
pub(crate) fn movers() -> Vec<Arc<dyn Backend>> {
    let ring = uring::Uring::start(16).ok().map(|ring| Arc::new(ring) as Arc<dyn Backend>);
    let threads = Arc::new(threads::Threads::start(16).expect("threads")) as Arc<dyn Backend>;
    ring.into_iter().chain([threads]).collect()
}
