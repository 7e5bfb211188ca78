//! Where an engine's requests meet the cluster: what is there of a prompt is fetched, and what is new is stored.

use super::Stages;
use super::behind::Bytes;
use super::compute::NewBlock;
use super::model::Model;
use super::serve::Engine;
use kvhive_client::{ClientError, NamespaceClient, Prefix, StoreOptions, StoreOutcome, StoreReport};
use kvhive_engines::rest::Rest;
use kvhive_protocol::Moment;
use kvhive_protocol::data::{About, Hint, Refusal};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// Names of a prompt's full blocks, and where these are.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) space: NamespaceClient,
    pub(super) prefix: Arc<Prefix>,
}

/// What was found of a prompt.
#[derive(Default)]
pub(super) struct Found {
    pub(super) blocks: Vec<Bytes>,
    /// So many of them came from the cluster.
    pub(super) fetched: usize,
}

impl<M: Model> Engine<M> {
    /// Names the blocks that tokens fill.
    pub(super) async fn named(&self, tenant: Option<&str>, tokens: &[u32]) -> Result<Named, ClientError> {
        let space = self.parts.cache.space(tenant).await?;
        let block_tokens = self.parts.layout.tokens as usize;
        let prefix = Arc::new(space.keys(&tokens[..tokens.len() / block_tokens * block_tokens]));
        Ok(Named { space, prefix })
    }

    /// The same; none where the cache does not know the tenant and cannot be told.
    pub(super) async fn named_or_failed(&self, tenant: Option<&str>, tokens: &[u32]) -> Option<Named> {
        let named = self.named(tenant, tokens).await;
        if named.is_err() {
            self.failed();
        }
        named.ok()
    }

    /// Says whether the cluster is asked now: one that did not answer twice in a row is left alone, so that each request does not wait
    /// anew to learn it. Whoever is let through says what came of it.
    fn may_ask(&self) -> bool {
        let may = lock(&self.parts.rest).lets(self.now());
        if !may {
            self.failed();
        }
        may
    }

    fn note(&self, is_answered: bool) {
        let (now, mut rest) = (self.now(), lock(&self.parts.rest));
        match is_answered {
            true => rest.answered(),
            false => rest.failed(now),
        }
    }

