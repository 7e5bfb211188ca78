//! Blocks between a cluster and memory that was lent, part by part where they pass through the host's.

use crate::buffer::Lent;
use crate::errors::Failure;
use kvhive_client::{FetchOutcome, FetchReport, NamespaceClient, Prefix, StoreOptions, StoreReport};
use std::ops::Range;
use std::time::Instant;

/// Fetches the blocks `range` of a prefix into what was lent.
pub(crate) async fn fetch(
    blocks: &NamespaceClient,
    names: &Prefix,
    range: Range<usize>,
    lent: &mut Lent,
) -> Result<FetchReport, Failure> {
    let (begun, mut outcomes) = (Instant::now(), Vec::with_capacity(range.len()));
    for window in lent.windows() {
        let part = range.start + window.start..range.start + window.end;
        let within = blocks.within(blocks.limit().saturating_sub(begun.elapsed()));
        let report = within.fetch_into(names, part, &mut lent.begin_writing(&window)?).await?;
        lent.end_writing(&window, |at| matches!(report.outcomes[at], FetchOutcome::Loaded(_)))?;
        outcomes.extend(report.outcomes);
    }
    Ok(FetchReport { outcomes })
}

/// Stores what was lent as the blocks `range` of a prefix.
pub(crate) async fn store(
    blocks: &NamespaceClient,
    names: &Prefix,
    range: Range<usize>,
    lent: &mut Lent,
    options: StoreOptions,
) -> Result<StoreReport, Failure> {
    let (begun, mut outcomes) = (Instant::now(), Vec::with_capacity(range.len()));
    for window in lent.windows() {
        let part = range.start + window.start..range.start + window.end;
        let within = blocks.within(blocks.limit().saturating_sub(begun.elapsed()));
        let report = within.store(names, part, &lent.read(&window)?, options).await?;
        outcomes.extend(report.outcomes);
    }
    Ok(StoreReport { outcomes })
}
