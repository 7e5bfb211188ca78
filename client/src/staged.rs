//! Blocks over a stage: to the GPUs of nodes on this host and from them, without passing the host's memory. What does not go so is left to
//! its caller, who stores or fetches it as any other.

use crate::codec;
use crate::error::ClientError;
use crate::fetch::{Loaded, run_all, senseless};
use crate::line::Line;
use crate::namespace::NamespaceClient;
use crate::prefix::Prefix;
use crate::queue::Work;
use crate::route::{Job, plan, primary, split};
use crate::stages::StageLease;
use crate::stats::count;
use crate::store::{StoreOptions, StoreOutcome, outcome};
use kvhive_protocol::block::Codec;
use kvhive_protocol::data::{
    Accept, DataReply, DataRequest, FetchRequest, Fetched, MAX_BLOCKS_PER_TRANSFER, StoreBlock, StoreRequest,
    Stored,
};
use kvhive_protocol::stage::{StagedFetch, StagedStore};
use kvhive_protocol::{BlockHeader, ClusterMap, DeviceId, Level, TraceContext, WireError};
use kvhive_wire::Fault;
use std::ops::Range;
use tokio::time::{Instant, timeout_at};

/// What the requests of one call have in common.
struct Over<'a> {
    map: &'a ClusterMap,
    prefix: &'a Prefix,
    lease: &'a StageLease,
    /// Which block is the first on the stage.
    start: usize,
    trace: Option<TraceContext>,
    deadline: Instant,
}

impl NamespaceClient {
    /// Returns how many blocks a stage has room for.
    pub fn blocks_on(&self, lease: &StageLease) -> usize {
        usize::try_from(lease.bytes() / self.block_bytes).unwrap_or(usize::MAX)
    }

    /// Stores what is on a stage as the blocks `range` of `prefix`, where the first to hold them are GPUs that it is lent to. Says of each block
    /// what became of it; none where it is not stored so.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when range, prefix and stage do not fit together.
    pub async fn store_staged(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        lease: &StageLease,
        options: StoreOptions,
    ) -> Result<Vec<Option<StoreOutcome>>, ClientError> {
        self.check_staged(prefix, &range, lease)?;
        let mut call = self.call("store staged blocks", range.len());
        let map = self.shared().map();
        let plan = plan(&map, prefix, range.clone(), &[], |segment| {
            primary(segment).filter(|device| lease.pass(*device).is_some())
        });
        let over = self.over((&map, prefix, lease), range.start, call.trace);
        let tasks = plan.jobs.into_iter().map(|job| self.gather(&over, job, options)).collect();
        let mut outcomes = vec![None; range.len()];
        let mut bytes = 0;
        for (at, one, stored) in run_all(tasks).await.into_iter().flatten() {
            if matches!(
                one,
                StoreOutcome::Acknowledged { already: false, .. } | StoreOutcome::TooFewCopies { .. }
            ) {
                bytes += stored;
            }
            outcomes[at - range.start] = Some(one);
        }
        let counters = &self.shared().counters;
        count(&counters.bytes_stored, bytes);
        count(&counters.bytes_stored_on_gpu, bytes);
        call.span.note("kvhive.bytes", bytes);
        Ok(outcomes)
    }

