//! Store: frames from the actor, bytes from the socket straight into them, checked there, made visible, copied to the
//! other replicas, answered.

use crate::actors::core::{DeviceMessage, Reserved, Sealed};
use crate::data::check;
use crate::data::counters::{add, count};
use crate::data::plane::DataPlane;
use crate::data::replicate::Item;
use crate::guards::{Lent, ReadGuard, Verified};
use crate::view::Serving;
use kvhive_cache::member;
use kvhive_protocol::data::{
    About, Ack, DataReply, MAX_BLOCKS_PER_TRANSFER, Refusal, StoreBlock, StoreRequest, Stored,
};
use kvhive_protocol::{DeviceId, Layout, Slot, TenantId, WireError};
use kvhive_wire::{Connection, Fault, Peer};
use std::time::Duration;
use tokio::time::timeout;

/// A store waits this long for room among the bytes being received; then it is told to come back.
const INFLIGHT_WAIT: Duration = Duration::from_millis(100);
/// A copy from another node waits longer: a client waits for that node's answer, and a refusal costs a replica.
const COPY_INFLIGHT_WAIT: Duration = Duration::from_secs(1);

/// What has become of one block so far.
enum Taken {
    /// Its bytes are in a frame and match its header.
    Verified(Verified),
    /// It was here before.
    Present(Option<Lent>),
    Refused(Refusal),
}

