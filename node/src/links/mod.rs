//! Links: how the bytes of blocks get from one device to another. Each way is a [`Transport`]; which one a batch goes by is decided
//! for each pair of devices, and one that fails is followed by TCP within the same deadline.

mod local;
mod tcp;

use crate::data::DataPlane;
use crate::view::Serving;
use futures_util::future::BoxFuture;
use kvhive_client::Pool;
use kvhive_protocol::data::{DataReply, DataRequest, StoreRequest};
use kvhive_protocol::trace::SpanKind;
use kvhive_protocol::{ClusterMap, DeviceId, TraceContext};
use kvhive_spans::Tracer;
use kvhive_wire::Fault;
use local::InProcess;
use std::sync::Weak;
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
}

impl Parcel<'_> {
    /// Returns how long it may take. What moves may have to wait first.
    fn limit(&self) -> Duration {
        match self.request {
            DataRequest::Store(StoreRequest { moved: true, .. }) => COPY_LIMIT + crate::pace::LONGEST,
            _ => COPY_LIMIT,
        }
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

/// All ways from this node's devices. Its own state is behind the ways' own locks.
pub(crate) struct Links {
    tcp: Tcp,
    in_process: InProcess,
    tracer: Tracer,
}

impl Links {
    /// Makes the ways that a node has before it serves: TCP alone, over connections of `pool`.
    pub(crate) fn new(pool: Pool, tracer: Tracer) -> Links {
        Links { tcp: Tcp::new(pool), in_process: InProcess::default(), tracer }
    }

    /// Has devices of this node reach each other by the node's own data plane.
    pub(crate) fn serve(&self, plane: Weak<DataPlane>) {
        // A node has one plane, and is told once.
        let _ = self.in_process.plane.set(plane);
    }

    /// Forgets members that are not in the map.
    pub(crate) fn keep(&self, map: &ClusterMap) {
        self.tcp.keep(map);
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

    /// Has a batch get to its target, and returns what that says of it.
    ///
    /// # Errors
    /// Whatever kept the target from taking it or from saying so. It may have taken it all the same.
    pub(crate) async fn carry(&self, parcel: &Parcel<'_>) -> Result<DataReply, Fault> {
        let way: &dyn Transport = match parcel.source.member == parcel.target.member {
            true => &self.in_process,
            false => &self.tcp,
        };
        let mut span = self.tracer.under(parcel.trace, SpanKind::Asked, parcel.request.name());
        if span.is_on() {
            span.note("kvhive.device", parcel.target);
            span.note("kvhive.bytes", parcel.payload.iter().map(|block| block.len()).sum::<usize>());
        }
        let parcel = Parcel { trace: span.context(), ..*parcel };
        let deadline = Instant::now() + parcel.limit();
        let answer = way.carry(&parcel, deadline).await;
        answer.inspect_err(|fault| span.fail(fault))
    }
}
