//! Store: blocks to the primaries of their slots, acknowledged by as many replicas as asked.

use crate::call::Verdict;
use crate::codec;
use crate::error::ClientError;
use crate::fetch::{blocks_per_transfer, run_all, senseless};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::Backoff;
use crate::route::{Job, plan, split};
use crate::stats::count;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::{Ack, DataReply, DataRequest, Refusal, StoreBlock, StoreRequest, Stored};
use kvhive_protocol::{BlockHeader, ClusterMap, Epoch};
use kvhive_wire::Fault;
use std::borrow::Cow;
use std::ops::Range;
use tokio::time::Instant;

/// How blocks are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreOptions {
    /// When a block counts as stored; the cluster's default when none.
    pub ack: Option<Ack>,
}

/// What became of one block of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreOutcome {
    /// As many replicas as asked hold it.
    Acknowledged {
        /// How many.
        copies: u8,
        /// It was there before.
        already: bool,
    },
    /// Fewer replicas than asked hold it.
    TooFewCopies {
        /// How many.
        copies: u8,
        /// How many were asked.
        wanted: u8,
    },
    /// The node did not take it.
    Refused(Refusal),
    /// Its device could not be reached in time, or has no lease, or there is none.
    Unreachable,
}

/// What became of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreReport {
    /// One outcome a block, in order.
    pub outcomes: Vec<StoreOutcome>,
}

impl StoreReport {
    /// Returns how many blocks are acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.outcomes.iter().filter(|outcome| matches!(outcome, StoreOutcome::Acknowledged { .. })).count()
    }

    /// Returns how many blocks were new to the cluster.
    pub fn sent(&self) -> usize {
        self.outcomes.iter().filter(|outcome| is_sent(outcome)).count()
    }
}

fn is_sent(outcome: &StoreOutcome) -> bool {
    matches!(
        outcome,
        StoreOutcome::Acknowledged { already: false, .. } | StoreOutcome::TooFewCopies { copies: 1.., .. }
    )
}

impl NamespaceClient {
    /// Stores `blocks` (each of a block's size) as the blocks `range` of `prefix`. A block that is there already is not
    /// sent over it: keys are content.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when range, prefix and blocks do not fit together. Blocks that were not stored are in the
    /// report.
    pub async fn store(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        blocks: &[&[u8]],
        options: StoreOptions,
    ) -> Result<StoreReport, ClientError> {
        self.check_range(prefix, &range, blocks.len())?;
        if let Some(block) = blocks.iter().find(|block| block.len() as u64 != self.block_bytes) {
            let given = block.len();
            return Err(ClientError::Misuse(format!("{given} bytes for a block of {}", self.block_bytes)));
        }
        let deadline = self.deadline();
        let codec = codec::chosen(&self.shared().map(), self.tenant, &self.layout());
        let mut payloads = Vec::with_capacity(blocks.len());
        for block in blocks {
            payloads.push(self.payload(codec, block));
            if codec != Codec::Raw {
                // Encoding takes a core for a while; others on this thread have their turn.
                tokio::task::yield_now().await;
            }
        }
        let mut outcomes: Vec<Option<StoreOutcome>> = vec![None; range.len()];
        let mut backoff = Backoff::new();
        loop {
            let map = self.shared().map();
            let open = range.clone().filter(|at| outcomes[at - range.start].is_none());
            let plan = plan(&map, prefix, open, &[], true);
            let ack = options.ack.unwrap_or(map.settings.ack);
            let per_transfer = blocks_per_transfer(self.block_bytes);
            let source = Source { prefix, range: &range, payloads: &payloads, ack };
            let tasks: Vec<_> = plan
                .jobs
                .into_iter()
                .map(|job| self.store_parts(&map, &source, split(job, per_transfer), deadline))
                .collect();
            let nowhere = !plan.nowhere.is_empty();
            let mut round =
                Round { outcomes: &mut outcomes, start: range.start, nowhere, ..Round::default() };
            for (done, failed) in run_all(tasks).await {
                round.take(done);
                if let Some((left, fault)) = failed {
                    tracing::debug!(blocks = left.len(), %fault, "store failed");
                    round.take_failed(left, self.shared().judge(&map, &fault));
                }
            }
            let again = self.mend(&map, round, &mut backoff, deadline).await;
            if !again || Instant::now() >= deadline || outcomes.iter().all(Option::is_some) {
                break;
            }
        }
        let outcomes =
            outcomes.into_iter().map(|outcome| outcome.unwrap_or(StoreOutcome::Unreachable)).collect();
        let report = StoreReport { outcomes };
        let sent = report.outcomes.iter().zip(&payloads).filter(|(outcome, _)| is_sent(outcome));
        let bytes: usize = sent.map(|(_, payload)| payload.bytes.len()).sum();
        count(&self.shared().counters.bytes_stored, bytes as u64);
        Ok(report)
    }