/// What is done with every block of a store.
struct Task {
    serving: Serving,
    device: DeviceId,
    tenant: TenantId,
    ack: Ack,
    about: About,
    layout: Option<Layout>,
    blocks: Vec<(StoreBlock, Slot)>,
    /// Other members are to have copies.
    replicated: bool,
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
        let copy = request.copy;
        let task = match self.check_store(request, payload, peer) {
            Ok(task) => task,
            Err(error) => return Ok(Err(error)),
        };
        let wait = if copy { COPY_INFLIGHT_WAIT } else { INFLIGHT_WAIT };
        let room = self.inflight.clone().acquire_many_owned(self.permits(payload));
        let Ok(Ok(room)) = timeout(wait, room).await else {
            return Ok(Err(WireError::busy("as many payload bytes as allowed are under way")));
        };
        // What is here already is held for a look at its bytes.
        let (tenant, wanted, about, pin) = (task.tenant, task.blocks.clone(), task.about, true);
        let reserved = self.ask(task.device, |reply| DeviceMessage::Reserve {
            tenant,
            blocks: wanted,
            about,
            copy,
            pin,
            reply,
        });
        let reserved = match reserved.await {
            Ok(reserved) => reserved,
            Err(error) => return Ok(Err(error)),
        };
        let mut taken = Vec::with_capacity(task.blocks.len());
        for ((block, _), reserved) in task.blocks.iter().zip(reserved) {
            taken.push(self.take_in(connection, block.header.payload_bytes, reserved).await?);
        }
        // From here on the bytes count as blocks. Two nodes that copy to each other must not wait for this room.
        drop(room);
        Ok(self.settle(task, taken).await)
    }

    fn check_store(&self, request: StoreRequest, payload: u64, peer: Peer) -> Result<Task, WireError> {
        check::sizes(&request.runs, request.blocks.len(), MAX_BLOCKS_PER_TRANSFER)?;
        check::store(&request, payload, peer.role, &self.view.layouts)?;
        self.view.check_lease()?;
        let serving = self.view.serving().ok_or(WireError::NoLease)?;
        check::admits(&serving, request.epoch, request.device, request.tenant, &request.runs)?;
        member::takes(&serving.map, request.device, request.copy, &request.runs)?;
        let StoreRequest { device, tenant, ack, copy, layout, about, runs, blocks, .. } = request;
        let blocks: Vec<_> = blocks.into_iter().zip(check::slots(&runs)).collect();
        let replicated = !copy && runs.iter().any(|run| serving.map.replicas(run.slot).0.len() > 1);
        Ok(Task { serving, device, tenant, ack, layout, about, blocks, replicated })
    }

    /// Takes one block's bytes off the socket: into its frame, or past it.
    async fn take_in(
        &self,
        connection: &mut Connection,
        bytes: u64,
        reserved: Reserved,
    ) -> Result<Taken, Fault> {
        match reserved {
            Reserved::Write(mut guard) => {
                let digest = self.paced(bytes, connection.read_payload(guard.bytes_mut())).await?;
                add(&self.counters.stored_bytes, bytes);
                Ok(guard.verify(digest).map_or_else(
                    || {
                        count(&self.counters.corrupt_blocks);
                        Taken::Refused(Refusal::Corrupt)
                    },
                    Taken::Verified,
                ))
            }
            Reserved::Present(lent) => {
                self.paced(bytes, connection.skip_payload(bytes)).await?;
                // Whoever stores what is here has not been able to use it, perhaps: one that is damaged would stay for ever.
                if let Some(Lent::Guard(guard)) = &lent
                    && guard.header().check_bytes(guard.bytes()).is_err()
                {
                    count(&self.counters.corrupt_blocks);
                    guard.report_lost();
                    return Ok(Taken::Refused(Refusal::NoRoom));
                }
                Ok(Taken::Present(lent))
            }
            Reserved::Refused(refusal) => {
                self.paced(bytes, connection.skip_payload(bytes)).await?;
                Ok(Taken::Refused(refusal))
            }
        }
    }

    /// Makes what was verified visible, has it copied, and answers.
    async fn settle(&self, task: Task, taken: Vec<Taken>) -> Result<DataReply, WireError> {
        // A member without a lease makes nothing visible; from here on, one that loses it can only leave its asker unsure.
        self.view.check_lease()?;
        let mut stored = Vec::with_capacity(taken.len());
        let mut sealing = Vec::new();
        let mut sealed_at = Vec::new();
        let (mut present, mut present_at) = (Vec::new(), Vec::new());
        let mut items = Vec::new();
        let item = |at: usize, guard: ReadGuard, already: bool| {
            let (block, slot) = task.blocks[at];
            Item { at, block, slot, guard, already }
        };
        for (at, one) in taken.into_iter().enumerate() {
            match one {
                Taken::Verified(block) => {
                    sealing.push(block);
                    sealed_at.push(at);
                    // Until the actor says that it is visible.
                    stored.push(Stored::Refused(Refusal::WrongEra));
                }
                Taken::Present(lent) => {
                    stored.push(Stored::Kept { copies: 1, already: true });
                    // Blocks that were here before have been copied when they came; who waits for copies has them made sure of.
                    let lent = lent.filter(|_| task.ack != Ack::Primary);
                    if lent.is_some() {
                        present.push(lent);
                        present_at.push(at);
                    }
                }
                Taken::Refused(refusal) => stored.push(Stored::Refused(refusal)),
            }
        }
        if !sealing.is_empty() {
            if let Some(layout) = &task.layout {
                // Only now: what was refused teaches nothing. And before they are there: what they take is counted by it.
                for at in &sealed_at {
                    self.view.layouts.learn(layout, task.blocks[*at].0.header.fingerprint);
                }
            }
            let pin = task.replicated;
            let sealed =
                self.ask(task.device, |reply| DeviceMessage::Seal { blocks: sealing, pin, reply }).await?;
            for (at, sealed) in sealed_at.into_iter().zip(sealed) {
                if let Sealed::Visible(guard) = sealed {
                    stored[at] = Stored::Kept { copies: 1, already: false };
                    items.extend(guard.map(|guard| item(at, guard, false)));
                }
            }
        }
        let present = self.bring(present).await;
        items.extend(
            present_at.into_iter().zip(present).filter_map(|(at, guard)| Some(item(at, guard?, true))),
        );
        self.replicate(&task, items, &mut stored).await;
        self.view.check_lease()?;
        Ok(DataReply::Stored { epoch: task.serving.map.epoch, blocks: stored })
    }

    async fn replicate(&self, task: &Task, items: Vec<Item>, stored: &mut [Stored]) {
        let Task { serving, device, tenant, ack, layout, .. } = task;
        if *ack == Ack::Primary {
            self.replicator.later(serving.clone(), *device, *tenant, *layout, items, &self.counters);
            return;
        }
        for (at, copies) in
            self.replicator.now(serving, *device, *tenant, *layout, items, &self.counters).await
        {
            if let Stored::Kept { copies: held, .. } = &mut stored[at] {
                *held = held.saturating_add(copies);
            }
        }
    }
}
