//! Work on files, done where that may block, in pieces that end soon after nobody waits for them any more.

use super::PersistError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Says whether somebody still waits.
#[derive(Clone)]
pub(super) struct Waited(Arc<AtomicBool>);

impl Waited {
    /// An error once nobody waits.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::Interrupted, "nobody waits for it any more"))
        }
    }
}

struct Waiter(Waited);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Relaxed);
    }
}

/// Does one piece of work; an error is told with the path it is about.
pub(super) async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Waited) -> io::Result<T> + Send + 'static,
) -> Result<T, PersistError> {
    let waited = Waited(Arc::new(AtomicBool::new(true)));
    let waiter = Waiter(waited.clone());
    let done = tokio::task::spawn_blocking(move || work(&waited)).await;
    drop(waiter);
    done.map_err(io::Error::other)
        .and_then(|done| done)
        .map_err(|source| PersistError::Io { path: path.to_owned(), source })
}
