//! Links: how the bytes of blocks get from one device to another. Each way is a [`Transport`]; which one a batch goes by is decided
//! for each pair of devices, and one that fails is followed by TCP within the same deadline.

mod local;
mod report;
mod shared;
mod tcp;

use crate::data::{DataPlane, add, count};
use crate::view::{Serving, View};
use futures_util::future::BoxFuture;
use kvhive_client::Pool;
use kvhive_gpu::SharedPlace;
use kvhive_links::Ends;
use kvhive_protocol::data::{DataReply, DataRequest, StoreRequest};
use kvhive_protocol::links::TransportKind;
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{ClusterMap, DeviceId, Generation, MemberId, TraceContext, WireError};
use kvhive_spans::Tracer;
use kvhive_wire::Fault;
use local::InProcess;
pub(crate) use report::LinkFrom;
use shared::SharedMemory;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tcp::Tcp;
use tokio::time::Instant;

/// A device that has not taken a batch within this does not hold it.
const COPY_LIMIT: Duration = Duration::from_secs(5);

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
    /// The bytes of each block.
    pub(crate) payload: &'a [&'a [u8]],
    /// Where other processes see these, if they can.
    pub(crate) places: &'a [Option<SharedPlace>],
}

impl Parcel<'_> {
    fn moves(&self) -> bool {
        matches!(self.request, DataRequest::Store(StoreRequest { moved: true, .. }))
    }

    /// Returns how long it may take. What moves may have to wait first.
    fn limit(&self) -> Duration {
        if self.moves() { COPY_LIMIT + crate::pace::LONGEST } else { COPY_LIMIT }
    }
}

/// A way for blocks from a device to another.
trait Transport: Send + Sync {
    /// Has a batch get to its target by `deadline`, and returns what that says of it.
    ///
    /// # Errors
    /// Whatever kept the target from taking it or from saying so. It may have taken it all the same.
    fn carry<'a>(
        &'a self,
        parcel: &'a Parcel<'a>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<DataReply, Fault>>;
}

/// All ways from this node's devices.
pub(crate) struct Links {
    view: Arc<View>,
    tracer: Tracer,
    tcp: Arc<Tcp>,
    in_process: InProcess,
    shared_memory: SharedMemory,
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
    /// Makes the ways from so many devices: over connections of `pool`, until [`Links::serve`].
    pub(crate) fn new(pool: Pool, devices: usize, view: Arc<View>, tracer: Tracer) -> Links {
        let tcp = Arc::new(Tcp::new(pool));
        Links {
            view,
            tracer,
            shared_memory: SharedMemory::new(tcp.clone()),
            tcp,
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
    pub(crate) fn keep(&self, map: &ClusterMap) {
        self.tcp.keep(map);
        self.shared_memory.keep(map);
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

    /// Has a batch get to its target, and returns what that says of it. What another way than TCP does not carry goes by TCP.
    ///
    /// # Errors
    /// Whatever kept the target from taking it or from saying so. It may have taken it all the same.
    pub(crate) async fn carry(&self, parcel: &Parcel<'_>) -> Result<DataReply, Fault> {
        let bytes = parcel.payload.iter().map(|block| block.len() as u64).sum();
        let ends = Ends {
            same_process: parcel.source.member == parcel.target.member,
            same_host: self.shared_memory.reaches(parcel).await,
            ..Ends::default()
        };
        let Some(choices) = self.choices.get(usize::from(parcel.source.index)) else {
            return Err(Fault::Refused(WireError::WrongDevice { device: parcel.source }));
        };
        let choice = lock(choices).choose(self.view.now(), parcel.target, bytes, ends);
        let mut span = self.tracer.under(parcel.trace, SpanKind::Asked, parcel.request.name());
        if span.is_on() {
            span.note("kvhive.device", parcel.target);
            span.note("kvhive.bytes", bytes);
            span.note("kvhive.transport", choice.transport.as_str());
        }
        let parcel = Parcel { trace: span.context(), ..*parcel };
        let deadline = Instant::now() + parcel.limit();
        let mut answer = self.carry_by(choice.transport, &parcel, bytes, deadline).await;
        if choice.transport != TransportKind::Tcp
            && let Err(fault) = &answer
            && is_of_the_way(fault)
            && Instant::now() < deadline
        {
            tracing::debug!(target = %parcel.target, by = %choice.transport, %fault, "a batch goes by TCP instead");
            span.note("kvhive.instead", "tcp");
            answer = self.carry_by(TransportKind::Tcp, &parcel, bytes, deadline).await;
        }
        answer.inspect_err(|fault| span.fail(fault))
    }

    async fn carry_by(
        &self,
        by: TransportKind,
        parcel: &Parcel<'_>,
        bytes: u64,
        deadline: Instant,
    ) -> Result<DataReply, Fault> {
        let way: &dyn Transport = match by {
            TransportKind::InProcess => &self.in_process,
            TransportKind::SharedMemory => &self.shared_memory,
            _ => &*self.tcp,
        };
        let begun = Instant::now();
        let answer = way.carry(parcel, deadline).await;
        let is_well = match &answer {
            Ok(_) => true,
            Err(fault) if is_of_the_way(fault) => false,
            // It was asked, and did not want to.
            Err(_) => return answer,
        };
        let figures = &self.figures[by as usize];
        if is_well {
            count(&figures.batches);
            add(&figures.bytes, bytes);
        } else {
            count(&figures.failures);
        }
        // What moves has waited for its turn at the other end.
        let took = (!parcel.moves()).then(|| begun.elapsed());
        let choices = &self.choices[usize::from(parcel.source.index)];
        lock(choices).ended(self.view.now(), parcel.target, by, bytes, took, is_well);
        answer
    }
}

/// Says whether what went wrong is the way's fault, not the target's answer.
fn is_of_the_way(fault: &Fault) -> bool {
    !matches!(fault, Fault::Refused(_))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