    /// Makes what is sent of a block: encoded where that makes it smaller, else as it is.
    fn payload<'a>(&self, codec: Codec, block: &'a [u8]) -> Payload<'a> {
        if codec != Codec::Raw {
            let mut stored = Vec::new();
            match codec::encode(codec, &self.layout(), block, &mut stored) {
                Ok(()) if stored.len() < block.len() => {
                    count(&self.shared().counters.encoded_blocks, 1);
                    return Payload { codec, digest: digest(&stored), bytes: Cow::Owned(stored) };
                }
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, codec = codec.name(), "block not encoded"),
            }
        }
        Payload { codec: Codec::Raw, digest: digest(block), bytes: Cow::Borrowed(block) }
    }

    /// Does what a round's failed requests need, each thing once for all of them. Says whether another round may do better.
    async fn mend(
        &self,
        map: &ClusterMap,
        mut round: Round<'_>,
        backoff: &mut Backoff,
        deadline: Instant,
    ) -> bool {
        let mut again = false;
        if !round.old_era.is_empty() {
            round.wanted = round.wanted.max(Some(map.epoch.next()));
        }
        if let Some(epoch) = round.wanted {
            again = self.shared().refresh_to(map.epoch, epoch, deadline).await;
            if !again {
                // A map that a member named may still come; a refusal of an era that nobody raised is the outcome.
                round.wait |= round.stale;
                round.refuse_old_era();
            }
        }
        if round.wait {
            again |= backoff.wait(deadline).await;
        }
        // The primary is gone; the coordinators will name another when its lease has run out.
        if round.nowhere && backoff.wait(deadline).await {
            self.shared().refresh_past(map.epoch, deadline).await;
            again = true;
        }
        again
    }

    /// Stores the parts of one device's job, one after the other; stops at the first that fails as a whole and returns the
    /// positions that are left.
    async fn store_parts(
        &self,
        map: &ClusterMap,
        source: &Source<'_>,
        parts: Vec<Job>,
        deadline: Instant,
    ) -> (Vec<(usize, StoreOutcome)>, Option<(Vec<usize>, Fault)>) {
        let mut done = Vec::new();
        let mut parts = parts.into_iter();
        while let Some(job) = parts.next() {
            match self.store_part(map, source, &job, deadline).await {
                Ok(outcomes) => done.extend(job.positions.into_iter().zip(outcomes)),
                Err(fault) => {
                    let left = job.positions.into_iter().chain(parts.flat_map(|part| part.positions));
                    return (done, Some((left.collect(), fault)));
                }
            }
        }
        (done, None)
    }

    async fn store_part(
        &self,
        map: &ClusterMap,
        source: &Source<'_>,
        job: &Job,
        deadline: Instant,
    ) -> Result<Vec<StoreOutcome>, Fault> {
        let era = self.era(map);
        let payload_of = |at: &usize| &source.payloads[at - source.range.start];
        let blocks = job.positions.iter().map(|at| StoreBlock {
            header: BlockHeader {
                key: source.prefix.keys()[*at],
                fingerprint: self.fingerprint,
                tenant: self.tenant,
                era,
                depth: *at as u32,
                codec: payload_of(at).codec,
                payload_bytes: payload_of(at).bytes.len() as u64,
                digest: payload_of(at).digest,
            },
            parent: source.prefix.parent(*at),
        });
        let request = DataRequest::Store(StoreRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            ack: source.ack,
            copy: false,
            layout: Some(self.layout()),
            runs: job.runs.clone(),
            blocks: blocks.collect(),
        });
        let payload: Vec<&[u8]> = job.positions.iter().map(|at| &*payload_of(at).bytes).collect();
        let (lease, reply) = self.shared().call(map, job.device, &request, &payload, 0, deadline).await?;
        let DataReply::Stored { blocks, .. } = reply else {
            return Err(senseless("a store was answered otherwise"));
        };
        if blocks.len() != job.positions.len() {
            return Err(senseless("a store's answer does not fit its question"));
        }
        lease.give_back();
        let wanted = self.wanted_copies(map, source.ack, job);
        Ok(blocks.into_iter().zip(wanted).map(|(stored, wanted)| outcome(stored, wanted)).collect())
    }

    /// Returns how many copies acknowledge each block of a job.
    fn wanted_copies<'a>(
        &self,
        map: &'a ClusterMap,
        ack: Ack,
        job: &'a Job,
    ) -> impl Iterator<Item = u8> + 'a {
        job.runs.iter().flat_map(move |run| {
            let wanted = ack.copies(map.replicas(run.slot).0.len()) as u8;
            std::iter::repeat_n(wanted, run.keys as usize)
        })
    }
}

