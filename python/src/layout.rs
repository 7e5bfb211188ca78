//! A layout as Python names it.

use crate::errors::{Failure, whole};
use kvhive_protocol::{AxisOrder, Dtype, Layout};
use pyo3::prelude::*;

/// Names of number formats; the first one of a format is shown.
const DTYPES: [(&str, Dtype); 10] = [
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::Bf16),
    ("float32", Dtype::F32),
    ("float8_e4m3fn", Dtype::Fp8E4M3),
    ("uint8", Dtype::U8),
    ("f16", Dtype::F16),
    ("bf16", Dtype::Bf16),
    ("f32", Dtype::F32),
    ("fp8", Dtype::Fp8E4M3),
    ("u8", Dtype::U8),
];

/// Names of orders of axes.
const ORDERS: [(&str, AxisOrder); 3] = [
    ("layers-first", AxisOrder::LayersFirst),
    ("kv-first", AxisOrder::KvFirst),
    ("packed", AxisOrder::Packed),
];

fn named<T: Copy>(what: &str, name: &str, known: &[(&str, T)]) -> Result<T, Failure> {
    known.iter().find(|(known, _)| *known == name).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        Failure::misuse(format!("{what} {name:?}: allowed is {}", names.join(", ")))
    })
}

fn name_of<T: Copy + PartialEq>(value: T, known: &[(&'static str, T)]) -> &'static str {
    known.iter().find(|(_, known)| *known == value).map_or("", |(name, _)| *name)
}

/// Takes a size of which there is something.
fn size(what: &str, given: &Bound<'_, PyAny>) -> PyResult<u32> {
    whole(what, given, (1, u32::MAX))
}

/// What a block's bytes mean: its shape, its numbers and the order of its axes.
#[pyclass(frozen, eq, hash, name = "Layout", module = "kvhive")]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyLayout(pub(crate) Layout);

#[pymethods]
impl PyLayout {
    #[new]
    #[pyo3(signature = (*, layers, kv_heads, head_dim, tokens, dtype = "float16", order = "layers-first"))]
    fn new(
        py: Python<'_>,
        layers: &Bound<'_, PyAny>,
        kv_heads: &Bound<'_, PyAny>,
        head_dim: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
        dtype: &str,
        order: &str,
    ) -> PyResult<PyLayout> {
        let (layers, kv_heads) = (size("layers", layers)?, size("kv_heads", kv_heads)?);
        let (head_dim, tokens) = (size("head_dim", head_dim)?, size("tokens", tokens)?);
        let make = || -> Result<PyLayout, Failure> {
            let layout = Layout {
                layers,
                kv_heads,
                head_dim,
                tokens,
                dtype: named("dtype", dtype, &DTYPES)?,
                order: named("order", order, &ORDERS)?,
            };
            PyLayout::checked(layout)
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// Makes a layout of blocks whose bytes mean nothing to anybody but their owner.
    #[staticmethod]
    fn opaque(
        py: Python<'_>,
        block_bytes: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
    ) -> PyResult<PyLayout> {
        let (block_bytes, tokens) = (size("block_bytes", block_bytes)?, size("tokens", tokens)?);
        PyLayout::checked(Layout::opaque(block_bytes, tokens)).map_err(|failure| failure.raise(py))
    }

    #[getter]
    fn layers(&self) -> u32 {
        self.0.layers
    }

    #[getter]
    fn kv_heads(&self) -> u32 {
        self.0.kv_heads
    }

    #[getter]
    fn head_dim(&self) -> u32 {
        self.0.head_dim
    }

    #[getter]
    fn tokens(&self) -> u32 {
        self.0.tokens
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        name_of(self.0.dtype, &DTYPES)
    }

    #[getter]
    fn order(&self) -> &'static str {
        name_of(self.0.order, &ORDERS)
    }

    /// The bytes of one block.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.0.block_bytes().expect("checked when it was made")
    }

    /// What every block of this layout carries, so that it is never taken for one of another.
    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint().to_string()
    }

    pub(crate) fn __repr__(&self) -> String {
        let Layout { layers, kv_heads, head_dim, tokens, .. } = self.0;
        let (dtype, order) = (self.dtype(), self.order());
        format!(
            "Layout(layers={layers}, kv_heads={kv_heads}, head_dim={head_dim}, tokens={tokens}, dtype='{dtype}', order='{order}')"
        )
    }
}

impl PyLayout {
    fn checked(layout: Layout) -> Result<PyLayout, Failure> {
        match layout.block_bytes() {
            Some(_) => Ok(PyLayout(layout)),
            None => Err(Failure::misuse(format!("a block of {layout:?} has no usable size"))),
        }
    }
}
