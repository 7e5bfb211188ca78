//! Links to parents that came after their children: when the disk's blocks and a snapshot's come side by side, when a slot's are
//! given from its beginning while new ones are stored at its end, when a block that was lost is stored anew.

use super::Shard;
use crate::block::{Life, Record};
use kvhive_protocol::{BlockKey, TenantId};
use std::collections::VecDeque;

/// Lost blocks whose children are looked for at a time.
const MAX_TORN: usize = 16;
/// Rounds over all records after which all of them have been looked at since a loss.
const ROUNDS: u8 = 2;

/// A block that was lost before its children.
pub(super) struct Torn {
    /// As its children name it.
    link: (u32, u32),
    key: BlockKey,
    owner: u16,
    tenant: TenantId,
    rounds: u8,
}

/// Those whose children are looked for.
pub(super) type AllTorn = VecDeque<Torn>;

impl Shard {
    /// Notes that a record's parent, if it has one, is not here.
    pub(super) fn note_orphan(&mut self, at: u32, parent: &BlockKey) {
        let record = &self.index.records[at as usize];
        if parent.is_none() || record.depth == 0 {
            return;
        }
        let print = self.index.print(&self.owners, record.owner, parent);
        let generation = record.generation;
        let records = &self.index.records;
        self.orphans.note(print, (at, generation), |at, generation| {
            let record = &records[at as usize];
            record.generation == generation && matches!(record.life, Life::Resident | Life::Filling)
        });
    }

    /// Links a block that is about to be seen to its children that were here before it.
    pub(super) fn adopt(&mut self, at: u32) {
        if self.orphans.is_empty() {
            return;
        }
        let Record { key, owner, .. } = self.index.records[at as usize];
        let print = self.index.print(&self.owners, owner, &key);
        while let Some((child, generation)) = self.orphans.take(print) {
            if self.index.named(child, generation).is_some() {
                self.link(at, child);
            }
        }
    }

    /// Makes one block another's parent, where that has none and may be its child. Chains of those after it say less than is true
    /// until a match has walked there.
    fn link(&mut self, parent: u32, child: u32) -> bool {
        let Record { generation, owner, depth, .. } = self.index.records[parent as usize];
        let record = &self.index.records[child as usize];
        let may_be = matches!(record.life, Life::Resident | Life::Filling)
            && (record.owner, record.depth) == (owner, depth.wrapping_add(1))
            && self.linked(record.parent).is_none();
        if may_be {
            self.index.records[child as usize].parent = (parent, generation);
            self.add_child(parent);
        }
        may_be
    }

    /// A block is about to go before its children.
    pub(super) fn note_torn(&mut self, at: u32) {
        if self.torn.len() == MAX_TORN {
            self.torn.pop_front();
        }
        let Record { generation, key, owner, .. } = self.index.records[at as usize];
        let (tenant, _) = self.owners.of(owner);
        self.torn.push_back(Torn { link: (at, generation), key, owner, tenant, rounds: ROUNDS });
    }

    /// Looks whether a record is the child of a block that was lost: its parent may have come again, or it will.
    pub(super) fn look_for_torn(&mut self, at: u32) {
        let link = self.index.records[at as usize].parent;
        let Some(torn) = self.torn.iter().find(|torn| torn.link == link) else { return };
        let (key, owner, tenant) = (torn.key, torn.owner, torn.tenant);
        if owner != self.index.records[at as usize].owner {
            return;
        }
        match self.visible(tenant, &key) {
            Some(parent) => {
                if self.link(parent, at) {
                    self.tell_leaf(Some(parent), false);
                }
            }
            None => self.note_orphan(at, &key),
        }
    }

    /// All records have been looked at.
    pub(super) fn end_torn_round(&mut self) {
        self.torn.iter_mut().for_each(|torn| torn.rounds -= 1);
        self.torn.retain(|torn| torn.rounds > 0);
    }

