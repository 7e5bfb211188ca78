//! The threads that all clients of a process share, and what becomes of them when the process forks.

use crate::errors::{Failure, Kind};
use pyo3::prelude::*;
use std::sync::{Mutex, mpsc};
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that serve sockets; a thread that waits for its call does that call's work itself.
const THREADS: usize = 2;

/// What is done with the interpreter held.
pub(crate) type Errand = Box<dyn FnOnce(Python<'_>) + Send>;

/// The threads of one process: a fork takes none of them along.
#[derive(Clone)]
pub(crate) struct Crew {
    process: u32,
    runtime: Handle,
    errands: mpsc::Sender<Errand>,
}

static CREW: Mutex<Option<(Crew, Runtime)>> = Mutex::new(None);

impl Crew {
    /// Returns this process's threads, begun at their first use.
    ///
    /// # Errors
    /// When the system gives none.
    pub(crate) fn of_process() -> Result<Crew, Failure> {
        // Nothing is left half-done under this lock. Who forks beside another thread's first call has a lock that nobody opens.
        let mut known = CREW.lock().unwrap_or_else(|poison| poison.into_inner());
        if let Some((crew, _)) = known.as_ref().filter(|(crew, _)| crew.is_here()) {
            return Ok(crew.clone());
        }
        let none = |error| Failure::new(Kind::Closed, format!("cannot start the client's threads: {error}"));
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).thread_name("kvhive-client").enable_all();
        let runtime = builder.build().map_err(none)?;
        let (errands, received) = mpsc::channel::<Errand>();
        let run = move || {
            for errand in received {
                // Without an interpreter nobody is left to do it for.
                Python::try_attach(errand);
            }
        };
        std::thread::Builder::new().name("kvhive-errands".to_owned()).spawn(run).map_err(none)?;
        let crew = Crew { process: std::process::id(), runtime: runtime.handle().clone(), errands };
        // The parent's threads do not exist here; to wait for them, as a drop does, would be for ever.
        std::mem::forget(known.replace((crew.clone(), runtime)));
        Ok(crew)
    }

    /// Says whether this is the process whose threads they are.
    pub(crate) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// Returns the threads that serve sockets.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Has something done with the interpreter held, by a thread that no socket waits for.
    pub(crate) fn send(&self, errand: Errand) {
        // The other end is there as long as the process: it ends with the last sender.
        let _ = self.errands.send(errand);
    }
}
