//! Namespaces and prefixes: how blocks are named.

use crate::errors::{Failure, Kind};
use crate::held::Held;
use crate::layout::PyLayout;
use kvhive_client::{NamespaceClient, Prefix};
use kvhive_protocol::BlockKey;
use kvhive_protocol::trace::{NotAParent, Parent};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;

/// Blocks of one tenant, model, layout and rank.
#[pyclass(frozen, name = "Namespace", module = "kvhive")]
pub(crate) struct PyNamespace {
    pub(crate) blocks: NamespaceClient,
    /// Whose it is; after the blocks, which use its sockets.
    pub(crate) held: Arc<Held>,
}

/// Ordered names of blocks, from token 0.
#[pyclass(frozen, name = "Prefix", module = "kvhive")]
pub(crate) struct PyPrefix {
    pub(crate) names: Arc<Prefix>,
    pub(crate) blocks: NamespaceClient,
    pub(crate) held: Arc<Held>,
}

impl PyNamespace {
    fn prefix(&self, names: Prefix) -> PyPrefix {
        PyPrefix { names: Arc::new(names), blocks: self.blocks.clone(), held: self.held.clone() }
    }
}

#[pymethods]
impl PyNamespace {
    #[getter]
    fn layout(&self) -> PyLayout {
        PyLayout(self.blocks.layout())
    }

    /// The bytes of one block.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.blocks.block_bytes()
    }

    /// Names every full block of `tokens`, from token 0. `extras` are what else changes the tensors: an adapter's id, hashes of
    /// media.
    #[pyo3(signature = (tokens, extras = None))]
    fn keys(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        extras: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyPrefix> {
        let tokens = take_tokens(tokens)?;
        let extras = extras.map_or_else(|| Ok(Vec::new()), |extras| take_bytes("extra", extras))?;
        let extras: Vec<&[u8]> = extras.iter().map(Vec::as_slice).collect();
        Ok(self.prefix(py.detach(|| self.blocks.keys_with(&tokens, &extras))))
    }

    /// Names blocks that an engine has named already, in order from token 0. Its names are keyed into this namespace.
    fn keys_of_hashes(&self, py: Python<'_>, hashes: &Bound<'_, PyAny>) -> PyResult<PyPrefix> {
        let hashes = take_bytes("hash", hashes)?;
        Ok(self.prefix(py.detach(|| self.blocks.prefix_of_engine_hashes(&hashes))))
    }

    /// Takes keys of 32 bytes as they are: chained from token 0, or each on its own. Who makes keys sees to it that no two tenants,
    /// models or layouts share one.
    #[pyo3(signature = (keys, *, chained = true))]
    fn raw_keys(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, chained: bool) -> PyResult<PyPrefix> {
        let keys = take_bytes("key", keys)?;
        let mut taken = Vec::with_capacity(keys.len());
        for (at, key) in keys.iter().enumerate() {
            let key: &[u8; 32] = key.as_slice().try_into().map_err(|_| {
                Failure::misuse(format!("key {at} has {} bytes: a key has 32", key.len())).raise(py)
            })?;
            taken.push(BlockKey::from_bytes(*key));
        }
        Ok(self.prefix(if chained { Prefix::chained(taken) } else { Prefix::loose(taken) }))
    }

    fn __repr__(&self) -> String {
        format!("<kvhive.Namespace of {}>", self.layout().__repr__())
    }
}

#[pymethods]
impl PyPrefix {
    fn __len__(&self) -> usize {
        self.names.len()
    }

    /// Names the first `blocks` of them; all, where they are fewer.
    fn first(&self, blocks: usize) -> PyPrefix {
        let names = Arc::new(self.names.first(blocks));
        PyPrefix { names, blocks: self.blocks.clone(), held: self.held.clone() }
    }

    /// Returns the same prefix for calls that are parts of a trace: what a W3C `traceparent` says. One that is not sampled is traced by
    /// nobody.
    fn traced(&self, py: Python<'_>, traceparent: &str) -> PyResult<PyPrefix> {
        let parent: Parent =
            traceparent.parse().map_err(|error: NotAParent| Failure::misuse(error.to_string()).raise(py))?;
        let blocks = match parent {
            Parent::Sampled(context) => self.blocks.traced(context),
            Parent::Unsampled => self.blocks.clone(),
        };
        Ok(PyPrefix { names: self.names.clone(), blocks, held: self.held.clone() })
    }

    /// The keys, 32 bytes each.
    #[getter]
    fn keys<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.names.keys().iter().map(|key| PyBytes::new(py, key.as_bytes())).collect()
    }

    fn __repr__(&self) -> String {
        format!("<kvhive.Prefix of {} blocks>", self.names.len())
    }
}

/// Reads a sequence of bytes, each of which is a `what`.
fn take_bytes(what: &str, given: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u8>>> {
    let refused = |shown: String| {
        Failure::new(Kind::WrongType, format!("{shown}: allowed is bytes, in a sequence")).raise(given.py())
    };
    let Ok(each) = given.try_iter() else {
        return Err(refused(format!("{what}s are {}", given.get_type())));
    };
    let mut taken = Vec::new();
    for (at, one) in each.enumerate() {
        let one = one?;
        taken.push(one.extract().map_err(|_| refused(format!("{what} {at} is {}", one.get_type())))?);
    }
    Ok(taken)
}

/// Reads token ids of any integer array or sequence.
fn take_tokens(given: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let py = given.py();
    if let Ok(tokens) = PyBuffer::<u32>::get(given) {
        return one_axis(&tokens).map_err(|failure| failure.raise(py)).and_then(|()| tokens.to_vec(py));
    }
    let wide = if let Ok(tokens) = PyBuffer::<i64>::get(given) {
        one_axis(&tokens).map_err(|failure| failure.raise(py))?;
        tokens.to_vec(py)?
    } else if given.hasattr("tolist")? {
        let listed = given.call_method0("tolist")?.extract::<Vec<i64>>();
        listed.map_err(|error| {
            let what = given.get_type().to_string();
            let message = format!("tokens are whole numbers, in a sequence or an array, not {what}: {error}");
            Failure::new(Kind::WrongType, message).raise(py)
        })?
    } else {
        given.extract::<Vec<i64>>().map_err(|error| {
            let what = given.get_type().to_string();
            let message = format!("tokens are whole numbers, in a sequence or an array, not {what}: {error}");
            Failure::new(Kind::WrongType, message).raise(py)
        })?
    };
    let narrow = |(at, token): (usize, i64)| {
        u32::try_from(token).map_err(|_| {
            Failure::misuse(format!("token {at} is {token}: allowed is 0 to {}", u32::MAX)).raise(py)
        })
    };
    wide.into_iter().enumerate().map(narrow).collect()
}

fn one_axis<T: pyo3::buffer::Element>(tokens: &PyBuffer<T>) -> Result<(), Failure> {
    match tokens.dimensions() {
        1 => Ok(()),
        axes => Err(Failure::misuse(format!("tokens have {axes} axes: allowed is 1"))),
    }
}
