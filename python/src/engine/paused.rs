//! An engine that serves nothing for a while, as Python has it.

use super::model::PyModel;
use crate::connection::{Connection, codec, strategy};
use crate::errors::{Failure, Kind};
use crate::held::Held;
use crate::operation::Operation;
use kvhive_node::engine::{Advice, Memory, Paused, Target};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Keeps an engine from serving until it is resumed.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EnginePause {
    paused: Mutex<Option<Arc<Paused<PyModel>>>>,
    held: Arc<Held>,
}

/// What settings serve better.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct EngineAdvice(Arc<Advice>);

#[pymethods]
impl EngineAdvice {
    /// All of it, as JSON.
    #[getter]
    fn json(&self) -> String {
        serde_json::to_string(&*self.0).expect("names and numbers are JSON")
    }
}

impl EnginePause {
    pub(super) fn new(paused: Paused<PyModel>, held: Arc<Held>) -> EnginePause {
        EnginePause { paused: Mutex::new(Some(Arc::new(paused))), held }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<Paused<PyModel>>>> {
        self.paused.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn paused(&self) -> Result<Arc<Paused<PyModel>>, Failure> {
        self.slot().clone().ok_or_else(|| Failure::new(Kind::Closed, "the engine goes on already".to_owned()))
    }
}

#[pymethods]
impl EnginePause {
    /// Looks for settings that serve recent traffic better.
    fn advise(
        &self,
        py: Python<'_>,
        target: &str,
        strategy: &str,
        frames: BTreeMap<u64, u64>,
        codecs: Vec<String>,
    ) -> PyResult<Operation> {
        let begin = || -> Result<Operation, Failure> {
            let target: Target = target.parse().map_err(|why| Failure::new(Kind::Misuse, why))?;
            let codecs = codecs.iter().map(|name| codec(name)).collect::<Result<_, _>>()?;
            let memory = Memory { strategy: self::strategy(strategy)?, frames, codecs };
            let paused = self.paused()?;
            Ok(Operation::new(&self.held, async move {
                Ok(EngineAdvice(Arc::new(paused.advise(target, memory).await?)))
            }))
        };
        begin().map_err(|failure| failure.raise(py))
    }

    /// Takes what is advised.
    fn take(&self, py: Python<'_>, advice: &EngineAdvice) -> PyResult<Operation> {
        let (paused, advice) = (self.paused().map_err(|failure| failure.raise(py))?, advice.0.clone());
        Ok(Operation::new(&self.held, async move { Ok(paused.take(&advice).await?) }))
    }

    /// Has another strategy decide which blocks leave.
    fn set_strategy(&self, py: Python<'_>, name: &str) -> PyResult<Operation> {
        let begin = || Ok((self.paused()?, strategy(name)?));
        let (paused, strategy) = begin().map_err(|failure: Failure| failure.raise(py))?;
        Ok(Operation::new(&self.held, async move { Ok(paused.set_strategy(strategy).await?) }))
    }

    /// Forgets every block of all tenants that were used here.
    fn clear(&self, py: Python<'_>) -> PyResult<Operation> {
        let paused = self.paused().map_err(|failure| failure.raise(py))?;
        Ok(Operation::new(&self.held, async move { Ok(paused.clear().await?) }))
    }

    /// Goes on with another client, of a cluster that has these tenants.
    fn renew(&self, py: Python<'_>, connection: &Connection, tenants: Vec<String>) -> PyResult<()> {
        self.paused().map_err(|failure| failure.raise(py))?.renew(connection.held().client(), tenants);
        Ok(())
    }

    /// Has the engine go on.
    fn resume(&self) {
        drop(self.slot().take());
    }
}
