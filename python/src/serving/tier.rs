//! A secondary tier of an engine's offloading, as Python holds it: an actor around the lookups. Bytes go straight between sockets and
//! the memory that the engine's processes share.

use crate::buffer::Lent;
use crate::connection::seconds;
use crate::errors::Failure;
use crate::regions::Use;
use crate::serving::links::{self, Links, Place, layouts};
use crate::serving::singles::Moved;
use crate::serving::{now, planner, store_limit};
use crate::threads::Crew;
use kvhive_engines::{Lookup, Lookups, NotSaved, Wish};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long an answer is gone by: what is there may leave, and what is not may come.
const ANSWERS_LAST: Duration = Duration::from_secs(5);
/// Wishes for requests' chunks that wait.
const MOST_WISHES: usize = 64;
/// What a tier's blocks are to their engine is in its name; their length in tokens says nothing here.
const TOKENS: u32 = 1;

/// A job that is over: its number, whether all of it was done, which of its blocks were, seconds, bytes.
type Finished = (u64, bool, Vec<usize>, f64, u64);

/// A secondary tier.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EngineTier {
    shared: Arc<Shared>,
    /// Done one after the other, in their order.
    wishes: mpsc::Sender<(Vec<Vec<u8>>, Wish)>,
}

struct Shared {
    crew: Crew,
    links: Links,
    wait: Duration,
    block_bytes: u64,
    state: Mutex<State>,
    /// Somebody may wait for the last job.
    over: Condvar,
}

struct State {
    lookups: Lookups,
    finished: Vec<Finished>,
    under_way: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under it is done by values.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    async fn ask(self: Arc<Self>, question: u64, names: Vec<Vec<u8>>) {
        let found = self.links.which(&names, self.wait).await;
        self.lock().lookups.answered(now(), question, found.as_deref());
    }

    /// Stores or fetches; returns which blocks were, and whether the cluster answered.
    async fn transfer(&self, names: &[Vec<u8>], lent: &mut Lent, how: Use) -> (Vec<usize>, bool) {
        let Moved { done, is_answered } = match how {
            Use::Write => self.links.take(names, &mut lent.slices_mut(), self.wait).await,
            Use::Read => self.links.put(names, &lent.slices(), store_limit(self.wait)).await,
        };
        ((0..done.len()).filter(|at| done[*at]).collect(), is_answered)
    }

    async fn run(self: Arc<Self>, job: u64, names: Vec<Vec<u8>>, mut lent: Lent, how: Use) {
        let begun = Instant::now();
        let (done, is_answered) = self.transfer(&names, &mut lent, how).await;
        let took = begun.elapsed().as_secs_f64();
        let shared = self.clone();
        self.crew.send(Box::new(move |_| {
            // Before anybody is told: the engine may give the memory away then.
            drop(lent);
            shared.end(job, &names, done, is_answered, took, how);
        }));
    }

    fn end(&self, job: u64, names: &[Vec<u8>], done: Vec<usize>, is_answered: bool, took: f64, how: Use) {
        let mut state = self.lock();
        match how {
            Use::Write => state.lookups.load_ended(now(), is_answered),
            Use::Read => state.lookups.store_ended(now(), is_answered),
        }
        let mut missing: Vec<Vec<u8>> = Vec::new();
        let mut there: Vec<Vec<u8>> = Vec::new();
        let mut ends = done.iter().peekable();
        for (at, name) in names.iter().enumerate() {
            let is_done = ends.next_if(|end| **end == at).is_some();
            if is_done { there.push(name.clone()) } else { missing.push(name.clone()) }
        }
        state.lookups.stored(now(), &there);
        if how == Use::Write {
            state.lookups.gone(now(), &missing);
        }
        let bytes = self.block_bytes * done.len() as u64;
        state.finished.push((job, missing.is_empty(), done, took, bytes));
        state.under_way -= 1;
        self.over.notify_all();
    }
}

impl EngineTier {
    fn begin(&self, job: u64, names: Vec<Vec<u8>>, rows: &Bound<'_, PyAny>, how: Use) -> PyResult<()> {
        let py = rows.py();
        let lent = Lent::take(rows, self.shared.block_bytes, how)?;
        if lent.blocks() != names.len() {
            let what = format!("{} rows for {} chunks", lent.blocks(), names.len());
            return Err(Failure::misuse(what).raise(py));
        }
        let mut state = self.shared.lock();
        let is_begun = match how {
            Use::Write => state.lookups.lets_load(now()),
            Use::Read => state.lookups.lets_store(now()),
        };
        if !is_begun {
            match how {
                Use::Write => state.lookups.gone(now(), &names),
                Use::Read => self.shared.links.note(NotSaved::Rests),
            }
            state.finished.push((job, false, Vec::new(), 0.0, 0));
            return Ok(());
        }
        state.under_way += 1;
        drop(state);
        self.shared.crew.runtime().spawn(self.shared.clone().run(job, names, lent, how));
        Ok(())
    }
}

