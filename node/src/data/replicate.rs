//! Replication: a block's bytes, straight from its frame, to the other replicas of its slot; and who of these holds a block already.

use self::at_once::AtOnce;
use crate::data::content::{Content, OnGpu};
use crate::data::counters::{Counters, add, count};
use crate::data::plane::kib;
use crate::fill::Giving;
use crate::guards::ReadGuard;
use crate::links::{Instead, Links, Parcel, limit};
use crate::pace::Pacer;
use crate::settle::is_here;
use crate::view::Serving;
use futures_util::future::join_all;
use kvhive_cache::acks::Answer;
use kvhive_gpu::SharedPlace;
use kvhive_protocol::data::{
    About, Ack, DataReply, DataRequest, MatchRequest, Refusal, Run, StoreBlock, StoreRequest, Stored,
};
use kvhive_protocol::explain::ExplainRequest;
use kvhive_protocol::links::TransportKind;
use kvhive_protocol::{
    BlockHeader, BlockKey, ClusterMap, DeviceId, KeyList, Layout, Slot, TenantId, TraceContext, WireError,
};
use kvhive_spans::Tracer;
use kvhive_wire::Fault;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

mod at_once;
mod verdict;

pub(crate) use verdict::Verdict;

/// Batches copied later that wait or are under way; beyond it they are dropped and counted. Their bytes are bounded too:
/// they hold frames that nothing else can have.
const MAX_LATER: usize = 256;
/// Of these, so many are under way at a time.
const LATER_AT_A_TIME: usize = 4;

/// The first pause before blocks are sent once more whose other way the target has not given up yet; twice as long each time.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(10);

/// One block to be copied.
pub(crate) struct Item {
    /// Its position in the request.
    pub(crate) at: usize,
    pub(crate) block: StoreBlock,
    pub(crate) slot: Slot,
    pub(crate) content: Content,
    /// Who is to have it.
    pub(crate) targets: Vec<DeviceId>,
}

/// One block that was here before, whose bytes need not be at hand.
pub(crate) struct Known {
    pub(crate) key: BlockKey,
    pub(crate) slot: Slot,
}

/// What replicas say of blocks, by the blocks' positions.
pub(crate) type Answers = Vec<(usize, DeviceId, Answer)>;

/// What the other replicas of a block's slot say of it. Who does not answer is in neither.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Holders {
    /// Who holds it.
    pub(crate) holding: Vec<DeviceId>,
    /// Who does not.
    pub(crate) lacking: Vec<DeviceId>,
}

/// Returns the other replicas of a slot.
pub(crate) fn others(map: &ClusterMap, device: DeviceId, slot: Slot) -> Vec<DeviceId> {
    map.replicas(slot).0.iter().copied().filter(|target| *target != device).collect()
}

/// What all blocks of one store have in common.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) serving: Serving,
    /// Whose blocks they are.
    pub(crate) source: DeviceId,
    pub(crate) tenant: TenantId,
    pub(crate) layout: Option<Layout>,
    /// What is known of their request: replicas keep what the primary keeps.
    pub(crate) about: About,
    /// Whose part its copies are.
    pub(crate) trace: Option<TraceContext>,
}

impl Origin {
    fn asker(&self, device: DeviceId) -> Asker<'_> {
        Asker { serving: &self.serving, device, tenant: self.tenant, trace: self.trace }
    }
}

/// Who asks others about blocks.
pub(crate) struct Asker<'a> {
    pub(crate) serving: &'a Serving,
    pub(crate) device: DeviceId,
    pub(crate) tenant: TenantId,
    pub(crate) trace: Option<TraceContext>,
}

/// What one replica is to have.
struct Batch<'a> {
    origin: &'a Origin,
    target: DeviceId,
    items: &'a [&'a Item],
    moved: bool,
}

/// Copies blocks to other nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replicator {
    pub(crate) links: Arc<Links>,
    waiting: Arc<Semaphore>,
    /// One permit a KiB of the blocks that wait.
    room: Arc<Semaphore>,
    room_kib: u32,
    running: Arc<Semaphore>,
    io: Handle,
    /// Replicas that are being given their slots: what does not get there is given once more.
    pub(crate) giving: Giving,
    pub(crate) tracer: Tracer,
}

