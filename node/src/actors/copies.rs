//! Copies of blocks between tiers, off the actor's thread. Which go, and where to, is the shard's; the disk's part is next door.

use crate::actors::core::{DeviceCore, Resident};
use crate::frames::Frame;
use crate::guards::{CopyEnd, Rest, Return};
use kvhive_cache::{BlockId, CopyTicket, Tier};

impl DeviceCore {
    /// Has a block be copied to another tier, as the shard asks.
    pub(super) fn copy(&mut self, ticket: CopyTicket, id: BlockId, to: Tier, class: usize) {
        let begun = match self.resident[id.index()].as_ref() {
            Some(Resident { rest: Rest::Frame(from), header, .. }) if to == Tier::Disk => {
                self.demote(ticket, id, class, from.clone(), *header)
            }
            Some(Resident { rest: Rest::Frame(from), .. }) => {
                self.copy_frame(ticket, to, class, from.clone())
            }
            Some(Resident { rest: Rest::Record(from), header, .. }) => {
                self.promote(ticket, id, (to, class), from.clone(), *header)
            }
            None => None,
        };
        if begun.is_none() {
            self.returns.push(Return::Copy(ticket, None));
        }
    }

    fn copy_frame(&self, ticket: CopyTicket, to: Tier, class: usize, source: Frame) -> Option<()> {
        let target = self.memory.take_frame(to, class, source.len() as u64)?;
        let (returns, blocking) = (self.returns.clone(), &self.blocking);
        let block = |work: Box<dyn FnOnce() + Send>| drop(blocking.spawn_blocking(work));
        let end = CopyEnd::new(ticket, returns);
        source.copy(target, block, move |copy| end.with(copy.map(Rest::Frame)));
        Some(())
    }
}
