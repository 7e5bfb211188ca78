//! A shard's blocks in the order in which they are given away, parents first, with bounded memory: as many as fit into it, nearest to
//! the beginnings of their prefixes, of those that come after what was given before.

use crate::block::BlockId;
use std::collections::BinaryHeap;

/// Sorts out of all blocks those that are next.
#[derive(Debug)]
pub struct Nearest {
    /// The deepest on top.
    next: BinaryHeap<(u32, BlockId)>,
    limit: usize,
    /// The last that was taken.
    after: Option<(u32, BlockId)>,
    has_more: bool,
}

impl Nearest {
    /// Makes one that holds up to `limit` blocks, which must be at least one.
    pub fn new(limit: usize) -> Nearest {
        Nearest { next: BinaryHeap::new(), limit, after: None, has_more: false }
    }

    /// Returns the bytes that one of this limit takes.
    pub fn bytes(limit: usize) -> u64 {
        ((limit + 1) * size_of::<(u32, BlockId)>()) as u64
    }

    /// Looks at some blocks with their depths. Between two [`Nearest::take`] all must be looked at.
    pub fn extend(&mut self, blocks: impl IntoIterator<Item = (u32, BlockId)>) {
        // As much as it ever needs; those taken before are given by now.
        if self.next.capacity() == 0 {
            self.next.reserve_exact(self.limit + 1);
        }
        for block in blocks {
            if self.after.is_some_and(|after| block <= after) {
                continue;
            }
            self.next.push(block);
            if self.next.len() > self.limit {
                self.next.pop();
                self.has_more = true;
            }
        }
    }

    /// Returns those that are next, in their order, and whether there are no more after them.
    pub fn take(&mut self) -> (Vec<(u32, BlockId)>, bool) {
        let next = std::mem::take(&mut self.next).into_sorted_vec();
        self.after = next.last().copied().or(self.after);
        (next, !std::mem::take(&mut self.has_more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_block_is_given_once_and_parents_first(depths in prop::collection::vec(0u32..20, 0..200), limit in 1usize..50) {
            let block = |(index, depth): (usize, &u32)| (*depth, BlockId { index: index as u32, generation: 1 });
            let all: Vec<(u32, BlockId)> = depths.iter().enumerate().map(block).collect();
            let (mut nearest, mut given) = (Nearest::new(limit), Vec::new());
            loop {
                nearest.extend(all.iter().copied());
                prop_assert!(nearest.next.capacity() * size_of::<(u32, BlockId)>() <= Nearest::bytes(limit) as usize);
                let (next, is_rest) = nearest.take();
                prop_assert!(next.len() == limit || is_rest && next.len() < limit);
                given.extend(next);
                if is_rest {
                    break;
                }
            }
            let mut sorted = all;
            sorted.sort_unstable();
            prop_assert_eq!(given, sorted);
        }
    }
}
