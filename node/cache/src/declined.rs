//! The blocks of one party that were declined last. Who is declined stands for all that come after it: a block without the one
//! before it is found by nobody. Requests come side by side, so that more than one is remembered.

use kvhive_protocol::{BlockKey, TenantId};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks that are remembered: requests of a party that are told apart while their stores come in turns.
const REMEMBERED: usize = 1024;

/// What was declined, with keys as policies know them.
#[derive(Default)]
pub(crate) struct Declined {
    /// By the turn in which each was.
    order: BTreeMap<u64, (TenantId, BlockKey)>,
    turns: BTreeSet<(TenantId, BlockKey, u64)>,
    next: u64,
}

impl Declined {
    /// Remembers a block: as often as it is declined, for each time another may come after it.
    pub(crate) fn note(&mut self, tenant: TenantId, key: BlockKey) {
        if self.order.len() == REMEMBERED
            && let Some((turn, (tenant, key))) = self.order.pop_first()
        {
            self.turns.remove(&(tenant, key, turn));
        }
        self.order.insert(self.next, (tenant, key));
        self.turns.insert((tenant, key, self.next));
        self.next += 1;
    }

    /// Puts a child in the place of its parent; says whether that was remembered.
    pub(crate) fn goes_on(&mut self, tenant: TenantId, parent: &BlockKey, child: BlockKey) -> bool {
        let of_parent = (tenant, *parent, 0)..=(tenant, *parent, u64::MAX);
        let Some(one) = self.turns.range(of_parent).next().copied() else { return false };
        self.turns.remove(&one);
        self.order.remove(&one.2);
        self.note(tenant, child);
        true
    }

    /// Returns about the bytes of memory that it holds.
    pub(crate) fn memory_bytes(&self) -> usize {
        // A tree's nodes are half full at least.
        2 * self.order.len() * (2 * size_of::<(TenantId, BlockKey, u64)>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_each_by_its_latest_block() {
        let key = |number: u32| {
            let mut bytes = [7; 32];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            BlockKey::from_bytes(bytes)
        };
        let one = TenantId(1);
        let mut declined = Declined::default();
        for number in 0..=REMEMBERED as u32 {
            declined.note(one, key(number));
        }
        assert!(!declined.goes_on(one, &key(0), key(10_000)), "it was too long ago");
        assert!(!declined.goes_on(TenantId(2), &key(1), key(10_000)), "it is another's");
        assert!(declined.goes_on(one, &key(1), key(10_000)) && !declined.goes_on(one, &key(1), key(10_001)));
        assert!(declined.goes_on(one, &key(10_000), key(10_001)));
        assert_eq!((declined.order.len(), declined.turns.len()), (REMEMBERED, REMEMBERED));
        declined.note(one, key(20_000));
        declined.note(one, key(20_000));
        assert!(
            declined.goes_on(one, &key(20_000), key(20_001))
                && declined.goes_on(one, &key(20_000), key(20_002)),
            "two branches"
        );
    }
}
