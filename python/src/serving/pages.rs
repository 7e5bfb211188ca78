//! Pages of an engine's storage, as Python holds them: calls that wait, each no longer than it was told, and that answer page by page.
//! Bytes go straight between sockets and the engine's memory; a cluster that does not answer is left alone for a while.

use crate::buffer::Lent;
use crate::connection::seconds;
use crate::ending;
use crate::errors::Failure;
use crate::regions::Use;
use crate::serving::links;
use crate::serving::now;
use crate::serving::singles::{Moved, put, take, which};
use crate::threads::Crew;
use kvhive_client::{Client, ClientConfig, ClientError, NamespaceClient};
use kvhive_engines::rest::Rest;
use kvhive_engines::{Needs, Troubles, stops};
use kvhive_protocol::Layout;
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

/// What a page is to its engine is in its name; its length in tokens says nothing here.
const TOKENS: u32 = 1;
/// Pages of one question at most: a long prefix that has a gap early is not asked for to its end.
const MOST_ASKED: usize = 4096;
/// How much longer than its limit a call is waited for, which keeps to it by itself: it is answered with what has come by then.
const GRACE: Duration = Duration::from_millis(250);
/// Why pages are not stored that the engine has.
const RESTS: &str =
    "pages are not stored: no node answered the last calls, and the cluster is left alone for a while";

/// Pages of an engine's storage.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EnginePages {
    crew: Crew,
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    tenant: String,
    state: Mutex<State>,
    /// Who closes waits for the last call.
    over: Condvar,
}

struct State {
    /// None once it is closed.
    client: Option<Arc<OnceCell<Client>>>,
    shelves: Vec<Arc<Shelf>>,
    rest: Rest,
    under_way: usize,
    troubles: Troubles,
    figures: Figures,
}

/// Pages of one size and meaning.
struct Shelf {
    model: String,
    layout: Layout,
    space: OnceCell<NamespaceClient>,
}

#[derive(Default)]
struct Figures {
    asked: u64,
    found: u64,
    fetched: u64,
    missed: u64,
    stored: u64,
    lost: u64,
    late: u64,
    unasked: u64,
}

/// A call under way: while there is one, what it was lent is used.
struct Underway(Arc<Shared>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
        self.0.over.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under it is done by values.
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn note(&self, why: impl ToString) {
        self.lock().troubles.note(why);
    }

    /// Begins a call, unless it is closed or the cluster left alone; notes that what is to be stored is not.
    fn begin(self: &Arc<Self>, is_store: bool) -> Option<(Arc<OnceCell<Client>>, Underway)> {
        let mut state = self.lock();
        let client = state.client.clone()?;
        if !state.rest.lets(now()) {
            state.figures.unasked += 1;
            if is_store {
                state.troubles.note(RESTS);
            }
            return None;
        }
        state.under_way += 1;
        Some((client, Underway(self.clone())))
    }

    async fn connect<'a>(&self, client: &'a OnceCell<Client>) -> Option<&'a Client> {
        let connected = client.get_or_try_init(|| Client::connect(self.config.clone())).await;
        connected.map_err(|why| self.note(why)).ok()
    }

    async fn space(
        &self,
        client: &OnceCell<Client>,
        shelf: &Shelf,
        limit: Duration,
    ) -> Option<NamespaceClient> {
        let client = self.connect(client).await?;
        let open = || async { client.namespace(&self.tenant, &shelf.model, shelf.layout, 0) };
        let space = shelf.space.get_or_try_init(open).await.map_err(|why| self.note(why)).ok()?;
        Some(space.within(limit))
    }

    /// Takes in what became of a call; returns one answer for each of so many pages.
    fn end(&self, outcome: Moved, pages: usize) -> Vec<bool> {
        let mut state = self.lock();
        match outcome.is_answered {
            true => state.rest.answered(),
            false => {
                state.rest.failed(now());
                state.figures.late += 1;
            }
        }
        let mut done = outcome.done;
        done.resize(pages, false);
        done
    }
}

impl EnginePages {
    fn shelf(&self, number: usize) -> Result<Arc<Shelf>, Failure> {
        let shelf = self.shared.lock().shelves.get(number).cloned();
        shelf.ok_or_else(|| Failure::misuse(format!("there is no shelf {number}")))
    }

