//! Fetch: blocks into the caller's memory, each checked there.

use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::rounds::{Read, Rounds};
use crate::route::Job;
use crate::stats::count;
use crate::targets::Targets;
use crate::waits::Sway;
use kvhive_protocol::data::MAX_BLOCKS_PER_TRANSFER;
use kvhive_protocol::{DeviceId, HeaderError, WireError};
use kvhive_wire::Fault;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of one request's blocks, unless a single one is larger.
pub(crate) const BYTES_PER_TRANSFER: u64 = 8 << 20;

/// A node that keeps no blocks but its own is asked for others' again after so long: it may have been set up anew.
const KEEPS_NONE: Duration = Duration::from_secs(60);
/// One that could not be asked for others' blocks is left alone with them for so long.
const UNREACHED: Duration = Duration::from_secs(2);

/// Proof that a block lies in the caller's memory and was checked there. Only the check makes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    pub(crate) bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl Loaded {
    /// Returns the block's bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the bytes that it came in: fewer than the block's where it was encoded.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }
}

/// What became of one block of a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchOutcome {
    /// It is in the caller's memory.
    Loaded(Loaded),
    /// It is not; the memory meant for it is undefined.
    Missed(MissReason),
}

/// Why a block was not loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MissReason {
    /// Its device does not have it.
    Absent,
    /// What arrived is not the block asked for.
    Corrupt(HeaderError),
    /// Its device could not be reached in time, or has no lease, or more to do than it serves in time, or there is none.
    Unreachable,
}

/// What became of a fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchReport {
    /// One outcome a block, in order.
    pub outcomes: Vec<FetchOutcome>,
}

impl FetchReport {
    /// Returns how many blocks were loaded from the first on without a hole: as far as the memory may be used.
    pub fn delivered(&self) -> usize {
        self.outcomes.iter().take_while(|outcome| matches!(outcome, FetchOutcome::Loaded(_))).count()
    }
}

impl NamespaceClient {
    /// Fetches the blocks `range` of `prefix` into `targets`, one piece of memory of a block's size each.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when range, prefix and memory do not fit together. Blocks that could not be loaded are in
    /// the report.
    pub async fn fetch_into(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        targets: &mut [&mut [u8]],
    ) -> Result<FetchReport, ClientError> {
        self.check_range(prefix, &range, targets.len())?;
        if let Some(target) = targets.iter().find(|target| !self.fits(target.len())) {
            let given = target.len();
            return Err(ClientError::Misuse(format!(
                "{given} bytes of memory for a block of {}",
                self.block_bytes
            )));
        }
        let mut call = self.call("fetch blocks", range.len());
        let targets = Targets::new(range.start, targets);
        let mut rounds = Rounds::new(self);
        loop {
            let map = self.shared().map();
            let plan = rounds.plan(&map, prefix, targets.open().into_iter(), Sway::FETCH);
            if !plan.nowhere.is_empty() && rounds.looks_again(&map).await {
                continue;
            }
            for at in &plan.nowhere {
                targets.give_up(*at);
            }
            let read = rounds.read(&map, prefix, call.trace);
            let tasks = plan.jobs.into_iter().map(|job| self.fetch_job(&read, job, &targets)).collect();
            let failed: Vec<(DeviceId, Fault)> = run_all(tasks).await.into_iter().flatten().collect();
            let is_over = targets.open().is_empty() || Instant::now() >= rounds.deadline;
            if is_over || !rounds.mend(&map, &failed).await {
                break;
            }
        }
        let mut outcomes = targets.into_outcomes();
        let map = self.shared().map();
        for (at, outcome) in range.zip(&mut outcomes) {
            if *outcome == FetchOutcome::Missed(MissReason::Absent) && rounds.was_spared(&map, prefix, at) {
                *outcome = FetchOutcome::Missed(MissReason::Unreachable);
            }
        }
        let payload = |outcome: &FetchOutcome| match outcome {
            FetchOutcome::Loaded(loaded) => loaded.stored_bytes,
            FetchOutcome::Missed(_) => 0,
        };
        let bytes = outcomes.iter().map(payload).sum();
        count(&self.shared().counters.bytes_fetched, bytes);
        if call.span.is_on() {
            let loaded = outcomes.iter().filter(|outcome| matches!(outcome, FetchOutcome::Loaded(_))).count();
            call.span.note("kvhive.hits", loaded);
            call.span.note("kvhive.bytes", bytes);
        }
        Ok(FetchReport { outcomes })
    }