impl Replicator {
    /// Copies by `links`; in the background at most `later_bytes` at a time.
    pub(crate) fn new(links: Links, io: Handle, later_bytes: u64, tracer: Tracer) -> Replicator {
        let room_kib = kib(later_bytes).clamp(1, 1 << 28);
        Replicator {
            links: Arc::new(links),
            waiting: Arc::new(Semaphore::new(MAX_LATER)),
            room: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
            running: Arc::new(Semaphore::new(LATER_AT_A_TIME)),
            io,
            giving: Giving::default(),
            tracer,
        }
    }

    /// Asks the other replicas which of these blocks they hold; answers in the same order.
    pub(crate) async fn holders(
        &self,
        asker: &Asker<'_>,
        known: &[Known],
        counters: &Counters,
    ) -> Vec<Holders> {
        let mut targets: BTreeMap<DeviceId, Vec<usize>> = BTreeMap::new();
        for (at, one) in known.iter().enumerate() {
            for target in others(&asker.serving.map, asker.device, one.slot) {
                targets.entry(target).or_default().push(at);
            }
        }
        let asked = targets.into_iter().map(|(target, of_it)| async move {
            let blocks: Vec<&Known> = of_it.iter().map(|at| &known[*at]).collect();
            let holds = self.ask_which(asker, target, &blocks).await;
            let holds = holds.inspect_err(|fault| {
                count(&counters.replication_failures);
                tracing::debug!(%target, %fault, "a replica did not say what it holds");
            });
            // One that goes by an older map may mean a block of an ended era.
            let holds = holds.map(|holds| holds.unwrap_or_else(|| vec![false; of_it.len()]));
            (target, of_it, holds.unwrap_or_default())
        });
        let mut holders = vec![Holders::default(); known.len()];
        for (target, of_it, holds) in join_all(asked).await {
            for (at, holds) in of_it.into_iter().zip(holds) {
                let one = &mut holders[at];
                if holds {
                    one.holding.push(target);
                } else {
                    one.lacking.push(target);
                }
            }
        }
        holders
    }

    /// Asks a replica which of these blocks it holds; none where it goes by an older map than the asker.
    async fn ask_which(
        &self,
        asker: &Asker<'_>,
        target: DeviceId,
        blocks: &[&Known],
    ) -> Result<Option<Vec<bool>>, Fault> {
        let Asker { serving, tenant, trace, .. } = *asker;
        let request = DataRequest::Match(MatchRequest {
            epoch: serving.map.epoch,
            device: target,
            tenant,
            hold_ms: 0,
            runs: blocks.iter().map(|one| Run { slot: one.slot, keys: 1 }).collect(),
            keys: blocks.iter().map(|one| one.key).collect::<KeyList>(),
        });
        match self.links.ask((serving, trace), target, &request).await? {
            DataReply::Matched { epoch, covered } if covered.len() == blocks.len() => {
                let is_current = epoch >= serving.map.epoch;
                Ok(is_current.then(|| covered.into_iter().map(|covered| covered == 1).collect()))
            }
            _ => Err(senseless()),
        }
    }

    /// Asks a replica which of these blocks are there, by the same map as the asker's; nobody uses them by that. None where it does not say so.
    pub(crate) async fn are_there(
        &self,
        asker: &Asker<'_>,
        target: DeviceId,
        keys: &[BlockKey],
    ) -> Option<Vec<Option<bool>>> {
        let Asker { serving, tenant, trace, .. } = *asker;
        let epoch = serving.map.epoch;
        let keys: KeyList = keys.iter().copied().collect();
        let count = keys.len();
        let request = ExplainRequest { epoch, device: target, tenant, runs: Vec::new(), keys };
        match self.links.ask((serving, trace), target, &DataRequest::Explain(request)).await {
            Ok(DataReply::Explained { epoch: theirs, blocks, .. })
                if theirs == epoch && blocks.len() == count =>
            {
                Some(blocks.iter().map(is_here).collect())
            }
            Ok(_) => None,
            Err(fault) => {
                tracing::debug!(%target, %fault, "a replica did not say what it holds");
                None
            }
        }
    }