    /// Does a call within a limit, with the interpreter let go; nothing of it is under way afterwards.
    fn within(
        &self,
        py: Python<'_>,
        limit: Duration,
        call: impl AsyncFnOnce(Duration) -> Result<Option<Moved>, ClientError> + Send,
    ) -> Moved {
        let runtime = self.crew.runtime();
        py.detach(|| {
            let answer = runtime.block_on(async { timeout(limit + GRACE, call(limit)).await });
            ending::heed();
            match answer {
                Ok(Ok(outcome)) => outcome.unwrap_or_default(),
                Ok(Err(why)) => {
                    self.shared.note(why);
                    Moved::default()
                }
                Err(_) => {
                    self.shared.note(format!("no answer within {limit:?}"));
                    Moved::default()
                }
            }
        })
    }

    fn transfer(
        &self,
        shelf: usize,
        names: &[Vec<u8>],
        rows: &Bound<'_, PyAny>,
        limit: f64,
        how: Use,
    ) -> PyResult<Vec<bool>> {
        let py = rows.py();
        let raise = |failure: Failure| failure.raise(py);
        let (shelf, limit) = (self.shelf(shelf).map_err(raise)?, seconds("limit", limit).map_err(raise)?);
        let bytes = shelf.layout.block_bytes().unwrap_or_default();
        let mut lent = Lent::take(rows, bytes, how)?;
        if lent.blocks() != names.len() {
            let what = format!("{} rows for {} pages", lent.blocks(), names.len());
            return Err(Failure::misuse(what).raise(py));
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let Some((client, underway)) = self.shared.begin(how == Use::Read) else {
            return Ok(vec![false; names.len()]);
        };
        let (shared, memory) = (&self.shared, &mut lent);
        let outcome = self.within(py, limit, async move |limit| {
            let Some(space) = shared.space(&client, &shelf, limit).await else { return Ok(None) };
            let outcome = match how {
                Use::Write => take(&space, names, &mut memory.slices_mut()).await?,
                Use::Read => put(&space, names, &memory.slices(), |why| shared.note(why)).await?,
            };
            Ok(Some(outcome))
        });
        drop(lent);
        drop(underway);
        let done = self.shared.end(outcome, names.len());
        let count = done.iter().filter(|is_done| **is_done).count() as u64;
        let rest = names.len() as u64 - count;
        let mut state = self.shared.lock();
        let figures = &mut state.figures;
        match how {
            Use::Write => {
                (figures.fetched, figures.missed) = (figures.fetched + count, figures.missed + rest)
            }
            Use::Read => (figures.stored, figures.lost) = (figures.stored + count, figures.lost + rest),
        }
        drop(state);
        Ok(done)
    }
}

#[pymethods]
impl EnginePages {
    #[new]
    #[pyo3(signature = (*, coordinators, token, tls, tenant))]
    fn new(
        py: Python<'_>,
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
        tenant: String,
    ) -> PyResult<EnginePages> {
        let make = || -> Result<EnginePages, Failure> {
            let config = links::cluster(coordinators, token, tls)?;
            let crew = Crew::of_process()?;
            let client = Arc::new(OnceCell::new());
            let state = State {
                client: Some(client.clone()),
                shelves: Vec::new(),
                rest: Rest::default(),
                under_way: 0,
                troubles: Troubles::default(),
                figures: Figures::default(),
            };
            let shared = Arc::new(Shared { config, tenant, state: Mutex::new(state), over: Condvar::new() });
            let early = shared.clone();
            crew.runtime().spawn(async move { early.connect(&client).await.is_some() });
            Ok(EnginePages { crew, shared })
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// Opens a shelf for pages of one size, by the name that says what they are; returns its number.
    fn open(&self, py: Python<'_>, model: String, page_bytes: u64) -> PyResult<usize> {
        let bytes = u32::try_from(page_bytes).ok().filter(|bytes| *bytes > 0);
        let bytes = bytes.ok_or_else(|| Failure::misuse(format!("pages of {page_bytes} bytes")).raise(py))?;
        let shelf = Shelf { model, layout: Layout::opaque(bytes, TOKENS), space: OnceCell::new() };
        let mut state = self.shared.lock();
        state.shelves.push(Arc::new(shelf));
        Ok(state.shelves.len() - 1)
    }

    /// Says of each page whether it is there, within so many seconds. In a run, what is after the first gap may be said to be missing
    /// without being asked for.
    fn which(
        &self,
        py: Python<'_>,
        shelf: usize,
        names: Vec<Vec<u8>>,
        limit: f64,
        run: bool,
    ) -> PyResult<Vec<bool>> {
        let raise = |failure: Failure| failure.raise(py);
        let (shelf, limit) = (self.shelf(shelf).map_err(raise)?, seconds("limit", limit).map_err(raise)?);
        let Some((client, underway)) = self.shared.begin(false) else { return Ok(vec![false; names.len()]) };
        let (shared, names) = (&self.shared, &names);
        let outcome = self.within(py, limit, async move |limit| {
            let until = Instant::now() + limit;
            let mut all = Moved { done: Vec::with_capacity(names.len()), is_answered: names.is_empty() };
            for part in names.chunks(MOST_ASKED) {
                let left = until.saturating_duration_since(Instant::now());
                let space = if left.is_zero() { None } else { shared.space(&client, &shelf, left).await };
                let Some(space) = space else { break };
                let Some(found) = which(&space, part).await? else {
                    shared.note("no node that may have these pages has answered");
                    break;
                };
                all.is_answered = true;
                let has_gap = found.contains(&false);
                all.done.extend(found);
                if run && has_gap {
                    break;
                }
            }
            Ok(Some(all))
        });
        drop(underway);
        let found = self.shared.end(outcome, names.len());
        let figures = &mut self.shared.lock().figures;
        figures.asked += names.len() as u64;
        figures.found += found.iter().filter(|is_there| **is_there).count() as u64;
        Ok(found)
    }

    /// Fetches pages, each into a row of memory, within so many seconds; says which came.
    fn fetch(
        &self,
        shelf: usize,
        names: Vec<Vec<u8>>,
        rows: &Bound<'_, PyAny>,
        limit: f64,
    ) -> PyResult<Vec<bool>> {
        self.transfer(shelf, &names, rows, limit, Use::Write)
    }

    /// Stores pages, each a row of memory, within so many seconds; says which are there.
    fn store(
        &self,
        shelf: usize,
        names: Vec<Vec<u8>>,
        rows: &Bound<'_, PyAny>,
        limit: f64,
    ) -> PyResult<Vec<bool>> {
        self.transfer(shelf, &names, rows, limit, Use::Read)
    }

    /// Returns what went wrong since this was asked last, each by itself.
    fn troubles(&self) -> Vec<String> {
        self.shared.lock().troubles.take()
    }

    /// Returns what was done, by name.
    fn figures(&self) -> Vec<(&'static str, u64)> {
        let state = self.shared.lock();
        let figures = &state.figures;
        vec![
            ("asked", figures.asked),
            ("found", figures.found),
            ("fetched", figures.fetched),
            ("missed", figures.missed),
            ("stored", figures.stored),
            ("lost", figures.lost),
            ("late", figures.late),
            ("unasked", figures.unasked),
        ]
    }

    /// Ends it: calls that are under way are waited for, each of which keeps to its limit, and others do nothing from now on.
    fn close(&self, py: Python<'_>) {
        let shared = self.shared.clone();
        py.detach(move || {
            let mut state = shared.lock();
            let client = state.client.take();
            let shelves = std::mem::take(&mut state.shelves);
            drop(shared.over.wait_while(state, |state| state.under_way > 0));
            drop((client, shelves));
        });
    }
}

/// Says where a prefix may stop whose first `pages` pages are there; of each other pool how many pages before a stop it needs, none
/// for all of them, and which are there. Returns the stops, and how far each pool goes by itself.
#[pyfunction]
pub(crate) fn engine_stops(pages: usize, pools: Vec<(Option<usize>, Vec<bool>)>) -> (Vec<usize>, Vec<usize>) {
    let pools: Vec<(Needs, Vec<bool>)> =
        pools.into_iter().map(|(last, there)| (last.map_or(Needs::All, Needs::Last), there)).collect();
    let stops = stops(pages, &pools);
    (stops.at, stops.reaches)
}
