//! The scheduler's side as Python holds it.

use crate::connection::seconds;
use crate::errors::Failure;
use crate::serving::now;
use kvhive_engines::{Group, Groups, Matched, Planner, PlannerLimits, Report, Scheduled, Wish};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use std::sync::{Mutex, MutexGuard};

/// Reads groups: tokens of a block, and the window of layers that have one.
pub(super) fn groups(groups: &[(u32, Option<u32>)], hash_tokens: u32) -> Result<Groups, Failure> {
    let groups =
        groups.iter().map(|(block_tokens, window)| Group { block_tokens: *block_tokens, window: *window });
    Groups::new(groups.collect(), hash_tokens).map_err(|why| Failure::misuse(why.to_string()))
}

/// Returns a name for what blocks of an engine are besides their tokens.
#[pyfunction]
pub(crate) fn engine_fingerprint(engine: &str, facts: Vec<(String, String)>) -> String {
    kvhive_engines::fingerprint(engine, &facts)
}

/// What an engine's scheduler says of its requests.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EnginePlanner(Mutex<Planner>);

impl EnginePlanner {
    fn lock(&self) -> MutexGuard<'_, Planner> {
        // A step that panicked has left no promise: those are made by its answer.
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Takes in those of a request's hashes that are new.
fn learn(planner: &mut Planner, request: &str, hashes: &Bound<'_, PyList>) -> PyResult<()> {
    let (known, count) = (planner.hashes(request), hashes.len());
    if known == count && known > 0 {
        return Ok(());
    }
    let new = hashes.get_slice(known.min(count), count).extract::<Vec<Vec<u8>>>()?;
    planner.learn(now(), request, count, new);
    Ok(())
}

#[pymethods]
impl EnginePlanner {
    #[new]
    #[pyo3(signature = (*, groups, hash_tokens, ranks, wait, asks, least_tokens, loads, saves, known))]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn new(
        py: Python<'_>,
        groups: Vec<(u32, Option<u32>)>,
        hash_tokens: u32,
        ranks: usize,
        wait: f64,
        asks: usize,
        least_tokens: u32,
        loads: bool,
        saves: bool,
        known: f64,
    ) -> PyResult<EnginePlanner> {
        let make = || -> Result<EnginePlanner, Failure> {
            let (wait, known) = (seconds("wait", wait)?, seconds("known", known)?);
            let limits = PlannerLimits { ranks, wait, asks, least_tokens, loads, saves, known };
            Ok(EnginePlanner(Mutex::new(Planner::new(self::groups(&groups, hash_tokens)?, limits))))
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// Says how many tokens of a request there are beyond those that the engine has; none while that is not known.
    fn matched(
        &self,
        request: &str,
        local: u32,
        tokens: u32,
        hashes: &Bound<'_, PyList>,
    ) -> PyResult<Option<u32>> {
        let mut planner = self.lock();
        learn(&mut planner, request, hashes)?;
        Ok(match planner.matched(now(), request, local, tokens) {
            Matched::Wait => None,
            Matched::Tokens(tokens) => Some(tokens),
        })
    }

    /// Takes in that a request has been given blocks, into which so many promised tokens are loaded.
    fn allocated(&self, py: Python<'_>, request: &str, tables: Vec<Vec<u32>>, tokens: u32) -> PyResult<()> {
        let done = self.lock().allocated(now(), request, tables, tokens);
        done.map_err(|why| Failure::misuse(why.to_string()).raise(py))
    }

    /// Takes in a request's part of the step that comes.
    fn scheduled(
        &self,
        request: &str,
        blocks: Option<Vec<Vec<u32>>>,
        is_whole: bool,
        computed: u32,
        hashes: &Bound<'_, PyList>,
    ) -> PyResult<()> {
        let mut planner = self.lock();
        learn(&mut planner, request, hashes)?;
        planner.scheduled(now(), Scheduled { request, blocks, is_whole, computed });
        Ok(())
    }

    /// Takes in that the engine has taken a request's blocks away.
    fn preempted(&self, request: &str) {
        self.lock().preempted(now(), request);
    }

    /// Takes in what is wished for the blocks of a request that is over: an action's type, version and payload in JSON. Says whether it is
    /// one of kvhive's.
    fn wished(
        &self,
        py: Python<'_>,
        request: &str,
        kind: &str,
        version: &str,
        payload: &str,
        hashes: &Bound<'_, PyList>,
    ) -> PyResult<bool> {
        let wish = Wish::read(kind, version, payload).map_err(|why| Failure::misuse(why).raise(py))?;
        let Some(wish) = wish else { return Ok(false) };
        let mut planner = self.lock();
        learn(&mut planner, request, hashes)?;
        planner.wished(request, wish);
        Ok(true)
    }

    /// Takes in that a request is over.
    fn finished(&self, request: &str) {
        self.lock().finished(request);
    }

    /// Returns what the workers are told with the step that comes.
    fn orders<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let orders = self.lock().orders();
        let bytes = kvhive_engines::encode(&orders);
        bytes.map(|bytes| PyBytes::new(py, &bytes)).map_err(|why| Failure::misuse(why.to_string()).raise(py))
    }

    /// Takes in what one worker answered.
    fn heard(&self, py: Python<'_>, reports: &[u8]) -> PyResult<()> {
        let reports = kvhive_engines::decode::<Report>(reports);
        let reports = reports.map_err(|why| Failure::misuse(why.to_string()).raise(py))?;
        self.lock().heard(reports);
        Ok(())
    }
}
