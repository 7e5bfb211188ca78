//! The thread that a model computes on: always the same one, as libraries that compute keep threads of their own for each that asks.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

type Job<M> = Box<dyn FnOnce(&M) + Send>;

/// A thread with a model. It ends with this.
pub(super) struct Worker<M> {
    /// As many as have a turn wait here: one, and maybe one that nobody waits for any more.
    jobs: mpsc::Sender<Job<M>>,
}

impl<M: Send + Sync + 'static> Worker<M> {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(model: Arc<M>) -> io::Result<Worker<M>> {
        let (jobs, waiting) = mpsc::channel::<Job<M>>();
        let work = move || {
            for job in waiting {
                job(&model);
            }
        };
        std::thread::Builder::new().name("kvhive-engine".to_owned()).spawn(work)?;
        Ok(Worker { jobs })
    }

    /// Has the model do something; none where its thread is gone. A panic of the model's is the caller's.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&M) -> T + Send + 'static,
    ) -> Option<T> {
        let (say, said) = oneshot::channel();
        let job = Box::new(move |model: &M| {
            let done = catch_unwind(AssertUnwindSafe(|| work(model)));
            // Who does not wait any more wants none of it.
            let _ = say.send(done);
        });
        self.jobs.send(job).ok()?;
        match said.await.ok()? {
            Ok(done) => Some(done),
            Err(panic) => resume_unwind(panic),
        }
    }
}