#[pymethods]
impl EngineTier {
    #[new]
    #[pyo3(signature = (*, coordinators, token, tls, tenant, model, block_bytes, wait))]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn new(
        py: Python<'_>,
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
        tenant: String,
        model: String,
        block_bytes: u64,
        wait: f64,
    ) -> PyResult<EngineTier> {
        let make = || -> Result<EngineTier, Failure> {
            let groups = planner::groups(&[(TOKENS, None)], TOKENS)?;
            let wait = seconds("wait", wait)?;
            let config = links::cluster(coordinators, token, tls)?;
            let place = Place { tenant, model, rank: 0, layouts: layouts(&[block_bytes], &groups)? };
            let shared = Arc::new(Shared {
                crew: Crew::of_process()?,
                links: Links::new(config, place, groups),
                wait,
                block_bytes,
                state: Mutex::new(State {
                    lookups: Lookups::new(wait, ANSWERS_LAST),
                    finished: Vec::new(),
                    under_way: 0,
                }),
                over: Condvar::new(),
            });
            let early = shared.clone();
            shared.crew.runtime().spawn(async move { early.links.connect().await.is_some() });
            let (wishes, mut wished) = mpsc::channel::<(Vec<Vec<u8>>, Wish)>(MOST_WISHES);
            let hand = shared.clone();
            shared.crew.runtime().spawn(async move {
                while let Some((names, wish)) = wished.recv().await {
                    hand.links.wish_of_singles(&names, &wish).await;
                }
            });
            Ok(EngineTier { shared, wishes })
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// What this tier's blocks are called.
    #[getter]
    fn model(&self) -> &str {
        self.shared.links.model()
    }

    /// Says whether a chunk is there; none while that is not known.
    fn lookup(&self, name: &[u8]) -> Option<bool> {
        match self.shared.lock().lookups.lookup(now(), name) {
            Lookup::Hit => Some(true),
            Lookup::Miss => Some(false),
            Lookup::Later => None,
        }
    }

    /// Puts what is to be asked to the cluster.
    fn ask(&self) {
        let questions = self.shared.lock().lookups.questions(now());
        for (question, names) in questions {
            self.shared.crew.runtime().spawn(self.shared.clone().ask(question, names));
        }
    }

    /// Begins to store chunks, each a row of memory.
    fn store(&self, job: u64, names: Vec<Vec<u8>>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        self.begin(job, names, rows, Use::Read)
    }

    /// Begins to fetch chunks, each into a row of memory.
    fn load(&self, job: u64, names: Vec<Vec<u8>>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        self.begin(job, names, rows, Use::Write)
    }

    /// Does what is wished for a request's chunks: each by its name, and where its last token is in the request. Returns false for what is somebody
    /// else's to do.
    fn wish(
        &self,
        py: Python<'_>,
        kind: &str,
        version: &str,
        payload: &str,
        chunks: Vec<(Vec<u8>, u64)>,
    ) -> PyResult<bool> {
        let wish = Wish::read(kind, version, payload).map_err(|why| Failure::misuse(why).raise(py))?;
        let Some(wish) = wish else { return Ok(false) };
        let most =
            if let Wish::Pin { tokens: Some(tokens), .. } = wish { u64::from(tokens) } else { u64::MAX };
        let names: Vec<Vec<u8>> =
            chunks.into_iter().filter(|(_, end)| *end <= most).map(|(name, _)| name).collect();
        if self.wishes.try_send((names, wish)).is_err() {
            self.shared.links.note(format!("more than {MOST_WISHES} wishes wait: one is not done"));
        }
        Ok(true)
    }

    /// Returns the jobs that are over.
    fn finished(&self) -> Vec<Finished> {
        std::mem::take(&mut self.shared.lock().finished)
    }

    /// Says whether jobs or questions are under way, or jobs over of which nobody was told.
    fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.under_way > 0 || !state.finished.is_empty() || state.lookups.is_asking()
    }

    /// Waits until no job is under way; each keeps to its limit.
    fn drain(&self, py: Python<'_>) {
        let shared = self.shared.clone();
        py.detach(move || {
            drop(shared.over.wait_while(shared.lock(), |state| state.under_way > 0));
        });
    }

    /// Returns what went wrong since this was asked last, each by itself.
    fn troubles(&self) -> Vec<String> {
        self.shared.links.troubles()
    }
}
