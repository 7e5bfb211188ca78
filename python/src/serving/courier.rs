//! A worker's side as Python holds it: an actor around the courier. Python's thread takes orders, copies between the engine's memory
//! and this; sockets are the client's threads' business.

use crate::buffer::Lent;
use crate::connection::seconds;
use crate::errors::Failure;
use crate::regions::Use;
use crate::serving::links::{self, Links, Place, layouts};
use crate::serving::{now, planner, store_limit};
use crate::threads::Crew;
use kvhive_client::Prefix;
use kvhive_engines::courier::Names;
use kvhive_engines::orders::Placed;
use kvhive_engines::{AskId, Courier, CourierLimits, Effect, Event, Order, Report, SaveId, Wish};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Memory of Python that blocks of one group were fetched into, and the first of them.
type Memory = (Py<PyAny>, usize);

/// One group's part of a load: memory, the first row in it, and which of the engine's blocks the rows are.
type LoadPart = (Py<PyAny>, usize, Vec<u32>);

/// A worker's side.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EngineCourier {
    shared: Arc<Shared>,
}

struct Shared {
    crew: Crew,
    links: Links,
    block_bytes: Vec<u64>,
    store_limit: Duration,
    /// Makes memory of so many bytes.
    allocate: Py<PyAny>,
    state: Mutex<State>,
    /// Somebody may wait for the last save.
    saved: Condvar,
}

struct State {
    courier: Courier,
    reports: Vec<Report>,
    /// What is found for a question, until it is fetched.
    found: HashMap<AskId, Vec<Prefix>>,
    /// What was fetched for a question.
    held: HashMap<AskId, Vec<Memory>>,
    loads: Vec<(AskId, Vec<Vec<Placed>>)>,
    saves: Vec<(SaveId, usize, Vec<u32>)>,
    saving: HashMap<SaveId, Saving>,
    /// Let go where the interpreter is held.
    idle: Vec<Memory>,
}

struct Saving {
    names: Names,
    group: usize,
    blocks: Vec<Placed>,
}

/// What is done without the lock.
enum Errand {
    Find { ask: AskId, names: Names, groups: Vec<Range<usize>>, limit: Duration },
    Fetch { ask: AskId, prefixes: Vec<Prefix>, groups: Vec<Range<usize>>, limit: Duration },
    Wish { names: Names, groups: Vec<usize>, wish: Wish },
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under it is done by values; a panic leaves a question unanswered at worst, and its asker gives up.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Steps the courier and does what it says.
    fn step(self: &Arc<Self>, event: Event) {
        let mut errands = Vec::new();
        let mut state = self.lock();
        let mut effects = Vec::new();
        state.courier.step(now(), event, &mut effects);
        for effect in effects {
            state.perform(effect, &self.links, &mut errands);
        }
        if !state.courier.is_saving() {
            self.saved.notify_all();
        }
        drop(state);
        for errand in errands {
            let shared = self.clone();
            self.crew.runtime().spawn(async move {
                match errand {
                    Errand::Find { ask, names, groups, limit } => {
                        shared.find(ask, names, groups, limit).await
                    }
                    Errand::Fetch { ask, prefixes, groups, limit } => {
                        shared.fetch(ask, prefixes, groups, limit).await;
                    }
                    Errand::Wish { names, groups, wish } => shared.links.wish(&names, &groups, &wish).await,
                }
            });
        }
    }

    async fn find(self: Arc<Self>, ask: AskId, names: Names, groups: Vec<Range<usize>>, limit: Duration) {
        let found = self.links.find(&names, &groups, limit).await;
        let blocks = found.map(|(blocks, prefixes)| {
            self.lock().found.insert(ask, prefixes);
            blocks
        });
        self.step(Event::Found { ask, blocks });
        self.lock().found.remove(&ask);
    }

    async fn fetch(
        self: Arc<Self>,
        ask: AskId,
        prefixes: Vec<Prefix>,
        groups: Vec<Range<usize>>,
        limit: Duration,
    ) {
        let until = Instant::now() + limit;
        let mut blocks = vec![0; groups.len()];
        let mut is_late = false;
        let mut held = Vec::with_capacity(groups.len());
        for (group, range) in groups.into_iter().enumerate() {
            let bytes = self.block_bytes[group] * range.len() as u64;
            let Some((memory, mut lent)) = self.memory(group, bytes).await else {
                continue;
            };
            held.push((memory, range.start));
            let left = until.saturating_duration_since(Instant::now());
            let fetched = self.links.fetch(group, &prefixes[group], range, &mut lent, left).await;
            blocks[group] = fetched.0;
            is_late |= fetched.1;
            self.crew.send(Box::new(move |_| drop(lent)));
        }
        let shared = self.clone();
        // By the thread that holds the interpreter: nothing uses the memory any more when the answer is heard.
        self.crew.send(Box::new(move |_| {
            shared.lock().held.insert(ask, held);
            shared.step(Event::Fetched { ask, blocks, is_late });
            let mut state = shared.lock();
            if !state.courier.holds(ask)
                && let Some(memory) = state.held.remove(&ask)
            {
                drop(state);
                drop(memory);
            }
        }));
    }

