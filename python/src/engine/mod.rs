//! The engine of `kvhive_node`, with a model of Python's: its calls as operations.

mod model;
mod paused;

pub(crate) use paused::{EngineAdvice, EnginePause};

use crate::connection::{Connection, codec, seconds};
use crate::errors::{Failure, Kind};
use crate::held::Held;
use crate::layout::PyLayout;
use crate::operation::Operation;
use kvhive_node::engine::{self, Answer, EngineConfig, EngineError, NewTenants, Request};
use model::PyModel;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Serves requests with a model of Python's, and keeps what it computes.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Engine {
    engine: engine::Engine<PyModel>,
    /// Whose sockets it uses; after the engine.
    held: Mutex<Arc<Held>>,
}

/// What an engine answers; times in seconds.
#[pyclass(frozen, get_all, module = "kvhive._native")]
pub(crate) struct EngineAnswer {
    text: String,
    prompt_tokens: usize,
    cached_tokens: usize,
    generated_tokens: usize,
    session_turn: Option<u64>,
    waited: f64,
    took: f64,
    stages: BTreeMap<&'static str, f64>,
}

impl From<Answer> for EngineAnswer {
    fn from(answer: Answer) -> EngineAnswer {
        let stages = answer.stages;
        let stages: [(&str, Duration); 5] = [
            ("match", stages.matching),
            ("fetch", stages.fetch),
            ("compute", stages.compute),
            ("generate", stages.generate),
            ("store", stages.store),
        ];
        EngineAnswer {
            text: answer.text,
            prompt_tokens: answer.prompt_tokens,
            cached_tokens: answer.cached_tokens,
            generated_tokens: answer.tokens.len(),
            session_turn: answer.session_turn,
            waited: answer.waited.as_secs_f64(),
            took: answer.took.as_secs_f64(),
            stages: stages.into_iter().map(|(name, took)| (name, took.as_secs_f64())).collect(),
        }
    }
}

impl From<EngineError<PyErr>> for Failure {
    fn from(error: EngineError<PyErr>) -> Failure {
        match error {
            EngineError::Model(raised) => Failure::raised(raised),
            EngineError::Cache(error) => Failure::from(error),
            EngineError::Prompt { tokens, allowed, max_tokens } => Failure::new(
                Kind::Misuse,
                format!("text has {tokens} tokens: 1 to {allowed} are allowed, with max_tokens={max_tokens}"),
            ),
            EngineError::NewTokens { .. } | EngineError::Config(_) => {
                Failure::new(Kind::Misuse, error.to_string())
            }
            EngineError::Full { .. } => Failure::new(Kind::Busy, error.to_string()),
            EngineError::Closed | EngineError::Ending => Failure::new(Kind::Closed, error.to_string()),
            EngineError::Thread(_) => Failure::new(Kind::Runtime, error.to_string()),
        }
    }
}

/// What became of one request of a batch: it is an exception where it was not answered.
struct OfBatch(Result<Answer, EngineError<PyErr>>);

impl<'py> IntoPyObject<'py> for OfBatch {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.0 {
            Ok(answer) => Ok(Bound::new(py, EngineAnswer::from(answer))?.into_any()),
            Err(error) => Ok(Failure::from(error).raise(py).into_value(py).into_bound(py).into_any()),
        }
    }
}

/// A request as Python gives it: text, priority, tokens of the answer, tenant, session.
type Asked = (String, i64, Option<usize>, Option<String>, Option<String>);

fn request((prompt, priority, max_new_tokens, tenant, session): Asked) -> Request {
    Request { prompt, priority, max_new_tokens, tenant, session }
}

fn new_tenants(name: &str) -> Result<NewTenants, Failure> {
    match name {
        "unknown" => Ok(NewTenants::Unknown),
        "isolated" => Ok(NewTenants::Isolated),
        "sharing" => Ok(NewTenants::Sharing),
        _ => Err(Failure::misuse(format!("new_tenants {name:?}: allowed is unknown, isolated, sharing"))),
    }
}

