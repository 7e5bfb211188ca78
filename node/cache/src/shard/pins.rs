//! Pins: blocks that stay although others would take their place. A pin names keys, not blocks: what is named and not here is pinned
//! when it comes. A pinned block is to its policy what a block with children is, no leaf; it moves between tiers like any other,
//! by its use. It goes with its era, with its slot, when its bytes cannot be read, or when no pin names it any more and it is
//! worth least.
//!
//! Of the frames of a size class, and of what a tenant is promised, pins take a share: those that are named beyond it are ordinary
//! blocks, which is counted.

use super::Shard;
use crate::block::{Life, Mark, Tier};
use crate::party::COMMONS;
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::pins::MAX_PINNED_KEYS;
use kvhive_protocol::{BlockKey, Slot, TenantId};
use std::collections::{BTreeMap, BTreeSet};

/// What is pinned here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pinned {
    /// Whose blocks, and which.
    pub keys: BTreeSet<(TenantId, BlockKey)>,
    /// The slots that the device has: in others blocks are pinned elsewhere.
    pub slots: BTreeSet<Slot>,
}

/// What a shard knows of pins.
pub(super) struct Pins {
    named: Pinned,
    /// Pinned blocks of each class.
    blocks: Vec<u32>,
    /// Their bytes by tenant.
    bytes: BTreeMap<TenantId, u64>,
}

impl Pins {
    pub(super) fn new(classes: usize) -> Pins {
        Pins { named: Pinned::default(), blocks: vec![0; classes], bytes: BTreeMap::new() }
    }

    /// Returns the bytes that it takes at most, with what trees take around their entries.
    pub(super) const fn bytes() -> usize {
        let keys = MAX_PINNED_KEYS * size_of::<(TenantId, BlockKey)>();
        let slots = kvhive_protocol::SLOTS as usize * size_of::<Slot>();
        (keys + slots) * 2
    }
}

impl Shard {
    /// Takes over what is pinned. Blocks that no pin names any more may leave again; none does so by this.
    pub fn set_pinned(&mut self, named: Pinned) {
        if self.pins.named == named {
            return;
        }
        let before = std::mem::replace(&mut self.pins.named, named);
        for (tenant, key) in &before.keys {
            if let Some(at) = self.find(*tenant, key) {
                self.unpin(at);
            }
        }
        let wanted: Vec<_> = self.pins.named.keys.iter().copied().collect();
        for (tenant, key) in wanted {
            if let Some(at) = self.find(tenant, &key) {
                self.pin_named(at);
            }
        }
    }

    /// Pins a resident block if a pin names it and as much as may be is not pinned already.
    pub(super) fn pin_named(&mut self, at: u32) {
        let record = &self.index.records[at as usize];
        if self.pins.named.keys.is_empty() || record.life != Life::Resident || record.is(Mark::PINNED) {
            return;
        }
        let (tenant, _) = self.owners.of(record.owner);
        let (class, slot) = (record.class, Slot(record.slot));
        if !self.stands(record) || !self.names(tenant, &record.key, slot) {
            return;
        }
        if !self.may_pin(tenant, class) {
            self.stats.pins_refused += 1;
            return;
        }
        let was_bare = record.is_bare();
        self.index.records[at as usize].set(Mark::PINNED, true);
        self.pins.blocks[usize::from(class)] += 1;
        *self.pins.bytes.entry(tenant).or_default() += self.config.classes[usize::from(class)];
        if was_bare {
            self.tell_leaf(Some(at), false);
        }
    }

    /// Ends a block's pin, if it has one.
    fn unpin(&mut self, at: u32) {
        if self.forget_pin(at) && self.index.records[at as usize].is_bare() {
            self.tell_leaf(Some(at), true);
        }
    }

