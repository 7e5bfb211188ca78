//! Room for blocks of slots that come from a member which is being emptied, and what leaves for them.

use super::core::DeviceCore;
use kvhive_cache::{Effect, Holder, Unsettled};
use kvhive_protocol::data::{Refusal, StoreBlock};
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{MemberId, Slot, TenantId};
use kvhive_runtime::Reply;

/// What a device is told of blocks that emptying members may have cost.
pub(crate) enum Settle {
    /// Of which is it to be asked who holds them?
    Ask { limit: usize, reply: Reply<Vec<Unsettled>> },
    /// This is who holds them.
    Settled { settled: Vec<(Unsettled, Holder)>, reply: Reply<()> },
    /// These were given no room as a member is being emptied.
    Unplaced { blocks: Vec<(MemberId, Unsettled)>, reply: Reply<()> },
}

impl DeviceCore {
    /// Makes way for a block if it comes from a member which is being emptied; says why where it does not come, or a little later.
    pub(super) fn make_way(
        &mut self,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
    ) -> Result<(), Refusal> {
        if self.displacing.empties(slot).is_none() {
            return Ok(());
        }
        // Unpinned it would be the next to leave: it stays with who is being emptied.
        if self.shard.lacks_room_to_pin(tenant, block, slot) {
            return Err(Refusal::NoRoom);
        }
        let (now, has) = (self.view.now(), |slot| self.tenure.has(slot));
        let comes = self.shard.make_way(now, tenant, (block, slot), has, &mut self.effects);
        self.note_displaced(slot);
        self.perform_effects();
        if comes { Ok(()) } else { Err(Refusal::InFlight) }
    }

    /// Counts what has just left for a block of a slot that comes from a member which is being emptied.
    pub(super) fn note_displaced(&mut self, came: Slot) {
        let Some(member) = self.displacing.empties(came) else { return };
        for effect in &self.effects {
            if let Effect::Drop { id, slot, gone: Gone::Evicted | Gone::Over | Gone::NotAdmitted } = effect {
                let Some(resident) = &self.resident[id.index()] else { continue };
                self.displacing.displaced(member, &Unsettled::of(&resident.header, *slot));
            }
        }
    }

    /// Does what one message asks for.
    pub(super) fn settle(&mut self, message: Settle) {
        match message {
            Settle::Ask { limit, reply } => reply.send(self.displacing.ask(limit)),
            Settle::Settled { settled, reply } => {
                settled.iter().for_each(|(block, holder)| self.displacing.settle(block, *holder));
                reply.send(());
            }
            Settle::Unplaced { blocks, reply } => {
                blocks.iter().for_each(|(member, block)| self.displacing.unplaced(*member, block));
                reply.send(());
            }
        }
    }
}
