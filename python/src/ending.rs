//! What becomes of threads that wait for a call while the interpreter ends around them: they may never enter it again.

use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the interpreter has begun to end; threads that nobody joins run on for a moment.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Says that the interpreter has begun to end.
#[pyfunction]
pub(crate) fn interpreter_ends() {
    ENDING.store(true, Ordering::Relaxed);
}

/// Returns if the interpreter can be entered. Asked only once it ends: it takes its lock.
pub(crate) fn heed() {
    if ENDING.load(Ordering::Relaxed) && Python::try_attach(|_| ()).is_none() {
        park::<()>();
    }
}

/// Waits for the process to end, as the interpreter has its own threads do: to end only this one would unwind through frames that
/// are not made for it.
pub(crate) fn park<T>() -> T {
    loop {
        std::thread::park();
    }
}