    /// Counts a block as not pinned, which goes or whose pin ends. Says whether it was.
    pub(super) fn forget_pin(&mut self, at: u32) -> bool {
        let record = &mut self.index.records[at as usize];
        if !record.take(Mark::PINNED) {
            return false;
        }
        let (tenant, _) = self.owners.of(record.owner);
        let bytes = self.config.classes[usize::from(record.class)];
        self.pins.blocks[usize::from(record.class)] -= 1;
        let left = self.pins.bytes.get(&tenant).map_or(0, |all| all.saturating_sub(bytes));
        if left == 0 {
            self.pins.bytes.remove(&tenant);
        } else {
            self.pins.bytes.insert(tenant, left);
        }
        true
    }

    /// Says whether a block that comes would be pinned in a frame of this class: others leave for it then, whatever it is worth.
    pub(super) fn would_pin(&self, tenant: TenantId, key: &BlockKey, slot: Slot, class: u8) -> bool {
        self.names(tenant, key, slot) && self.may_pin(tenant, class)
    }

    /// Says whether a pin names a block that comes, and it could not be pinned here: as much is as may be.
    pub fn lacks_room_to_pin(&self, tenant: TenantId, block: &StoreBlock, slot: Slot) -> bool {
        let key = &block.header.key;
        let is_pinned = |at: u32| self.index.records[at as usize].is(Mark::PINNED);
        let Some(class) = self.class_of(block.header.payload_bytes) else { return false };
        self.names(tenant, key, slot)
            && !self.find(tenant, key).is_some_and(is_pinned)
            && !self.may_pin(tenant, class)
    }

    fn names(&self, tenant: TenantId, key: &BlockKey, slot: Slot) -> bool {
        let named = &self.pins.named;
        named.keys.contains(&(tenant, *key)) && named.slots.contains(&slot)
    }

    /// Says whether one more block of a tenant and class may be pinned.
    fn may_pin(&self, tenant: TenantId, class: u8) -> bool {
        let share = u64::from(self.config.pinned_per_mille);
        let frames: u64 = Tier::ALL.iter().map(|tier| u64::from(self.ledger.capacity(*tier, class))).sum();
        let of_class = u64::from(self.pins.blocks[usize::from(class)]) + 1;
        let of_tenant = self.pins.bytes.get(&tenant).copied().unwrap_or(0);
        let of_tenant = of_tenant.saturating_add(self.config.classes[usize::from(class)]);
        let within = |used: u64, whole: u64| u128::from(used) * 1000 <= u128::from(whole) * u128::from(share);
        within(of_class, frames) && self.promised_to(tenant).is_none_or(|bytes| within(of_tenant, bytes))
    }

    /// Returns what a tenant is promised over all tiers, if it is promised any.
    fn promised_to(&self, tenant: TenantId) -> Option<u64> {
        let party = self.party_of(tenant);
        let quota = self.parties[usize::from(party)].rules.quota;
        if party == COMMONS { None } else { quota.into_iter().flatten().reduce(u64::saturating_add) }
    }

    /// Returns how many blocks are pinned, and the bytes of their frames.
    pub(super) fn pinned(&self) -> (u64, u64) {
        (self.pins.blocks.iter().map(|blocks| u64::from(*blocks)).sum(), self.pins.bytes.values().sum())
    }

    /// Checks that pinned blocks are counted, and are named.
    pub(super) fn check_pins(&self) -> Result<(), String> {
        let mut counted = Pins::new(self.config.classes.len());
        for (at, record) in self.index.records.iter().enumerate().filter(|(_, one)| one.is(Mark::PINNED)) {
            let (tenant, _) = self.owners.of(record.owner);
            if record.life != Life::Resident || !self.names(tenant, &record.key, Slot(record.slot)) {
                return Err(format!("record {at} is pinned, {:?}, and by no pin", record.life));
            }
            counted.blocks[usize::from(record.class)] += 1;
            *counted.bytes.entry(tenant).or_default() += self.config.classes[usize::from(record.class)];
        }
        if (&counted.blocks, &counted.bytes) != (&self.pins.blocks, &self.pins.bytes) {
            return Err(format!(
                "{:?} blocks are pinned, counted are {:?}",
                counted.blocks, self.pins.blocks
            ));
        }
        Ok(())
    }
}
