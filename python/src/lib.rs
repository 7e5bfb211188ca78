//! The native half of the Python package `kvhive`: the client's calls as operations that are waited for or driven beside an event
//! loop, memory of Python objects as slices, and a node inside the process. What users see is `kvhive/`, beside this folder.

mod buffer;
mod connection;
mod ending;
mod engine;
mod errors;
mod held;
mod layout;
mod machines;
mod names;
mod node;
mod operation;
mod pins;
mod regions;
mod reports;
mod serving;
mod threads;
mod transfers;
mod worker;

use pyo3::prelude::*;

/// The native half of `kvhive`.
#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::connection::Connection;
    #[pymodule_export]
    use crate::ending::interpreter_ends;
    #[pymodule_export]
    use crate::engine::{Engine, EngineAdvice, EngineAnswer, EnginePause};
    #[pymodule_export]
    use crate::layout::PyLayout;
    #[pymodule_export]
    use crate::machines::{Predictor, decode, encode, replay, stored_bytes};
    #[pymodule_export]
    use crate::names::{PyNamespace, PyPrefix};
    #[pymodule_export]
    use crate::node::Node;
    #[pymodule_export]
    use crate::operation::Operation;
    #[pymodule_export]
    use crate::reports::{PyFetchReport, PyMatch, PyStoreReport};
    #[pymodule_export]
    use crate::serving::{
        EngineCourier, EngineObjects, EnginePages, EnginePlanner, EngineTier, engine_fingerprint,
        engine_stops,
    };

    #[pymodule_export]
    use crate::worker::serve_gpu_worker;

    /// The version of the package.
    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python's name for it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