    /// Fetches what one device is asked for; if it is late, from other replicas besides.
    async fn fetch_job(&self, read: &Read<'_>, job: Job, targets: &Targets<'_>) -> Vec<(DeviceId, Fault)> {
        let begun = AtomicBool::new(false);
        if job.is_guest {
            Box::pin(self.visit(read, job, &begun, targets)).await;
            return Vec::new();
        }
        if !read.has_others(&job) {
            return self.transfer(read, job, &begun, targets).await.into_iter().collect();
        }
        // Boxed, so that reads of clusters without replicas are no larger for it.
        Box::pin(self.fetch_hedged(read, job, &begun, targets)).await
    }

    /// Fetches from the node that is near what it is no replica of. It has half of the time: what it does not give is asked of replicas then. That
    /// it fails is no failure of the round: it says nothing of what this node is a replica of, nor does anybody wait for it to do better.
    async fn visit(&self, read: &Read<'_>, job: Job, begun: &AtomicBool, targets: &Targets<'_>) {
        let now = Instant::now();
        let read = Read { deadline: now + read.deadline.saturating_duration_since(now) / 2, ..*read };
        let failed = self.transfer(&read, job, begun, targets).await;
        if let Some((device, fault)) = &failed {
            tracing::debug!(%device, %fault, "the node that is near gives no guests");
            let rest = match fault {
                // One of both goes by an older map, and soon does not.
                Fault::Refused(WireError::StaleEpoch { .. }) => Duration::ZERO,
                Fault::Refused(WireError::NotCarried { .. }) => KEEPS_NONE,
                _ => UNREACHED,
            };
            self.shared().waits().turned_away(*device, self.shared().now(), rest);
        }
    }

    async fn fetch_hedged(
        &self,
        read: &Read<'_>,
        job: Job,
        begun: &AtomicBool,
        targets: &Targets<'_>,
    ) -> Vec<(DeviceId, Fault)> {
        let device = job.device;
        let positions = job.positions.clone();
        let others = || {
            let jobs = read.others(device, &positions)?;
            Some(async {
                let unasked = AtomicBool::new(false);
                let tasks = jobs.into_iter().map(|job| self.transfer(read, job, &unasked, targets)).collect();
                run_all(tasks).await
            })
        };
        let first = self.transfer(read, job, begun, targets);
        let has_begun = || begun.load(Ordering::Relaxed);
        let is_done = || targets.are_settled(&positions);
        let raced = self
            .shared()
            .race(device, first, has_begun, others, (|_: &_| is_done(), |_: &_| is_done()))
            .await;
        raced.first.into_iter().chain(raced.second.into_iter().flatten()).flatten().collect()
    }
}

/// Returns how many blocks of this size a request of `bytes` carries.
pub(crate) fn blocks_per_transfer(bytes: u64, block_bytes: u64) -> usize {
    let fit = usize::try_from(bytes / block_bytes).unwrap_or(usize::MAX);
    fit.clamp(1, MAX_BLOCKS_PER_TRANSFER)
}

/// Awaits all tasks, side by side when there are several.
pub(crate) async fn run_all<F: Future>(mut tasks: Vec<F>) -> Vec<F::Output> {
    if tasks.len() == 1 {
        let task = tasks.pop().expect("there is one");
        return vec![task.await];
    }
    futures_util::future::join_all(tasks).await
}

pub(crate) fn senseless(what: &str) -> Fault {
    Fault::Protocol(WireError::malformed(format_args!("{what}")))
}