    /// Has the blocks `range` of `prefix` be put on a stage, those that are held by GPUs' nodes it is lent to. Says of each block whether it is
    /// there, checked by its node on its GPU; none where it is not, for whatever reason.
    ///
    /// # Errors
    /// [`ClientError::Misuse`] when range, prefix and stage do not fit together.
    pub async fn fetch_staged(
        &self,
        prefix: &Prefix,
        range: Range<usize>,
        lease: &StageLease,
    ) -> Result<Vec<Option<Loaded>>, ClientError> {
        self.check_staged(prefix, &range, lease)?;
        let mut call = self.call("fetch staged blocks", range.len());
        let map = self.shared().map();
        let near = self.shared().near(&map);
        let plan = plan(&map, prefix, range.clone(), &[], |segment| {
            let is_lent = |device: &DeviceId| lease.pass(*device).is_some();
            let near = near.and_then(|member| segment.of(member)).filter(is_lent);
            near.or_else(|| segment.whole().find(is_lent)).or_else(|| segment.left().find(is_lent))
        });
        let over = self.over((&map, prefix, lease), range.start, call.trace);
        let tasks = plan.jobs.into_iter().map(|job| self.scatter(&over, job)).collect();
        let mut loaded = vec![None; range.len()];
        for (at, one) in run_all(tasks).await.into_iter().flatten() {
            loaded[at - range.start] = Some(one);
        }
        let bytes = loaded.iter().flatten().map(|one: &Loaded| one.stored_bytes).sum();
        let counters = &self.shared().counters;
        count(&counters.bytes_fetched, bytes);
        count(&counters.bytes_fetched_on_gpu, bytes);
        call.span.note("kvhive.bytes", bytes);
        Ok(loaded)
    }

