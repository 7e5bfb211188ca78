//! Fetch: guards from the actor, headers in the message, bytes straight from their frames.

use crate::actors::device::DeviceMessage;
use crate::data::connection::{ACTOR_LIMIT, STALL_LIMIT, busy, transferred};
use crate::data::counters::count;
use crate::data::{DataPlane, check};
use crate::guards::ReadGuard;
use kvhive_protocol::data::{DataReply, FetchRequest, Fetched, MAX_BLOCKS_PER_TRANSFER};
use kvhive_protocol::frame::{Kind, MAX_PAYLOAD_BYTES};
use kvhive_protocol::{Epoch, WireError};
use kvhive_wire::{Connection, Fault};
use tokio::time::timeout;

/// Blocks that are ready to go out.
pub(super) struct Answer {
    epoch: Epoch,
    blocks: Vec<Option<ReadGuard>>,
}

impl DataPlane {
    /// Finds the blocks of a fetch and holds them.
    pub(super) async fn fetch(&self, request: FetchRequest) -> Result<Answer, WireError> {
        count(&self.counters.fetches);
        check::sizes(&request.runs, request.keys.len(), MAX_BLOCKS_PER_TRANSFER)?;
        self.view.check_lease()?;
        let serving = self.view.serving().ok_or(WireError::NoLease)?;
        check::admits(&serving, request.device, request.tenant, &request.runs)?;
        let FetchRequest { device, tenant, keys, .. } = request;
        let mut blocks = self
            .device(device)?
            .ask(ACTOR_LIMIT, |reply| DeviceMessage::Read { tenant, keys, reply })
            .await
            .map_err(busy)?;
        // What does not fit into one frame is a miss; an asker that knows its blocks' size never asks for that much.
        let mut room = u64::from(MAX_PAYLOAD_BYTES);
        for block in &mut blocks {
            let bytes = block.as_ref().map_or(0, |guard| guard.bytes().len() as u64);
            match room.checked_sub(bytes) {
                Some(left) => room = left,
                None => *block = None,
            }
        }
        Ok(Answer { epoch: serving.map.epoch, blocks })
    }
}

impl Answer {
    /// Sends the blocks, if the lease still holds.
    pub(super) async fn send(
        self,
        connection: &mut Connection,
        number: u64,
        plane: &DataPlane,
    ) -> Result<(), Fault> {
        if let Err(error) = plane.view.check_lease() {
            count(&plane.counters.no_lease);
            return connection.refuse(number, &error).await;
        }
        let found = |guard: &Option<ReadGuard>| {
            guard.as_ref().map_or(Fetched::Miss, |guard| Fetched::Hit(*guard.header()))
        };
        let reply = DataReply::Fetched { epoch: self.epoch, blocks: self.blocks.iter().map(found).collect() };
        let payload: Vec<&[u8]> = self.blocks.iter().flatten().map(ReadGuard::bytes).collect();
        let bytes: u64 = payload.iter().map(|block| block.len() as u64).sum();
        match timeout(STALL_LIMIT, connection.send(Kind::DataReply, number, &reply, &payload)).await {
            Ok(sent) => sent?,
            Err(_) => {
                count(&plane.counters.stalled);
                return Err(Fault::Timeout(STALL_LIMIT));
            }
        }
        transferred(&plane.counters.fetched_bytes, bytes);
        Ok(())
    }
}
