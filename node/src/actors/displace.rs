//! Room for blocks of slots that come from a member which is being emptied, and what leaves for them.

use super::core::DeviceCore;
use kvhive_cache::Effect;
use kvhive_protocol::data::{Refusal, StoreBlock};
use kvhive_protocol::watch::Gone;
use kvhive_protocol::{Slot, TenantId};

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
                let resident = self.resident[id.index()].as_ref();
                let bytes = resident.map_or(0, |resident| resident.header.payload_bytes);
                self.displacing.note(member, *slot, bytes);
            }
        }
    }
}
