//! Store: blocks to the primaries of their slots, acknowledged by as many replicas as asked.

use crate::call::Verdict;
use crate::codec;
use crate::error::ClientError;
use crate::fetch::{BYTES_PER_TRANSFER, blocks_per_transfer, run_all, senseless};
use crate::line::{Line, WINDOW};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::queue::Work;
use crate::retry::Backoff;
use crate::route::{Job, plan, primary, split};
use crate::stats::count;
use kvhive_protocol::block::{Codec, digest};
use kvhive_protocol::data::{
    About, Ack, DataReply, DataRequest, Refusal, Run, StoreBlock, StoreRequest, Stored,
};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, Epoch, TraceContext};
use kvhive_wire::Fault;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::OnceLock;
use tokio::time::Instant;

/// Bytes of one request's blocks where it goes to one device alone: few enough that they are sent from the CPU's cache, where
/// their digests left them.
const PART_BYTES: u64 = 1 << 20;

/// How blocks are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreOptions {
    /// When a block counts as stored; the cluster's default when none.
    pub ack: Option<Ack>,
    /// How the blocks are stored; by the tenant's rules when none, and where they say nothing as the node stores that is the first
    /// to hold them. What does not get smaller is stored raw.
    pub codec: Option<Codec>,
    /// What is known of the request that the blocks are of: what is kept is decided by it, nothing else.
    pub about: About,
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
    /// Its device could not be reached in time, or may not serve, or there is none.
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
        if let Some(block) = blocks.iter().find(|block| !self.fits(block.len())) {
            let given = block.len();
            return Err(ClientError::Misuse(format!("{given} bytes for a block of {}", self.block_bytes)));
        }
        let mut call = self.call("store blocks", range.len());
        let deadline = self.deadline();
        let payloads: Vec<OnceLock<Payload<'_>>> = blocks.iter().map(|_| OnceLock::new()).collect();
        let mut outcomes: Vec<Option<StoreOutcome>> = vec![None; range.len()];
        let mut backoff = Backoff::new();
        loop {
            let map = self.shared().map();
            let open = range.clone().filter(|at| outcomes[at - range.start].is_none());
            let plan = plan(&map, prefix, open, &[], primary);
            let ack = options.ack.unwrap_or(map.settings.ack);
            let source = Source {
                prefix,
                range: &range,
                blocks,
                codec: options.codec,
                payloads: &payloads,
                ack,
                about: options.about,
                trace: call.trace,
            };
            let tasks: Vec<_> = plan
                .jobs
                .into_iter()
                .map(|job| {
                    let blocks = source.blocks_per_part(&map, &job, self.block_bytes);
                    self.store_parts(&map, &source, split(job, blocks), deadline)
                })
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
        let bytes: usize =
            sent.filter_map(|(_, payload)| payload.get()).map(|payload| payload.bytes.len()).sum();
        count(&self.shared().counters.bytes_stored, bytes as u64);
        call.span.note("kvhive.bytes", bytes);
        call.span.note("kvhive.acknowledged", report.acknowledged());
        Ok(report)
    }

    /// Returns the codec of blocks that a device is the first to hold.
    pub(crate) fn ruled_codec(&self, map: &ClusterMap, device: DeviceId) -> Codec {
        let rules = map.tenants.get(&self.tenant).map(|tenant| tenant.rules).unwrap_or_default();
        let of_node = map.members.get(&device.member).map(|member| member.codec).unwrap_or_default();
        codec::of_rules(&rules, of_node, &self.layout())
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
        // The primary is gone; the coordinators will name another when its lease has run out, if there are any.
        if round.nowhere && backoff.wait(deadline).await {
            let now = Instant::now();
            let patience = now + deadline.saturating_duration_since(now) / 4;
            let is_newer = self.shared().refresh_past(map.epoch, patience).await;
            again = is_newer || !self.shared().is_leaderless();
        }
        again
    }

    /// Stores the parts of one device's job in their order; stops at the first that fails as a whole and returns the
    /// positions that are left.
    async fn store_parts(
        &self,
        map: &ClusterMap,
        source: &Source<'_>,
        parts: Vec<Job>,
        deadline: Instant,
    ) -> (Vec<(usize, StoreOutcome)>, Option<(Vec<usize>, Fault)>) {
        let Some(device) = parts.first().map(|job| job.device) else { return (Vec::new(), None) };
        let mut progress = Progress { left: VecDeque::from(parts), ..Progress::default() };
        let limit = deadline.saturating_duration_since(Instant::now());
        let exchange = async {
            let mut line =
                Line::open(self.shared(), map, device, Work::Blocks, source.trace, deadline).await?;
            loop {
                match self.store_over(&mut line, map, source, &mut progress).await {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => line.revive(fault).await?,
                    ended => {
                        line.close();
                        return ended;
                    }
                }
            }
        };
        let ended = tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)));
        let Progress { done, refused, left } = progress;
        let left = refused.into_iter().chain(left).flat_map(|job| job.positions).collect();
        (done, ended.err().map(|fault| (left, fault)))
    }

    /// Sends the parts that are left and hears what became of them. After a refusal nothing more is sent, but what is under way
    /// is heard to its end, so that the line stands.
    async fn store_over(
        &self,
        line: &mut Line<'_>,
        map: &ClusterMap,
        source: &Source<'_>,
        progress: &mut Progress,
    ) -> Result<(), Fault> {
        let Progress { done, refused, left } = progress;
        let mut refusal = None;
        while !left.is_empty() {
            while refusal.is_none() && line.unanswered() < WINDOW.min(left.len()) {
                let job = &left[line.unanswered()];
                self.prepare(map, source, job).await;
                let payload: Vec<&[u8]> =
                    job.positions.iter().map(|at| &*source.payload(*at).bytes).collect();
                line.ask(&self.store_request(map, source, job), &payload, 0).await?;
            }
            if line.unanswered() == 0 {
                break;
            }
            let answer = line.answer().await;
            if let Err(fault @ Fault::Refused(_)) = answer {
                refused.extend(left.pop_front());
                refusal.get_or_insert(fault);
                continue;
            }
            let job = left.front().expect("what was asked is left until it is answered");
            done.extend(self.outcomes(map, source, job, answer?)?);
            left.pop_front();
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Makes what is sent of each block of a part, just before it is sent: its bytes are in the CPU's cache then.
    async fn prepare(&self, map: &ClusterMap, source: &Source<'_>, job: &Job) {
        let codec = source.codec.unwrap_or_else(|| self.ruled_codec(map, job.device));
        // A block of any length is read by its length, so none is stored that would come back from fewer bytes.
        let codec = if self.has_any_length() { Codec::Raw } else { codec };
        for at in job.positions.iter().map(|at| at - source.range.start) {
            source.payloads[at].get_or_init(|| self.payload(codec, source.blocks[at]));
            if codec != Codec::Raw {
                // Encoding takes a core for a while; others on this thread have their turn.
                tokio::task::yield_now().await;
            }
        }
    }

    fn store_request(&self, map: &ClusterMap, source: &Source<'_>, job: &Job) -> DataRequest {
        let era = self.era(map, source.prefix);
        let block = |at: &usize| {
            let payload = source.payload(*at);
            let header = BlockHeader {
                key: source.prefix.keys()[*at],
                fingerprint: self.fingerprint,
                tenant: self.tenant,
                era,
                depth: source.prefix.depth(*at),
                codec: payload.codec,
                payload_bytes: payload.bytes.len() as u64,
                digest: payload.digest,
            };
            StoreBlock { header, parent: source.prefix.parent(*at) }
        };
        DataRequest::Store(StoreRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            ack: source.ack,
            copy: false,
            moved: false,
            layout: Some(self.layout()).filter(|_| !self.has_any_length()),
            about: source.about,
            runs: job.runs.clone(),
            blocks: job.positions.iter().map(block).collect(),
        })
    }

    /// Returns what became of the blocks of one part.
    fn outcomes(
        &self,
        map: &ClusterMap,
        source: &Source<'_>,
        job: &Job,
        reply: DataReply,
    ) -> Result<Vec<(usize, StoreOutcome)>, Fault> {
        let DataReply::Stored { blocks, .. } = reply else {
            return Err(senseless("a store was answered otherwise"));
        };
        if blocks.len() != job.positions.len() {
            return Err(senseless("a store's answer does not fit its question"));
        }
        let outcomes = blocks.into_iter().zip(self.wanted_copies(map, source.ack, job));
        let outcomes = outcomes.map(|(stored, wanted)| outcome(stored, wanted));
        Ok(job.positions.iter().copied().zip(outcomes).collect())
    }

    /// Returns how many copies acknowledge each block of a job.
    pub(crate) fn wanted_copies<'a>(
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
    blocks: &'a [&'a [u8]],
    /// None when rules choose.
    codec: Option<Codec>,
    payloads: &'a [OnceLock<Payload<'a>>],
    ack: Ack,
    about: About,
    trace: Option<TraceContext>,
}

