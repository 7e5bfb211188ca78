//! Blocks that lie on disk or on a GPU are read before they are sent, side by side. What there is no room or no time for is a miss.

use crate::data::plane::DataPlane;
use crate::disk::Room;
use crate::far::FarGuard;
use crate::guards::{Lent, ReadGuard, Unread};
use futures_util::future::join_all;
use kvhive_cache::held_at_once;
use kvhive_protocol::{DeviceId, TenantId};
use kvhive_spans::Span;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A fetch waits this long for room among the blocks being read.
pub(super) const ROOM_LIMIT: Duration = Duration::from_secs(1);

/// What was lent, at hand.
#[derive(Default)]
pub(super) struct Brought {
    /// In the order in which it was lent.
    pub(super) blocks: Vec<Option<Result<ReadGuard, Unread>>>,
    /// Something was not read because there was no time to wait for a turn or for room.
    pub(super) was_late: bool,
}

impl Brought {
    /// Says whether nothing came, and something might have if there had been more time.
    pub(super) fn is_late(&self) -> bool {
        self.was_late && !self.blocks.iter().any(|one| matches!(one, Some(Ok(_))))
    }
}

impl DataPlane {
    /// Has what was lent at hand, when it is the turn of the tenant that it is for.
    pub(super) async fn bring(
        &self,
        span: &Span,
        device: DeviceId,
        (tenant, until): (TenantId, Instant),
        lent: Vec<Option<Lent>>,
    ) -> Brought {
        let mut here = Vec::with_capacity(lent.len());
        let mut wanted: Vec<(usize, FarGuard)> = Vec::new();
        for (at, one) in lent.into_iter().enumerate() {
            here.push(match one {
                Some(Lent::Guard(guard)) => Some(Ok(guard)),
                Some(Lent::Far(far)) if far.is_answered() => {
                    wanted.push((at, far));
                    Some(Err(Unread::Late))
                }
                // Not even room is waited for: whoever asks computes, and at once.
                Some(Lent::Far(far)) => {
                    far.give_up();
                    Some(Err(Unread::Late))
                }
                None => None,
            });
        }
        if wanted.is_empty() {
            return Brought { blocks: here, was_late: false };
        }
        let is_disk = wanted.iter().any(|(_, far)| far.is_on_disk());
        let (part, tier) = if is_disk { ("read disk", "disk") } else { ("read gpu", "device") };
        let mut reading = span.part(part);
        reading.note("kvhive.tier", tier);
        reading.note("kvhive.blocks", wanted.len());
        // As much of the fetch as can be held at once, from its beginning.
        let own = |far: &FarGuard| self.device_permits(far.bytes());
        let most = u64::from(self.device_permits(u64::MAX));
        let fits = held_at_once(wanted.iter().map(|(_, far)| u64::from(own(far))), most);
        let of_device = wanted[..fits].iter().map(|(_, far)| own(far)).sum();
        let of_all = wanted[..fits].iter().map(|(_, far)| self.permits(far.bytes())).sum();
        wanted.drain(fits..).for_each(|(_, far)| far.give_up());
        let bytes = wanted.iter().map(|(_, far)| far.bytes()).sum();
        let turn_until = until.min(Instant::now() + ROOM_LIMIT);
        let Some(_turn) = self.device_turn(device, tenant, bytes, turn_until).await else {
            reading.fail("it would be late");
            wanted.into_iter().for_each(|(_, far)| far.give_up());
            return Brought { blocks: here, was_late: true };
        };
        let limit = Instant::now() + ROOM_LIMIT;
        let Ok(Some(mut room)) = timeout_at(until.min(limit), self.room(device, of_device, of_all)).await
        else {
            reading.fail("no room among the blocks being read");
            // Only what was waited for so long says something of the disk: others may have next to no time.
            let was_late = until < limit;
            let give_up = if was_late { FarGuard::give_up } else { FarGuard::starve };
            wanted.into_iter().for_each(|(_, far)| give_up(far));
            return Brought { blocks: here, was_late };
        };
        let reads = wanted.into_iter().map(|(at, far)| {
            let of_device = room.of_device.split(self.device_permits(far.bytes()) as usize);
            let of_all = room.of_all.as_mut().and_then(|room| room.split(self.permits(far.bytes()) as usize));
            let own =
                of_device.zip(of_all).map(|(of_device, of_all)| Room { of_device, of_all: Some(of_all) });
            async move { (at, far.read(own).await) }
        });
        let (mut came, mut bytes) = (0u64, 0u64);
        for (at, read) in join_all(reads).await {
            if let Ok(guard) = &read {
                came += 1;
                bytes += guard.bytes().len() as u64;
            }
            here[at] = Some(read);
        }
        reading.note("kvhive.read", came);
        reading.note("kvhive.bytes", bytes);
        Brought { blocks: here, was_late: false }
    }

    /// Waits for room among what is read from a device's disk and GPU, then among what is read from all.
    pub(crate) async fn room(&self, device: DeviceId, of_device: u32, of_all: u32) -> Option<Room> {
        let own = self.bringing_of.get(usize::from(device.index))?.clone();
        let of_device = own.acquire_many_owned(of_device).await.ok()?;
        let of_all = self.bringing.clone().acquire_many_owned(of_all).await.ok()?;
        Some(Room { of_device, of_all: Some(of_all) })
    }
}
