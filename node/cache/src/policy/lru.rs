//! `lru`: the least recently used block leaves first. With a shard that lets only leaves go, this is the leaf-LRU of
//! RadixAttention (Zheng et al., "SGLang: Efficient Execution of Structured Language Model Programs", NeurIPS 2024).

use super::list::{Links, List, MAX_SCAN, Path};
use super::{Policy, Removal, Request, Verdict, Visit};
use kvhive_protocol::BlockKey;

/// Least recently used first.
pub struct Lru {
    links: Links,
    order: List,
    path: Path,
}

impl Lru {
    /// Returns the bytes that it takes at most for a pool of so many blocks.
    pub(super) fn most_bytes(capacity: u32) -> usize {
        let capacity = capacity as usize;
        size_of::<Self>() + Links::bytes(capacity)
    }

    /// Makes an empty order for `capacity` blocks.
    pub fn new(capacity: u32) -> Lru {
        Lru { links: Links::new(capacity as usize), order: List::EMPTY, path: Path::NONE }
    }

    fn place(&mut self, at: u32, visit: &Visit) {
        if self.links.contains(at) {
            self.order.leave(&mut self.links, at);
        }
        let below = self.path.step(at, visit);
        self.order.enter(&mut self.links, at, below);
    }
}

impl Policy for Lru {
    fn begin(&mut self, _request: &Request) {
        self.path.begin();
    }

    fn hit(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit);
    }

    fn inserted(&mut self, at: u32, visit: &Visit) {
        self.place(at, visit);
    }

    fn refused(&mut self, _visit: &Visit) {}

    fn victim(&mut self, _newcomer: &Visit, may_go: &mut dyn FnMut(u32) -> bool) -> Verdict {
        let mut scan = MAX_SCAN;
        self.order.oldest_free(&mut self.links, may_go, &mut scan).map_or(Verdict::Stuck, Verdict::Evict)
    }

    fn removed(&mut self, at: u32, _key: &BlockKey, _why: Removal) {
        if self.links.contains(at) {
            self.order.leave(&mut self.links, at);
        }
        self.path.forget(at);
    }

    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.links.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use crate::policy::Strategy;
    use crate::policy::scenario::Scenario;

    #[test]
    fn the_leaf_used_longest_ago_leaves() {
        let mut pool = Scenario::with_room_for(4, Strategy::Lru);
        assert_eq!(pool.serve("abc d abe").resident(), "abde");
        assert_eq!(pool.serve("f").resident(), "abef");
        assert_eq!(pool.serve("g").resident(), "abfg");
    }
}
