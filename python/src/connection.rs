//! A connected client: every verb as an operation.

use crate::buffer::Lent;
use crate::errors::{Failure, Kind, whole};
use crate::held::Held;
use crate::layout::PyLayout;
use crate::names::{PyNamespace, PyPrefix};
use crate::operation::Operation;
use crate::pins;
use crate::regions::Use;
use crate::reports::{self, PyFetchReport, PyMatch, PyStoreReport};
use crate::threads::Crew;
use crate::transfers;
use kvhive_client::{Client, ClientConfig, NamespaceClient, Prefix, StoreOptions};
use kvhive_protocol::block::Codec;
use kvhive_protocol::control::Command;
use kvhive_protocol::data::{About, Ack, Hint};
use kvhive_protocol::strategy::Strategy;
use kvhive_protocol::{Change, Reason, RulesChange};
use kvhive_tls::{Tls, TlsFiles};
use pyo3::prelude::*;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The longest time that a caller may set.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Blocks of a prefix, at most.
const MOST_BLOCKS: u32 = u32::MAX;

/// A connected client.
#[pyclass(frozen, module = "kvhive._native")]
pub(crate) struct Connection(Arc<Held>);

/// Reads certificate, key and authorities.
pub(crate) fn tls(
    files: Option<(PathBuf, PathBuf, PathBuf)>,
    host: Option<String>,
) -> Result<Option<Tls>, Failure> {
    let Some((certificate, key, authorities)) = files else { return Ok(None) };
    Ok(Some(Tls::load(TlsFiles { certificate, key, authorities, host })?))
}

/// Reads a time in seconds that `what` names.
pub(crate) fn seconds(what: &str, seconds: f64) -> Result<Duration, Failure> {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| !time.is_zero() && *time <= LONGEST);
    time.ok_or_else(|| {
        Failure::misuse(format!("{what} {seconds}: allowed is more than 0 and at most {}", LONGEST.as_secs()))
    })
}

impl Connection {
    /// Returns its client, and what serves that.
    pub(crate) fn held(&self) -> &Arc<Held> {
        &self.0
    }

    fn blocks(
        &self,
        prefix: &PyPrefix,
        timeout: Option<f64>,
    ) -> Result<(NamespaceClient, Arc<Prefix>), Failure> {
        if !Arc::ptr_eq(&prefix.held, &self.0) {
            return Err(Failure::misuse(
                "the prefix was named by another client: name it by this one's namespace",
            ));
        }
        let blocks = match timeout {
            Some(timeout) => prefix.blocks.within(seconds("timeout", timeout)?),
            None => prefix.blocks.clone(),
        };
        Ok((blocks, prefix.names.clone()))
    }
}

/// Returns the blocks from `start` on that the memory is for.
fn range(prefix: &Prefix, start: usize, lent: &Lent) -> Result<Range<usize>, Failure> {
    let (blocks, given) = (prefix.len(), lent.blocks());
    let end = start.checked_add(given).filter(|end| *end <= blocks);
    end.map(|end| start..end).ok_or_else(|| {
        Failure::misuse(format!(
            "memory of {given} blocks from block {start} on, for a prefix of {blocks} blocks"
        ))
    })
}

fn ack(name: &str) -> Result<Ack, Failure> {
    match name {
        "primary" => Ok(Ack::Primary),
        "quorum" => Ok(Ack::Quorum),
        "all" => Ok(Ack::All),
        _ => Err(Failure::misuse(format!("ack {name:?}: allowed is primary, quorum, all"))),
    }
}

/// Returns the codec of this name.
pub(crate) fn codec(name: &str) -> Result<Codec, Failure> {
    Codec::ALL.into_iter().find(|codec| codec.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Codec::ALL.iter().map(|codec| codec.name()).collect();
        Failure::misuse(format!("codec {name:?}: allowed is {}", names.join(", ")))
    })
}

/// Returns the strategy of this name.
pub(crate) fn strategy(name: &str) -> Result<Strategy, Failure> {
    name.parse().map_err(|_| {
        let names: Vec<&str> = Strategy::ALL.iter().map(|strategy| strategy.name()).collect();
        Failure::new(Kind::Misuse, format!("strategy {name:?}: allowed is {}", names.join(", ")))
    })
}

fn hint(name: &str, returns: Option<u32>) -> Result<Hint, Failure> {
    match (name, returns) {
        ("none", None) => Ok(Hint::None),
        ("over", None) => Ok(Hint::Over),
        ("pending", None) => Ok(Hint::Pending),
        ("returns", Some(seconds)) => Ok(Hint::Returns(seconds)),
        ("returns", None) => Err(Failure::misuse("hint \"returns\" needs returns_after, in seconds")),
        ("none" | "over" | "pending", Some(_)) => {
            Err(Failure::misuse(format!("hint {name:?} takes no returns_after: only \"returns\" does")))
        }
        _ => Err(Failure::misuse(format!("hint {name:?}: allowed is none, over, pending, returns"))),
    }
}

