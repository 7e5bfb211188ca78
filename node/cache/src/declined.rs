//! The blocks of one party that were declined last. Who is declined stands for all that come after it: a block without the one
//! before it is found by nobody. Requests come side by side, so that more than one is remembered.

use kvhive_protocol::{BlockKey, TenantId};
use std::collections::VecDeque;

/// Blocks that are remembered: requests of a party that are told apart while their stores come in turns.
const REMEMBERED: usize = 32;

/// What was declined, oldest first, with keys as policies know them.
#[derive(Default)]
pub(crate) struct Declined(VecDeque<(TenantId, BlockKey)>);

impl Declined {
    /// Remembers a block: as often as it is declined, for each time another may come after it.
    pub(crate) fn note(&mut self, tenant: TenantId, key: BlockKey) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((tenant, key));
    }

    /// Puts a child in the place of its parent; says whether that was remembered.
    pub(crate) fn goes_on(&mut self, tenant: TenantId, parent: &BlockKey, child: BlockKey) -> bool {
        let Some(at) = self.0.iter().position(|one| *one == (tenant, *parent)) else { return false };
        self.0.remove(at);
        self.note(tenant, child);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered_each_by_its_latest_block() {
        let key = |number: u8| BlockKey::from_bytes([number; 32]);
        let one = TenantId(1);
        let mut declined = Declined::default();
        for number in 0..=REMEMBERED as u8 {
            declined.note(one, key(number));
        }
        assert!(!declined.goes_on(one, &key(0), key(100)), "it was too long ago");
        assert!(!declined.goes_on(TenantId(2), &key(1), key(100)), "it is another's");
        assert!(declined.goes_on(one, &key(1), key(100)) && !declined.goes_on(one, &key(1), key(101)));
        assert!(declined.goes_on(one, &key(100), key(101)));
        assert_eq!(declined.0.len(), REMEMBERED);
        declined.note(one, key(50));
        declined.note(one, key(50));
        assert!(
            declined.goes_on(one, &key(50), key(51)) && declined.goes_on(one, &key(50), key(52)),
            "two branches"
        );
    }
}