    /// Has memory made, where the interpreter is held.
    async fn memory(self: &Arc<Self>, group: usize, bytes: u64) -> Option<(Py<PyAny>, Lent)> {
        let (give, given) = oneshot::channel();
        let shared = self.clone();
        self.crew.send(Box::new(move |py| {
            let make = || -> PyResult<(Py<PyAny>, Lent)> {
                let memory = shared.allocate.call1(py, (bytes,))?;
                let lent = Lent::take_anywhere(memory.bind(py), shared.block_bytes[group], Use::Write)?;
                Ok((memory, lent))
            };
            let _ = give.send(make().map_err(|error| error.to_string()));
        }));
        match given.await {
            Ok(Ok(made)) => Some(made),
            Ok(Err(why)) => {
                self.links.note(format!("no memory to fetch into: {why}"));
                None
            }
            Err(_) => None,
        }
    }

    async fn store(self: Arc<Self>, save: SaveId, saving: Saving, mut lent: Lent) {
        let Saving { names, group, blocks } = saving;
        let kept = self.links.store(group, &names, &blocks, &mut lent, self.store_limit).await;
        let shared = self.clone();
        self.crew.send(Box::new(move |_| {
            drop(lent);
            shared.step(Event::Stored { save, kept });
        }));
    }
}

impl State {
    fn perform(&mut self, effect: Effect, links: &Links, errands: &mut Vec<Errand>) {
        match effect {
            Effect::Find { ask, names, groups, limit } => {
                errands.push(Errand::Find { ask, names, groups, limit })
            }
            Effect::Fetch { ask, groups, limit } => {
                let prefixes = self.found.remove(&ask).expect("a fetch follows what was found for it");
                errands.push(Errand::Fetch { ask, prefixes, groups, limit });
            }
            Effect::Release(ask) => self.idle.extend(self.held.remove(&ask).unwrap_or_default()),
            Effect::Load { ask, groups } => self.loads.push((ask, groups)),
            Effect::Save { save, names, group, blocks } => {
                self.saves.push((save, group, blocks.iter().map(|placed| placed.block).collect()));
                self.saving.insert(save, Saving { names, group, blocks });
            }
            Effect::Wish { names, groups, wish } => errands.push(Errand::Wish { names, groups, wish }),
            Effect::NotSaved(why) => links.note(why),
            Effect::Report(report) => self.reports.push(report),
        }
    }
}

