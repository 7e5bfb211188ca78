//! Links: how the bytes of blocks get from one device to another. Each way is a [`Transport`]; which one a batch goes by is decided
//! for each pair of devices, and one that fails is followed by TCP within the same deadline.

mod local;
mod nccl;
mod on_gpu;
mod report;
mod shared;
mod tcp;

use crate::config::NcclConfig;
use crate::data::{DataPlane, OnGpu, add, count};
use crate::guards::WriteGuard;
use crate::view::{Serving, View};
use futures_util::future::BoxFuture;
use kvhive_client::Pool;
use kvhive_gpu::SharedPlace;
use kvhive_gpu::worker::Packing;
use kvhive_links::Ends;
use kvhive_links::pairs::Why;
use kvhive_protocol::data::{DataReply, DataRequest, StoreRequest};
use kvhive_protocol::links::{PairState, TransportKind};
use kvhive_protocol::pairs::{PairMessage, TransferId};
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{DeviceId, Generation, MemberId, TraceContext};
use kvhive_spans::{Span, Tracer};
use kvhive_wire::Fault;
use local::InProcess;
use nccl::Nccl;
pub(crate) use nccl::{NotCarried, OwnGpu, Without};
pub(crate) use on_gpu::Instead;
pub(crate) use report::{LinkFrom, SetFrom};
use shared::SharedMemory;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
pub(crate) use tcp::Fetching;
use tcp::Tcp;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A batch that has not gone by NCCL within this goes by TCP in what is left of its time.
const NCCL_LIMIT: Duration = Duration::from_secs(2);
/// A device that has not taken a batch within this does not hold it.
pub(crate) const COPY_LIMIT: Duration = Duration::from_secs(5);

/// A batch of blocks for one device.
pub(crate) struct Parcel<'a> {
    pub(crate) serving: &'a Serving,
    /// Whose part its way is.
    pub(crate) trace: Option<TraceContext>,
    /// Whose blocks they are.
    pub(crate) source: DeviceId,
    pub(crate) target: DeviceId,
    /// The store that they are of.
    pub(crate) request: &'a DataRequest,
    /// The blocks, where all of them are to go out of frames of a GPU.
    pub(crate) on_gpu: &'a [Arc<OnGpu>],
    /// Else the bytes of each.
    pub(crate) payload: &'a [&'a [u8]],
    /// Where other processes see these, if they can.
    pub(crate) places: &'a [Option<SharedPlace>],
    pub(crate) deadline: Instant,
}

impl Parcel<'_> {
    fn moves(&self) -> bool {
        matches!(self.request, DataRequest::Store(StoreRequest { moved: true, .. }))
    }
}

/// Returns how long a device may take to take a batch. What moves may have to wait first.
pub(crate) fn limit(moves: bool) -> Duration {
    if moves { COPY_LIMIT + crate::pace::LONGEST } else { COPY_LIMIT }
}

/// A way for blocks from a device to another.
trait Transport: Send + Sync {
    /// Has a batch get to its target by its deadline, and returns what that says of it.
    ///
    /// # Errors
    /// Whatever kept the target from taking it or from saying so. It may have taken it all the same.
    fn carry<'a>(&'a self, parcel: &'a Parcel<'a>) -> BoxFuture<'a, Result<DataReply, NotCarried>>;
}

/// All ways from this node's devices.
pub(crate) struct Links {
    view: Arc<View>,
    tracer: Tracer,
    tcp: Arc<Tcp>,
    in_process: InProcess,
    shared_memory: SharedMemory,
    /// None where the node has no GPU, or is to do without NCCL.
    nccl: Option<Nccl>,
    /// By which way each device reaches others, by its index.
    choices: Vec<Mutex<kvhive_links::Links>>,
    /// Who is where, by the map that was looked at last.
    known: Mutex<BTreeMap<MemberId, Generation>>,
    figures: [Figures; TransportKind::ALL.len()],
}

/// What went by a way, since the node started.
#[derive(Default)]
struct Figures {
    batches: AtomicU64,
    failures: AtomicU64,
    bytes: AtomicU64,
}

impl Links {
    /// Makes the ways from devices, with their GPUs where they have one: over connections of `pool`, until [`Links::serve`], and by NCCL, of which is spoken
    /// over those of `words`, if
    /// it says how.
    pub(crate) fn new(
        (pool, words): (Pool, Pool),
        (config, gpus): (Option<&NcclConfig>, Vec<Option<OwnGpu>>),
        (view, tracer, io): (Arc<View>, Tracer, &Handle),
    ) -> Links {
        let (devices, tcp) = (gpus.len(), Arc::new(Tcp::new(pool)));
        let has_gpu = gpus.iter().any(Option::is_some);
        let nccl = config.filter(|_| has_gpu).map(|config| Nccl::new(config, gpus, (&view, &tcp, io), words));
        Links {
            view,
            tracer,
            shared_memory: SharedMemory::new(tcp.clone()),
            tcp,
            nccl,
            in_process: InProcess::default(),
            choices: (0..devices).map(|_| Mutex::default()).collect(),
            known: Mutex::default(),
            figures: Default::default(),
        }
    }

