//! A storage plugin of an engine, as Python holds it: objects of any length under names, in batches that nobody waits for. A batch that
//! is over is told of through a descriptor. Bytes go straight between sockets and the engine's memory.

use crate::buffer::Lent;
use crate::connection::seconds;
use crate::errors::{Failure, Kind};
use crate::regions::Use;
use crate::serving::links::{self, Links, Place};
use crate::serving::singles::Moved;
use crate::serving::{now, planner, store_limit};
use crate::threads::Crew;
use kvhive_engines::{Ended, Tasks};
use kvhive_protocol::Layout;
use kvhive_protocol::frame::MAX_PAYLOAD_BYTES;
use pyo3::prelude::*;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;

/// What an object is to its engine is in its name; its length in tokens says nothing here.
const TOKENS: u32 = 1;

/// A batch that is over: its number, whether what was asked for was done, what was wrong, and of each object whether it was done.
type Completion = (u64, bool, &'static str, Vec<bool>);

/// Objects of any length under names.
#[pyclass(frozen, subclass, module = "kvhive._native")]
pub(crate) struct EngineObjects {
    shared: Arc<Shared>,
}

struct Shared {
    crew: Crew,
    links: Links,
    wait: Duration,
    load: Duration,
    state: Mutex<State>,
    /// Somebody may wait for the last batch.
    over: Condvar,
    /// Whether what is under way is given up.
    given_up: watch::Sender<bool>,
}

struct State {
    tasks: Tasks,
    /// A byte is in it when, and only when, somebody is woken: neither end ever waits.
    bell: (PipeReader, PipeWriter),
}

impl State {
    fn ring(&mut self) {
        if self.tasks.wakes() {
            // It fails when nobody has the other end: then nobody is to be woken.
            let _ = self.bell.1.write_all(&[1]);
        }
    }

    fn take(&mut self) -> Vec<Ended> {
        let (ended, is_woken) = self.tasks.take();
        if is_woken {
            let _ = self.bell.0.read_exact(&mut [0]);
        }
        ended
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under it is done by values.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Begins a batch; says whether it is to be done.
    fn begin(&self, objects: usize) -> (u64, bool) {
        let mut state = self.lock();
        let begun = state.tasks.begin(now(), objects);
        state.ring();
        begun
    }

    fn refuse(&self, objects: usize) -> u64 {
        let mut state = self.lock();
        let task = state.tasks.refuse(objects);
        state.ring();
        task
    }

    fn end(&self, task: u64, done: Vec<bool>, is_ok: bool, is_answered: bool) {
        let mut state = self.lock();
        state.tasks.end(now(), Ended { task, done, is_ok }, is_answered);
        state.ring();
        self.over.notify_all();
    }

    /// Does what a batch needs, unless all is given up meanwhile.
    async fn unless_given_up<T: Default>(&self, all: impl Future<Output = T>) -> T {
        let mut given_up = self.given_up.subscribe();
        tokio::select! {
            done = all => done,
            _ = given_up.wait_for(|is| *is) => T::default(),
        }
    }

    async fn look(self: Arc<Self>, task: u64, names: Vec<Vec<u8>>) {
        let found = self.unless_given_up(self.links.which(&names, self.wait)).await;
        let is_answered = found.is_some();
        self.end(task, found.unwrap_or_else(|| vec![false; names.len()]), is_answered, is_answered);
    }

    async fn transfer(self: Arc<Self>, task: u64, names: Vec<Vec<u8>>, mut lent: Lent, how: Use) {
        let Moved { mut done, is_answered } = match how {
            Use::Write => {
                let mut into = lent.slices_mut();
                Box::pin(self.unless_given_up(self.links.take(&names, &mut into, self.load))).await
            }
            Use::Read => {
                let limit = store_limit(self.wait);
                self.unless_given_up(Box::pin(self.links.put(&names, &lent.slices(), limit))).await
            }
        };
        done.resize(names.len(), false);
        // Of a store all is wanted; of a load, what there is.
        let is_ok = is_answered && (how == Use::Write || done.iter().all(|is| *is));
        let shared = self.clone();
        self.crew.send(Box::new(move |_| {
            // Before anybody is told: the engine may give the memory away then.
            drop(lent);
            shared.end(task, done, is_ok, is_answered);
        }));
    }
}

impl EngineObjects {
    fn begin(&self, names: Vec<String>, memory: &Bound<'_, PyAny>, how: Use) -> PyResult<u64> {
        let given = memory.len()?;
        if given != names.len() {
            let what = format!("{given} buffers for {} objects", names.len());
            return Err(Failure::misuse(what).raise(memory.py()));
        }
        let lent = match Lent::take_whole(memory, how).map_err(|error| error.to_string()).and_then(fits) {
            Ok(lent) => lent,
            Err(why) => {
                // A miss, as anything else that goes wrong: what is raised here would end a thread of the engine.
                self.shared.links.note(why);
                return Ok(self.shared.refuse(names.len()));
            }
        };
        let (task, is_begun) = self.shared.begin(names.len());
        if is_begun {
            let transfer = self.shared.clone().transfer(task, bytes(names), lent, how);
            self.shared.crew.runtime().spawn(transfer);
        }
        Ok(task)
    }
}

/// Checks that no object is longer than one can be.
fn fits(lent: Lent) -> Result<Lent, String> {
    let longest = lent.slices().iter().map(|object| object.len()).max().unwrap_or(0);
    if longest as u64 > u64::from(MAX_PAYLOAD_BYTES) {
        return Err(format!("an object has {longest} bytes, at most {MAX_PAYLOAD_BYTES} are allowed"));
    }
    Ok(lent)
}

fn bytes(names: Vec<String>) -> Vec<Vec<u8>> {
    names.into_iter().map(String::into_bytes).collect()
}

#[pymethods]
impl EngineObjects {
    #[new]
    #[pyo3(signature = (*, coordinators, token, tls, tenant, model, wait, load))]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn new(
        py: Python<'_>,
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
        tenant: String,
        model: String,
        wait: f64,
        load: f64,
    ) -> PyResult<EngineObjects> {
        let make = || -> Result<EngineObjects, Failure> {
            let config = links::cluster(coordinators, token, tls)?;
            let place = Place { tenant, model, rank: 0, layouts: vec![Layout::ANY_LENGTH] };
            let none =
                |why| Failure::new(Kind::Closed, format!("no descriptor to tell the engine by: {why}"));
            let shared = Arc::new(Shared {
                crew: Crew::of_process()?,
                links: Links::new(config, place, planner::groups(&[(TOKENS, None)], TOKENS)?),
                wait: seconds("wait", wait)?,
                load: seconds("load", load)?,
                state: Mutex::new(State { tasks: Tasks::default(), bell: std::io::pipe().map_err(none)? }),
                over: Condvar::new(),
                given_up: watch::Sender::new(false),
            });
            let early = shared.clone();
            shared.crew.runtime().spawn(async move { early.links.connect().await.is_some() });
            Ok(EngineObjects { shared })
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// What these objects are called.
    #[getter]
    fn model(&self) -> &str {
        self.shared.links.model()
    }

    /// Returns a descriptor that can be read from while batches are over of which nobody was told.
    fn event_fd(&self) -> i32 {
        self.shared.lock().bell.0.as_raw_fd()
    }

    /// Begins to fetch objects, each into memory of its length; returns the batch's number.
    fn submit_batch_get(&self, names: Vec<String>, memory: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.begin(names, memory, Use::Write)
    }

    /// Begins to store objects; returns the batch's number.
    fn submit_batch_set(&self, names: Vec<String>, memory: &Bound<'_, PyAny>) -> PyResult<u64> {
        self.begin(names, memory, Use::Read)
    }

    /// Begins to ask which objects are there; returns the batch's number.
    fn submit_batch_exists(&self, names: Vec<String>) -> u64 {
        let (task, is_begun) = self.shared.begin(names.len());
        if is_begun {
            self.shared.crew.runtime().spawn(self.shared.clone().look(task, bytes(names)));
        }
        task
    }

    /// Returns the batches that are over: number, whether it was done, what was wrong, and of each object whether it was.
    fn drain_completions(&self) -> Vec<Completion> {
        let ended = self.shared.lock().take();
        let why = |is_ok| if is_ok { "" } else { "not all of it was done" };
        ended.into_iter().map(|Ended { task, done, is_ok }| (task, is_ok, why(is_ok), done)).collect()
    }

    /// Has no batch begin any more, waits for those under way for so many seconds, and gives up the others: no memory is used after it.
    fn close(&self, py: Python<'_>, patience: f64) -> PyResult<()> {
        let patience = seconds("patience", patience).map_err(|failure| failure.raise(py))?;
        let shared = self.shared.clone();
        py.detach(move || {
            let mut state = shared.lock();
            state.tasks.close();
            let waited = shared.over.wait_timeout_while(state, patience, |state| !state.tasks.is_idle());
            drop(waited);
            shared.given_up.send_replace(true);
            drop(shared.over.wait_while(shared.lock(), |state| !state.tasks.is_idle()));
        });
        Ok(())
    }

    /// Returns what went wrong since this was asked last, each by itself.
    fn troubles(&self) -> Vec<String> {
        self.shared.links.troubles()
    }
}
