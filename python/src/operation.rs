//! One call under way: waited for with the interpreter free, or driven by the client's threads while an event loop goes on.

use crate::ending;
use crate::errors::{Failure, Kind};
use crate::held::Held;
use crate::threads::Crew;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often a thread that waits looks whether it was interrupted.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// A call's answer, made into an object once the interpreter is held again.
type Answer = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

type Work = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

/// A call that has not begun, or is under way.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Operation {
    crew: Crew,
    work: Mutex<Option<Work>>,
    cancel: Mutex<Option<oneshot::Sender<()>>>,
    /// After the work, which uses its sockets; none for the call that opens them.
    _held: Option<Arc<Held>>,
}

impl Operation {
    /// Makes one of `work`, which goes over the sockets of a client.
    pub(crate) fn new<T>(
        held: &Arc<Held>,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        Operation::lending(held, async move { Ok((work.await?, ())) })
    }

    /// Makes one of `work`, which gives back what it was lent with its answer: what takes the interpreter to be let go is let go when
    /// it is held.
    pub(crate) fn lending<T>(
        held: &Arc<Held>,
        work: impl Future<Output = Result<(T, impl Send + 'static), Failure>> + Send + 'static,
    ) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        Operation::of(held.crew().clone(), Some(held.clone()), work)
    }

    /// Makes one of `work`, which opens a client's first socket.
    pub(crate) fn first<T>(
        crew: Crew,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        Operation::of(crew, None, async move { Ok((work.await?, ())) })
    }

    fn of<T>(
        crew: Crew,
        held: Option<Arc<Held>>,
        work: impl Future<Output = Result<(T, impl Send + 'static), Failure>> + Send + 'static,
    ) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        let work = async move {
            let (value, lent) = work.await?;
            let answer: Answer = Box::new(move |py| {
                drop(lent);
                value.into_py_any(py)
            });
            Ok(answer)
        };
        Operation { crew, work: Mutex::new(Some(Box::pin(work))), cancel: Mutex::new(None), _held: held }
    }

    fn begin(&self) -> Result<Work, Failure> {
        if !self.crew.is_here() {
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
        let runtime = self.crew.runtime();
        let answer = py.detach(move || -> PyResult<Result<Answer, Failure>> {
            loop {
                let round = async { tokio::time::timeout(SIGNALS_EVERY, &mut work).await };
                match runtime.block_on(round) {
                    Ok(answer) => {
                        ending::heed();
                        return Ok(answer);
                    }
                    Err(_) => Python::try_attach(|py| py.check_signals()).unwrap_or_else(ending::park)?,
                }
            }
        });
        answer?.map_err(|failure| failure.raise(py))?(py)
    }

    /// Begins on the client's threads. When it is over, nothing of it is under way any more and `settle(value, error)` is called once
    /// on one of them; both are None if it was cancelled.
    fn start(&self, py: Python<'_>, settle: Py<PyAny>) -> PyResult<()> {
        let mut work = self.begin().map_err(|failure| failure.raise(py))?;
        let (cancel, cancelled) = oneshot::channel::<()>();
        *lock(&self.cancel) = Some(cancel);
        let crew = self.crew.clone();
        self.crew.runtime().spawn(async move {
            let answer = tokio::select! {
                answer = &mut work => Some(answer),
                Ok(()) = cancelled => None,
            };
            crew.send(Box::new(move |py| {
                // What it was lent is let go before anybody is told.
                drop(work);
                let value = answer
                    .map(|answer| answer.map_err(|failure| failure.raise(py)).and_then(|make| make(py)));
                let (value, error) = match value {
                    Some(Ok(value)) => (value, py.None()),
                    Some(Err(error)) => (py.None(), error.into_value(py).into_any()),
                    None => (py.None(), py.None()),
                };
                // A loop that was closed meanwhile waits for nothing.
                let _ = settle.call1(py, (value, error));
            }));
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
