//! Store: frames from the actor, bytes from the socket straight into them, checked there, made visible, copied to the
//! other replicas, answered.

use crate::actors::device::{DeviceMessage, Reserved, Sealed};
use crate::data::connection::{ACTOR_LIMIT, STALL_LIMIT, busy, skip, transferred};
use crate::data::counters::count;
use crate::data::replicate::Item;
use crate::data::{DataPlane, check};
use crate::guards::{ReadGuard, Verified};
use kvhive_protocol::data::{Ack, DataReply, MAX_BLOCKS_PER_TRANSFER, Refusal, StoreRequest, Stored};
use kvhive_protocol::{Slot, WireError};
use kvhive_wire::{Connection, Fault, Peer};
use std::time::Duration;
use tokio::time::timeout;

/// A store waits this long for room among the bytes under way; then it is told to come back.
const INFLIGHT_WAIT: Duration = Duration::from_millis(100);

/// What has become of one block so far.
enum Progress {
    Present(Option<ReadGuard>),
    Verified(Verified),
    Done(Stored),
}

impl DataPlane {
    /// Serves a store. The outer error ends the connection, the inner one refuses the request.
    pub(super) async fn store(
        &self,
        connection: &mut Connection,
        peer: Peer,
        request: StoreRequest,
    ) -> Result<Result<DataReply, WireError>, Fault> {
        count(&self.counters.stores);
        let payload = connection.payload_left();
        if let Err(error) = self.check_store(&request, payload, peer) {
            return Ok(Err(error));
        }
        let room = self.inflight.clone().acquire_many_owned(self.permits(payload));
        let Ok(Ok(_room)) = timeout(INFLIGHT_WAIT, room).await else {
            return Ok(Err(WireError::busy("as many payload bytes as allowed are under way")));
        };
        let Some(serving) = self.view.serving() else { return Ok(Err(WireError::NoLease)) };
        let StoreRequest { device, tenant, ack, copy, runs, blocks, .. } = request;
        let slots: Vec<Slot> = check::slots(&runs).collect();
        let replicated = !copy && slots.iter().any(|slot| serving.map.replicas(*slot).0.len() > 1);
        let actor = match self.device(device) {
            Ok(actor) => actor,
            Err(error) => return Ok(Err(error)),
        };
        let wanted: Vec<_> = blocks.iter().copied().zip(slots.iter().copied()).collect();
        let reserved = actor
            .ask(ACTOR_LIMIT, |reply| DeviceMessage::Reserve {
                tenant,
                blocks: wanted,
                pin: replicated,
                reply,
            })
            .await;
        let reserved = match reserved {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(busy(error))),
        };
        let mut progress = Vec::with_capacity(blocks.len());
        for (block, reserved) in blocks.iter().zip(reserved) {
            progress.push(self.take_in(connection, block.header.payload_bytes, reserved).await?);
        }
        let verified: Vec<usize> =
            (0..progress.len()).filter(|at| matches!(progress[*at], Progress::Verified(_))).collect();
        let mut sealing = Vec::with_capacity(verified.len());
        for at in &verified {
            let placeholder = Progress::Done(Stored::Refused(Refusal::WrongEra));
            if let Progress::Verified(block) = std::mem::replace(&mut progress[*at], placeholder) {
                sealing.push(block);
            }
        }
        let mut fresh: Vec<Option<ReadGuard>> = (0..progress.len()).map(|_| None).collect();
        if !sealing.is_empty() {
            let sealed = actor
                .ask(ACTOR_LIMIT, |reply| DeviceMessage::Seal { blocks: sealing, pin: replicated, reply })
                .await;
            let sealed = match sealed {
                Ok(sealed) => sealed,
                // Visible or not, it is not acknowledged.
                Err(error) => return Ok(Err(busy(error))),
            };
            for (at, sealed) in verified.into_iter().zip(sealed) {
                if let Sealed::Visible(guard) = sealed {
                    progress[at] = Progress::Done(Stored::Kept { copies: 1, already: false });
                    fresh[at] = guard;
                }
            }
        }
        let mut stored = Vec::with_capacity(progress.len());
        let mut items = Vec::new();
        for (at, (one, guard)) in progress.into_iter().zip(fresh).enumerate() {
            let (outcome, guard, already) = match one {
                Progress::Present(guard) => (Stored::Kept { copies: 1, already: true }, guard, true),
                Progress::Done(outcome) => (outcome, guard, false),
                Progress::Verified(_) => (Stored::Refused(Refusal::WrongEra), None, false),
            };
            stored.push(outcome);
            if let Some(guard) = guard {
                items.push(Item { at, block: blocks[at], slot: slots[at], guard, already });
            }
        }
        if replicated && !items.is_empty() {
            if ack == Ack::Primary {
                // Blocks that were here before have been copied when they came.
                items.retain(|item| !item.already);
                self.replicator.later(serving.clone(), device, tenant, items, &self.counters);
            } else {
                for (at, copies) in self.replicator.now(&serving, device, tenant, items, &self.counters).await
                {
                    if let Stored::Kept { copies: held, .. } = &mut stored[at] {
                        *held = held.saturating_add(copies);
                    }
                }
            }
        }
        if let Err(error) = self.view.check_lease() {
            return Ok(Err(error));
        }
        Ok(Ok(DataReply::Stored { epoch: serving.map.epoch, blocks: stored }))
    }

    fn check_store(&self, request: &StoreRequest, payload: u64, peer: Peer) -> Result<(), WireError> {
        check::sizes(&request.runs, request.blocks.len(), MAX_BLOCKS_PER_TRANSFER)?;
        check::store(request, payload, peer.role)?;
        self.view.check_lease()?;
        let serving = self.view.serving().ok_or(WireError::NoLease)?;
        check::admits(&serving, request.device, request.tenant, &request.runs)
    }

    /// Takes one block's bytes off the socket: into its frame, or past it.
    async fn take_in(
        &self,
        connection: &mut Connection,
        bytes: u64,
        reserved: Reserved,
    ) -> Result<Progress, Fault> {
        match reserved {
            Reserved::Write(mut guard) => {
                let digest = timeout(STALL_LIMIT, connection.read_payload(guard.bytes_mut())).await;
                let digest = digest.unwrap_or_else(|_| {
                    count(&self.counters.stalled);
                    Err(Fault::Timeout(STALL_LIMIT))
                })?;
                transferred(&self.counters.stored_bytes, bytes);
                Ok(guard.verify(digest).map_or_else(
                    || {
                        count(&self.counters.corrupt_blocks);
                        Progress::Done(Stored::Refused(Refusal::Corrupt))
                    },
                    Progress::Verified,
                ))
            }
            Reserved::Present(guard) => {
                skip(connection, bytes, self).await?;
                Ok(Progress::Present(guard))
            }
            Reserved::Refused(refusal) => {
                skip(connection, bytes, self).await?;
                Ok(Progress::Done(Stored::Refused(refusal)))
            }
        }
    }
}
