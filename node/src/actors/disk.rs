//! The disk's part of a device actor: blocks on their way to records and back, off the actor's thread, and what was on disk
//! before. Which blocks go, and when, is the shard's.

use crate::actors::core::DeviceCore;
use crate::disk::{Found, Place, ReadError, Store, TenantMark, tenant_mark};
use crate::frames::{Frame, Fresh};
use crate::guards::{Rest, Return};
use kvhive_cache::{BlockId, CopyTicket, Tier};
use kvhive_protocol::data::StoreBlock;
use kvhive_protocol::{BlockHeader, ClusterId, ClusterMap, TenantId};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// From when a core begins to know nothing of its disk until it does so again: after a panic, or by another cluster's map. What
/// a scan has found is taken in by the life that it was made for and by no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DiskLife {
    pub(crate) number: u64,
    /// Whose map the core goes by.
    pub(crate) cluster: Option<ClusterId>,
}

/// What a core knows of its disk.
pub(crate) struct DiskTier {
    store: Arc<Store>,
    life: u64,
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
        let life = store.begin_life();
        DiskTier { store, life, marks: BTreeMap::new(), is_restored: false, was_open: false }
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

    /// Says whether the disk has failed and is done without; one that is only being looked at has not.
    pub(super) fn lacks_its_disk(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| !disk.store.is_open())
    }

    /// Says for which life what is on disk is still to be taken in, if it is.
    pub(super) fn awaits_disk(&self) -> Option<DiskLife> {
        self.disk_life().filter(|_| self.disk.as_ref().is_some_and(|disk| !disk.is_restored))
    }

    fn disk_life(&self) -> Option<DiskLife> {
        self.disk.as_ref().map(|disk| DiskLife { number: disk.life, cluster: self.cluster })
    }

    /// All that is on disk has been taken in. False when that was in another life.
    pub(super) fn restored(&mut self, life: DiskLife) -> bool {
        let is_own = self.disk_life() == Some(life);
        if let Some(disk) = self.disk.as_mut().filter(|_| is_own) {
            disk.is_restored = true;
            disk.store.set_known(true);
        }
        is_own
    }

    /// Has a block written to a record; none when it cannot be begun.
    pub(super) fn demote(
        &self,
        ticket: CopyTicket,
        id: BlockId,
        class: usize,
        frame: Frame,
        header: BlockHeader,
    ) -> Option<()> {
        let disk = self.disk.as_ref()?;
        let listed = self.shard.listed(id)?;
        let mark = *disk.marks.get(&header.tenant)?;
        let place = disk.store.take(class)?;
        let returns = self.returns.clone();
        self.blocking.spawn(async move {
            let block = StoreBlock { header, parent: listed.parent };
            let written = match frame {
                Frame::Host(frame) => place.write(block, listed.slot, mark, frame).await,
                Frame::Gpu(frame) => match frame.bring(None).await {
                    Ok(Some(bytes)) => place.write_bytes(block, listed.slot, mark, bytes.bytes()).await,
                    Ok(None) | Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
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
        let whole = Place::fitting(&header, place.store().frame_bytes(class));
        let bytes = if self.memory.is_gpu() && to == Tier::Device { header.payload_bytes } else { whole };
        let frame = self.memory.take_frame(to, class, bytes)?;
        let returns = self.returns.clone();
        self.blocking.spawn(async move {
            let read = match frame {
                Fresh::Host(frame) => {
                    place.read_into(&header, frame).await.map(|frame| Some(Frame::Host(frame)))
                }
                Fresh::Gpu(frame) => match place.read_for(&header).await {
                    Ok(payload) => Ok(frame.sent(payload).await),
                    Err(error) => Err(error),
                },
            };
            drop(place);
            if matches!(read, Err(ReadError::Bad(..))) {
                returns.push(Return::Lost(id));
            }
            returns.push(Return::Copy(ticket, read.ok().flatten().map(Rest::Frame)));
        });
        Some(())
    }

    /// Takes in what is on disk, parents first; returns how many there were places for. None when it was looked for in another
    /// life.
    pub(super) fn restore(&mut self, life: DiskLife, found: Vec<Found>) -> Option<u64> {
        let DiskTier { store, marks, .. } = self.disk.as_ref().filter(|_| self.disk_life() == Some(life))?;
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
        Some(restored)
    }
}