    /// Copies the items to their targets; returns what these say of them.
    pub(crate) async fn now(&self, origin: &Origin, items: Vec<Item>, counters: &Counters) -> Answers {
        let mut targets: BTreeMap<DeviceId, Vec<&Item>> = BTreeMap::new();
        for item in &items {
            for target in &item.targets {
                targets.entry(*target).or_default().push(item);
            }
        }
        let deadline = Instant::now() + limit(false);
        let mut at_once = self.copy_to_all(origin, &targets, deadline).await;
        let copies = targets.into_iter().map(|(target, items)| {
            let before = at_once.remove(&target);
            (target, items, before)
        });
        let copies = copies.map(|(target, items, before)| async move {
            let batch = Batch { origin, target, items: &items, moved: false };
            let copied = match before {
                Some(AtOnce::Copied(answers)) => Ok(answers),
                Some(AtOnce::Failed) => {
                    self.copy(&batch, deadline, Some(TransportKind::Tcp)).await.map(answers_of)
                }
                None => self.copy(&batch, deadline, None).await.map(answers_of),
            };
            let answers = copied.unwrap_or_else(|fault| {
                count(&counters.replication_failures);
                tracing::debug!(%target, %fault, "copy failed");
                vec![None; items.len()]
            });
            let held = answers.iter().filter(|answer| **answer == Some(Answer::Holds)).count();
            add(&counters.replicated_blocks, held as u64);
            let mut answered = Vec::with_capacity(items.len());
            for (item, answer) in items.iter().zip(answers) {
                match answer {
                    Some(answer) => answered.push((item.at, target, answer)),
                    None => self.giving.missed(item.slot, target),
                }
            }
            answered
        });
        join_all(copies).await.concat()
    }

    /// Gives blocks to a replica that is being given their slots: those that it does not say it has. Says of each what became of it.
    ///
    /// # Errors
    /// Whatever kept it from answering.
    pub(crate) async fn give(
        &self,
        origin: &Origin,
        target: DeviceId,
        items: &[Item],
        pacer: &Pacer,
    ) -> Result<Vec<Verdict>, Fault> {
        let key = |item: &Item| Known { key: item.block.header.key, slot: item.slot };
        let known: Vec<Known> = items.iter().map(key).collect();
        let known: Vec<&Known> = known.iter().collect();
        // It would take nothing.
        let Some(holds) = self.ask_which(&origin.asker(target), target, &known).await? else {
            return Ok(vec![Verdict::Later; items.len()]);
        };
        let lacked = items.iter().zip(&holds).filter(|(_, holds)| !**holds);
        let lacked: Vec<&Item> = lacked.map(|(item, _)| item).collect();
        let mut said = Vec::new();
        if !lacked.is_empty() {
            let bytes = lacked.iter().map(|item| item.block.header.payload_bytes).sum();
            pacer.pass(bytes).await;
            let batch = Batch { origin, target, items: &lacked, moved: true };
            said = self.copy(&batch, Instant::now() + limit(true), None).await?;
        }
        let mut said = said.into_iter();
        let mut verdict =
            |holds: bool| if holds { Verdict::There } else { Verdict::of(said.next().flatten()) };
        Ok(holds.into_iter().map(&mut verdict).collect())
    }

    /// Copies the items in the background, unless too much waits already.
    pub(crate) fn later(&self, origin: Origin, items: Vec<Item>, counters: &Arc<Counters>) {
        // Slots of one replica have nobody to copy to.
        if items.iter().all(|item| item.targets.is_empty()) {
            return;
        }
        let bytes = items.iter().map(|item| item.block.header.payload_bytes).sum();
        let place = self.waiting.clone().try_acquire_owned();
        let room = self.room.clone().try_acquire_many_owned(kib(bytes).min(self.room_kib));
        let (Ok(place), Ok(room)) = (place, room) else {
            add(&counters.replication_dropped, items.len() as u64);
            for item in &items {
                item.targets.iter().for_each(|target| self.giving.missed(item.slot, *target));
            }
            return;
        };
        let (replicator, counters) = (self.clone(), counters.clone());
        let begun = Instant::now();
        self.io.spawn(async move {
            if let Ok(_turn) = replicator.running.acquire().await {
                replicator.now(&origin, items, &counters).await;
            }
            let lag = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            counters.replication_lag_us.store(lag, Ordering::Relaxed);
            drop((place, room));
        });
    }

    /// Returns how many batches wait to be copied or are being copied in the background.
    pub(crate) fn waiting(&self) -> usize {
        MAX_LATER - self.waiting.available_permits()
    }

    /// Forgets connections to members that are not in the map.
    pub(crate) fn keep(&self, serving: &Serving) {
        self.links.keep(serving);
    }