/// What a store call stores.
struct Source<'a> {
    prefix: &'a Prefix,
    range: &'a Range<usize>,
    payloads: &'a [Payload<'a>],
    ack: Ack,
}

/// What is sent of one block.
struct Payload<'a> {
    codec: Codec,
    bytes: Cow<'a, [u8]>,
    digest: u64,
}

/// What one round of a store came to.
#[derive(Default)]
struct Round<'a> {
    outcomes: &'a mut [Option<StoreOutcome>],
    /// The position of the first outcome.
    start: usize,
    /// A map of this epoch is needed.
    wanted: Option<Epoch>,
    /// A member refused the map.
    stale: bool,
    /// Time is needed.
    wait: bool,
    /// Some block has no primary that can be reached.
    nowhere: bool,
    /// Outcomes of blocks whose era is over: a clear came between, the next map has the new one.
    old_era: Vec<usize>,
}

impl Round<'_> {
    fn take(&mut self, done: Vec<(usize, StoreOutcome)>) {
        for (at, outcome) in done {
            let at = at - self.start;
            match outcome {
                StoreOutcome::Refused(Refusal::WrongEra) => self.old_era.push(at),
                outcome => self.outcomes[at] = Some(outcome),
            }
        }
    }

    fn take_failed(&mut self, left: Vec<usize>, verdict: Verdict) {
        match verdict {
            Verdict::Refresh(epoch) => {
                self.wanted = self.wanted.max(Some(epoch));
                self.stale = true;
            }
            Verdict::Wait => self.wait = true,
            Verdict::Elsewhere => self.nowhere = true,
            Verdict::GiveUp => {
                for at in left {
                    self.outcomes[at - self.start] = Some(StoreOutcome::Unreachable);
                }
            }
        }
    }

    fn refuse_old_era(&mut self) {
        for at in std::mem::take(&mut self.old_era) {
            self.outcomes[at] = Some(StoreOutcome::Refused(Refusal::WrongEra));
        }
    }
}

fn outcome(stored: Stored, wanted: u8) -> StoreOutcome {
    match stored {
        Stored::Kept { copies, already } if copies >= wanted => {
            StoreOutcome::Acknowledged { copies, already }
        }
        Stored::Kept { copies, .. } => StoreOutcome::TooFewCopies { copies, wanted },
        Stored::Refused(refusal) => StoreOutcome::Refused(refusal),
    }
}
