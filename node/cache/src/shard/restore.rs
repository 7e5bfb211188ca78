//! Blocks that are on the disk since before their shard was made.

use super::Shard;
use crate::block::{BlockId, Life, NO_PARENT, Record, Tier};
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{SLOTS, Slot, TenantId};

impl Shard {
    /// Takes in a block that is on the disk since before this shard was made. Parents had better come before their children.
    /// None when it is of an ended era, here already, or has no place in its class.
    pub fn restore(
        &mut self,
        tenant: TenantId,
        block: &StoreBlock,
        slot: Slot,
        class: usize,
    ) -> Option<BlockId> {
        let header = &block.header;
        self.check_era(tenant, header.tenant, header.era).ok()?;
        let holds = self.config.classes.get(class).is_some_and(|bytes| *bytes >= header.payload_bytes);
        if !holds || slot.0 >= SLOTS || self.find(tenant, &header.key).is_some() {
            return None;
        }
        let (class, party) = (class as u8, self.party_of(tenant));
        let owner = self.owners.enter(tenant, header.era)?;
        if !self.take(Tier::Disk, class, party) {
            self.owners.leave(owner);
            return None;
        }
        let parent = self.parent_of(tenant, &block.parent);
        let record = Record {
            codec: header.codec,
            key: header.key,
            owner,
            depth: header.depth,
            parent: parent.map_or(NO_PARENT, |at| (at, self.index.records[at as usize].generation)),
            slot: slot.0,
            party,
            class,
            tier: Tier::Disk,
            life: Life::Filling,
            ..Record::EMPTY
        };
        let at = self.index.insert(&self.owners, record).expect("there are as many records as frames");
        match parent {
            Some(parent) => self.add_child(parent),
            None => self.note_orphan(at, &block.parent),
        }
        self.occupied[usize::from(slot.0)] += 1;
        Some(self.appear(at))
    }
}
