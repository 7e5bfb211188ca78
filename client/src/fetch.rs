//! Fetch: blocks into the caller's memory, each checked there.

use crate::codec;
use crate::error::ClientError;
use crate::line::{Line, WINDOW};
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::Backoff;
use crate::route::{Job, plan, split};
use crate::stats::count;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, DataRequest, FetchRequest, Fetched, MAX_BLOCKS_PER_TRANSFER};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, HeaderError, KeyList, WireError};
use kvhive_wire::{Connection, Fault};
use std::collections::VecDeque;
use std::ops::Range;
use tokio::time::Instant;

/// Bytes of one request's blocks, unless a single one is larger.
pub(crate) const BYTES_PER_TRANSFER: u64 = 8 << 20;

/// Proof that a block lies in the caller's memory and was checked there. Only the check makes one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    bytes: u64,
    stored_bytes: u64,
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
    /// Its device could not be reached in time, or has no lease, or there is none.
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
        if let Some(target) = targets.iter().find(|target| target.len() as u64 != self.block_bytes) {
            let given = target.len();
            return Err(ClientError::Misuse(format!(
                "{given} bytes of memory for a block of {}",
                self.block_bytes
            )));
        }
        let deadline = self.deadline();
        let mut outcomes: Vec<Option<FetchOutcome>> = vec![None; range.len()];
        let mut avoid: Vec<DeviceId> = Vec::new();
        let mut backoff = Backoff::new();
        let mut looked_again = false;
        loop {
            let map = self.shared().map();
            let open = range.clone().filter(|at| outcomes[at - range.start].is_none());
            let plan = plan(&map, prefix, open, &avoid, false);
            if !plan.nowhere.is_empty() && self.shared().looks_again(&map, &mut looked_again, deadline).await
            {
                continue;
            }
            for at in &plan.nowhere {
                outcomes[at - range.start] = Some(FetchOutcome::Missed(MissReason::Unreachable));
            }
            let blocks = blocks_per_transfer(BYTES_PER_TRANSFER, self.block_bytes);
            let mut memory: Vec<Option<&mut [u8]>> =
                targets.iter_mut().map(|target| Some(&mut **target)).collect();
            let tasks = plan.jobs.into_iter().map(|job| {
                let parts = split(job, blocks).into_iter().map(|part| {
                    let targets = part.positions.iter().map(|at| memory[at - range.start].take());
                    let targets: Vec<&mut [u8]> =
                        targets.map(|target| target.expect("one job a position")).collect();
                    (part, targets)
                });
                self.fetch_parts(&map, prefix, parts.collect(), deadline)
            });
            let tasks: Vec<_> = tasks.collect();
            let answers = run_all(tasks).await;
            let mut failed = Vec::new();
            for (done, fault) in answers {
                for (at, outcome) in done {
                    outcomes[at - range.start] = Some(outcome);
                }
                failed.extend(fault);
            }
            if failed.is_empty() {
                break;
            }
            if !self.shared().mend(&map, &failed, &mut avoid, &mut looked_again, &mut backoff, deadline).await
            {
                break;
            }
        }
        let missed = FetchOutcome::Missed(MissReason::Unreachable);
        let outcomes: Vec<FetchOutcome> =
            outcomes.into_iter().map(|outcome| outcome.unwrap_or(missed)).collect();
        let payload = |outcome: &FetchOutcome| match outcome {
            FetchOutcome::Loaded(loaded) => loaded.stored_bytes,
            FetchOutcome::Missed(_) => 0,
        };
        count(&self.shared().counters.bytes_fetched, outcomes.iter().map(payload).sum());
        Ok(FetchReport { outcomes })
    }

    /// Fetches the parts of one device's job in their order; stops at the first that fails as a whole.
    async fn fetch_parts(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        parts: Vec<(Job, Vec<&mut [u8]>)>,
        deadline: Instant,
    ) -> (Vec<(usize, FetchOutcome)>, Option<(DeviceId, Fault)>) {
        let Some((job, _)) = parts.first() else { return (Vec::new(), None) };
        let device = job.device;
        let mut done = Vec::new();
        let mut left = VecDeque::from(parts);
        let limit = deadline.saturating_duration_since(Instant::now());
        let exchange = async {
            let mut line = Line::open(self.shared(), map, device, deadline).await?;
            loop {
                match self.fetch_over(&mut line, map, prefix, &mut left, &mut done).await {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => line.revive(fault).await?,
                    ended => {
                        line.close();
                        return ended;
                    }
                }
            }
        };
        let ended = tokio::time::timeout_at(deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)));
        (done, ended.err().map(|fault| (device, fault)))
    }

    /// Asks for the parts that are left and takes their blocks in. A part leaves `left` when its answer has begun.
    async fn fetch_over(
        &self,
        line: &mut Line<'_>,
        map: &ClusterMap,
        prefix: &Prefix,
        left: &mut VecDeque<(Job, Vec<&mut [u8]>)>,
        done: &mut Vec<(usize, FetchOutcome)>,
    ) -> Result<(), Fault> {
        while !left.is_empty() {
            while let Some((job, _)) = left.get(line.unanswered()).filter(|_| line.unanswered() < WINDOW) {
                line.ask(&self.fetch_request(map, prefix, job), &[], self.block_bytes).await?;
            }
            let reply = line.answer().await?;
            let (job, targets) = left.pop_front().expect("what was asked is left until it is answered");
            self.take_part(line.connection(), map, prefix, &job, targets, reply, done).await?;
        }
        Ok(())
    }

    fn fetch_request(&self, map: &ClusterMap, prefix: &Prefix, job: &Job) -> DataRequest {
        let keys: KeyList = job.positions.iter().map(|at| prefix.keys()[*at]).collect();
        DataRequest::Fetch(FetchRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            runs: job.runs.clone(),
            keys,
            accept: if self.reads_raw() { Accept::Raw(self.layout()) } else { Accept::Stored },
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one part's question, answer and memory")]
    async fn take_part(
        &self,
        connection: &mut Connection,
        map: &ClusterMap,
        prefix: &Prefix,
        job: &Job,
        targets: Vec<&mut [u8]>,
        reply: DataReply,
        done: &mut Vec<(usize, FetchOutcome)>,
    ) -> Result<(), Fault> {
        let DataReply::Fetched { blocks, .. } = reply else {
            return Err(senseless("a fetch was answered otherwise"));
        };
        let announced: u64 = blocks.iter().map(payload_bytes).fold(0, u64::saturating_add);
        if blocks.len() != job.positions.len() || announced != connection.payload_left() {
            return Err(senseless("a fetch's answer does not fit its question or its payload"));
        }
        for ((at, block), target) in job.positions.iter().zip(blocks).zip(targets) {
            let outcome = match block {
                Fetched::Miss => FetchOutcome::Missed(MissReason::Absent),
                Fetched::Hit(header) => {
                    let checked = self.receive(map, prefix, *at, &header, connection, target).await?;
                    checked.map_or_else(
                        |error| {
                            count(&self.shared().counters.corrupt_blocks, 1);
                            tracing::warn!(key = ?prefix.keys()[*at], device = %job.device, %error, "block refused");
                            FetchOutcome::Missed(MissReason::Corrupt(error))
                        },
                        FetchOutcome::Loaded,
                    )
                }
            };
            done.push((*at, outcome));
        }
        Ok(())
    }

    /// Reads one block into its place and checks it there, or decodes it to there when it was checked: the only maker of
    /// [`Loaded`].
    async fn receive(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        at: usize,
        header: &BlockHeader,
        connection: &mut Connection,
        target: &mut [u8],
    ) -> Result<Result<Loaded, HeaderError>, Fault> {
        let checked = header.check(&prefix.keys()[at], self.fingerprint, self.tenant, self.era(map));
        let expected = match header.codec {
            Codec::Raw if header.payload_bytes == target.len() as u64 => Ok(()),
            Codec::Raw => Err(HeaderError::Length),
            codec if self.reads_raw() => Err(HeaderError::Codec(codec)),
            // No codec makes a block larger.
            _ if header.payload_bytes <= target.len() as u64 => Ok(()),
            _ => Err(HeaderError::Length),
        };
        if let Err(error) = checked.and(expected) {
            connection.skip_payload(header.payload_bytes).await?;
            return Ok(Err(error));
        }
        let loaded = Loaded { bytes: target.len() as u64, stored_bytes: header.payload_bytes };
        if header.codec == Codec::Raw {
            let digest = connection.read_payload(target).await?;
            return Ok(if digest == header.digest { Ok(loaded) } else { Err(HeaderError::Digest) });
        }
        let mut stored = vec![0; header.payload_bytes as usize];
        let digest = connection.read_payload(&mut stored).await?;
        if digest != header.digest {
            return Ok(Err(HeaderError::Digest));
        }
        if let Err(error) = codec::decode(header.codec, &self.layout(), &stored, target) {
            tracing::debug!(%error, codec = header.codec.name(), "block not decoded");
            return Ok(Err(HeaderError::Codec(header.codec)));
        }
        count(&self.shared().counters.decoded_blocks, 1);
        Ok(Ok(loaded))
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

fn payload_bytes(block: &Fetched) -> u64 {
    match block {
        Fetched::Hit(header) => header.payload_bytes,
        Fetched::Miss => 0,
    }
}

pub(crate) fn senseless(what: &str) -> Fault {
    Fault::Protocol(WireError::malformed(format_args!("{what}")))
}
