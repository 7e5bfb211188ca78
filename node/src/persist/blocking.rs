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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_ends() {
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        let work = blocking(Path::new("snapshot"), move |waited| {
            begun.send(()).expect("the test waits");
            while waited.check().is_ok() {
                std::thread::yield_now();
            }
            ended.send(()).expect("the test waits");
            waited.check()
        });
        tokio::select! {
            _ = work => panic!("it goes on while it is waited for"),
            begun = has_begun => begun.expect("it begins"),
        }
        has_ended.await.expect("it ends");
    }
}
