//! What calls report, block by block.

use kvhive_client::{
    FetchOutcome, FetchReport, FrameRoom, MissReason, NamespaceClient, PrefixMatch, StoreOutcome, StoreReport,
};
use kvhive_protocol::data::Refusal;
use pyo3::prelude::*;
use std::collections::BTreeMap;

/// How far a cluster covers a prefix.
#[pyclass(frozen, get_all, name = "Match", module = "kvhive")]
pub(crate) struct PyMatch {
    covered: usize,
    unreachable: usize,
}

/// What became of a fetch.
#[pyclass(frozen, get_all, name = "FetchReport", module = "kvhive")]
pub(crate) struct PyFetchReport {
    delivered: usize,
    missed: BTreeMap<usize, String>,
}

/// What became of a store.
#[pyclass(frozen, get_all, name = "StoreReport", module = "kvhive")]
pub(crate) struct PyStoreReport {
    acknowledged: usize,
    sent: usize,
    failed: BTreeMap<usize, String>,
}

impl From<PrefixMatch> for PyMatch {
    fn from(found: PrefixMatch) -> PyMatch {
        PyMatch { covered: found.covered, unreachable: found.unreachable }
    }
}

impl PyFetchReport {
    /// Takes over a report on blocks from position `start` on.
    pub(crate) fn of(report: &FetchReport, start: usize) -> PyFetchReport {
        let missed = report.outcomes.iter().enumerate().filter_map(|(at, outcome)| match outcome {
            FetchOutcome::Loaded(_) => None,
            FetchOutcome::Missed(reason) => Some((start + at, missed(*reason))),
        });
        PyFetchReport { missed: missed.collect(), delivered: report.delivered() }
    }
}

fn missed(reason: MissReason) -> String {
    match reason {
        MissReason::Absent => "its device does not have it".to_owned(),
        MissReason::Corrupt(error) => format!("what arrived is not this block: {error}"),
        MissReason::Unreachable => "its device could not be reached in time".to_owned(),
    }
}

impl PyStoreReport {
    /// Takes over a report on blocks from position `start` on.
    pub(crate) fn of(
        report: &StoreReport,
        start: usize,
        frames: Option<FrameRoom>,
        block_bytes: u64,
    ) -> PyStoreReport {
        let failed = report.outcomes.iter().enumerate().filter_map(|(at, outcome)| {
            let why = match outcome {
                StoreOutcome::Acknowledged { .. } => return None,
                StoreOutcome::TooFewCopies { copies, wanted } => {
                    format!("{copies} of {wanted} replicas hold it")
                }
                StoreOutcome::Refused(Refusal::TooLarge) => {
                    let why = refused(Refusal::TooLarge, frames);
                    format!("{why}; a block has {block_bytes} bytes")
                }
                StoreOutcome::Refused(refusal) => refused(*refusal, None),
                StoreOutcome::Unreachable => "its device could not be reached in time".to_owned(),
            };
            Some((start + at, why))
        });
        PyStoreReport { failed: failed.collect(), acknowledged: report.acknowledged(), sent: report.sent() }
    }
}

/// Says how large frames are, where a block was too large for all of them.
pub(crate) async fn frames(space: &NamespaceClient, outcomes: &[StoreOutcome]) -> Option<FrameRoom> {
    let is_large = |outcome: &StoreOutcome| *outcome == StoreOutcome::Refused(Refusal::TooLarge);
    if outcomes.iter().any(is_large) { space.frame_room().await } else { None }
}

/// Says why a block was refused, and how large frames are where that is why.
pub(crate) fn refused(refusal: Refusal, frames: Option<FrameRoom>) -> String {
    if let (Refusal::TooLarge, Some(room)) = (refusal, frames) {
        return format!(
            "no frame is large enough for it: the largest frames have {room} (kvhive up --block-size)"
        );
    }
    let why = match refusal {
        Refusal::NoRoom => "every frame of its size is in use or held",
        Refusal::TooLarge => "no frame is large enough for it",
        Refusal::InFlight => "another store of it is under way",
        Refusal::Corrupt => "its bytes changed while they were sent",
        Refusal::WrongEra => "it is of an era that a clear has ended",
    };
    why.to_owned()
}

#[pymethods]
impl PyMatch {
    fn __repr__(&self) -> String {
        format!("Match(covered={}, unreachable={})", self.covered, self.unreachable)
    }
}

#[pymethods]
impl PyFetchReport {
    fn __repr__(&self) -> String {
        format!("FetchReport(delivered={}, missed={:?})", self.delivered, self.missed)
    }
}

#[pymethods]
impl PyStoreReport {
    fn __repr__(&self) -> String {
        format!(
            "StoreReport(acknowledged={}, sent={}, failed={:?})",
            self.acknowledged, self.sent, self.failed
        )
    }
}