#[pymethods]
impl EngineCourier {
    #[new]
    #[pyo3(signature = (*, coordinators, token, tls, tenant, model, rank, groups, hash_tokens, block_bytes, wait, asks, memory, allocate))]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn new(
        py: Python<'_>,
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
        tenant: String,
        model: String,
        rank: u32,
        groups: Vec<(u32, Option<u32>)>,
        hash_tokens: u32,
        block_bytes: Vec<u64>,
        wait: f64,
        asks: usize,
        memory: u64,
        allocate: Py<PyAny>,
    ) -> PyResult<EngineCourier> {
        let make = || -> Result<EngineCourier, Failure> {
            let groups = planner::groups(&groups, hash_tokens)?;
            if block_bytes.len() != groups.len() {
                return Err(Failure::misuse(format!(
                    "{} sizes for {} groups",
                    block_bytes.len(),
                    groups.len()
                )));
            }
            let wait = seconds("wait", wait)?;
            // Whoever matches fetches at once.
            let config = links::cluster(coordinators, token, tls)?;
            let layouts = layouts(&block_bytes, &groups)?;
            let place = Place { tenant, model, rank, layouts };
            let limits = CourierLimits { wait, asks: asks.max(1), memory, block_bytes: block_bytes.clone() };
            let shared = Arc::new(Shared {
                crew: Crew::of_process()?,
                links: Links::new(config, place, groups.clone()),
                block_bytes,
                store_limit: store_limit(wait),
                allocate,
                state: Mutex::new(State {
                    courier: Courier::new(groups, limits),
                    reports: Vec::new(),
                    found: HashMap::new(),
                    held: HashMap::new(),
                    loads: Vec::new(),
                    saves: Vec::new(),
                    saving: HashMap::new(),
                    idle: Vec::new(),
                }),
                saved: Condvar::new(),
            });
            let early = shared.clone();
            shared.crew.runtime().spawn(async move { early.links.connect().await.is_some() });
            Ok(EngineCourier { shared })
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// What this worker's blocks are called.
    #[getter]
    fn model(&self) -> &str {
        self.shared.links.model()
    }

    /// Takes orders.
    fn told(&self, py: Python<'_>, orders: &[u8]) -> PyResult<()> {
        let orders = kvhive_engines::decode::<Order>(orders);
        let orders = orders.map_err(|why| Failure::misuse(why.to_string()).raise(py))?;
        self.shared.step(Event::Looked);
        for order in orders {
            self.shared.step(Event::Told(order));
        }
        let idle = std::mem::take(&mut self.shared.lock().idle);
        drop(idle);
        Ok(())
    }

    /// Returns what is copied into the engine's blocks now: a number, and of each group memory, the first row, and the blocks.
    fn loads(&self, py: Python<'_>) -> PyResult<Vec<(u64, Vec<LoadPart>)>> {
        let mut state = self.shared.lock();
        let loads = std::mem::take(&mut state.loads);
        let taken: Vec<_> =
            loads.into_iter().map(|(ask, groups)| (ask, state.held.remove(&ask), groups)).collect();
        // Before anything of Python's is asked for, which may wait for who waits for the lock.
        drop(state);
        let mut given = Vec::with_capacity(taken.len());
        for (ask, held, groups) in taken {
            let held = held.filter(|held| held.len() == groups.len()).ok_or_else(|| {
                Failure::misuse(format!("nothing is held for question {}", ask.0)).raise(py)
            })?;
            let parts = held.into_iter().zip(groups).map(|((memory, start), placed)| {
                let row = placed.first().map_or(0, |first| first.at as usize - start);
                (memory, row, placed.iter().map(|placed| placed.block).collect())
            });
            given.push((ask.0, parts.collect()));
        }
        Ok(given)
    }

    /// Takes in that a load's memory is not read any more.
    fn loaded(&self, load: u64) {
        self.shared.step(Event::Loaded(AskId(load)));
    }

    /// Returns what is copied out of the engine's blocks now: a number, the group and the blocks.
    fn saves(&self) -> Vec<(u64, usize, Vec<u32>)> {
        let saves = std::mem::take(&mut self.shared.lock().saves);
        saves.into_iter().map(|(save, group, blocks)| (save.0, group, blocks)).collect()
    }

    /// Stores what was copied out.
    fn store(&self, py: Python<'_>, save: u64, memory: &Bound<'_, PyAny>) -> PyResult<()> {
        let save = SaveId(save);
        let saving = self.shared.lock().saving.remove(&save);
        let saving =
            saving.ok_or_else(|| Failure::misuse(format!("save {} is not under way", save.0)).raise(py))?;
        let lent = Lent::take_anywhere(memory, self.shared.block_bytes[saving.group], Use::Read)?;
        if lent.blocks() != saving.blocks.len() {
            let what = format!("memory of {} blocks for {}", lent.blocks(), saving.blocks.len());
            return Err(Failure::misuse(what).raise(py));
        }
        self.shared.crew.runtime().spawn(self.shared.clone().store(save, saving, lent));
        Ok(())
    }

    /// Takes in that nothing was copied out.
    fn unsaved(&self, save: u64) {
        let save = SaveId(save);
        self.shared.lock().saving.remove(&save);
        self.shared.step(Event::Unsaved(save));
    }

    /// Returns what the scheduler is answered; none if that is nothing.
    fn reports<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        self.shared.step(Event::Looked);
        let reports = std::mem::take(&mut self.shared.lock().reports);
        if reports.is_empty() {
            return Ok(None);
        }
        let bytes =
            kvhive_engines::encode(&reports).map_err(|why| Failure::misuse(why.to_string()).raise(py))?;
        Ok(Some(PyBytes::new(py, &bytes)))
    }

    /// Returns what went wrong since this was asked last, each by itself.
    fn troubles(&self) -> Vec<String> {
        self.shared.links.troubles()
    }

    /// Returns what this worker has done, by name.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let figures = self.shared.lock().courier.figures();
        let [stored_on_gpu, fetched_on_gpu, stage_fallbacks] = self.shared.links.on_gpu();
        vec![
            ("asks", figures.asks),
            ("unasked", figures.unasked),
            ("late", figures.late),
            ("tokens_asked", figures.tokens_asked),
            ("tokens_loaded", figures.tokens_loaded),
            ("blocks_wasted", figures.blocks_wasted),
            ("blocks_saved", figures.blocks_saved),
            ("blocks_lost", figures.blocks_lost),
            ("no_memory", figures.no_memory),
            ("bytes_stored_on_gpu", stored_on_gpu),
            ("bytes_fetched_on_gpu", fetched_on_gpu),
            ("stage_fallbacks", stage_fallbacks),
        ]
    }

    /// Waits until nothing is being saved any more, for so many seconds at most; says whether that is so, and notes what is not.
    fn flush(&self, py: Python<'_>, limit: f64) -> PyResult<bool> {
        let limit = seconds("limit", limit).map_err(|failure| failure.raise(py))?;
        let shared = self.shared.clone();
        Ok(py.detach(move || {
            let is_saving = |state: &mut State| state.courier.is_saving();
            let waited = shared.saved.wait_timeout_while(shared.lock(), limit, is_saving);
            let (state, _) = waited.unwrap_or_else(|poison| poison.into_inner());
            let is_over = !state.courier.is_saving();
            if !is_over {
                let blocks = state.courier.saving();
                shared.links.note_last(format!("{blocks} blocks are still being saved after {limit:?}"));
            }
            is_over
        }))
    }
}
