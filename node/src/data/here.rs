//! Copies between two devices of this node: stores like any other, whose bytes lie here already. Those of a GPU go from frame to frame where
//! the other device's are a GPU's too.

use crate::data::counters::add;
use crate::data::payload::Slices;
use crate::data::plane::{DataPlane, UNSAID};
use crate::data::receive::{all_on_gpu, not_carried};
use crate::data::traced;
use crate::frames::GpuFrame;
use crate::guards::WriteGuard;
use futures_util::future::join_all;
use kvhive_gpu::cuda::CudaDevice;
use kvhive_protocol::data::{DataReply, DataRequest, StoreRequest};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::{Level, MemberId, TraceContext, WireError};
use kvhive_wire::{Fault, Peer};
use std::sync::Arc;
use tokio::time::Instant;

impl DataPlane {
    /// Does a store that another device of this node, which is `member`, asks for.
    ///
    /// # Errors
    /// As if it had come from elsewhere.
    pub(crate) async fn store_here(
        &self,
        member: MemberId,
        (trace, request): (Option<TraceContext>, &DataRequest),
        payload: &[&[u8]],
    ) -> Result<DataReply, Fault> {
        let DataRequest::Store(store) = request else {
            return Err(Fault::Refused(WireError::malformed(format_args!("only stores are done here"))));
        };
        let level = Level::NEWEST;
        let sender = u64::from(member.0);
        let peer = Peer { role: Role::Node, sender, level, speaks: level, cluster: None };
        let mut span = traced::begin(self, peer, trace, request);
        let whose = (peer, Instant::now() + UNSAID);
        let stored = self.store(&mut Slices::new(payload), whose, &span, store.clone()).await;
        let stored = stored.and_then(|stored| stored.map_err(Fault::Refused));
        match &stored {
            Ok(reply) => traced::answered(&mut span, reply),
            Err(fault) => span.fail(fault),
        }
        stored
    }

    /// Does a store that another device of this node, which is `member`, asks for, and whose blocks are in `frames` of its GPU: they are copied
    /// from there, and their digests taken where they have come. Nothing is done where not all of it would go to a GPU.
    ///
    /// # Errors
    /// [`WireError::NotCarried`] where it is to be asked for otherwise, or as if it had come from elsewhere.
    pub(crate) async fn take_here(
        &self,
        member: MemberId,
        (trace, store): (Option<TraceContext>, StoreRequest),
        frames: Vec<GpuFrame>,
    ) -> Result<DataReply, WireError> {
        let level = Level::NEWEST;
        let peer =
            Peer { role: Role::Node, sender: u64::from(member.0), level, speaks: level, cluster: None };
        let request = DataRequest::Store(store);
        let span = traced::begin(self, peer, trace, &request);
        let DataRequest::Store(store) = request else { return Err(not_carried("it is no store")) };
        let (moved, given_by) = (store.moved, store.moved.then_some(store.epoch));
        let announced = store.blocks.iter().map(|block| block.header.payload_bytes);
        let bytes = announced.fold(0, u64::saturating_add);
        let task = self.check_store(store, bytes, peer)?.traced(span.context());
        // Before room is made for them: where they do not, no batch is to cost a block its place in vain.
        let gpu = self.device(task.device).and_then(|device| device.gpu.as_ref());
        let reach = |gpu: &Arc<CudaDevice>| frames.iter().all(|frame| frame.is_reached_by(gpu));
        if !gpu.is_some_and(reach) {
            return Err(not_carried("the GPUs do not reach each other"));
        }
        let reserved = self.reserve(&span, &task, given_by).await?;
        let guards = all_on_gpu(reserved).ok_or_else(|| not_carried("not all of it would go to the GPU"))?;
        let copies = guards.into_iter().zip(frames).map(|(guard, from)| guard.filled_from(from));
        let copied: Option<Vec<WriteGuard>> = join_all(copies).await.into_iter().collect();
        let copied = copied.ok_or_else(|| not_carried("not all of it came in time"))?;
        let stored = self.settle_on_gpu(&span, task, copied).await;
        if stored.is_ok() {
            add(&self.counters.peer_bytes, bytes);
            if moved {
                // Only now: what does not come this way comes as a store, and passes then.
                self.takes.pass(bytes).await;
            }
        }
        stored
    }
}