impl<'a> Source<'a> {
    fn payload(&self, at: usize) -> &Payload<'a> {
        self.payloads[at - self.range.start].get().expect("a part is prepared before it is sent")
    }

    /// Returns how many blocks one request carries. Where copies are waited for, each request costs a way to other nodes.
    fn blocks_per_part(&self, map: &ClusterMap, job: &Job, block_bytes: u64) -> usize {
        let copies = |run: &Run| self.ack.copies(map.replicas(run.slot).0.len());
        let is_alone = job.runs.iter().all(|run| copies(run) <= 1);
        blocks_per_transfer(if is_alone { PART_BYTES } else { BYTES_PER_TRANSFER }, block_bytes)
    }
}

/// How far the parts of one job are.
#[derive(Default)]
struct Progress {
    done: Vec<(usize, StoreOutcome)>,
    refused: Vec<Job>,
    /// Parts without an answer, those that were sent first.
    left: VecDeque<Job>,
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
            Verdict::GiveUp | Verdict::Spare => {
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

pub(crate) fn outcome(stored: Stored, wanted: u8) -> StoreOutcome {
    match stored {
        Stored::Kept { copies, already } if copies >= wanted => {
            StoreOutcome::Acknowledged { copies, already }
        }
        Stored::Kept { copies, .. } => StoreOutcome::TooFewCopies { copies, wanted },
        Stored::Refused(refusal) => StoreOutcome::Refused(refusal),
    }
}
