//! What decides, without a cluster: codecs, the simulator and the workload predictor, as Python calls them.

use crate::buffer::Lent;
use crate::connection::codec;
use crate::errors::Failure;
use crate::layout::PyLayout;
use crate::regions::Use;
use kvhive_cache::policy::Strategy;
use kvhive_cache::simulate::found_by_each;
use kvhive_control::predictor::{self, Figure};
use kvhive_protocol::BlockKey;
use kvhive_protocol::scaling::{OBSERVATION_SECONDS, Observation};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::sync::{Mutex, MutexGuard};

/// Blocks of a simulated pool at most.
const MAX_CAPACITY: u32 = 1 << 24;

/// Returns the bytes that a codec makes of one block.
#[pyfunction]
pub(crate) fn encode<'py>(
    py: Python<'py>,
    name: &str,
    layout: &PyLayout,
    raw: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let codec = codec(name).map_err(|failure| failure.raise(py))?;
    let lent = Lent::take(raw, layout.0.block_bytes().unwrap_or_default(), Use::Read)?;
    let stored = py.detach(move || {
        let slices = lent.slices();
        let [raw] = slices.as_slice() else { return Err(one_block(slices.len())) };
        let mut stored = Vec::new();
        kvhive_client::codec::encode(codec, &layout.0, raw, &mut stored).map_err(unusable)?;
        Ok(stored)
    });
    stored.map(|stored| PyBytes::new(py, &stored)).map_err(|failure| failure.raise(py))
}

/// Writes the block that a codec made these bytes of.
#[pyfunction]
pub(crate) fn decode(
    py: Python<'_>,
    name: &str,
    layout: &PyLayout,
    stored: &[u8],
    raw: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let codec = codec(name).map_err(|failure| failure.raise(py))?;
    let mut lent = Lent::take(raw, layout.0.block_bytes().unwrap_or_default(), Use::Write)?;
    let decoded = py.detach(move || {
        let mut slices = lent.slices_mut();
        let [raw] = slices.as_mut_slice() else { return Err(one_block(slices.len())) };
        kvhive_client::codec::decode(codec, &layout.0, stored, raw).map_err(unusable)
    });
    decoded.map_err(|failure| failure.raise(py))
}

/// Returns how many bytes a codec makes of any block of a layout; none where that depends on the block.
#[pyfunction]
pub(crate) fn stored_bytes(py: Python<'_>, name: &str, layout: &PyLayout) -> PyResult<Option<u64>> {
    let codec = codec(name).map_err(|failure| failure.raise(py))?;
    Ok(kvhive_client::codec::stored_bytes(codec, &layout.0))
}

fn one_block(blocks: usize) -> Failure {
    Failure::misuse(format!("memory of {blocks} blocks: a codec takes one at a time"))
}

fn unusable(error: impl std::fmt::Display) -> Failure {
    Failure::misuse(error.to_string())
}

/// Serves requests, each the keys of its blocks from token 0 on, with a pool of so many blocks that is empty at first. Returns how many
/// blocks each found.
#[pyfunction]
pub(crate) fn replay(
    py: Python<'_>,
    requests: Vec<Vec<Vec<u8>>>,
    strategy: &str,
    capacity: u32,
) -> PyResult<Vec<u64>> {
    let simulated = py.detach(|| simulate(&requests, strategy, capacity));
    simulated.map_err(|failure| failure.raise(py))
}

fn simulate(requests: &[Vec<Vec<u8>>], strategy: &str, capacity: u32) -> Result<Vec<u64>, Failure> {
    if !(1..=MAX_CAPACITY).contains(&capacity) {
        return Err(Failure::misuse(format!("capacity is {capacity}: allowed is 1 to {MAX_CAPACITY}")));
    }
    let strategy: Strategy = strategy.parse().map_err(unusable)?;
    let keys_of = |request: &Vec<Vec<u8>>| request.iter().map(|key| key_of(key)).collect();
    let requests: Vec<Vec<BlockKey>> = requests.iter().map(keys_of).collect::<Result<_, _>>()?;
    found_by_each(requests.iter().map(Vec::as_slice), strategy, capacity).map_err(unusable)
}

fn key_of(key: &[u8]) -> Result<BlockKey, Failure> {
    let key: &[u8; 32] =
        key.try_into().map_err(|_| Failure::misuse(format!("a key has {} bytes: it has 32", key.len())))?;
    Ok(BlockKey::from_bytes(*key))
}

/// The coordinator's workload predictor, with a history of its own.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Predictor(Mutex<predictor::Predictor>);

impl Predictor {
    fn lock(&self) -> MutexGuard<'_, predictor::Predictor> {
        // It has no state between its steps.
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

#[pymethods]
impl Predictor {
    #[new]
    fn new() -> Predictor {
        Predictor(Mutex::new(predictor::Predictor::new()))
    }

    /// Seconds of one observation.
    #[getter]
    fn step_seconds(&self) -> u64 {
        OBSERVATION_SECONDS
    }

    /// Learns how one stretch of time was; says whether it was news.
    fn update_pattern(
        &self,
        py: Python<'_>,
        at_seconds: u64,
        asked: u64,
        covered: u64,
        new_bytes: u64,
    ) -> bool {
        let bucket = at_seconds / OBSERVATION_SECONDS;
        py.detach(|| self.lock().update_pattern(&Observation { bucket, asked, covered, new_bytes }))
    }

    /// Returns what to expect of each figure so many observations ahead; nothing before anything was observed.
    fn forecast<'py>(&self, py: Python<'py>, steps: u32) -> PyResult<Bound<'py, PyDict>> {
        let figures = PyDict::new(py);
        let predictor = self.lock();
        for figure in Figure::ALL {
            let Some(forecast) = predictor.forecast(figure, steps) else { continue };
            let one = PyDict::new(py);
            one.set_item("value", forecast.value)?;
            one.set_item("low", forecast.low)?;
            one.set_item("high", forecast.high)?;
            one.set_item("mase", predictor.score(figure, steps).mase)?;
            one.set_item("season_seconds", predictor.season_seconds(figure))?;
            figures.set_item(figure.name(), one)?;
        }
        Ok(figures)
    }
}
