//! Who may work on a snapshot: one writer alone, or any number of readers, across processes. The lock is a file beside the
//! snapshot's folder, which itself is replaced; it is let go when the last who works under it has ended, also on other threads.

use super::PersistError;
use super::folder::{beside, make_folder};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often it is tried while it is another's.
const LOCK_EVERY: Duration = Duration::from_millis(50);

/// A hold on the snapshot at a path.
pub(super) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes the snapshot for a writer, waiting so long for others.
    pub(super) async fn for_writing(path: &Path, patience: Duration) -> Result<Arc<Lock>, PersistError> {
        let file = open(path).map_err(|source| PersistError::Io { path: lock_path(path), source })?;
        held(file, FlockOperation::NonBlockingLockExclusive, path, patience).await
    }

    /// Takes the snapshot for a reader, unless it is being written. Where no lock can be made nobody writes one either.
    pub(super) async fn for_reading(path: &Path) -> Result<Arc<Lock>, PersistError> {
        match open(path) {
            Ok(file) => held(file, FlockOperation::NonBlockingLockShared, path, Duration::ZERO).await,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Ok(Arc::new(Lock { _file: None }))
            }
            Err(source) => Err(PersistError::Io { path: lock_path(path), source }),
        }
    }
}

fn lock_path(path: &Path) -> std::path::PathBuf {
    beside(path, ".lock")
}

fn open(path: &Path) -> io::Result<File> {
    let lock = lock_path(path);
    if let Some(parent) = lock.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(lock)
}

async fn held(
    file: File,
    how: FlockOperation,
    path: &Path,
    patience: Duration,
) -> Result<Arc<Lock>, PersistError> {
    let until = Instant::now() + patience;
    loop {
        match flock(&file, how) {
            Ok(()) => return Ok(Arc::new(Lock { _file: Some(file) })),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => sleep(LOCK_EVERY).await,
            Err(Errno::WOULDBLOCK) => return Err(PersistError::InUse { path: path.to_owned() }),
            Err(error) => {
                return Err(PersistError::Io { path: lock_path(path), source: error.into() });
            }
        }
    }
}
