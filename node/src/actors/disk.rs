//! The disk's part of a device actor: blocks on their way to records and back, off the actor's thread, and what was on disk
//! before. Which blocks go, and when, is the shard's.

use crate::actors::core::DeviceCore;
use crate::disk::{Found, Place, ReadError, Store, TenantMark, tenant_mark};
use crate::guards::{Rest, Return};
use kvhive_cache::{BlockId, CopyTicket, Tier};
use kvhive_gpu::ReadFrame;
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{BlockHeader, ClusterMap, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a core knows of its disk.
pub(crate) struct DiskTier {
    store: Arc<Store>,
    /// Of the secrets of the tenants that are.
    marks: BTreeMap<TenantId, TenantMark>,
    /// What was on disk before is known; until then nothing is written there.
    pub(super) is_restored: bool,
    /// What the shard was told last.
    was_open: bool,
}

impl DiskTier {
    pub(super) fn new(store: Arc<Store>) -> DiskTier {
        store.set_known(false);
        DiskTier { store, marks: BTreeMap::new(), is_restored: false, was_open: false }
    }

    /// All that is on disk has been taken in.
    pub(super) fn restored(&mut self) {
        self.is_restored = true;
        self.store.set_known(true);
    }

    /// Knows nothing of what is on disk any more.
    pub(super) fn forget(&mut self) {
        *self = DiskTier::new(self.store.clone());
    }

    /// Takes over the tenants' secrets.
    pub(super) fn adopt(&mut self, map: &ClusterMap) {
        self.marks = map.tenants.iter().map(|(id, tenant)| (*id, tenant_mark(&tenant.secret))).collect();
    }
}

impl DeviceCore {
    /// Tells the shard when the disk has begun or ceased to take blocks.
    pub(super) fn heed_disk(&mut self) {
        if let Some(disk) = &mut self.disk {
            let is_open = disk.is_restored && disk.store.is_open();
            if is_open != std::mem::replace(&mut disk.was_open, is_open) {
                self.shard.set_open(Tier::Disk, is_open);
            }
        }
    }

    /// Has a block written to a record; none when it cannot be begun.
    pub(super) fn demote(
        &self,
        ticket: CopyTicket,
        id: BlockId,
        class: usize,
        frame: ReadFrame,
        header: BlockHeader,
    ) -> Option<()> {
        let disk = self.disk.as_ref()?;
        let listed = self.shard.listed(id)?;
        let mark = *disk.marks.get(&header.tenant)?;
        let place = disk.store.take(class)?;
        let returns = self.returns.clone();
        self.blocking.spawn(async move {
            let block = StoreBlock { header, parent: listed.parent };
            let written = place.write(block, listed.slot, mark, frame).await;
            returns.push(Return::Copy(ticket, written.is_ok().then_some(Rest::Record(place))));
        });
        Some(())
    }

    /// Has a block read into a frame; none when it cannot be begun.
    pub(super) fn promote(
        &self,
        ticket: CopyTicket,
        id: BlockId,
        (to, class): (Tier, usize),
        place: Place,
        header: BlockHeader,
    ) -> Option<()> {
        let bytes = Place::fitting(&header, place.store().frame_bytes(class));
        let frame = self.memory.take_frame(to, class, bytes)?;
        let returns = self.returns.clone();
        self.blocking.spawn(async move {
            let read = place.read_into(&header, frame).await;
            drop(place);
            if matches!(read, Err(ReadError::Bad(..))) {
                returns.push(Return::Lost(id));
            }
            returns.push(Return::Copy(ticket, read.ok().map(Rest::Frame)));
        });
        Some(())
    }

    /// Takes in what is on disk, parents first; returns how many there were places for.
    pub(super) fn restore(&mut self, found: Vec<Found>) -> u64 {
        let Some(DiskTier { store, marks, .. }) = &self.disk else { return 0 };
        let (store, marks) = (store.clone(), marks.clone());
        let mut restored = 0;
        for Found { class, header } in found {
            // The map may have changed since the scan began.
            if marks.get(&header.block.header.tenant) != Some(&header.mark) {
                continue;
            }
            // One that is read still was taken in before.
            let Some(place) = store.take_this(class, header.number) else { continue };
            let block = header.block.header;
            if let Some(id) = self.shard.restore(block.tenant, &header.block, header.slot, class) {
                self.keep(id, Rest::Record(place), block);
                restored += 1;
            }
        }
        restored
    }
}
