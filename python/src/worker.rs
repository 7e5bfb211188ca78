//! The process that makes a GPU's calls of NCCL, where a node is inside a process of Python's: the interpreter with this module and nothing
//! else of the package, which [`crate::node`] says how to start.

use kvhive_gpu::worker;
use kvhive_node::NcclConfig;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::os::fd::AsFd;
use std::path::PathBuf;

/// How a node's GPUs give blocks to other nodes' by NCCL, as the stub says.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Nccl {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    after_bytes: u64,
    guest_bytes: u64,
}

impl From<Nccl> for NcclConfig {
    fn from(nccl: Nccl) -> NcclConfig {
        let Nccl { program, arguments, environment, after_bytes, guest_bytes } = nccl;
        NcclConfig { arguments, environment, after_bytes, guest_bytes, ..NcclConfig::of(program) }
    }
}

/// Works for the node whose socket is standard input, and for nobody else in this process.
#[pyfunction]
pub(crate) fn serve_gpu_worker(py: Python<'_>) -> PyResult<()> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let served = py.detach(|| worker::serve(socket));
    served.map_err(|error| {
        PyRuntimeError::new_err(format!("a GPU's worker is started by its node alone, and ends: {error}"))
    })
}