    /// Has devices of this node reach each other by the node's own data plane.
    pub(crate) fn serve(&self, plane: Weak<DataPlane>) {
        self.shared_memory.serve(plane.clone());
        // A node has one plane, and is told once.
        let _ = self.in_process.plane.set(plane);
    }

    /// Forgets members that are not in the map, and what is known of those that have started anew.
    pub(crate) fn keep(&self, serving: &Serving) {
        let map = &serving.map;
        self.tcp.speak_as(serving.member);
        self.tcp.keep(map);
        self.shared_memory.keep(map);
        if let Some(nccl) = &self.nccl {
            nccl.adopt(serving);
        }
        let now = map.members.iter().map(|(id, member)| (*id, member.generation)).collect();
        let before = std::mem::replace(&mut *lock(&self.known), now);
        let is_gone = |device: &DeviceId| {
            map.owner(*device).map(|owner| owner.generation) != before.get(&device.member).copied()
        };
        for choice in &self.choices {
            lock(choice).retain(|device| before.contains_key(&device.member) && !is_gone(device));
        }
    }

    /// Asks a device something without a payload, and returns its answer.
    ///
    /// # Errors
    /// When its node is not reached, refuses or does not answer in time.
    pub(crate) async fn ask(
        &self,
        (serving, trace): (&Serving, Option<TraceContext>),
        target: DeviceId,
        request: &DataRequest,
    ) -> Result<DataReply, Fault> {
        let mut span = self.tracer.under(trace, SpanKind::Asked, request.name());
        if span.is_on() {
            span.note("kvhive.device", target);
        }
        let deadline = Instant::now() + COPY_LIMIT;
        let asked = (span.context(), request);
        let answer = self.tcp.exchange(&serving.map, target, asked, &[], deadline).await;
        answer.inspect_err(|fault| span.fail(fault))
    }

    /// Asks a replica for blocks; what is returned has what was answered, and their bytes come next.
    ///
    /// # Errors
    /// When its node is not reached, refuses or does not answer by `deadline`.
    pub(crate) async fn fetch(
        &self,
        (serving, trace): (&Serving, Option<TraceContext>),
        target: DeviceId,
        request: &DataRequest,
        deadline: Instant,
    ) -> Result<Fetching, Fault> {
        let mut span = self.tracer.under(trace, SpanKind::Asked, request.name());
        if span.is_on() {
            span.note("kvhive.device", target);
        }
        let asked = (span.context(), request);
        let answer = self.tcp.fetch(&serving.map, target, asked, deadline).await;
        answer.inspect_err(|fault| span.fail(fault))
    }

    /// Returns how far the pair of two devices is; none where NCCL is no way for a batch, as where not all of it is on a GPU.
    fn pair_state(&self, source: DeviceId, target: DeviceId, is_on_gpu: bool) -> Option<PairState> {
        self.nccl.as_ref().filter(|_| is_on_gpu)?.state(source, target)
    }

    /// Says whether two devices may be a pair, of whom the first is this node's.
    pub(crate) fn is_pair(&self, own: DeviceId, other: DeviceId) -> bool {
        self.pair_state(own, other, true).is_some()
    }

    /// Returns the node's data plane, while it serves.
    pub(crate) fn plane(&self) -> Option<Arc<DataPlane>> {
        self.in_process.plane.get().and_then(Weak::upgrade)
    }

    /// Notes that blocks were given to a device of another node, which fetches them by this way.
    pub(crate) fn were_fetched(&self, (source, target): (DeviceId, DeviceId), by: TransportKind, bytes: u64) {
        self.count(by, bytes, true);
        if let Some(choices) = self.choices.get(usize::from(source.index)) {
            lock(choices).went(self.view.now(), target, by, bytes);
        }
    }

    /// Chooses by which way a batch goes.
    fn choose(
        &self,
        parcel: &Parcel<'_>,
        bytes: u64,
        same_host: bool,
        nccl: Option<PairState>,
    ) -> TransportKind {
        let Parcel { source, target, .. } = *parcel;
        let Some(choices) = self.choices.get(usize::from(source.index)) else { return TransportKind::Tcp };
        let same_process = source.member == target.member;
        let ends = Ends { same_process, same_host, both_gpu_tiers: nccl.is_some(), nccl };
        lock(choices).choose(self.view.now(), target, bytes, ends).transport
    }

