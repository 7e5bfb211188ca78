//! A model of Python's, as the engine asks it. What is asked of it is `kvhive.engine.asked`'s to answer.

use crate::ending;
use kvhive_node::engine::Model;
use kvhive_protocol::Layout;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::ops::Range;

/// A model of Python's.
pub(super) struct PyModel {
    /// What answers.
    pub(super) asked: Py<PyAny>,
    pub(super) fingerprint: String,
    pub(super) layout: Layout,
}

/// Keys and values of one request: an object of Python's from the first token on.
pub(super) struct Past {
    room: Option<Py<PyAny>>,
    most_tokens: usize,
}

impl Drop for Past {
    fn drop(&mut self) {
        // It is large: what is dropped without the interpreter is only let go when somebody has it the next time.
        Python::try_attach(|_| drop(self.room.take()));
    }
}

/// Does something with the interpreter held.
fn held<T>(work: impl FnOnce(Python<'_>) -> PyResult<T>) -> PyResult<T> {
    Python::try_attach(work).unwrap_or_else(ending::park)
}

impl PyModel {
    fn room<'p>(&self, py: Python<'_>, past: &'p mut Past) -> PyResult<&'p Py<PyAny>> {
        match past.room {
            Some(ref room) => Ok(room),
            None => Ok(past.room.insert(self.asked.call_method1(py, "begin", (past.most_tokens,))?)),
        }
    }
}

fn numbers(py: Python<'_>, logits: &Bound<'_, PyAny>) -> PyResult<Vec<f32>> {
    PyBuffer::<f32>::get(logits)?.to_vec(py)
}

impl Model for PyModel {
    type Past = Past;
    type Error = PyErr;

    fn name(&self) -> String {
        self.fingerprint.clone()
    }

    fn layout(&self, tokens: u32) -> Layout {
        Layout { tokens, ..self.layout }
    }

    fn tokenize(&self, text: &str) -> PyResult<Vec<u32>> {
        held(|py| self.asked.call_method1(py, "tokenize", (text,))?.extract(py))
    }

    fn detokenize(&self, tokens: &[u32]) -> PyResult<String> {
        held(|py| self.asked.call_method1(py, "detokenize", (tokens.to_vec(),))?.extract(py))
    }

    fn is_end(&self, token: u32) -> PyResult<bool> {
        held(|py| self.asked.call_method1(py, "is_end", (token,))?.extract(py))
    }

    fn begin(&self, most_tokens: usize) -> Past {
        Past { room: None, most_tokens }
    }

    fn compute(&self, past: &mut Past, tokens: &[u32]) -> PyResult<Vec<f32>> {
        held(|py| {
            let room = self.room(py, past)?;
            let logits = self.asked.call_method1(py, "compute", (room, tokens.to_vec()))?;
            numbers(py, logits.bind(py))
        })
    }

    fn decode(&self, past: &mut Past, token: u32) -> PyResult<Vec<f32>> {
        held(|py| {
            let room = self.room(py, past)?;
            let logits = self.asked.call_method1(py, "decode", (room, token))?;
            numbers(py, logits.bind(py))
        })
    }

    fn save(&self, past: &Past, tokens: Range<usize>, block: &mut [u8]) -> PyResult<()> {
        held(|py| {
            let room = past.room.as_ref().ok_or_else(|| PyValueError::new_err("nothing was computed"))?;
            let bytes = self.asked.call_method1(py, "save", (room, tokens.start, tokens.end))?;
            PyBuffer::<u8>::get(bytes.bind(py))?.copy_to_slice(py, block)
        })
    }

    fn load(&self, past: &mut Past, block: &[u8]) -> PyResult<()> {
        held(|py| {
            let room = self.room(py, past)?;
            self.asked.call_method1(py, "load", (room, PyBytes::new(py, block)))?;
            Ok(())
        })
    }

    fn truncate(&self, past: &mut Past, tokens: usize) -> PyResult<()> {
        held(|py| {
            let room = self.room(py, past)?;
            self.asked.call_method1(py, "truncate", (room, tokens))?;
            Ok(())
        })
    }
}