#[pymethods]
impl Connection {
    /// Connects to the first coordinator that answers.
    #[staticmethod]
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn connect(
        py: Python<'_>,
        coordinators: Vec<String>,
        token: Vec<u8>,
        tls: Option<(PathBuf, PathBuf, PathBuf)>,
        connect_timeout: f64,
        request_timeout: f64,
        connections_per_member: usize,
        hold: f64,
        raw_reads: bool,
        gpu_stages: bool,
        near: Option<String>,
    ) -> PyResult<Operation> {
        let begin = || -> Result<Operation, Failure> {
            let config = ClientConfig {
                connect_timeout: seconds("connect_timeout", connect_timeout)?,
                request_timeout: seconds("request_timeout", request_timeout)?,
                connections_per_member,
                hold: seconds("hold", hold)?,
                tls: self::tls(tls, None)?,
                raw_reads,
                gpu_stages,
                near,
                ..ClientConfig::new(coordinators, token)
            };
            let crew = Crew::of_process()?;
            let held = crew.clone();
            Ok(Operation::first(crew, async move {
                Ok(Connection(Arc::new(Held::new(Client::connect(config).await?, held))))
            }))
        };
        begin().map_err(|failure| failure.raise(py))
    }

    /// Opens a namespace.
    fn namespace(
        &self,
        py: Python<'_>,
        tenant: &str,
        model: &str,
        layout: &PyLayout,
        rank: &Bound<'_, PyAny>,
    ) -> PyResult<PyNamespace> {
        let rank = whole("rank", rank, (0, u32::MAX))?;
        if model.is_empty() {
            let what =
                "model '': allowed is a name of the weights; those that differ must have names that do";
            return Err(Failure::misuse(what).raise(py));
        }
        match self.0.client().namespace(tenant, model, layout.0, rank) {
            Ok(blocks) => Ok(PyNamespace { blocks, held: self.0.clone() }),
            Err(error) => Err(Failure::from(error).raise(py)),
        }
    }

    /// Says how far the cluster covers a prefix.
    fn match_prefix(&self, py: Python<'_>, prefix: &PyPrefix, timeout: Option<f64>) -> PyResult<Operation> {
        let (blocks, names) = self.blocks(prefix, timeout).map_err(|failure| failure.raise(py))?;
        Ok(Operation::new(&self.0, async move { Ok(PyMatch::from(blocks.match_prefix(&names).await?)) }))
    }

