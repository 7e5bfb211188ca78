//! A device's folder on disk: its lock, and one file of records for each size of frames.

use super::record::record_bytes;
use super::{DiskError, Geometry};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// Name of the lock file.
const LOCK: &str = "lock";
/// How often it is tried while it is another's.
const LOCK_EVERY: Duration = Duration::from_millis(20);

fn file_name(frame_bytes: u64) -> String {
    format!("records-{frame_bytes}")
}

/// Makes the folder if need be and takes its lock.
pub(super) fn lock(folder: &Path, limit: Duration) -> Result<File, DiskError> {
    let failed = |source| DiskError::Io { path: folder.to_owned(), source };
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let until = Instant::now() + limit;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(LOCK_EVERY),
            Err(Errno::WOULDBLOCK) => return Err(DiskError::Shared { folder: folder.to_owned() }),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Opens the record files, past the page cache where the file system lets them be, and deletes those of sizes that are no
/// more. Says whether all are past it.
pub(super) fn open(folder: &Path, geometry: &[Geometry]) -> Result<(Vec<Arc<File>>, bool), DiskError> {
    let mut files = Vec::with_capacity(geometry.len());
    let mut all_direct = true;
    for class in geometry {
        let path = folder.join(file_name(class.frame_bytes));
        let (file, direct) =
            open_file(&path).map_err(|source| DiskError::Io { path: path.clone(), source })?;
        all_direct &= direct;
        files.push(Arc::new(file));
    }
    let failed = |source| DiskError::Io { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let wanted = geometry.iter().any(|class| *name == *file_name(class.frame_bytes));
        if name.starts_with("records-") && !wanted {
            warn!(file = %entry.path().display(), "records of a block size that is no more are deleted");
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok((files, all_direct))
}

fn open_file(path: &Path) -> io::Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let direct = options.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(path);
    match direct {
        Ok(file) => Ok((file, true)),
        // This file system has a page cache and nothing else.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok((options.open(path)?, false)),
        Err(error) => Err(error),
    }
}

/// Gives every file its size, and the disk's promise of it; done again, does nothing.
pub(super) fn prepare(files: &[Arc<File>], geometry: &[Geometry]) -> io::Result<()> {
    for (file, class) in files.iter().zip(geometry) {
        let bytes = record_bytes(class.frame_bytes) * u64::from(class.records);
        if file.metadata()?.len() > bytes {
            file.set_len(bytes)?;
        }
        if bytes == 0 {
            continue;
        }
        match fallocate(&**file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            // Room is taken as records come.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
