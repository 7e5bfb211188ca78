//! Fetch: blocks into the caller's memory, each checked there.

use crate::codec;
use crate::error::ClientError;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::retry::Backoff;
use crate::route::{Job, plan, split};
use crate::stats::count;
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{Accept, DataReply, DataRequest, FetchRequest, Fetched, MAX_BLOCKS_PER_TRANSFER};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, HeaderError, KeyList, WireError};
use kvhive_wire::{Connection, Fault};
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
        loop {
            let map = self.shared().map();
            let open = range.clone().filter(|at| outcomes[at - range.start].is_none());
            let plan = plan(&map, prefix, open, &avoid, false);
            for at in &plan.nowhere {
                outcomes[at - range.start] = Some(FetchOutcome::Missed(MissReason::Unreachable));
            }
            let blocks = blocks_per_transfer(self.block_bytes);
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
            if !self.shared().mend(&map, &failed, &mut avoid, &mut backoff, deadline).await {
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

    /// Fetches the parts of one device's job, one after the other; stops at the first that fails as a whole.
    async fn fetch_parts(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        parts: Vec<(Job, Vec<&mut [u8]>)>,
        deadline: Instant,
    ) -> (Vec<(usize, FetchOutcome)>, Option<(DeviceId, Fault)>) {
        let mut done = Vec::new();
        for (job, mut targets) in parts {
            let limit = deadline.saturating_duration_since(Instant::now());
            let part = self.fetch_part(map, prefix, &job, &mut targets, deadline, &mut done);
            let fault = match tokio::time::timeout_at(deadline, part).await {
                Ok(Ok(())) => continue,
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Timeout(limit),
            };
            return (done, Some((job.device, fault)));
        }
        (done, None)
    }

    async fn fetch_part(
        &self,
        map: &ClusterMap,
        prefix: &Prefix,
        job: &Job,
        targets: &mut [&mut [u8]],
        deadline: Instant,
        done: &mut Vec<(usize, FetchOutcome)>,
    ) -> Result<(), Fault> {
        let keys: KeyList = job.positions.iter().map(|at| prefix.keys()[*at]).collect();
        let request = DataRequest::Fetch(FetchRequest {
            epoch: map.epoch,
            device: job.device,
            tenant: self.tenant,
            runs: job.runs.clone(),
            keys,
            accept: if self.reads_raw() { Accept::Raw(self.layout()) } else { Accept::Stored },
        });
        let (mut lease, reply) =
            self.shared().call(map, job.device, &request, &[], self.block_bytes, deadline).await?;
        let DataReply::Fetched { blocks, .. } = reply else {
            return Err(senseless("a fetch was answered otherwise"));
        };
        let announced: u64 = blocks.iter().map(payload_bytes).fold(0, u64::saturating_add);
        if blocks.len() != job.positions.len() || announced != lease.connection().payload_left() {
            return Err(senseless("a fetch's answer does not fit its question or its payload"));
        }
        for ((at, block), target) in job.positions.iter().zip(blocks).zip(targets) {
            let outcome = match block {
                Fetched::Miss => FetchOutcome::Missed(MissReason::Absent),
                Fetched::Hit(header) => {
                    let checked = self.receive(map, prefix, *at, &header, lease.connection(), target).await?;
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
        lease.give_back();
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
        let fits = match header.codec {
            Codec::Raw => header.payload_bytes == target.len() as u64,
            // Who asked for raw takes nothing else; no codec makes a block larger.
            _ => !self.reads_raw() && header.payload_bytes <= target.len() as u64,
        };
        if let Err(error) = checked.and(if fits { Ok(()) } else { Err(HeaderError::Length) }) {
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

/// Returns how many blocks of this size one request carries.
pub(crate) fn blocks_per_transfer(block_bytes: u64) -> usize {
    let fit = usize::try_from(BYTES_PER_TRANSFER / block_bytes).unwrap_or(usize::MAX);
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