    /// Fetches blocks of a prefix, from block `start` on, into memory of Python objects.
    fn fetch_into(
        &self,
        py: Python<'_>,
        prefix: &PyPrefix,
        targets: &Bound<'_, PyAny>,
        start: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Operation> {
        let start = whole("start", start, (0, MOST_BLOCKS))? as usize;
        let (blocks, names) = self.blocks(prefix, timeout).map_err(|failure| failure.raise(py))?;
        let mut lent = Lent::take_anywhere(targets, blocks.block_bytes(), Use::Write)?;
        let range = range(&names, start, &lent).map_err(|failure| failure.raise(py))?;
        Ok(Operation::lending(&self.0, async move {
            let report = transfers::fetch(&blocks, &names, range, (&mut lent, 0)).await?;
            Ok((PyFetchReport::of(&report, start), lent))
        }))
    }

    /// Stores memory of Python objects as blocks of a prefix, from block `start` on.
    #[allow(clippy::too_many_arguments, reason = "as many as the stub names: Python gives them by name")]
    fn store_from(
        &self,
        py: Python<'_>,
        prefix: &PyPrefix,
        sources: &Bound<'_, PyAny>,
        start: &Bound<'_, PyAny>,
        ack: Option<&str>,
        codec: Option<&str>,
        about: (u32, u32, &str, Option<u32>),
        timeout: Option<f64>,
    ) -> PyResult<Operation> {
        let start = whole("start", start, (0, MOST_BLOCKS))? as usize;
        let options = || -> Result<StoreOptions, Failure> {
            let (input_tokens, output_tokens, hint, returns) = about;
            Ok(StoreOptions {
                ack: ack.map(self::ack).transpose()?,
                codec: codec.map(self::codec).transpose()?,
                about: About { input_tokens, output_tokens, hint: self::hint(hint, returns)? },
            })
        };
        let options = options().map_err(|failure| failure.raise(py))?;
        let (blocks, names) = self.blocks(prefix, timeout).map_err(|failure| failure.raise(py))?;
        let mut lent = Lent::take_anywhere(sources, blocks.block_bytes(), Use::Read)?;
        let range = range(&names, start, &lent).map_err(|failure| failure.raise(py))?;
        Ok(Operation::lending(&self.0, async move {
            let report = transfers::store(&blocks, &names, range, (&mut lent, 0), options).await?;
            let frames = reports::frames(&blocks, &report.outcomes).await;
            Ok((PyStoreReport::of(&report, start, frames, blocks.block_bytes()), lent))
        }))
    }

    /// Tells the cluster what is expected of a prefix's session; returns the copies that it was told of.
    fn release(
        &self,
        py: Python<'_>,
        prefix: &PyPrefix,
        hint: &str,
        returns: Option<u32>,
        timeout: Option<f64>,
    ) -> PyResult<Operation> {
        let hint = self::hint(hint, returns).map_err(|failure| failure.raise(py))?;
        let (blocks, names) = self.blocks(prefix, timeout).map_err(|failure| failure.raise(py))?;
        Ok(Operation::new(&self.0, async move { Ok(blocks.release(&names, hint).await?.copies) }))
    }

    /// Pins a prefix under a name, for so many seconds or until it is unpinned.
    fn pin(
        &self,
        py: Python<'_>,
        prefix: &PyPrefix,
        name: String,
        lasts: Option<f64>,
        reason: String,
    ) -> PyResult<Operation> {
        let pin = || -> Result<Operation, Failure> {
            let mode = pins::mode(lasts)?;
            let reason = Reason::try_from(reason).map_err(|why| Failure::misuse(why.to_string()))?;
            let (blocks, names) = self.blocks(prefix, None)?;
            Ok(Operation::new(&self.0, async move { Ok(blocks.pin(&name, &names, mode, reason).await?) }))
        };
        pin().map_err(|failure| failure.raise(py))
    }

    /// Ends a pin.
    fn unpin(&self, name: String) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move {
            client.submit(Command::RemovePin { name, ended_ms: None }).await?;
            Ok(())
        })
    }

    /// Lists what is pinned: name, tenant, blocks, when it ends in seconds since 1970, reason.
    fn pins(&self) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move { Ok(pins::list(&*client.refresh().await?)) })
    }

    /// Ends a tenant's era; returns the one that has begun.
    fn clear(&self, tenant: String) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move { Ok(client.clear_tenant(&tenant).await?.0) })
    }

    /// Creates a tenant without rules of its own.
    fn create_tenant(&self, name: String) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move {
            client.create_tenant(&name).await?;
            Ok(())
        })
    }

    /// Has a tenant be there: makes it where it is not, as another name for one whose blocks it shares, if that is said.
    fn ensure_tenant(&self, name: String, shares_with: Option<String>) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move {
            client.ensure_tenant(&name, shares_with.as_deref()).await?;
            Ok(())
        })
    }

    /// Has another strategy decide which of a tenant's blocks leave; none: each node's own.
    fn set_strategy(&self, py: Python<'_>, tenant: String, strategy: Option<&str>) -> PyResult<Operation> {
        let strategy = match strategy {
            Some(name) => Change::Set(self::strategy(name).map_err(|failure| failure.raise(py))?),
            None => Change::Reset,
        };
        let client = self.0.client().clone();
        Ok(Operation::new(&self.0, async move {
            Ok(client.set_tenant_rules(&tenant, RulesChange { strategy, ..RulesChange::default() }).await?)
        }))
    }

    /// Says how large the largest frames of devices are: where they are smallest, and where they are largest; none where none says so.
    fn frame_room(&self) -> Operation {
        let client = self.0.client().clone();
        Operation::new(
            &self.0,
            async move { Ok(client.frame_room().await?.map(|room| (room.least, room.most))) },
        )
    }

    /// Fetches the cluster's map anew; returns its epoch.
    fn refresh(&self) -> Operation {
        let client = self.0.client().clone();
        Operation::new(&self.0, async move { Ok(client.refresh().await?.epoch.0) })
    }

    /// Returns what this client has done, by name.
    fn stats(&self) -> Vec<(&'static str, u64)> {
        let stats = self.0.client().stats();
        vec![
            ("requests", stats.requests),
            ("bytes_fetched", stats.bytes_fetched),
            ("bytes_stored", stats.bytes_stored),
            ("corrupt_blocks", stats.corrupt_blocks),
            ("encoded_blocks", stats.encoded_blocks),
            ("decoded_blocks", stats.decoded_blocks),
            ("stale_epochs", stats.stale_epochs),
            ("failovers", stats.failovers),
            ("busy", stats.busy),
            ("shed", stats.shed),
            ("hedges", stats.hedges),
            ("dials", stats.dials),
            ("bytes_fetched_on_gpu", stats.bytes_fetched_on_gpu),
            ("bytes_stored_on_gpu", stats.bytes_stored_on_gpu),
            ("stage_fallbacks", stats.stage_fallbacks),
        ]
    }
}
