//! Blocks between a cluster and memory that was lent. Where that is a GPU's, those go over a stage that the cluster's nodes on this host take so,
//! and all others pass through the host's memory, part by part.

use crate::buffer::Lent;
use crate::errors::Failure;
use kvhive_client::{
    FetchOutcome, FetchReport, NamespaceClient, Prefix, StageLease, StoreOptions, StoreOutcome, StoreReport,
};
use kvhive_gpu::cuda::Gpu;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Fetches the blocks `range` of a prefix into what was lent, from its block `first` on.
pub(crate) async fn fetch(
    blocks: &NamespaceClient,
    names: &Prefix,
    range: Range<usize>,
    (lent, first): (&mut Lent, usize),
) -> Result<FetchReport, Failure> {
    let (begun, mut outcomes) = (Instant::now(), Vec::with_capacity(range.len()));
    let stage = stage(blocks, names, &range, lent.gpu().cloned()).await;
    let within = || blocks.within(blocks.limit().saturating_sub(begun.elapsed()));
    let named = |part: &Range<usize>| part.start - first + range.start..part.end - first + range.start;
    for window in lent.windows(first..first + range.len()) {
        let mut came: Vec<Option<FetchOutcome>> = vec![None; window.len()];
        if let Some((lease, room)) = &stage {
            for part in parts(&window, *room) {
                if lease.is_spent() {
                    break;
                }
                let names_of = named(&part);
                let loaded = within().fetch_staged(names, names_of, lease).await?;
                lent.take_off(lease, &part, |at| loaded[at].is_some())?;
                for (at, one) in (part.start - window.start..).zip(loaded) {
                    came[at] = one.map(FetchOutcome::Loaded);
                }
            }
        }
        for part in missing(&came, window.start) {
            let names_of = named(&part);
            let report = within().fetch_into(names, names_of, &mut lent.begin_writing(&part)?).await?;
            lent.end_writing(&part, |at| matches!(report.outcomes[at], FetchOutcome::Loaded(_)))?;
            for (at, one) in (part.start - window.start..).zip(report.outcomes) {
                came[at] = Some(one);
            }
        }
        outcomes.extend(came.into_iter().flatten());
    }
    Ok(FetchReport { outcomes })
}

/// Stores what was lent, from its block `first` on, as the blocks `range` of a prefix.
pub(crate) async fn store(
    blocks: &NamespaceClient,
    names: &Prefix,
    range: Range<usize>,
    (lent, first): (&mut Lent, usize),
    options: StoreOptions,
) -> Result<StoreReport, Failure> {
    let (begun, mut outcomes) = (Instant::now(), Vec::with_capacity(range.len()));
    let stage = stage(blocks, names, &range, lent.gpu().cloned()).await;
    let within = || blocks.within(blocks.limit().saturating_sub(begun.elapsed()));
    let named = |part: &Range<usize>| part.start - first + range.start..part.end - first + range.start;
    for window in lent.windows(first..first + range.len()) {
        let mut stored: Vec<Option<StoreOutcome>> = vec![None; window.len()];
        if let Some((lease, room)) = &stage {
            for part in parts(&window, *room) {
                // A node may take it still for what was on it before.
                if lease.is_spent() {
                    break;
                }
                let names_of = named(&part);
                lent.put_on(lease, &part)?;
                let taken = within().store_staged(names, names_of, lease, options).await?;
                for (at, one) in (part.start - window.start..).zip(taken) {
                    stored[at] = one;
                }
            }
        }
        for part in missing(&stored, window.start) {
            let names_of = named(&part);
            let report = within().store(names, names_of, &lent.read(&part)?, options).await?;
            for (at, one) in (part.start - window.start..).zip(report.outcomes) {
                stored[at] = Some(one);
            }
        }
        outcomes.extend(stored.into_iter().flatten());
    }
    Ok(StoreReport { outcomes })
}

/// Takes a stage where the memory is a GPU's and there is somebody to lend it to; says for how many blocks.
async fn stage(
    blocks: &NamespaceClient,
    names: &Prefix,
    range: &Range<usize>,
    gpu: Option<Arc<Gpu>>,
) -> Option<(StageLease, usize)> {
    let lease = blocks.stage(&gpu?, names, range.clone()).await?;
    let room = blocks.blocks_on(&lease);
    (room > 0).then_some((lease, room))
}

/// Cuts a window into parts of so many blocks.
fn parts(window: &Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = window.end;
    window.clone().step_by(most.max(1)).map(move |start| start..end.min(start + most))
}

/// Returns the stretches of a window of which nothing has come yet; its first block is number `start`.
fn missing<T>(came: &[Option<T>], start: usize) -> Vec<Range<usize>> {
    let mut stretches: Vec<Range<usize>> = Vec::new();
    for at in came.iter().enumerate().filter(|(_, one)| one.is_none()).map(|(at, _)| start + at) {
        match stretches.last_mut().filter(|last| last.end == at) {
            Some(last) => last.end += 1,
            None => stretches.push(at..at + 1),
        }
    }
    stretches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_come_is_asked_for_by_stretches() {
        assert_eq!(missing(&[Some(1), None, None, Some(2), None], 10), [11..13, 14..15]);
        assert!(missing(&[Some(1)], 10).is_empty() && missing::<u8>(&[], 10).is_empty());
        assert_eq!(parts(&(3..8), 2).collect::<Vec<_>>(), [3..5, 5..7, 7..8]);
    }
}