    fn now(&self) -> Moment {
        Moment::from_nanos(u64::try_from(self.parts.begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn within(&self, named: &Named) -> NamespaceClient {
        named.space.within(self.parts.config.cache_wait)
    }

    /// Returns the first blocks of a prompt, as far as they are there, but no more than so many.
    pub(super) async fn find(&self, named: &Named, most: usize, stages: &mut Stages) -> Found {
        let wanted = named.prefix.first(most.min(named.prefix.len()));
        if wanted.is_empty() {
            return Found::default();
        }
        // Looked at before the cache is asked: what leaves it meanwhile is there by then.
        let waiting = self.parts.behind.find(wanted.keys());
        let mut blocks = self.fetch(named, &wanted, stages).await;
        let fetched = blocks.len();
        while let Some(block) = wanted.keys().get(blocks.len()).and_then(|key| waiting.get(key)) {
            blocks.push(block.clone());
        }
        Found { blocks, fetched }
    }

    async fn fetch(&self, named: &Named, wanted: &Prefix, stages: &mut Stages) -> Vec<Bytes> {
        if !self.may_ask() {
            return Vec::new();
        }
        let scout = Scout { rest: &self.parts.rest };
        let (space, begun) = (self.within(named), Instant::now());
        let matched = space.match_prefix(wanted).await;
        drop(scout);
        stages.matching = begun.elapsed();
        self.note(matched.as_ref().is_ok_and(|found| found.covered > 0 || found.unreachable == 0));
        if matched.as_ref().map_or(true, |found| found.unreachable > 0) {
            self.failed();
        }
        let covered = matched.map_or(0, |found| found.covered);
        let begun = Instant::now();
        let blocks = taken(&space, wanted, covered).await;
        stages.fetch = begun.elapsed();
        if blocks.len() < covered {
            self.failed();
        }
        blocks
    }

    /// Has new blocks be stored, behind what comes next or, where nothing may wait, now.
    pub(super) async fn keep(&self, named: &Named, start: usize, new: Vec<NewBlock>, about: About) {
        if lock(&self.parts.rest).is_resting() {
            self.failed();
            return;
        }
        let keys = &named.prefix.keys()[start..start + new.len()];
        let waiting = keys.iter().copied().zip(new.iter().map(|block| block.comes_back.clone())).collect();
        let store = self.store(named, start, new, about);
        if self.parts.config.pending_bytes == 0 {
            store.await;
        } else {
            self.parts.behind.add(waiting, store).await;
        }
    }

    fn store(
        &self,
        named: &Named,
        start: usize,
        new: Vec<NewBlock>,
        about: About,
    ) -> impl Future<Output = ()> + Send + use<M> {
        let (Named { space, prefix }, codec) = (named.clone(), self.parts.cache.codec());
        let figures = self.parts.figures.clone();
        async move {
            let blocks: Vec<&[u8]> = new.iter().map(|block| &block.computed[..]).collect();
            let options = StoreOptions { codec: Some(codec), about, ..StoreOptions::default() };
            let stored = space.store(&prefix, start..start + blocks.len(), &blocks, options).await;
            if stored.map_or(true, |report| has_failed(&report)) {
                figures.cache_failures.fetch_add(1, Relaxed);
            }
        }
    }

    pub(super) async fn release(&self, named: &Named, hint: Hint) {
        if !named.prefix.is_empty() && self.within(named).release(&named.prefix, hint).await.is_err() {
            self.failed();
        }
    }

    /// Fetches what is there of the last prompt once more; returns seconds of a block, none where nothing came.
    pub(super) async fn measure_fetch(&self) -> Option<f64> {
        let named = lock(&self.parts.history).last()?;
        let space = self.within(&named);
        let covered = space.match_prefix(&named.prefix).await.ok()?.covered;
        let begun = Instant::now();
        let came = taken(&space, &named.prefix, covered).await.len();
        (came > 0).then(|| begun.elapsed().as_secs_f64() / came as f64)
    }

    /// Counts a call of the cache that failed.
    pub(super) fn failed(&self) {
        self.parts.figures.cache_failures.fetch_add(1, Relaxed);
    }
}

/// Whoever was let through to a cluster that is left alone, until it says what came of that: also where its request is given up.
struct Scout<'a> {
    rest: &'a Mutex<Rest>,
}

impl Drop for Scout<'_> {
    fn drop(&mut self) {
        lock(self.rest).gave_up();
    }
}

/// Says whether a block could not be stored; one that is not worth its room was judged, and one of an era that is over is in nobody's way.
fn has_failed(report: &StoreReport) -> bool {
    report.outcomes.iter().any(|outcome| match outcome {
        StoreOutcome::Acknowledged { .. } => false,
        StoreOutcome::Refused(why) => matches!(why, Refusal::TooLarge | Refusal::Corrupt),
        StoreOutcome::TooFewCopies { .. } | StoreOutcome::Unreachable => true,
    })
}

/// Fetches the first blocks of a prefix; returns those that came without a gap.
async fn taken(space: &NamespaceClient, prefix: &Prefix, blocks: usize) -> Vec<Bytes> {
    if blocks == 0 {
        return Vec::new();
    }
    let mut memory = vec![vec![0; space.block_bytes() as usize]; blocks];
    let mut targets: Vec<&mut [u8]> = memory.iter_mut().map(Vec::as_mut_slice).collect();
    let delivered = match space.fetch_into(prefix, 0..blocks, &mut targets).await {
        Ok(report) => report.delivered(),
        Err(_) => 0,
    };
    memory.truncate(delivered);
    memory.into_iter().map(Bytes::from).collect()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}
