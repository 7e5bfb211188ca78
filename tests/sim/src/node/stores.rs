//! Stores from clients, and when they are acknowledged.

use super::Node;
use crate::block::Block;
use crate::breach::Breach;
use kvhive_cache::acks::{self, Answer};
use kvhive_protocol::data::{Refusal, Stored};
use kvhive_protocol::{ClusterMap, DeviceId, Moment};
use std::collections::BTreeSet;
use std::sync::Arc;

/// A store that waits for what other replicas say.
pub(super) struct Store {
    block: Block,
    /// The map by which copies were sent.
    map: Arc<ClusterMap>,
    open: BTreeSet<DeviceId>,
    answers: Vec<(DeviceId, Answer)>,
}

impl Node {
    /// Takes a block from a client, if this is its primary: returns who is to have it too.
    pub(crate) fn store_from_client(
        &mut self,
        now: Moment,
        number: u64,
        block: Block,
        word: u64,
    ) -> Result<BTreeSet<DeviceId>, Breach> {
        let Some((member, map)) = self.serving.clone() else { return Ok(BTreeSet::new()) };
        let (us, slot) = (DeviceId::new(member, 0), block.slot());
        let leads = acks::leads(&map, us, [slot].into_iter()).is_ok();
        let stored = if leads { self.store(now, block, word)? } else { Stored::Refused(Refusal::WrongEra) };
        let Stored::Kept { already, .. } = stored else { return Ok(BTreeSet::new()) };
        if !already {
            self.unsure.insert(block);
        }
        let open: BTreeSet<DeviceId> =
            map.replicas(slot).0.iter().copied().filter(|device| device.member != member).collect();
        // Without a lease it counts as one copy, whatever others say of it.
        if self.is_leased(now) {
            self.stores.insert(number, Store { block, map, open: open.clone(), answers: Vec::new() });
            self.settle(now, number);
        }
        Ok(open)
    }

    /// A replica has said something of a block that it was to have too.
    pub(crate) fn answered(&mut self, now: Moment, number: u64, device: DeviceId, said: Option<Stored>) {
        let Some(store) = self.stores.get_mut(&number) else { return };
        if !store.open.remove(&device) {
            return;
        }
        match said.and_then(Answer::of) {
            Some(answer) => store.answers.push((device, answer)),
            None => self.fills.missed(store.block.slot(), device),
        }
        self.settle(now, number);
    }

    /// Nobody waits any longer for what replicas say that have not answered.
    pub(crate) fn give_up(&mut self, now: Moment, number: u64) {
        let Some(store) = self.stores.get_mut(&number) else { return };
        for device in std::mem::take(&mut store.open) {
            self.fills.missed(store.block.slot(), device);
        }
        self.settle(now, number);
    }

    /// Acknowledges a block of which every replica has said something.
    fn settle(&mut self, now: Moment, number: u64) {
        if self.stores.get(&number).is_none_or(|store| !store.open.is_empty()) {
            return;
        }
        let (Some(store), Some((_, newest))) = (self.stores.remove(&number), &self.serving) else { return };
        let slot = store.block.slot();
        let is_given = acks::is_given(&store.map, slot, &store.answers).is_ok();
        let has_stayed = acks::has_stayed(&store.map, newest, slot).is_ok();
        if is_given && has_stayed && self.is_leased(now) {
            self.unsure.remove(&store.block);
        }
    }

    /// Is given blocks by another node: takes what it can. None when they are not its to have.
    pub(crate) fn be_given(
        &mut self,
        now: Moment,
        blocks: &[(Block, u64)],
    ) -> Result<Option<Vec<Stored>>, Breach> {
        // A block of an era that it has not heard of is refused.
        let is_known = |block: &Block| block.era <= self.era(block.tenant);
        if !blocks.iter().all(|(block, _)| self.admits(now, block.slot()) && is_known(block)) {
            return Ok(None);
        }
        let mut said = Vec::with_capacity(blocks.len());
        for (block, word) in blocks {
            let stored = self.store(now, *block, *word)?;
            if self.is_leased(now) {
                self.offered.insert(*block);
            }
            said.push(match stored {
                Stored::Kept { already, .. } => {
                    Stored::Kept { copies: u8::from(self.is_leased(now)), already }
                }
                refused => refused,
            });
        }
        Ok(Some(said))
    }
}
