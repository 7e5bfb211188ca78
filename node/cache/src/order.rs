//! Recency of leaves. A leaf is a resident block without a child in this shard; only leaves are ever evicted, so a prefix
//! never loses its head before its tail (leaf-LRU, as RadixAttention has it: Zheng et al., SGLang, 2024).
//!
//! A touch only marks the record. The order catches up when a leaf comes to the front under an old touch: it is put back
//! under its newer one. What is at the front under its true touch is the least recently used leaf, exactly.

use crate::block::{Record, Tier};
use kvhive_protocol::Moment;
use std::collections::BTreeSet;

/// Leaves that are looked at for one victim before the search is given up.
const MAX_SCAN: usize = 4096;

/// (touch, deeper first, record).
type Rank = (u64, u32, u32);

/// Leaves of every tier and size class, least recently used first.
pub(crate) struct Order {
    leaves: [Vec<BTreeSet<Rank>>; 2],
}

fn rank(record: &Record, at: u32) -> Rank {
    (record.ranked, u32::MAX - record.depth, at)
}

impl Order {
    pub(crate) fn new(classes: usize) -> Order {
        Order { leaves: [vec![BTreeSet::new(); classes], vec![BTreeSet::new(); classes]] }
    }

    fn of(&mut self, tier: Tier, class: u8) -> &mut BTreeSet<Rank> {
        &mut self.leaves[tier as usize][usize::from(class)]
    }

    /// Ranks a block that has become a leaf, or has come to another tier.
    pub(crate) fn insert(&mut self, record: &mut Record, at: u32) {
        debug_assert!(!record.is_ranked, "a leaf is ranked once");
        record.ranked = record.touch;
        record.is_ranked = true;
        let rank = rank(record, at);
        self.of(record.tier, record.class).insert(rank);
    }

    /// Takes a block out that is no leaf any more, or leaves its tier.
    pub(crate) fn remove(&mut self, record: &mut Record, at: u32) {
        if record.is_ranked {
            let rank = rank(record, at);
            self.of(record.tier, record.class).remove(&rank);
            record.is_ranked = false;
        }
    }

    /// Returns the least recently used leaf of a tier and class that may go now, with its rank. It stays ranked.
    pub(crate) fn oldest(
        &mut self,
        records: &mut [Record],
        tier: Tier,
        class: u8,
        now: Moment,
        except: u32,
    ) -> Option<(u64, u32, u32)> {
        let leaves = self.of(tier, class);
        let mut from: Rank = (0, 0, 0);
        for _ in 0..MAX_SCAN {
            let next = *leaves.range(from..).next()?;
            let at = next.2;
            let record = &mut records[at as usize];
            if record.touch != record.ranked {
                leaves.remove(&next);
                record.ranked = record.touch;
                leaves.insert(rank(record, at));
                continue;
            }
            if at != except && record.is_evictable(now) {
                return Some(next);
            }
            from = (next.0, next.1, next.2 + 1);
        }
        None
    }

    /// Returns how many leaves are ranked.
    pub(crate) fn len(&self) -> usize {
        self.leaves.iter().flatten().map(BTreeSet::len).sum()
    }
}
