//! One call under way: waited for with the interpreter free, or driven by the client's threads while an event loop goes on.

use crate::errors::{Failure, Kind};
use crate::threads::threads;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How often a thread that waits looks whether it was interrupted.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// A call's answer, made into an object once the interpreter is held again.
pub(crate) type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

type Work = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

/// A call that has not begun, or is under way.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Operation {
    /// The process whose sockets it uses.
    process: u32,
    threads: Handle,
    work: Mutex<Option<Work>>,
    cancel: Mutex<Option<oneshot::Sender<()>>>,
}

impl Operation {
    /// Makes one of `work`, for sockets that this process has opened.
    pub(crate) fn new<T>(
        (process, threads): (u32, Handle),
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        let work = async move {
            let value = work.await?;
            let answer: Answer = Box::new(move |py| value.into_py_any(py));
            Ok(answer)
        };
        Operation { process, threads, work: Mutex::new(Some(Box::pin(work))), cancel: Mutex::new(None) }
    }

    /// Makes one of `work` that opens sockets of this process.
    pub(crate) fn first<T>(
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<Operation, Failure>
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        Ok(Operation::new((std::process::id(), threads()?), work))
    }

    fn begin(&self) -> Result<Work, Failure> {
        if self.process != std::process::id() {
            let what = "this client is of the process that forked this one: connect here anew";
            return Err(Failure::new(Kind::Closed, what.to_owned()));
        }
        lock(&self.work).take().ok_or_else(|| Failure::misuse("this call has begun already"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

#[pymethods]
impl Operation {
    /// Waits for the answer. Other threads of the interpreter run meanwhile; an interrupt ends the call.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let mut work = self.begin().map_err(|failure| failure.raise(py))?;
        let threads = &self.threads;
        let answer = py.detach(move || -> PyResult<Result<Answer, Failure>> {
            loop {
                let round = async { tokio::time::timeout(SIGNALS_EVERY, &mut work).await };
                match threads.block_on(round) {
                    Ok(answer) => return Ok(answer),
                    Err(_) => Python::attach(|py| py.check_signals())?,
                }
            }
        });
        answer?.map_err(|failure: Failure| failure.raise(py))?(py)
    }

    /// Begins on the client's threads. When it is over, nothing of it is under way any more and `settle(value, error)` is called once
    /// on one of them; both are None if it was cancelled.
    fn start(&self, py: Python<'_>, settle: Py<PyAny>) -> PyResult<()> {
        let work = self.begin().map_err(|failure| failure.raise(py))?;
        let (cancel, cancelled) = oneshot::channel::<()>();
        *lock(&self.cancel) = Some(cancel);
        self.threads.spawn(async move {
            // By value: what the work uses is let go before anybody is told.
            let answer = async move {
                tokio::select! {
                    answer = work => Some(answer),
                    Ok(()) = cancelled => None,
                }
            };
            let answer = answer.await;
            // Without an interpreter nobody is left who waits.
            Python::try_attach(|py| {
                let (value, error) = match answer
                    .map(|answer| answer.map_err(|failure| failure.raise(py)).and_then(|make| make(py)))
                {
                    Some(Ok(value)) => (value, py.None()),
                    Some(Err(error)) => (py.None(), error.into_value(py).into_any()),
                    None => (py.None(), py.None()),
                };
                // A loop that was closed meanwhile waits for nothing.
                let _ = settle.call1(py, (value, error));
                drop(settle);
            });
        });
        Ok(())
    }

    /// Ends it, if it is under way on the client's threads.
    fn cancel(&self) {
        if let Some(cancel) = lock(&self.cancel).take() {
            let _ = cancel.send(());
        }
    }
}
