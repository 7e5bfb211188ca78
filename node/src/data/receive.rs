//! Receive: a copy of blocks whose bytes come from another GPU by NCCL, straight into frames of this one's. Their digests are taken there.

use crate::actors::core::Reserved;
use crate::data::counters::{add, count};
use crate::data::plane::DataPlane;
use crate::data::store::{Taken, Task, landed};
use crate::guards::WriteGuard;
use kvhive_protocol::WireError;
use kvhive_protocol::data::{DataReply, ReceiveRequest, Refusal};
use kvhive_protocol::handshake::Role;
use kvhive_spans::Span;
use kvhive_wire::Peer;
use std::time::Duration;

/// What another GPU announced comes within this, or another way.
const ARRIVES_WITHIN: Duration = Duration::from_secs(3);

pub(super) fn not_carried(why: impl ToString) -> WireError {
    WireError::NotCarried { why: why.to_string() }
}

/// Returns the guards of a reservation, if all blocks are to be written and their frames are a GPU's.
pub(super) fn all_on_gpu(reserved: Vec<Reserved>) -> Option<Vec<WriteGuard>> {
    let guard = |one| match one {
        Reserved::Write(guard) => guard.extent().is_some().then_some(guard),
        Reserved::Present(_) | Reserved::Refused(_) => None,
    };
    reserved.into_iter().map(guard).collect()
}

impl DataPlane {
    /// Serves a receive: takes frames of the GPU for all blocks, waits for their bytes, and goes on as a store does. Where some would go
    /// elsewhere, or are here, nothing is carried: the asker sends them.
    pub(super) async fn receive(
        &self,
        peer: Peer,
        span: &Span,
        request: ReceiveRequest,
    ) -> Result<DataReply, WireError> {
        let ReceiveRequest { store, transfer } = request;
        if peer.role != Role::Node || !peer.is_of(transfer.sender.member) || !store.copy {
            return Err(WireError::Forbidden {
                role: peer.role.to_string(),
                what: "send blocks from another's GPU".to_owned(),
            });
        }
        let (moved, given_by) = (store.moved, store.moved.then_some(store.epoch));
        let announced = store.blocks.iter().map(|block| block.header.payload_bytes);
        let bytes = announced.fold(0, u64::saturating_add);
        let task = self.check_store(store, bytes, peer)?.traced(span.context());
        let device = task.device;
        let reserved = self.reserve(span, &task, given_by).await?;
        let guards = all_on_gpu(reserved).ok_or_else(|| not_carried("not all of it would go to the GPU"))?;
        let mut receiving = span.part("receive");
        receiving.note("kvhive.bytes", bytes);
        let arrived = self.replicator.links.expect(device, transfer, guards, ARRIVES_WITHIN).await;
        let guards = arrived.map_err(not_carried)?;
        drop(receiving);
        let stored = self.settle_on_gpu(span, task, guards).await;
        if moved {
            // Only now: the slots of both GPUs are not held while it waits. What comes next waits instead.
            self.takes.pass(bytes).await;
        }
        stored
    }

    /// Goes on with a store whose bytes are in frames of a GPU: takes digests there, and makes visible what is as its header says.
    pub(super) async fn settle_on_gpu(
        &self,
        span: &Span,
        task: Task,
        guards: Vec<WriteGuard>,
    ) -> Result<DataReply, WireError> {
        let verifying = span.part("verify on gpu");
        let device = task.device;
        let digests = WriteGuard::digests_on_gpu(guards).await;
        let (guards, digests) = digests.ok_or_else(|| not_carried("the GPU gave no digests"))?;
        // Only now: what does not come this way comes as a store, and is counted then.
        count(&self.counters.stores);
        let here = self.device(device);
        if let Some(here) = here {
            here.work.stored();
        }
        let mut taken = Vec::with_capacity(guards.len());
        for (guard, digest) in guards.into_iter().zip(digests) {
            let bytes = guard.header_bytes();
            taken.push(match guard.verify_on_gpu(digest) {
                Some(landing) => {
                    add(&self.counters.stored_bytes, bytes);
                    if let Some(here) = here {
                        here.traffic.stored(bytes);
                    }
                    Taken::Landing(landing)
                }
                None => {
                    count(&self.counters.corrupt_blocks);
                    Taken::Refused(Refusal::Corrupt)
                }
            });
        }
        drop(verifying);
        self.settle(span, task, landed(taken).await).await
    }
}