    fn over<'a>(
        &self,
        (map, prefix, lease): (&'a ClusterMap, &'a Prefix, &'a StageLease),
        start: usize,
        trace: Option<TraceContext>,
    ) -> Over<'a> {
        Over { map, prefix, lease, start, trace, deadline: self.deadline() }
    }

    fn check_staged(
        &self,
        prefix: &Prefix,
        range: &Range<usize>,
        lease: &StageLease,
    ) -> Result<(), ClientError> {
        self.check_range(prefix, range, range.len())?;
        let (blocks, room) = (range.len(), self.blocks_on(lease));
        if blocks > room {
            return Err(ClientError::Misuse(format!("{blocks} blocks on a stage for {room}")));
        }
        Ok(())
    }

    /// Has one device take its blocks; stops at the first part that it does not take.
    async fn gather(
        &self,
        over: &Over<'_>,
        job: Job,
        options: StoreOptions,
    ) -> Vec<(usize, StoreOutcome, u64)> {
        let (device, layout) = (job.device, self.layout());
        let codec = options.codec.unwrap_or_else(|| self.ruled_codec(over.map, device));
        let (codec, bytes) = match codec::stored_bytes(codec, &layout) {
            Some(bytes) if bytes < self.block_bytes => (codec, bytes),
            Some(_) => (Codec::Raw, self.block_bytes),
            // The processor's.
            None => return Vec::new(),
        };
        let ack = options.ack.unwrap_or(over.map.settings.ack);
        let era = self.era(over.map, over.prefix);
        let mut done = Vec::with_capacity(job.positions.len());
        for part in split(job, MAX_BLOCKS_PER_TRANSFER) {
            let Some(stage) = over.lease.pass(device) else { break };
            let block = |at: &usize| {
                let header = BlockHeader {
                    key: over.prefix.keys()[*at],
                    fingerprint: self.fingerprint,
                    tenant: self.tenant,
                    era,
                    depth: over.prefix.depth(*at),
                    codec,
                    payload_bytes: bytes,
                    digest: 0,
                };
                StoreBlock { header, parent: over.prefix.parent(*at) }
            };
            let store = StoreRequest {
                epoch: over.map.epoch,
                device,
                tenant: self.tenant,
                ack,
                copy: false,
                moved: false,
                layout: Some(layout),
                about: options.about,
                runs: part.runs.clone(),
                blocks: part.positions.iter().map(block).collect(),
            };
            let at = self.places(over, &part);
            let request = DataRequest::Gather(Box::new(StagedStore { stage, at, store }));
            let blocks = match self.ask_over(over, device, &request).await {
                Some(DataReply::Stored { blocks, .. }) if blocks.len() == part.positions.len() => blocks,
                _ => break,
            };
            let wanted = self.wanted_copies(over.map, ack, &part);
            let outcomes = part.positions.iter().zip(blocks.into_iter().zip(wanted));
            // What was refused is tried as any other is.
            let kept = outcomes.filter(|(_, (stored, _))| matches!(stored, Stored::Kept { .. }));
            done.extend(kept.map(|(at, (stored, wanted))| (*at, outcome(stored, wanted), bytes)));
        }
        done
    }

    /// Has one device put its blocks there; stops at the first part that it does not put.
    async fn scatter(&self, over: &Over<'_>, job: Job) -> Vec<(usize, Loaded)> {
        let (device, layout) = (job.device, self.layout());
        let era = self.era(over.map, over.prefix);
        let mut done = Vec::with_capacity(job.positions.len());
        for part in split(job, MAX_BLOCKS_PER_TRANSFER) {
            let Some(stage) = over.lease.pass(device) else { break };
            let fetch = FetchRequest {
                epoch: over.map.epoch,
                device,
                tenant: self.tenant,
                runs: part.runs.clone(),
                keys: part.positions.iter().map(|at| over.prefix.keys()[*at]).collect(),
                accept: Accept::Raw(layout),
            };
            let at = self.places(over, &part);
            let request = DataRequest::Scatter(Box::new(StagedFetch { stage, at, fetch }));
            let blocks = match self.ask_over(over, device, &request).await {
                Some(DataReply::Fetched { blocks, .. }) if blocks.len() == part.positions.len() => blocks,
                _ => break,
            };
            for (at, block) in part.positions.iter().zip(blocks) {
                let Fetched::Hit(header) = block else { continue };
                let key = &over.prefix.keys()[*at];
                if let Err(error) = header.check(key, self.fingerprint, self.tenant, era) {
                    count(&self.shared().counters.corrupt_blocks, 1);
                    tracing::warn!(?key, %device, %error, "block refused");
                    continue;
                }
                done.push((*at, Loaded { bytes: self.block_bytes, stored_bytes: header.payload_bytes }));
            }
        }
        done
    }

    /// Returns where on the stage the blocks of a part are.
    fn places(&self, over: &Over<'_>, part: &Job) -> Vec<u64> {
        part.positions.iter().map(|at| (at - over.start) as u64 * self.block_bytes).collect()
    }

    /// Asks a device to use the stage. None where it did not; then the stage is not used again unless the device has said that it does not use it
    /// any more.
    async fn ask_over(&self, over: &Over<'_>, device: DeviceId, request: &DataRequest) -> Option<DataReply> {
        let shared = self.shared();
        let using = over.lease.begin();
        // Of what was asked twice one may go on still, whatever the other is answered.
        let mut is_repeated = false;
        let exchange = async {
            let mut line =
                Line::open(shared, over.map, device, Work::Blocks, over.trace, over.deadline).await?;
            if line.connection().level() < Level::DAYS {
                line.close();
                return Err(senseless("it knows no stages"));
            }
            loop {
                let answer = match line.ask(request, &[], 0).await {
                    Ok(()) => line.answer().await,
                    Err(fault) => Err(fault),
                };
                match answer {
                    Err(fault) if !matches!(fault, Fault::Refused(_)) => {
                        is_repeated = true;
                        line.revive(fault).await?;
                    }
                    answer => {
                        line.close();
                        return answer;
                    }
                }
            }
        };
        let limit = over.deadline.saturating_duration_since(Instant::now());
        let ended = timeout_at(over.deadline, exchange).await.unwrap_or(Err(Fault::Timeout(limit)));
        match ended {
            Ok(reply) => {
                if !is_repeated {
                    using.end();
                }
                Some(reply)
            }
            Err(fault) => {
                tracing::debug!(%device, %fault, "blocks do not go over a stage");
                count(&shared.counters.stage_fallbacks, 1);
                match fault {
                    Fault::Refused(WireError::NotCarried { .. }) => over.lease.is_of_no_use_to(device),
                    // It has not begun.
                    Fault::Refused(_) | Fault::Overloaded if !is_repeated => using.end(),
                    _ => {}
                }
                None
            }
        }
    }
}