impl Engine {
    fn held(&self) -> MutexGuard<'_, Arc<Held>> {
        self.held.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn operation<T>(&self, work: impl Future<Output = Result<T, Failure>> + Send + 'static) -> Operation
    where
        T: for<'py> IntoPyObject<'py> + Send + 'static,
    {
        Operation::new(&self.held(), work)
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    #[pyo3(signature = (connection, model, fingerprint, layout, *, max_tokens, codec, cache_wait, pending_bytes, new_tenants))]
    fn new(
        py: Python<'_>,
        connection: &Connection,
        model: Py<PyAny>,
        fingerprint: String,
        layout: &PyLayout,
        max_tokens: usize,
        codec: &str,
        cache_wait: f64,
        pending_bytes: u64,
        new_tenants: &str,
    ) -> PyResult<Engine> {
        let held = connection.held().clone();
        let make = || -> Result<Engine, Failure> {
            let config = EngineConfig {
                block_tokens: layout.0.tokens,
                max_tokens,
                codec: self::codec(codec)?,
                cache_wait: seconds("cache_wait", cache_wait)?,
                pending_bytes,
                new_tenants: self::new_tenants(new_tenants)?,
            };
            let model = PyModel { asked: model, fingerprint, layout: layout.0 };
            let engine = engine::Engine::new(held.client(), "default", model, config)?;
            Ok(Engine { engine, held: Mutex::new(held) })
        };
        make().map_err(|failure| failure.raise(py))
    }

    /// Answers a request; its place among those that are as urgent is that of this call.
    fn serve(&self, asked: Asked) -> Operation {
        let answer = self.engine.serve(request(asked));
        self.operation(async move { Ok(EngineAnswer::from(answer.await?)) })
    }

    /// Answers a batch, or refuses it for the first request that cannot be served as it is. Each answer is one, or an exception.
    fn serve_all(&self, asked: Vec<Asked>, in_line: usize) -> Operation {
        let engine = self.engine.clone();
        self.operation(async move {
            let prepared = engine.prepare(asked.into_iter().map(request)).await;
            let prepared = prepared.into_iter().collect::<Result<Vec<_>, _>>()?;
            let answers = engine.serve_all(prepared.into_iter().map(Ok).collect(), in_line).await;
            Ok(answers.into_iter().map(OfBatch).collect::<Vec<OfBatch>>())
        })
    }

    /// Says how many blocks of a prompt are there.
    fn covered(&self, prompt: String, tenant: Option<String>) -> Operation {
        let engine = self.engine.clone();
        self.operation(async move { Ok(engine.covered(&prompt, tenant.as_deref()).await?) })
    }

    /// Says that a conversation is over; returns whether it was known.
    fn end_session(&self, name: String) -> Operation {
        let engine = self.engine.clone();
        self.operation(async move { Ok(engine.end_session(&name).await) })
    }

    /// Waits until what was computed so far is stored.
    fn settled(&self) -> Operation {
        let engine = self.engine.clone();
        self.operation(async move {
            engine.settled().await;
            Ok(())
        })
    }

    /// Serves what waits, stores what was computed, and takes no request any more.
    fn end(&self) -> Operation {
        let engine = self.engine.clone();
        self.operation(async move {
            engine.end().await;
            Ok(())
        })
    }

    /// Waits for the request that is being served, and has no other begin.
    fn pause(&self) -> Operation {
        let (engine, held) = (self.engine.clone(), self.held().clone());
        self.operation(async move { Ok(EnginePause::new(engine.pause().await?, held)) })
    }

    /// Goes on with the sockets of another client, which a pause was told of.
    fn holds(&self, connection: &Connection) {
        *self.held() = connection.held().clone();
    }

    /// Returns what it has done, by name; latencies in milliseconds.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.engine.stats();
        let figures = PyDict::new(py);
        for (name, count) in [
            ("requests", stats.requests),
            ("hits", stats.hits),
            ("cache_failures", stats.cache_failures),
            ("prompt_tokens", stats.prompt_tokens),
            ("cached_tokens", stats.cached_tokens),
            ("generated_tokens", stats.generated_tokens),
        ] {
            figures.set_item(name, count)?;
        }
        figures.set_item("is_resting", stats.is_resting)?;
        let took = stats.took;
        for (name, ms) in [("avg", took.avg), ("p50", took.p50), ("p95", took.p95), ("p99", took.p99)] {
            figures.set_item(name, ms)?;
        }
        Ok(figures)
    }
}
