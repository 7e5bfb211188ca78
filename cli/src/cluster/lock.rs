//! The lock of a local cluster's folder: its supervisor holds it as long as it runs, whoever else may look whether it does.

use super::local::POLL;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

const LOCK_FILE: &str = "supervisor.lock";
/// How long the cluster's lock is tried: who only looks whether it is taken holds it for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// Takes the cluster's lock for its supervisor; none when another has it.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn lock(dir: &Path) -> Result<Option<File>> {
    let begun = Instant::now();
    loop {
        match try_lock(dir, FlockOperation::NonBlockingLockExclusive)? {
            None if begun.elapsed() < LOCK_LIMIT => std::thread::sleep(POLL),
            taken => return Ok(taken),
        }
    }
}

fn try_lock(dir: &Path, how: FlockOperation) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(LOCK_FILE))
        .with_context(|| format!("cannot write in {}", dir.display()))?;
    match flock(&file, how) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", dir.join(LOCK_FILE).display())),
    }
}

/// Says whether a supervisor has the cluster's lock. Those who ask share it for a moment: none takes another for a supervisor.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn is_locked(dir: &Path) -> Result<bool> {
    if !dir.join(LOCK_FILE).exists() {
        return Ok(false);
    }
    Ok(try_lock(dir, FlockOperation::NonBlockingLockShared)?.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_whether_a_cluster_runs_keeps_none_from_starting() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path();
        let probe = || try_lock(dir, FlockOperation::NonBlockingLockShared).expect("it is tried");
        let looking = probe().expect("nobody has it");
        assert!(!is_locked(dir).expect("it is tried"), "one who looks is no supervisor");
        // Goes while the supervisor tries.
        let looked = std::thread::spawn(move || {
            std::thread::sleep(POLL);
            drop(looking);
        });
        let supervisor = lock(dir).expect("it is tried");
        looked.join().expect("it ends");
        assert!(supervisor.is_some() && is_locked(dir).expect("it is tried"));
        assert!(lock(dir).expect("it is tried").is_none(), "another has it");
    }
}
