//! Room for blocks of slots that come from a member which is being emptied: before another leaves for one of them, copies leave whose slots
//! have gone elsewhere, and where the disk has room, memory is waited for.

use super::Shard;
use crate::answers::Effect;
use crate::block::Tier;
use crate::party::MEMORY;
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{Moment, Slot, TenantId};
use std::time::Duration;

/// Records looked at for one copy whose slot has gone elsewhere.
const LOOKED_AT: usize = 1 << 14;
/// When all have been looked at in vain, the search rests for so long: what is held by somebody then may leave later.
const REST: Duration = Duration::from_millis(100);
/// Such copies that leave for one block at most: one in each tier.
const AT_ONCE: usize = 2;

/// Where a shard is in its search for copies whose slots have gone elsewhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Elsewhere {
    /// The record that is next.
    at: usize,
    /// Records looked at since one was found.
    in_vain: usize,
    /// Nothing is looked for until then.
    rests_until: Moment,
}

impl Shard {
    /// Makes way for a block, of slots of which the device has those that `has` says. False where it should come a little later: memory
    /// has no frame free, but the disk has room and blocks are on their way there.
    pub fn make_way(
        &mut self,
        now: Moment,
        tenant: TenantId,
        (block, slot): (&StoreBlock, Slot),
        has: impl Fn(Slot) -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if self.has_spare(tenant, block, slot) {
            return true;
        }
        let Some(least) = self.class_of(block.header.payload_bytes) else { return true };
        for _ in 0..AT_ONCE {
            let is_any = self.blocks_of(|slot| !has(slot)) > 0;
            if !is_any || !self.leave_elsewhere(now, least, &has, effects) {
                break;
            }
            if self.has_spare(tenant, block, slot) {
                return true;
            }
        }
        for class in least..self.config.classes.len() as u8 {
            let has_free = MEMORY.iter().any(|tier| self.ledger.free(*tier, class) > 0);
            if has_free || !self.has_disk(class) || !self.config.unused_to_disk {
                continue;
            }
            let sum =
                |of: &dyn Fn(Tier) -> u32| Tier::ALL.iter().map(|tier| u64::from(of(*tier))).sum::<u64>();
            let has_room =
                sum(&|tier| self.ledger.free(tier, class)) > sum(&|tier| self.low_water(tier, class));
            self.move_down_early(now, class, effects);
            if has_room && self.leaving_memory(class) > 0 {
                return false;
            }
        }
        true
    }

    /// Lets one copy go, in a frame of this class or a larger one, whose slot has gone elsewhere.
    fn leave_elsewhere(
        &mut self,
        now: Moment,
        least: u8,
        has: &impl Fn(Slot) -> bool,
        effects: &mut Vec<Effect>,
    ) -> bool {
        if now < self.elsewhere.rests_until {
            return false;
        }
        let (clock, records) = (self.hold_clock(now), self.index.records.len());
        let looked_at = records.min(LOOKED_AT);
        for step in 0..looked_at {
            let at = (self.elsewhere.at + step) % records;
            let record = &self.index.records[at];
            if record.class >= least && record.is_evictable(clock) && !has(Slot(record.slot)) {
                // The one before it in its prefix has become the last, perhaps.
                let before = self.linked(record.parent);
                self.evict(at as u32, effects);
                let next = before.map_or(at + 1, |before| before as usize) % records;
                self.elsewhere = Elsewhere { at: next, ..Elsewhere::default() };
                return true;
            }
        }
        let Elsewhere { at, in_vain, .. } = &mut self.elsewhere;
        *at = (*at + looked_at) % records.max(1);
        *in_vain += looked_at;
        if *in_vain >= records {
            *in_vain = 0;
            self.elsewhere.rests_until = now + REST;
        }
        false
    }
}
