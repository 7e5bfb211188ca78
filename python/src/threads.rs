//! The threads that all clients of a process share, and what becomes of them when the process forks.

use crate::errors::{Failure, Kind};
use std::sync::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that serve sockets; the thread that calls does its own work besides.
const THREADS: usize = 2;

/// The threads of one process: a fork takes none of them along.
struct Threads {
    process: u32,
    runtime: Runtime,
}

static THREADS_OF: Mutex<Option<Threads>> = Mutex::new(None);

/// Returns this process's threads, begun at their first use.
///
/// # Errors
/// When the system gives none.
pub(crate) fn threads() -> Result<Handle, Failure> {
    // Nothing is left half-done under this lock; a fork while it is held is the caller's, who then forks beside a first call.
    let mut threads = THREADS_OF.lock().unwrap_or_else(|poison| poison.into_inner());
    let process = std::process::id();
    if let Some(threads) = threads.as_ref().filter(|threads| threads.process == process) {
        return Ok(threads.runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("kvhive-client")
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Kind::Closed, format!("cannot start the client's threads: {error}")))?;
    let handle = runtime.handle().clone();
    // The parent's threads do not exist here; to wait for them, as a drop does, would be for ever.
    std::mem::forget(threads.replace(Threads { process, runtime }));
    Ok(handle)
}