    /// A walk has come from one block to the next: if that is linked to it, its chain is known again.
    pub(super) fn chain_on(&mut self, before: u32, at: u32) {
        if self.linked(self.index.records[at as usize].parent) == Some(before) {
            let chain = self.index.records[before as usize].chain.saturating_add(1);
            self.index.records[at as usize].chain = chain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::ShardConfig;
    use crate::block::BlockId;
    use crate::frames::TierCapacity;
    use crate::party::Rules;
    use crate::policy::Strategy;
    use kvhive_protocol::block::Codec;
    use kvhive_protocol::data::{Run, StoreBlock};
    use kvhive_protocol::{BlockHeader, Era, KeyList, LayoutFingerprint, Moment, Slot};
    use std::collections::BTreeMap;
    use std::time::Duration;

    const TENANT: TenantId = TenantId(1);
    const BLOCKS: u32 = 10;

    fn key(number: u32) -> BlockKey {
        BlockKey::from_bytes([number as u8 + 1; 32])
    }

    fn empty() -> Shard {
        let frames = |frames: u32| TierCapacity { frames: vec![frames] };
        let mut shard = Shard::new(ShardConfig {
            classes: vec![100],
            device: frames(2),
            host: frames(0),
            disk: frames(2 * BLOCKS),
            rules: Rules::new(Strategy::Lru),
            max_hold: Duration::from_secs(1),
            max_writes: 8,
            low_water_per_mille: 0,
            gc_per_mille: None,
            pinned_per_mille: 500,
            unused_to_disk: true,
            prefetch: 0,
            hash_seed: 7,
        });
        shard.set_tenants(BTreeMap::from([(TENANT, Era(1))]));
        shard
    }

    /// Takes in one block of the only prefix.
    fn restore(shard: &mut Shard, number: u32) -> BlockId {
        let header = BlockHeader {
            key: key(number),
            fingerprint: LayoutFingerprint::default(),
            tenant: TENANT,
            era: Era(1),
            depth: number,
            codec: Codec::Raw,
            payload_bytes: 100,
            digest: 0,
        };
        let parent = number.checked_sub(1).map_or(BlockKey::NONE, key);
        let id = shard.restore(TENANT, &StoreBlock { header, parent }, Slot(1), 0);
        shard.invariants().expect("all hold");
        id.expect("it has a place")
    }

    fn covered(shard: &mut Shard) -> u32 {
        let keys: KeyList = (0..BLOCKS).map(key).collect();
        let run = [Run { slot: Slot(1), keys: BLOCKS }];
        let covered = shard.match_runs(Moment::from_millis(1), TENANT, &run, &keys, Duration::ZERO)[0];
        shard.invariants().expect("all hold");
        covered
    }

    /// Says of each block of the prefix which stands before it and how many go on from it.
    fn is_linked(shard: &mut Shard) {
        for number in 0..BLOCKS {
            let at = shard.find(TENANT, &key(number)).expect("it is here");
            let record = shard.index.records[at as usize];
            let parent = shard.linked(record.parent).map(|parent| shard.index.records[parent as usize].key);
            assert_eq!(parent, number.checked_sub(1).map(key), "block {number}");
            assert_eq!(record.children, u32::from(number + 1 < BLOCKS), "block {number}");
        }
    }

    #[test]
    fn a_tail_that_came_before_its_head_is_linked_to_it() {
        for from in 1..BLOCKS {
            let mut shard = empty();
            for number in (from..BLOCKS).chain(0..from) {
                restore(&mut shard, number);
            }
            is_linked(&mut shard);
            assert_eq!(covered(&mut shard), BLOCKS);
            let last = shard.find(TENANT, &key(BLOCKS - 1)).expect("it is here");
            assert_eq!(u32::from(shard.chain_of(last)), BLOCKS - 1, "the next match looks up a few");
        }
        let mut shard = empty();
        for number in (0..BLOCKS).rev() {
            restore(&mut shard, number);
        }
        is_linked(&mut shard);
        assert_eq!(covered(&mut shard), BLOCKS);
    }

    #[test]
    fn a_lost_block_that_comes_again_is_linked_to_what_comes_after_it() {
        for comes_after in [0, 5, 100] {
            let mut shard = empty();
            let ids: Vec<BlockId> = (0..BLOCKS).map(|number| restore(&mut shard, number)).collect();
            shard.lost(ids[4], &mut Vec::new());
            assert_eq!(covered(&mut shard), 4);
            shard.mend(comes_after);
            restore(&mut shard, 4);
            for _ in 0..3 * 2 * BLOCKS {
                shard.mend(3);
                shard.invariants().expect("all hold");
            }
            is_linked(&mut shard);
            assert_eq!(covered(&mut shard), BLOCKS);
        }
    }

    #[test]
    fn a_block_of_another_depth_is_not_linked() {
        let mut shard = empty();
        let child = restore(&mut shard, 7);
        let at = child.index;
        shard.index.records[at as usize].depth = 9;
        restore(&mut shard, 6);
        assert_eq!(shard.linked(shard.index.records[at as usize].parent), None);
    }
}