    /// Copies items to one replica by a deadline; returns what it says of each, none where it could not be sent. By which way is said where another
    /// was tried before.
    async fn copy(
        &self,
        batch: &Batch<'_>,
        deadline: Instant,
        mut by: Option<TransportKind>,
    ) -> Result<Vec<Option<Stored>>, Fault> {
        let Batch { items, .. } = *batch;
        let on_gpu = on_gpu(items);
        let is_on_gpu = on_gpu.is_some();
        if let Some(blocks) = on_gpu.filter(|_| by.is_none()) {
            let request = batch.request(items.iter().map(|item| (*item, *item.content.header())));
            let parcel = Parcel { on_gpu: &blocks, ..batch.parcel(&request, (&[], &[]), deadline) };
            match self.links.carry_on_gpu(&parcel).await {
                Ok(DataReply::Stored { blocks, .. }) if blocks.len() == items.len() => {
                    return Ok(blocks.into_iter().map(Some).collect());
                }
                Ok(_) => return Err(senseless()),
                Err(Instead(way)) => by = way,
            }
        }
        let brought = join_all(items.iter().map(|item| item.content.bytes())).await;
        let here: Vec<(usize, Arc<ReadGuard>)> =
            brought.into_iter().enumerate().filter_map(|(at, guard)| Some((at, guard?))).collect();
        let mut answers = vec![None; items.len()];
        if here.is_empty() {
            return Ok(answers);
        }
        let request = batch.request(here.iter().map(|(at, guard)| (items[*at], *guard.header())));
        let payload: Vec<&[u8]> = here.iter().map(|(_, guard)| guard.bytes()).collect();
        let places: Vec<Option<SharedPlace>> = here.iter().map(|(_, guard)| guard.shared_place()).collect();
        let parcel = batch.parcel(&request, (&payload, &places), deadline);
        let mut pause = IN_FLIGHT_PAUSE;
        let said = loop {
            let said = match self.links.carry(&parcel, (by, is_on_gpu)).await? {
                DataReply::Stored { blocks, .. } if blocks.len() == here.len() => blocks,
                _ => return Err(senseless()),
            };
            // The other end may not have heard yet that these do not come by NCCL.
            let is_in_flight = said.contains(&Stored::Refused(Refusal::InFlight));
            if by.is_none() || !is_in_flight || Instant::now() + pause >= deadline {
                break said;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        for ((at, guard), said) in here.iter().zip(said) {
            // Damaged on its way, or here: what is damaged here is given to nobody any more.
            if said == Stored::Refused(Refusal::Corrupt) && guard.header().check_bytes(guard.bytes()).is_err()
            {
                guard.report_lost();
            }
            answers[*at] = Some(said);
        }
        Ok(answers)
    }
}

/// Returns what a replica's words on copies mean; none where it may take a block another time.
fn answers_of(said: Vec<Option<Stored>>) -> Vec<Option<Answer>> {
    said.into_iter().map(|said| said.and_then(Answer::of)).collect()
}

/// Returns the blocks of items that are all on a GPU.
fn on_gpu(items: &[&Item]) -> Option<Vec<Arc<OnGpu>>> {
    items.iter().map(|item| item.content.on_gpu().cloned()).collect()
}

impl Batch<'_> {
    /// Makes the store of some of its items. What is here may be stored otherwise than what came now, and says so itself: by its header.
    fn request<'a>(&self, items: impl Iterator<Item = (&'a Item, BlockHeader)>) -> DataRequest {
        let Origin { serving, tenant, layout, about, .. } = self.origin;
        let (runs, blocks): (Vec<Run>, Vec<StoreBlock>) = items
            .map(|(item, header)| (Run { slot: item.slot, keys: 1 }, StoreBlock { header, ..item.block }))
            .unzip();
        let fingerprint = layout.map(|layout| layout.fingerprint());
        let alike = blocks.iter().all(|block| Some(block.header.fingerprint) == fingerprint);
        DataRequest::Store(StoreRequest {
            epoch: serving.map.epoch,
            device: self.target,
            tenant: *tenant,
            ack: Ack::Primary,
            copy: true,
            moved: self.moved,
            layout: layout.filter(|_| alike),
            about: *about,
            runs,
            blocks,
        })
    }

    fn parcel<'a>(
        &'a self,
        request: &'a DataRequest,
        (payload, places): (&'a [&'a [u8]], &'a [Option<SharedPlace>]),
        deadline: Instant,
    ) -> Parcel<'a> {
        let Origin { serving, source, trace, .. } = self.origin;
        let (trace, source, target) = (*trace, *source, self.target);
        Parcel { serving, trace, source, target, request, on_gpu: &[], payload, places, deadline }
    }
}

fn senseless() -> Fault {
    Fault::Protocol(WireError::malformed(format_args!("a replica's answer does not fit its question")))
}