    /// Has a batch get to its target, and returns what that says of it. What another way than TCP does not carry goes by TCP. By
    /// which way is chosen here unless it is said; it may have come from a GPU.
    ///
    /// # Errors
    /// Whatever kept the target from taking it or from saying so. It may have taken it all the same.
    pub(crate) async fn carry(
        &self,
        parcel: &Parcel<'_>,
        (by, is_on_gpu): (Option<TransportKind>, bool),
    ) -> Result<DataReply, Fault> {
        let bytes = parcel.payload.iter().map(|block| block.len() as u64).sum();
        let by = match by {
            Some(by) => by,
            None => {
                let same_host = self.shared_memory.reaches(parcel).await;
                let nccl = self.pair_state(parcel.source, parcel.target, is_on_gpu);
                match self.choose(parcel, bytes, same_host, nccl) {
                    TransportKind::Nccl => {
                        // It was not to go by it when that was asked, a moment ago: others need not wait for how it went.
                        self.has_not_begun(parcel, nccl);
                        TransportKind::Tcp
                    }
                    by => by,
                }
            }
        };
        let mut span = self.span(by, parcel, bytes);
        let parcel = Parcel { trace: span.context(), ..*parcel };
        let mut answer = self.carry_by(by, &parcel, bytes).await;
        if by != TransportKind::Tcp
            && let Err(fault) = &answer
            && fault.is_failure()
            && Instant::now() < parcel.deadline
        {
            tracing::debug!(target = %parcel.target, %by, %fault, "a batch goes by TCP instead");
            span.note("kvhive.instead", "tcp");
            answer = self.carry_by(TransportKind::Tcp, &parcel, bytes).await;
        }
        answer.inspect_err(|fault| span.fail(fault)).map_err(|fault| match fault {
            NotCarried::Answer(fault) => fault,
            // A pair has bytes on a GPU alone.
            NotCarried::Pair(_) => Fault::Closed,
        })
    }

    /// Waits until what another GPU sends is in the frames of `guards`, which are of this node's `device`.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub(crate) async fn expect(
        &self,
        device: DeviceId,
        (transfer, packing): (TransferId, Packing),
        guards: Vec<WriteGuard>,
        limit: Duration,
    ) -> Result<Vec<WriteGuard>, Why> {
        let nccl = self.nccl.as_ref().ok_or(Why::NoWorker)?;
        nccl.expect(device, (transfer, packing), guards, limit).await
    }

    /// Hears what the GPU of another node says to one of this node's.
    ///
    /// # Errors
    /// When that one does without NCCL, now and as long as this node lives.
    pub(crate) fn hear(&self, message: PairMessage) -> Result<(), Without> {
        self.nccl.as_ref().ok_or(Without)?.hear(message)
    }

    fn span(&self, by: TransportKind, parcel: &Parcel<'_>, bytes: u64) -> Span {
        let mut span = self.tracer.under(parcel.trace, SpanKind::Asked, parcel.request.name());
        if span.is_on() {
            span.note("kvhive.device", parcel.target);
            span.note("kvhive.bytes", bytes);
            span.note("kvhive.transport", by.as_str());
        }
        span
    }

    /// Has a batch go by a way, and notes how it went.
    async fn carry_by(
        &self,
        by: TransportKind,
        parcel: &Parcel<'_>,
        bytes: u64,
    ) -> Result<DataReply, NotCarried> {
        let way: &dyn Transport = match by {
            TransportKind::InProcess => &self.in_process,
            TransportKind::SharedMemory => &self.shared_memory,
            TransportKind::Nccl => self.nccl.as_ref().ok_or(NotCarried::Pair(Why::NoWorker))?,
            TransportKind::Tcp => &*self.tcp,
        };
        let begun = Instant::now();
        let answer = way.carry(parcel).await;
        let is_well = match &answer {
            Ok(_) => true,
            Err(fault) if fault.is_failure() => false,
            // It was asked, and did not want to.
            Err(_) => return answer,
        };
        self.ended(by, parcel, bytes, begun.elapsed(), is_well);
        answer
    }

    /// Notes that a batch which was to go by NCCL goes another way.
    fn has_not_begun(&self, parcel: &Parcel<'_>, pair: Option<PairState>) {
        if let Some(choices) = self.choices.get(usize::from(parcel.source.index)) {
            lock(choices).has_not_begun(self.view.now(), parcel.target, pair.unwrap_or_default());
        }
    }

    /// Counts a batch.
    fn count(&self, by: TransportKind, bytes: u64, is_well: bool) {
        let figures = &self.figures[by as usize];
        if is_well {
            count(&figures.batches);
            add(&figures.bytes, bytes);
        } else {
            count(&figures.failures);
        }
    }

    /// Notes how a batch went.
    fn ended(&self, by: TransportKind, parcel: &Parcel<'_>, bytes: u64, took: Duration, is_well: bool) {
        self.count(by, bytes, is_well);
        let Some(choices) = self.choices.get(usize::from(parcel.source.index)) else { return };
        // What moves has waited for its turn at the other end.
        let took = (!parcel.moves()).then_some(took);
        lock(choices).ended(self.view.now(), parcel.target, by, bytes, took, is_well);
    }
}

/// Says whether what went wrong is the way's fault, not the target's answer.
fn is_of_the_way(fault: &Fault) -> bool {
    !matches!(fault, Fault::Refused(_))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
