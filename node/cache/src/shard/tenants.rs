//! Which tenants there are, what a shard holds of each and has done for it.

use super::Shard;
use crate::block::Record;
use crate::policy::Visit;
use kvhive_protocol::load::{self, TenantLoad};
use kvhive_protocol::{BlockKey, Era, TenantId};
use std::collections::BTreeMap;

impl Shard {
    /// Takes over the tenants' eras. Blocks of older eras and of unknown tenants do not exist from now on; their frames
    /// come back as [`Shard::tend`] gets to them.
    pub fn set_tenants(&mut self, tenants: BTreeMap<TenantId, Era>) {
        let ended = self.ends_any(&tenants);
        self.tell_cleared(&tenants);
        self.tenants = tenants;
        // What a deleted tenant has left behind is counted until it is gone; its figures go with a later map.
        self.loads.retain(|tenant, load| self.tenants.contains_key(tenant) || load.all_blocks() > 0);
        if ended {
            self.sweep = Some(0);
        }
    }

    /// Says whether an era that stands is none of these.
    pub fn ends_any(&self, tenants: &BTreeMap<TenantId, Era>) -> bool {
        self.tenants.iter().any(|(tenant, era)| tenants.get(tenant) != Some(era))
    }

    /// Says whether blocks of eras that have ended may still be here: they are looked for piece by piece.
    pub fn is_sweeping(&self) -> bool {
        self.sweep.is_some()
    }

    /// Returns the figures of the tenants that use most of it, at most so many, in the order of their ids.
    pub fn tenant_loads(&self, limit: usize) -> Vec<(TenantId, TenantLoad)> {
        load::most(self.loads.iter().map(|(tenant, load)| (*tenant, *load)).collect(), limit)
    }

    /// Finds the tenant's record of a key, filling or resident. What another tenant holds under it is not found.
    pub(super) fn find(&self, tenant: TenantId, key: &BlockKey) -> Option<u32> {
        self.index.find(&self.owners, tenant, key)
    }

    /// Returns what policies are told of a block. They know its key by its tenant's salt: what they remember of a key that has
    /// left is not found by another tenant's block of the same key.
    pub(super) fn visit_of(&self, at: u32) -> Visit {
        let Record { owner, ref key, parent, depth, .. } = self.index.records[at as usize];
        let key = self.owners.salt_of(owner).key(key);
        Visit { key, parent: self.linked(parent), depth, partial: false }
    }

    /// Returns a tenant's figures, to count in. There are no more of them than tenants of the map, and of those before it that have
    /// blocks here.
    pub(super) fn load_of(&mut self, tenant: TenantId) -> &mut TenantLoad {
        self.loads.entry(tenant).or_default()
    }

    /// Counts a block that is resident from now on, or is no longer, where it is.
    pub(super) fn count_resident(&mut self, at: u32, by: i64) {
        let record = &self.index.records[at as usize];
        let (tenant, _) = self.owners.of(record.owner);
        let (tier, bytes) = (record.tier, self.config.classes[usize::from(record.class)]);
        let figures = self.stats.tier(tier);
        figures.blocks = figures.blocks.wrapping_add_signed(by);
        let load = self.load_of(tenant);
        let (blocks, used_bytes) = (&mut load.blocks[tier as usize], &mut load.used_bytes[tier as usize]);
        *blocks = blocks.wrapping_add_signed(by);
        *used_bytes = used_bytes.wrapping_add_signed(by.wrapping_mul(bytes as i64));
    }
}
