//! Receive: a copy of blocks whose bytes come from another GPU by NCCL, straight into frames of this one's. Their digests are taken there.

use crate::actors::core::Reserved;
use crate::book::Guest;
use crate::data::counters::{add, count};
use crate::data::plane::DataPlane;
use crate::data::pull::PUSH_LIMIT;
use crate::data::store::{Taken, Task, landed};
use crate::guards::WriteGuard;
use kvhive_cache::GuestKey;
use kvhive_gpu::worker::Packing;
use kvhive_protocol::data::{DataReply, ReceiveRequest, Refusal, StoreBlock, StoreRequest, Stored};
use kvhive_protocol::handshake::Role;
use kvhive_protocol::pairs::TransferId;
use kvhive_protocol::{BlockHeader, ClusterMap, MemberId, WireError};
use kvhive_spans::Span;
use kvhive_wire::Peer;
use std::time::Duration;
use zeroize::Zeroizing;

/// What another GPU announced comes within this, or another way.
const ARRIVES_WITHIN: Duration = Duration::from_secs(3);
/// Guests that another GPU announced come within this: as long as it tries.
const GUESTS_ARRIVE_WITHIN: Duration = PUSH_LIMIT;

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

/// Announces a block as a guest, which no shard keeps: as its own parent, which none that a shard keeps is.
pub(super) fn as_guest(header: BlockHeader) -> StoreBlock {
    StoreBlock { header, parent: header.key }
}

fn is_guest(block: &StoreBlock) -> bool {
    block.parent == block.header.key
}

/// Says whether blocks are of eras that stand by a map.
fn have_their_eras(map: &ClusterMap, headers: &[BlockHeader]) -> bool {
    let era = |header: &BlockHeader| map.tenants.get(&header.tenant).map(|tenant| tenant.era);
    headers.iter().all(|header| era(header) == Some(header.era))
}

impl DataPlane {
    /// Serves a receive: takes frames of the GPU for all blocks, waits for their bytes, and goes on as a store does. Where some would go
    /// elsewhere, or are here, nothing is carried: the asker sends them.
    pub(super) async fn receive(
        &self,
        peer: Peer,
        span: &Span,
        (request, packing): (ReceiveRequest, Packing),
    ) -> Result<DataReply, WireError> {
        let ReceiveRequest { store, transfer } = request;
        if peer.role != Role::Node || !peer.is_of(transfer.sender.member) || !store.copy {
            return Err(WireError::Forbidden {
                role: peer.role.to_string(),
                what: "send blocks from another's GPU".to_owned(),
            });
        }
        if store.blocks.iter().any(is_guest) {
            let wanted = self.are_awaited(transfer.sender.member, &store);
            // They may have been until just now. What a shard keeps is announced otherwise, whoever is a replica by now.
            let wanted = wanted.ok_or_else(|| not_carried("nobody here waits for these guests"))?;
            return self.receive_guests(span, (transfer, packing), store, wanted).await;
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
        let arrived = self.replicator.links.expect(device, (transfer, packing), guards, ARRIVES_WITHIN).await;
        let guards = arrived.map_err(not_carried)?;
        drop(receiving);
        let stored = self.settle_on_gpu(span, task, guards).await;
        if moved {
            // Only now: the slots of both GPUs are not held while it waits. What comes next waits instead.
            self.takes.pass(bytes).await;
        }
        stored
    }

    /// Returns the guests that a copy is of, if it is of what this node has asked its sender for.
    fn are_awaited(&self, sender: MemberId, store: &StoreRequest) -> Option<Vec<GuestKey>> {
        let book = self.view.guests.as_ref()?;
        let are_guests = !store.moved && store.blocks.iter().all(is_guest);
        let book = are_guests.then_some(book)?;
        book.awaited_as(sender, store.blocks.iter().map(|block| &block.header))
    }

    /// Serves a receive of guests: they pass the GPU, where their digests are taken, and are kept in the host's memory.
    async fn receive_guests(
        &self,
        span: &Span,
        packed: (TransferId, Packing),
        store: StoreRequest,
        wanted: Vec<GuestKey>,
    ) -> Result<DataReply, WireError> {
        let serving = self.view.serves(Role::Node)?;
        if store.device.member != serving.member {
            return Err(WireError::WrongDevice { device: store.device });
        }
        let (passing, book) = self
            .passing(store.device)
            .zip(self.view.guests.as_ref())
            .ok_or_else(|| not_carried("no frames of this GPU are for guests"))?;
        let headers: Vec<BlockHeader> = store.blocks.iter().map(|block| block.header).collect();
        let rooms: Option<Vec<_>> = headers.iter().map(|header| book.room(header.payload_bytes)).collect();
        let rooms = rooms.ok_or_else(|| not_carried("there is no room for more guests"))?;
        let guards = passing.take(&headers).ok_or_else(|| not_carried("all frames for guests are taken"))?;
        // Only now: these frames are wiped for an era that ends later, and one that ended before shows here.
        if !self.view.serving().is_some_and(|newest| have_their_eras(&newest.map, &headers)) {
            return Err(not_carried("their era has ended"));
        }
        let mut receiving = span.part("receive guests");
        receiving.note("kvhive.blocks", headers.len());
        let arrived = self.replicator.links.expect(store.device, packed, guards, GUESTS_ARRIVE_WITHIN).await;
        let digests = WriteGuard::digests_on_gpu(arrived.map_err(not_carried)?).await;
        let (guards, digests) = digests.ok_or_else(|| not_carried("the GPU gave no digests"))?;
        let mut blocks = Vec::with_capacity(guards.len());
        for (((guard, digest), key), room) in guards.into_iter().zip(digests).zip(wanted).zip(rooms) {
            let Some(landing) = guard.verify_on_gpu(digest) else {
                count(&self.counters.corrupt_blocks);
                blocks.push(Stored::Refused(Refusal::Corrupt));
                continue;
            };
            let brought = match landing.landed().await {
                Some(block) => passing.bring(block).await,
                None => None,
            };
            let Some((header, brought)) = brought else {
                blocks.push(Stored::Refused(Refusal::NoRoom));
                continue;
            };
            let bytes = Zeroizing::new(brought.bytes().to_vec());
            if book.came(&key, Guest { header, bytes, _room: room }) {
                self.counters.guest_came(header.payload_bytes);
            }
            blocks.push(Stored::Kept { copies: 1, already: false });
        }
        Ok(DataReply::Stored { epoch: serving.map.epoch, blocks })
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
